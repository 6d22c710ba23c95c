"""Tell which commands run in a child process (`planner.cli.watch`), without loading what that takes."""

from __future__ import annotations

import os
from collections.abc import Sequence

__all__ = ["VARIABLE", "needs_watch"]

VARIABLE = "PLANNER_WATCHED"
"""The environment variable that a child finds its instructions in."""

_RUN_THEM_TOO = ("--polish", "--check")  # options of solve
_RUN_MODELS = frozenset({"imatrix", "sensitivity", "evaluate", "compare", "bench"})


def needs_watch(arguments: Sequence[str]) -> bool:
    """Return whether a command line runs llama.cpp, and is not itself run in a child already."""
    if VARIABLE in os.environ or {"-h", "--help"} & set(arguments):
        return False
    command = next((word for word in arguments if not word.startswith("-")), None)
    runs = any(word.partition("=")[0] in _RUN_THEM_TOO for word in arguments)
    return command in _RUN_MODELS or (command == "solve" and runs)
