"""What llama.cpp reserves to compute a batch: an estimate that errs to the safe side.

Buffers of a graph are laid out once, for the largest batch, and those that are not needed at the same time share room
(`graph_reserve` in src/llama-context.cpp). At its peak a graph holds, for each of `batch` tokens and as float32, either

- the logits, with a few vectors of the model's width; or
- the inside of one layer, with a few such vectors: of a feed-forward gate, up and their product; of experts the same
  for each that is used and two vectors that it returns; of latent attention its queries, with and without rotation, and
  what it reads; of a recurrent layer some vectors of its inner width;

and the masks of attention throughout: two bytes for every token and every cell, as much again where there are windows.
On a GPU, quantized keys and values of one layer are also unpacked to float16
(`ggml_cuda_flash_attn_ext_get_alloc_size` in ggml-cuda/fattn.cu).

`tests/fit/test_llama_cpp.py` compares it with what is reserved for models as they are published.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.fit.context import Context
from planner.fit.layers import Layer
from planner.fit.parameters import Parameters

__all__ = ["RESERVE", "compute_bytes"]

RESERVE = 2**30
"""For the driver's context, its libraries' workspaces and what else is on the card: as much as llama.cpp itself leaves
free when it fits a model to a device (`--fit-target`, fit_params_target in common/common.h)."""

_VECTORS_BY_LOGITS, _VECTORS = 12, 4  # of the model's width
_INNER, _WKV = 8, 20  # vectors of the inner width of ssm; of the model's width in rwkv
_FLOAT = 4


def compute_bytes(
    architecture: str, parameters: Parameters, vocabulary: int, layers: Sequence[Layer], context: Context
) -> int:
    """Return about what llama.cpp reserves to compute, rather more than less; flash attention is on.

    `vocabulary` is the number of logits, `layers` are all that keep a context.
    """
    batch = min(context.batch, context.tokens)
    width = parameters.number("embedding_length")
    logits = vocabulary + _VECTORS_BY_LOGITS * width
    layer = max(_inside(architecture, parameters), default=0) + _VECTORS * width
    windows = any(entry.window is not None for entry in layers)
    attends = any(entry.keys for entry in layers)
    cells = context.cells * context.sequences  # each sequence sees its own alone, unless they share a cache
    mask = (4 if windows else 2) * cells * batch if attends else 0
    if architecture == "grok":  # whose scores are computed in full (llama_init_from_model turns flash attention off)
        mask += _FLOAT * cells * batch * parameters.most("attention.head_count")
    unpacked = 0
    for place, kind in enumerate(context.kv):
        if kind not in ("f16", "bf16"):
            widest = max(((entry.keys, entry.values)[place] for entry in layers), default=0)
            unpacked += 2 * widest * cells
    return _FLOAT * batch * max(logits, layer) + mask + unpacked


def _inside(architecture: str, parameters: Parameters) -> list[int]:
    """Return the numbers a token that the inside of each kind of layer holds."""
    width = parameters.number("embedding_length")
    used = min(parameters.most("expert_used_count"), parameters.most("expert_count"))
    heads = parameters.most("attention.head_count")
    key, value = parameters.number("attention.key_length"), parameters.number("attention.value_length")
    return [
        3 * parameters.most("feed_forward_length"),
        used * (2 * width + 3 * parameters.most("expert_feed_forward_length")),
        heads * (2 * key + value),
        _INNER * parameters.number("ssm.inner_size"),
        _WKV * width if "wkv.head_size" in parameters else 0,
    ]
