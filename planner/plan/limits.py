"""What a model may weigh: in the file, in bits per weight, on each device, and in what one token reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from planner.errors import UsageError, option
from planner.names.gguf import is_expert, role_of
from planner.plan.candidates import Candidates, TiedGroup
from planner.plan.rules import Device, assign_devices
from planner.sizes import align, format_size
from state import Inventory, TensorRecord

__all__ = ["ACTIVE", "BPW", "FILE", "VRAM", "SizeLimit", "causes", "check_names", "size_limits"]

FILE, BPW, ACTIVE, VRAM = "file", "bpw", "active", "vram"
# The option that asks for a limit, which no device may be called like; devices have one option for all
_ASKED_BY = {FILE: "budget", BPW: "bpw", ACTIVE: "active_budget", VRAM: "vram"}
_DIGITS = 10_000  # bits per weight are printed to four decimals


@dataclass(frozen=True)
class SizeLimit:
    """At most `capacity` bytes, or bits where `elements` (those of the whole model) is given.

    `weigh` says what a tensor stored in so many bytes counts for; `overhead` is
    what counts whatever is chosen: metadata, the tensors that stay as they are, and what is `beside` them.
    """

    name: str
    capacity: int
    overhead: int
    weigh: Callable[[TensorRecord, int], int]
    elements: int | None = None
    beside: str = ""

    @property
    def title(self) -> str:
        """The limit as a user knows it."""
        amount = self.format_amount(self.capacity)
        return amount if self.name in (FILE, BPW) else f"{self.name}: {amount}{self.beside}"

    @property
    def asked_by(self) -> str:
        """The option that asks for it."""
        return option(_ASKED_BY[self.name]) if self.name in _ASKED_BY else option("device", self.name)

    def format_amount(self, amount: int | Fraction, *, up: bool = False) -> str:
        """An amount in words. Bits, and with `up` bytes too, are rounded up: a user may ask for what they say."""
        if self.elements is not None:
            return f"{float(-(-amount * _DIGITS // self.elements)) / _DIGITS:.4f} bpw"
        size = format_size(int(amount), up=up)
        return size if size.endswith("bytes") else f"{size} ({int(amount)} bytes)"

    def rounded(self, candidates: Candidates) -> SizeLimit:
        """The same limit. One on bits is raised to the least that is possible where it misses that by no more than the
        rounding of printed figures: whoever repeats such a figure means the least."""
        if self.elements is None:
            return self
        least = self.overhead + sum(  # bits are as many as bytes, by which options are sorted
            self.weigh(tensor, entry.nbytes)
            for group in candidates.groups
            for tensor, entry in zip(group.tensors, group.options[0], strict=True)
        )
        printed = least * _DIGITS // self.elements * self.elements // _DIGITS  # rounded down, the worst that it can be
        return replace(self, capacity=least) if printed <= self.capacity < least else self

    def of(self, group: TiedGroup) -> list[int]:
        """What each option of a group counts for."""
        return group.totals(lambda tensor, entry: self.weigh(tensor, entry.nbytes))


def check_names(devices: Sequence[Device]) -> None:
    """Raise UsageError for devices that are called like each other or like another limit."""
    seen: set[str] = set()
    for device in devices:
        if device.name in _ASKED_BY:
            raise UsageError(
                f"{option('device', device.text)}: {device.name!r} is what another limit is called.",
                "Give the device another name.",
            )
        if device.name in seen:
            raise UsageError(
                f"{option('device', device.text)}: there is a device {device.name!r} already.",
                "Give each a name of its own; a device of several patterns is written 'gpu:ONE|OTHER=SIZE'.",
            )
        seen.add(device.name)


def size_limits(
    inventory: Inventory,
    fixed: Sequence[TensorRecord],
    *,
    budget: int | None,
    bpw: Fraction | None,
    devices: Sequence[Device],
    active: int | None,
) -> list[SizeLimit]:
    """The limits that are given; `fixed` are the tensors that stay as they are.

    Raises UsageError for devices that get no tensor.
    """
    limits: list[SizeLimit] = []

    def add(
        name: str,
        capacity: int,
        weigh: Callable[[TensorRecord, int], int],
        header: int = 0,
        elements: int | None = None,
    ) -> None:
        overhead = header + sum(weigh(tensor, tensor.nbytes) for tensor in fixed)
        limits.append(SizeLimit(name, capacity, overhead, weigh, elements))

    if budget is not None:
        add(FILE, budget, lambda _, nbytes: align(nbytes, inventory.alignment), inventory.header_bytes)
    if bpw is not None:
        elements = sum(tensor.elements for tensor in inventory.tensors)
        add(BPW, int(bpw * elements), lambda _, nbytes: 8 * nbytes, elements=elements)
    where = assign_devices(devices, inventory)
    for device in devices:
        mine = {name for name, owner in where.items() if owner is device}

        def on_device(tensor: TensorRecord, nbytes: int, mine: set[str] = mine) -> int:
            return align(nbytes, inventory.alignment) if tensor.name in mine else 0

        add(device.name, device.capacity, on_device)
    if active is not None:
        shares = _active_shares(inventory)
        add(ACTIVE, active, lambda tensor, nbytes: -(-nbytes * shares[tensor.name] // 1))
    return limits


def _active_shares(inventory: Inventory) -> Mapping[str, Fraction]:
    """The share of a tensor's bytes that generating one token reads: of experts those that are used, of token
    embeddings a row (unless they are the output too), of all else everything."""
    experts = _count(inventory, "expert_count")
    used = _count(inventory, "expert_used_count") or experts
    tied = all(tensor.name != "output.weight" for tensor in inventory.tensors)
    shares = {}
    for tensor in inventory.tensors:
        _, role = role_of(tensor.name)
        share = Fraction(1)
        if experts and role.endswith("_exps") and (tensor.shape[-1] == experts or is_expert(tensor.name)):
            share = Fraction(min(used, experts), experts)
        elif role == "per_layer_token_embd" or (role == "token_embd" and not tied):
            share = Fraction(tensor.row_length, tensor.elements)
        shares[tensor.name] = share
    return shares


def _count(inventory: Inventory, key: str) -> int:
    value = inventory.metadata.get(key, 0)
    return value if isinstance(value, int) and value > 0 else 0


def causes(limit: SizeLimit, inventory: Inventory, candidates: Candidates) -> str:
    """Say what takes the room under a limit: pins, tensors that stay, the largest of the others."""
    least = {group.name: min(limit.of(group)) for group in candidates.groups}
    pinned = sum(
        least[group.name]
        for group in candidates.groups
        if any(tensor.name in candidates.pins for tensor in group.tensors)
    )
    found = [f"pins take {limit.format_amount(pinned)}"] if pinned else []
    header = inventory.header_bytes if limit.name == FILE else 0
    found.append(f"tensors that llama.cpp leaves alone {limit.format_amount(limit.overhead - header)}")
    if header:
        found.append(f"metadata {limit.format_amount(header)}")
    largest = max(candidates.groups, key=lambda group: least[group.name], default=None)
    if largest is not None and least[largest.name]:
        smallest = largest.options[limit.of(largest).index(least[largest.name])]
        tied = " and what is tied to it" if len(largest.tensors) > 1 else ""
        found.append(f"the largest tensor, {largest.name}{tied}, {limit.format_amount(least[largest.name])} "
                     f"as its smallest format, {smallest[0].format.name}")  # fmt: skip
    return f"Of it, {', '.join(found)}."
