"""Compare many quantized files of one model, and keep what was found."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planner.api.common import Progress, StrPath, check_number, state_errors
from planner.api.quants import Bar, Calibration, Quant, Quants, bars_of, open_quants
from planner.digests import digest, recipe_digest, stamp
from planner.errors import UsageError, option
from planner.files import write_atomically
from planner.formats.registry import all_formats, kernel_of
from planner.gguf import open_model
from planner.llama.engine import Engine
from planner.llama.evaluate.answers import open_baseline
from planner.llama.evaluate.baseline import Baseline
from planner.llama.evaluate.cache import BaselineRequest, obtain
from planner.llama.evaluate.compare import base_nll
from planner.llama.evaluate.frontier import Standing, standings
from planner.llama.evaluate.results import Compared, Original, add_result, kept_comparison, result_of
from planner.llama.evaluate.results import Comparison as Results
from planner.llama.evaluate.statistics import block_starts, perplexity
from planner.llama.library import llama_version
from planner.llama.passes.recipes import Followed
from planner.llama.text import read_text, window_length
from planner.plan.curve import Curve, curve
from planner.plan.findings import Findings
from planner.plan.request import ANY_SIZE, PlanRequest
from planner.recipe import Recipe
from planner.report.comparison import comparison_page, comparison_text
from planner.report.evaluation import ModelSize, model_size
from state import Store

__all__ = ["Comparing", "Comparison", "Question", "compare", "curve_beneath"]

_POINTS = 500  # of the curve: enough between the smallest and the largest of any files


@dataclass(frozen=True)
class Question:
    """What is asked of all models: how far from `original` they are on a text, in at most `chunks` windows of `context`
    tokens. Without a text, `original` is a file of log-probabilities, which has one in it."""

    original: Path
    text: str | None
    context: int
    chunks: int | None = None

    @classmethod
    def of(cls, original: Path, text: Path | None, context: int | None, chunks: int | None) -> Question:
        """Look at the original and read the text. Raises ModelError, BaselineError, UsageError."""
        if text is None:
            with open_baseline(original) as baseline:
                return cls(original, None, int(baseline.context))
        with open_model(original) as model:
            return cls(original, read_text(text), context or window_length(model), chunks)

    def key(self) -> str:
        """Return a digest of all that the answers depend on, besides the models."""
        if self.text is None:
            return digest("log-probabilities", *map(str, stamp(self.original)), llama_version())
        return self._request.key

    def size(self) -> ModelSize | None:
        """Return the original's size. Raises ModelError."""
        return None if self.text is None else model_size(self.original)

    def baseline(
        self, kept_at: Path, engine: Callable[[Path], Engine], progress: Callable[[int, int], None]
    ) -> tuple[Baseline, bool]:
        """Return the original's log-probabilities, kept at a path, and whether they had to be computed. Raises what
        `obtain` raises."""
        if self.text is None:
            return open_baseline(self.original), False
        return obtain(self._request, kept_at, engine, progress)

    @property
    def _request(self) -> BaselineRequest:
        assert self.text is not None
        return BaselineRequest(self.original, self.text, self.context, self.chunks)


class Comparing:
    """A comparison that goes on: what the file `path` holds of it, and what is missing.

    `found` is the comparison as it is kept; None before there is a first result.
    """

    def __init__(self, question: Question, quants: Quants, path: Path) -> None:
        self.question, self._quants, self.path = question, quants, path
        self._key = question.key()
        self._keys = {quant.result.name: _key_of(quant) for quant in quants.every}
        self.found: Results | None = kept_comparison(path, self._key)

    def missing(self) -> list[Quant]:
        """Return what is still to be evaluated. A result that has another name is taken over."""
        known = {} if self.found is None else {result.key: result for result in self.found.results.values()}
        missing: dict[str, Quant] = {}
        for quant in self._quants.every:
            name, result = quant.result.name, known.get(self._keys[quant.result.name])
            if result is None:
                missing[name] = quant
            elif self.found is not None and name not in self.found.results:
                renamed = None if result.name in self._keys else result.name
                self._add(self.found, replace(result, name=name), renamed)
        return list(missing.values())

    def run(
        self, baseline: Baseline, missing: Sequence[Quant], *, threads: int | None, gpu_layers: int, bar: Bar
    ) -> Iterator[Compared]:
        """Evaluate what is missing; keep each result, then yield it. Raises what `Quants.diverge` raises, and
        OutputError."""
        size = self.question.size()
        nbytes, bpw = (None, None) if size is None else (size.bytes, size.bpw)
        ppl = perplexity(base_nll(baseline), block_starts(baseline.predictions))
        original = Original(str(self.question.original), nbytes, bpw, ppl)
        start = self.found or Results(original, int(baseline.context), int(baseline.windows))
        running = self._quants.diverge(baseline, missing, threads=threads, gpu_layers=gpu_layers, bar=bar)
        for quant, divergence in running:
            entry = quant.result
            assert entry.size is not None
            result = result_of(
                entry.name, self._keys[entry.name], (entry.size.bytes, entry.size.bpw), divergence, baseline,
                in_memory=entry.in_memory, exact_activations=entry.exact_activations,
            )  # fmt: skip
            self._add(start, result)
            yield result

    def _add(self, start: Results, result: Compared, renamed: str | None = None) -> None:
        self.found = add_result(self.path, self._key, start, result, renamed)


def _key_of(quant: Quant) -> str:
    """Return a digest of all that a result depends on, besides the comparison. Weights of files count by their sizes
    and times of change."""
    if quant.recipe is not None:
        return _key_of_recipe(quant.recipe)
    assert quant.result.size is not None
    with open_model(quant.result.size.path) as model:
        stamps = [str(number) for part in model.parts for number in stamp(part)]
        return digest("file", model.digest, *stamps)


def _key_of_recipe(followed: Followed) -> str:
    formats, known = followed.recipe.formats, all_formats()
    kernels = sorted({" ".join(kernel_of(known[fmt])) for fmt in formats.values() if fmt in known})
    matrix = "" if followed.imatrix is None else followed.imatrix.digest
    refined = () if followed.refinement is None else followed.refinement.key
    return digest("recipe", recipe_digest(formats), matrix, *refined, *kernels)


def curve_beneath(state: Path, base: Path | None) -> Curve:
    """Return what every size of a model is predicted to diverge, by a state of it. `base` is the model, None where it
    is not there.

    Raises StateFileError, and UsageError for a state of another model, or one without passes, which has no scale.
    """
    with Store.open(state, read_only=True) as store:
        findings = Findings.read(store)
    if base is not None:
        with open_model(base) as model:
            shapes = {tensor.name: tensor.shape for tensor in model.tensors}
        if shapes != {tensor.name: tensor.shape for tensor in findings.inventory.tensors}:
            raise UsageError(
                f"{option('state', state)} is of another model than {base}.", "Give the one that was measured from it."
            )
    found = curve(findings, PlanRequest(bpw=ANY_SIZE), points=_POINTS)
    if found.points[0].prediction is None:
        raise UsageError(
            f"{option('state', state)}: how large a divergence to expect is not known without passes of the model.",
            f"Run them: planner sensitivity MODEL --text FILE; or leave {option('state')} out.",
        )
    return found


@dataclass(frozen=True)
class Comparison:
    """Many quantized models against their original. As a text: tables.

    `results` has the smallest first: each has its `name`, `bytes`, `bpw` and `statistics`. `standings` says of each, by
    its name, whether it is on the frontier of size and divergence, tied with one that is no larger, or beaten by it.
    """

    results: tuple[Compared, ...]
    standings: dict[str, Standing]
    _kept: Results
    _curve: Curve | None = None

    def save_page(self, path: StrPath) -> None:
        """Write a page of HTML with a chart, which needs no network. Raises OutputError."""
        write_atomically(Path(path), comparison_page(self._kept, self._curve).encode())

    def __str__(self) -> str:
        return comparison_text(self._kept, self._curve)


def compare(
    base: StrPath,
    *quants: StrPath | Recipe,
    text: StrPath,
    results: StrPath = "compare.json",
    ctx: int | None = None,
    chunks: int | None = None,
    kl_divergence_base: StrPath | None = None,
    imatrix: StrPath | None = None,
    covariance: StrPath | None = None,
    shrinkage: float | None = None,
    state: StrPath | None = None,
    threads: int | None = None,
    gpu_layers: int = 0,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare quantized models, files and recipes, with their original and each other, on the text of a file.

    What the file `results` holds of the same comparison is not evaluated again, and is part of what is returned, also
    where it is not among `quants`. With a `state` that has passes of the model, what is predicted of our best file of
    each size stands beneath. The rest is as in `evaluate`, and so is what is raised; OutputError for a file of
    results that is none.
    """
    for name, value, least in (("ctx", ctx, 3), ("chunks", chunks, 1), ("threads", threads, 1)):
        check_number(name, value, least)
    advance = progress or (lambda what, done, total: None)
    question = Question.of(Path(base), Path(text), ctx, chunks)
    with state_errors():
        beneath = None if state is None else curve_beneath(Path(state), Path(base))
    with contextlib.ExitStack() as stack:
        calibration = Calibration(imatrix, covariance, shrinkage)
        opened = stack.enter_context(open_quants(Path(base), quants, calibration, note or (lambda text: None)))
        comparing = Comparing(question, opened, Path(results))
        if missing := comparing.missing():
            opened.check(Path(base), question.context)
            kept_at = kl_divergence_base or Path(stack.enter_context(tempfile.TemporaryDirectory()), "base.kld")
            engine = functools.partial(Engine, context=question.context, threads=threads, gpu_layers=gpu_layers)
            kept, _ = question.baseline(Path(kept_at), engine, functools.partial(advance, Path(base).name))
            baseline, bar = stack.enter_context(kept), bars_of(progress)
            for _ in comparing.run(baseline, missing, threads=threads, gpu_layers=gpu_layers, bar=bar):
                pass
    if comparing.found is None:
        raise UsageError(f"There is nothing to compare: no files, and nothing in {option('results', results)}.")
    every = tuple(comparing.found.by_size())
    return Comparison(every, standings(every), comparing.found, beneath)
