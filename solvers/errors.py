"""The two errors of this package.

ValueError
└── ProblemError          the problem is not well posed: a message says what, where and what to do
    └── InfeasibleError   it is well posed and nothing satisfies its limits; `analysis` says why
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from solvers.conflicts import Infeasibility

__all__ = ["InfeasibleError", "ProblemError"]


class ProblemError(ValueError):
    """The problem, or an argument about it, cannot be used."""


class InfeasibleError(ProblemError):
    """Proven: no choice of options satisfies all limits. `analysis` names the conflict and the cures."""

    def __init__(self, analysis: Infeasibility) -> None:
        super().__init__(str(analysis))
        self.analysis = analysis

    def __reduce__(self) -> tuple[type[InfeasibleError], tuple[Infeasibility]]:
        return type(self), (self.analysis,)
