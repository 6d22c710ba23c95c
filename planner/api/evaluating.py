"""An evaluation, step by step: what the original says of texts and chats, and how far from it every model is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.api.quants import Bar, Quant, Quants
from planner.errors import UsageError, option
from planner.gguf import Model, open_model
from planner.inputs import reading
from planner.llama.engine import Engine
from planner.llama.evaluate.baseline import Baseline
from planner.llama.evaluate.cache import BaselineRequest, ChatRequest, keep_trajectories, kept_trajectories, obtain
from planner.llama.evaluate.compare import base_nll, diverge
from planner.llama.evaluate.divergence import Divergence, join
from planner.llama.evaluate.statistics import block_starts, perplexity, statistics
from planner.llama.evaluate.trajectories import LENGTH, Alike, alike, together, trajectories
from planner.llama.loaded import BATCH
from planner.llama.text import read_text, window_length
from planner.report.evaluation import Evaluated, OnText, TextRead

__all__ = [
    "Domain",
    "Found",
    "How",
    "Source",
    "context_of",
    "evaluate_floor",
    "evaluate_quants",
    "fill_original",
    "open_domains",
]

_ROOM = 4  # times as much context for conversations, and for tasks


@dataclass(frozen=True, slots=True)
class Source:
    """A text, or a file of conversations."""

    path: Path
    chat: bool = False


@dataclass(frozen=True, slots=True)
class How:
    """How models are run. `tell` is told what somebody should know."""

    threads: int | None
    gpu_layers: int
    bar: Bar
    tell: Callable[[str], None]


@dataclass(frozen=True)
class Domain:
    """A text with what the original says of it: log-probabilities, which were `made` now or kept before, and its
    trajectories after some prompts."""

    label: str
    baseline: Baseline
    chat: bool = False
    prompts: Sequence[NDArray[np.int32]] = ()
    said: Sequence[Sequence[int]] = ()
    made: bool = False

    @property
    def facts(self) -> TextRead:
        """What is told of it."""
        baseline = self.baseline
        return TextRead(
            self.label, self.chat, baseline.context, baseline.windows, sum(baseline.predictions), len(self.prompts)
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What is found of a model, for every domain: a divergence, and trajectories if they were asked for."""

    divergences: list[Divergence] = field(default_factory=list)
    alike: list[Alike] = field(default_factory=list)


class _Original:
    """The original's engine, loaded when it is needed, and once."""

    def __init__(self, path: Path, how: How, stack: ExitStack) -> None:
        self._path, self._how, self._stack = path, how, stack
        self._engine: Engine | None = None

    def engine(self, context: int) -> AbstractContextManager[Engine]:
        if self._engine is None:
            made = Engine(self._path, context=context, threads=self._how.threads, gpu_layers=self._how.gpu_layers)
            self._engine = self._stack.enter_context(made)
        self._engine.resize(context)
        return contextlib.nullcontext(self._engine)


def context_of(original: Path, ctx: int | None) -> int:
    """Return the tokens of a window. Raises ModelError."""
    with open_model(original) as model:
        return ctx or window_length(model)


def open_domains(
    original: Path, sources: Sequence[Source], context: int, chunks: int | None, base_file: Path | None,
    prompts: int, how: How, stack: ExitStack,
) -> Iterator[Domain]:  # fmt: skip
    """Yield every text with what the original says of it, which is kept in a file, and used again: at `base_file`, or
    beside it. Files are closed with `stack`.

    `prompts` is how many trajectories to take of each; windows have `context` tokens, conversations four times as many.
    Raises UsageError, BaselineError, OutputError, and what `Engine` raises.
    """
    names = _labels(sources)
    with ExitStack() as loaded:
        engines = _Original(original, how, loaded)
        for source, label in zip(sources, names, strict=True):
            path = _kept_at(original, source, base_file, alone=len(sources) == 1)
            request = _request(original, source, context, chunks, how)
            with how.bar("tokens") as advance:
                told = functools.partial(advance, f"{original.name} {label}" if len(sources) > 1 else original.name)
                opened = functools.partial(_for_request, engines, request)
                baseline, made = obtain(request, path, opened, told)
            stack.enter_context(baseline)
            begun = baseline.prompts(prompts, LENGTH) if prompts else ()
            domain = Domain(label, baseline, source.chat, begun, made=made)
            yield _with_trajectories(domain, path, engines, how, original.name) if prompts else domain


def _for_request(engines: _Original, request: BaselineRequest, _path: Path) -> AbstractContextManager[Engine]:
    return engines.engine(request.context)


def _labels(sources: Sequence[Source]) -> list[str]:
    names = [source.path.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two texts are called {name}.", "In the table they need different names: rename one.")
    return names


def _kept_at(original: Path, source: Source, base_file: Path | None, *, alone: bool) -> Path:
    path = base_file or Path(f"{original.name.removesuffix('.gguf')}.kld")
    return path if alone and not source.chat else path.with_name(f"{path.stem}.{source.path.name}{path.suffix}")


def _request(original: Path, source: Source, context: int, chunks: int | None, how: How) -> BaselineRequest:
    if not source.chat:
        return BaselineRequest(original, read_text(source.path), context, chunks)
    text = reading.read_text(source.path, UsageError)
    with open_model(original) as model:
        room = _room(model, context)
    return ChatRequest(original, text, room, chunks, source.path, how.tell)


def _room(model: Model, context: int) -> int:
    return max(context, min(_ROOM * context, model.parameter("context_length") or _ROOM * context))


def _with_trajectories(domain: Domain, path: Path, engines: _Original, how: How, name: str) -> Domain:
    """Return the domain with the original's trajectories, as they were kept, or else made now. Raises UsageError where
    there is no room for one."""
    prompts = domain.prompts
    if not prompts:
        raise UsageError(
            f"{domain.label} has no prompt before {LENGTH} tokens within {domain.baseline.context:,}.",
            f"Give a longer {option('ctx')}, or no {option('trajectories')}.",
        )
    said = kept_trajectories(path, len(prompts))
    if said is None:
        with engines.engine(domain.baseline.context) as engine, how.bar("prompts") as advance:
            said = trajectories(engine, prompts, functools.partial(advance, f"{name} {domain.label}"))
        keep_trajectories(path, said)
    return replace(domain, said=said)


def evaluate_floor(original: Path, domains: Sequence[Domain], how: How) -> Evaluated:
    """Evaluate the original against itself, with other threads and batches: what remains is numerical noise, and the
    rounding of the log-probabilities that were kept."""
    threads = 2 if how.threads == 1 else max(1, (how.threads or 2) // 2)
    context = domains[0].baseline.context
    batch = max(1, min(BATCH, context) // 2)
    with Engine(
        original, context=context, threads=threads, gpu_layers=how.gpu_layers, windows_at_a_time=1, batch=batch
    ) as engine:
        result = Evaluated(None, "floor", again=True)
        _fill(result, domains, _find(domains, how.bar, engine, f"{original.name} again"))
        return result


def evaluate_quants(
    quants: Quants, chosen: Sequence[Quant], domains: Sequence[Domain], how: How
) -> Iterator[tuple[Quant, Found]]:
    """Evaluate files and recipes; fill in each one's result, and yield it with what was found. Raises what
    `Quants.each` raises."""
    work = functools.partial(_find, domains, how.bar)
    for quant, found in quants.each(
        chosen, work, context=domains[0].baseline.context, threads=how.threads, gpu_layers=how.gpu_layers, bar=how.bar
    ):
        _fill(quant.result, domains, found)
        yield quant, found


def fill_original(result: Evaluated, domains: Sequence[Domain]) -> None:
    """Fill in the original's perplexity, of every text and of all. Raises BaselineError for a damaged file."""
    likelihoods = [base_nll(domain.baseline) for domain in domains]
    for domain, nll in zip(domains, likelihoods, strict=True):
        result.texts[domain.label] = OnText(perplexity(nll, block_starts(domain.baseline.predictions)))
    result.ppl = perplexity(np.concatenate(likelihoods), block_starts(_every_window(domains)))


def _fill(result: Evaluated, domains: Sequence[Domain], found: Found) -> None:
    """Fill in a model's statistics, of every text and of all."""
    for domain, divergence in zip(domains, found.divergences, strict=True):
        own = statistics(divergence, domain.baseline.predictions)
        result.texts[domain.label] = OnText(own.ppl, own)
    for domain, same in zip(domains, found.alike, strict=False):
        result.texts[domain.label].alike = same
    result.statistics = statistics(join(found.divergences), _every_window(domains))
    result.ppl = result.statistics.ppl
    if found.alike:
        result.alike = together(found.alike)


def _every_window(domains: Sequence[Domain]) -> list[int]:
    return [count for domain in domains for count in domain.baseline.predictions]


def _find(domains: Sequence[Domain], bar: Bar, engine: Engine, name: str) -> Found:
    found = Found()
    for domain in domains:
        what = f"{name} {domain.label}" if len(domains) > 1 else name
        engine.resize(domain.baseline.context)
        with bar("tokens") as advance:
            found.divergences.append(diverge(engine, domain.baseline, functools.partial(advance, what)))
        if domain.prompts:
            with bar("prompts") as advance:
                told = functools.partial(advance, what)
                found.alike.append(alike(engine, domain.prompts, domain.said, told))
    return found
