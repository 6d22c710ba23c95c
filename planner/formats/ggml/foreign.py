"""Types that files have and ggml's library has not: those of ik_llama.cpp, and those that ggml has given up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from planner.formats.ggml.formats import CANDIDATES, native_formats
from planner.formats.ggml.ik_library import VARIABLE as IK_VARIABLE
from planner.formats.ggml.types import IK_TYPES
from planner.text import command

__all__ = ["FOREIGN", "Foreign", "nearest_known", "unknown_type"]


class Foreign(NamedTuple):
    """A type by the name that its makers give it; `removed`: ggml had it once."""

    name: str
    removed: bool = False


# `enum ggml_type` in ik_llama.cpp's ggml/include/ggml.h of August 2026, and what its comments say was there
_IK = {
    97: "q8_0_x4", 98: "q8_1_x4", 99: "q8_2_x4", 133: "q6_0", 134: "iq1_bn", 135: "iq2_bn", 136: "q8_K64", 137: "iq2_k",
    138: "iq3_k", 139: "iq4_k", 140: "iq5_k", 141: "iq6_k", 142: "iq2_tn", 143: "iq1_tn", 144: "iq4_ks", 145: "iq2_ks",
    146: "iq4_kss", 147: "q8_K16", 148: "q8_K32", 149: "q8_KR8", 150: "q8_K128", 151: "q8_KV", 152: "iq5_ks",
    153: "iq2_kt", 154: "iq3_kt", 155: "iq4_kt", 156: "iq3_ks", 157: "iq2_kl", 158: "iq1_kt", 202: "q4_0_r8",
    206: "q5_0_r4", 208: "q8_0_r8", 210: "q2_k_r4", 211: "q3_k_r4", 212: "q4_k_r4", 213: "q5_k_r4", 214: "q6_k_r4",
    216: "iq2_xxs_r4", 217: "iq2_xs_r4", 218: "iq3_xxs_r4", 219: "iq1_s_r4", 220: "iq4_nl_r4", 221: "iq3_s_r4",
    222: "iq2_s_r4", 223: "iq4_xs_r8", 229: "iq1_m_r4", 230: "bf16_r16", 233: "q6_0_r4", 335: "iq2_bn_r4",
    337: "iq2_k_r4", 338: "iq3_k_r4", 339: "iq4_k_r4", 340: "iq5_k_r4", 344: "iq4_ks_r4", 352: "iq5_ks_r4",
    353: "mxfp4_r8", 397: "q8_k_r16", 398: "q8_KV_r8", 399: "q8_k_r8",
}  # fmt: skip
# The comments of ggml's own enum
_REMOVED = {
    4: "q4_2", 5: "q4_3", 31: "q4_0_4_4", 32: "q4_0_4_8", 33: "q4_0_8_8", 36: "iq4_nl_4_4", 37: "iq4_nl_4_8",
    38: "iq4_nl_8_8",
}  # fmt: skip
FOREIGN: Mapping[int, Foreign] = MappingProxyType(
    {number: Foreign(name) for number, name in _IK.items()}
    | {number: Foreign(name, removed=True) for number, name in _REMOVED.items()}
)
"""By their number in files."""

# Bits per weight, by the sizes of blocks in ggml/src/ggml-common.h there; of q4_2 and q4_3 in ggml.c of May 2023
_BITS = {
    "q6_0": 6.5, "q8_kv": 8.0, "iq1_bn": 1.625, "iq2_bn": 2.0, "iq1_kt": 1.75, "iq2_kt": 2.125, "iq3_kt": 3.125,
    "iq4_kt": 4.0, "iq2_k": 2.375, "iq2_ks": 2.1875, "iq2_kl": 2.6875, "iq3_k": 3.4375, "iq3_ks": 3.1875, "iq4_k": 4.5,
    "iq4_ks": 4.25, "iq4_kss": 4.0, "iq5_k": 5.5, "iq5_ks": 5.25, "iq6_k": 6.625, "iq1_tn": 1.6875, "iq2_tn": 2.0625,
    "q4_2": 5.0, "q4_3": 6.0, "q8_k": 8.0,
}  # fmt: skip
_BITNET = 36  # what BitNet's own fork calls i2_s
_LAST_TYPE = 1000  # beyond the numbers of all forks
_REPACKED = re.compile(r"_(r4|r8|r16|x4|4_4|4_8|8_8|[48]x[48]|g128)$")
_OF_ACTIVATIONS = re.compile(r"^q8_k(16|32|64|128|r8)$")


def nearest_known(kind: str, row_length: int | None = None) -> str | None:
    """Return the type of ggml that is nearest in bits per weight to one that it does not have, among those whose blocks
    fill a row of `row_length` weights; None for all other names.

    A repacked type (`_r4`, `_r8`, `_4_4`) holds the same numbers as the one that it is made of.
    """
    table = native_formats()
    lowered = {name.lower(): name for name in table if table[name].for_weights}
    base = _OF_ACTIVATIONS.sub("q8_k", _REPACKED.sub("", kind.lower()))
    if kind.lower() in lowered or (base not in lowered and base not in _BITS):
        return None
    if base in lowered and (row_length is None or table[lowered[base]].fits(row_length)):
        return lowered[base]
    bits = table[lowered[base]].bpw if base in lowered else _BITS[base]
    fitting = [name for name in CANDIDATES if row_length is None or table[name].fits(row_length)]
    # equally near: one with large blocks, which says more with as many bits
    return min(
        fitting, key=lambda name: (abs(table[name].bpw - bits), -table[name].block, table[name].bpw), default="f16"
    )


def unknown_type(number: int, row_length: int, path: Path) -> tuple[str, str]:
    """Return the problem of a type number that the library does not have, to go after "has type", and the remedy, empty
    where the number is no type's."""
    foreign = FOREIGN.get(number)
    if foreign is None:
        remedy = (
            "It may come from a newer llama.cpp: point PLANNER_GGML at its libggml-base. Or from a fork with types of "
            "its own: get the original model."
        )
        known = "which neither this ggml library nor ik_llama.cpp knows"
        return f"{number}, {known}", remedy if number <= _LAST_TYPE else ""
    near = nearest_known(foreign.name, row_length)
    if not foreign.removed:
        whose, remedy = "only ik_llama.cpp has", "Run the file with ik_llama.cpp."
        if foreign.name in IK_TYPES:
            remedy += f" {IK_VARIABLE}, set to its libggml, lets planner read it."
    elif near is not None and foreign.name.startswith(near):
        whose, remedy = "ggml has no more", f"Get the model in {near}, which llama.cpp rearranges itself when loading."
    else:
        whose, remedy = "ggml has no more", "Get a newer file of the model, or convert its original."
    if near is not None:
        remedy += (
            f" `{command('planner', 'import', Path(path.name), '--nearest')}` makes a recipe of ggml's nearest types."
        )
    if number == _BITNET:
        return f"{number} ({foreign.name}, or i2_s of Microsoft's BitNet), which {whose}", f"{remedy} BitNet: in tq2_0."
    return f"{number} ({foreign.name}), which {whose}", remedy
