"""When compiled code is used: once it pays. Loading it takes 0.1 to 0.7 s from the cache, and 0.4 s more for the first
in a process; compiling it, seconds. Whoever has it has something slower too, that gives the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["found", "has_compiler", "loaded", "spending", "wish"]

Code = Callable[..., Any]

_SWITCH = "PLANNER_KERNELS"  # `ggml`: nothing compiled; `compiled`: that alone, from the first row on
_PAYS = 0.5  # seconds of the slower's work, after which loading is soon paid for

_spent: dict[str, float] = {}
_found: dict[str, Code | None] = {}
_looking = threading.Lock()


def wish() -> str | None:
    """Return which code is wished for: `ggml`, what is not compiled here, or `compiled`."""
    return os.environ.get(_SWITCH)


@functools.cache
def has_compiler() -> bool:
    """Return whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def found(name: str) -> bool | None:
    """Return whether there is compiled code of that name, None if nobody has looked yet."""
    return _found[name] is not None if name in _found else None


@contextlib.contextmanager
def spending(name: str) -> Iterator[None]:
    """Count the thread's time within as work that compiled code of that name would have done faster."""
    begun = time.thread_time()
    yield
    _spent[name] = _spent.get(name, 0) + time.thread_time() - begun


def loaded(name: str, find: Callable[[], Code | None], *, soon: bool = False) -> Code | None:
    """Return compiled code, or None for the slower: where there is none, or none is wished for, or before it pays, or
    as another thread has just begun to compile. `find` looks for it, once in a process, if it is wanted `soon`, or
    pays."""
    if wish() == "ggml":
        return None
    if name in _found:
        return _found[name]
    soon = soon or wish() == "compiled"
    if not soon and _spent.get(name, 0) < _PAYS:
        return None
    if not _looking.acquire(blocking=soon):
        return None
    try:
        if name not in _found:
            _found[name] = find()
        return _found[name]
    finally:
        _looking.release()
