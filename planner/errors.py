"""Every error that `planner` raises on purpose.

    PlannerError
    ├── UsageError          options ask for something that cannot be (exit status 2)
    ├── ModelError          a GGUF model that cannot be read or used
    ├── ImatrixError        an importance matrix that cannot be read or does not belong
    ├── CovarianceError     covariances that cannot be read or do not belong
    ├── KernelError         the ggml library is missing, too old or refuses the data
    ├── RecipeError         a recipe that cannot be read or does not fit the model
    ├── BudgetError         no recipe satisfies the limits
    ├── StateFileError      the state file cannot be used (another model, locked, newer, damaged)
    ├── InferenceError      llama.cpp is missing or cannot run the model
    ├── BaselineError       log-probabilities or tasks to evaluate with cannot be read or do not belong
    ├── OutputError         a file that cannot be written
    ├── ClusterError        workers on other machines that cannot be reached, or are of no use
    └── Interrupted         stopped by the user; what was done is kept (exit status 130)

Each says what was wrong and where (`problem`), and what to do next (`remedy`). Only `planner.cli` prints them.

Messages call options by `option(name)`: a program reads `time_limit`, and the command line, which has it spelt so,
`--time-limit`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

__all__ = [
    "BaselineError",
    "BudgetError",
    "ClusterError",
    "CovarianceError",
    "ImatrixError",
    "InferenceError",
    "Interrupted",
    "KernelError",
    "ModelError",
    "OutputError",
    "PlannerError",
    "RecipeError",
    "StateFileError",
    "UsageError",
    "option",
    "options_spelt",
]

Spelling = Callable[[str, object], str]  # of an option and its value, or None


def _argument(name: str, value: object) -> str:
    return name if value is None else f"{name}={value!r}"


_spelling: Spelling = _argument


def option(name: str, value: object = None) -> str:
    """Return an option, with its value if there is one, as whoever reads the message would write it.

    >>> option("time_limit"), option("budget", "23.85GB")
    ('time_limit', "budget='23.85GB'")
    """
    return _spelling(name, value)


@contextlib.contextmanager
def options_spelt(spelling: Spelling) -> Iterator[None]:
    """Have options spelt in another way inside the block, in all threads."""
    global _spelling
    before, _spelling = _spelling, spelling
    try:
        yield
    finally:
        _spelling = before


class PlannerError(Exception):
    """Something went wrong that the user can act on.

    `problem` is a sentence with what and where; `remedy` a sentence with what to do next, or empty.
    """

    exit_status = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}" if self.remedy else self.problem


class UsageError(PlannerError):
    exit_status = 2


class ModelError(PlannerError):
    pass


class ImatrixError(PlannerError):
    pass


class CovarianceError(PlannerError):
    pass


class KernelError(PlannerError):
    pass


class RecipeError(PlannerError):
    pass


class BudgetError(PlannerError):
    pass


class StateFileError(PlannerError):
    pass


class InferenceError(PlannerError):
    pass


class BaselineError(PlannerError):
    pass


class OutputError(PlannerError):
    pass


class ClusterError(PlannerError):
    pass


class Interrupted(PlannerError):
    exit_status = 130
