"""The few facts of an architecture that decide how errors travel: heads, activation, scales, norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from planner.errors import ModelError
from planner.names.gguf import role_of

if TYPE_CHECKING:
    from planner.gguf import Model, Tensor

__all__ = ["Activation", "Anatomy", "BlockAnatomy", "read_anatomy"]

Doubles = NDArray[np.float64]
Activation = Literal["silu", "gelu", "relu2"]

# llama_model_rope_type in llama.cpp: these rotate neighbouring channels, all others those half a head apart
_NEIGHBOUR_ROPE = frozenset(
    """
    llama llada llama4 deci baichuan starcoder internlm2 minicpm xverse command-r cohere2 cohere2moe olmo
    arctic deepseek deepseek2 deepseek2-ocr deepseek32 plm chatglm granite granitemoe granitehybrid chameleon bailingmoe
    neo-bert smollm3 arcee ernie4_5 ernie4_5-moe mistral3 mistral4 llama-embed maincoder glm-dsa
    """.split()  # noqa: SIM905 - a list of literals would be three times as long
)
_RELU_SQUARED = frozenset({"nemotron", "nemotron_h", "nemotron_h_moe", "arcee"})
_NO_GATE_SILU = frozenset({"mamba", "mamba2"})


@dataclass(frozen=True)
class BlockAnatomy:
    """One block. `vectors` are its small float tensors by role (norms), float64."""

    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    vectors: Mapping[str, Doubles]

    def norm_after(self, sublayer: Literal["attention", "ffn"]) -> Doubles | None:
        """Return the weights of the norm that a sublayer's output passes before it is added to the stream, or None.

        `post_attention_norm` alone, without an ffn_norm or a norm after the FFN, is the norm *before* the FFN
        (Qwen3-Next).
        """
        if sublayer == "ffn":
            return self.vectors.get("post_ffw_norm")
        if "ffn_norm" in self.vectors or "post_ffw_norm" in self.vectors:
            return self.vectors.get("post_attention_norm")
        return None


@dataclass(frozen=True)
class Anatomy:
    """The whole model. `embedding_scale` and `residual_scale` multiply embeddings and what blocks write; `output_norm`
    are the weights of the last norm, float64, where there are any."""

    architecture: str
    embedding_scale: float
    residual_scale: float
    activation: Activation
    experts: int
    experts_used: int
    neighbour_rope: bool
    rotary: int
    output_norm: Doubles | None
    blocks: Mapping[int, BlockAnatomy]


def read_anatomy(model: Model) -> Anatomy:
    """Read the anatomy from a model's metadata and its small tensors; what is missing gets llama.cpp's defaults. Raises
    ModelError for norms that are no numbers."""
    arch = model.architecture
    width = model.parameter("embedding_length") or 1
    vectors: dict[int, dict[str, Doubles]] = {}
    for tensor in model.tensors:
        block, role = role_of(tensor.name)
        if block is not None and tensor.rows == 1 and role.endswith("norm") and model.format(tensor).for_weights:
            vectors.setdefault(block, {})[role] = _vector(model, tensor)
    count = min(model.parameter("block_count") or 0, len(model.tensors))
    numbers = sorted(set(vectors) | set(range(count)))
    last = model.by_name.get("output_norm.weight")
    known = last is not None and last.rows == 1 and model.format(last).for_weights

    def per_block(key: str, default: int) -> list[int]:
        value = model.metadata.brief(f"{arch}.{key}")
        if isinstance(value, np.ndarray):
            values = [int(entry) for entry in value[: len(numbers)]]
            return values + values[-1:] * max(0, len(numbers) - len(values)) if values else [default] * len(numbers)
        return [int(value) if isinstance(value, int) else default] * len(numbers)

    heads = per_block("attention.head_count", 1)
    kv_heads = per_block("attention.head_count_kv", 0)
    blocks: dict[int, BlockAnatomy] = {}
    for index, number in enumerate(numbers):
        own = max(heads[min(index, len(heads) - 1)], 1)
        length = width // own
        blocks[number] = BlockAnatomy(
            heads=own,
            kv_heads=kv_heads[min(index, len(kv_heads) - 1)] or own,
            key_length=model.parameter("attention.key_length") or length,
            value_length=model.parameter("attention.value_length") or length,
            vectors=vectors.get(number, {}),
        )
    return Anatomy(
        architecture=arch,
        embedding_scale=_embedding_scale(model, width),
        residual_scale=_number(model, "residual_scale") or 1.0,
        activation=_activation(model),
        experts=model.parameter("expert_count") or 0,
        experts_used=model.parameter("expert_used_count") or 1,
        neighbour_rope=arch in _NEIGHBOUR_ROPE,
        output_norm=_vector(model, last) if last is not None and known else None,
        rotary=model.parameter("rope.dimension_count") or 0,
        blocks=blocks,
    )


def _vector(model: Model, tensor: Tensor) -> Doubles:
    """Read the weights of a norm. Raises ModelError for NaN and infinity."""
    values = model.rows(tensor, 0, 1)[0]
    if not np.isfinite(values).all():
        raise ModelError(
            f"{tensor.name} holds NaN or infinite weights.",
            "Convert the model again from its original; `planner inspect` counts such values in every tensor.",
        )
    doubles: Doubles = values.astype(np.float64)
    return doubles


def _number(model: Model, key: str) -> float | None:
    value = model.metadata.brief(f"{model.architecture}.{key}")
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def _embedding_scale(model: Model, width: int) -> float:
    if model.architecture.startswith("gemma"):
        return float(np.sqrt(width))  # hard-wired in llama.cpp's graphs of the Gemma family
    return _number(model, "embedding_scale") or 1.0


def _activation(model: Model) -> Activation:
    if model.architecture in _RELU_SQUARED:
        return "relu2"
    gated = any(".ffn_gate" in tensor.name and "ffn_gate_inp" not in tensor.name for tensor in model.tensors)
    gated = gated or any(_holds_gate(model, tensor) for tensor in model.tensors)
    if model.architecture.startswith("gemma") or not (gated or model.architecture in _NO_GATE_SILU):
        return "gelu"
    return "silu"


def _holds_gate(model: Model, up: Tensor) -> bool:
    """Return whether an ffn_up holds the gate too (Phi-3, GLM-4): it then has twice the rows that ffn_down has
    channels."""
    down = model.by_name.get(up.name.replace("ffn_up", "ffn_down")) if ".ffn_up" in up.name else None
    return down is not None and up.rows_per_matrix == 2 * down.row_length
