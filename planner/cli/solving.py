"""Options of `planner solve`, grouped, and the request that they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from planner.cli.fitting import Fitting, make_fit
from planner.cli.options import LiteralChoice, grouped
from planner.errors import UsageError
from planner.terms import Draft, FamilyName, RunOn, Source

if TYPE_CHECKING:
    from planner.plan.request import PlanRequest
    from planner.plan.target import Target

__all__ = [
    "Limits",
    "Polishing",
    "Rules",
    "Solver",
    "limit_options",
    "make_request",
    "polish_options",
    "rule_options",
    "run_on_option",
    "sensitivity_option",
    "solver_options",
]


class Limits(NamedTuple):
    """Limits on sizes, as a user writes them."""

    budget: str | None
    bpw: str | None
    devices: tuple[str, ...]
    active_budget: str | None


class Rules(NamedTuple):
    """Rules about the types of tensors, as a user writes them."""

    ties: tuple[str, ...]
    pins: tuple[str, ...]
    floors: tuple[str, ...]
    caps: tuple[str, ...]
    draft: Draft


class Solver(NamedTuple):
    """How to solve."""

    method: str
    gap: float
    time_limit: float


class Polishing(NamedTuple):
    """The text to polish on, if any, and how many exchanges to try."""

    polish: Path | None
    polish_passes: int
    check: Path | None


class _MethodOption(click.Option):
    """An option whose help lists the solvers' methods, and which loads the solvers only for that."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from solvers import METHODS

        self.help = f"Solver: {', '.join(METHODS)}."
        return super().get_help_record(ctx)


limit_options = grouped(
    "limits",
    Limits,
    click.option("--budget", metavar="SIZE", help="Size of the file on disk: 23.85GB, 22GiB, 900MB, or bytes."),
    click.option("--bpw", metavar="BITS", help="Bits of tensor data per weight, as llama-quantize counts them."),
    click.option(
        "--device", "devices", multiple=True, metavar="NAME:REGEX=SIZE",
        help="Tensors that go to a device, and what it holds; a tensor belongs to the first device that matches.",
    ),
    click.option("--active-budget", metavar="SIZE", help="Bytes read for one token; of experts, those used count."),
)  # fmt: skip
rule_options = grouped(
    "rules",
    Rules,
    click.option("--tie", "ties", multiple=True, metavar="REGEX|fused", help="Tensors of a block that take one type."),
    click.option("--pin", "pins", multiple=True, metavar="REGEX=TYPE",
                 help="Tensors that get this type, whatever it costs."),
    click.option("--min", "floors", multiple=True, metavar="[REGEX=]TYPE", help="Nothing smaller than this type."),
    click.option("--max", "caps", multiple=True, metavar="[REGEX=]TYPE", help="Nothing larger than this type."),
    click.option("--draft", type=LiteralChoice(Draft), default="auto", show_default=True,
                 help="Draft heads (nextn): chosen, but of 4 bits at least; as they are; 8 bits; or left out."),
)  # fmt: skip
solver_options = grouped(
    "solver",
    Solver,
    click.option("--method", cls=_MethodOption, default="auto", show_default=True),
    click.option("--gap", type=click.FloatRange(min=0), default=1e-6, show_default=True,
                 help="Stop at this proven gap."),
    click.option("--time-limit", type=click.FloatRange(min=0), default=10.0, show_default=True,
                 help="Seconds to solve."),
)  # fmt: skip
polish_options = grouped(
    "polishing",
    Polishing,
    click.option("--polish", metavar="TEXT", type=click.Path(path_type=Path),
                 help="Try exchanges on a text, and keep what helps."),
    click.option("--polish-passes", type=click.IntRange(min=1), default=50, show_default=True,
                 help="Exchanges to try at the most."),
    click.option("--check", metavar="TEXT", type=click.Path(path_type=Path),
                 help="Evaluate the recipe beside others and llama.cpp's mix of its size; keep the best."),
)  # fmt: skip
sensitivity_option = click.option(
    "--sensitivity", type=LiteralChoice(Source),
    help="Where sensitivities come from.  [default: the best that there is]",
)  # fmt: skip
run_on_option = click.option(
    "--run-on", type=LiteralChoice(RunOn), default="cpu", show_default=True,
    help="Where the file will run. A CPU rounds activations to 8 bits, most coarsely for k- and i-quants.",
)  # fmt: skip


def make_request(
    limits: Limits,
    rules: Rules,
    solver: Solver,
    *,
    family: FamilyName,
    types: str | None,
    sensitivity: Source | None,
    run_on: RunOn,
    fitting: Fitting | None = None,
    target: Target | None = None,
) -> PlanRequest:
    """Make a request of options. Raises UsageError for values that cannot be parsed or do not go together."""
    from planner.formats.registry import family_named
    from planner.plan.request import PlanRequest
    from planner.plan.rules import parse_device, parse_rule, parse_tie
    from planner.sizes import parse_bits, parse_size

    budget = None if limits.budget is None else parse_size(limits.budget)
    bpw = None if limits.bpw is None else parse_bits(limits.bpw)
    devices = tuple(map(parse_device, limits.devices))
    active = None if limits.active_budget is None else parse_size(limits.active_budget)
    if budget is not None and bpw is not None:
        raise UsageError("--budget and --bpw exclude each other.", "Give one of them.")
    return PlanRequest(
        budget=budget,
        bpw=bpw,
        devices=devices,
        active=active,
        fit=None if fitting is None else make_fit(fitting),
        family=family,
        formats=None if types is None else family_named(family).choose(types),
        pins=tuple(parse_rule(text, family=family) for text in rules.pins),
        floors=tuple(parse_rule(text, default_pattern="", family=family) for text in rules.floors),
        caps=tuple(parse_rule(text, default_pattern="", family=family) for text in rules.caps),
        ties=tuple(tie for text in rules.ties for tie in parse_tie(text)),
        sensitivity=sensitivity,
        run_on=run_on,
        draft=rules.draft,
        method=solver.method,
        gap=solver.gap,
        time_limit=solver.time_limit,
        target=target,
    )
