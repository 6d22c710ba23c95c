"""Turn errors into messages: what, where, what next."""

from __future__ import annotations

import errno
import os
import re
import textwrap
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from planner.errors import Interrupted, PlannerError
from planner.files import refusal
from planner.text import plain

if TYPE_CHECKING:
    from planner.gguf import Imatrix

__all__ = ["explain", "tell_unseen", "wrapped"]

# What stands in backticks; else a word of ours or of pip, and its options and words to be replaced
_COMMAND = re.compile(r"`[^`]*`|\b(?:planner|pip) [a-z]+(?: (?:-[\w-]+(?: [\w/.]+)?|[A-Z]+|'[^']*'))*")
# Which only writing can meet with
_WRITING = (errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC))
_SPACE = "\0"  # where no line may end; `plain` leaves none


def wrapped(text: str) -> str:
    """Wrap text at 80 columns; commands, paths and patterns are not broken."""
    whole = _COMMAND.sub(lambda found: found[0].replace(" ", _SPACE), text)
    lines = (
        textwrap.wrap(line, 80, break_long_words=False, break_on_hyphens=False) or [""] for line in whole.splitlines()
    )
    return "\n".join(line for group in lines for line in group).replace(_SPACE, " ")


def tell_unseen(imatrix: Imatrix, names: Iterable[str]) -> None:
    """Say, on stderr, of which tensors the imatrix has not seen all channels."""
    from planner.report.inspection import unseen_text

    if text := unseen_text(imatrix, names):
        click.echo(text, err=True)


def explain(error: Exception) -> tuple[int, str]:
    """Return exit status and message of an error, whatever it is."""
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
        return 1, "Error: " + _two_lines(*_refused(error))
    if isinstance(error, MemoryError):
        return 1, "Error: out of memory.\nTry fewer threads (-t), or a machine with more."
    details = traceback.format_exc() if os.environ.get("PLANNER_DEBUG") else ""
    return 1, (
        f"{details}Internal error: {type(error).__name__}: {plain(str(error))}\n"
        "This is a bug in planner. Please report it, with the output of the same command under PLANNER_DEBUG=1."
    )


def _refused(error: OSError) -> tuple[str, str]:
    """Return problem and remedy of an error of the system."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _WRITING:
        what, remedy = refusal(error)
        return f"{where or 'The output cannot be written: '}{what}.", remedy
    return f"{where}{error.strerror or error}.", ""


def _two_lines(problem: str, remedy: str) -> str:
    return "\n".join(plain(text) for text in (problem, remedy) if text)
