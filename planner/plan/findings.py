"""A finished state as plans see it: read once, and then independent of the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from planner.errors import StateFileError, UsageError, option
from planner.formats.ggml import formats
from planner.formats.registry import family_named
from planner.plan.drafts import without_drafts
from planner.plan.losses import Losses, observations, subject_of
from planner.sensitivity import (
    IN_NATS,
    UP_TO_SCALE,
    ErrorParts,
    Facts,
    Source,
    Spreads,
    TensorSensitivity,
    default_source,
    in_nats,
    measured_sensitivities,
    sensitivities,
)
from planner.terms import Draft, FamilyName
from state import Energies, Inventory, Pass, Store

__all__ = ["Findings", "inventory_of", "not_measured"]


@dataclass(frozen=True)
class Findings:
    """What the state file at `path` holds about a model: the errors of finished measurements by tensor and format,
    facts by tensor, and passes.

    `subject` is a digest of the weights and the imatrix, and `passes` are those of that subject alone. It is None where
    the weights were never read, because the measurements are other people's.
    """

    path: Path
    inventory: Inventory
    errors: Mapping[str, Mapping[str, ErrorParts]]
    facts: Mapping[str, Facts]
    passes: tuple[Pass, ...]
    subject: str | None

    @classmethod
    def read(cls, store: Store, family: FamilyName = "gguf", draft: Draft = "auto") -> Self:
        """Read all of it; with `draft` = "drop" of the model without its draft heads. Raises StateFileError for a state
        without finished measurements, with the command that makes them in the formats of `family`, and for a damaged
        one."""
        findings = cls.find(store)
        if findings is None:
            raise not_measured(store.path, family)
        if draft == "drop" and family_named(family).exported_to is None:  # the other engine never loads them
            return findings._of(without_drafts(findings.inventory))
        return findings

    def _of(self, inventory: Inventory) -> Self:
        """Return what is known of these of the model's tensors."""
        names = {tensor.name for tensor in inventory.tensors}
        errors = {name: each for name, each in self.errors.items() if name in names}
        facts = {name: known for name, known in self.facts.items() if name in names}
        return replace(self, inventory=inventory, errors=errors, facts=facts)

    @classmethod
    def find(cls, store: Store) -> Self | None:
        """Read all of it, if there are finished measurements. Raises StateFileError for a damaged state."""
        inventory = inventory_of(store)
        finished = store.errors()
        if inventory is None or not finished:
            return None
        errors: dict[str, dict[str, ErrorParts]] = {tensor.name: {} for tensor in inventory.tensors}
        for name, fmt, variance, mean, massive in finished:
            if (own := errors.get(name)) is not None:
                own[fmt] = ErrorParts(variance, mean, massive)
        energies = store.energies(selected=True).values()
        facts = _facts(store.path, [entry for entry in energies if entry.tensor in errors])
        subject = subject_of(inventory, energies)
        passes = tuple(entry for entry in store.passes() if entry.subject == subject)
        return cls(store.path, inventory, errors, facts, passes, subject)

    @property
    def reference(self) -> Source:
        """The best source of sensitivities without passes, which those correct."""
        return self._best_source(has_passes=False)

    @property
    def best_source(self) -> Source:
        """The best source of sensitivities for all that is known."""
        return self._best_source(has_passes=self._has_passes)

    def _best_source(self, *, has_passes: bool) -> Source:
        has_imatrix = self.inventory.imatrix_digest is not None
        return default_source(has_imatrix=has_imatrix, has_means=self.inventory.has_means, has_passes=has_passes)

    @property
    def nats(self) -> bool:
        """Whether losses by the reference are divergences."""
        return self.reference == "structure" and in_nats(self.facts)

    @property
    def spreads(self) -> Spreads:
        """How far passes are to be expected from the reference."""
        return IN_NATS if self.nats else UP_TO_SCALE

    @property
    def _has_passes(self) -> bool:
        return any(entry.errors for entry in self.passes)

    def sensitivities(self, source: Source) -> dict[str, TensorSensitivity]:
        """Return the sensitivities of all tensors. Raises UsageError for `measured` without passes."""
        if source == "measured" and not self._has_passes:
            raise UsageError(
                f"{self.path} holds no passes of this model, with this imatrix.",
                "Run them first: planner sensitivity MODEL --text FILE",
            )
        names = [tensor.name for tensor in self.inventory.tensors]
        blocks = self.inventory.metadata.get("block_count", 0)
        reference = sensitivities(
            self.reference if source == "measured" else source, names, self.facts,
            blocks=0 if isinstance(blocks, str) else int(blocks),
        )  # fmt: skip
        if source != "measured":
            return reference
        return measured_sensitivities(reference, observations(self.passes, reference), self.spreads)

    def losses(self, source: Source | None = None) -> Losses:
        """Return the losses of all tensors by `source` (default: the best). Raises what `sensitivities` raises."""
        chosen = source or self.best_source
        known = self.sensitivities(chosen)
        return Losses.of_errors(self.inventory, chosen, known, self.errors, nats=chosen == "structure" and self.nats)

    def subject_of_passes(self) -> str:
        """Return the subject that new passes are kept under. Raises StateFileError where there is none."""
        if self.subject is None:
            raise not_measured(self.path)
        return self.subject


def not_measured(path: Path, family: FamilyName = "gguf", *, others: bool = False) -> StateFileError:
    """Return the error of a state without finished measurements in formats of a family; `others`: it has some, but in
    those of another."""
    which = f" in formats of the family {family}" if others else ""
    step = " ".join(("planner measure MODEL --imatrix FILE", *family_named(family).option))
    return StateFileError(
        f"{path} holds no finished measurements{which}.",
        f"Measure first: {step}. What is measured already will be kept.",
    )


def inventory_of(store: Store) -> Inventory | None:
    """Return the model that a state is of, None where there is none yet. Raises StateFileError for tensors in a format
    that does not exist or does not fit their rows."""
    inventory = store.inventory()
    known = formats()
    for tensor in () if inventory is None else inventory.tensors:
        fmt = known.get(tensor.source_format)
        if fmt is None or not fmt.fits(tensor.row_length):
            raise StateFileError(
                f"What the state holds cannot be: {tensor.name}, stored in {tensor.source_format}.",
                f"Measure the model again, into a new {option('state')}.",
            )
    return inventory


def _facts(path: Path, energies: Iterable[Energies]) -> dict[str, Facts]:
    """Return facts by tensor. Raises StateFileError for values that no facts have."""
    facts = {}
    for entry in energies:
        try:
            facts[entry.tensor] = Facts.from_values(entry.values)
        except ValueError as error:
            raise StateFileError(
                f"{path} is damaged: what it holds of {entry.tensor} cannot be.", "Move it away and measure again."
            ) from error
    return facts
