"""Compare quantized models with their original."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from planner.api.common import Progress, StrPath, check_number
from planner.gguf import open_model
from planner.llama.engine import Engine
from planner.llama.evaluate.cache import BaselineRequest, obtain
from planner.llama.evaluate.compare import base_nll, diverge
from planner.llama.evaluate.statistics import Estimate, perplexity, statistics
from planner.llama.fitness import check_model
from planner.llama.text import read_text, window_length
from planner.report.evaluation import Evaluated, evaluation_text, model_size

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Quantized models against their original, on a text of `windows` windows of `context` tokens. As a text: tables.

    `perplexity` is the original's. Every file of `quants` has its `name`, its `size` and the `statistics`, of which
    `statistics.kld` is the mean KL divergence from the original in nats per token, with its standard error.
    """

    context: int
    windows: int
    perplexity: Estimate
    quants: tuple[Evaluated, ...]
    _base: Evaluated = field(repr=False)

    def __str__(self) -> str:
        return evaluation_text([self._base, *self.quants], self.context, self.windows)


def evaluate(
    base: StrPath,
    *quants: StrPath,
    text: StrPath,
    ctx: int | None = None,
    chunks: int | None = None,
    kl_divergence_base: StrPath | None = None,
    threads: int | None = None,
    gpu_layers: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare quantized models with their original, `base`, on the text of a file: perplexity, KL divergence, flips.

    Takes at most `chunks` windows of `ctx` tokens (512, or what the model was trained for). The original's
    log-probabilities are kept at `kl_divergence_base`, and used again; without it they are not kept. Progress is in
    tokens. Needs llama-cpp-python, which ends the process where llama.cpp finds a model impossible.

    Raises ModelError, UsageError, BaselineError for a text that is too short, InferenceError, OutputError.
    """
    for name, value, least in (("ctx", ctx, 3), ("chunks", chunks, 1), ("threads", threads, 1)):
        check_number(name, value, least)
    files = [Evaluated(model_size(path), str(path)) for path in map(Path, (base, *quants))]
    paths = [file.size.path for file in files if file.size is not None]
    with open_model(Path(base)) as model:
        context = ctx or window_length(model)
    for path in paths:
        with open_model(path) as model:
            check_model(model, context=context)
    advance = progress or (lambda what, done, total: None)
    with contextlib.ExitStack() as stack:
        if kl_divergence_base is None:
            kl_divergence_base = Path(stack.enter_context(tempfile.TemporaryDirectory()), "base.kld")
        request = BaselineRequest(paths[0], read_text(Path(text)), context, chunks)
        engine = functools.partial(Engine, context=context, threads=threads, gpu_layers=gpu_layers)
        kept, _ = obtain(request, Path(kl_divergence_base), engine, functools.partial(advance, paths[0].name))
        baseline = stack.enter_context(kept)
        files[0].ppl = perplexity(base_nll(baseline))
        for path, file in zip(paths[1:], files[1:], strict=True):
            with engine(path) as running:
                file.statistics = statistics(diverge(running, baseline, functools.partial(advance, path.name)))
            file.ppl = file.statistics.ppl
        return Evaluation(context, baseline.windows, files[0].ppl, tuple(files[1:]), files[0])
