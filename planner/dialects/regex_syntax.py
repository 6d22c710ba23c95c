"""Parser of the two grammars of regular expressions in untrusted files, into one kind of tree."""

from __future__ import annotations

import re
from dataclasses import dataclass

from planner.errors import RecipeError

__all__ = ["Choice", "Edge", "Look", "Node", "Parser", "Repeat", "Sequence", "Set"]

_DEEPEST = 100  # groups within groups
_MOST_LOOKS = 50
_ALL = (1 << 256) - 1


def _bits(text: str) -> int:
    return sum(1 << ord(character) for character in text)


_DIGIT, _LOWER, _SPACE = _bits("0123456789"), _bits("abcdefghijklmnopqrstuvwxyz"), _bits("\t\n\v\f\r ")
_UPPER = _LOWER >> 32
_SETS = {"d": _DIGIT, "w": _DIGIT | _LOWER | _UPPER | _bits("_"), "s": _SPACE}
_POSIX = {
    "digit": _DIGIT, "lower": _LOWER, "upper": _UPPER, "space": _SPACE, "alpha": _LOWER | _UPPER,
    "alnum": _LOWER | _UPPER | _DIGIT, "xdigit": _DIGIT | _bits("abcdefABCDEF"),
}  # fmt: skip
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_BRACES = re.compile(r"\{([0-9]{1,4})(,([0-9]{0,4}))?\}")


@dataclass(frozen=True, slots=True)
class Set:
    """One byte: `b` matches if bit `b` of `mask` is set."""

    mask: int


@dataclass(frozen=True, slots=True)
class Edge:
    """An anchor: the end of the name (`$`), or its beginning (`^`)."""

    end: bool


@dataclass(frozen=True, slots=True)
class Sequence:
    """A concatenation of `parts`."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """An alternation: any one of `options`."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A repetition: `low` to `high` times; None: no upper limit."""

    node: Node
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Look:
    """A zero-width assertion: whether `Parser.looks[number]` matches from here on (None there: a word boundary).
    `wanted` is the required answer."""

    number: int
    wanted: bool


Node = Set | Edge | Sequence | Choice | Repeat | Look


class Parser:
    """Parser of one pattern, as bytes: each character of `text` is one. `looks` are the look-aheads that `Look`s refer
    to, inner ones first.

    Raises RecipeError, naming `where` it stands, for anything that the grammar does not allow.
    """

    def __init__(self, pattern: str, where: str, *, ecma: bool) -> None:
        self._text = pattern.encode("utf-8", "surrogateescape").decode("latin-1")
        self._where = where
        self._ecma = ecma
        self._at = 0
        self._depth = 0
        self.looks: list[Node | None] = []

    def parse(self) -> Node:
        """Parse the whole pattern. Raises RecipeError."""
        node = self._choice()
        if self._at < len(self._text):
            raise self._wrong("has a ) without its (")
        return node

    def _wrong(self, what: str) -> RecipeError:
        return RecipeError(f"{self._where} {what}.", "Correct the pattern; names alone, anchored, always work.")

    def _peek(self, offset: int = 0) -> str:
        return self._text[self._at + offset : self._at + offset + 1]

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1 : self._at]

    def _choice(self) -> Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._wrong("has groups nested too deeply")
        options = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            options.append(self._sequence())
        self._depth -= 1
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        parts = []
        while self._peek() not in ("", "|", ")"):
            node = self._atom()
            while (times := self._times()) is not None:
                if isinstance(node, Repeat | Look) and self._ecma:
                    raise self._wrong("repeats a repetition")
                node = Repeat(node, *times)
            parts.append(node)
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _times(self) -> tuple[int, int | None] | None:
        simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self._peek())
        if simple is not None:
            self._at += 1
        elif self._peek() == "{":
            match = _BRACES.match(self._text, self._at)
            if match is None:
                raise self._wrong("has a { that is no number of repetitions")
            low, high = int(match[1]), int(match[1])
            simple = low, (high if match[2] is None else int(match[3]) if match[3] else None)
            if simple[1] is not None and simple[1] < low:
                raise self._wrong("has a repetition with its numbers in the wrong order")
            self._at = match.end()
        else:
            return None
        if self._ecma and self._peek() == "?":  # lazy: the same names match
            self._at += 1
        return simple

    def _atom(self) -> Node:
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return Set(self._bracket())
        if character == ".":
            return Set(_ALL & ~_bits("\n\r") if self._ecma else _ALL & ~1)
        if character in "^$":
            return Edge(character == "$")
        if character in "*+?{":
            raise self._wrong(f"repeats nothing: {character}")
        if character == "\\" and self._ecma and self._peek() in ("b", "B"):
            return self._look(None, wanted=self._take() == "b")
        return Set(self._escape() if character == "\\" else 1 << ord(character))

    def _group(self) -> Node:
        ahead = self._text[self._at : self._at + 2] if self._ecma else ""
        if ahead.startswith("?"):
            if ahead not in ("?:", "?=", "?!"):
                raise self._wrong("has a group of a kind that std::regex does not know: (?" + self._peek(1))
            self._at += 2
        node = self._choice()
        if self._take() != ")":
            raise self._wrong("has a ( without its )")
        if ahead in ("?=", "?!"):
            return self._look(node, wanted=ahead == "?=")
        return Sequence((node,))  # what is repeated in it is not repeated by what follows it

    def _look(self, node: Node | None, *, wanted: bool) -> Look:
        if len(self.looks) == _MOST_LOOKS:
            raise self._wrong("looks ahead too often")
        self.looks.append(node)
        return Look(len(self.looks) - 1, wanted)

    def _escape(self, *, bracket: bool = False) -> int:
        character = self._take()
        if not character:
            raise self._wrong("ends in a backslash")
        if not self._ecma:
            if character in "dDbB<>`'" or character.isdigit():
                raise self._wrong(rf"has \{character}, which Bash understands otherwise than one thinks; write [0-9]")
        elif character in "123456789bBpPkuc" and not (bracket and character == "b"):
            if character == "u" and re.fullmatch("00[0-9a-fA-F]{2}", self._text[self._at : self._at + 4]):
                self._at += 4
                return 1 << int(self._text[self._at - 2 : self._at], 16)
            raise self._wrong(rf"has \{character}, which planner does not understand")
        elif character in _CONTROLS:
            return 1 << _CONTROLS[character]
        elif character == "x":
            digits = self._text[self._at : self._at + 2]
            if not re.fullmatch("[0-9a-fA-F]{2}", digits):
                raise self._wrong(r"has \x without two hexadecimal digits")
            self._at += 2
            return 1 << int(digits, 16)
        if character in "wWsS" or (self._ecma and character in "dD"):
            mask = _SETS[character.lower()]
            return _ALL & ~mask if character.isupper() else mask
        return 1 << ord(character)

    def _bracket(self) -> int:
        negated = self._peek() == "^"
        self._at += negated
        mask, begin = 0, self._at
        while True:
            character = self._take()
            if not character:
                raise self._wrong("has a [ without its ]")
            if character == "]" and (self._ecma or self._at > begin + 1):
                break
            low = self._member(character)
            if self._peek() == "-" and self._peek(1) not in ("]", "") and low.bit_count() == 1:
                self._at += 1
                high = self._member(self._take())
                if high.bit_count() != 1 or high < low:
                    raise self._wrong("has a range in [ ] that is none")
                low = (high << 1) - low
            mask |= low
        return _ALL & ~mask if negated else mask

    def _member(self, character: str) -> int:
        if character == "[" and self._peek() in (":", ".", "="):
            match = re.compile(r":([a-z]+):\]").match(self._text, self._at)
            if match is None or match[1] not in _POSIX:
                raise self._wrong("has a class in [ ] that planner does not know")
            self._at = match.end()
            return _POSIX[match[1]]
        return self._escape(bracket=True) if character == "\\" and self._ecma else 1 << ord(character)
