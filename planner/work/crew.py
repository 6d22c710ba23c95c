"""Who does the work: a crew takes a function and its arguments, one after another, and hands back results.

What it computes depends neither on how many there are in it nor on who comes first. Threads, not processes: the kernels
are C and leave the GIL alone, and their tables are built once a process.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self, TypeVar

__all__ = ["Crew", "Handed", "Stop", "Stopped", "Threads"]

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Stop = Callable[[], bool]  # whether nobody waits for the result any more


class Stopped(Exception):
    """Raised in a cancelled worker, whose result nobody waits for."""


class Handed(Protocol[R_co]):
    """Work that was handed over."""

    def result(self) -> R_co:
        """Wait for the result; raises what the work raised."""


class Crew(Protocol):
    """Those who do the work.

    `least` is how many weights are worth handing over at once, `window` how much may be handed over while a result is
    waited for: enough for all to be busy, and so little that results do not pile up. What the work raises is raised
    where its result is taken; ClusterError says that other machines cannot be used.
    """

    @property
    def least(self) -> int:
        """Weights that are worth handing over at once."""

    @property
    def window(self) -> int:
        """How many pieces of work may be handed over at a time."""

    def unordered(self, work: Callable[[T, Stop], R], items: Sequence[T]) -> Iterator[tuple[T, R]]:
        """Yield each item with what `work` makes of it, as they come. When the consumer stops, or is interrupted, all
        who are at work stop soon."""

    def submit(self, work: Callable[[T, Stop], R], item: T, *, near: bool = False) -> Handed[R]:
        """Hand over a piece of work; one that is `near` is done on this machine, as only reading is to be done."""


class Threads:
    """Threads of this process; a context manager that ends with those who are at work told to stop."""

    least = 1

    def __init__(self, count: int | None = None) -> None:
        self.count = count or _cores()
        self.window = 4 * self.count
        self._pool: ThreadPoolExecutor | None = None
        self._over = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._pool is not None:
            # Do not wait: an interruption must not take as long as what is in flight
            self._pool.shutdown(wait=False, cancel_futures=True)

    def unordered(self, work: Callable[[T, Stop], R], items: Sequence[T]) -> Iterator[tuple[T, R]]:
        """As in `Crew`."""
        from joblib import Parallel, delayed  # which not all who hand over work need, and takes a while to load

        stop = threading.Event()
        results = Parallel(n_jobs=self.count, prefer="threads", return_as="generator_unordered")(
            delayed(_paired)(work, item, stop.is_set) for item in items
        )
        try:
            # Not `yield from`: closing us would close joblib's generator before `stop` is set
            for result in results:  # noqa: UP028
                yield result
        finally:
            stop.set()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # joblib's of results that nobody took: they are meant to be lost
                results.close()

    def submit(self, work: Callable[[T, Stop], R], item: T, *, near: bool = False) -> Handed[R]:
        """As in `Crew`; all is near."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, "work")
        return self._pool.submit(work, item, self._over.is_set)


def _paired(work: Callable[[T, Stop], R], item: T, stop: Stop) -> tuple[T, R]:
    return item, work(item, stop)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
