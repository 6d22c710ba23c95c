"""A thread pool that is idle before llama.cpp's memory, on which it works, is freed or restored."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from planner.closing import Closing

__all__ = ["Workers"]

T = TypeVar("T")
R = TypeVar("R")


class Workers(Closing):
    """A pool of `count` threads, started at once; a context manager that ends when they have ended.

    ThreadPoolExecutor starts a thread with its first piece of work, and one whose start a Ctrl-C interrupts is at work
    without being on the executor's list: nobody would wait for it.
    """

    def __init__(self, count: int, name: str) -> None:
        self._pool, self._count = ThreadPoolExecutor(count, name), count
        all_here = threading.Barrier(count + 1)
        try:
            for _ in range(count):
                self._pool.submit(all_here.wait)
            all_here.wait()
        except BaseException:
            all_here.abort()
            self._pool.shutdown(wait=False)
            raise

    def close(self) -> None:
        """Wait for all work, and end the threads; a second call does nothing."""
        self._pool.shutdown()

    def submit(self, work: Callable[[], R]) -> Future[R]:
        """Run `work` in a thread."""
        return self._pool.submit(work)

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the results of all items, in their order. Raises, and leaves the threads, as `feed`."""
        found: list[R] = []
        self.feed(work, items, found.append)
        return found

    def feed(self, work: Callable[[T], R], items: Iterable[T], take: Callable[[R], object]) -> None:
        """Have `take` called with the results of all items, in their order, while others are worked on.

        Items are taken as threads come free, two for each: no more items and results are in memory. However this is
        left, no thread works on them any more.
        """
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(work, item))
                if len(waiting) == 2 * self._count:
                    take(waiting[0].result())
                    waiting.popleft()
            while waiting:
                take(waiting[0].result())
                waiting.popleft()
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)
