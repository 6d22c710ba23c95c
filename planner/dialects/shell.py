"""Rules of types inside shell scripts, the form in which people publish them.

`custom="…"` with a rule a line, `--custom-q "…"`, here-documents, and `--tensor-type PATTERN=TYPE`. Nothing is run:
words are split at quotes and white space, as a shell does.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

__all__ = ["is_script", "script_rules", "tensor_type_words"]

_LONGEST = 1 << 20  # characters; no script is longer
_MOST_DOCUMENTS = 20
_SCRIPT = re.compile(r"""#!|(?m:^\s*(?:export\s+)?\w+=\$?[("'])|(?:^|\s)--(?:custom-q|tensor-type)\s""")
_PIECE = re.compile(
    r"""(?P<space>\s+|\\\r?\n) | (?P<comment>(?<!\S)\#[^\n]*) | '(?P<single>[^']*)'
    | "(?P<double>[^"\\]*(?:\\.[^"\\]*)*)"
    | (?P<document>(?<!<)<<-?[ \t]*(?P<quote>['"]?)(?P<end>[A-Za-z_]\w*)(?P=quote)[^\n]*\n)
    | (?P<bare>\\.|[^\s'"\\<]+|.)""",
    re.VERBOSE | re.DOTALL,
)
_IN_DOUBLE_QUOTES = re.compile(r"""\\(\n|[$`"\\])""")
_ASSIGNED = re.compile(r"[A-Za-z_]\w*=")
_RULE = re.compile(
    r"\s*[^\s=#][^=\n]*=\s*(?:bf16|f16|f32|t?q\d\w+|iq\d\w+|mxfp4\w*|nvfp4|\$\w+)\s*(?:#.*)?", re.IGNORECASE
)


def is_script(text: str) -> bool:
    """Return whether a text is a shell script, or a command line of one."""
    return _SCRIPT.search(text[:_LONGEST]) is not None


def script_rules(text: str) -> str | None:
    """Return the rules in a script's strings, one string a line; None if it is no script or has none."""
    if not is_script(text):
        return None
    rules = [value for _, value in _words(text[:_LONGEST]) if any(map(_RULE.fullmatch, re.split(r"[,\n]", value)))]
    return "\n".join(rules) or None


def tensor_type_words(text: str) -> list[str]:
    """Return the word after each `--tensor-type` of a script."""
    words = [word for word, _ in _words(text[:_LONGEST])] if is_script(text) else []
    return [after for word, after in itertools.pairwise(words) if word == "--tensor-type"]


def _words(text: str) -> Iterator[tuple[str, str]]:
    """Yield the words of a script, whole and without `NAME=` before a quote."""
    word = value = ""
    documents = at = 0
    while match := _PIECE.match(text, at):
        at = match.end()
        kind = match.lastgroup
        piece = match[kind] if kind in ("single", "double", "bare") else ""
        if kind == "double":
            piece = _IN_DOUBLE_QUOTES.sub(lambda escaped: "" if escaped[1] == "\n" else escaped[1], piece)
        elif kind == "bare" and piece.startswith("\\"):
            piece = piece[1:] or piece
        elif match["document"] and documents < _MOST_DOCUMENTS:
            documents += 1
            end = re.compile(rf"^[ \t]*{match['end']}[ \t]*\r?$", re.MULTILINE).search(text, at)
            yield "", text[at : end.start() if end else len(text)]
            at = end.end() if end else len(text)
        if kind in ("space", "comment") or match["document"]:
            if word:
                yield word, value
            word = value = ""
        else:
            value = piece if _ASSIGNED.fullmatch(word) and kind != "bare" else value + piece
            word += piece
    if word:
        yield word, value
