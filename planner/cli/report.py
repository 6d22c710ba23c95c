"""`planner report`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from click.core import ParameterSource

from planner.cli.options import family_option, find_state
from planner.cli.solving import (
    Limits,
    Rules,
    Solver,
    make_request,
    rule_options,
    run_on_option,
    sensitivity_option,
)
from planner.errors import UsageError
from planner.terms import FamilyName, RunOn, Source

__all__ = ["report"]


@click.command()
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("--state", type=click.Path(path_type=Path), help="State file of the model.  [default: the only one here]")
@click.option("--budget", metavar="SIZE", help="Size that the page opens with.  [default: RECIPE's, or 4.5 bpw]")
@click.option("--bpw", metavar="BITS", help="The same in bits per weight.")
@click.option(
    "--beside", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
    help="A GGUF or a recipe to show in the chart, as llama.cpp's own mixes are.",
)  # fmt: skip
@click.option("--types", help="Types to choose from, as for solve.  [default: all that were measured]")
@rule_options
@sensitivity_option
@click.option("-o", "--output", type=click.Path(path_type=Path), default="report.html", show_default=True)
@run_on_option
@family_option
def report(
    recipe: Path | None,
    state: Path | None,
    budget: str | None,
    bpw: str | None,
    beside: tuple[Path, ...],
    types: str | None,
    rules: Rules,
    sensitivity: Source | None,
    output: Path,
    run_on: RunOn,
    family: FamilyName,
) -> None:
    """Write a page on which every size of a model can be explored: one HTML file that needs no network.

    All that a state file knows is in it, and a solver: drag a size, see what every layer gets and what its next step
    would cost, pin tensors, and take the recipe along. With RECIPE it opens with that one and its pins; other rules of
    the recipe are to be given again, as a recipe does not have them.
    """
    from planner.api.others import other_file
    from planner.files import write_atomically
    from planner.plan.findings import Findings
    from planner.plan.request import ANY_SIZE
    from planner.recipe import load_recipe
    from planner.report.page import Start, report_page
    from planner.sizes import format_size, parse_bits, parse_size
    from state import Store

    if (recipe is not None) + (budget is not None) + (bpw is not None) > 1:
        raise UsageError("RECIPE, --budget and --bpw all say what the page opens with.", "Give one of them.")
    start = Start(
        None if recipe is None else load_recipe(recipe),
        None if budget is None else parse_size(budget),
        None if bpw is None else float(parse_bits(bpw)),
    )
    request = make_request(
        Limits(budget=None, bpw=str(ANY_SIZE), devices=(), active_budget=None), rules, Solver("auto", 1e-6, 10.0),
        family=start.recipe.family if start.recipe else family, types=types, sensitivity=sensitivity, run_on=run_on,
    )  # fmt: skip
    with Store.open(find_state(state), read_only=True) as store:
        findings = Findings.read(store, request.family, request.draft)
    page = report_page(
        findings, request, start, beside=[other_file(path) for path in beside],
        made_by=("planner", "report", *_words()),
    ).encode()  # fmt: skip
    write_atomically(output, page)
    click.echo(f"{output}\n{format_size(len(page))}; open it in a browser")


def _words() -> Iterator[str | Path]:
    """Yield the words of this command line, without where it writes to."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and name != "output":
            value = context.params[name]
            for one in value if parameter.multiple else (value,):
                yield from (one,) if isinstance(parameter, click.Argument) else (parameter.opts[-1], one)
