"""Escape untrusted text before it reaches a terminal or is pasted into a shell, and keep lists short."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

__all__ = ["command", "plain", "quoted", "some"]

# What a shell has no way to say between single quotes, or would end the backticks that messages put around commands
_UNSPEAKABLE = re.compile(r"[`\\']")


def plain(text: str, *, keep: str = "") -> str:
    r"""Escape every character that a terminal would act on, except those in `keep`.

    >>> print(plain("a\x1b[31m\n"))
    a\x1b[31m\n
    """
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )


def some(names: Iterable[str], most: int = 3) -> str:
    """List the first of some names, and how many more there are.

    >>> some(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    every = list(names)
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return f"{', '.join(every[:most])}{more}"


def command(*words: str | Path) -> str:
    """Format a command line that can be pasted into a shell. A Path is a file, whatever its name begins with.

    >>> command("planner", "quantize", Path("my model.gguf"), Path("-r.json"), "OUT.gguf")
    "planner quantize 'my model.gguf' ./-r.json OUT.gguf"
    """
    return " ".join(quoted(word) for word in words)


def quoted(word: str | Path) -> str:
    r"""Quote a word for a shell, in printable characters; a Path so that no program takes it for an option.

    >>> print(quoted(Path("caf\udce9 \n.gguf")))
    $'caf\xe9 \x0a.gguf'
    """
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"
    shown = text if isinstance(word, Path) else text.replace("\n", "")  # a program of several lines is one word too
    if shown.isprintable() and "`" not in text:
        return shlex.quote(text)
    return "$'" + "".join(map(_spelt, text)) + "'"


def _spelt(character: str) -> str:
    """Escape a character between `$'` and `'`, as bash and zsh read it."""
    if character.isprintable() and not _UNSPEAKABLE.match(character):
        return character
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", errors))
