"""`planner card`."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.messages import wrapped
from planner.errors import OutputError

__all__ = ["card"]

_paths = click.Path(path_type=Path)


@click.command()
@click.argument("files", metavar="RECIPE|GGUF...", nargs=-1, required=True, type=_paths)
@click.option("--model", type=_paths, help="The model.  [default: where the first recipe says that it is]")
@click.option("--base-model", metavar="ORG/NAME", help="The original on the hub.  [default: by the model's metadata]")
@click.option("--by", "quantized_by", metavar="NAME", help="Who quantized it.")
@click.option("--repo", "repository", metavar="ORG/NAME", help="Where the files will be, for commands that run them.")
@click.option("--dataset", metavar="ORG/NAME", help="The importance matrix's text, if it is a data set on the hub.")
@click.option("--results", metavar="FILE", type=_paths, help="Results of `planner compare`, for divergences.")
@click.option(
    "-c", "--ctx", type=click.IntRange(min=1), metavar="TOKENS",
    help="Context that a memory is to hold beside the weights.  [default: 8192, or the model's own if less]",
)  # fmt: skip
@click.option("-o", "--output", type=_paths, default="README.md", show_default=True)
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
def card(
    files: tuple[Path, ...], model: Path | None, base_model: str | None, quantized_by: str | None,
    repository: str | None, dataset: str | None, results: Path | None, ctx: int | None, output: Path, force: bool,
) -> None:  # fmt: skip
    """Write README.md for a repository of quantized files of one model, as the Hugging Face hub expects it, and say
    what to call the files.

    Names have the exact bits per weight and, for llama.cpp -hf, ollama and LM Studio, the label of the mix of
    llama.cpp that is nearest in size; none where no mix is near.
    """
    from planner.api.card import make_card
    from planner.files import write_atomically
    from planner.report.card import readme
    from planner.report.columns import table
    from planner.text import command, plain

    if output.exists() and not force:
        raise OutputError(f"{output} exists.", "Choose another name, or overwrite it with --force.")
    made = make_card(
        files, model=model, results=results, base_model=base_model, quantized_by=quantized_by, repository=repository,
        dataset=dataset, ctx=ctx,
    )  # fmt: skip
    write_atomically(output, readme(made).encode())
    rows = [("", "size", "bpw", "to be called")]
    rows += [(entry.given.name, f"{entry.bytes:,}", f"{entry.bpw:.3f}", entry.called) for entry in made.entries]
    click.echo("\n".join(table(rows, "<>><")))
    for entry in made.entries:
        if entry.recipe is None and entry.given.name != entry.called and "-00001-of-" not in entry.called:
            click.echo(f"\nNext: {command('mv', entry.given, entry.given.with_name(entry.called))}")
    for said in made.room.notes if made.room else ():
        click.echo(wrapped(plain(said)), err=True)
    if made.facts.base_model is None:
        click.echo("The model's metadata do not say what it is on the hub: say so with --base-model.", err=True)
    if made.facts.license is None:
        click.echo("The model's metadata have no licence: the card says nothing of it.", err=True)
    click.echo(f"Card       {output}")
