"""Limits on a card's memory: weights, and beside them the context, buffers to compute in and an encoder."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planner.errors import BudgetError, StateFileError, UsageError, option
from planner.fit import ALIGNMENT, Beside, Context, Needs, longest, stays_in_ram
from planner.formats.registry import family_named
from planner.names.gguf import parse_name
from planner.plan.candidates import Candidates
from planner.plan.limits import VRAM, SizeLimit
from planner.plan.rules import Device, assign_devices
from planner.sizes import align, format_size
from planner.terms import FamilyName
from state import Inventory, TensorRecord

__all__ = ["Card", "Fit", "cards_of", "check_fit", "in_ram", "limits_on_cards", "needs_of", "parse_fit"]

_KEPT_BY = ("attn_", "ssm_", "shortconv", "time_mix")  # beginnings of roles: what works with a block's context
_SMALLEST = 2**20  # bytes of a card; less is a number without its unit
_SMALLER = ("q8_0", "q4_0")  # types of keys and values to suggest, the better first


@dataclass(frozen=True, slots=True)
class Fit:
    """A wish to fit: `context` beside the weights, and an encoder of `mmproj` bytes. `vram` are the bytes of the card
    that the whole model goes to; None where devices share it. `margin` replaces what is estimated for all else."""

    context: Context
    vram: int | None = None
    mmproj: int = 0
    margin: int | None = None


@dataclass(frozen=True)
class Card:
    """A card of `capacity` bytes, the tensors on it, and what it holds beside them: the context of `blocks` (None: of
    all), and the encoder of `fit`. `in_ram` are tensors that llama.cpp keeps off it although the model goes there."""

    name: str
    capacity: int
    tensors: frozenset[str]
    needs: Needs
    fit: Fit
    blocks: frozenset[int] | None = None
    in_ram: tuple[str, ...] = ()

    @functools.cached_property
    def beside(self) -> Beside:
        """What it needs beside weights, part by part."""
        return self.beside_in(self.fit.context)

    def beside_in(self, context: Context) -> Beside:
        """What it would need in another context. Raises UsageError for types of keys and values that llama.cpp
        refuses."""
        return self.needs.beside(context, mmproj=self.fit.mmproj, margin=self.fit.margin, blocks=self.blocks)

    @property
    def notes(self) -> list[str]:
        """What to know of the figures."""
        return self.needs.notes(self.fit.context)


def parse_fit(
    *,
    vram: int | None,
    ctx: int | None,
    kv: str | None,
    parallel: int | None,
    ubatch_size: int | None,
    mmproj: str | os.PathLike[str] | None,
    margin: int | None,
) -> Fit | None:
    """Make a fit of options, None where none is given; sizes are bytes. Raises UsageError for values that cannot be,
    and for options that say nothing without `ctx`; ModelError for an encoder that is none."""
    if ctx is None:
        asked = zip(
            ("vram", "kv", "parallel", "ubatch_size", "mmproj", "margin"),
            (vram, kv, parallel, ubatch_size, mmproj, margin),
            strict=True,
        )
        for name in (name for name, value in asked if value is not None):
            raise UsageError(
                f"{option(name)} says nothing without {option('ctx')}.",
                f"Say for how many tokens of context there has to be room: {option('ctx', 32768)}.",
            )
        return None
    context = Context.parse(
        ctx, "f16" if kv is None else kv, 1 if parallel is None else parallel,
        512 if ubatch_size is None else ubatch_size,
    )  # fmt: skip
    if vram is not None and vram < _SMALLEST:
        raise UsageError(
            f"{option('vram', vram)} is {vram:,} bytes: no card is so small.",
            f"Write the unit too: {option('vram', '24GiB')}.",
        )
    if margin is not None and margin < 0:
        raise UsageError(f"{option('margin', margin)} is out of range.", "Give 0 or more.")
    encoder = 0
    if mmproj is not None:
        from planner.gguf.encoder import encoder_bytes  # a plan from the state alone need not wait for it

        encoder = encoder_bytes(Path(mmproj))
    return Fit(context, vram, encoder, margin)


def check_fit(fit: Fit, devices: Sequence[Device], family: FamilyName) -> None:
    """Raise UsageError for a context that nothing is to hold, and for one that two kinds of limits would count."""
    if not family_named(family).in_llama_cpp:
        raise UsageError(
            f"{option('ctx')} counts what llama.cpp keeps, which does not have these types.",
            f"Leave it and {option('vram')} out, and limit the data with {option('budget')}.",
        )
    if fit.vram is not None and devices:
        raise UsageError(
            f"{option('vram')} is for a model that goes to one card, and {option('device')} for one on several.",
            f"Give one of them. With {option('ctx')}, the size of each device holds its share of the context too.",
        )
    if fit.vram is None and not devices:
        raise UsageError(
            f"{option('ctx')} counts a context, and nothing is there to hold it.",
            f"Give the card's memory too: {option('vram', '24GiB')}.",
        )


def needs_of(inventory: Inventory) -> Needs:
    """Return what the model of a state needs beside its weights. Raises StateFileError for a state that was made before
    such facts were kept, ModelError for a model that llama.cpp would not load."""
    if "embedding_length" not in inventory.metadata:
        raise StateFileError(
            "The state does not say how large a context of its model is: it was made by an older planner.",
            "Add that: run `planner measure MODEL` again. What is measured will be kept.",
        )
    shapes = {tensor.name: tensor.shape for tensor in inventory.tensors}
    return Needs.of(inventory.architecture, inventory.metadata, shapes)


def in_ram(inventory: Inventory) -> list[str]:
    """Return the tensors that llama.cpp keeps off a card although the model goes there."""
    names = {tensor.name for tensor in inventory.tensors}
    return [tensor.name for tensor in inventory.tensors if stays_in_ram(tensor.name, names)]


def cards_of(inventory: Inventory, fit: Fit, devices: Sequence[Device]) -> list[Card]:
    """Return the cards that are to hold a context: one for the whole model, or the devices. A device keeps the context
    of the blocks whose attention (or recurrent layer) it holds, most of it; the first that keeps any has the encoder.

    Raises UsageError, StateFileError and ModelError.
    """
    needs = needs_of(inventory)
    if fit.vram is not None:
        names, aside = frozenset(tensor.name for tensor in inventory.tensors), tuple(in_ram(inventory))
        return [Card(VRAM, fit.vram, names - {*aside}, needs, fit, in_ram=aside)]
    where = assign_devices(devices, inventory)
    keepers = _keepers(inventory, where, {layer.block for layer in needs.layers})
    found: list[Card] = []
    for device in devices:
        blocks = frozenset(block for block, keeper in keepers.items() if keeper == device.name)
        if blocks:
            own = replace(fit, mmproj=0) if found else fit
            tensors = frozenset(name for name, owner in where.items() if owner is device)
            found.append(Card(device.name, device.capacity, tensors, needs, own, blocks))
    if not found:
        raise UsageError(
            f"{option('ctx')}: no device holds attention, and a context is kept where that is.",
            r"Write for example 'gpu:attn|blk\.[0-9]\.=24GiB'.",
        )
    return found


def _keepers(inventory: Inventory, where: Mapping[str, Device], blocks: Collection[int]) -> dict[int, str]:
    """Return the device of the context of each of `blocks`, by name: the one that holds the most of what works with
    it."""
    held: dict[int, dict[str, int]] = {}
    for tensor in inventory.tensors:
        name, device = parse_name(tensor.name), where.get(tensor.name)
        if name.block is not None and name.block in blocks and device is not None and name.role.startswith(_KEPT_BY):
            own = held.setdefault(name.block, {})
            own[device.name] = own.get(device.name, 0) + tensor.nbytes
    return {block: max(own, key=lambda name: own[name]) for block, own in held.items()}


def limits_on_cards(limits: Sequence[SizeLimit], cards: Sequence[Card], candidates: Candidates) -> list[SizeLimit]:
    """Return the limits with what cards need beside weights, and with one for the card that the whole model goes to.

    Raises BudgetError where that leaves too little for the weights.
    """
    found = {limit.name: limit for limit in limits}
    for card in cards:
        limit = found.get(card.name) or _for_weights(card, candidates.fixed)
        limit = replace(
            limit,
            overhead=limit.overhead + card.beside.total,
            beside=f" with {card.fit.context.tokens:,} tokens of context",
        )
        found[card.name] = limit
        least = limit.overhead + sum(min(limit.of(group)) for group in candidates.groups)
        if least > limit.capacity:
            raise _too_small(card, limit, least)
    return list(found.values())


def _for_weights(card: Card, fixed: Sequence[TensorRecord]) -> SizeLimit:
    def weigh(tensor: TensorRecord, nbytes: int) -> int:
        return align(nbytes, ALIGNMENT) if tensor.name in card.tensors else 0

    return SizeLimit(card.name, card.capacity, sum(weigh(tensor, tensor.nbytes) for tensor in fixed), weigh)


def _too_small(card: Card, limit: SizeLimit, least: int) -> BudgetError:
    """Return the error that says what takes the room, and what would fit."""
    beside, context = card.beside, card.fit.context
    weights = least - beside.total
    parts = {
        "weights at least": weights,
        "KV cache": beside.kv,
        "recurrent state": beside.state,
        "computing and others": beside.compute + beside.reserve,
        "mmproj": beside.mmproj,
    }
    shown = ", ".join(f"{name} {format_size(size, up=True)}" for name, size in parts.items() if size)
    alone = "; the KV cache alone exceeds it" if beside.kv > card.capacity else ""
    room = card.capacity - weights
    cures = []
    if most := longest(context, lambda other: card.beside_in(other).total <= room):
        cures.append(f"give at most {option('ctx', most)}")
    smaller = (replace(context, kv=(kind, kind)) for kind in _SMALLER if kind != context.kv[0])
    for other in smaller:
        if card.needs.can_keep(other) and card.beside_in(other).total <= room:
            cures.append(f"give {option('kv', other.kv[0])}")
            break
    cures.append(f"raise {limit.asked_by} to {limit.format_amount(least, up=True)}")
    cures.append(f"allow smaller formats with {option('types')}, {option('pin')} and {option('min')}")
    remedy = "; or ".join(cures) + "."
    return BudgetError(
        f"{limit.title} is too little. It takes {limit.format_amount(least, up=True)}: {shown}{alone}.",
        remedy[0].upper() + remedy[1:],
    )
