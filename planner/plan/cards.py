"""Limits on a card's memory: weights, and beside them the context, buffers to compute in and an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planner.errors import BudgetError, StateFileError, UsageError, option
from planner.fit import Beside, Context, Needs, stays_in_ram
from planner.formats.registry import family_named
from planner.names.gguf import parse_name
from planner.plan.candidates import Candidates
from planner.plan.limits import VRAM, SizeLimit
from planner.plan.rules import Device, assign_devices
from planner.sizes import align, format_size
from planner.terms import FamilyName
from state import Inventory, TensorRecord

__all__ = ["Card", "Fit", "cards_of", "check_fit", "limits_on_cards", "needs_of", "parse_fit"]

_ALIGNMENT = 128  # of tensors in a buffer on the card (ggml_backend_cuda_buffer_type_get_alignment in ggml-cuda.cu)
_KEPT_BY = ("attn_", "ssm_", "shortconv", "time_mix")  # beginnings of roles: what works with a block's context
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
    """A card of `capacity` bytes, the tensors on it, and what it needs beside them. `blocks` are those whose context it
    keeps, None for all; `in_ram` are tensors that llama.cpp keeps off it although the whole model goes there."""

    name: str
    capacity: int
    tensors: frozenset[str]
    beside: Beside
    context: Context
    notes: tuple[str, ...]
    blocks: frozenset[int] | None = None
    in_ram: tuple[str, ...] = ()


def parse_fit(
    *,
    vram: int | None,
    ctx: int | None,
    kv: str | None,
    parallel: int | None,
    ubatch_size: int | None,
    mmproj: Path | None,
    margin: int | None,
) -> Fit | None:
    """Make a fit of options, None where none is given; sizes are bytes. Raises UsageError for values that cannot be,
    and for options that say nothing without `ctx`; ModelError for an encoder that is none."""
    if ctx is None:
        given = {
            "vram": vram,
            "kv": kv,
            "parallel": parallel,
            "ubatch_size": ubatch_size,
            "mmproj": mmproj,
            "margin": margin,
        }
        for name, value in given.items():
            if value is not None:
                raise UsageError(
                    f"{option(name)} says nothing without {option('ctx')}.",
                    f"Say for how many tokens of context there has to be room: {option('ctx', 32768)}.",
                )
        return None
    encoder = 0
    if mmproj is not None:
        from planner.gguf.encoder import encoder_bytes  # a plan from the state alone need not wait for it

        encoder = encoder_bytes(mmproj)
    return Fit(Context.parse(ctx, kv or "f16", parallel or 1, ubatch_size or 512), vram, encoder, margin)


def check_fit(fit: Fit | None, devices: Sequence[Device], family: FamilyName) -> None:
    """Raise UsageError for a context that nothing is to hold, and for one that two kinds of limits would count."""
    if fit is None:
        return
    if family_named(family).exported_to is not None:
        raise UsageError(
            f"{option('ctx')} counts what llama.cpp keeps, which has none of these types.",
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


def cards_of(inventory: Inventory, fit: Fit | None, devices: Sequence[Device]) -> list[Card]:
    """Return the cards that are to hold a context: one for the whole model, or the devices. A device keeps the context
    of the blocks whose attention (or recurrent layer) it holds, most of it; the first that keeps any has the encoder.

    Raises UsageError, StateFileError and ModelError.
    """
    if fit is None:
        return []
    needs, context = needs_of(inventory), fit.context
    notes = tuple(needs.notes(context))
    if fit.vram is not None:
        names = [tensor.name for tensor in inventory.tensors]
        in_ram = tuple(name for name in names if stays_in_ram(name, names))
        beside = needs.beside(context, mmproj=fit.mmproj, margin=fit.margin)
        return [Card(VRAM, fit.vram, frozenset(names) - {*in_ram}, beside, context, notes, in_ram=in_ram)]
    where = assign_devices(devices, inventory)
    keepers = _keepers(inventory, where)
    found: list[Card] = []
    for device in devices:
        blocks = frozenset(block for block, keeper in keepers.items() if keeper is device)
        if blocks:
            encoder = 0 if found else fit.mmproj
            beside = needs.beside(context, mmproj=encoder, margin=fit.margin, blocks=blocks)
            tensors = frozenset(name for name, owner in where.items() if owner is device)
            found.append(Card(device.name, device.capacity, tensors, beside, context, () if found else notes, blocks))
    return found


def _keepers(inventory: Inventory, where: Mapping[str, Device]) -> dict[int, Device]:
    """Return the device of each block's context: the one that holds the most of what works with it."""
    held: dict[int, dict[str, int]] = {}
    for tensor in inventory.tensors:
        name, device = parse_name(tensor.name), where.get(tensor.name)
        if name.block is not None and device is not None and name.role.startswith(_KEPT_BY):
            own = held.setdefault(name.block, {})
            own[device.name] = own.get(device.name, 0) + tensor.nbytes
    devices = {device.name: device for device in where.values()}
    return {block: devices[max(own, key=lambda name: own[name])] for block, own in held.items()}


def limits_on_cards(
    limits: Sequence[SizeLimit], cards: Sequence[Card], inventory: Inventory, candidates: Candidates, fit: Fit | None
) -> list[SizeLimit]:
    """Return the limits with what cards need beside weights, and with one for the card that the whole model goes to.

    Raises BudgetError where that leaves too little for the weights.
    """
    found = list(limits)
    for card in cards:
        if card.name == VRAM:
            found.append(_on_card(card, candidates.fixed))
        else:
            place = next(number for number, limit in enumerate(found) if limit.name == card.name)
            found[place] = replace(found[place], overhead=found[place].overhead + card.beside.total)
        limit = next(limit for limit in found if limit.name == card.name)
        least = limit.overhead + sum(min(limit.of(group)) for group in candidates.groups)
        if fit is not None and least > limit.capacity:
            raise _too_small(card, limit, least, needs_of(inventory), fit)
    return found


def _on_card(card: Card, fixed: Sequence[TensorRecord]) -> SizeLimit:
    def weigh(tensor: TensorRecord, nbytes: int) -> int:
        return align(nbytes, _ALIGNMENT) if tensor.name in card.tensors else 0

    overhead = card.beside.total + sum(weigh(tensor, tensor.nbytes) for tensor in fixed)
    return SizeLimit(card.name, card.capacity, overhead, weigh)


def _too_small(card: Card, limit: SizeLimit, least: int, needs: Needs, fit: Fit) -> BudgetError:
    """Return the error that says what takes the room, and what would fit."""
    beside, context = card.beside, card.context
    weights = least - beside.total
    parts = [f"weights at least {format_size(weights, up=True)}", f"KV cache {format_size(beside.kv)}"]
    parts += [f"recurrent state {format_size(beside.state)}"] if beside.state else []
    parts.append(f"computing and others {format_size(beside.compute + beside.reserve)}")
    parts += [f"mmproj {format_size(beside.mmproj)}"] if beside.mmproj else []
    alone = ", which the KV cache alone exceeds" if beside.kv > card.capacity else ""
    room = card.capacity - weights

    def beside_in(other: Context) -> int:
        return needs.beside(other, mmproj=beside.mmproj, margin=fit.margin, blocks=card.blocks).total

    cures = []
    longest = needs.longest(room, context, mmproj=beside.mmproj, margin=fit.margin, blocks=card.blocks)
    if longest:
        cures.append(f"give at most {option('ctx', longest)}")
    for kind in _SMALLER:
        smaller = replace(context, kv=(kind, kind))
        if needs.can_keep(smaller) and beside_in(smaller) <= room:
            cures.append(f"give {option('kv', kind)}")
            break
    cures.append(f"raise {limit.asked_by} to {limit.format_amount(least, up=True)}")
    cures.append(f"allow smaller formats with {option('types')}, {option('pin')} and {option('min')}")
    remedy = "; or ".join(cures) + "."
    return BudgetError(
        f"{limit.title} is too little for {context.tokens:,} tokens of context{alone}. "
        f"They and the model take {limit.format_amount(least, up=True)}: {', '.join(parts)}.",
        remedy[0].upper() + remedy[1:],
    )
