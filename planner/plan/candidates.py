"""The formats that each tensor, or group of tied tensors, may take, with bytes and losses, after all rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple, TypeVar

from planner.errors import UsageError, option
from planner.formats.ggml import Format
from planner.formats.registry import all_formats
from planner.names.gguf import ENCODER, ahead
from planner.plan.losses import Losses
from planner.plan.rules import Rule, Tie, match_rules, tied
from planner.terms import Draft
from state import Inventory, TensorRecord

__all__ = ["MOST_UNLIMITED", "Candidate", "Candidates", "TiedGroup"]

N = TypeVar("N", int, float)

MOST_UNLIMITED = 8.5
"""Bits per weight, those of q8_0, that a tensor gets at the most where no limit counts its bytes: f16 would save
0.3 % of the loss (of the bundled model on 16 MB, docs/fit.md), and take twice the room."""


class Candidate(NamedTuple):
    """A format that a tensor may take: its bytes, relative error and loss."""

    format: Format
    nbytes: int
    err: float
    loss: float


class TiedGroup(NamedTuple):
    """Tensors that share one format, mostly a single one. `options[i]` has a candidate for each of `tensors`."""

    tensors: tuple[TensorRecord, ...]
    options: tuple[tuple[Candidate, ...], ...]

    @property
    def name(self) -> str:
        """The name of the first tensor."""
        return self.tensors[0].name

    @property
    def losses(self) -> list[float]:
        """The loss of each option."""
        return [option[0].loss if len(option) == 1 else sum(entry.loss for entry in option) for option in self.options]

    def totals(self, value: Callable[[TensorRecord, Candidate], N]) -> list[N]:
        """Return a sum over the group's tensors for each option."""
        if len(self.tensors) == 1:  # as most are
            (tensor,) = self.tensors
            return [value(tensor, entry) for (entry,) in self.options]
        return [sum(map(value, self.tensors, option)) for option in self.options]


class Candidates:
    """Everything to choose from. `fixed` are the tensors that stay as they are; `pins` the pin of each pinned tensor.

    `losses` are of the inventory's family; `allowed` are the formats to choose from, None for all. Tensors that are
    `unlimited`, as no limit counts their bytes, get at most the bits of q8_0, unless rules leave them nothing so small.
    Raises UsageError for rules that cannot be satisfied.
    """

    def __init__(
        self,
        inventory: Inventory,
        losses: Losses,
        *,
        allowed: Sequence[Format] | None,
        pins: Sequence[Rule],
        floors: Sequence[Rule],
        caps: Sequence[Rule],
        ties: Sequence[Tie],
        unlimited: Collection[str] = (),
        draft: Draft = "auto",
    ) -> None:
        self.fixed = [tensor for tensor in inventory.tensors if tensor.left_alone is not None]
        by_name = {tensor.name: tensor for tensor in inventory.tensors}
        self._draft, self._drafted = draft, ahead(by_name)
        asked_for_less = allowed is not None and all(fmt.bpw < _GUARDED_BITS for fmt in allowed if fmt.quantized)
        self._guards_all = inventory.architecture == ENCODER and not asked_for_less
        self.pins = {name: rules[0] for name, rules in match_rules(pins, inventory, "pin", exclusive=True).items()}
        self._bounds = match_rules(floors, inventory, "min"), match_rules(caps, inventory, "max")
        self._allowed = None if allowed is None else {fmt.name for fmt in allowed}
        self._losses, self._unlimited = losses, unlimited
        self._rows: dict[int, Mapping[str, tuple[Format, int]]] = {}
        for record in self.fixed:
            if record.name in self.pins:
                _check_fixed(record, self.pins[record.name])
        self.groups = [self._group([by_name[name] for name in names]) for names in tied(ties, inventory)]

    def _group(self, tensors: Sequence[TensorRecord]) -> TiedGroup:
        first, *others = map(self._candidates_of, tensors)
        if others:
            options = sorted(_common(tensors, [first, *others]), key=_weight)
        else:
            options = [(entry,) for entry in sorted(first, key=_SIZE_AND_LOSS)]
        if self._unlimited and all(tensor.name in self._unlimited for tensor in tensors):
            options = [option for option in options if option[0].format.bpw <= MOST_UNLIMITED] or options
        return TiedGroup(tuple(tensors), tuple(options))

    def _formats_of(self, row_length: int) -> Mapping[str, tuple[Format, int]]:
        """Return the formats whose blocks fill a row, by name, each with the bytes of a row."""
        if row_length not in self._rows:
            fitting = (fmt for fmt in all_formats().values() if fmt.fits(row_length))
            self._rows[row_length] = {fmt.name: (fmt, fmt.row_bytes(row_length)) for fmt in fitting}
        return self._rows[row_length]

    def _candidates_of(self, tensor: TensorRecord) -> list[Candidate]:
        """Return the formats that one tensor may take, after its pin or its floors and caps."""
        fitting, rows = self._formats_of(tensor.row_length), tensor.elements // tensor.row_length
        candidates = [
            Candidate(stored[0], stored[1] * rows, error, loss)
            for name, (error, loss) in self._losses.of(tensor.name).items()
            if (stored := fitting.get(name))
        ]
        if tensor.name in self.pins:
            return [_pinned(tensor, self.pins[tensor.name], candidates)]
        if self._allowed is not None:
            # always offer the source's own format: some rows fit no block, and it is lossless
            halves = {"f16"} if tensor.source_format == "f32" else set()
            kept = self._allowed | halves | {tensor.source_format}
            candidates = [entry for entry in candidates if entry.format.name in kept]
        within = _within(candidates, tensor, *(bounds.get(tensor.name, []) for bounds in self._bounds))
        if self._guards_all:
            return _guarded(within)
        return _of_draft_head(within, tensor, self._draft) if tensor.name in self._drafted else within


def _within(
    candidates: list[Candidate], tensor: TensorRecord, floors: Sequence[Rule], caps: Sequence[Rule]
) -> list[Candidate]:
    """Return the candidates that floors and caps leave. Raises UsageError if that is none."""
    if len(candidates) == 1 and candidates[0].format.quantized:
        # already quantized tensors that stay: rules for all tensors skip them, rules that name them apply
        floors, caps = ([rule for rule in rules if rule.pattern.pattern] for rules in (floors, caps))
    within = candidates
    if floors or caps:
        least = max((rule.format.bpw for rule in floors), default=0.0)
        most = min((rule.format.bpw for rule in caps), default=math.inf)
        within = [entry for entry in candidates if least <= entry.format.bpw <= most]
    if not within:
        raise UsageError(
            f"No format of {tensor.name} satisfies {', '.join(rule.text for rule in (*floors, *caps))}: "
            f"there are {_listed(candidates)}.",
            f"Widen {option('min')} or {option('max')}, or allow more {option('types')}.",
        )
    return within


def _common(tensors: Sequence[TensorRecord], candidates: Sequence[Sequence[Candidate]]) -> list[tuple[Candidate, ...]]:
    """Return the candidates of tied tensors in each format that all of them can have."""
    each = [{entry.format.name: entry for entry in own} for own in candidates]
    common = [name for name in each[0] if all(name in other for other in each)]
    if not common:
        can = [f"{tensor.name} can be {', '.join(own)}" for tensor, own in zip(tensors, each, strict=True)]
        raise UsageError(
            f"No format is possible for all that is tied: {'; '.join(can[:4])}{'; ...' if can[4:] else ''}.",
            f"Loosen {option('tie')}, {option('pin')}, {option('min')} or {option('max')} there, or allow more "
            f"{option('types')}.",
        )
    return [tuple(other[name] for other in each) for name in common]


_SIZE_AND_LOSS = attrgetter("nbytes", "loss")


def _weight(option: tuple[Candidate, ...]) -> tuple[int, float]:
    return sum(entry.nbytes for entry in option), sum(entry.loss for entry in option)


# The least that tensors get of which nobody knows what their errors cost. Draft heads: an imatrix does not see them,
# and the model's divergence does not depend on them. Drafts that are rejected cost time, not quality. Encoders of
# images and sound: nothing is measured on either.
_GUARDED_BITS, _MOST_DRAFT_BITS = 4.0, 8.0


def _guarded(candidates: list[Candidate]) -> list[Candidate]:
    """Return the formats of 4 bits and more, of those that other rules allow; all where there are none."""
    return [entry for entry in candidates if entry.format.bpw >= _GUARDED_BITS] or candidates


def _of_draft_head(candidates: list[Candidate], tensor: TensorRecord, draft: Draft) -> list[Candidate]:
    """Return the formats that a draft head's tensor may take, of those that other rules allow; these go first. Where no
    8 bits fit the rows, `q8_0` is the next larger format."""
    if draft == "keep":
        fit = [entry for entry in candidates if entry.format.name == tensor.source_format]
    elif draft == "q8_0":
        fit = [entry for entry in candidates if entry.format.bpw >= _MOST_DRAFT_BITS]
        fit = sorted(fit, key=lambda entry: entry.nbytes)[:1]
    else:
        fit = _guarded(candidates)
    return fit or candidates


def _pinned(tensor: TensorRecord, rule: Rule, candidates: Sequence[Candidate]) -> Candidate:
    if not rule.format.fits(tensor.row_length):
        raise UsageError(
            f"{option('pin', rule.text)}: {tensor.name} has rows of {tensor.row_length} weights, no whole number of "
            f"{rule.format.name}'s blocks of {rule.format.block}.",
            f"Pin it to a format with smaller blocks: {_listed(candidates)}.",
        )
    for entry in candidates:
        if entry.format.name == rule.format.name:
            return entry
    raise UsageError(
        f"{option('pin', rule.text)}: {tensor.name} was not measured in {rule.format.name}.",
        f"Give the model, so that it can be measured, or pin it to one of: {_listed(candidates)}. "
        "A type of 3 bits and below needs the tensor's imatrix entry.",
    )


def _listed(candidates: Sequence[Candidate]) -> str:
    return ", ".join(entry.format.name for entry in sorted(candidates, key=lambda entry: entry.nbytes))


def _check_fixed(tensor: TensorRecord, rule: Rule) -> None:
    if rule.format.name != tensor.source_format:
        raise UsageError(
            f"{option('pin', rule.text)}: llama.cpp leaves {tensor.name} as it is ({tensor.left_alone}).",
            "Make the pattern narrower, so that it does not find this tensor.",
        )
