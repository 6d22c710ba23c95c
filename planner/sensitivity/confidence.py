"""How sure a predicted gain is: from how far off such predictions were where they were checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from planner.terms import Source

__all__ = ["likely_ratio"]

# Standard deviation of log(found / predicted) of the loss of a recipe over that of llama.cpp's mix of its size, seven
# sizes each of prose-8m, SmolLM2-135M and Qwen2.5-Coder-1.5B: docs/quality.md, "How sure". Others were not checked.
_SPREAD: Mapping[Source, float] = MappingProxyType({"structure": 0.22, "measured": 0.12})


def likely_ratio(source: str, ratio: float) -> tuple[float, float] | None:
    """Return between what two times in three a ratio of losses will be found that is predicted to be `ratio`; None
    where it is not known how sure the source is."""
    spread = next((value for name, value in _SPREAD.items() if name == source), None)
    return None if spread is None else (ratio * math.exp(-spread), ratio * math.exp(spread))
