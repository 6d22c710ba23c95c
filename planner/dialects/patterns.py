"""Tensor names as regular expressions: one each, or merged into few that match the same names and no others.

What is written is in the common part of ECMAScript's and of POSIX extended regular expressions: literals, escaped
punctuation, `( | )`, `[0-9]`, `^` and `$`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from planner.names.gguf import parse_name

__all__ = ["Escape", "any_of", "compacted", "escaped", "escaped_ecmascript", "numbers", "one_each"]

Escape = Callable[[str], str]

_PUNCTUATION = frozenset(r"\^$.|?*+()[]{}")


def escaped(text: str) -> str:
    r"""Escape text so that it stands for itself in either grammar.

    >>> print(escaped("blk.0.a+b"))
    blk\.0\.a\+b
    """
    return "".join("\\" + character if character in _PUNCTUATION else character for character in text)


def escaped_ecmascript(text: str, special: str) -> str:
    r"""Escape text for std::regex: what is not printable ASCII, and the characters in `special`, by number.

    >>> print(escaped_ecmascript("a b,c", " ,"))
    a\x20b\x2cc
    """
    raw = text.encode("utf-8", "surrogateescape").decode("latin-1")
    return "".join(
        f"\\x{ord(character):02x}" if character in special or not 32 <= ord(character) < 127 else escaped(character)
        for character in raw
    )


def one_each(formats: Mapping[str, str], escape: Escape) -> list[tuple[str, str]]:
    """Return a pattern for every tensor, with its format."""
    return [(f"^{escape(name)}$", fmt) for name, fmt in formats.items()]


def compacted(formats: Mapping[str, str], escape: Escape) -> list[tuple[str, str]]:
    """Return patterns, each with its format, that match every tensor of `formats` and no other name.

    Tensors of one format are merged over blocks and roles: for each format either roles that have it in the same blocks
    share a pattern, or blocks that have it in the same roles, whichever gives fewer patterns. Each name matches one
    pattern only, so their order does not matter. Order is that of the first tensor of each.
    """
    grids: dict[tuple[str, str], dict[str, dict[str, None]]] = {}  # format, prefix → role → blocks
    single: list[tuple[int, str, str]] = []
    position = {name: number for number, name in enumerate(formats)}
    for name, fmt in formats.items():
        parsed = parse_name(name)
        if parsed.number is not None and (parsed.number == "0" or not parsed.number.startswith("0")):
            grids.setdefault((fmt, f"{parsed.tower}blk."), {}).setdefault(f".{parsed.rest}", {})[parsed.number] = None
        else:
            single.append((position[name], f"^{escape(name)}$", fmt))
    for (fmt, prefix), roles in grids.items():
        by_role = _rectangles(roles)
        by_block = [(found, blocks) for blocks, found in _rectangles(_turned(roles))]
        for some_roles, blocks in min(by_role, by_block, key=len):
            first = min(position[f"{prefix}{block}{role}"] for role in some_roles for block in blocks)
            single.append((first, f"^{escape(prefix)}{numbers(blocks)}{any_of(some_roles, escape)}$", fmt))
    return [(pattern, fmt) for _, pattern, fmt in sorted(single)]


def _rectangles(rows: Mapping[str, Iterable[str]]) -> list[tuple[list[str], list[str]]]:
    """Group rows that have the same columns."""
    found: dict[frozenset[str], tuple[list[str], list[str]]] = {}
    for row, columns in rows.items():
        found.setdefault(frozenset(columns), ([], list(columns)))[0].append(row)
    return list(found.values())


def _turned(rows: Mapping[str, Iterable[str]]) -> dict[str, dict[str, None]]:
    columns: dict[str, dict[str, None]] = {}
    for row, members in rows.items():
        for column in members:
            columns.setdefault(column, {})[row] = None
    return columns


def any_of(texts: list[str], escape: Escape) -> str:
    r"""Return a pattern for any of several texts; a common beginning and end is written once.

    >>> print(any_of([".attn_k.weight", ".attn_q.weight"], escaped))
    \.attn_(k|q)\.weight
    """
    if len(texts) == 1:
        return escape(texts[0])
    shortest = min(map(len, texts))
    start = next((i for i in range(shortest) if len({text[i] for text in texts}) > 1), shortest)
    end = next((i for i in range(shortest - start) if len({text[-1 - i] for text in texts}) > 1), shortest - start)
    middles = sorted({text[start : len(text) - end] for text in texts})
    ending = texts[0][len(texts[0]) - end :]
    if "" in middles:  # not every parser takes an empty alternative
        return f"({'|'.join(escape(text[start:]) for text in texts)})" if start == 0 else (
            f"{escape(texts[0][: start - 1])}({'|'.join(sorted(escape(text[start - 1 :]) for text in texts))})"
        )  # fmt: skip
    return f"{escape(texts[0][:start])}({'|'.join(map(escape, middles))}){escape(ending)}"


def numbers(members: Iterable[str]) -> str:
    """Return a pattern for any of several numbers (as digits, without leading zeros), with digits in classes.

    >>> numbers(["0", "3", *map(str, range(10, 16))]), numbers(["7"])
    ('([03]|1[0-5])', '7')
    """
    by_length: dict[int, set[str]] = {}
    for member in members:
        by_length.setdefault(len(member), set()).add(member)
    terms = [term for length in sorted(by_length) for term in _digits(frozenset(by_length[length]))]
    return terms[0] if len(terms) == 1 and "|" not in terms[0] else f"({'|'.join(terms)})"


def _digits(words: frozenset[str]) -> list[str]:
    """Return terms for numbers of one length; first digits with the same continuations share a class."""
    if words == {""}:
        return [""]
    tails: dict[str, set[str]] = {}
    for word in words:
        tails.setdefault(word[0], set()).add(word[1:])
    classes: dict[frozenset[str], list[str]] = {}
    for digit in sorted(tails):
        classes.setdefault(frozenset(tails[digit]), []).append(digit)
    terms = []
    for tail, first in classes.items():
        rest = _digits(tail)
        terms += [_class(first) + rest[0]] if len(rest) == 1 else [f"{_class(first)}({'|'.join(rest)})"]
    return terms


def _class(digits: list[str]) -> str:
    """Return one digit, or a class such as `[03]`; runs of three and more become ranges, `[0-5]`."""
    if len(digits) == 1:
        return digits[0]
    runs: list[list[str]] = []
    for digit in digits:
        if runs and int(digit) == int(runs[-1][-1]) + 1:
            runs[-1].append(digit)
        else:
            runs.append([digit])
    return f"[{''.join(f'{run[0]}-{run[-1]}' if len(run) > 2 else ''.join(run) for run in runs)}]"
