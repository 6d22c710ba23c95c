"""mlx-lm: the `quantization` dictionary of a model's config.json, and the same as a predicate for `mlx_lm.convert`.

A recipe of the family `mlx` is expressed exactly. One of ggml's types can only be approximated: each module gets the
MLX affine format nearest to its tensor in bits per weight.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping

from planner.dialects.dialect import (
    Dialect,
    ExportContext,
    Exported,
    ImportContext,
    Imported,
    beginning,
    changing,
    idle,
    placed,
    read_dictionary,
)
from planner.dialects.patterns import compacted, escaped
from planner.errors import RecipeError
from planner.formats.mlx import AFFINE, Affine
from planner.formats.registry import all_formats
from planner.names.gguf import ahead
from planner.names.mlx import MODULE_PREFIXES, module_paths
from planner.names.transformers import bare, other_modules
from planner.recipe import Choice, Recipe
from planner.text import command, some

__all__ = ["DIALECT", "nearest_affine"]

_QUANTIZATION = re.compile(r'"quantization(_config)?"\s*:\s*\{')


def nearest_affine(bpw: float, row_length: int) -> Affine | None:
    """Return the format nearest in bits per weight whose groups fill rows of `row_length`; None if none does."""
    options = [option for option in AFFINE.values() if option.fits(row_length)]
    return min(options, key=lambda option: (abs(option.bpw - bpw), option.bpw), default=None)


def _placed(recipe: Recipe) -> tuple[dict[str, list[Choice]], list[str]]:
    """Return the tensors of each module (several where MLX fuses them), and notes on tensors without one."""
    if any(not choice.shape for choice in changing(recipe)):
        raise RecipeError(
            "The recipe does not say the shapes of its tensors, which MLX's groups have to fill.",
            "Make it anew with `planner solve`, or complete it with `planner import`.",
        )
    pairs, notes = placed(
        changing(recipe), ahead(recipe.formats), lambda name: module_paths(name, recipe.model.architecture),
        "mlx-lm", "it keeps them in 16 bits",
    )  # fmt: skip
    modules: dict[str, list[Choice]] = {}
    for choice, paths in pairs:
        for path in paths:
            modules.setdefault(path, []).append(choice)
    return modules, notes


def _translated(recipe: Recipe) -> tuple[dict[str, Affine | None], list[str]]:
    """Return the nearest format for each module (None: 16 bits), and notes on what the translation changes."""
    chosen: dict[str, Affine | None] = {}
    table = all_formats()
    before = after = 0.0
    whole: list[str] = []
    modules, notes = _placed(recipe)
    for path, choices in modules.items():
        elements = sum(_elements(choice) for choice in choices)
        bits = sum(_elements(choice) * table[choice.format].bpw for choice in choices)
        plain = not any(table[choice.format].quantized for choice in choices)
        affine = None if plain else nearest_affine(bits / elements, choices[0].shape[0])
        if affine is None and not plain:
            whole += [choice.name for choice in choices]
        chosen[path] = affine
        before += bits / 8
        after += elements * (16 if affine is None else affine.bpw) / 8
    translated = (
        "MLX has none of the recipe's types: each module gets the bits and group size nearest to its tensor. "
        f"These tensors then take {after / 1e6:,.1f} MB instead of {before / 1e6:,.1f}, and lose what was not measured."
    )
    if whole:
        notes.append(f"{some(whole)}: none of MLX's groups fill the rows, so mlx-lm keeps these in 16 bits.")
    return chosen, [translated, *notes]


def _planned(recipe: Recipe) -> tuple[dict[str, Affine | None], list[str]]:
    """Return the format that a recipe of the family `mlx` gives each module (None: 16 bits), and notes."""
    chosen: dict[str, Affine | None] = {}
    modules, notes = _placed(recipe)
    for path, choices in modules.items():
        names = {choice.format for choice in choices}
        if len(names) > 1:
            raise RecipeError(
                f"{', '.join(choice.name for choice in choices)} are one module in mlx-lm, {path}, and have different "
                f"formats: {', '.join(sorted(names))}.",
                "Give them the same.",
            )
        chosen[path] = AFFINE.get(names.pop())
    return chosen, notes


def _elements(choice: Choice) -> int:
    elements = 1
    for size in choice.shape:
        elements *= size
    return elements


def _write(recipe: Recipe, context: ExportContext) -> Exported:
    """Return the dictionary and the predicate (with `compact`, of patterns). Raises RecipeError."""
    chosen, notes = _planned(recipe) if recipe.family == "mlx" else _translated(recipe)
    if recipe.model.architecture == "gemma3":
        notes.append("For a checkpoint with vision, every path begins with language_model. in mlx-lm.")
    counts = Counter(option for option in chosen.values() if option is not None)
    if not counts:
        raise RecipeError("The recipe quantizes nothing that MLX could.", "Solve for a smaller size.")
    usual = counts.most_common(1)[0][0]
    every = {path: option.parameters if option else False for path, option in chosen.items()}
    dictionary = {"quantization": {**usual.parameters, **every}}
    source = _predicate(recipe, chosen, compact=context.compact)
    files = {".mlx.json": json.dumps(dictionary, indent=2) + "\n", ".mlx.py": source}
    call = (
        f'predicate = runpy.run_path({json.dumps(str(context.paths[".mlx.py"]))})["quant_predicate"]\n'
        "mlx_lm.convert(HF_MODEL, quantize=True, q_group_size=32, quant_predicate=predicate)"
    )
    return Exported(files, command("python", "-c", f"import mlx_lm, runpy\n{call}"), notes)


def _read(text: str, context: ImportContext) -> Imported:
    """Read a config.json, or a file exported here, as `class_predicate` of mlx_lm.utils.load_model reads it; tensors
    that it does not quantize are left out. Notes name modules that the model does not have.

    Raises RecipeError, also for MLX's other formats, which are not affine.
    """
    names, architecture, where = context.names, context.architecture, context.where
    modules = _quantization(read_dictionary(text, where, "the config.json of a quantized model"), where)
    _affine(modules, modules, where, "all modules")  # refused even if every module has an entry of its own
    entries = {bare(key): value for key, value in modules.items()}
    chosen: dict[str, str] = {}
    known: set[str] = set()
    skipped = ahead(names)
    for name in names:
        try:
            paths = [] if name in skipped else module_paths(name, architecture)
        except RecipeError:
            paths = []
        if not paths:
            continue  # mlx-lm does not quantize it
        known.update(map(bare, paths))
        own = {_affine(entries.get(bare(path), True), modules, where, path) for path in paths}
        if len(own) > 1:
            raise RecipeError(
                f"{where} gives {' and '.join(paths)} different formats, and they are one tensor: {name}.",
                "Give them the same.",
            )
        fmt = own.pop()
        if fmt is not None:
            chosen[name] = fmt
    if not chosen:
        raise RecipeError(f"{where} quantizes none of the model's tensors.", "Give the model that it is for.")
    foreign = [key for key, value in entries.items() if isinstance(value, dict | bool) and key not in known]
    others = other_modules(names, architecture) if foreign else ()
    return Imported(chosen, tuple(idle([key for key in foreign if key not in others], "module")))


def _quantization(config: Mapping[str, object], where: str) -> Mapping[str, object]:
    modules = config.get("quantization", config.get("quantization_config"))
    if not isinstance(modules, dict):
        raise RecipeError(f"{where} has no quantization in it.", "Give the config.json of a model that MLX quantized.")
    method = modules.get("quant_method")
    if "quantization" not in config and method is not None:
        raise RecipeError(
            f"{where} is of a model that was quantized by {str(method)[:40]!r}, not by MLX.",
            "Give the config.json of a model that MLX quantized, or a layer_config of AutoRound alone.",
        )
    return modules


def _affine(value: object, usual: Mapping[str, object], where: str, path: str) -> str | None:
    """Return the format that a module's entry means; None: 16 bits."""
    if value is False:
        return None
    entry = usual if value is True else value
    if isinstance(entry, dict) and entry.get("mode", "affine") == "affine":
        name = f"mlx_q{entry.get('bits')}_g{entry.get('group_size')}"
        if name in AFFINE:
            return name
    shown = {key: entry.get(key) for key in ("mode", "bits", "group_size")} if isinstance(entry, dict) else entry
    raise RecipeError(
        f"{where} has {str(shown)[:80]} for {path}, which is none of MLX's affine formats.",
        "Bits are 2, 3, 4, 5, 6 or 8, in groups of 32, 64 or 128.",
    )


def _predicate(recipe: Recipe, chosen: Mapping[str, Affine | None], *, compact: bool) -> str:
    # names of formats, so that modules that get the same can be merged
    labels = {path: repr(option.parameters if option else False) for path, option in chosen.items()}
    head = f'"""What planner {recipe.planner} gives each module: for mlx_lm.convert(..., quant_predicate=...)."""\n'
    if not compact:
        rows = "".join(f"    {path!r}: {label},\n" for path, label in labels.items())
        body = f"MODULES = {{\n{rows}}}", "MODULES.get(path, False)"
    else:
        prefix = escaped(MODULE_PREFIXES.get(recipe.model.architecture, ""))
        # `compacted` knows blocks by GGUF's name for them
        layered = {path.replace("model.layers.", "blk.", 1): label for path, label in labels.items()}
        rows = "".join(
            f"    ({pattern.replace(f'^{prefix}blk', f'^{prefix}model{chr(92)}.layers', 1)!r}, {label}),\n"
            for pattern, label in compacted(layered, escaped)
        )
        body = (
            f"import re\n\nMODULES = (\n{rows})",
            "next((found for pattern, found in MODULES if re.search(pattern, path)), False)",
        )
    return f"{head}\n{body[0]}\n\n\ndef quant_predicate(path, module):\n    return {body[1]}\n"


DIALECT = Dialect(
    write=_write,
    suffixes=(".mlx.json", ".mlx.py"),
    families=("gguf", "mlx"),
    read=_read,
    sniff=lambda text: beginning(text).startswith("{") and _QUANTIZATION.search(text) is not None,
)
