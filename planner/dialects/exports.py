"""The dialects that a recipe can be exported to, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from planner.dialects.auto_round import export_auto_round
from planner.dialects.dialect import Exported
from planner.dialects.evopress import export_evopress
from planner.dialects.ik_llama import export_ik_llama
from planner.dialects.llama_quantize import export_llama_quantize
from planner.dialects.mlx_lm import export_mlx_lm
from planner.dialects.table import export_table
from planner.dialects.tool_suite import export_tool_suite
from planner.errors import RecipeError, UsageError, option
from planner.recipe import Recipe

__all__ = ["EXPORTS", "Export", "export_recipe"]


class _Exporter(Protocol):
    def __call__(self, recipe: Recipe, paths: Mapping[str, Path], *, compact: bool, threads: int) -> Exported: ...


@dataclass(frozen=True)
class Export:
    """A dialect: its exporter, the suffixes of the files that it may write, the main one first, and the families of
    recipes that it can say."""

    write: _Exporter
    suffixes: tuple[str, ...]
    families: tuple[str, ...] = ("gguf",)


EXPORTS: Mapping[str, Export] = {
    "llama-quantize": Export(export_llama_quantize, (".types.txt",)),
    "ik_llama": Export(export_ik_llama, (".custom-q.txt", ".imatrix.dat")),
    "gguf-tool-suite": Export(export_tool_suite, (".recipe",)),
    "mlx-lm": Export(export_mlx_lm, (".mlx.json", ".mlx.py"), ("gguf", "mlx")),
    "auto-round": Export(export_auto_round, (".auto-round.json",)),
    "evopress": Export(export_evopress, (".evopress.txt",)),
    "csv": Export(export_table, (".csv",), ("gguf", "mlx")),
}


def export_recipe(
    recipe: Recipe, dialect: str, beside: Path, *, output: Path | None = None, compact: bool = False, threads: int = 1
) -> tuple[dict[Path, str], Exported]:
    """Texts by the path where they belong: named after `beside`, the main one `output` where given.

    Raises UsageError for an unknown dialect, RecipeError for what the dialect cannot say.
    """
    if dialect not in EXPORTS:
        raise UsageError(f"There is no dialect {dialect!r}.", f"There are {', '.join(EXPORTS)}.")
    if recipe.family not in EXPORTS[dialect].families:
        raise RecipeError(
            f"The recipe is planned for MLX, and {dialect} has none of MLX's formats.",
            f"Export it {option('to', 'mlx-lm')}, or solve again without {option('family', 'mlx')}.",
        )
    suffixes = EXPORTS[dialect].suffixes
    paths = {suffix: beside.with_name(beside.name.removesuffix(".json") + suffix) for suffix in suffixes}
    if output is not None:
        paths = {suffix: output.with_name(output.stem + suffix) for suffix in suffixes} | {suffixes[0]: output}
    exported = EXPORTS[dialect].write(recipe, paths, compact=compact, threads=threads)
    return {paths[suffix]: text for suffix, text in exported.files.items()}, exported
