"""Linear-time matching of untrusted regular expressions: no pattern in a file can make `planner` wait.

Two grammars, by the parsers that read such files: `ecmascript` (std::regex, in llama-quantize and ik_llama.cpp) and
`ere` (Bash's `[[ =~ ]]`). Both are compiled to an NFA, simulated with sets of states. A look-ahead is an automaton of
its own, run from the end of the name backwards, which tells for every position whether it matches from there. Back
references, which no automaton can match, are rejected. Names are bytes of UTF-8, as std::regex sees them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from planner.dialects import regex_syntax as syntax
from planner.dialects.regex_syntax import Choice, Edge, Look, Node, Parser, Set
from planner.errors import RecipeError

__all__ = ["Grammar", "Regex"]

Grammar = Literal["ecmascript", "ere"]

_MOST_STATES = 20_000
_MOST_KNOWN = 4_000  # cached sets of states
_FOUND, _FOUND_AT_END = -1, -2
_WORD = re.compile(rb"\b")


class Regex:
    """A compiled pattern. Raises RecipeError, naming `where` it stands, for anything that the grammar does not allow.

    `literal` is the one name that a literal pattern, anchored at both ends, matches; None for other patterns.
    """

    def __init__(self, pattern: str, grammar: Grammar, where: str = "the pattern") -> None:
        self.pattern = pattern
        where = f"{where} {pattern[:200]!r}"
        parser = Parser(pattern, where, ecma=grammar == "ecmascript")
        node = parser.parse()
        self._plain = _plain_text(node)
        begin, text, end = self._plain or (False, "", False)
        self.literal = text if begin and end else None
        self._automaton = _Automaton(node, where)
        self._looks = [None if look is None else _Automaton(_reversed(look), where) for look in parser.looks]

    def search(self, name: str) -> bool:
        """Return whether the pattern matches anywhere in `name`."""
        if self._plain is not None:
            begin, text, end = self._plain
            if begin:
                return name == text if end else name.startswith(text)
            return name.endswith(text) if end else text in name
        data = name.encode("utf-8", "surrogateescape")
        if not self._looks:
            return self._automaton.found(data)
        return any(self._automaton.ends(data, self._answers(data)))

    def _answers(self, data: bytes) -> list[int]:
        """Return a bit mask per position of `data`, its end included: bit `i` is set where the `i`-th look-ahead (or
        word boundary) matches."""
        answers = [0] * (len(data) + 1)
        for number, look in enumerate(self._looks):
            if look is None:
                places = [match.start() for match in _WORD.finditer(data)]
            else:  # a backward match ends where the forward one begins
                ends = look.ends(data[::-1], answers[::-1])
                places = [len(data) - end for end, found in enumerate(ends) if found]
            for place in places:
                answers[place] |= 1 << number
        return answers


class _Automaton:
    """An NFA. A state has a set of bytes and its successors, or a condition (None: always) and epsilon transitions."""

    def __init__(self, node: Node, where: str) -> None:
        self._where = where
        self._masks: list[int | Edge | Look | None] = []
        self._after: list[tuple[int, ...]] = []
        self._start = self._compile(node, _FOUND)
        self._known: dict[tuple[frozenset[int], int, int], frozenset[int]] = {}
        self._again: dict[tuple[int, bool], frozenset[int]] = {}

    def found(self, data: bytes) -> bool:
        """Return whether the automaton, which must be free of look-aheads, matches anywhere in `data`."""
        states = self._begun(0, begin=True)
        for byte in data:
            if _FOUND in states or not states:
                return bool(states)
            after = self._known.get((states, byte, 0))
            states = self._step(states, byte, 0) if after is None else after
        return _FOUND in states or _FOUND_AT_END in states

    def ends(self, data: bytes, answers: Sequence[int]) -> Iterator[bool]:
        """Yield for every position of `data`, its end included, whether a match ends there. `answers` holds a bit mask
        per position: which look-aheads match from it."""
        states = self._begun(answers[0], begin=True)
        for byte, answer in zip(data, answers[1:], strict=True):
            yield _FOUND in states
            after = self._known.get((states, byte, answer))
            states = self._step(states, byte, answer) if after is None else after
        yield _FOUND in states or _FOUND_AT_END in states

    def _begun(self, answer: int, *, begin: bool) -> frozenset[int]:
        known = self._again.get((answer, begin))
        if known is None:
            if len(self._again) >= _MOST_KNOWN:
                self._again.clear()
            known = self._again[answer, begin] = self._closed([self._start], answer, begin=begin)
        return known

    def _step(self, states: frozenset[int], byte: int, answer: int) -> frozenset[int]:
        targets: list[int] = []
        for state in states:
            mask = self._masks[state] if state >= 0 else 0
            if isinstance(mask, int) and mask >> byte & 1:
                targets += self._after[state]
        after = self._closed(targets, answer, begin=False) | self._begun(answer, begin=False)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[states, byte, answer] = after
        return after

    def _closed(self, states: list[int], answer: int, *, begin: bool) -> frozenset[int]:
        """Return the epsilon closure: the states that consume a byte, and the accepting ones if the pattern matches
        here."""
        found: set[int] = set()
        seen: set[tuple[int, bool]] = set()
        waiting = [(state, False) for state in states]  # after a $, only the end of the name matches
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
            elif isinstance(mask, Edge):
                if mask.end or begin:
                    waiting += [(after, at_end or mask.end) for after in self._after[state]]
            elif mask is None or bool(answer >> mask.number & 1) == mask.wanted:
                waiting += [(after, at_end) for after in self._after[state]]
        return frozenset(found)

    def _compile(self, node: Node, then: int) -> int:
        """Add states for `node` followed by the state `then`; return the first."""
        if isinstance(node, Set):
            return self._state(node.mask, then)
        if isinstance(node, Edge | Look):
            return self._state(node, then)
        if isinstance(node, Choice):
            return self._state(None, *(self._compile(option, then) for option in node.options))
        if isinstance(node, syntax.Sequence):
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

    def _state(self, mask: int | Edge | Look | None, *after: int) -> int:
        if len(self._masks) >= _MOST_STATES:
            raise RecipeError(f"{self._where} is too large.", "Write it with fewer repetitions.")
        self._masks.append(mask)
        self._after.append(after)
        return len(self._masks) - 1


def _reversed(node: Node) -> Node:
    """Return the pattern that matches backwards what `node` matches forwards."""
    if isinstance(node, Edge):
        return Edge(not node.end)
    if isinstance(node, Choice):
        return Choice(tuple(map(_reversed, node.options)))
    if isinstance(node, syntax.Sequence):
        return syntax.Sequence(tuple(map(_reversed, reversed(node.parts))))
    if isinstance(node, syntax.Repeat):
        return syntax.Repeat(_reversed(node.node), node.low, node.high)
    return node


def _plain_text(node: Node) -> tuple[bool, str, bool] | None:
    """Return (anchored at the beginning, text, anchored at the end) of a literal pattern; None for any other."""
    parts = node.parts if isinstance(node, syntax.Sequence) else (node,)
    begin, end = parts[:1] == (Edge(False),), parts[-1:] == (Edge(True),)
    inner = parts[begin : len(parts) - end]
    masks = [part.mask for part in inner if isinstance(part, Set) and part.mask.bit_count() == 1]
    if len(masks) != len(inner):
        return None
    try:
        return begin, bytes(mask.bit_length() - 1 for mask in masks).decode("utf-8"), end
    except UnicodeDecodeError:
        return None
