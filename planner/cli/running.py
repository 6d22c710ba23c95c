"""Check models before work that ends in running them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

__all__ = ["check_runs"]


def check_runs(models: Iterable[Path], *, context: int, gpu_layers: int, predicts: bool = True) -> None:
    """Refuse models that llama.cpp cannot run in windows of `context` tokens (0: no matter), and say on stderr what of
    the request has no effect or is doubtful.

    Raises ModelError, UsageError and InferenceError.
    """
    from planner.gguf import open_model
    from planner.llama.fitness import check_model, remarks

    said: dict[str, None] = {}
    for path in models:
        with open_model(path) as model:
            check_model(model, context=context, predicts=predicts)
            said |= dict.fromkeys(remarks(model, context=context, gpu_layers=gpu_layers))
    for text in said:
        click.echo(text, err=True)
