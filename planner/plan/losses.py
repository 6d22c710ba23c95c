"""Losses from what the state holds: measurements, facts of the structure, passes of the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from planner.errors import StateFileError, UsageError, option
from planner.formats.ggml import formats
from planner.formats.registry import all_formats, block_of_activations
from planner.sensitivity import (
    Observation,
    Point,
    Source,
    TensorSensitivity,
    default_source,
    measured_sensitivities,
    sensitivities,
)
from planner.sensitivity.structure import are_sound
from state import Inventory, Measurement, Pass, Store

__all__ = [
    "Losses",
    "best_source",
    "calibration",
    "inventory_of",
    "losses_of",
    "passes_of",
    "sensitivities_of",
    "subject_of",
]


@dataclass(frozen=True)
class Losses:
    """What a state knows: measurements by tensor and format, and sensitivities by `source`."""

    source: Source
    sensitivities: Mapping[str, TensorSensitivity]
    measured: Mapping[tuple[str, str], Measurement]
    source_formats: Mapping[str, str]  # what each tensor is stored in, where it loses nothing

    @classmethod
    def made(
        cls,
        inventory: Inventory,
        source: Source,
        sensitivities: Mapping[str, TensorSensitivity],
        measured: Iterable[Measurement],
    ) -> Self:
        """From measurements; those of an inventory's tensors."""
        stored = {tensor.name: tensor.source_format for tensor in inventory.tensors}
        known = all_formats()
        own = {
            (entry.tensor, entry.format): entry
            for entry in measured
            if entry.tensor in stored and entry.format in known
        }
        return cls(source, sensitivities, own, stored)

    def of(self, tensor: str, fmt: str) -> tuple[float, float] | None:
        """Relative error and loss of a tensor in a format; None where it was not measured."""
        if self.source_formats.get(tensor) == fmt:
            return 0.0, 0.0
        entry = self.measured.get((tensor, fmt))
        if entry is None:
            return None
        block = block_of_activations(all_formats()[fmt])
        loss = self.sensitivities[tensor].loss(entry.err_var, entry.err_mean, entry.err_massive, block)
        return max(entry.err_var + entry.err_mean, 0.0), loss


def inventory_of(store: Store) -> Inventory | None:
    """The model that a state is of, None where there is none yet. Raises StateFileError for tensors that are stored as
    none can be."""
    inventory = store.inventory()
    for tensor in () if inventory is None else inventory.tensors:
        fmt = formats().get(tensor.source_format)
        if fmt is None or not fmt.fits(tensor.row_length):
            raise StateFileError(
                f"What the state holds cannot be: {tensor.name}, stored in {tensor.source_format}.",
                f"Measure the model again, into a new {option('state')}.",
            )
    return inventory


def best_source(inventory: Inventory, passes: Sequence[Pass] = ()) -> Source:
    """The best source of sensitivities for what is known; without `passes`, the reference that those correct."""
    return default_source(
        has_imatrix=inventory.imatrix_digest is not None,
        has_means=inventory.has_means,
        has_passes=any(entry.errors for entry in passes),
    )


def sensitivities_of(
    store: Store, inventory: Inventory, source: Source, passes: Sequence[Pass] = ()
) -> dict[str, TensorSensitivity]:
    """Sensitivities of all tensors of the inventory. Raises UsageError for `measured` without passes, StateFileError
    for facts that cannot be."""
    names = dict.fromkeys(tensor.name for tensor in inventory.tensors)
    facts = {entry.tensor: entry.values for entry in store.energies(selected=True).values() if entry.tensor in names}
    unsound = next((name for name, own in facts.items() if not are_sound(own)), None)
    if unsound is not None:
        raise StateFileError(
            f"{store.path} is damaged: what it holds of {unsound} cannot be.", "Move it away and measure again."
        )
    blocks = inventory.metadata.get("block_count", 0)
    reference = best_source(inventory) if source == "measured" else source
    found = sensitivities(reference, list(names), facts, blocks=0 if isinstance(blocks, str) else int(blocks))
    if source == "measured":
        if not any(entry.errors for entry in passes):
            raise UsageError(
                f"{store.path} holds no passes of this model, with this imatrix.",
                "Run them first: planner sensitivity MODEL --text FILE",
            )
        found = measured_sensitivities(found, _observations(passes, found))
    return found


def subject_of(store: Store) -> str | None:
    """Digest of the weights and the imatrix that the finished measurements are of; None where there are none."""
    inventory = store.inventory()
    # the notes of a tensor's facts hold the digest of its content
    contents = sorted((entry.tensor, entry.notes) for entry in store.energies(selected=True).values())
    if inventory is None or not contents:
        return None
    return hashlib.sha256(json.dumps([inventory.imatrix_digest, contents]).encode()).hexdigest()


def passes_of(store: Store) -> tuple[Pass, ...]:
    """All passes about the finished measurements."""
    every = store.passes()
    subject = subject_of(store) if every else None  # most states hold none, and the facts take a while to read
    return tuple(entry for entry in every if entry.subject == subject)


def calibration(passes: Sequence[Pass], inventory: Inventory, losses: Losses) -> list[Point]:
    """Files that were evaluated, with the losses that present sensitivities give their recipes; those with a format
    that was not measured are left out."""
    free = [tensor for tensor in inventory.tensors if tensor.left_alone is None]
    points = []
    for entry in passes:
        if not entry.errors:
            found = [losses.of(tensor.name, entry.formats.get(tensor.name, tensor.source_format)) for tensor in free]
            known = [loss for _, loss in filter(None, found)]
            if len(known) == len(found):
                points.append(Point(sum(known), entry.kld, entry.stderr))
    return points


def _observations(passes: Sequence[Pass], reference: Mapping[str, TensorSensitivity]) -> list[Observation]:
    """What passes over changed tensors say of them; `reference` gives the losses that were to be expected."""
    return [
        Observation(
            {name: reference[name].loss(*errors) for name, errors in entry.errors.items() if name in reference},
            entry.kld,
            entry.stderr,
        )
        for entry in passes
        if entry.errors
    ]


def losses_of(store: Store, inventory: Inventory, source: Source | None = None) -> Losses | None:
    """What the state's finished measurements say, by `source` (default: the best); None where there are none."""
    measured = list(store.measurements(selected=True).values())
    if not measured:
        return None
    passes = passes_of(store)
    chosen = source or best_source(inventory, passes)
    return Losses.made(inventory, chosen, sensitivities_of(store, inventory, chosen, passes), measured)
