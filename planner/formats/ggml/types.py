"""ggml's types and ik_llama.cpp's: all that has to be said of each and that its library does not tell, a row a type.

A new type of a library is a row here; one that ggml's library lacks must have none among its types. Names that users
choose by, lookup tables, llama.cpp's rules and what other quantizers call it follow from its row; number, block, bytes
and whether it is quantized are read from the loaded library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["IK_TYPES", "TYPES", "Type", "type_of", "types_of_dialect"]


@dataclass(frozen=True, slots=True)
class Type:
    """A type by ggml's name, and where its facts are from.

    - `file_type`: what a file that is mostly of it is called in `enum llama_ftype` of llama.h (ik_llama.cpp's, for its
      types) by a loader that guesses (llama-model-loader.cpp): of several, the mix of medium size
    - `sets`: names of sets that users choose it by. `all` is what is measured unless they choose;
      `cpu-repack` is what AVX2 or ARM dotprod/i8mm kernels interleave (ggml_repack_get_optimal_repack_type in
      ggml-cpu/repack.cpp)
    - `dialects`: which of the dialects `ik_llama` and `gguf-tool-suite` have it, under the same name and with the same
      blocks (type_traits in ik_llama.cpp's ggml/src/ggml.c; quant_assign.py)
    - `weights`: whether weights can be converted to it; the library has no kernels for accumulators and integers
    - `groups`: into how many groups a block falls that each have a scale, where a group loses its weights if all its
      imatrix values are zero, although others of the block count (tests/formats/ggml/test_ggml_kernels.py)
    - `lattice`: dimensions and points of the lattice that its kernel searches (iq2_grid_size in ggml-quants.c;
      quantize_iq3_xxs and quantize_iq3_s there), whose tables are built once a process, in up to 20 seconds
    - `imatrix`: whether llama-quantize refuses it without an imatrix (tensor_requires_imatrix in llama-quant.cpp)
    - `fallback`: the type with smaller blocks that llama-quantize takes instead where its blocks do not fill a row
      (tensor_type_fallback there)
    - `evopress`: what get_tensor_bit_width in mapper/gguf_splitter.py of the gptq-gguf-toolkit says of it; what is
      not there would be called 32
    - `auto_round`: AutoRound's preset that stands for the type alone (GGUF_PRESET_ALIASES in auto_round/schemes.py)
    """

    name: str
    file_type: int | None = None
    sets: tuple[str, ...] = ()
    dialects: tuple[str, ...] = ()
    weights: bool = field(default=True, kw_only=True)
    groups: int = field(default=1, kw_only=True)
    lattice: tuple[int, int] | None = field(default=None, kw_only=True)
    imatrix: bool = field(default=False, kw_only=True)
    fallback: str | None = field(default=None, kw_only=True)
    evopress: str | None = field(default=None, kw_only=True)
    auto_round: str | None = field(default=None, kw_only=True)


_IQ, _K, _LEGACY, _REPACK = ("all", "iq"), ("all", "k"), ("all", "legacy"), "cpu-repack"
_IK = ("ik_llama", "gguf-tool-suite")

_ROWS = (
    Type("iq1_s", 24, _IQ, _IK, groups=8, lattice=(8, 2048), imatrix=True, fallback="iq4_nl", evopress="1.5625"),
    Type("iq1_m", 31, _IQ, _IK, groups=16, lattice=(8, 2048), imatrix=True, fallback="iq4_nl", evopress="1.75"),
    Type("iq2_xxs", 19, _IQ, _IK, groups=8, lattice=(8, 256), imatrix=True, fallback="iq4_nl", evopress="2.0625"),
    Type("iq2_xs", 20, _IQ, _IK, groups=16, lattice=(8, 512), imatrix=True, fallback="iq4_nl", evopress="2.3125"),
    Type("iq2_s", 28, _IQ, _IK, groups=16, lattice=(8, 1024), imatrix=True, fallback="iq4_nl", evopress="2.5"),
    Type("iq3_xxs", 23, _IQ, _IK, groups=8, lattice=(4, 256), imatrix=True, fallback="iq4_nl", evopress="3.0625"),
    Type("iq3_s", 26, _IQ, _IK, lattice=(4, 512), fallback="iq4_nl", evopress="3.44"),
    Type("iq4_xs", 30, _IQ, _IK, groups=8, fallback="iq4_nl", evopress="4.25"),
    Type("iq4_nl", 25, (*_IQ, _REPACK), _IK, evopress="4.56"),
    Type("q2_K", 10, (*_K, _REPACK), _IK, fallback="q4_0", evopress="2.5625", auto_round="GGUF:Q2_K_S"),
    Type("q3_K", 12, _K, _IK, groups=16, fallback="q4_0", evopress="3.4375", auto_round="GGUF:Q3_K_S"),
    Type("q4_K", 15, (*_K, _REPACK), _IK, fallback="q5_0", evopress="4.5", auto_round="GGUF:Q4_K_S"),
    Type("q5_K", 17, (*_K, _REPACK), _IK, fallback="q5_1", evopress="5.5", auto_round="GGUF:Q5_K_S"),
    Type("q6_K", 18, (*_K, _REPACK), _IK, groups=16, fallback="q8_0", evopress="6.5625", auto_round="GGUF:Q6_K"),
    Type("q4_0", 2, (*_LEGACY, _REPACK), _IK, evopress="4.5", auto_round="GGUF:Q4_0"),
    Type("q4_1", 3, _LEGACY, _IK, evopress="5", auto_round="GGUF:Q4_1"),
    Type("q5_0", 8, _LEGACY, _IK, evopress="5.5", auto_round="GGUF:Q5_0"),
    Type("q5_1", 9, _LEGACY, _IK, evopress="6", auto_round="GGUF:Q5_1"),
    Type("q8_0", 7, (*_LEGACY, _REPACK), _IK, evopress="8.5", auto_round="GGUF:Q8_0"),
    # chosen by name only
    Type("f32", 0, (), _IK, evopress="32"),
    Type("f16", 1, (), _IK, evopress="16"),
    Type("bf16", 32, (), _IK, evopress="16"),
    Type("mxfp4", 38, (), _IK),
    Type("nvfp4", 39),
    Type("q1_0", 40),
    Type("q2_0", 41, fallback="q4_0"),
    Type("tq1_0", 36, fallback="q4_0"),
    Type("tq2_0", 37, fallback="q4_0"),
    # of no weights
    Type("q8_1", weights=False),
    Type("q8_K", weights=False),
    Type("i8", weights=False),
    Type("i16", weights=False),
    Type("i32", weights=False),
    Type("i64", weights=False),
    Type("f64", weights=False),
)
TYPES: Mapping[str, Type] = MappingProxyType({row.name: row for row in _ROWS})
"""Rows by name, in the order in which sets list their types. A library may have types that are not here."""


# ik_llama.cpp's own. What stands in where blocks do not fill a row and what is refused without an imatrix is from its
# src/llama-quantize.cpp, numbers of file types are from include/llama.h. Other types of its own (interleaved rows,
# activations, BitNet's) are not for weights
_OWN, _TRELLIS = ("all", "ik"), ("kt",)
_OF_IK_LLAMA = (
    Type("iq2_ks", 147, _OWN, _IK, fallback="iq4_nl"),
    Type("iq2_k", 138, _OWN, _IK, fallback="iq4_nl"),
    Type("iq2_kl", 155, _OWN, _IK, fallback="iq4_nl"),
    Type("iq3_ks", 154, _OWN, _IK, fallback="iq4_nl"),
    Type("iq3_k", 139, _OWN, _IK, fallback="iq4_nl"),
    Type("iq4_kss", 148, _OWN, _IK, fallback="iq4_nl"),
    Type("iq4_ks", 145, _OWN, _IK, fallback="iq4_nl"),
    Type("iq4_k", 140, _OWN, _IK, fallback="q5_0"),
    Type("iq5_ks", 150, _OWN, _IK, fallback="q5_0"),
    Type("iq5_k", 141, _OWN, _IK, fallback="q6_0"),
    Type("iq6_k", 142, _OWN, _IK, fallback="q8_0"),
    Type("q6_0", 135, _OWN, _IK),
    # codes that a generator of random numbers spells out, slow to find
    Type("iq1_kt", 156, _TRELLIS, _IK, imatrix=True, fallback="iq4_nl"),
    Type("iq2_kt", 151, _TRELLIS, _IK, imatrix=True, fallback="iq4_nl"),
    Type("iq3_kt", 152, _TRELLIS, _IK, fallback="iq4_nl"),
    Type("iq4_kt", 153, _TRELLIS, _IK, fallback="iq4_nl"),
)
IK_TYPES: Mapping[str, Type] = MappingProxyType({row.name: row for row in _OF_IK_LLAMA})
"""Rows of the types that weights can have in ik_llama.cpp alone, by name."""


def type_of(name: str) -> Type:
    """Return the row of a type; of one that has none, an empty row: nothing but what the library says is known."""
    return TYPES.get(name) or IK_TYPES.get(name) or Type(name)


def types_of_dialect(dialect: str) -> frozenset[str]:
    """Return the names of the types that one of the dialects of `Type.dialects` has."""
    return frozenset(row.name for row in (*TYPES.values(), *IK_TYPES.values()) if dialect in row.dialects)
