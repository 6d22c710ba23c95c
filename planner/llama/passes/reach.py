"""How far noise in the residual stream reaches: the divergence that it makes of the predictions, by where it enters.

An error of a weight is noise that is added to the stream. What is lost by it depends on what later blocks make of it,
which weights and activations do not tell: models differ by a factor of ten in how much their first blocks matter. So a
model runs a few windows of a text as it is, and once more for some depths with an error in a weight that writes there.
The KL divergence over the noise's share of the stream's energy, token by token, is the reach at that depth, in nats;
between depths it is interpolated geometrically. Likewise for errors of embeddings and of what makes the logits, whose
noise is a share of their own energy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.errors import InferenceError
from planner.gguf import Model
from planner.gguf.entry import LOGITS_REACH, Reach
from planner.gguf.sums import Sums
from planner.llama.collect.activations import Floats, ids_of, rows_of
from planner.llama.collect.collector import LOGITS, Collector
from planner.llama.engine import Engine
from planner.llama.evaluate.baseline import record
from planner.llama.evaluate.compare import diverge
from planner.llama.fitness import runs_backwards
from planner.llama.graph import Node, Observer, origin
from planner.llama.loaded import GRAPH

__all__ = ["depths", "reach", "sound", "windows_for"]

Doubles = NDArray[np.float64]

REACH_CONTEXT = 256  # tokens of a window, of which the second half is scored
SHARE = 1 / 64  # of noise: divergences stay in proportion to it, and are well above what 16 bits leave of zero
_EMBEDDING = "token_embd.weight"
_LEAST = 1e-7  # nats
# Windows. Of one, what reach is at a depth beside others scatters by a fifth to a third, and for embeddings by more:
# the divergence is that of a few tokens
_FEWEST, _MOST = 4, 8
_PART = 2  # of the tokens that were read for the imatrix, one in so many is run again, all passes together
_MASSIVE = 30.0  # times the median energy: as of channels, in planner.measure.survey
_CHANNELS = 4096  # of what a weight reads, at a time
_WEIGHTS_AT_A_TIME = 1 << 22


class _Trial(Observer, Protocol):
    """An observer that adds noise. `shares`: how much of the stream's energy, or of its own, that was, by batch."""

    @property
    def shares(self) -> Sequence[float]: ...


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
        model.path, context=context, threads=threads, gpu_layers=gpu_layers, observer=_Finder(context), batch=GRAPH
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
    """Return about how many passes a model of so many blocks takes, each with two writes to the stream."""
    return len(depths(2 * blocks + 1)) + 2


def windows_for(windows: NDArray[np.int32], blocks: int) -> NDArray[np.int32]:
    """Return which windows to run, i32[n, REACH_CONTEXT or less], spread over those of a text, i32[m, context]."""
    context = min(REACH_CONTEXT, windows.shape[1])
    wanted = windows.size // (_PART * passes_for(blocks) * context)
    count = min(max(wanted, _FEWEST), _MOST, len(windows))
    return windows[np.linspace(0, len(windows), count, endpoint=False).astype(int), :context]


class _OfWeight:
    """An observer that gives a weight a random error: noise of the same energy in each of its numbers, `SHARE` of the
    energy of what it makes. `shares`: how much of the stream behind it that is, by batch.

    Errors of a weight are alike for tokens that are alike, and what they have in common is not averaged away by
    attention, as noise would be that is new for every token.
    """

    def __init__(self, weight: str, place: str, seed: int) -> None:
        self._weight, self._place, self._random = weight, place, np.random.default_rng(seed)
        self._added: Doubles = np.empty(0)  # energy of each token's noise
        self.shares: list[float] = []

    def wants(self, node: Node) -> bool:
        """Return whether the node multiplies the weight, or is the stream behind it."""
        return _is_product(node, (self._weight,)) or _is_stream(node, self._place)

    def see(self, node: Node) -> None:
        """Add noise to the product; in the stream, see how much that is."""
        if node.operation == "ADD":
            stream, added = _energies(rows_of(node.result)), self._added
            # those of the last block whose predictions are not asked for are gone
            added = added if len(added) == len(stream) else np.full_like(stream, added.mean())
            self.shares.append(float(np.mean(added[stream > 0] / stream[stream > 0])))
            return
        made = rows_of(node.result)
        noise = np.concatenate(
            [self._noise(some, made.shape[1]) for some in np.array_split(rows_of(node.sources[1]), 2)]
        )
        added = _energies(noise)
        # what a massive activation is worth is another matter, and its token would make all the others' divergence
        noise[added > _MASSIVE * np.median(added)] = 0.0
        noise *= np.sqrt(np.float32(SHARE * _median_ratio(_energies(made), _energies(noise))))
        _write(node, made + noise)
        self._added = _energies(noise)

    def _noise(self, read: Floats, width: int) -> Floats:
        """Return what an error makes of what the weight reads, f32[n, channels]: another one each time, as one of them
        says little."""
        noise = np.zeros((len(read), width), np.float32)
        for start in range(0, read.shape[1], _CHANNELS):
            part = read[:, start : start + _CHANNELS]
            noise += part @ self._random.standard_normal((part.shape[1], width), np.float32)
        return noise


class _Finder:
    """An observer that finds the places where weights write to the stream."""

    def __init__(self, context: int) -> None:
        self._collector = Collector(Sums(context))
        self._products: dict[str, int] = {}  # where they are, by weight
        self._sums: dict[str, set[int]] = {}  # what is added up, by the name of the sum

    @property
    def written(self) -> Mapping[str, str]:
        """The name of the place behind each weight."""
        return self._collector.places

    def wants(self, node: Node) -> bool:
        """Return whether the collector of sums wants the node."""
        if node.operation == "MUL_MAT":
            self._products[node.sources[0].name] = origin(node.result)
        elif node.operation == "ADD":
            parts = {origin(source) for source in node.sources[:2]}
            self._sums[node.name] = parts
            if node.sources[1].name.endswith(".bias"):  # what comes out of the product is as far off as before
                found = {name: origin(node.result) for name, where in self._products.items() if where in parts}
                self._products |= found
        return self._collector.wants(node)

    def see(self, node: Node) -> None:
        """Show it the node."""
        self._collector.see(node)

    def noise(self, place: str, seed: int) -> _OfWeight | _OfStream:
        """Return what adds noise at a place: by a matrix whose products are added up there, if there is one."""
        for name, where in self.written.items():
            if where == place and self._products.get(name) in self._sums[place]:
                return _OfWeight(name, place, seed)
        return _OfStream(place, seed)


class _OfEmbedding:
    """An observer that adds noise to the embeddings of tokens, the same for the same token: `SHARE` of their energy."""

    shares = (SHARE,)

    def wants(self, node: Node) -> bool:
        """Return whether the node looks embeddings up."""
        return node.operation == "GET_ROWS" and node.sources[0].name == _EMBEDDING

    def see(self, node: Node) -> None:
        """Add noise to the result."""
        made = rows_of(node.result)
        tokens, which = np.unique(ids_of(node.sources[1]), return_inverse=True)
        noise = np.random.default_rng(0).standard_normal((len(tokens), made.shape[1]), np.float32)
        _add_share(node, made, noise[which.reshape(-1)])


class _OfLogits:
    """An observer that adds noise to the logits of each word by the norm of its row, f32[words]: `SHARE` of their
    energy."""

    shares = (SHARE,)

    def __init__(self, norms: Floats) -> None:
        self._norms, self._random = norms, np.random.default_rng(0)

    def wants(self, node: Node) -> bool:
        """Return whether the node makes the logits."""
        return _is_product(node, LOGITS)

    def see(self, node: Node) -> None:
        """Add noise to the result."""
        made = rows_of(node.result)
        _add_share(node, made, self._random.standard_normal(made.shape, np.float32) * self._norms)


class _OfStream:
    """An observer that adds noise to the stream itself, the same energy for every token: `SHARE` of their harmonic
    mean. For what experts write, who each have errors of their own, and what a norm scales before it is added."""

    shares = (SHARE,)

    def __init__(self, place: str, seed: int) -> None:
        self._place, self._random = place, np.random.default_rng(seed)

    def wants(self, node: Node) -> bool:
        """Return whether the node is the place."""
        return _is_stream(node, self._place)

    def see(self, node: Node) -> None:
        """Add noise to the result."""
        stream = rows_of(node.result)
        energies = _energies(stream)
        some = energies[energies > 0]
        if len(some):
            scale = np.sqrt(SHARE * len(some) / (1 / some).sum() / stream.shape[1])
            _write(node, stream + np.float32(scale) * self._random.standard_normal(stream.shape, np.float32))


def _is_product(node: Node, weights: tuple[str, ...]) -> bool:
    return node.operation == "MUL_MAT" and node.sources[0].name in weights


def _is_stream(node: Node, place: str) -> bool:
    return node.operation == "ADD" and node.name == place


def _energies(rows: Floats) -> Doubles:
    return np.asarray(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


def _median_ratio(first: Doubles, second: Doubles) -> float:
    some = (first > 0) & (second > 0)
    return float(np.median(first[some] / second[some])) if some.any() else 0.0


def _add_share(node: Node, made: Floats, noise: Floats) -> None:
    """Add noise to rows f32[n, channels], of the same distribution in each: `SHARE` of a row's energy."""
    scale = np.sqrt(SHARE * _energies(made) / np.square(noise).sum(axis=1, dtype=np.float64).mean())
    _write(node, made + scale[:, None].astype(np.float32) * noise)


def _write(node: Node, rows: Floats) -> None:
    node.result.write(np.ascontiguousarray(rows, np.float32).view(np.uint8).reshape(-1))


def _norms(model: Model) -> Floats:
    """Return the norms of the rows that make the logits, f32[words], relative to their mean square."""
    tensor = model[next(name for name in LOGITS if name in model.by_name)]
    squares = [
        np.square(model.rows(tensor, start, end)).sum(axis=1) for _, start, end in tensor.slices(_WEIGHTS_AT_A_TIME)
    ]
    norms = np.sqrt(np.concatenate(squares))
    return np.asarray(norms / np.sqrt(np.mean(np.square(norms))))


def reach(
    engine: Engine, model: Model, windows: NDArray[np.int32], found: dict[str, Reach]
) -> Iterator[tuple[int, int]]:
    """Measure how far noise reaches from behind each weight that writes to the stream, from embeddings, and in logits,
    on windows of tokens i32[n, context], and put it into `found` by the weight's name (`LOGITS_REACH` for logits).

    The engine has to have an observer, and gets others. Yields how many passes are done, of how many. Raises
    InferenceError for predictions that are not numbers.
    """
    engine.observer = finder = _Finder(windows.shape[1])
    for _ in engine.read(windows[:1]):
        pass
    written = finder.written
    places = list(dict.fromkeys(written.values()))
    if not places or not any(name in model.by_name for name in LOGITS):
        return
    chosen = depths(len(places) + 1)
    trials: list[_Trial] = [_OfLogits(_norms(model)), _OfEmbedding()]
    trials += [finder.noise(places[at - 1], at) for at in chosen[1:]]
    engine.observer = None
    with record(engine, windows) as base:
        yield 1, len(trials) + 1
        nats: list[float] = []
        for trial in trials:
            engine.observer = trial
            kld = float(np.mean(diverge(engine, base).kld, dtype=np.float64))
            share = float(np.mean(trial.shares)) if trial.shares else 0.0
            if not np.isfinite(kld) or not 0 < share < np.inf:
                raise InferenceError(f"{engine.path}: with noise, its predictions are not numbers.", "")
            nats.append(max(kld, _LEAST) / share)
            yield 1 + len(nats), len(trials) + 1
    logits, *at_depths = nats
    every = np.exp(np.interp(np.arange(len(places) + 1), chosen, np.log(at_depths)))
    tokens = windows.size
    found[LOGITS_REACH] = Reach(logits, tokens)
    found[_EMBEDDING] = Reach(float(every[0]), tokens)
    found.update((name, Reach(float(every[1 + places.index(place)]), tokens)) for name, place in written.items())
