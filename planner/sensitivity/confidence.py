"""How sure a predicted gain is: from how far off such predictions were where they were checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["likely_ratio", "spread_of_ratios"]

# Of found / predicted, for the loss of a recipe over that of llama.cpp's mix of its size: geometric mean, and standard
# deviation of the logarithm; docs/quality.md, "How sure". Other sources were not checked.
_FOUND: Mapping[str, tuple[float, float]] = MappingProxyType({"structure": (1.1, 0.22), "measured": (1.05, 0.12)})
_IN_NATS: Mapping[str, tuple[float, float]] = MappingProxyType({**_FOUND, "structure": (1.01, 0.11)})


def likely_ratio(source: str, ratio: float, *, nats: bool = False) -> tuple[float, float] | None:
    """Return between what two times in three a ratio of losses will be found that is predicted to be `ratio`; None
    where it is not known how sure the source is. `nats`: losses are divergences, by the reach of noise."""
    known = (_IN_NATS if nats else _FOUND).get(source)
    if known is None:
        return None
    centre, spread = known
    return ratio * centre * math.exp(-spread), ratio * centre * math.exp(spread)


def spread_of_ratios(source: str) -> float | None:
    """Return the standard deviation of the logarithm of found over predicted ratios; None where it is not known."""
    known = _FOUND.get(source)
    return None if known is None else known[1]
