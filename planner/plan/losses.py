"""Losses of tensors in formats, from their measured errors and their sensitivities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from planner.formats.registry import activation_blocks, all_formats, family_named
from planner.names.gguf import ahead
from planner.sensitivity import NOT_ROUNDED, ErrorParts, Observation, Point, Source, TensorSensitivity
from planner.terms import FamilyName, RunOn
from state import Energies, Inventory, Pass

__all__ = ["Losses", "calibration", "observations", "subject_of"]


@dataclass(frozen=True)
class Losses:
    """Errors by tensor and format, and sensitivities by `source`: the loss of every choice of formats; `nats`, if that
    is a divergence by the reach of noise, and not up to scale."""

    source: Source
    sensitivities: Mapping[str, TensorSensitivity]
    errors: Mapping[str, Mapping[str, ErrorParts]]
    source_formats: Mapping[str, str]  # each tensor's stored format, which is lossless
    nats: bool = False

    @classmethod
    def of_errors(
        cls,
        inventory: Inventory,
        source: Source,
        sensitivities: Mapping[str, TensorSensitivity],
        measured: Mapping[str, Mapping[str, ErrorParts]],
        *,
        nats: bool = False,
    ) -> Self:
        """Return the losses of an inventory's tensors in the formats that the loaded kernels support."""
        stored = {tensor.name: tensor.source_format for tensor in inventory.tensors}
        return cls(source, sensitivities, _only(measured, all_formats()), stored, nats)

    def of(self, tensor: str) -> dict[str, tuple[float, float]]:
        """Return the relative error and the loss of a tensor in each format that is known of it: those that it was
        measured in, and the one that it is stored in."""
        errors = self.errors.get(tensor, {})
        losses = self.sensitivities[tensor].losses(errors, activation_blocks())
        found = {fmt: (max(parts.total, 0.0), losses[fmt]) for fmt, parts in errors.items()}
        found[self.source_formats[tensor]] = 0.0, 0.0
        return found

    def error_and_loss(self, tensor: str, fmt: str) -> tuple[float, float] | None:
        """Return the relative error and the loss of a tensor in a format; None where it was not measured."""
        if self.source_formats.get(tensor) == fmt:
            return 0.0, 0.0
        error = self.errors.get(tensor, {}).get(fmt)
        if error is None:
            return None
        return max(error.total, 0.0), self.sensitivities[tensor].loss(error, activation_blocks()[fmt])

    def stored_as(self, inventory: Inventory) -> Self:
        """Return the losses of a model stored as `inventory` says."""
        return replace(self, source_formats={tensor.name: tensor.source_format for tensor in inventory.tensors})

    def in_family(self, family: FamilyName) -> Self:
        """Return the losses in formats that one family quantizes to."""
        return replace(self, errors=_only(self.errors, family_named(family).formats))

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


def _only(errors: Mapping[str, Mapping[str, ErrorParts]], formats: Container[str]) -> dict[str, dict[str, ErrorParts]]:
    return {name: {fmt: parts for fmt, parts in each.items() if fmt in formats} for name, each in errors.items()}


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
