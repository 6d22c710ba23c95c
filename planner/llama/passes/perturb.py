"""Weights of a loaded model, changed in the engine's memory and put back.

A tensor is changed by what a format does to it: its rows are read from the file, quantized as `planner quantize` would,
dequantized, and written over the engine's in the type that they are stored in. To put it back its rows are copied from
the file once more, and compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import InferenceError, UsageError, option
from planner.formats.ggml import Format, formats, quantize_rows
from planner.gguf import Imatrix, Model
from planner.gguf import Tensor as FileTensor
from planner.gguf.refinement import Refinement
from planner.llama.engine import Engine
from planner.llama.graph import Node, Tensor
from planner.measure import Survey, moments, survey_tensor
from planner.measure.metric import errors_of, relative, rounded
from planner.names.gguf import has_massive_channels
from planner.sensitivity import ErrorParts

__all__ = ["Perturber", "open_perturber"]

_WEIGHTS_AT_A_TIME = 1 << 20  # in each thread: 4 MiB of float32, a few times over


class Perturber:
    """The weights of one engine. Made by `open_perturber`."""

    def __init__(
        self, engine: Engine, weights: Mapping[str, Sequence[Tensor]], model: Model, imatrix: Imatrix | None,
        refinement: Refinement | None,
    ) -> None:  # fmt: skip
        self.engine, self.weights = engine, weights
        self._model, self._imatrix, self._refinement = model, imatrix, refinement
        self._surveys: dict[str, Survey] = {}
        self._changed: set[str] = set()

    def change(self, changes: Mapping[str, Format]) -> dict[str, ErrorParts]:
        """Put each of these tensors through its format, in memory; return its relative error over all its rows. Tensors
        changed before and not named stay changed."""
        return {name: self._change(self._model[name], fmt) for name, fmt in changes.items()}

    def restore(self, names: Sequence[str] | None = None) -> None:
        """Put back everything that was changed, or only `names`. Raises InferenceError if memory does not then hold
        what the file holds, bit for bit."""
        for name in sorted(self._changed) if names is None else names:
            tensor = self._model[name]
            for _, start, stop in tensor.slices(_WEIGHTS_AT_A_TIME):
                raw = np.ascontiguousarray(self._model.raw_rows(tensor, start, stop))
                for weight in self.weights[name]:
                    weight.write(raw.reshape(-1), start * raw.shape[1])
                self._model.release(tensor, start, stop)
            self.check(name)
            self._changed.discard(name)

    def check(self, name: str) -> None:
        """Raise InferenceError unless the engine holds what the file holds."""
        tensor = self._model[name]
        for weight in self.weights[name]:
            held = weight.read()
            for _, start, stop in tensor.slices(_WEIGHTS_AT_A_TIME):
                raw = self._model.raw_rows(tensor, start, stop)
                here = held[start * raw.shape[1] : stop * raw.shape[1]]
                if not np.array_equal(here, raw.reshape(-1)):
                    raise InferenceError(
                        f"{name} in llama.cpp's memory is not what {self._model.path} holds.",
                        f"Sensitivities cannot be measured on this backend: try {option('gpu_layers', 0)}.",
                    )
                self._model.release(tensor, start, stop)

    def _change(self, tensor: FileTensor, fmt: Format) -> ErrorParts:
        self._changed.add(tensor.name)
        survey = self._survey(tensor)
        stored = formats()[tensor.format]

        def one(part: tuple[int, int, int]) -> NDArray[np.float64]:
            matrix, start, stop = part
            rows = self._model.rows(tensor, start, stop)
            back = rounded(survey, fmt, matrix, rows)
            raw = quantize_rows(stored, back, None)
            for weight in self.weights[tensor.name]:
                weight.write(raw.reshape(-1), start * raw.shape[1])
            usage = float(survey.moments.usage[matrix])
            errors = errors_of(survey, matrix, back.astype(np.float64) - rows)
            return np.asarray(usage * errors.sum(axis=1), np.float64)

        sums = np.sum(self.engine.workers.map(one, tensor.slices(_WEIGHTS_AT_A_TIME)), axis=0)
        if survey.moments.pairs is not None:
            survey.moments.pairs.release()
        var, mean, massive = sums.tolist()
        bulk, heavy = survey.energy, survey.energy_massive
        return ErrorParts(relative(var, bulk), relative(mean, bulk), relative(massive, heavy))

    def _survey(self, tensor: FileTensor) -> Survey:
        if tensor.name not in self._surveys:
            heavy = has_massive_channels(tensor.name)
            known = moments(tensor, self._imatrix, self._refinement)
            found = survey_tensor(self._model, tensor, known, find_massive=heavy)
            self._surveys[tensor.name] = found.slim()
        return self._surveys[tensor.name]


@contextlib.contextmanager
def open_perturber(
    path: Path, model: Model, imatrix: Imatrix | None, *, refinement: Refinement | None = None, context: int,
    threads: int | None, gpu_layers: int,
) -> Iterator[Perturber]:  # fmt: skip
    """Load a model so that its weights can be changed; on exit, even after an error, all are put back first. With a
    `refinement`, codes are refined.

    Quantized tensors cannot be changed. Raises UsageError for a model that has no others, InferenceError if llama.cpp
    keeps weights out of reach.
    """
    found: dict[str, dict[int, Tensor]] = {}

    class Finder:
        def wants(self, node: Node) -> bool:
            for tensor in node.sources:
                if tensor.name in model.by_name and not tensor.copied:
                    found.setdefault(tensor.name, {})[tensor.address] = tensor
            return False

        def see(self, node: Node) -> None:
            raise AssertionError("nothing was wanted")

    with Engine(
        path, context=context, threads=threads, gpu_layers=gpu_layers, observer=Finder(), writable=True
    ) as engine:
        for _ in engine.windows(np.zeros((1, context), np.int32), first=context - 1):
            pass
        engine.observer = None
        weights = {name: list(each.values()) for name, each in found.items() if _as_stored(model[name], each.values())}
        quantized = [name for name in found if formats()[model[name].format].quantized]
        if quantized and not any(model[name].rows > 1 for name in weights):
            raise UsageError(
                f"{quantized[0]} is {model[quantized[0]].format}, quantized already.",
                "Sensitivities are measured on the original: give the F16, BF16 or F32 model.",
            )
        result = Perturber(engine, weights, model, imatrix, refinement)
        for name in weights:
            result.check(name)
        try:
            yield result
        finally:
            result.restore()


def _as_stored(tensor: FileTensor, held: Collection[Tensor]) -> bool:
    """Return whether the engine's tensors are the file's, in an unquantized type."""
    stored = formats()[tensor.format]
    return not stored.quantized and all(weight.nbytes == tensor.nbytes and weight.type == stored.id for weight in held)
