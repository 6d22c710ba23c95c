"""Facts about one tensor, computed from weights and imatrix and kept in the state as named numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from planner.sensitivity.parts import ErrorParts
from planner.sensitivity.rounding import NOT_ROUNDED, Rounding

__all__ = ["Facts"]

_PLACED = ("var", "mean", "massive", "write", "stage")  # known together or not at all
_ENERGIES = ("write", "varying", "stream", "seen", "gathers")
_OPTIONAL = ("varying", "output", "logits", "stream", "seen", "reach", "gathers", "gathered", "inside", "steady")


@dataclass(frozen=True, slots=True)
class Facts:
    """Energies per token of one tensor, each None where it is not known, and its rounding errors.

    `added` is what a relative error of 1 in each part adds to the residual stream (None: the tensor is not placed) and
    `write` what the tensor itself adds to it; `stage` orders writes within a block. `varying` is the varying part of an
    attention's output, `output` the energy that an error adds to the logits, in energies of the final stream. `seen` is
    the energy of the residual stream after the tensor's own write, as it was seen, and `stream` as much of it as counts
    beside errors; `reach` is what a share of noise in it costs, and `logits` one in the logits, in nats. `gathers` is
    what a relative error of 1 in what a block gets of per-layer embeddings adds by this writer; `gathered`, of the
    table of these, its share in that. `inside` is what a relative error of 1 in the varying part of a tensor that does
    not write was found to cost, in nats, and `steady` in the mean part.
    """

    added: ErrorParts | None = None
    write: float = 0.0
    stage: int = 0
    varying: float | None = None
    output: float | None = None
    logits: float | None = None
    stream: float | None = None
    seen: float | None = None
    reach: float | None = None
    gathers: float | None = None
    gathered: float | None = None
    inside: float | None = None
    steady: float | None = None
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
            **{name: values.get(name) for name in _OPTIONAL},
            rounding=Rounding(values.get("fine", 0.0), values.get("coarse", 0.0)),
        )

    def values(self) -> dict[str, float]:
        """Return the numbers as a state holds them."""
        values: dict[str, float] = {}
        if self.added is not None:
            energies = (*self.added, self.write, float(self.stage))
            values |= dict(zip(_PLACED, energies, strict=True))
        values |= {name: value for name in _OPTIONAL if (value := getattr(self, name)) is not None}
        return values | {"fine": self.rounding.fine, "coarse": self.rounding.coarse}

    def scaled(self, amplitude: float) -> Self:
        """Return the facts with the stream, and all that is added to it, multiplied by an amplitude."""
        if amplitude == 1:
            return self
        energy = amplitude**2
        own = {name: value * energy for name in _ENERGIES if (value := getattr(self, name)) is not None}
        added = None if self.added is None else ErrorParts(*(part * energy for part in self.added))
        return replace(self, added=added, **own)

    def is_finite(self) -> bool:
        """Return whether all numbers are finite."""
        return all(map(math.isfinite, self.values().values()))
