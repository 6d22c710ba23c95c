"""Workers on other machines, through a Dask scheduler.

A worker gets a function, what it is to be called with, and returns the result; all of that is small beside the model,
which it reads where it sees it. It writes nothing, so that one who is lost leaves nothing behind: the scheduler gives
its work to another, and what is computed twice is the same.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import pickle
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from planner.errors import ClusterError, option
from planner.formats.registry import FAMILIES
from planner.version import __version__
from planner.work.crew import Crew, Handed, Stop, Threads
from planner.work.shared import Unseen

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Machines", "open_crew"]

T = TypeVar("T")
R = TypeVar("R")

_CONNECTING = 10.0  # seconds: less than a user waits for a sign, more than any network takes
_ABSENT = 60.0  # seconds without any worker until we give up: a queue may be about to start others
_LOOK = 5.0  # seconds between looks at whether any worker is left
_TRANSFER = 300.0  # seconds for a result to arrive, of some megabytes: any network is faster
_AHEAD = 2  # pieces of work for each thread: the next is there when one is done


@contextlib.contextmanager
def open_crew(threads: int | None = None, scheduler: str | None = None) -> Iterator[Crew]:
    """Open a crew: the workers of the Dask scheduler at an address, or else threads of this process (default: a core
    each). Raises ClusterError."""
    with Threads(threads) as here:
        if scheduler is None:
            yield here
            return
        with Machines(scheduler, here) as machines:
            yield machines


class Machines:
    """The workers of the Dask scheduler at `address`; a context manager. `here` does what is near."""

    least = 1 << 24  # so that what is written of them takes some megabytes, and a second or more to compute

    def __init__(self, address: str, here: Threads) -> None:
        self._address, self._here = address, here

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "_client" in self.__dict__:
            self._client.close()  # and nobody waits any more for what is not done

    @functools.cached_property
    def _client(self) -> Client:
        """The connection to the scheduler, made when there is something to do."""
        return _connected(self._address)

    @property
    def window(self) -> int:
        """As in `Crew`: workers may come and go."""
        return _AHEAD * self._threads()

    def unordered(self, work: Callable[[T, Stop], R], items: Sequence[T]) -> Iterator[tuple[T, R]]:
        """As in `Crew`."""
        left, done = iter(items), queue.SimpleQueue[Any]()
        under_way: dict[Any, tuple[T, _Piece[R]]] = {}

        def hand_over() -> None:
            for item in itertools.islice(left, max(0, self.window - len(under_way))):
                piece = self._hand_over(work, item)
                under_way[piece.future] = item, piece
                piece.future.add_done_callback(done.put)

        try:
            hand_over()
            while under_way:
                try:
                    future = done.get(timeout=_LOOK)
                except queue.Empty:
                    self._threads()
                    continue
                item, piece = under_way.pop(future)
                yield item, piece.result()
                hand_over()
        finally:
            with contextlib.suppress(ClusterError):  # where it is lost, nobody works for us any more
                self._ask(self._client.cancel, [piece.future for _, piece in under_way.values()], force=True)

    def submit(self, work: Callable[[T, Stop], R], item: T, *, near: bool = False) -> Handed[R]:
        """As in `Crew`."""
        if near:
            return self._here.submit(work, item)
        return self._hand_over(work, item)

    def _hand_over(self, work: Callable[[T, Stop], R], item: T) -> _Piece[R]:
        import dask

        # In bytes: else the scheduler would unpickle them, and it need not see what workers see
        task = pickle.dumps((_kernels(), pickle.dumps((work, item))))
        submit = self._client.submit  # distributed is to be loaded before it is configured
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 GiB"}):
            return _Piece(self, self._ask(submit, _perform, task, pure=False))

    def wait_for(self, future: Future) -> Any:
        """Return the result of what was handed over. Raises ClusterError, and what the work raised."""
        from concurrent.futures import CancelledError

        from distributed import KilledWorker

        finished = threading.Event()
        future.add_done_callback(lambda _: finished.set())
        while not finished.wait(_LOOK):
            try:
                self._threads()
            except ClusterError:
                if not finished.is_set():  # it may be why nobody is left
                    raise
        try:
            return future.result(timeout=_TRANSFER)
        except KilledWorker as problem:
            raise ClusterError(
                f"{problem.allowed_failures + 1} workers ended, one after another, at the same piece of work; "
                f"{problem.last_worker.address} was the last.",
                "Look at their logs: a system that is short of memory ends processes.",
            ) from problem
        except ImportError as problem:
            raise _unlike(f"Workers of {self._address} cannot load planner: {problem}.") from problem
        except RuntimeError as problem:
            if "deserialization" not in str(problem):
                raise
            raise _unlike(f"The scheduler {self._address} cannot load planner.") from problem
        except (CancelledError, OSError) as problem:
            if future.status == "error":  # the work's own
                raise
            raise self._lost() from problem

    def _threads(self) -> int:
        """Return how many threads workers have, after waiting for workers where there are none. Raises ClusterError if
        none comes."""
        for _ in range(2):
            threads = self._ask(self._client.nthreads)
            if threads:
                return sum(threads.values())
            with contextlib.suppress(OSError):  # nobody came; or the scheduler is lost, which is found next
                self._client.wait_for_workers(1, timeout=_ABSENT)
        raise ClusterError(
            f"The scheduler {self._address} has no workers.", f"Start some: `dask worker {self._address}`."
        )

    def _ask(self, question: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return what the scheduler answers. Raises ClusterError if it is lost."""
        from distributed.client import ClosedClientError

        try:
            return question(*arguments, **options)
        except (ClosedClientError, OSError) as problem:
            raise self._lost() from problem

    def _lost(self) -> ClusterError:
        return ClusterError(
            f"The connection to the scheduler {self._address} is lost.", "Start it again, then the same command."
        )


def _unlike(problem: str) -> ClusterError:
    return ClusterError(problem, "Install this version of planner, with its extra `dask`, in their environment too.")


class _Piece(Generic[R]):
    """Work that a worker has."""

    def __init__(self, machines: Machines, future: Future) -> None:
        self._machines, self.future = machines, future

    def result(self) -> R:
        found: R = self._machines.wait_for(self.future)
        return found


def _connected(address: str) -> Client:
    """Return a client of the scheduler at an address. Raises ClusterError."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError(
            f"distributed is needed for {option('scheduler')}, and cannot be loaded: {error}.",
            "Install it (seconds, no compiler): pip install 'gguf-planner[dask]'",
        ) from error
    for name in ("distributed", "distributed.client"):  # each has a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is raised
    try:
        return Client(address, timeout=_CONNECTING, set_as_default=False)
    except (OSError, ValueError, TypeError) as problem:
        raise ClusterError(
            f"No Dask scheduler answers at {address}.",
            "Start one with `dask scheduler`, which says its address, such as tcp://192.168.1.5:8786.",
        ) from problem


def _kernels() -> tuple[tuple[str, ...], ...]:
    """Return what results depend on besides what is handed over: planner and, as far as they are there, kernels."""
    return (("planner", __version__), *(family.kernel for family in FAMILIES.values() if family.own))


def _perform(task: bytes) -> Any:
    """Do a piece of work, in a worker's thread. Raises ClusterError where its kernels or files are others, and what the
    work raises."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def stopped() -> bool:
        state = worker.state.tasks.get(key)
        return state is None or state.state == "cancelled"

    theirs, inner = pickle.loads(task)
    own = _kernels()
    if not set(theirs) <= set(own):
        here, there = (", ".join(" ".join(part) for part in one if part not in other) for one, other in
                       ((theirs, own), (own, theirs)))  # fmt: skip
        raise ClusterError(
            f"The worker {worker.address} has {there or 'nothing of the kind'}, and here is {here}.",
            "Install the same versions everywhere: what they compute is to be the same.",
        )
    try:
        work, item = pickle.loads(inner)
    except Unseen as problem:
        raise ClusterError(
            f"The worker {worker.address} does not see {problem.path} as it is here: {problem.why}.",
            "Let all workers have the same files under the same paths: a disk that is shared, or copies.",
        ) from None
    return work(item, stopped)
