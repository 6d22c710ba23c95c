"""Strangers' words made safe for a terminal, and lists of them kept short."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["plain", "some"]


def plain(text: str, *, keep: str = "") -> str:
    r"""Text with every character escaped that a terminal would act on, except those in `keep`.

    >>> print(plain("a\x1b[31m\n"))
    a\x1b[31m\n
    """
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )


def some(names: Iterable[str], most: int = 3) -> str:
    """The first of some names, and how many more there are.

    >>> some(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    every = list(names)
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return f"{', '.join(every[:most])}{more}"
