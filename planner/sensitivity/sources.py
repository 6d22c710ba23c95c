"""The ladder of sources: every tensor's sensitivity, and its origin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from planner.names.gguf import ahead, role_of
from planner.sensitivity.facts import Facts
from planner.sensitivity.measured import UP_TO_SCALE, Observation, Spreads, posterior, prior_covariance
from planner.sensitivity.parts import ErrorParts
from planner.sensitivity.prior import prior
from planner.sensitivity.rounding import NOT_ROUNDED, Rounding
from planner.sensitivity.structure import stream_shares
from planner.terms import Source

__all__ = [
    "SOURCES",
    "Source",
    "TensorSensitivity",
    "covariance_about",
    "default_source",
    "measured_sensitivities",
    "sensitivities",
]

SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True, slots=True)
class TensorSensitivity:
    """Loss per unit of each part of a tensor's relative error, and the source of that; `log_std` is the standard
    deviation of its logarithm (0: unknown), `rounding` the error that rounded activations add to the tensor's."""

    per_unit: ErrorParts
    source: Source
    log_std: float = 0.0
    rounding: Rounding = NOT_ROUNDED

    def loss(self, error: ErrorParts, block: int = 0) -> float:
        """Return the loss of an error of this tensor, with activations rounded in blocks of this length; never
        negative."""
        (loss,) = self.losses({"": error}, {"": block}).values()
        return loss

    def losses(self, errors: Mapping[str, ErrorParts], blocks: Mapping[str, int]) -> dict[str, float]:
        """Return the losses of several errors, by format; `blocks` are those of each format."""
        noise = {block: self.rounding.of(block) for block in {*blocks.values()}}
        per_variance, per_mean, per_massive = self.per_unit
        return {
            fmt: max(per_variance * (variance + noise[blocks[fmt]]) + per_mean * mean + per_massive * massive, 0.0)
            for fmt, (variance, mean, massive) in errors.items()
        }

    def times(self, factor: float) -> TensorSensitivity:
        """Return it multiplied by a factor."""
        return replace(self, per_unit=ErrorParts(*(value * factor for value in self.per_unit)))


def default_source(*, has_imatrix: bool, has_means: bool, has_passes: bool = False) -> Source:
    """Return the best available source: passes of the model itself, else `structure`. Without sums of activations
    `structure` is steadied by `prior`; without an imatrix it is not available, and `prior` is left."""
    if has_passes:
        return "measured"
    if not has_imatrix:
        return "prior"
    return "structure" if has_means else "structure+prior"


def sensitivities(
    source: Source, names: Sequence[str], facts: Mapping[str, Facts], *, blocks: int
) -> dict[str, TensorSensitivity]:
    """Return the sensitivities of tensors `names` (all of the model) from `facts`, by name.

    Not for `measured`: see `measured_sensitivities`. Tensors that `structure` cannot place get `prior`, scaled so that
    both agree on average where both are known. So do draft heads, always: they add nothing to the stream of the model.
    """
    assert source != "measured", "it corrects one of the others"
    if source == "uniform":
        one = ErrorParts(1.0, 1.0, 0.0)
        return {name: TensorSensitivity(one, source, rounding=_rounding(facts, name)) for name in names}
    by_role = {name: entry.value for name, entry in prior(names, blocks=blocks).items()}
    drafted = ahead(names)
    run = {name: fact for name, fact in facts.items() if name not in drafted}
    shares = stream_shares(run) if source != "prior" else {}
    scale = _common_scale(shares, by_role)
    result: dict[str, TensorSensitivity] = {}
    for name in names:
        known = by_role[name] * scale
        share = shares.get(name)
        rounding = _rounding(facts, name)
        if share is None:
            result[name] = TensorSensitivity(ErrorParts(known, known, known), "prior", rounding=rounding)
        elif source == "structure":
            result[name] = TensorSensitivity(share, source, rounding=rounding)
        else:
            result[name] = TensorSensitivity(_between(share, known), source, rounding=rounding)
    return result


def _rounding(facts: Mapping[str, Facts], name: str) -> Rounding:
    return facts[name].rounding if name in facts else NOT_ROUNDED


def covariance_about(
    reference: Mapping[str, TensorSensitivity], names: Sequence[str], spreads: Spreads
) -> NDArray[np.float64]:
    """Return the covariance that passes are expected to have about the sensitivities `reference` of some tensors,
    f64[n, n]: see `prior_covariance`."""
    return prior_covariance(names, {name: reference[name].source != "prior" for name in names}, spreads)


def measured_sensitivities(
    reference: Mapping[str, TensorSensitivity], passes: Sequence[Observation], spreads: Spreads = UP_TO_SCALE
) -> dict[str, TensorSensitivity]:
    """Correct the sensitivities `reference` by passes of the model (see `measured`); the result is in nats per
    token. `spreads` say how far the reference is to be trusted.

    Passes do not run through draft heads: what they say of these is left out, whatever it is, and the heads' reference
    is corrected as that of the blocks is on average.
    """
    drafted = ahead(reference)
    names = [name for name in reference if name not in drafted]
    covariance = covariance_about(reference, names, spreads)
    covered = set(names)
    run = [
        entry._replace(losses={name: loss for name, loss in entry.losses.items() if name in covered})
        for entry in passes
    ]
    corrections = posterior(names, covariance, run, spreads)
    logs = [math.log(own.factor) for name, own in corrections.items() if role_of(name)[0] is not None]
    typical = math.exp(sum(logs) / len(logs)) if logs else 1.0
    return {
        name: replace(entry.times(own.factor), source="measured", log_std=own.log_std)
        if (own := corrections.get(name))
        else entry.times(typical)
        for name, entry in reference.items()
    }


def _between(share: ErrorParts, known: float) -> ErrorParts:
    """Return the geometric mean of structure and prior; the parts keep their proportions."""
    bulk = share.total / 2
    factor = math.sqrt(known / bulk) if bulk > 0 else 1.0
    return ErrorParts(share.variance * factor, share.mean * factor, share.massive)


def _common_scale(shares: Mapping[str, ErrorParts], by_role: Mapping[str, float]) -> float:
    """Return the factor by which prior's geometric mean over the tensors of blocks becomes structure's."""
    ratios = [
        math.log(share.total / 2 / by_role[name])
        for name, share in shares.items()
        if role_of(name)[0] is not None and share.total > 0
    ]
    return math.exp(sum(ratios) / len(ratios)) if ratios else 1.0
