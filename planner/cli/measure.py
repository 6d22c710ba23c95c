"""`planner measure`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.messages import tell_unseen, wrapped
from planner.cli.options import Measuring, family_option, measuring_options, open_sources
from planner.cli.progress import progress_bar
from planner.errors import Interrupted
from planner.terms import FamilyName
from planner.text import command, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.cli.options import Sources
    from planner.formats.ggml import Format

__all__ = ["measure", "run_campaign"]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@family_option
@measuring_options
def measure(model: Path, family: FamilyName, measuring: Measuring) -> None:
    """Measure how wrong every tensor of MODEL becomes in every format.

    Rows of each tensor are sampled, quantized with the family's own kernels and compared, weighted by the imatrix.
    Results go to the state file as they come: stop at any time, the same command goes on.
    """
    from planner.formats.registry import family_named

    chosen = family_named(family)
    formats = chosen.choose(measuring.types or "all")
    with open_sources(model, measuring) as sources:
        done, fresh = run_campaign(sources, formats, {}, measuring, family=chosen.name)
        click.echo(f"{done} measurements in {sources.state}, {fresh} of them new.")
        click.echo(f"Next: {command('planner', 'solve', '--state', sources.state, *chosen.option, '--budget', 'SIZE')}")


def run_campaign(
    sources: Sources,
    formats: Sequence[Format],
    pinned: Mapping[str, Sequence[Format]],
    measuring: Measuring,
    *,
    family: FamilyName = "gguf",
) -> tuple[int, int]:
    """Measure what is missing, with a progress bar; returns how many measurements there are and how many are new.

    Raises Interrupted, ClusterError, and what `Campaign` raises.
    """
    from planner.measure import Settings
    from planner.measure.campaign import Campaign

    if sources.imatrix is None:
        click.echo("No imatrix: formats that need one are left out, and errors count alike in every channel.", err=True)
    elif not sources.imatrix.has_means:
        click.echo(
            "The imatrix has no sums of activations (.in_sum), so sensitivities are less sure. One that has\n"
            "them makes better recipes:\n"
            f"  {command('planner', 'imatrix', sources.model.path, '--text', 'FILE')}",
            err=True,
        )
    settings = Settings(measuring.seed, measuring.tolerance)
    campaign = Campaign(
        sources.model, sources.imatrix, sources.store, formats, settings, family=family,
        refinement=sources.refinement, pinned=pinned, allow_requantize=measuring.allow_requantize,
    )  # fmt: skip
    if sources.imatrix is not None:
        tell_unseen(sources.imatrix, sources.model.by_name)
    for note in campaign.notes:
        click.echo(wrapped(plain(note)), err=True)
    done = total = fresh = 0
    try:
        with progress_bar("measurements") as advance:
            for step in campaign.run(measuring.threads, measuring.scheduler):
                done, total, fresh = step.done, step.total, step.fresh
                advance(step.what, done, total)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped. {campaign.saved()} of {total} measurements are saved in {sources.state}.",
            "The same command goes on from there.",
        ) from None
    return done, fresh
