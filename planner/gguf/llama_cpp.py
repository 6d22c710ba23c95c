"""llama.cpp's rules for quantizing a model, by the names and shapes of tensors.

Source of every rule: `src/llama-quant.cpp` and `src/llama-model-loader.h` of llama.cpp (ggml 0.21).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from planner.errors import RecipeError
from planner.formats.ggml import Format, formats, type_of
from planner.names.gguf import ENCODER

__all__ = ["fallback", "is_kept_by_us", "requires_imatrix", "tensor_order", "why_left_alone"]

# tensor_allows_quantization: parts of names of tensors that stay as they are, and why
_LEFT_ALONE = {
    "_norm.weight": "a norm",
    "ffn_gate_inp.weight": "an expert router",
    "ffn_gate_tid2eid.weight": "an expert routing table",
    "altup": "a very small matrix",
    "laurel": "a very small matrix",
    "per_layer_model_proj": "a small projection",
    "ssm_conv1d": "a small convolution",
    "shortconv.conv.weight": "a small convolution",
    "indexer.k_proj.weight": "an indexer projection",
    "indexer.q_proj.weight": "an indexer projection",
    "attn_rel_b.weight": "a relative position bias",
    ".position_embd": "a positional embedding",
    "sam.pos_embd": "a positional embedding",
    "sam.neck.": "a part of the image encoder",
    "sam.net_": "a part of the image encoder",
    ".rel_pos": "a relative position bias",
    ".patch_embd": "a patch embedding",
    ".patch_merger": "a patch merger",
    "a.rvq.codebook": "an audio codebook",
    "mm.a.code_embd": "an audio codebook",
} | {
    f"time_mix_{part}.weight": "a small RWKV matrix"
    for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2",
                 "decay_w1", "decay_w2", "lerp_fused")
}  # fmt: skip
_LEFT_ALONE_IN = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
        "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight",
        "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight",
    ),
}  # fmt: skip
# Not in llama.cpp, which would quantize these, and then does with them what only floats allow
_KEPT_BY_US = {
    "qwen4exp": ("ple_norm_", "ple_conv1d"),
    # mtmd (tools/mtmd/models) transposes the first (siglip.cpp), reads others as floats or by rows, and makes speech
    # with what is in the last two
    ENCODER: ("mm.input_projection", "conv_dw", "attn.pos_", "resample_query", "a.gen.", "a.seanet."),
}  # fmt: skip
_WHOLE_NAMES = {"position_embd.weight": "a positional embedding", "token_types.weight": "a token type embedding"}

# tensor_requires_imatrix
_EXEMPT = frozenset(("token_embd.weight", "per_layer_token_embd.weight", "output.weight"))

_LAYER = re.compile(r"blk\.[ \t\n\v\f\r]*([+-]?[0-9]+)")


def why_left_alone(
    tensor_name: str, shape: Sequence[int], architecture: str, stored_as: str | None = None
) -> str | None:
    """Return why llama.cpp would not quantize a tensor of this name and shape (ggml order), or None if it would.

    With `stored_as`, the type in the file, tensors of integers, which are no weights, are left alone too.
    """
    dims = len(shape)
    while dims > 1 and shape[dims - 1] == 1:
        dims -= 1
    if dims < 2:
        return "a vector"
    # llama.cpp asks `name.rfind("weight") == name.size() - 6`, which in C++ also holds for names of five letters
    # without it (both sides wrap around to the largest size_t).
    if not (tensor_name.endswith("weight") or len(tensor_name.encode()) == 5):
        return "not named as a weight"
    if tensor_name in _WHOLE_NAMES:
        return _WHOLE_NAMES[tensor_name]
    for part, reason in _LEFT_ALONE.items():
        if part in tensor_name:
            return reason
    if any(part in tensor_name for part in _LEFT_ALONE_IN.get(architecture, ())):
        return f"left alone in {architecture}"
    if is_kept_by_us(tensor_name, shape, architecture):
        return f"of no use quantized in {architecture}"
    if stored_as is not None and not formats()[stored_as].for_weights:
        return f"numbers of type {stored_as}, not weights"
    return None


def is_kept_by_us(tensor_name: str, shape: Sequence[int], architecture: str) -> bool:
    """Return whether a tensor stays as it is though llama-quantize would quantize it: what loads the file cannot use it
    then. In encoders these are kernels of convolutions too, which have three dimensions and more."""
    kernel = architecture == ENCODER and len(shape) > 2 and "_exps." not in tensor_name
    return kernel or any(part in tensor_name for part in _KEPT_BY_US.get(architecture, ()))


def fallback(wanted: Format, row_length: int) -> Format:
    """Return the format in which llama.cpp stores rows of this length when asked for `wanted`.

    That is `wanted` if its blocks fill the row, else one with blocks of 32, else F16. Raises RecipeError if llama.cpp
    has no substitute.
    """
    if wanted.fits(row_length):
        return wanted
    if (smaller := type_of(wanted.name).fallback) is not None:
        substitute = formats()[smaller]
        return substitute if substitute.fits(row_length) else formats()["f16"]
    if wanted.block <= 32:
        return formats()["f16"]
    raise RecipeError(
        f"Rows of {row_length:,} weights are no multiple of the {wanted.block} of {wanted.name}, and llama.cpp has "
        "no substitute for it.",
        "Choose another type for this tensor.",
    )


def requires_imatrix(tensor_name: str, fmt: Format) -> bool:
    """Return whether this tensor cannot be stored in `fmt` without an imatrix for it: because llama-quantize
    refuses, or (also for the embedding and the output, which it lets pass) because the kernel would abort."""
    return fmt.needs_imatrix or (type_of(fmt.name).imatrix and tensor_name not in _EXEMPT)


def tensor_order(names: Iterable[str]) -> list[str]:
    """Return the names in llama-quantize's order of writing: by block number, those without one first, then by name
    (the bytes of UTF-8 and Python's code points sort alike)."""

    def place(name: str) -> tuple[int, str]:
        match = _LAYER.match(name)  # sscanf(name, "blk.%d."): the second dot need not be there
        return (int(match[1]) if match else -1, name)

    return sorted(names, key=place)
