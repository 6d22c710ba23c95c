"""Losses of tensors in formats, from their measured errors and their sensitivities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from planner.formats.registry import all_formats, block_of_activations, family_named
from planner.names.gguf import ahead
from planner.sensitivity import NOT_ROUNDED, ErrorParts, Observation, Point, Source, TensorSensitivity
from planner.terms import FamilyName, RunOn
from state import Energies, Inventory, Measurement, Pass

__all__ = ["Losses", "calibration", "error_parts", "observations", "subject_of"]


def error_parts(measurement: Measurement) -> ErrorParts:
    """Return the parts of a measured error."""
    return ErrorParts(measurement.err_var, measurement.err_mean, measurement.err_massive)


@dataclass(frozen=True)
class Losses:
    """Errors by tensor and format, and sensitivities by `source`: the loss of every choice of formats."""

    source: Source
    sensitivities: Mapping[str, TensorSensitivity]
    errors: Mapping[tuple[str, str], ErrorParts]
    source_formats: Mapping[str, str]  # each tensor's stored format, which is lossless

    @classmethod
    def from_measurements(
        cls,
        inventory: Inventory,
        source: Source,
        sensitivities: Mapping[str, TensorSensitivity],
        measured: Iterable[Measurement],
    ) -> Self:
        """Return the losses of an inventory's tensors in the formats that the loaded kernels support."""
        stored = {tensor.name: tensor.source_format for tensor in inventory.tensors}
        known = all_formats()
        errors = {
            (entry.tensor, entry.format): error_parts(entry)
            for entry in measured
            if entry.tensor in stored and entry.format in known
        }
        return cls(source, sensitivities, errors, stored)

    def error_and_loss(self, tensor: str, fmt: str) -> tuple[float, float] | None:
        """Return the relative error and the loss of a tensor in a format; None where it was not measured."""
        if self.source_formats.get(tensor) == fmt:
            return 0.0, 0.0
        error = self.errors.get((tensor, fmt))
        if error is None:
            return None
        block = block_of_activations(all_formats()[fmt])
        return max(error.total, 0.0), self.sensitivities[tensor].loss(error, block)

    def stored_as(self, inventory: Inventory) -> Self:
        """Return the losses of a model stored as `inventory` says."""
        return replace(self, source_formats={tensor.name: tensor.source_format for tensor in inventory.tensors})

    def in_family(self, family: FamilyName) -> Self:
        """Return the losses in formats that one family quantizes to."""
        own = family_named(family).formats
        return replace(self, errors={key: error for key, error in self.errors.items() if key[1] in own})

    def times(self, factors: Mapping[str, float]) -> Self:
        """Return the losses with the sensitivities of tensors multiplied by factors."""
        changed = {name: self.sensitivities[name].times(factor) for name, factor in factors.items()}
        return replace(self, sensitivities={**self.sensitivities, **changed})

    def where(self, run_on: RunOn) -> Self:
        """Return the losses of a file that runs there: a CPU rounds activations."""
        return self if run_on == "cpu" else self.without_rounding()

    def without_rounding(self) -> Self:
        """Return the losses without the rounding of activations."""
        exact = {name: replace(entry, rounding=NOT_ROUNDED) for name, entry in self.sensitivities.items()}
        return replace(self, sensitivities=exact)


def subject_of(inventory: Inventory, energies: Iterable[Energies]) -> str | None:
    """Return a digest of the weights and the imatrix that these facts describe, and of the covariances that errors are
    taken by; None if there are no facts."""
    contents = sorted((entry.tensor, _content(entry)) for entry in energies)
    if not contents:
        return None
    covariance = [] if inventory.covariance is None else [inventory.covariance[1:]]
    return hashlib.sha256(json.dumps([inventory.imatrix_digest, contents, *covariance]).encode()).hexdigest()


def _content(facts: Energies) -> str:
    """Return the inputs of a pass that concern one tensor, as text. State files identify passes by its digest, so it
    never changes."""
    gaps = {} if facts.gaps_version is None else {"gaps": facts.gaps_version}
    return json.dumps({"content": facts.content_digest, **gaps})


def calibration(passes: Sequence[Pass], inventory: Inventory, losses: Losses) -> list[Point]:
    """Return the evaluated files with the losses that present sensitivities give their recipes, leaving out files with
    a format that was not measured. Draft heads do not count, as nothing runs through them."""
    drafted = ahead(tensor.name for tensor in inventory.tensors)
    free = [tensor for tensor in inventory.tensors if tensor.left_alone is None and tensor.name not in drafted]
    points = []
    for entry in passes:
        if not entry.errors:
            found = [
                losses.error_and_loss(tensor.name, entry.formats.get(tensor.name, tensor.source_format))
                for tensor in free
            ]
            known = [loss for _, loss in filter(None, found)]
            if len(known) == len(found):
                points.append(Point(sum(known), entry.kld, entry.stderr))
    return points


def observations(passes: Sequence[Pass], reference: Mapping[str, TensorSensitivity]) -> list[Observation]:
    """Return the results of passes over changed tensors, each with the losses that `reference` predicts."""
    return [
        Observation(
            {
                name: reference[name].loss(ErrorParts(*error))
                for name, error in entry.errors.items()
                if name in reference
            },
            entry.kld,
            entry.stderr,
        )
        for entry in passes
        if entry.errors
    ]
