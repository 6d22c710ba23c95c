"""How loops are compiled: to the letter, for the processor that they run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["compiled"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function at its first call, and keep the code on disk where there is a place for it.

    Floats are the result of the operations as written, in that order, whatever the width of a processor's vectors:
    nothing is reassociated or contracted. It runs without the GIL.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # nowhere to keep it: compiled again in every process
        return numba.njit(nogil=True)(function)  # type: ignore[no-any-return]
