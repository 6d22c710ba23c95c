"""Errors as messages: what, where, what next; and names of strangers made safe for a terminal."""

from __future__ import annotations

import errno
import os
import textwrap
import traceback

from planner.errors import Interrupted, PlannerError

__all__ = ["explain", "plain", "wrapped"]


def plain(text: str) -> str:
    """Text with control characters escaped, so that a name in a hostile file cannot drive the terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in text.encode("utf-8", "replace").decode()
    )


def wrapped(text: str) -> str:
    """Text at 80 columns; paths and patterns are not broken."""
    lines = (
        textwrap.wrap(line, 80, break_long_words=False, break_on_hyphens=False) or [""] for line in text.splitlines()
    )
    return "\n".join(line for group in lines for line in group)


def explain(error: Exception) -> tuple[int, str]:
    """Exit status and message of an error, whatever it is."""
    from solvers import ProblemError
    from state import StateError

    if isinstance(error, PlannerError):
        prefix = "" if isinstance(error, Interrupted) else "Error: "
        return error.exit_status, prefix + plain(str(error))
    if isinstance(error, StateError):
        return 1, f"Error: {plain(error.problem)}\n{plain(error.remedy)}"
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
