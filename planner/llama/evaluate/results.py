"""Results of comparisons, kept in a file: what was evaluated once is not evaluated again.

A comparison is of one original on one text; it has a key of all that its results depend on, and so has every result.
The file may hold several. It is read anew before it is written, so that what another run has added stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from planner.errors import OutputError, option
from planner.files import write_atomically
from planner.inputs.reading import read_text
from planner.llama.evaluate.baseline import Baseline
from planner.llama.evaluate.divergence import Divergence
from planner.llama.evaluate.statistics import Estimate, Statistics, statistics

__all__ = ["Compared", "Comparison", "Original", "add_result", "every_comparison", "kept_comparison", "result_of"]

_VERSION = 2  # 1 had no divergence by confidence, and errors between tokens


@dataclass(frozen=True, slots=True)
class Original:
    """What is compared with. `bytes` and `bpw` are None where only its log-probabilities are there."""

    name: str
    bytes: int | None
    bpw: float | None
    ppl: Estimate


@dataclass(frozen=True, slots=True)
class Compared:
    """One result, of the file or recipe `name`; `key` is of all that it depends on besides the comparison.

    `in_memory` and `exact_activations` are as in `Evaluated`. `klds` are the mean divergences (nats) of every window of
    the text: by them two results are compared in pairs.
    """

    name: str
    key: str
    bytes: int
    bpw: float
    in_memory: bool
    exact_activations: bool
    statistics: Statistics
    klds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Results of quantized models against their original, on `windows` windows of `context` tokens, by their names."""

    original: Original
    context: int
    windows: int
    results: Mapping[str, Compared] = field(default_factory=dict)

    def by_size(self) -> list[Compared]:
        """Return the results, the smallest file first."""
        return sorted(
            self.results.values(), key=lambda result: (result.bytes, result.statistics.kld.value, result.name)
        )


@dataclass(frozen=True, slots=True)
class _File:
    __pydantic_config__ = ConfigDict(extra="forbid", strict=False)

    compare_version: int
    comparisons: dict[str, Comparison]


def result_of(
    name: str, key: str, size: tuple[int, float], divergence: Divergence, baseline: Baseline, *, in_memory: bool,
    exact_activations: bool,
) -> Compared:  # fmt: skip
    """Sum up a divergence; `size` is of bytes and bits per weight."""
    windows = baseline.predictions
    klds = [float(part.mean()) for part in np.split(divergence.kld.astype(np.float64), np.cumsum(windows)[:-1])]
    return Compared(name, key, *size, in_memory, exact_activations, statistics(divergence, windows), tuple(klds))


def kept_comparison(path: Path, key: str) -> Comparison | None:
    """Return a comparison that a file of results holds; None where it does not, or where there is no file.

    Raises OutputError for a file that is something else, or of a later version.
    """
    return _read(path).comparisons.get(key)


def every_comparison(path: Path) -> list[Comparison]:
    """Return all comparisons of a file of results. Raises OutputError for a file that is none, or is not there."""
    if not path.exists():
        raise OutputError(f"There are no results in {path}.", "Make some: `planner compare`.")
    return list(_read(path).comparisons.values())


def add_result(
    path: Path, key: str, comparison: Comparison, result: Compared, renamed: str | None = None
) -> Comparison:
    """Keep a result in a file, in place of one of the same name, or of the one that was `renamed`; return the
    comparison as it now is. Raises OutputError."""
    file = _read(path)
    known = file.comparisons.get(key, comparison)
    others = {name: each for name, each in known.results.items() if name != renamed}
    grown = replace(comparison, results={**others, result.name: result})
    facts = asdict(replace(file, comparisons={**file.comparisons, key: grown}))
    write_atomically(path, (json.dumps(_without_infinity(facts), indent=1) + "\n").encode())
    return grown


def _read(path: Path) -> _File:
    if not path.exists():
        return _File(_VERSION, {})
    try:
        facts = json.loads(read_text(path, OutputError))
        if isinstance(facts, dict) and facts.get("compare_version", _VERSION) != _VERSION:
            raise OutputError(f"{path} is of another version of planner.", _another())
        found = TypeAdapter(_File).validate_python(_with_infinity(facts))
    except (ValueError, ValidationError, RecursionError) as problem:
        raise OutputError(f"{path} is no file of results, and is not written over.", _another()) from problem
    return found


def _another() -> str:
    return f"Name another with {option('results')}."


def _without_infinity(value: Any) -> Any:
    """JSON has no infinity: null stands for it."""
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_infinity(value: Any, name: str = "") -> Any:
    """Undo that, where null does not stand for a size that is not known."""
    if isinstance(value, dict):
        return {key: _with_infinity(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_infinity(item) for item in value]
    return math.inf if value is None and name not in ("bytes", "bpw") else value
