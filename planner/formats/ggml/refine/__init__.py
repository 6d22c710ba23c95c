"""Better codes in the same bytes: rounding against the covariance of what goes into the weights.

For a row x, its quantized x̂ and d = x̂ - x, the expected squared error of the output is d H dᵀ, with H = E[a aᵀ]. ggml
rounds every weight by itself; here errors are made to cancel. From ggml's codes and scales on, coordinate descent gives
each weight in turn, then each scale, the value that is best for all others as they are.
"""

from __future__ import annotations

from planner.formats.ggml.refine.rows import (
    REFINEMENT_VERSION,
    SHRINKAGE,
    Metric,
    can_refine,
    pair_errors,
    refine_rows,
    require_compiler,
)

__all__ = ["REFINEMENT_VERSION", "SHRINKAGE", "Metric", "can_refine", "pair_errors", "refine_rows", "require_compiler"]
