"""AutoRound's `layer_config`, by the rules of auto_round/compressors/layer_config/resolver.py.

A dictionary from module to scheme. A key that is the name of a module means that one. Any other is searched for: as it
stands or, where it has a sign of a regular expression, as one of Python's in which AutoRound escapes the dots. The last
such key that finds a module counts, also over the module's own name. Schemes are AutoRound's presets of GGUF types: it
has the legacy and the K types, and no IQ types.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Mapping, Sequence

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
    unheard,
)
from planner.dialects.patterns import any_of, escaped, numbers
from planner.dialects.regex import Regex
from planner.errors import RecipeError, option
from planner.formats.ggml import TYPES, formats
from planner.names.gguf import ahead
from planner.names.transformers import Module, module_of, other_modules, spellings
from planner.recipe import Choice, Recipe
from planner.text import some

__all__ = ["DIALECT", "layer_config"]

_PRESETS = {row.name: row.auto_round for row in TYPES.values() if row.auto_round is not None}
_PLAIN = {"bits": 16, "act_bits": 16, "data_type": "float", "act_data_type": "float"}  # what ignore_layers sets
_FLOATS = ("f32", "f16", "bf16")
# GGUF_PRESET_ALIASES in auto_round/schemes.py: as the scheme of a whole model, each stands for a mix of types
_MIXES = {
    "GGUF:Q2_K_MIXED": "q2_K", "GGUF:Q3_K_M": "q3_K", "GGUF:Q3_K_L": "q3_K", "GGUF:Q4_K_M": "q4_K",
    "GGUF:Q5_K_M": "q5_K",
}  # fmt: skip
# The type of bits alone under a K scheme, and its group size (get_gguf_qtype_by_layer_config)
_BY_BITS = {2: ("q2_K", 16), 3: ("q3_K", 16), 4: ("q4_K", 32), 5: ("q5_K", 32), 6: ("q6_K", 16), 8: ("q8_0", 32)}
_WHOLE = ("float", "fp", "fp16", "bf16", "float16", "bfloat16")  # data types of 16 bits
_INTEGERS = ("int", "int_asym_dq", "int_sym_dq", "int_asym_float_zp")
_FULL = 16  # bits from which AutoRound leaves a module as it is
_SIGNS = (".*", *"^$|()[]?+")  # any of these makes to_standard_regex treat a key as a regular expression
_BARE_DOT = re.compile(r"\.(?!\*)")  # and escapes it there

Entry = str | dict[str, object]


def layer_config(recipe: Recipe, *, compact: bool = False) -> tuple[dict[str, Entry], list[Choice], list[str]]:
    """Return the dictionary, the tensors whose type is only the nearest in bits, and notes on those left out of it.
    Raises RecipeError."""
    by_preset: dict[str, list[Module]] = {}
    near: list[Choice] = []
    whole: list[Choice] = []
    pairs, notes = placed(
        changing(recipe), ahead(recipe.formats), lambda name: module_of(name, recipe.model.architecture),
        "transformers", "AutoRound gives them the scheme of the call",
    )  # fmt: skip
    for choice, module in pairs:
        preset = "" if choice.format in _FLOATS else _PRESETS.get(choice.format)
        if preset is None:
            preset = _nearest(choice)
            (near if preset else whole).append(choice)
        by_preset.setdefault(preset, []).append(module)
    config: dict[str, Entry] = {}
    for preset, modules in by_preset.items():
        for key in _merged(modules) if compact else map(_key, modules):
            config[key] = preset or dict(_PLAIN)
    if whole:
        notes.append(
            f"{some(choice.name for choice in whole)}: no type of AutoRound fills the rows, so these stay whole."
        )
    return config, near, notes


def _nearest(choice: Choice) -> str:
    """Return the preset nearest in bits; empty if no preset's blocks fill the rows."""
    table = formats()
    fits = [name for name in _PRESETS if not choice.shape or table[name].fits(choice.shape[0])]
    if not fits:
        return ""
    bits = table[choice.format].bpw
    # of as many bits, the K type
    return _PRESETS[min(fits, key=lambda name: (abs(table[name].bpw - bits), table[name].bpw, -table[name].block))]


def _key(module: Module) -> str:
    return f"^{module.path.replace('*', '[0-9]+')}$" if module.experts else module.path


def _merged(modules: list[Module]) -> list[str]:
    """Merge modules of one scheme that are in the same blocks into patterns. AutoRound escapes the dots."""
    blocks: dict[str, list[str]] = {}
    for module in modules:
        if module.block is not None:
            blocks.setdefault(module.within, []).append(str(module.block))
    together: dict[tuple[str, ...], list[str]] = {}
    for within, members in blocks.items():
        together.setdefault(tuple(sorted(members)), []).append(within)
    keys = [module.path for module in modules if module.block is None]
    for numbered, paths in together.items():
        paths = [path.replace("*", "[0-9]+") for path in paths]
        keys.append(f"^model.layers.{numbers(numbered)}.{any_of(paths, str)}$")
    return keys


def _write(recipe: Recipe, context: ExportContext) -> Exported:
    """Return the dictionary as JSON. Raises RecipeError."""
    config, near, notes = layer_config(recipe, compact=context.compact)
    call = (
        'AutoRound(MODEL, scheme="GGUF:Q4_K_S", iters=0,\n'
        f"          layer_config=json.load(open({json.dumps(str(context.paths['.auto-round.json']))})))"
    )
    if near:
        kinds = sorted({choice.format for choice in near})
        table, old, new = formats(), 0, 0.0
        for choice in near:
            elements = choice.bytes * 8 / table[choice.format].bpw
            old += choice.bytes
            new += elements * table[_type_of(_nearest(choice))].bpw / 8
        notes.append(
            f"AutoRound does not have {', '.join(kinds)}: {len(near)} tensors get the nearest type that it has, "
            f"which makes them {new / old - 1:+.1%} in size. "
            f"Solve with {option('types', 'k,legacy')} for an exact recipe."
        )
    return Exported({".auto-round.json": json.dumps(config, indent=2) + "\n"}, call, notes)


def _type_of(preset: str) -> str:
    return next(name for name, known in _PRESETS.items() if known == preset)


def _read(text: str, context: ImportContext) -> Imported:
    """Return the types of tensors. Notes say which keys match nothing or have no effect, and how schemes were
    interpreted. Raises RecipeError."""
    names, architecture, where = context.names, context.architecture, context.where
    config = read_dictionary(text, where, "AutoRound's layer_config")
    paths: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(RecipeError):  # AutoRound does not have it either
            paths[name] = module_of(name, architecture).path.replace("*", "0")  # all experts are alike
    exact: dict[str, list[str]] = {}
    for name, path in paths.items():
        for spelling in (path, *spellings(path)):
            exact.setdefault(spelling, []).append(name)
    notes: dict[str, None] = {}
    meant: dict[str, str | None] = {}
    hits: dict[str, list[str]] = {}
    for key in sorted(config, key=lambda key: key not in exact):  # in their order, but names first
        meant[key], note = _meant(key, config[key], where)
        notes |= dict.fromkeys(note)
        hits[key] = exact[key] if key in exact else _searched(key, paths, where)
    chosen = {name: key for key, tensors in hits.items() for name in tensors}
    types = {name: fmt for name, key in chosen.items() if (fmt := meant[key]) is not None}
    return Imported(types, (*notes, *_silent(hits, chosen, names, architecture, where)))


def _searched(key: str, paths: Mapping[str, str], where: str) -> list[str]:
    """Return the tensors whose module a key matches, by its name in text-only models, or else by that in others."""
    regex = Regex(_standard(key), "ecmascript", where)
    return [name for name, path in paths.items() if regex.search(path)] or [
        name for name, path in paths.items() if any(map(regex.search, spellings(path)))
    ]


def _standard(key: str) -> str:
    """Return the regular expression that AutoRound derives from a key."""
    return _BARE_DOT.sub(r"\.", key) if any(sign in key for sign in _SIGNS) else escaped(key)


def _silent(
    hits: Mapping[str, Sequence[str]], chosen: Mapping[str, str], names: Sequence[str], architecture: str, where: str
) -> list[str]:
    """Return notes on keys without effect."""
    nothing = [key for key, tensors in hits.items() if not tensors]
    if nothing:
        others = other_modules(names, architecture)
        every = [f"model.{path}" for path in others] + list(others)
        nothing = [key for key in nothing if not any(map(Regex(_standard(key), "ecmascript", where).search, every))]
    acting = set(chosen.values())
    hidden = [
        f"{key!r} (behind {chosen[tensors[0]]!r})" for key, tensors in hits.items() if tensors and key not in acting
    ]
    notes = idle([repr(key) for key in nothing], "key")
    if any("\\." in key for key in nothing):
        notes.append("AutoRound escapes dots itself: write them bare.")
    return [*notes, *unheard(hidden, f"{len(hits):,} keys", "that are searched for and stand after them")]


def _meant(key: str, value: object, where: str) -> tuple[str | None, list[str]]:
    """Return the type that an entry means (None: unchanged), and notes on how it was interpreted."""
    item = dict(value) if isinstance(value, dict) else {"scheme": value}
    scheme = item.pop("scheme", None)
    preset = scheme.strip("'\" ").upper() if isinstance(scheme, str) else None
    types = {name: fmt for fmt, name in _PRESETS.items()} | _MIXES
    bits = item.get("bits", _FULL if preset == "BF16" or (scheme is None and item.get("data_type") in _WHOLE) else None)
    if preset in types and bits in (None, int(types[preset][1])):
        mix = (
            [f"{preset} is the type {_MIXES[preset]} where it is the scheme of one module."] if preset in _MIXES else []
        )
        return types[preset], mix
    if isinstance(bits, int) and not isinstance(bits, bool) and (scheme is None or preset in types or preset == "BF16"):
        if bits >= _FULL:
            return None, []
        fmt, group = _BY_BITS.get(bits, (None, 0))
        plain = item.get("data_type", "int") in _INTEGERS and item.get("group_size") in (None, group)
        if fmt is not None and plain:
            return fmt, [f"{bits} bits alone are {fmt}, as under a K scheme such as GGUF:Q4_K_S."]
    raise RecipeError(f"{where} has {str(value)[:80]} for {key[:80]!r}, which is no type of GGUF.", _instead(value))


def _instead(value: object) -> str:
    """Suggest a preset in place of a scheme that is no type of GGUF."""
    every = [*_PRESETS.values(), *_MIXES]
    digit = re.search(r"[2-68]", str(value).replace("A16", ""))
    near = difflib.get_close_matches(str(value).upper(), every, n=1, cutoff=0.8)
    if not near and digit:
        near = [_PRESETS[_BY_BITS[int(digit[0])][0]]]
    return f"{f'Write {near[0]} instead. ' if near else ''}Known are {', '.join(every)}."


DIALECT = Dialect(
    write=_write,
    suffixes=(".auto-round.json",),
    read=_read,
    sniff=lambda text: beginning(text).startswith("{"),  # any JSON that bears no other dialect's mark
)
