"""Rules by tensor name: pins, floors, caps, devices, ties."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from planner.errors import UsageError, option
from planner.formats.ggml import Format
from planner.formats.registry import family_named
from planner.names.gguf import FUSED, block_prefix
from planner.sizes import parse_size
from planner.terms import FamilyName
from state import Inventory

__all__ = [
    "Device",
    "Rule",
    "Tie",
    "assign_devices",
    "match_rules",
    "parse_device",
    "parse_rule",
    "parse_tie",
    "pinned_formats",
    "tied",
]


class Rule(NamedTuple):
    """A pin, floor or cap: a format, for tensors whose name matches `pattern`. `text` is the rule as the user wrote
    it."""

    pattern: re.Pattern[str]
    format: Format
    text: str


class Device(NamedTuple):
    """A device of `capacity` bytes; it gets the tensors whose name matches `pattern` and that no earlier device
    took."""

    name: str
    pattern: re.Pattern[str]
    capacity: int
    text: str


class Tie(NamedTuple):
    """A tie: tensors of one block whose names match `pattern` share one format."""

    pattern: re.Pattern[str]
    text: str


_FUSED_NAME = "fused"


def parse_rule(text: str, *, default_pattern: str | None = None, family: FamilyName = "gguf") -> Rule:
    """Parse a rule `REGEX=TYPE`, or `TYPE` alone, which stands for all tensors, if `default_pattern` is given; the type
    is one of the family's. Raises UsageError."""
    pattern, separator, name = text.rpartition("=")
    if not separator:
        if default_pattern is None:
            raise UsageError(f"{text!r} is not of the form REGEX=TYPE.", "Write for example 'attn_v=q6_K'.")
        pattern = default_pattern
    return Rule(_compiled(pattern), family_named(family).named(name), text)


def parse_device(text: str) -> Device:
    """Parse a device `NAME:REGEX=SIZE`. Raises UsageError."""
    head, separator, size = text.rpartition("=")
    name, colon, pattern = head.partition(":")
    if not (separator and colon and name):
        raise UsageError(f"{text!r} is not of the form NAME:REGEX=SIZE.", r"Write for example 'gpu:blk\.[0-9]\.=8GB'.")
    return Device(name, _compiled(pattern), parse_size(size), text)


def parse_tie(text: str) -> tuple[Tie, ...]:
    """Return ties from a pattern, or from the word `fused`: attn q/k/v; ffn gate/up; expert gate/up. Raises
    UsageError."""
    return tuple(Tie(_compiled(pattern), text) for pattern in (FUSED if text == _FUSED_NAME else (text,)))


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"{pattern!r} is not a regular expression: {error}.", r"Write for example 'blk\.0\..*' or 'attn_v'."
        ) from error


def match_rules(
    rules: Sequence[Rule], inventory: Inventory, kind: str, *, exclusive: bool = False
) -> dict[str, list[Rule]]:
    """Map each tensor to the rules that apply to it, given by the option `kind`. A rule applies to tensors that
    llama.cpp would quantize; only an `exclusive` one (a pin) that matches no other applies to tensors that are left
    alone.

    Raises UsageError for a rule that matches no tensor, and for exclusive rules that contradict each other.
    """
    left_alone = {tensor.name for tensor in inventory.tensors if tensor.left_alone is not None}
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        hits = _hits(rule.pattern, inventory, kind, rule.text)
        free = [name for name in hits if name not in left_alone]
        for name in free or (hits if exclusive else []):
            before = found.setdefault(name, [])
            if before and exclusive and before[0].format is not rule.format:
                raise UsageError(
                    f"{option(kind, before[0].text)} and {option(kind, rule.text)} contradict each other for {name}.",
                    "Make one of the patterns narrower.",
                )
            before.append(rule)
    return found


def pinned_formats(pins: Iterable[Rule], names: Iterable[str]) -> dict[str, list[Format]]:
    """Map each pinned tensor to the formats that its pins give it: those that it has to be measured in."""
    found: dict[str, list[Format]] = {}
    every = list(names)
    for rule in pins:
        for name in every:
            if rule.pattern.search(name):
                found.setdefault(name, []).append(rule.format)
    return found


def assign_devices(devices: Sequence[Device], inventory: Inventory) -> dict[str, Device]:
    """Map each tensor to the first device whose pattern matches it. Raises UsageError for a device that gets no
    tensor."""
    found: dict[str, Device] = {}
    for device in devices:
        fresh = [name for name in _hits(device.pattern, inventory, "device", device.text) if name not in found]
        if not fresh:
            raise UsageError(
                f"{option('device', device.text)}: devices before it have taken every tensor that it matches.",
                "Put the narrower pattern first.",
            )
        found.update(dict.fromkeys(fresh, device))
    return found


def tied(ties: Sequence[Tie], inventory: Inventory) -> list[list[str]]:
    """Return groups of tensors that must share one format, in file order; every tensor that may be quantized is in one.

    Tensors outside all blocks count as one block. Ties that share a tensor are merged. Raises UsageError for a tie that
    joins no tensors (`fused`: only if it matches none, since a model may have them fused already).
    """
    free = [tensor.name for tensor in inventory.tensors if tensor.left_alone is None]
    leader = {name: name for name in free}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for text in dict.fromkeys(tie.text for tie in ties):
        found = joined = False
        for tie in ties:
            blocks: dict[str | None, str] = {}
            for name in free if tie.text == text else ():
                if tie.pattern.search(name):
                    first = blocks.setdefault(block_prefix(name), name)
                    found, joined = True, joined or first != name
                    leader[find(name)] = find(first)
        if not (joined or (found and text == _FUSED_NAME)):
            raise UsageError(
                f"{option('tie', text)} joins nothing: no block has two tensors that it finds and that may be "
                "quantized.",
                r"A tie is for tensors of one block; write for example '\.attn_[qkv]\.'.",
            )
    groups: dict[str, list[str]] = {}
    for name in free:
        groups.setdefault(find(name), []).append(name)
    return list(groups.values())


def _hits(pattern: re.Pattern[str], inventory: Inventory, kind: str, text: str) -> list[str]:
    names = [tensor.name for tensor in inventory.tensors]
    hits = [name for name in names if pattern.search(name)]
    if not hits:
        near = difflib.get_close_matches(pattern.pattern.replace("\\", ""), names, n=3, cutoff=0.3)
        raise UsageError(
            f"{option(kind, text)}: no tensor's name matches.",
            f"Near names: {', '.join(near)}." if near else "`planner inspect` lists the names.",
        )
    return hits
