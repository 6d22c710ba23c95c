"""`planner solve`."""

from __future__ import annotations

import contextlib
import functools
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

import click

from planner.cli.options import Measuring, family_option, find_state, gpu_option, measuring_options, open_sources
from planner.cli.progress import progress_bar
from planner.cli.running import check_runs
from planner.errors import UsageError
from planner.text import plain

if TYPE_CHECKING:
    from planner.cli.options import Sources
    from planner.formats.registry import Family
    from planner.plan.plan import Plan
    from planner.plan.request import Request, RunOn
    from planner.sensitivity import Source

__all__ = ["solve"]

_OPTIMAL = 1e-9  # what the rounding of sums leaves of a gap


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--budget", metavar="SIZE", help="Size of the file on disk: 23.85GB, 22GiB, 900MB, or bytes.")
@click.option("--bpw", metavar="BITS", help="Bits of tensor data per weight, as llama-quantize counts them.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME:REGEX=SIZE",
    help="Tensors that go to a device, and what it holds; a tensor belongs to the first device that matches.",
)
@click.option("--active-budget", metavar="SIZE", help="Bytes read for one token; of experts, those used count.")
@click.option("--tie", "ties", multiple=True, metavar="REGEX|fused", help="Tensors of a block that take one type.")
@click.option("--pin", multiple=True, metavar="REGEX=TYPE", help="Tensors that get this type, whatever it costs.")
@click.option("--min", "floors", multiple=True, metavar="[REGEX=]TYPE", help="Nothing smaller than this type.")
@click.option("--max", "caps", multiple=True, metavar="[REGEX=]TYPE", help="Nothing larger than this type.")
@click.option(
    "--sensitivity",
    type=click.Choice(["uniform", "prior", "structure", "structure+prior", "measured"]),
    help="Where sensitivities come from.  [default: the best that there is]",
)
@click.option("--explain", "explained", multiple=True, metavar="TENSOR", help="Say why a tensor has its type.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="recipe.json", show_default=True)
@click.option("--method", default="auto", show_default=True, help="Solver: auto, lagrangian, dp, cp-sat, milp.")
@click.option("--gap", type=click.FloatRange(min=0), default=1e-6, show_default=True, help="Stop at this proven gap.")
@click.option("--time-limit", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Seconds to solve.")
@click.option(
    "--polish", metavar="TEXT", type=click.Path(path_type=Path), help="Try exchanges on a text, and keep what helps."
)
@click.option(
    "--polish-passes", type=click.IntRange(min=1), default=50, show_default=True, help="Exchanges to try at the most."
)
@click.option(
    "--run-on",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="Where the file will run. A CPU rounds activations to 8 bits, most coarsely for k- and i-quants.",
)
@gpu_option
@family_option
@measuring_options
def solve(
    model: Path | None,
    budget: str | None,
    bpw: str | None,
    devices: tuple[str, ...],
    active_budget: str | None,
    ties: tuple[str, ...],
    pin: tuple[str, ...],
    floors: tuple[str, ...],
    caps: tuple[str, ...],
    sensitivity: str | None,
    explained: tuple[str, ...],
    output: Path,
    method: str,
    gap: float,
    time_limit: float,
    polish: Path | None,
    polish_passes: int,
    run_on: str,
    gpu_layers: int,
    family: str,
    **measuring: Unpack[Measuring],
) -> None:
    """Pick a type for every tensor so that the file fits a budget and loses as little as possible.

    With MODEL, measures first what is missing. Without, a finished state file in this directory is enough. The
    recipe is proven to be within a gap of the best there is.
    """
    from planner.formats.registry import choose_formats
    from planner.plan.request import Request
    from planner.plan.rules import parse_rule, parse_tie
    from planner.report import explanation

    kind = cast("Family", family)
    request = Request(
        **_limits(budget, bpw, devices, active_budget),
        family=kind,
        formats=None if measuring["types"] is None else choose_formats(kind, measuring["types"]),
        pins=tuple(parse_rule(text, family=kind) for text in pin),
        floors=tuple(parse_rule(text, default_pattern="", family=kind) for text in floors),
        caps=tuple(parse_rule(text, default_pattern="", family=kind) for text in caps),
        ties=tuple(tie for text in ties for tie in parse_tie(text)),
        sensitivity=cast("Source | None", sensitivity),
        run_on=cast("RunOn", run_on),
        method=method,
        gap=gap,
        time_limit=time_limit,
    )
    if model is None:
        plan = _plan_from_state(request, measuring, polish)
    else:
        plan = _plan_with_model(model, request, measuring, output, polish, polish_passes, gpu_layers)
    explanations = [explanation(plan, tensor) for tensor in explained]  # first: a wrong name leaves no recipe behind
    _report(plan, output, model)
    for text in explanations:
        click.echo("\n" + plain(text, keep="\n"))


def _plan_from_state(request: Request, measuring: Measuring, polish: Path | None) -> Plan:
    """Plan without the model. Raises UsageError for what would need it."""
    from planner.plan.plan import make_plan
    from state import Store

    if polish is not None:
        raise UsageError("--polish runs the model.", "Give MODEL too.")
    if measuring["imatrix"] is not None:
        raise UsageError("--imatrix is for measuring, which needs the model.", "Give the model too, or leave it out.")
    with Store.open(find_state(measuring["state"]), read_only=True) as store:
        return make_plan(store, request)


def _plan_with_model(
    model: Path,
    request: Request,
    measuring: Measuring,
    output: Path,
    polish: Path | None,
    polish_passes: int,
    gpu_layers: int,
) -> Plan:
    """Measure what is missing, plan, and polish on a text where one is given."""
    from planner.plan.plan import make_plan

    if polish is not None and request.family != "gguf":
        raise UsageError("--polish runs llama.cpp, which has none of MLX's types.", "Leave --polish or --family out.")
    with open_sources(model, measuring) as sources:
        if polish is not None:
            check_runs([model], context=0, gpu_layers=gpu_layers)
        _measure(sources, request, measuring)
        plan = make_plan(sources.store, request)
        if polish is not None:
            polishing = _Polishing(polish, polish_passes, output, measuring["threads"], gpu_layers)
            plan = polishing.run(plan, request, sources)
        return plan


def _limits(budget: str | None, bpw: str | None, devices: tuple[str, ...], active_budget: str | None) -> dict[str, Any]:
    """The limits of a request. Raises UsageError."""
    from planner.plan.rules import parse_device
    from planner.sizes import parse_bits, parse_size

    limits = {
        "budget": None if budget is None else parse_size(budget),
        "bpw": None if bpw is None else parse_bits(bpw),
        "devices": tuple(map(parse_device, devices)),
        "active": None if active_budget is None else parse_size(active_budget),
    }
    if budget is not None and bpw is not None:
        raise UsageError("--budget and --bpw exclude each other.", "Give one of them.")
    return limits


def _measure(sources: Sources, request: Request, measuring: Measuring) -> None:
    from planner.cli.measure import run_campaign
    from planner.formats.registry import choose_formats
    from planner.plan.rules import pinned_formats

    pinned = pinned_formats(request.pins, sources.model.by_name)
    family = request.family
    run_campaign(sources, choose_formats(family, measuring["types"] or "all"), pinned, measuring, family=family)


@dataclass(frozen=True)
class _Polishing:
    """`--polish` and what belongs to it."""

    text: Path
    passes: int
    output: Path
    threads: int
    gpu_layers: int

    def run(self, plan: Plan, request: Request, sources: Sources) -> Plan:
        """The plan with a recipe that was improved on a text. Stopped, it is the recipe as it stands; `output` always
        has that, in case llama.cpp ends the process."""
        from planner.llama.passes.perturb import perturber
        from planner.llama.passes.polish import TOKENS, Polish
        from planner.llama.text import spread_windows, window_length
        from planner.recipe import save_recipe

        model, context = sources.model, window_length(sources.model)
        save_recipe(plan.recipe, self.output)
        with contextlib.ExitStack() as open_things:
            changer = open_things.enter_context(
                perturber(
                    model.path, model, sources.imatrix, context=context, threads=self.threads,
                    gpu_layers=self.gpu_layers,
                )
            )  # fmt: skip
            (windows,) = spread_windows(changer.engine, self.text, context, TOKENS)
            polish = open_things.enter_context(Polish(sources.store, request, changer, windows, plan))
            kept = tried = 0
            try:
                with progress_bar("tokens") as advance:
                    seconds = polish.start(functools.partial(advance, "the recipe"))
                click.echo(f"At most {self.passes} exchanges of {seconds:.1f} s each.", err=True)
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
    from planner.report import limit_line, next_step, role_table, size_line

    recipe = plan.recipe
    save_recipe(recipe, output)
    click.echo(role_table(recipe))
    click.echo(f"\n{size_line(recipe)}")
    for limit in plan.limits:
        click.echo(f"Limit      {plain(limit_line(limit))}")
        if not limit.binds:
            click.echo("           It does not bind: nothing that may be chosen takes more.")
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
    if plan.left_out:
        click.echo(f"Left out   {len(plan.left_out)} tensors of nextn layers, which mlx-lm does not load")
    click.echo(f"Recipe     {output}")
    click.echo(f"\nNext: {next_step(recipe, output, model)}")
