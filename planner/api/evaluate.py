"""Compare quantized models with their original."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from planner.api.common import Progress, StrPath, check_number, paths
from planner.api.evaluating import (
    How,
    Source,
    context_of,
    evaluate_floor,
    evaluate_quants,
    fill_original,
    open_domains,
)
from planner.api.quants import Calibration, bars_of, open_quants
from planner.errors import UsageError, option
from planner.llama.evaluate.statistics import Estimate
from planner.recipe import Recipe
from planner.report.evaluation import Evaluated, Results, model_size
from planner.report.results import results_text

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Quantized models against their original, on texts of `windows` windows together, of `context` tokens each, and on
    conversations. As a text: tables.

    `perplexity` is the original's. Every file of `quants` has its `name`, its `size` and the `statistics`, of which
    `statistics.kld` is the mean KL divergence from the original in nats per token, with its standard error; `texts`
    has those of each text by the name of its file, and `alike` the trajectories. `floor` is the original again.
    """

    context: int
    windows: int
    perplexity: Estimate
    quants: tuple[Evaluated, ...]
    floor: Evaluated | None
    _results: Results = field(repr=False)

    def __str__(self) -> str:
        return results_text(self._results)


def evaluate(
    base: StrPath,
    *quants: StrPath | Recipe,
    text: StrPath | Sequence[StrPath] = (),
    chat: StrPath | Sequence[StrPath] = (),
    ctx: int | None = None,
    chunks: int | None = None,
    kl_divergence_base: StrPath | None = None,
    floor: bool = False,
    trajectories: int | None = None,
    imatrix: StrPath | None = None,
    covariance: StrPath | None = None,
    shrinkage: float | None = None,
    threads: int | None = None,
    gpu_layers: int = 0,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Evaluation:
    """Compare quantized models with their original, `base`, on texts: perplexity, KL divergence, flips. `text` and
    `chat` are files: one or several of text, and of conversations, of which answers are predicted.

    Each of `quants` is a GGUF file or a recipe, also one for MLX; recipes are followed in the memory of llama.cpp,
    where nothing rounds activations, which it does for quantized weights. `imatrix`, `covariance`, `shrinkage` and
    `note` are as in `quantize`, for all recipes.

    Takes at most `chunks` windows of `ctx` tokens (512, or what the model was trained for) of each text. The original's
    log-probabilities are kept at `kl_divergence_base`, or beside it for each of several texts, and used again; without
    it they are not kept. `floor`: the original is compared with itself, too; `trajectories`: how many prompts of each
    text are continued. Progress is in tokens. Needs llama-cpp-python, which ends the process where llama.cpp finds a
    model impossible.

    Raises ModelError, UsageError, BaselineError for a text that is too short, InferenceError, OutputError; for recipes
    RecipeError, ImatrixError, CovarianceError and KernelError.
    """
    counts = {"chunks": chunks, "threads": threads, "trajectories": trajectories}
    for name, value, least in (("ctx", ctx, 3), *((name, value, 1) for name, value in counts.items())):
        check_number(name, value, least)
    original, calibration = Path(base), Calibration(imatrix, covariance, shrinkage)
    sources = _sources(text, chat)
    first = Evaluated(model_size(original), str(original))
    how = How(threads, gpu_layers, bars_of(progress), note or (lambda text: None))
    with contextlib.ExitStack() as stack:
        compared = stack.enter_context(open_quants(original, quants, calibration, how.tell))
        context = context_of(original, ctx)
        compared.check(original, context)
        if kl_divergence_base is None:
            kl_divergence_base = Path(stack.enter_context(tempfile.TemporaryDirectory()), "base.kld")
        kept = Path(kl_divergence_base)
        domains = list(open_domains(original, sources, context, chunks, kept, trajectories or 0, how, stack))
        fill_original(first, domains)
        again = evaluate_floor(original, domains, how) if floor else None
        for _ in evaluate_quants(compared, compared.every, domains, how):
            pass  # each fills in its result
        results = Results([first, *(quant.result for quant in compared.every)], [each.facts for each in domains], again)
        windows = sum(domain.baseline.windows for domain in domains if not domain.chat)
        assert first.ppl is not None
        return Evaluation(context, windows, first.ppl, tuple(results.files[1:]), again, results)


def _sources(text: StrPath | Sequence[StrPath], chat: StrPath | Sequence[StrPath]) -> list[Source]:
    found = [*(Source(path) for path in paths(text)), *(Source(path, chat=True) for path in paths(chat))]
    if not found:
        raise UsageError("There is nothing to evaluate with.", f"Give {option('text')} or {option('chat')}.")
    return found
