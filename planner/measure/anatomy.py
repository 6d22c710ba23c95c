"""The few facts of an architecture that decide how errors travel: heads, activation, scales, norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from planner.errors import ModelError
from planner.names.gguf import LAYER_WRITER, role_of

if TYPE_CHECKING:
    from planner.gguf import Model, Tensor

__all__ = ["Activation", "Anatomy", "BlockAnatomy", "read_anatomy"]

Doubles = NDArray[np.float64]
Activation = Literal["silu", "gelu", "relu2", "sigmoid"]

# llama_model_rope_type in llama.cpp: these rotate neighbouring channels, all others those half a head apart
_NEIGHBOUR_ROPE = frozenset(
    """
    llama llada llama4 deci baichuan starcoder internlm2 minicpm xverse command-r cohere2 cohere2moe olmo
    arctic deepseek deepseek2 deepseek2-ocr deepseek32 plm chatglm granite granitemoe granitehybrid chameleon bailingmoe
    neo-bert smollm3 arcee ernie4_5 ernie4_5-moe mistral3 mistral4 llama-embed maincoder glm-dsa
    """.split()  # noqa: SIM905 - a list of literals would be three times as long
)
# What their graphs in llama.cpp do beyond their metadata: no 1/√length on logits, and values that are normalized
_UNSCALED = frozenset({"gemma3n", "gemma4"})
_PARTS = {"ffn_down": "post_ffw_norm_1", "ffn_down_exps": "post_ffw_norm_2"}
_VECTORS = ("norm", "norm_1", "norm_2", "layer_output_scale", "attn_q.bias", "ffn_gate.bias", "ffn_up.bias")
_LEAST = 1e-30  # of an energy that is divided by
_RELU_SQUARED = frozenset({"nemotron", "nemotron_h", "nemotron_h_moe", "arcee"})
_NO_GATE_SILU = frozenset({"mamba", "mamba2"})


@dataclass(frozen=True)
class BlockAnatomy:
    """One block. `vectors` are its small float tensors, float64: norms by role, biases as `attn_q.bias`. `scale`
    multiplies the stream before it, compared with one that no block has scaled (Gemma 4's layer_output_scale).
    `readers` is how often its keys and values are used: by itself, and by later blocks without their own, each by the
    energy that it adds."""

    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    vectors: Mapping[str, Doubles]
    scale: float = 1.0
    readers: float = 1.0

    def norm_behind(self, role: str) -> Doubles | None:
        """Return the squared weights of the norms between what a writer of this role makes and the stream, f64[n]:
        they multiply energies of channels over the mean of these. None without norms.

        `post_attention_norm` alone, without an ffn_norm or a norm after the FFN, is the norm *before* the FFN
        (Qwen3-Next). Gemma 4 normalizes what its dense part and its experts make, and then the sum.
        """
        if role == LAYER_WRITER:
            return self._squares("post_norm")
        if not role.startswith("ffn_"):
            behind = "ffn_norm" in self.vectors or "post_ffw_norm" in self.vectors
            return self._squares("post_attention_norm") if behind else None
        last, own = self._squares("post_ffw_norm"), self._squares(_PARTS.get(role, ""))
        parts = [part for part in map(self._squares, _PARTS.values()) if part is not None]
        if last is None or own is None or len(parts) < len(_PARTS):
            return last
        return last * own / max(float(np.mean(sum(parts))), _LEAST)

    def _squares(self, norm: str) -> Doubles | None:
        return self.vectors[norm] ** 2 if norm in self.vectors else None


@dataclass(frozen=True)
class Anatomy:
    """The whole model. `embedding_scale` and `residual_scale` multiply embeddings and what blocks write; `output_norm`
    are the weights of the last norm, float64, where there are any, and `per_layer_norm` those of the norm of what the
    embedding adds to per-layer embeddings. `attention_scale` multiplies logits, None for 1/√length; with `value_norm`
    values are normalized, without weights."""

    architecture: str
    embedding_scale: float
    residual_scale: float
    activation: Activation
    experts: int
    experts_used: int
    neighbour_rope: bool
    rotary: int
    output_norm: Doubles | None
    per_layer_norm: Doubles | None
    attention_scale: float | None
    value_norm: bool
    blocks: Mapping[int, BlockAnatomy]


def read_anatomy(model: Model) -> Anatomy:
    """Read the anatomy from a model's metadata and its small tensors; what is missing gets llama.cpp's defaults. Raises
    ModelError for norms that are no numbers."""
    arch = model.architecture
    width = model.parameter("embedding_length") or 1
    vectors = _vectors(model)
    count = min(model.parameter("block_count") or 0, len(model.tensors))
    numbers = sorted(set(vectors) | set(range(count)))

    def per_block(key: str, default: int) -> list[int]:
        value = model.metadata.brief(f"{arch}.{key}")
        if isinstance(value, np.ndarray):
            values = [int(entry) for entry in value[: len(numbers)]]
            return values + values[-1:] * max(0, len(numbers) - len(values)) if values else [default] * len(numbers)
        return [int(value) if isinstance(value, int) else default] * len(numbers)

    heads = per_block("attention.head_count", 1)
    kv_heads = per_block("attention.head_count_kv", 0)
    windowed = _windowed(model, numbers)
    readers = _readers(model, windowed, [vectors.get(number, {}) for number in numbers])
    scale, blocks = 1.0, {}
    for index, number in enumerate(numbers):
        own = max(heads[min(index, len(heads) - 1)], 1)
        lengths = [
            (windowed[index] and model.parameter(f"attention.{kind}_length_swa"))
            or model.parameter(f"attention.{kind}_length")
            or width // own
            for kind in ("key", "value")
        ]
        small = vectors.get(number, {})
        blocks[number] = BlockAnatomy(
            heads=own,
            kv_heads=kv_heads[min(index, len(kv_heads) - 1)] or own,
            key_length=lengths[0],
            value_length=lengths[1],
            vectors=small,
            scale=scale,
            readers=readers[index],
        )
        scale = scale * float(small["layer_output_scale"][0]) if "layer_output_scale" in small else scale
    return Anatomy(
        architecture=arch,
        embedding_scale=_embedding_scale(model, width),
        residual_scale=_number(model, "residual_scale") or 1.0,
        activation=_activation(model),
        experts=model.parameter("expert_count") or 0,
        experts_used=model.parameter("expert_used_count") or 1,
        neighbour_rope=arch in _NEIGHBOUR_ROPE,
        output_norm=_norm(model, "output_norm"),
        per_layer_norm=_norm(model, "per_layer_proj_norm"),
        attention_scale=1.0 if arch in _UNSCALED else _number(model, "attention.scale") or None,
        value_norm=arch in _UNSCALED,
        rotary=model.parameter("rope.dimension_count") or 0,
        blocks=blocks,
    )


def _vectors(model: Model) -> dict[int, dict[str, Doubles]]:
    """Read the small float tensors of blocks, by block, role and `.bias`."""
    vectors: dict[int, dict[str, Doubles]] = {}
    for tensor in model.tensors:
        block, role = role_of(tensor.name)
        if tensor.name.endswith(".bias"):
            role = f"{role}.bias"
        if block is not None and tensor.rows == 1 and role.endswith(_VECTORS) and model.format(tensor).for_weights:
            vectors.setdefault(block, {})[role] = _vector(model, tensor)
    return vectors


def _norm(model: Model, name: str) -> Doubles | None:
    tensor = model.by_name.get(f"{name}.weight")
    if tensor is None or tensor.rows != 1 or not model.format(tensor).for_weights:
        return None
    return _vector(model, tensor)


def _windowed(model: Model, numbers: Sequence[int]) -> list[bool]:
    """Return which blocks attend to a window only, where that decides about more than which keys they see."""
    if model.architecture == "gemma3n":  # hard-wired in llama.cpp
        return [number % 5 < 4 for number in numbers]
    pattern = model.metadata.brief(f"{model.architecture}.attention.sliding_window_pattern")
    known = [bool(entry) for entry in pattern[: len(numbers)]] if isinstance(pattern, np.ndarray) else []
    return known + [False] * (len(numbers) - len(known))


def _readers(model: Model, windowed: Sequence[bool], vectors: Sequence[Mapping[str, Doubles]]) -> list[float]:
    """Return how often the keys and values of each block are used: by itself, and by the last blocks, which in Gemma 3n
    and 4 have none of their own. Those take them from the last but one block that has some where they attend to a
    window, else from the last (llama_model::create_memory). Blocks count by the norm behind their attention."""
    count, readers = len(windowed), [1.0] * len(windowed)
    own = 20 if model.architecture == "gemma3n" else count - (model.parameter("attention.shared_kv_layers") or 0)
    if not 2 <= own < count:
        return readers
    energy = [float((small.get("post_attention_norm", np.ones(1)) ** 2).sum()) for small in vectors]
    for index in range(own, count):
        donor = own - (2 if windowed[index] else 1)
        readers[donor] += energy[index] / max(energy[donor], _LEAST)
    return readers


def _vector(model: Model, tensor: Tensor) -> Doubles:
    """Read the weights of a norm, or a bias. Raises ModelError for NaN and infinity."""
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
