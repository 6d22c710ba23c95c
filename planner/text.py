"""Strangers' words made safe for a terminal."""

from __future__ import annotations

__all__ = ["plain"]


def plain(text: str, *, keep: str = "") -> str:
    r"""Text with every character escaped that a terminal would act on, except those in `keep`.

    >>> print(plain("a\x1b[31m\n"))
    a\x1b[31m\n
    """
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )
