"""Write a model as a recipe says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from planner.api.common import Progress, StrPath, check_number, model_at, paths, size_in_bytes
from planner.api.depth import AlongDepth
from planner.api.recipes import counted, planned_imatrix, read
from planner.api.refining import planned_refinement
from planner.digests import recipe_digest
from planner.errors import RecipeError, option
from planner.formats.ggml import formats
from planner.formats.registry import family_named
from planner.gguf import Imatrix, Model
from planner.gguf.drafts import draft_heads
from planner.gguf.provenance import provenance_pairs
from planner.gguf.quantize import quantize_model
from planner.gguf.refinement import Refinement
from planner.recipe import Recipe
from planner.report.inspection import unseen_text
from planner.text import plain, some

__all__ = ["Quantized", "quantize"]


@dataclass(frozen=True, slots=True)
class Quantized:
    """The files that were written, the first part first, and their bytes in all; `promised` are those that the recipe
    says for one file."""

    paths: tuple[Path, ...]
    bytes: int
    promised: int


def quantize(
    model: StrPath | Model,
    recipe: StrPath | Recipe,
    out: StrPath,
    *,
    imatrix: StrPath | None = None,
    covariance: StrPath | None = None,
    shrinkage: float | None = None,
    text: StrPath | Iterable[StrPath] = (),
    chunks: int | None = None,
    force: bool = False,
    keep_split: bool = False,
    max_shard_size: str | int | None = None,
    allow_requantize: bool = False,
    threads: int | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
    reading: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Quantized:
    """Write a model with every tensor in the format that a recipe gives it, as llama-quantize would; with the file
    `covariance`, or that which the recipe was planned with, codes are refined against it, and pairs of channels count
    1 / (1 + `shrinkage`) (default 1, or as planned).

    With files of `text`, at most `chunks` windows of each, codes are refined along the depth; what cannot be is as
    without. `reading` is progress of that, in blocks.

    `imatrix` says where the recipe's imatrix is now, if it was moved. With `force`, files of the name are replaced.
    `keep_split` writes as many parts as the model has, `max_shard_size` as many as needed. Progress is in bytes. `note`
    is told what a user should know: edits of the recipe, tensors that the imatrix has not seen or that are not refined.
    Kernels run in `threads`, or in the workers of the Dask `scheduler` at an address.

    Raises UsageError for a text that is too short or too long, RecipeError for a recipe that cannot be followed,
    ImatrixError for one that is missing or another, CovarianceError for covariances that are damaged or another
    model's, KernelError without numba, ModelError for weights that cannot be quantized, OutputError for files that
    cannot be written, ClusterError for useless machines; `out` is then as it was before.
    """
    check_number("threads", threads, 1)
    tell = note or (lambda text: None)
    limit, (given, where) = size_in_bytes(max_shard_size), read(recipe)
    _check_family(given, where)
    along = AlongDepth.asked(paths(text), chunks, shrinkage, threads, reading)
    with model_at(model) as opened:
        plan = counted(given, where, opened, tell)
        theirs = None if along and covariance is None and plan.covariance is None else shrinkage
        with planned_refinement(plan, where, covariance, theirs, opened) as refinement:
            matrix = planned_imatrix(plan, where, imatrix, refinement)
            _tell_unseen(matrix, plan, opened, tell)
            refined = _refined(refinement, plan, opened, tell if along is None else None)
            written = quantize_model(
                opened, plan.formats, matrix, Path(out), file_type=plan.file_type, refinement=refined,
                extra=_provenance(plan, refined) if along is None else along.provenance(plan.formats),
                threads=threads, scheduler=scheduler, force=force, keep_split=keep_split, max_shard_size=limit,
                allow_requantize=allow_requantize, dropped=draft_heads(opened) if plan.draft == "drop" else (),
                ahead=None if along is None else along.ahead(opened, matrix, refined, tell),
                progress=None if progress is None else lambda step: progress(step.tensor, step.done, step.total),
            )  # fmt: skip
    return Quantized(written.paths, written.bytes, given.size)


def _tell_unseen(matrix: Imatrix | None, plan: Recipe, model: Model, tell: Callable[[str], None]) -> None:
    """Tell of tensors of which the imatrix has channels that no token reached."""
    if matrix is not None and (unseen := unseen_text(matrix, _changed(plan, model))):
        tell(f"{unseen}\nWhere only such ones share a scale, they are kept; llama-quantize would lose them.")


def _check_family(recipe: Recipe, where: str) -> None:
    """Raise RecipeError for a recipe of formats that no GGUF can have."""
    family = family_named(recipe.family)
    if family.exported_to is not None:
        raise RecipeError(
            f"{where} is planned for {family.title}: no GGUF can have its formats.",
            f"Export it: planner export RECIPE --to {family.exported_to}. "
            f"Or solve again without {option('family', family.name)}.",
        )


def _refined(
    refinement: Refinement | None, plan: Recipe, model: Model, tell: Callable[[str], None] | None
) -> Refinement | None:
    """Return the refinement if it applies to anything; tell, unless that is left to others, of tensors that it could
    and does not apply to."""
    if refinement is None:
        return None
    known, names = formats(), _changed(plan, model)
    kept = [name for name in names if not refinement.applies(model[name], known[plan.formats[name]])]
    if kept and tell is not None:
        tell(plain(f"Not refined, as there are no covariances or the type cannot be: {some(kept)}."))
    return refinement if len(kept) < len(names) else None


def _provenance(plan: Recipe, refinement: Refinement | None) -> list[tuple[str, str]]:
    digest = recipe_digest(plan.formats)
    if refinement is None:
        return provenance_pairs(digest)
    return provenance_pairs(digest, refinement.covariances.digest, refinement.shrinkage)


def _changed(plan: Recipe, model: Model) -> list[str]:
    """Return the tensors that kernels make something else of."""
    known, source = formats(), {tensor.name: tensor.format for tensor in model.tensors}
    return [
        name for name, fmt in plan.formats.items() if fmt in known and known[fmt].quantized and source.get(name) != fmt
    ]
