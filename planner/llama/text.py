"""Read text for a model as llama.cpp's tools do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import UsageError, option
from planner.gguf import Model
from planner.inputs import reading
from planner.llama.engine import Engine, cut

__all__ = ["read_text", "spread_windows", "window_length"]

_CONTEXT = 512  # tokens, the default of llama-perplexity and llama-imatrix


def read_text(path: Path) -> str:
    """Read a text file as it is, but for one newline at its end (as `-f` of llama.cpp's tools) and a byte order mark at
    its start. Raises UsageError."""
    return reading.read_text(path, UsageError, exact=True).removesuffix("\n")


def window_length(model: Model) -> int:
    """Return the tokens of a window: 512, or as many as the model was trained for."""
    return min(_CONTEXT, model.parameter("context_length") or _CONTEXT)


def spread_windows(engine: Engine, text: Path, context: int, tokens: int, repeat: int = 1) -> list[NDArray[np.int32]]:
    """Return other windows for each repetition, i32[tokens / context, context], spread evenly over the text.

    Raises UsageError for a text that is too short.
    """
    read = engine.tokenize(read_text(text))
    windows = cut(read, context)
    count = max(1, tokens // context) * repeat
    if len(windows) < count:
        raise UsageError(
            f"{text} has {len(read):,} tokens, and {count * context:,} are needed: {count} windows of {context:,}.",
            f"Give a longer text; planner sensitivity takes less with {option('tokens')}.",
        )
    chosen = np.linspace(0, len(windows), count, endpoint=False).astype(int)
    return [windows[chosen[number::repeat]] for number in range(repeat)]
