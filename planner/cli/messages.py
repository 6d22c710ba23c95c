"""Errors as messages: what, where, what next."""

from __future__ import annotations

import errno
import os
import textwrap
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from planner.errors import Interrupted, PlannerError
from planner.text import plain

if TYPE_CHECKING:
    from planner.gguf import Imatrix

__all__ = ["explain", "tell_unseen", "wrapped"]


def wrapped(text: str) -> str:
    """Text at 80 columns; paths and patterns are not broken."""
    lines = (
        textwrap.wrap(line, 80, break_long_words=False, break_on_hyphens=False) or [""] for line in text.splitlines()
    )
    return "\n".join(line for group in lines for line in group)


def tell_unseen(imatrix: Imatrix, names: Iterable[str], *, written: bool = False) -> None:
    """Say, on stderr, of which tensors the imatrix has not seen all channels; and what that means for a file that is
    `written`."""
    from planner.report.inspection import unseen_text

    text = unseen_text(imatrix, names)
    if text and written:
        text += "\nWeights that share a scale only with such ones are kept; llama-quantize would lose them."
    if text:
        click.echo(text, err=True)


def explain(error: Exception) -> tuple[int, str]:
    """Exit status and message of an error, whatever it is."""
    from solvers import ProblemError
    from state import StateError

    if isinstance(error, PlannerError):
        prefix = "" if isinstance(error, Interrupted) else "Error: "
        return error.exit_status, prefix + _two_lines(error.problem, error.remedy)
    if isinstance(error, StateError):
        return 1, "Error: " + _two_lines(error.problem, error.remedy)
    if isinstance(error, ProblemError):
        return 1, f"Error: {plain(str(error))}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        hint = "\nMake room and run the same command again." if error.errno == errno.ENOSPC else ""
        return 1, f"Error: {plain(where + (error.strerror or str(error)))}.{hint}"
    if isinstance(error, MemoryError):
        return 1, "Error: out of memory.\nTry fewer threads (-t), or a machine with more."
    details = traceback.format_exc() if os.environ.get("PLANNER_DEBUG") else ""
    return 1, (
        f"{details}Internal error: {type(error).__name__}: {plain(str(error))}\n"
        "This is a bug in planner. Please report it, with the output of the same command under PLANNER_DEBUG=1."
    )


def _two_lines(problem: str, remedy: str) -> str:
    return "\n".join(plain(text) for text in (problem, remedy) if text)
