"""Regular expressions of strangers, searched in time linear in the name: no pattern in a file can make us wait.

Two grammars, by the parsers that read such files: `ecmascript` (std::regex, in llama-quantize and ik_llama.cpp) and
`ere` (Bash's `[[ =~ ]]`). Both become the same automaton, run by sets of states. What an automaton cannot do (back
references, look-ahead, word boundaries) is refused. Names are bytes of UTF-8, as std::regex sees them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from planner.errors import RecipeError

__all__ = ["Grammar", "Regex"]

Grammar = Literal["ecmascript", "ere"]

_MOST_STATES = 20_000
_DEEPEST = 100  # groups within groups
_MOST_KNOWN = 4_000  # sets of states that are remembered
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
class _Set:
    mask: int  # bit b: byte b is taken


@dataclass(frozen=True, slots=True)
class _Edge:
    end: bool  # ^ or $


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    options: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    node: _Node
    low: int
    high: int | None


_Node = _Set | _Edge | _Sequence | _Choice | _Repeat
_FOUND, _FOUND_AT_END = -1, -2


class Regex:
    """A compiled pattern. Raises RecipeError, naming `where` it stands, for what the grammar does not allow.

    `literal` is the only name that is found, where that is so.
    """

    def __init__(self, pattern: str, grammar: Grammar, where: str = "the pattern") -> None:
        self.pattern = pattern
        self._where = f"{where} {pattern[:200]!r}"
        node = _Parser(pattern, self._where, ecma=grammar == "ecmascript").parse()
        self.literal = _only_name(node)
        # States: a set of bytes and what follows it; or None and what is reached without a byte
        self._masks: list[int | _Edge | None] = []
        self._after: list[tuple[int, ...]] = []
        start = self._compile(node, _FOUND)
        self._known: dict[tuple[frozenset[int], int], frozenset[int]] = {}
        self._first = self._closed([start], begin=True)
        self._again = self._closed([start], begin=False)

    def search(self, name: str) -> bool:
        """Whether the pattern is found anywhere in `name`."""
        if self.literal is not None:
            return name == self.literal
        states = self._first
        for byte in name.encode("utf-8", "surrogateescape"):
            if _FOUND in states or not states:
                break
            after = self._known.get((states, byte))
            states = self._step(states, byte) if after is None else after
        else:
            return _FOUND in states or _FOUND_AT_END in states
        return _FOUND in states

    def _step(self, states: frozenset[int], byte: int) -> frozenset[int]:
        targets: list[int] = []
        for state in states:
            mask = self._masks[state] if state >= 0 else 0
            if isinstance(mask, int) and mask >> byte & 1:
                targets += self._after[state]
        after = self._closed(targets, begin=False) | self._again
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[states, byte] = after
        return after

    def _closed(self, states: list[int], *, begin: bool) -> frozenset[int]:
        """All states that take a byte, reached without one; and whether the pattern is found here."""
        found: set[int] = set()
        seen: set[tuple[int, bool]] = set()
        waiting = [(state, False) for state in states]  # past a $, only the end of the name will do
        while waiting:
            entry = state, at_end = waiting.pop()
            if entry in seen:
                continue
            seen.add(entry)
            mask = None if state == _FOUND else self._masks[state]
            if state == _FOUND:
                found.add(_FOUND_AT_END if at_end else _FOUND)
            elif isinstance(mask, int):
                if not at_end:
                    found.add(state)
            elif mask is None or mask.end or begin:
                waiting += [(after, at_end or (mask is not None and mask.end)) for after in self._after[state]]
        return frozenset(found)

    def _compile(self, node: _Node, then: int) -> int:
        """The state in which `node`, followed by `then`, begins."""
        if isinstance(node, _Set):
            return self._state(node.mask, then)
        if isinstance(node, _Edge):
            return self._state(node, then)
        if isinstance(node, _Choice):
            return self._state(None, *(self._compile(option, then) for option in node.options))
        if isinstance(node, _Sequence):
            for part in reversed(node.parts):
                then = self._compile(part, then)
            return then
        if node.high is None:
            loop = self._state(None)
            self._after[loop] = (self._compile(node.node, loop), then)
            then = loop
        else:
            done = then
            for _ in range(node.high - node.low):
                then = self._state(None, self._compile(node.node, then), done)
        for _ in range(node.low):
            then = self._compile(node.node, then)
        return then

    def _state(self, mask: int | _Edge | None, *after: int) -> int:
        if len(self._masks) >= _MOST_STATES:
            raise RecipeError(f"{self._where} is too large.", "Write it with fewer repetitions.")
        self._masks.append(mask)
        self._after.append(after)
        return len(self._masks) - 1


def _only_name(node: _Node) -> str | None:
    parts = node.parts if isinstance(node, _Sequence) else (node,)
    if len(parts) < 2 or parts[0] != _Edge(False) or parts[-1] != _Edge(True):
        return None
    masks = [part.mask for part in parts[1:-1] if isinstance(part, _Set) and part.mask.bit_count() == 1]
    if len(masks) != len(parts) - 2:
        return None
    try:
        return bytes(mask.bit_length() - 1 for mask in masks).decode("utf-8")
    except UnicodeDecodeError:
        return None


class _Parser:
    """One reading of a pattern, as bytes: each character of `text` is one."""

    def __init__(self, pattern: str, where: str, *, ecma: bool) -> None:
        self.text = pattern.encode("utf-8", "surrogateescape").decode("latin-1")
        self.where = where
        self.ecma = ecma
        self.at = 0
        self.depth = 0

    def parse(self) -> _Node:
        node = self.choice()
        if self.at < len(self.text):
            raise self.wrong("has a ) without its (")
        return node

    def wrong(self, what: str) -> RecipeError:
        return RecipeError(f"{self.where} {what}.", "Correct the pattern; names alone, anchored, always work.")

    def peek(self, offset: int = 0) -> str:
        return self.text[self.at + offset : self.at + offset + 1]

    def take(self) -> str:
        self.at += 1
        return self.text[self.at - 1 : self.at]

    def choice(self) -> _Node:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self.wrong("has groups nested too deeply")
        options = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            options.append(self.sequence())
        self.depth -= 1
        return options[0] if len(options) == 1 else _Choice(tuple(options))

    def sequence(self) -> _Node:
        parts = []
        while self.peek() not in ("", "|", ")"):
            node = self.atom()
            while (times := self.times()) is not None:
                if isinstance(node, _Repeat) and self.ecma:
                    raise self.wrong("repeats a repetition")
                node = _Repeat(node, *times)
            parts.append(node)
        return parts[0] if len(parts) == 1 else _Sequence(tuple(parts))

    def times(self) -> tuple[int, int | None] | None:
        simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self.peek())
        if simple is not None:
            self.at += 1
        elif self.peek() == "{":
            match = _BRACES.match(self.text, self.at)
            if match is None:
                raise self.wrong("has a { that is no number of repetitions")
            low, high = int(match[1]), int(match[1])
            simple = low, (high if match[2] is None else int(match[3]) if match[3] else None)
            if simple[1] is not None and simple[1] < low:
                raise self.wrong("has a repetition with its numbers in the wrong order")
            self.at = match.end()
        else:
            return None
        if self.ecma and self.peek() == "?":  # lazy: the same names are found
            self.at += 1
        return simple

    def atom(self) -> _Node:
        character = self.take()
        if character == "(":
            return self.group()
        if character == "[":
            return _Set(self.bracket())
        if character == ".":
            return _Set(_ALL & ~_bits("\n\r") if self.ecma else _ALL & ~1)
        if character in "^$":
            return _Edge(character == "$")
        if character in "*+?{":
            raise self.wrong(f"repeats nothing: {character}")
        return _Set(self.escape() if character == "\\" else 1 << ord(character))

    def group(self) -> _Node:
        if self.peek() == "?" and self.ecma:
            if self.peek(1) != ":":
                raise self.wrong("looks ahead, which planner does not")
            self.at += 2
        node = self.choice()
        if self.take() != ")":
            raise self.wrong("has a ( without its )")
        return _Sequence((node,))  # what is repeated in it is not repeated by what follows it

    def escape(self, *, bracket: bool = False) -> int:
        character = self.take()
        if not character:
            raise self.wrong("ends in a backslash")
        if not self.ecma:
            if character in "dDbB<>`'" or character.isdigit():
                raise self.wrong(rf"has \{character}, which Bash understands otherwise than one thinks; write [0-9]")
        elif character in "123456789bBpPkuc" and not (bracket and character == "b"):
            if character == "u" and re.fullmatch("00[0-9a-fA-F]{2}", self.text[self.at : self.at + 4]):
                self.at += 4
                return 1 << int(self.text[self.at - 2 : self.at], 16)
            raise self.wrong(rf"has \{character}, which planner does not understand")
        elif character in _CONTROLS:
            return 1 << _CONTROLS[character]
        elif character == "x":
            digits = self.text[self.at : self.at + 2]
            if not re.fullmatch("[0-9a-fA-F]{2}", digits):
                raise self.wrong(r"has \x without two hexadecimal digits")
            self.at += 2
            return 1 << int(digits, 16)
        if character in "wWsS" or (self.ecma and character in "dD"):
            mask = _SETS[character.lower()]
            return _ALL & ~mask if character.isupper() else mask
        return 1 << ord(character)

    def bracket(self) -> int:
        negated = self.peek() == "^"
        self.at += negated
        mask, begin = 0, self.at
        while True:
            character = self.take()
            if not character:
                raise self.wrong("has a [ without its ]")
            if character == "]" and (self.ecma or self.at > begin + 1):
                break
            low = self.member(character)
            if self.peek() == "-" and self.peek(1) not in ("]", "") and low.bit_count() == 1:
                self.at += 1
                high = self.member(self.take())
                if high.bit_count() != 1 or high < low:
                    raise self.wrong("has a range in [ ] that is none")
                low = (high << 1) - low
            mask |= low
        return _ALL & ~mask if negated else mask

    def member(self, character: str) -> int:
        if character == "[" and self.peek() in (":", ".", "="):
            match = re.compile(r":([a-z]+):\]").match(self.text, self.at)
            if match is None or match[1] not in _POSIX:
                raise self.wrong("has a class in [ ] that planner does not know")
            self.at = match.end()
            return _POSIX[match[1]]
        return self.escape(bracket=True) if character == "\\" and self.ecma else 1 << ord(character)
