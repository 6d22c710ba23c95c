"""KL divergences of passes: mean, standard error, and the key of a stored pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from planner.errors import InferenceError
from planner.llama.evaluate.baseline import Baseline
from planner.llama.library import llama_version

__all__ = ["by_window", "mean_kld", "pass_key"]

_FEWEST_WINDOWS = 8  # for a standard error from windows; below, tokens are taken as independent


def pass_key(subject: str, windows: NDArray[np.int32], used: Mapping[str, str]) -> str:
    """Return a digest of everything that a pass depends on: `subject`, windows of tokens i32[n, context], and the
    formats `used` by tensor."""
    text = hashlib.sha256(np.ascontiguousarray(windows, "<i4").tobytes()).hexdigest()
    where = [subject, text, str(windows.shape[1]), llama_version(), sorted(used.items())]
    return hashlib.sha256(json.dumps(where).encode()).hexdigest()


def mean_kld(klds: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and standard error of divergences f64[windows, tokens]. The error is taken between windows, as tokens
    within one are correlated, or between tokens if windows are few. Raises InferenceError if a divergence is
    infinite."""
    if not np.isfinite(klds).all():
        raise InferenceError(
            "The divergence from the original is infinite: words that it says are never said any more.",
            "Nothing can be learned from that: `planner inspect` shows the model's weights.",
        )
    sample = klds.mean(axis=1) if len(klds) >= _FEWEST_WINDOWS else klds.reshape(-1)
    stderr = float(sample.std(ddof=1) / np.sqrt(len(sample))) if len(sample) > 1 else 0.0
    return float(sample.mean()), stderr


def by_window(values: NDArray[np.float32], baseline: Baseline) -> NDArray[np.float64]:
    """Reshape the result of `diverge`, f32[windows * scored], to f64[windows, scored]."""
    return values.astype(np.float64).reshape(baseline.windows, baseline.scored)
