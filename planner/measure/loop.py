"""The parallel loop: measure tensor by tensor, results yielded as they come.

Nothing that is computed here depends on how many work at it, or on who comes first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml import Format, has_tables, prepare_tables, tables_ready
from planner.gguf import Model, Tensor
from planner.measure.metric import Estimate, Spread, Tally, corrected, estimate, row_errors
from planner.measure.sampling import first_draws, stages
from planner.measure.survey import Survey
from planner.work import Crew, Stop, Stopped

__all__ = ["Job", "Measured", "Settings", "measure_jobs"]

_KERNEL_WEIGHTS = 1 << 17  # weights handed to a kernel at once: a tenth of a second of the slowest


@dataclass(frozen=True)
class Settings:
    """Settings that a measurement depends on besides model, imatrix and kernels.

    `tolerance`: sampling ends when each standard error is below this share of the error.
    """

    seed: int = 0
    tolerance: float = 0.05


@dataclass(frozen=True)
class Job:
    """A tensor to measure in some formats."""

    survey: Survey
    formats: tuple[Format, ...]


@dataclass(frozen=True)
class Measured:
    """The result of a job: an estimate for each format, or the reason why there is none (`unusable`)."""

    tensor: Tensor
    estimates: dict[str, Estimate]
    seconds: dict[str, float]
    rows: dict[str, int]
    unusable: dict[str, str]


@dataclass(frozen=True)
class _Measuring:
    """What each who measures tensors of a model does; `tables` are formats of some of them that need lookup tables."""

    model: Model
    settings: Settings
    tables: tuple[Format, ...]

    def __call__(self, job: Job, stop: Stop) -> Measured:
        _start_tables(self.tables)
        return measure_job(self.model, job, self.settings, stop)


def measure_jobs(model: Model, jobs: Iterable[Job], settings: Settings, crew: Crew) -> Iterator[Measured]:
    """Measure tensors in formats; yields one result per job and kind of kernel (with and without lookup tables).

    Kernels with tables come last, while a thread of its own builds them.
    """
    jobs = list(jobs)
    quick = [_restricted(job, tables=False) for job in jobs]
    slow = [_restricted(job, tables=True) for job in jobs]
    tables = tuple({fmt.name: fmt for job in slow for fmt in job.formats}.values())
    todo = [job for job in quick + slow if job.formats]
    for _, found in crew.unordered(_Measuring(model, settings, tables), todo):
        yield found


_started: set[Format] = set()  # formats whose tables this process has built, or has begun to
_starting = threading.Lock()


def _start_tables(wanted: tuple[Format, ...]) -> None:
    """Have the formats' tables built by a thread of its own, once in this process."""
    with _starting:
        new = tuple(fmt for fmt in wanted if fmt not in _started)
        _started.update(new)
    if new:
        threading.Thread(target=prepare_tables, args=(new,), daemon=True, name="ggml tables").start()


def measure_job(model: Model, job: Job, settings: Settings, stop: Stop = lambda: False) -> Measured:
    """Measure one tensor in the job's formats, on the same rows, each until it is within the tolerance."""
    try:
        return _measured(model, job, settings, stop)
    finally:
        if job.survey.moments.pairs is not None:
            job.survey.moments.pairs.release()


def _measured(model: Model, job: Job, settings: Settings, stop: Stop) -> Measured:
    survey, tensor = job.survey, job.survey.tensor
    usage = survey.moments.usage[:, None]
    expected = (usage * survey.expected_error).reshape(-1, tensor.rows)
    massive = (usage * survey.expected_massive_error).reshape(-1)
    names = [fmt.name for fmt in job.formats]
    result = Measured(tensor, {}, dict.fromkeys(names, 0.0), dict.fromkeys(names, 0), {})
    tallies = {fmt: Tally(survey.energy, survey.energy_massive) for fmt in job.formats}
    spreads: dict[Format, tuple[Spread, Spread]] = {}
    left = job.formats
    first = first_draws(tensor.rows, len(job.formats))
    for stage in stages(expected, massive, settings.seed, tensor.name, first):
        errors = _errors_of_rows(model, survey, left, stage.fresh, result.seconds, stop)
        for fmt in left:
            result.rows[fmt.name] += len(stage.fresh)
            if not np.isfinite(errors[fmt]).all():
                result.unusable[fmt.name] = f"{fmt.name} turns weights of {tensor.name} into NaN or Inf"
                result.estimates.pop(fmt.name, None)
                spreads.pop(fmt, None)
            else:
                tallies[fmt].add(stage.fresh, errors[fmt])
        left = tuple(fmt for fmt in left if fmt.name not in result.unusable)
        if stage.exhaustive:
            result.estimates.update((fmt.name, tallies[fmt].exact()) for fmt in left)
            return result
        draws = {fmt: corrected(tallies[fmt].draws(stage.rows, stage.weights), stage.known) for fmt in left}
        free = len(stage.rows) - len(stage.known)
        for fmt, (var, mean, heavy) in draws.items():
            spreads[fmt] = Spread.of(var + mean, free), Spread.of(heavy, free)
        for fmt in left:
            others = [both for other, both in spreads.items() if other != fmt]
            result.estimates[fmt.name] = estimate(draws[fmt], [spreads[fmt], *others], free, stage.share)
        left = tuple(fmt for fmt in left if not _precise(result.estimates[fmt.name], settings.tolerance))
        if not left:
            return result
    raise AssertionError("stages end with an exhaustive one")


def _precise(estimate: Estimate, tolerance: float) -> bool:
    return (
        estimate.stderr <= tolerance * estimate.error.total
        # A massive channel matters as a whole or not at all: half the precision is plenty
        and estimate.stderr_massive <= 2 * tolerance * max(estimate.error.massive, estimate.error.total)
    )


def _errors_of_rows(
    model: Model,
    survey: Survey,
    fmts: Sequence[Format],
    rows: NDArray[np.int64],
    seconds: dict[str, float],
    stop: Stop,
) -> dict[Format, NDArray[np.float64]]:
    """Return the errors of rows, int64 [k], in each format, float64 [3, k], weighted by what they are worth; adds to
    `seconds`."""
    errors = {fmt: np.zeros((3, len(rows))) for fmt in fmts}
    for matrix, where in _chunks(survey.tensor, rows):
        weights = model.chosen_rows(survey.tensor, rows[where])
        for fmt in fmts:
            while not tables_ready(fmt):
                _check(stop)
                time.sleep(0.02)
            _check(stop)
            began = time.thread_time()
            errors[fmt][:, where] = survey.worth(matrix, rows[where]) * row_errors(survey, fmt, matrix, weights)
            seconds[fmt.name] += time.thread_time() - began
    return errors


def _check(stop: Stop) -> None:
    if stop():
        raise Stopped


def _chunks(tensor: Tensor, rows: NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
    """Yield slices of `rows` (ascending) of a bounded number of weights, none across matrices: (matrix, slice)."""
    step = max(1, _KERNEL_WEIGHTS // tensor.row_length)
    matrices = rows // tensor.rows_per_matrix
    for matrix in np.unique(matrices).tolist():
        first, last = np.searchsorted(matrices, [matrix, matrix + 1]).tolist()
        for start in range(first, last, step):
            yield matrix, slice(start, min(start + step, last))


def _restricted(job: Job, *, tables: bool) -> Job:
    return Job(job.survey, tuple(fmt for fmt in job.formats if has_tables(fmt) is tables))
