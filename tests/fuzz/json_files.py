"""JSON taken apart and put together wrong: other values, keys twice or gone, nesting without end."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

from tests.fuzz.values import FLOATS, INTEGERS, WORDS

__all__ = ["mutated_json"]

_RAW = ("NaN", "-Infinity", "1e999", "-1e-999", "9" * 400, "9" * 5000, "[" * 3000, "{}", "[]", "nul", "'x'", "", "\x00")


class _Raw(str):
    """Written as it is."""


def mutated_json(rng: Random, data: bytes) -> bytes:
    """One node changed. ValueError for what is no JSON."""
    try:
        return _changed(rng, json.loads(data, object_pairs_hook=_pairs))
    except RecursionError as error:
        raise ValueError("too deep") from error


def _changed(rng: Random, tree: Any) -> bytes:
    holder = {"": tree}
    places = list(_places(holder))
    # the top is dull, and most nodes are deep in a list
    parent, key = rng.choice(places[: rng.choice((1 << 30, 1 << 30, 20))])
    match rng.randrange(8):
        case 0 if isinstance(parent[key], list | _Pairs) and parent[key]:
            _change_many(rng, parent[key])
        case 1 if parent is not holder:
            del parent[key]
        case 2 if isinstance(parent, _Pairs):
            parent[key] = _Twice((parent[key], _other(rng, parent[key], places)))
        case 3 if isinstance(parent, _Pairs):
            parent[rng.choice(WORDS)] = parent.pop(key)
        case _:
            parent[key] = _other(rng, parent[key], places)
    indent = rng.choice((None, "\n"))
    return _dumped(holder[""], indent).encode("utf-8", "surrogatepass")


class _Pairs(dict[str, Any]):
    """A dictionary whose values may be two."""


class _Twice(tuple[Any, Any]):
    """Two values under one key."""


def _pairs(items: list[tuple[str, Any]]) -> _Pairs:
    return _Pairs(items)


def _places(holder: dict[str, Any]) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [holder]
    while waiting:
        node = waiting.pop(0)
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            found.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    return found


def _change_many(rng: Random, node: Any) -> None:
    if isinstance(node, list):
        node[:] = rng.choice((node * 2, node[:1], node[::-1], [], [node[:]], node * 40))
    else:
        node.clear()


def _other(rng: Random, present: Any, places: list[tuple[Any, Any]]) -> Any:
    match rng.randrange(8):
        case 0 | 1 if isinstance(present, str):
            at = rng.randint(0, len(present))
            return present[:at] + rng.choice(WORDS) + present[rng.choice((at, len(present))) :]
        case 0 | 1 | 2 if isinstance(present, int | float):
            return rng.choice((present + 1, present - 1, -present, *INTEGERS, *FLOATS))
        case 3 | 4:  # what stands elsewhere, and is of its kind
            alike = [parent[key] for parent, key in places if type(parent[key]) is type(present)]
            return copy.deepcopy(rng.choice(alike))
        case 5:
            return rng.choice((None, True, False, [], {}, [[]], {"": None}))
        case 6:
            return rng.choice((*INTEGERS, *FLOATS, -1, *map(_Raw, _RAW)))
        case _:
            return rng.choice(WORDS)


def _dumped(node: Any, indent: str | None) -> str:
    if isinstance(node, _Raw):
        return str(node)
    if isinstance(node, dict):
        items = [
            f"{json.dumps(key, ensure_ascii=False)}: {_dumped(one, None)}"
            for key, value in node.items()
            for one in (value if isinstance(value, _Twice) else (value,))
        ]
        between = ", " if indent is None else f",{indent}"
        return "{" + between.join(items) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(_dumped(one, None) for one in node) + "]"
    return json.dumps(node, ensure_ascii=isinstance(node, str) and len(node) % 2 == 0)
