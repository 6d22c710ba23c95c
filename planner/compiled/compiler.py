"""How loops are compiled: to the letter, for the processor that they run on.

Floats are the result of the operations as written, in that order, whatever the width of a processor's vectors: nothing
is reassociated or contracted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["compiled", "part"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function at its first call, and keep the code on disk where there is a place for it.

    It runs without the GIL, and division by zero is C's. (The file in which it stands is looked at to know whether the
    code is still right, and no other: touch it when what it calls elsewhere has changed.)
    """
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)  # type: ignore[no-any-return]
    except RuntimeError:  # nowhere to keep it: compiled again in every process
        return numba.njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]


def part(function: Function) -> Function:
    """Make a function one that those which are `compiled` are made of: it cannot be called otherwise, which saves half
    of the time of compiling. Division by zero is C's."""
    wanted = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(**wanted)(function)  # type: ignore[no-any-return]
