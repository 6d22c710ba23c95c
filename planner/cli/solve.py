"""`planner solve`."""

from __future__ import annotations

import contextlib
import functools
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from planner.cli.checking import Checker
from planner.cli.fitting import Fitting, fitting_options
from planner.cli.options import Measuring, family_option, find_state, gpu_option, measuring_options, open_sources
from planner.cli.progress import progress_bar
from planner.cli.running import check_runs
from planner.cli.solving import (
    Limits,
    Polishing,
    Rules,
    Solver,
    limit_options,
    make_request,
    polish_options,
    rule_options,
    run_on_option,
    sensitivity_option,
    solver_options,
)
from planner.cli.targeting import Wanted, make_target, reached_text, target_options
from planner.errors import UsageError
from planner.names.gguf import ENCODER
from planner.terms import FamilyName, RunOn, Source
from planner.text import plain

if TYPE_CHECKING:
    from planner.cli.options import Sources
    from planner.plan.findings import Findings
    from planner.plan.plan import Plan
    from planner.plan.request import PlanRequest

__all__ = ["solve"]

_OPTIMAL = 1e-9  # what the rounding of sums leaves of a gap


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@limit_options
@fitting_options
@target_options
@rule_options
@sensitivity_option
@click.option("--explain", "explained", multiple=True, metavar="TENSOR", help="Say why a tensor has its type.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="recipe.json", show_default=True)
@solver_options
@polish_options
@run_on_option
@gpu_option
@family_option
@measuring_options
def solve(
    model: Path | None,
    limits: Limits,
    fitting: Fitting,
    wanted: Wanted,
    rules: Rules,
    sensitivity: Source | None,
    explained: tuple[str, ...],
    output: Path,
    solver: Solver,
    polishing: Polishing,
    run_on: RunOn,
    gpu_layers: int,
    family: FamilyName,
    measuring: Measuring,
) -> None:
    """Pick a type for every tensor so that the file fits a budget and loses as little as possible; or, with --kld,
    --loss or --than, so that it loses no more than that and is as small as possible.

    With MODEL, measures first what is missing. Without, a finished state file in this directory is enough. The
    recipe is proven to be within a gap of the best there is.
    """
    from planner.report import explanation

    request = make_request(
        limits, rules, solver, family=family, types=measuring.types, sensitivity=sensitivity, run_on=run_on,
        fitting=fitting, target=make_target(wanted),
    )  # fmt: skip
    if model is None:
        plan = _plan_from_state(request, measuring, polishing)
    else:
        plan = _plan_with_model(model, request, measuring, output, polishing, gpu_layers)
    explanations = [explanation(plan, tensor) for tensor in explained]  # first: a wrong name leaves no recipe behind
    _report(plan, output, model)
    for text in explanations:
        click.echo("\n" + plain(text, keep="\n"))


def _plan_from_state(request: PlanRequest, measuring: Measuring, polishing: Polishing) -> Plan:
    """Plan without the model. Raises UsageError for what would need it."""
    from planner.plan.findings import Findings
    from planner.plan.plan import make_plan
    from state import Store

    for text, name in ((polishing.polish, "--polish"), (polishing.check, "--check")):
        if text is not None:
            raise UsageError(f"{name} runs the model.", "Give MODEL too.")
    for given, name in ((measuring.imatrix, "--imatrix"), (measuring.covariance, "--covariance")):
        if given is not None:
            raise UsageError(f"{name} is for measuring, which needs the model.", "Give the model too, or leave it out.")
    with Store.open(find_state(measuring.state), read_only=True) as store:
        findings = Findings.read(store, request.family, request.draft)
    return make_plan(findings, request)


def _plan_with_model(
    model: Path,
    request: PlanRequest,
    measuring: Measuring,
    output: Path,
    polishing: Polishing,
    gpu_layers: int,
) -> Plan:
    """Measure what is missing, plan, and polish and check on texts where they are given."""
    from planner.formats.registry import family_named
    from planner.plan.findings import Findings
    from planner.plan.plan import make_plan

    family = family_named(request.family)
    if polishing.polish is not None and family.exported_to is not None:
        raise UsageError(
            f"--polish runs llama.cpp, which has none of {family.title}'s types.", "Leave --polish or --family out."
        )
    with open_sources(model, measuring) as sources:
        if polishing.polish is not None or polishing.check is not None:
            check_runs([model], context=0, gpu_layers=gpu_layers)
        _measure(sources, request, measuring)
        findings = Findings.read(sources.store, request.family, request.draft)
        plan, polished = make_plan(findings, request), None
        if polishing.polish is not None:
            if request.target is not None:  # exchanges keep the size that was found
                request = replace(request, budget=plan.recipe.size, target=None)
            polisher = _Polisher(polishing.polish, polishing.polish_passes, output, measuring.threads, gpu_layers)
            solved, plan = plan, polisher.run(plan, request, findings, sources)
            polished = "polished" if plan.recipe.formats != solved.recipe.formats else None
        if polishing.check is not None:
            checker = Checker(polishing.check, output, measuring.threads, gpu_layers)
            plan = checker.run(plan, request, findings, sources, polished)
        return plan


def _measure(sources: Sources, request: PlanRequest, measuring: Measuring) -> None:
    from planner.cli.measure import run_campaign
    from planner.formats.registry import family_named
    from planner.plan.rules import pinned_formats

    pinned = pinned_formats(request.pins, sources.model.by_name)
    formats = family_named(request.family).choose(measuring.types or "all")
    run_campaign(sources, formats, pinned, measuring, family=request.family)


class _Polisher(NamedTuple):
    """Improves a recipe on a text, and keeps it in `output` as it gets better."""

    text: Path
    passes: int
    output: Path
    threads: int
    gpu_layers: int

    def run(self, plan: Plan, request: PlanRequest, findings: Findings, sources: Sources) -> Plan:
        """Return the plan with a recipe that was improved on a text; if stopped, with the recipe so far, which `output`
        always has, in case llama.cpp ends the process."""
        from planner.llama.passes.perturb import open_perturber
        from planner.llama.passes.polish import TOKENS, Polish
        from planner.llama.text import spread_windows, window_length
        from planner.recipe import save_recipe

        model, context = sources.model, window_length(sources.model)
        save_recipe(plan.recipe, self.output)
        with contextlib.ExitStack() as open_things:
            changer = open_things.enter_context(
                open_perturber(
                    model.path, model, sources.imatrix, refinement=sources.refinement, context=context,
                    threads=self.threads, gpu_layers=self.gpu_layers,
                )
            )  # fmt: skip
            (windows,) = spread_windows(changer.engine, self.text, context, TOKENS)
            kept = tried = 0
            try:
                with progress_bar("tokens") as advance:
                    started = functools.partial(advance, "the recipe")
                    polish = open_things.enter_context(Polish.start(findings, request, changer, windows, plan, started))
            except KeyboardInterrupt:
                click.echo("Stopped before the first exchange.", err=True)
                return plan
            click.echo(f"At most {self.passes} exchanges of {polish.seconds:.1f} s each.", err=True)
            try:
                with progress_bar("exchanges") as advance:
                    for exchange in polish.run(self.passes):
                        tried += 1
                        if exchange.kept:
                            kept += 1
                            save_recipe(polish.plan_as_it_stands().recipe, self.output)
                        advance(f"{kept} kept", tried, self.passes)
            except KeyboardInterrupt:
                click.echo("Stopped: the recipe is as good as it got.", err=True)
            (before, _), (now, stderr) = polish.before, polish.now
            found = f"KLD {now:.4g} ± {stderr:.2g} on {self.text}, {before:.4g} before"
            click.echo(f"{kept} of {tried} exchanges kept: {found}.\n")
            return polish.plan_as_it_stands()


def _report(plan: Plan, output: Path, model: Path | None) -> None:
    from planner.recipe import save_recipe
    from planner.report import limit_line, memory_lines, next_step, role_table, size_line

    recipe = plan.recipe
    save_recipe(recipe, output)
    click.echo(role_table(recipe))
    click.echo(f"\n{size_line(recipe)}")
    for line in reached_text(plan):
        click.echo(plain(line))
    for limit in plan.limits:
        if limit.name == "file" and plan.reached is not None:  # it is what the target came to
            continue
        click.echo(f"Limit      {plain(limit_line(limit))}")
        if not limit.binds:
            click.echo("           It does not bind: nothing that may be chosen takes more.")
    for line in memory_lines(plan):
        click.echo(line)
    bound = f"bound {recipe.bound:.6g} (gap {100 * recipe.gap:.2g} %)"
    proof = "proven optimal" if recipe.gap < _OPTIMAL else bound
    click.echo(f"Loss       {recipe.loss:.6g} by {recipe.sensitivity}; {proof}, {plan.seconds:.2f} s")
    if plan.prediction is not None:
        expected = plan.prediction
        click.echo(f"KLD        {expected.kld:.4g} expected ({expected.low:.4g} to {expected.high:.4g} nats per token)")
    if plan.unplaced:
        click.echo(f"By role    {len(plan.unplaced)} tensors that structure cannot place have prior's sensitivity:")
        shown = ", ".join(plain(name) for name in plan.unplaced[:6]) + (", ..." if len(plan.unplaced) > 6 else "")
        click.echo(textwrap.indent(textwrap.fill(shown, 68, break_on_hyphens=False), " " * 11))
    if plan.drafted:
        drafts = sum(choice.bytes for choice in plan.recipe.tensors if choice.name in set(plan.drafted))
        click.echo(f"Draft      {len(plan.drafted)} tensors of draft heads (nextn), {drafts:,} bytes; see --draft")
    if recipe.model.architecture == ENCODER:
        click.echo("Encoder    no image or sound was read: roles count as in language models, and get")
        click.echo("           4 bits at least, unless --pin, --max or --types says less")
    if plan.left_out:
        why = "as asked" if plan.recipe.draft == "drop" else "which mlx-lm does not load"
        click.echo(f"Left out   {len(plan.left_out)} tensors of draft heads (nextn), {why}")
    click.echo(f"Recipe     {output}")
    click.echo(f"\nNext: {next_step(recipe, output, model)}")
