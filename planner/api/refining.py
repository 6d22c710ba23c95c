"""Covariances that errors are measured by and codes refined against: as given, or as a state or recipe had them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from planner.api.common import StrPath, check_number
from planner.errors import CovarianceError, ImatrixError, UsageError, option
from planner.formats.ggml.refine import SHRINKAGE, require_compiler
from planner.gguf import Imatrix, Model, read_imatrix
from planner.gguf.covariance import Covariances
from planner.gguf.refinement import Refinement

if TYPE_CHECKING:
    from planner.recipe import Recipe
    from state import Store

__all__ = ["inputs_of", "planned_refinement"]


@contextlib.contextmanager
def inputs_of(
    store: Store,
    imatrix: StrPath | Imatrix | None,
    *,
    no_imatrix: bool = False,
    covariance: StrPath | None = None,
    shrinkage: float | None = None,
) -> Iterator[tuple[Imatrix | None, Refinement | None]]:
    """Open what is known of a model's activations: an imatrix, and covariances that codes are refined against.

    Where neither is given, they are those that the state was made with, unless there is to be `no_imatrix`. A file of
    covariances is an imatrix too. Raises ImatrixError, CovarianceError, KernelError where nothing can compile the
    loops, and UsageError for options that exclude each other.
    """
    check_number("shrinkage", shrinkage, 0)
    if no_imatrix and (imatrix is not None or covariance is not None):
        other = option("imatrix" if covariance is None else "covariance")
        raise UsageError(f"{other} and {option('no_imatrix')} exclude each other.", "Give one of them.")
    known = store.inventory()
    planned = None if known is None or imatrix is not None or no_imatrix else known.covariance
    if covariance is None and planned is not None:
        path, _, earlier = planned
        covariance, shrinkage = path, earlier if shrinkage is None else shrinkage
        if not Path(path).exists():
            raise CovarianceError(
                f"The state was made with the covariances {path}, which are not there any more.",
                f"Give them with {option('covariance')}, or measure without: {option('imatrix', 'FILE')}.",
            )
    if covariance is None:
        if shrinkage is not None:
            raise _no_covariances()
        yield _imatrix(store, imatrix, no_imatrix=no_imatrix), None
        return
    with _opened(covariance, shrinkage) as refinement:
        theirs = refinement.covariances.imatrix
        chosen = theirs if imatrix is None else _read(imatrix)
        if chosen.digest != theirs.digest:
            raise CovarianceError(
                f"{theirs.path}: the covariances of another imatrix than {chosen.path}.",
                f"Leave {option('imatrix')} out: covariances have one.",
            )
        yield chosen, refinement


def _imatrix(store: Store, given: StrPath | Imatrix | None, *, no_imatrix: bool) -> Imatrix | None:
    """Return the imatrix to measure with: as given, or else the one that the state was made with, unless there is to
    be none. Raises ImatrixError."""
    if given is not None:
        return _read(given)
    known = store.inventory()
    if no_imatrix or known is None or known.imatrix_name is None:
        return None
    if not Path(known.imatrix_name).exists():
        raise ImatrixError(
            f"The state was made with the imatrix {known.imatrix_name}, which is not there any more.",
            f"Give it with {option('imatrix')}, or do without one: {option('no_imatrix')}.",
        )
    return read_imatrix(known.imatrix_name)


def _read(imatrix: StrPath | Imatrix) -> Imatrix:
    return imatrix if isinstance(imatrix, Imatrix) else read_imatrix(Path(imatrix))


@contextlib.contextmanager
def planned_refinement(
    plan: Recipe, where: str, given: StrPath | None, shrinkage: float | None, model: Model
) -> Iterator[Refinement | None]:
    """Open the covariances that a model's codes are to be refined against: those that are given, or else those that
    the recipe was planned with. Raises CovarianceError for those of another model or recipe, and for such that are
    gone; KernelError where nothing can compile the loops."""
    check_number("shrinkage", shrinkage, 0)
    planned = plan.covariance
    path = given if given is not None or planned is None else planned.path
    if path is None:
        if shrinkage is not None:
            raise _no_covariances()
        yield None
        return
    if given is None and not Path(path).exists():
        raise CovarianceError(
            f"The covariances that {where} was planned with, {path}, are not there.",
            f"Say where they are with {option('covariance')}.",
        )
    if shrinkage is None and planned is not None:
        shrinkage = planned.shrinkage
    with _opened(path, shrinkage) as refinement:
        refinement.covariances.require(model)
        if planned is not None and refinement.covariances.digest != planned.digest:
            raise CovarianceError(
                f"{path} has other covariances than those that {where} was planned with.",
                "Give those, or measure and solve again.",
            )
        yield refinement


@contextlib.contextmanager
def _opened(path: StrPath, shrinkage: float | None) -> Iterator[Refinement]:
    """Open covariances to refine codes against. Raises CovarianceError, KernelError."""
    require_compiler()
    with Covariances.open(Path(path)) as covariances:
        yield Refinement(covariances, SHRINKAGE if shrinkage is None else shrinkage)


def _no_covariances() -> UsageError:
    return UsageError(f"{option('shrinkage')} is of covariances, and there are none.", "Leave it out.")
