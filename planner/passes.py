"""Sensitivities from what the state holds: facts of the structure, and passes of the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from planner.errors import UsageError
from planner.sensitivity import (
    Observation,
    Point,
    Source,
    TensorSensitivity,
    default_source,
    measured_sensitivities,
    sensitivities,
)
from state import Inventory, Measurement, Pass, Store

__all__ = ["best_source", "calibration", "passes_of", "sensitivities_of", "subject_of"]


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
    """Sensitivities of all tensors of the inventory. Raises UsageError for `measured` without passes."""
    if source == "measured":
        if not any(entry.errors for entry in passes):
            raise UsageError(
                f"{store.path} holds no passes of this model, with this imatrix.",
                "Run them first: planner sensitivity MODEL --text FILE",
            )
        reference = sensitivities_of(store, inventory, best_source(inventory))
        return measured_sensitivities(reference, _observations(passes, reference))
    facts = {entry.tensor: entry.values for entry in store.energies(selected=True).values() if entry.values}
    blocks = inventory.metadata.get("block_count", 0)
    names = [tensor.name for tensor in inventory.tensors]
    return sensitivities(source, names, facts, blocks=0 if isinstance(blocks, str) else int(blocks))


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


def calibration(
    passes: Sequence[Pass],
    inventory: Inventory,
    measured: Sequence[Measurement],
    sensitivities: Mapping[str, TensorSensitivity],
) -> list[Point]:
    """Files that were evaluated, with the losses that present sensitivities give their recipes; those with a format
    that was not measured are left out."""
    found = {(entry.tensor, entry.format): entry for entry in measured}
    points = []
    for entry in passes:
        if entry.errors:
            continue
        loss, known = 0.0, True
        for tensor in inventory.tensors:
            fmt = entry.formats.get(tensor.name, tensor.source_format)
            if tensor.left_alone is not None or fmt == tensor.source_format:
                continue
            measurement = found.get((tensor.name, fmt))
            if measurement is None:
                known = False
                break
            errors = measurement.err_var, measurement.err_mean, measurement.err_massive
            loss += sensitivities[tensor.name].loss(*errors)
        if known:
            points.append(Point(loss, entry.kld, entry.stderr))
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
