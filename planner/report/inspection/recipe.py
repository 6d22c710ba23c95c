"""Facts of a recipe: its origin, its sizes and its tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from planner.recipe import Choice, Recipe
from planner.report.columns import labelled, shown, table
from planner.report.tables import next_step, role_table, size_line

__all__ = ["RecipeFacts", "recipe_facts", "recipe_text"]


@dataclass(frozen=True, slots=True)
class RecipeFacts:
    """A recipe, its tensors counted by format; `reasons`: why tensors have theirs."""

    kind: str
    path: str
    planner: str
    ggml: str
    family: str
    model: str
    architecture: str
    model_digest: str
    model_path: str
    imatrix: str | None
    covariance: str | None
    draft: str | None
    sensitivity: str
    seed: int
    tolerance: float
    budget: str
    bytes: int
    bpw: float
    loss: float | None
    bound: float | None
    gap: float
    status: str
    formats: dict[str, int]
    reasons: dict[str, int]
    tensors: tuple[Choice, ...]


def recipe_facts(recipe: Recipe, path: str) -> RecipeFacts:
    """Collect the facts of a recipe."""
    return RecipeFacts(
        kind="recipe",
        path=path,
        planner=recipe.planner,
        ggml=recipe.ggml,
        family=recipe.family,
        model=recipe.model.name,
        architecture=recipe.model.architecture,
        model_digest=recipe.model.digest,
        model_path=recipe.model.path,
        imatrix=recipe.imatrix.path if recipe.imatrix else None,
        covariance=recipe.covariance.path if recipe.covariance else None,
        draft=recipe.draft,
        sensitivity=recipe.sensitivity,
        seed=recipe.seed,
        tolerance=recipe.tolerance,
        budget=recipe.budget,
        bytes=recipe.size,
        bpw=recipe.bpw,
        loss=recipe.loss,
        bound=recipe.bound,
        gap=recipe.gap,
        status=recipe.status,
        formats=dict(Counter(choice.format for choice in recipe.tensors).most_common()),
        reasons=dict(Counter(choice.why for choice in recipe.tensors).most_common()),
        tensors=recipe.tensors,
    )


def recipe_text(recipe: Recipe, facts: RecipeFacts, *, every_tensor: bool = False) -> str:
    """Format the facts as lines of 80 columns."""
    name = f"{shown(facts.model, 100)} ({shown(facts.architecture, 30)}, {shown(facts.model_digest[:12])})"
    lines = labelled("Recipe", shown(facts.path, 400))
    lines += labelled("Model", f"{name}, last seen at {shown(facts.model_path, 400)}")
    lines += labelled("Imatrix", shown(facts.imatrix, 400) if facts.imatrix else "none")
    if recipe.covariance is not None:
        against = f"codes refined against {shown(recipe.covariance.path, 400)}"
        lines += labelled("Rounding", f"{against}, shrinkage {recipe.covariance.shrinkage:.4g}")
    if recipe.draft == "drop":
        lines += labelled("Draft", "the file is without the model's draft heads (nextn)")
    lines += labelled("Budget", shown(facts.budget, 100))
    label, _, size = size_line(recipe).partition(" ")
    lines += labelled(label, size.strip())
    lines += labelled("Loss", _loss(facts))
    made = f"planner {shown(facts.planner, 30)}, ggml {shown(facts.ggml, 30)}"
    lines += labelled("Made with", f"{made}, seed {facts.seed}, tolerance {facts.tolerance:g}")
    lines += _reasons(facts)
    lines += ["", role_table(_safe(recipe))]
    if every_tensor:
        rows = [("tensor", "format", "bytes", "error", "loss", "why")]
        for choice in facts.tensors:
            err = "" if choice.err is None else f"{100 * choice.err:.3g} %"
            numbers = f"{choice.bytes:,}", err, "" if choice.loss is None else f"{choice.loss:.3g}"
            rows.append((shown(choice.name, 36), shown(choice.format, 12), *numbers, shown(choice.why, 200)))
        lines += ["", *table(rows, "<<>>><")]
    return "\n".join([*lines, "", f"Next: {next_step(recipe, Path(facts.path))}"])


def _loss(facts: RecipeFacts) -> str:
    if facts.loss is None:
        return f"not known ({shown(facts.status, 30)})"
    loss = f"{facts.loss:.6g} by {shown(facts.sensitivity, 30)}"
    if facts.bound is None:
        return f"{loss} ({shown(facts.status, 30)})"
    return f"{loss}; no recipe is below {facts.bound:.6g} (gap {100 * facts.gap:.2g} %, {shown(facts.status, 30)})"


def _reasons(facts: RecipeFacts, most: int = 8) -> list[str]:
    lines = []
    for number, (why, count) in enumerate(list(facts.reasons.items())[:most]):
        lines += labelled("" if number else "Tensors", f"{count:,} {shown(why, 120)}")
    more = len(facts.reasons) - most
    return lines + (labelled("", f"and {more:,} more reasons") if more > 0 else [])


def _safe(recipe: Recipe) -> Recipe:
    """Return the recipe with names that are safe for a terminal."""
    choices = [
        choice.model_copy(update={"name": shown(choice.name, 28), "format": shown(choice.format, 16)})
        for choice in recipe.tensors
    ]
    return recipe.model_copy(update={"tensors": tuple(choices)})
