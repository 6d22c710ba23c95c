"""Recipes written for other quantizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from planner.dialects.dialect import ExportContext, Exported
from planner.dialects.registry import load_dialect, writable
from planner.errors import ImatrixError, RecipeError, UsageError, option
from planner.formats.registry import family_named
from planner.recipe import ImatrixSource, Recipe

__all__ = ["export_recipe", "files_of"]

_NOT_REFINED = (
    "The recipe is planned for codes that are refined against covariances. Another quantizer writes the same types "
    "with its own codes: a file of the same size that diverges more. planner quantize writes the refined ones."
)
_KEPT_HEADS = (
    "The recipe leaves draft heads (nextn) out, and other quantizers keep them: the file gets larger than the recipe "
    "says. planner quantize leaves them out; so does a conversion of the original (convert_hf_to_gguf.py --no-mtp)."
)


def export_recipe(
    recipe: Recipe, dialect: str, beside: Path, *, output: Path | None = None, compact: bool = False, threads: int = 1
) -> tuple[dict[Path, str], Exported]:
    """Return texts by the path where they belong: named after `beside`, the main one `output` if given.

    Raises UsageError for an unknown dialect, RecipeError for anything that the dialect cannot express.
    """
    chosen = load_dialect(dialect)
    if chosen.write is None:
        raise UsageError(f"{dialect} can be imported only.", f"Export to one of {', '.join(writable())}.")
    if recipe.family not in chosen.families:
        raise _of_another_family(recipe, dialect, chosen.families)
    suffixes = chosen.suffixes
    paths = {suffix: beside.with_name(beside.name.removesuffix(".json") + suffix) for suffix in suffixes}
    if output is not None:
        paths = {suffix: output.with_name(output.stem + suffix) for suffix in suffixes} | {suffixes[0]: output}
    exported = chosen.write(recipe, ExportContext(paths, compact, threads))
    if recipe.covariance is not None:
        exported = replace(exported, notes=(*exported.notes, _NOT_REFINED))
    if recipe.draft == "drop":
        exported = replace(exported, notes=(*exported.notes, _KEPT_HEADS))
    return {paths[suffix]: text for suffix, text in exported.files.items()}, exported


def _of_another_family(recipe: Recipe, dialect: str, families: Sequence[str]) -> RecipeError:
    own = family_named(recipe.family)
    if own.option:
        return RecipeError(
            f"The recipe is planned for {own.title}, and {dialect} has none of {own.title}'s formats.",
            f"Export it {option('to', own.dialect)}, or solve again without {option('family', own.name)}.",
        )
    return RecipeError(
        f"The recipe is planned for ggml, and {dialect} has none of its formats.",
        f"Solve again with {option('family', families[0])}.",
    )


def files_of(recipe: Recipe, texts: dict[Path, str], exported: Exported) -> dict[Path, bytes]:
    """Return the bytes of all files of an export: its texts and, if the command expects it, the recipe's imatrix in its
    older form. Raises ImatrixError if the imatrix has changed since the recipe."""
    files = {path: text.encode("utf-8", "surrogateescape") for path, text in texts.items()}
    if exported.imatrix is not None and recipe.imatrix is not None:
        files[exported.imatrix] = _older_imatrix(recipe.imatrix)
    return files


def _older_imatrix(source: ImatrixSource) -> bytes:
    from planner.gguf import read_imatrix
    from planner.gguf.legacy import legacy_bytes

    path = Path(source.path)
    imatrix = read_imatrix(path)
    if imatrix.digest != source.digest:
        raise ImatrixError(f"{path} is not the imatrix that the recipe was made with.", "Put that one there.")
    values = ((name, entry.values) for name, entry in imatrix.entries.items())
    return legacy_bytes(values, chunk_count=imatrix.chunk_count, datasets=imatrix.datasets)
