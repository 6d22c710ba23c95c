"""How far noise in the residual stream reaches: the divergence that it makes of the predictions, by where it enters.

An error of a weight is noise that is added to the stream. What is lost by it depends on what later blocks make of it,
which weights and activations do not tell: models differ by a factor of ten in how much their first blocks matter. So a
model runs a few windows of a text as it is, and once more for some depths with an error in a weight that writes there.
The KL divergence over the noise's share of the stream's energy, token by token, is the reach at that depth, in nats;
between depths it is interpolated geometrically. Likewise for errors of embeddings and of what makes the logits, whose
noise is a share of their own energy.

What becomes of an error inside of a block, in queries or gates, until it is added to the stream, the model shows
without predictions, in all blocks of one pass (`twins`). Times the reach there, that is the divergence over the error,
as a share of the energy of what the weight makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.errors import InferenceError
from planner.gguf import Model
from planner.gguf.reach import LOGITS_REACH, Reach
from planner.llama.collect.activations import Floats
from planner.llama.collect.collector import LOGITS
from planner.llama.engine import Engine
from planner.llama.evaluate.baseline import record
from planner.llama.evaluate.compare import diverge
from planner.llama.fitness import runs_backwards
from planner.llama.loaded import GRAPH
from planner.llama.passes.noise import EMBEDDING, OfEmbedding, OfLogits, OfStream, OfWeight, Trial
from planner.llama.passes.paths import Finder, Path
from planner.llama.passes.twins import INNER_SHARE, OfTwins
from planner.measure.anatomy import read_anatomy

__all__ = ["depths", "reach", "sound", "windows_for"]

REACH_CONTEXT = 256  # tokens of a window, of which the second half is scored
_LEAST = 1e-7  # nats
# Windows. Of one, what reach is at a depth beside others scatters by a fifth to a third, and for embeddings by more:
# the divergence is that of a few tokens
_FEWEST, _MOST = 4, 8
_PART = 2  # of the tokens that were read for the imatrix, one in so many is run again, all passes together
_WEIGHTS_AT_A_TIME = 1 << 22


def sound(
    model: Model, windows: NDArray[np.int32], found: dict[str, Reach], *, threads: int | None, gpu_layers: int
) -> Iterator[tuple[int, int]]:
    """Find out how far noise reaches in a model, on a part of the windows of a text, i32[n, context], as `reach` does.

    As many windows are run at a time as fit one graph of llama.cpp's: an observer then sees all tokens of a window at
    once, which have the same error of a weight, and some of them are scored.

    Nothing is found of a model that predicts nothing, or whose stream is not recognized. Raises InferenceError and
    ModelError.
    """
    if runs_backwards(model):
        return
    some = windows_for(windows, model.parameter("block_count") or 1)
    context = some.shape[1]
    with Engine(
        model.path, context=context, threads=threads, gpu_layers=gpu_layers, observer=Finder(context), batch=GRAPH
    ) as engine:
        yield from reach(engine, model, some, found)


def depths(count: int) -> list[int]:
    """Return at which of some places along the stream noise is added: closer at both ends, where reach changes most.

    >>> depths(57)
    [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 55, 56]
    """
    powers = [size for bit in range(count.bit_length()) for size in (1 << bit, 3 << bit)]
    return sorted({place for place in (0, *powers, count - 2, count - 1) if 0 <= place < count})


def passes_for(blocks: int) -> int:
    """Return about how many passes a model of so many blocks takes, each with two writes to the stream and at most
    three weights before each, for which all is run twice, in two parts."""
    return len(depths(2 * blocks + 1)) + 2 + 3 * 2 * 2


def windows_for(windows: NDArray[np.int32], blocks: int) -> NDArray[np.int32]:
    """Return which windows to run, i32[n, REACH_CONTEXT or less], spread over those of a text, i32[m, context]."""
    context = min(REACH_CONTEXT, windows.shape[1])
    wanted = windows.size // (_PART * passes_for(blocks) * context)
    count = min(max(wanted, _FEWEST), _MOST, len(windows))
    return windows[np.linspace(0, len(windows), count, endpoint=False).astype(int), :context]


def _row_norms(model: Model, name: str) -> Floats:
    """Return the norms of a weight's rows, f32[rows], relative to their mean square."""
    tensor = model[name]
    squares = [
        np.square(model.rows(tensor, start, end)).sum(axis=1) for _, start, end in tensor.slices(_WEIGHTS_AT_A_TIME)
    ]
    norms = np.sqrt(np.concatenate(squares))
    return np.asarray(norms / np.sqrt(np.mean(np.square(norms))))


def _trials(model: Model, predicting: str, places: Mapping[int, Sequence[Path]]) -> Iterator[Trial]:
    """Yield what adds noise to the logits, which `predicting` makes, to embeddings, and at places along the stream; a
    weight is read when its turn comes."""
    yield OfLogits(_row_norms(model, predicting))
    yield OfEmbedding()
    for at, here in places.items():
        yield _at_place(model, here, at)


def _at_place(model: Model, here: Sequence[Path], seed: int) -> Trial:
    """Return what adds noise where these paths end: by a matrix whose products are added up there, if there is one."""
    for path in here:
        if path.added:
            return OfWeight(path, _row_norms(model, path.weight), seed)
    return OfStream(here[0], seed)


def reach(
    engine: Engine, model: Model, windows: NDArray[np.int32], found: dict[str, Reach]
) -> Iterator[tuple[int, int]]:
    """Measure how far noise reaches from behind each weight that writes to the stream, from embeddings, and in logits,
    on windows of tokens i32[n, context], and put it into `found` by the weight's name (`LOGITS_REACH` for logits); of
    other weights of blocks, what a relative error costs.

    The engine has to have an observer, and gets others. Yields how many passes are done, of how many. Raises
    InferenceError for predictions that are not numbers.
    """
    engine.observer = finder = Finder(windows.shape[1])
    for _ in engine.read(windows[:1]):
        pass
    paths = finder.paths(model, read_anatomy(model))
    places = list(dict.fromkeys(path.place for path in paths.values()))
    predicting = next((name for name in LOGITS if name in model.by_name), None)
    if not places or predicting is None:
        return
    chosen = depths(len(places) + 1)
    ends = {at: [path for path in paths.values() if path.place == places[at - 1]] for at in chosen[1:]}
    inner = finder.inner(model) if engine.windows_at_a_time > 1 else []
    done, count = 1, 1 + 2 + len(ends) + 2 * len(inner)
    engine.observer = None
    with record(engine, windows) as base:
        yield done, count
        nats: list[float] = []
        for trial in _trials(model, predicting, ends):
            engine.observer = trial
            kld = float(np.mean(diverge(engine, base).kld, dtype=np.float64))
            share = float(np.mean(trial.shares)) if trial.shares else 0.0
            if not np.isfinite(kld) or not 0 < share < np.inf:
                raise InferenceError(f"{engine.path}: with noise, its predictions are not numbers.", "")
            nats.append(max(kld, _LEAST) / share)
            yield (done := done + 1), count
    logits, *at_depths = nats
    every = np.exp(np.interp(np.arange(len(places) + 1), chosen, np.log(at_depths)))
    tokens = windows.size
    found[LOGITS_REACH] = Reach(logits, tokens)
    found[EMBEDDING] = Reach(float(every[0]), tokens)
    behind = dict(zip(places, every[1:].tolist(), strict=True))
    for name, path in paths.items():
        own = None if path.is_plain else path.channels.astype(np.float32)
        found[name] = Reach(behind[path.place], tokens, own)
    worth = {path.place: path.worth for path in paths.values()}
    for names in inner:
        rows, costs = {name: _row_norms(model, name) for name in names}, []
        for steady in (False, True):
            costs.append(_costs(engine, windows, rows, worth, behind, steady=steady))
            yield (done := done + 1), count
        varying, mean = costs
        found.update((name, Reach(cost, tokens, steady=mean.get(name, 0.0))) for name, cost in varying.items())


def _costs(
    engine: Engine,
    windows: NDArray[np.int32],
    rows: Mapping[str, Floats],
    worth: Mapping[str, NDArray[np.float64]],
    behind: Mapping[str, float],
    *,
    steady: bool,
) -> dict[str, float]:
    """Return what a relative error of weights costs, in nats, by the reach `behind` each place; of those whose error is
    seen beside windows and their twins."""
    size = min(engine.windows_at_a_time // 2, len(windows))
    engine.observer = twins = OfTwins(rows, worth, 2 * size * windows.shape[1], steady=steady)
    for start in range(0, len(windows) - size + 1, size):
        some = windows[start : start + size]
        for _ in engine.read(np.concatenate([some, some])):
            pass
    costs: dict[str, float] = {}
    for (name, place), shares in twins.shares.items():
        costs[name] = costs.get(name, 0.0) + behind[place] * float(np.mean(shares)) / INNER_SHARE
    return {name: cost for name, cost in costs.items() if 0 < cost < np.inf}
