"""AutoRound's `layer_config`, by the rules of auto_round/compressors/layer_config/resolver.py.

A dictionary from module to scheme. A key that is the name of a module means that one; any other is a regular expression
(Python's, searched for; bare dots are escaped by AutoRound itself), as those here that begin with `^`. Schemes are
AutoRound's presets of GGUF types: it has the legacy and the K types, and no IQ types.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from planner.errors import RecipeError
from planner.ggml import formats
from planner.recipes.dialect import Exported, changing, read_dictionary
from planner.recipes.modules import Module, module_of
from planner.recipes.patterns import any_of, numbers
from planner.recipes.recipe import Choice, Recipe
from planner.recipes.regex import Regex

__all__ = ["export_auto_round", "layer_config", "read_auto_round"]

# GGUF_PRESET_ALIASES in auto_round/schemes.py: the preset that stands for the type alone
_PRESETS = {
    "q4_0": "GGUF:Q4_0", "q4_1": "GGUF:Q4_1", "q5_0": "GGUF:Q5_0", "q5_1": "GGUF:Q5_1", "q8_0": "GGUF:Q8_0",
    "q2_K": "GGUF:Q2_K_S", "q3_K": "GGUF:Q3_K_S", "q4_K": "GGUF:Q4_K_S", "q5_K": "GGUF:Q5_K_S", "q6_K": "GGUF:Q6_K",
}  # fmt: skip
_PLAIN = {"bits": 16, "act_bits": 16, "data_type": "float", "act_data_type": "float"}  # what ignore_layers sets
_FLOATS = ("f32", "f16", "bf16")
_LONE_DOT = re.compile(r"(?<!\\)\.(?!\*)")  # to_standard_regex escapes it

Entry = str | dict[str, object]


def layer_config(recipe: Recipe, *, compact: bool = False) -> tuple[dict[str, Entry], list[Choice]]:
    """The dictionary, and the tensors whose type is only the nearest in bits. Raises RecipeError."""
    found: dict[str, list[Module]] = {}
    near: list[Choice] = []
    for choice in changing(recipe):
        module = module_of(choice.name, recipe.model.architecture)
        preset = "" if choice.format in _FLOATS else _PRESETS.get(choice.format)
        if preset is None:
            near.append(choice)
            preset = _nearest(choice)
        found.setdefault(preset, []).append(module)
    config: dict[str, Entry] = {}
    for preset, modules in found.items():
        for key in _merged(modules) if compact else map(_key, modules):
            config[key] = preset or dict(_PLAIN)
    return config, near


def _nearest(choice: Choice) -> str:
    table = formats()
    fits = [name for name in _PRESETS if not choice.shape or table[name].fits(choice.shape[0])]
    if not fits:
        raise RecipeError(f"AutoRound has no type for rows as those of {choice.name}.", "Export to another dialect.")
    bits = table[choice.format].bpw
    # of as many bits, the K type
    return _PRESETS[min(fits, key=lambda name: (abs(table[name].bpw - bits), table[name].bpw, -table[name].block))]


def _key(module: Module) -> str:
    return f"^{module.path.replace('*', '[0-9]+')}$" if module.experts else module.path


def _merged(modules: list[Module]) -> list[str]:
    """Patterns for modules of one scheme, by the blocks in which it has them. AutoRound escapes the dots."""
    blocks: dict[str, list[str]] = {}
    for module in modules:
        if module.block is not None:
            blocks.setdefault(module.within, []).append(str(module.block))
    together: dict[tuple[str, ...], list[str]] = {}
    for within, members in blocks.items():
        together.setdefault(tuple(sorted(members)), []).append(within)
    keys = [module.path for module in modules if module.block is None]
    for some, paths in together.items():
        paths = [path.replace("*", "[0-9]+") for path in paths]
        keys.append(f"^model.layers.{numbers(some)}.{any_of(paths, str)}$")
    return keys


def export_auto_round(recipe: Recipe, paths: Mapping[str, Path], *, compact: bool, threads: int) -> Exported:
    """The dictionary as JSON. Raises RecipeError."""
    del threads
    config, near = layer_config(recipe, compact=compact)
    call = (
        'AutoRound(MODEL, scheme="GGUF:Q4_K_S", iters=0,\n'
        f"          layer_config=json.load(open({json.dumps(str(paths['.auto-round.json']))})))"
    )
    notes = []
    if near:
        kinds = sorted({choice.format for choice in near})
        table, old, new = formats(), 0, 0.0
        for choice in near:
            elements = choice.bytes * 8 / table[choice.format].bpw
            old += choice.bytes
            new += elements * table[_type_of(_nearest(choice))].bpw / 8
        notes.append(
            f"AutoRound does not have {', '.join(kinds)}: {len(near)} tensors get the nearest type that it has, "
            f"which makes them {new / old - 1:+.1%} in size. Solve with --types k,legacy for an exact recipe."
        )
    return Exported({".auto-round.json": json.dumps(config, indent=2) + "\n"}, call, notes)


def _type_of(preset: str) -> str:
    return next(name for name, known in _PRESETS.items() if known == preset)


def read_auto_round(text: str, names: Sequence[str], architecture: str, where: str) -> dict[str, str]:
    """Tensor → type; of several keys that find a module, the last one counts. Raises RecipeError."""
    config = read_dictionary(text, where, "AutoRound's layer_config")
    types = {preset: fmt for fmt, preset in _PRESETS.items()}
    paths: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(RecipeError):  # AutoRound does not have it either
            paths[name] = module_of(name, architecture).path.replace("*", "0")  # all experts are alike
    literal = set(paths.values())
    chosen: dict[str, str | None] = {}
    for key, value in config.items():
        fmt = types.get(value) if isinstance(value, str) else None
        if fmt is None and not (isinstance(value, dict) and value.get("bits") == _PLAIN["bits"]):
            raise RecipeError(
                f"{where} has {str(value)[:80]} for {key[:80]!r}, which is no type of GGUF.",
                f"Known are {', '.join(types)}.",
            )
        regex = None if key in literal else Regex(_LONE_DOT.sub(r"\\.", key), "ecmascript", where)
        for name, path in paths.items():
            if path == key if regex is None else regex.search(path):
                chosen[name] = fmt
    return {name: fmt for name, fmt in chosen.items() if fmt is not None}
