"""Facts about one tensor, computed from weights and imatrix and kept in the state as named numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from planner.sensitivity.parts import ErrorParts
from planner.sensitivity.rounding import NOT_ROUNDED, Rounding

__all__ = ["Facts"]

_PLACED = ("var", "mean", "massive", "write", "stage")  # known together or not at all


@dataclass(frozen=True, slots=True)
class Facts:
    """Energies per token of one tensor, each None where it is not known, and its rounding errors.

    `added` is what a relative error of 1 in each part adds to the residual stream (None: the tensor is not placed) and
    `write` what the tensor itself adds to it; `stage` orders writes within a block. `varying` is the varying part of an
    attention's output, `output` the energy that an error adds to the logits, in energies of the final stream; `stream`
    the energy of the residual stream after the tensor's own write, as it was seen.
    """

    added: ErrorParts | None = None
    write: float = 0.0
    stage: int = 0
    varying: float | None = None
    output: float | None = None
    stream: float | None = None
    rounding: Rounding = NOT_ROUNDED

    @classmethod
    def from_values(cls, values: Mapping[str, float]) -> Self:
        """Return the facts that a state holds. Raises ValueError for a missing number or a negative energy."""
        if "var" in values and not all(key in values for key in _PLACED):
            raise ValueError("energies are missing")
        if not all(value >= 0 for key, value in values.items() if key != "stage"):
            raise ValueError("an energy is negative")
        return cls(
            added=ErrorParts(values["var"], values["mean"], values["massive"]) if "var" in values else None,
            write=values.get("write", 0.0),
            stage=int(values.get("stage", 0)),
            varying=values.get("varying"),
            output=values.get("output"),
            stream=values.get("stream"),
            rounding=Rounding(values.get("fine", 0.0), values.get("coarse", 0.0)),
        )

    def values(self) -> dict[str, float]:
        """Return the numbers as a state holds them."""
        values: dict[str, float] = {}
        if self.added is not None:
            energies = (*self.added, self.write, float(self.stage))
            values |= dict(zip(_PLACED, energies, strict=True))
        if self.varying is not None:
            values["varying"] = self.varying
        if self.output is not None:
            values["output"] = self.output
        if self.stream is not None:
            values["stream"] = self.stream
        return values | {"fine": self.rounding.fine, "coarse": self.rounding.coarse}

    def is_finite(self) -> bool:
        """Return whether all numbers are finite."""
        return all(map(math.isfinite, self.values().values()))
