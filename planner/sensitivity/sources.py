"""The ladder of sources: which sensitivity every tensor gets, and where it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from planner.names.gguf import role_of
from planner.sensitivity.measured import Observation, correct, spread
from planner.sensitivity.prior import prior
from planner.sensitivity.rounding import NOT_ROUNDED, Rounding
from planner.sensitivity.structure import Facts, stream_shares
from planner.terms import Source

__all__ = ["SOURCES", "Source", "TensorSensitivity", "default_source", "measured_sensitivities", "sensitivities"]

SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True, slots=True)
class TensorSensitivity:
    """Loss per unit of a tensor's relative error, by component; `source` is what it came from. `rounding` is what
    its activations add to the error, where that is known."""

    var: float
    mean: float
    massive: float
    source: Source
    deviation: float = 0.0  # of the logarithm, where it is known
    rounding: Rounding = NOT_ROUNDED

    def loss(self, err_var: float, err_mean: float, err_massive: float, block: int = 0) -> float:
        """Loss of errors of this tensor, and of activations rounded in such blocks; never negative."""
        noise = err_var + self.rounding.of(block)
        return max(self.var * noise + self.mean * err_mean + self.massive * err_massive, 0.0)

    def times(self, factor: float) -> TensorSensitivity:
        """The same, larger."""
        return replace(self, var=self.var * factor, mean=self.mean * factor, massive=self.massive * factor)


def default_source(*, has_imatrix: bool, has_means: bool, has_passes: bool = False) -> Source:
    """The best source for what is known: passes of the model itself; else `structure`, which needs the sums of
    activations to be at its best, and without them is steadied by `prior`; without an imatrix it says nothing."""
    if has_passes:
        return "measured"
    if not has_imatrix:
        return "prior"
    return "structure" if has_means else "structure+prior"


def sensitivities(
    source: Source, names: Sequence[str], facts: Mapping[str, Facts], *, blocks: int
) -> dict[str, TensorSensitivity]:
    """Sensitivities of tensors `names` (all of the model) from `facts`, by name.

    Not `measured`: see `measured_sensitivities`. What `structure` cannot place gets `prior`, scaled so that both agree
    on average where both are known.
    """
    assert source != "measured", "it corrects one of the others"
    by_role = {name: entry.value for name, entry in prior(names, blocks=blocks).items()}
    if source == "uniform":
        return {name: TensorSensitivity(1.0, 1.0, 0.0, "uniform", rounding=_rounding(facts, name)) for name in names}
    shares = stream_shares(facts) if source != "prior" else {}
    scale = _common_scale(shares, by_role)
    result: dict[str, TensorSensitivity] = {}
    for name in names:
        known = by_role[name] * scale
        share = shares.get(name)
        if share is None:
            result[name] = TensorSensitivity(known, known, known, "prior")
        elif source == "structure":
            result[name] = TensorSensitivity(*share, source)
        else:
            result[name] = TensorSensitivity(*_between(share, known), source)
    return {name: replace(entry, rounding=_rounding(facts, name)) for name, entry in result.items()}


def _rounding(facts: Mapping[str, Facts], name: str) -> Rounding:
    own = facts.get(name, {})
    return Rounding(own.get("fine", 0.0), own.get("coarse", 0.0))


def measured_sensitivities(
    reference: Mapping[str, TensorSensitivity], passes: Sequence[Observation]
) -> dict[str, TensorSensitivity]:
    """Sensitivities in nats per token, from passes of the model; `reference` is what they correct (see `measured`)."""
    names = list(reference)
    covariance = spread(names, {name: entry.source != "prior" for name, entry in reference.items()})
    corrections = correct(names, covariance, passes)
    result = {}
    for name, entry in reference.items():
        correction = corrections[name]
        result[name] = replace(entry.times(correction.factor), source="measured", deviation=correction.deviation)
    return result


def _between(share: tuple[float, float, float], known: float) -> tuple[float, float, float]:
    """Geometric mean of structure and prior; the components keep their proportions."""
    bulk = (share[0] + share[1]) / 2
    factor = math.sqrt(known / bulk) if bulk > 0 else 1.0
    return share[0] * factor, share[1] * factor, share[2]


def _common_scale(shares: Mapping[str, tuple[float, float, float]], by_role: Mapping[str, float]) -> float:
    """What prior is multiplied by so that, over the tensors of blocks, its geometric mean is structure's."""
    ratios = [
        math.log((share[0] + share[1]) / 2 / by_role[name])
        for name, share in shares.items()
        if role_of(name)[0] is not None and share[0] + share[1] > 0
    ]
    return math.exp(sum(ratios) / len(ratios)) if ratios else 1.0
