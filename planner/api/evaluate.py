"""Compare quantized models with their original."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from planner.api.common import Progress, StrPath, check_number
from planner.api.quants import Calibration, open_quants
from planner.gguf import open_model
from planner.llama.engine import Engine
from planner.llama.evaluate.cache import BaselineRequest, obtain
from planner.llama.evaluate.compare import base_nll
from planner.llama.evaluate.statistics import Estimate, perplexity, statistics
from planner.llama.fitness import check_model
from planner.llama.text import read_text, window_length
from planner.recipe import Recipe
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
    *quants: StrPath | Recipe,
    text: StrPath,
    ctx: int | None = None,
    chunks: int | None = None,
    kl_divergence_base: StrPath | None = None,
    imatrix: StrPath | None = None,
    covariance: StrPath | None = None,
    shrinkage: float | None = None,
    threads: int | None = None,
    gpu_layers: int = 0,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Evaluation:
    """Compare quantized models with their original, `base`, on the text of a file: perplexity, KL divergence, flips.

    Each of `quants` is a GGUF file or a recipe, also one for MLX; recipes are followed in the memory of llama.cpp,
    where nothing rounds activations, which it does for quantized weights. `imatrix`, `covariance`, `shrinkage` and
    `note` are as in `quantize`, for all recipes.

    Takes at most `chunks` windows of `ctx` tokens (512, or what the model was trained for). The original's
    log-probabilities are kept at `kl_divergence_base`, and used again; without it they are not kept. Progress is in
    tokens. Needs llama-cpp-python, which ends the process where llama.cpp finds a model impossible.

    Raises ModelError, UsageError, BaselineError for a text that is too short, InferenceError, OutputError; for recipes
    RecipeError, ImatrixError, CovarianceError and KernelError.
    """
    for name, value, least in (("ctx", ctx, 3), ("chunks", chunks, 1), ("threads", threads, 1)):
        check_number(name, value, least)
    original, calibration = Path(base), Calibration(imatrix, covariance, shrinkage)
    first = Evaluated(model_size(original), str(original))
    with contextlib.ExitStack() as stack:
        compared = stack.enter_context(open_quants(original, quants, calibration, note or (lambda text: None)))
        with open_model(original) as model:
            context = ctx or window_length(model)
        for path in dict.fromkeys([original, *compared.models]):
            with open_model(path) as model:
                check_model(model, context=context)
        advance = progress or (lambda what, done, total: None)
        if kl_divergence_base is None:
            kl_divergence_base = Path(stack.enter_context(tempfile.TemporaryDirectory()), "base.kld")
        request = BaselineRequest(original, read_text(Path(text)), context, chunks)
        engine = functools.partial(Engine, context=context, threads=threads, gpu_layers=gpu_layers)
        kept, _ = obtain(request, Path(kl_divergence_base), engine, functools.partial(advance, original.name))
        baseline = stack.enter_context(kept)
        first.ppl = perplexity(base_nll(baseline))

        def bar(unit: str) -> AbstractContextManager[Progress]:
            return contextlib.nullcontext(advance if unit == "tokens" else lambda what, done, total: None)

        for quant, found in compared.diverge(baseline, compared.every, threads=threads, gpu_layers=gpu_layers, bar=bar):
            quant.result.statistics = statistics(found)
            quant.result.ppl = quant.result.statistics.ppl
        results = tuple(quant.result for quant in compared.every)
        return Evaluation(context, baseline.windows, first.ppl, results, first)
