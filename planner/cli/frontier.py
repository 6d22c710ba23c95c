"""`planner frontier`."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from planner.cli.options import family_option, find_state, grouped
from planner.cli.solving import (
    Limits,
    Rules,
    Solver,
    make_request,
    rule_options,
    run_on_option,
    sensitivity_option,
    solver_options,
)
from planner.errors import UsageError
from planner.terms import FamilyName, RunOn, Source
from planner.text import plain

if TYPE_CHECKING:
    from planner.plan.findings import Findings
    from planner.plan.ladder import Ladder
    from planner.plan.offer import Offer
    from planner.plan.request import PlanRequest

__all__ = ["frontier"]

_SMOOTH = 120  # points of a picture, and of files for other programs
_SUFFIXES = (".png", ".svg", ".csv", ".json")


class Range(NamedTuple):
    """What of the curve is wanted, as a user writes it."""

    low: str
    high: str
    points: int | None


class Beside(NamedTuple):
    """What is to stand beside the curve."""

    others: tuple[str, ...]
    memories: tuple[str, ...]
    reserve: str
    ctx: int | None
    mixes: bool


class Within(NamedTuple):
    """Limits besides the size, as a user writes them."""

    devices: tuple[str, ...]
    active_budget: str | None


class Shown(NamedTuple):
    """How it is to be shown."""

    as_csv: bool
    as_json: bool
    output: Path | None
    force: bool


range_options = grouped(
    "wanted",
    Range,
    click.option("--from", "low", default="2bpw", show_default=True, metavar="BITS|SIZE", help="Smallest: 2bpw, 9GB."),
    click.option("--to", "high", default="8.5bpw", show_default=True, metavar="BITS|SIZE", help="Largest."),
    click.option("--points", type=click.IntRange(2, 10_000), help=f"Sizes between.  [default: 14; files: {_SMOOTH}]"),
)  # fmt: skip
beside_options = grouped(
    "beside",
    Beside,
    click.option("--with", "others", multiple=True, metavar="FILE", help="A GGUF or a recipe of the model, beside it."),
    click.option("--memory", "memories", multiple=True, metavar="SIZE",
                 help="A memory to fill.  [default: those that people have, 6 to 96 GiB]"),
    click.option("--reserve", default="1GiB", show_default=True, metavar="SIZE",
                 help="Left free in each memory; the default is llama.cpp's own margin."),
    click.option("-c", "--ctx", type=click.IntRange(min=1), metavar="TOKENS",
                 help="Context that each memory has room for too, in f16, with buffers.  [default: none]"),
    click.option("--mixes/--no-mixes", default=True, show_default=True, help="llama.cpp's own mixes beside it."),
)  # fmt: skip
within_options = grouped(
    "within",
    Within,
    click.option("--device", "devices", multiple=True, metavar="NAME:REGEX=SIZE",
                 help="What a device holds, at every size."),
    click.option("--active-budget", metavar="SIZE", help="Bytes read for one token, at every size."),
)  # fmt: skip
shown_options = grouped(
    "shown",
    Shown,
    click.option("--csv", "as_csv", is_flag=True, help="Print rows for a spreadsheet."),
    click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON."),
    click.option("-o", "--output", type=click.Path(path_type=Path),
                 help="Write a file, by its suffix: .png, .svg, .csv, .json."),
    click.option("-f", "--force", is_flag=True, help="Overwrite outputs."),
)  # fmt: skip


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--state", type=click.Path(path_type=Path), help="State file.  [default: MODEL's name, .planner, here]")
@range_options
@click.option("--ladder", type=click.IntRange(min=2), metavar="N", help="Choose N sizes worth publishing.")
@click.option("--recipes", type=click.Path(path_type=Path), metavar="DIR", help="Write their recipes into this folder.")
@beside_options
@within_options
@rule_options
@click.option("--types", help="Types to choose from, as for solve.")
@sensitivity_option
@run_on_option
@family_option
@shown_options
@solver_options
def frontier(
    model: Path | None,
    state: Path | None,
    wanted: Range,
    ladder: int | None,
    recipes: Path | None,
    beside: Beside,
    within: Within,
    rules: Rules,
    types: str | None,
    sensitivity: Source | None,
    run_on: RunOn,
    family: FamilyName,
    shown: Shown,
    solver: Solver,
) -> None:
    """Show what every size of a model loses: the whole trade-off, from a state file alone, in seconds.

    Beside it stand llama.cpp's own mixes and other files, all by the same measure, and the memories that people have.
    Each size is the best for its bytes, proven. --ladder chooses the few sizes worth publishing, spaced so that each is
    a visible step, and says why just those.
    """
    from planner.files import check_destinations, write_atomically
    from planner.plan.findings import Findings
    from planner.plan.request import ANY_SIZE
    from planner.report.curve import curve_text
    from state import Store

    _check_output(shown, ladder, recipes)
    path = find_state(state, model)
    if shown.output is not None:
        check_destinations([shown.output], 0, [path, *map(Path, beside.others)], force=shown.force)
    request = make_request(
        Limits(None, str(ANY_SIZE), within.devices, within.active_budget), rules, solver, family=family, types=types,
        sensitivity=sensitivity, run_on=run_on,
    )  # fmt: skip
    with Store.open(path, read_only=True) as store:
        findings = Findings.read(store, family, request.draft)
    points = wanted.points or (_SMOOTH if shown.output or shown.as_csv or shown.as_json else None)
    offer = _offer(findings, request, wanted._replace(points=points), beside, ladder)
    if shown.output is not None:
        write_atomically(shown.output, _encoded(offer, shown.output.suffix.lower()))
    if shown.as_csv or shown.as_json:
        click.echo(_encoded(offer, ".csv" if shown.as_csv else ".json").decode(), nl=False)
    elif shown.output is None or ladder is not None:
        click.echo(plain(curve_text(offer), keep="\n"))
    if recipes is not None:
        assert offer.ladder is not None
        _write_recipes(recipes, offer.ladder, findings, request, force=shown.force)
    if shown.output is not None and not (shown.as_csv or shown.as_json):
        click.echo(f"Written to {plain(str(shown.output))}")


def _check_output(shown: Shown, ladder: int | None, recipes: Path | None) -> None:
    """Raise UsageError for outputs that cannot be, before anything is worked out."""
    if shown.as_csv and shown.as_json:
        raise UsageError("--csv and --json exclude each other.", "Give one of them.")
    if recipes is not None and ladder is None:
        raise UsageError("--recipes writes those of a ladder.", "Give --ladder too.")
    if shown.output is not None and shown.output.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"{shown.output}: its suffix does not say what to write.", f"Give {', '.join(_SUFFIXES)}.")


def _offer(findings: Findings, request: PlanRequest, wanted: Range, beside: Beside, ladder: int | None) -> Offer:
    from planner.api.others import other_file
    from planner.plan.offer import POINTS, make_offer
    from planner.sizes import parse_extent, parse_size

    return make_offer(
        findings, request, low=parse_extent(wanted.low), high=parse_extent(wanted.high), points=wanted.points or POINTS,
        others=[other_file(text) for text in beside.others], mixes=beside.mixes,
        memories=[parse_size(text) for text in beside.memories], reserve=parse_size(beside.reserve), ctx=beside.ctx,
        ladder=ladder,
    )  # fmt: skip


def _encoded(offer: Offer, suffix: str) -> bytes:
    from planner.report.curve import FIELDS, curve_facts, curve_rows

    if suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(curve_rows(offer))
        return text.getvalue().encode()
    if suffix == ".json":
        return (json.dumps(curve_facts(offer), indent=2, allow_nan=False) + "\n").encode()
    from planner.report.chart import curve_chart

    return curve_chart(offer, "png" if suffix == ".png" else "svg")


def _write_recipes(folder: Path, ladder: Ladder, findings: Findings, request: PlanRequest, *, force: bool) -> None:
    from planner.files import refused
    from planner.plan.plan import make_plan
    from planner.recipe import save_recipe

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder, error) from error
    for rung in ladder.rungs:
        recipe = make_plan(findings, replace(request, bpw=None, budget=rung.point.bytes)).recipe
        path = folder / f"{recipe.bpw:.2f}bpw.json"
        save_recipe(recipe, path, force=force)
        click.echo(f"Recipe     {plain(str(path))}  {recipe.size:,} bytes")
