"""Options of a card's memory, and the fit that they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from planner.cli.options import grouped

if TYPE_CHECKING:
    from planner.plan.cards import Fit

__all__ = ["Fitting", "fitting_options", "make_fit"]


class Fitting(NamedTuple):
    """A card's memory and what is to be in it beside weights, as a user writes them."""

    vram: str | None
    ctx: int | None
    kv: str | None
    parallel: int | None
    ubatch_size: int | None
    mmproj: Path | None
    margin: str | None


fitting_options = grouped(
    "fitting",
    Fitting,
    click.option("--vram", metavar="SIZE", help="Memory of the card that all of the model goes to, with its context."),
    click.option(
        "-c", "--ctx", type=click.IntRange(min=1), metavar="TOKENS",
        help="Context that has to fit beside the weights, on the card or on each --device.",
    ),
    click.option(
        "--kv", metavar="TYPE[,TYPE]", help="Type of keys and values, or of each: q8_0, q4_0 ...  [default: f16]"
    ),
    click.option(
        "-np", "--parallel", type=click.IntRange(min=1), metavar="N",
        help="Sequences that share the context.  [default: 1]",
    ),
    click.option(
        "-ub", "--ubatch-size", type=click.IntRange(min=1), metavar="N",
        help="Tokens that are computed at once.  [default: 512]",
    ),
    click.option(
        "--mmproj", metavar="FILE", type=click.Path(path_type=Path), help="Encoder of images or sound beside the model."
    ),
    click.option(
        "--margin", metavar="SIZE", help="Room for compute buffers and the driver.  [default: an estimate, and 1 GiB]"
    ),
)  # fmt: skip


def make_fit(fitting: Fitting) -> Fit | None:
    """Make a fit of options. Raises UsageError for values that cannot be parsed or lack others, ModelError for an
    encoder that is none."""
    if set(fitting) == {None}:
        return None
    from planner.plan.cards import parse_fit
    from planner.sizes import parse_size

    return parse_fit(
        vram=None if fitting.vram is None else parse_size(fitting.vram),
        ctx=fitting.ctx,
        kv=fitting.kv,
        parallel=fitting.parallel,
        ubatch_size=fitting.ubatch_size,
        mmproj=fitting.mmproj,
        margin=None if fitting.margin is None else parse_size(fitting.margin),
    )
