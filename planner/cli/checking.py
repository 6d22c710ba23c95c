"""`planner solve --check`: a plan beside what it has to stand against, on a text."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from planner.cli.progress import progress_bar
from planner.errors import RecipeError
from planner.text import plain

if TYPE_CHECKING:
    from planner.cli.options import Sources
    from planner.llama.passes.check import Checked
    from planner.llama.passes.recipes import Followed
    from planner.plan.findings import Findings
    from planner.plan.plan import Plan
    from planner.plan.request import PlanRequest
    from planner.plan.rivals import Rival

__all__ = ["Checker"]


class Checker(NamedTuple):
    """Evaluates a plan and its rivals on a text, in memory, and keeps the best, in `output` too as it goes."""

    text: Path
    output: Path
    threads: int
    gpu_layers: int

    def run(
        self, plan: Plan, request: PlanRequest, findings: Findings, sources: Sources, label: str | None = None
    ) -> Plan:
        """Return the best plan, the one given first among equals; `label` is what to call it. If stopped, the best of
        those that were evaluated, or the plan as it is."""
        from planner.llama.passes.check import best_of
        from planner.plan.rivals import rivals
        from planner.recipe import save_recipe
        from planner.report.checks import check_text

        save_recipe(plan.recipe, self.output)
        ready = _to_follow(rivals(findings, request, plan, label), sources)
        checked: list[Checked] = []
        try:
            for entry in self._evaluated(ready, sources):
                checked.append(entry)
                if len(checked) > 1 and best_of(checked) is entry and entry.rival.plan is not None:
                    save_recipe(entry.rival.plan.recipe, self.output)
        except KeyboardInterrupt:
            count = f"{len(checked)} of {len(ready)} recipes are evaluated"
            click.echo(f"Stopped: {count}." if checked else "Stopped before a recipe was evaluated.", err=True)
        if not checked:
            return plan
        kept = best_of(checked)
        click.echo(f"Evaluated in memory on {plain(str(self.text))}:\n\n{check_text(checked, kept)}\n")
        assert kept.rival.plan is not None
        return kept.rival.plan

    def _evaluated(self, ready: Sequence[tuple[Rival, Followed]], sources: Sources) -> Iterator[Checked]:
        from planner.llama.evaluate.baseline import record
        from planner.llama.passes.check import check
        from planner.llama.passes.polish import TOKENS
        from planner.llama.passes.weights import open_weights
        from planner.llama.text import spread_windows, window_length

        model, context = sources.model, window_length(sources.model)
        with open_weights(
            model.path, model, context=context, threads=self.threads, gpu_layers=self.gpu_layers
        ) as weights:
            (windows,) = spread_windows(weights.engine, self.text, context, TOKENS)
            with progress_bar("tokens") as advance:
                baseline = record(weights.engine, windows, progress=functools.partial(advance, "the original"))
            with baseline:
                yield from check(weights, ready, baseline, progress_bar)


def _to_follow(found: Sequence[Rival], sources: Sources) -> list[tuple[Rival, Followed]]:
    """Pair rivals with what following them takes. A mix that cannot be made of this model is left out, with a note."""
    from planner.formats.registry import family_named
    from planner.llama.passes.recipes import Followed, formats_to_follow

    ready = []
    for rival in found:
        recipe = rival.recipe
        calibrated = family_named(recipe.family).calibrated
        imatrix = sources.imatrix if calibrated else None
        try:
            formats = formats_to_follow(sources.model, recipe, imatrix)
        except RecipeError as error:
            if not rival.is_mix:
                raise
            click.echo(plain(f"{rival.label} is left out: {error.problem}"), err=True)
            continue
        refinement = sources.refinement if calibrated else None
        ready.append((rival, Followed(recipe, rival.label, imatrix, refinement, formats)))
    return ready
