"""Small models of many architectures, with the names and shapes that llama.cpp itself gives their tensors.

Each is made of metadata alone: llama.cpp is asked for the tensors that a model of it has (as `tests.fit.oracle` asks
for its contexts), and they get random weights, a vocabulary, and are written to a file that llama.cpp runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from planner.llama import library
from planner.llama.library import GgmlTensor
from tests import models
from tests.fit import oracle
from tests.fit.made_up import metadata_of

__all__ = ["ARCHITECTURES", "pairs_of", "tensors_of", "write_model"]

EXAMPLE = Path(__file__).parents[1] / "examples/prose-8m-f16.gguf"
WORDS = 320  # of the example's vocabulary

# Architecture → models of it that people have
ARCHITECTURES: Mapping[str, str] = {
    "llama": "Llama 3, Mistral",
    "qwen3": "Qwen3",
    "qwen3moe": "Qwen3 A3B, A22B",
    "qwen3next": "Qwen3-Next",
    "qwen35": "Qwen3.5 to 3.8",
    "qwen35moe": "Qwen3.5 to 3.8, experts",
    "qwen4exp": "Qwen4 preview",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "gemma3n": "Gemma 3n",
    "gemma4": "Gemma 4",
    "gpt-oss": "gpt-oss",
    "llama4": "Llama 4",
    "glm4moe": "GLM-4.5, 4.6",
    "glm-dsa": "GLM-5",
    "glm5-next": "GLM-5.x",
    "deepseek2": "DeepSeek V3, Kimi K2",
    "deepseek32": "DeepSeek V3.2",
    "deepseek4": "DeepSeek V4",
    "kimi-linear": "Kimi Linear",
    "kimi-k3": "Kimi K3",
    "hy_v4": "Hunyuan 4",
    "minimax-m2": "MiniMax M2",
    "minimax-m3": "MiniMax M3",
    "nemotron_h": "Nemotron-H",
    "nemotron_h_moe": "Nemotron 3",
    "falcon-h1": "Falcon H1",
    "granitehybrid": "Granite 4 H",
    "jamba": "Jamba",
    "mamba2": "Mamba 2",
    "lfm2": "LFM2",
    "lfm2moe": "LFM2, experts",
    "rwkv6": "RWKV 6",
    "rwkv7": "RWKV 7",
    "phi3": "Phi 3, 4",
    "olmo2": "OLMo 2",
    "cohere2": "Command A",
    "bert": "BGE, MiniLM",
    "modern-bert": "ModernBERT",
    "t5": "T5, Flan",
    "dream": "Dream",
    "llada": "LLaDA",
}
_MORE: Mapping[str, dict[str, oracle.Value]] = {
    "deepseek4": {
        "swiglu_clamp_exp": 10.0, "attention.output_group_count": 2, "attention.output_lora_rank": 64,
        "attention.compress_rope_freq_base": 1e4, "hyper_connection.count": 4,
        "hyper_connection.sinkhorn_iterations": 2, "hyper_connection.epsilon": 1e-6,
        "hash_layer_count": 0, "attention.compress_ratios": [0, 4, 128, 4, 128, 4],
        "attention.key_length": 128, "attention.value_length": 128, "rope.dimension_count": 64,
        "attention.head_count_kv": 1, "leading_dense_block_count": 0, "expert_gating_func": 4,
    },
    "gemma4": {"rope.dimension_count_swa": 32},
    "glm4moe": {"nextn_predict_layers": 1, "block_count": 7},
    "kimi-linear": {
        "attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192,
        "attention.value_length_mla": 128, "attention.head_count_kv": [0, 1, 0, 1, 0, 1], "kda.head_dim": 128,
        "attention.head_count": 1, "embedding_length": 128, "rope.dimension_count": 64, "attention.q_lora_rank": 0,
    },
    "t5": {"attention.relative_buckets_count": 32},
}  # fmt: skip
# What llama.cpp would load too, and files of such models do not have: factors of NVFP4, and more
_FACTORS = (".scale", ".input_scale")
_ABSENT = {"lfm2": ("dense_2",), "lfm2moe": ("dense_2",), "qwen3next": ("ssm_in",)}


def pairs_of(architecture: str, heads: int | None = None) -> dict[str, oracle.Value]:
    """Metadata of a small model, without the architecture's name before the keys; with so many draft heads, where that
    is said."""
    pairs = {**oracle._COMMON, "context_length": 512, **metadata_of(architecture), **_MORE.get(architecture, {})}
    if heads is None:
        return pairs
    before = _number(pairs["block_count"])
    count = before - _number(pairs.get("nextn_predict_layers", 0)) + heads
    by_block = {
        key: [*value, *value[-1:] * heads][:count]
        for key, value in pairs.items()
        if isinstance(value, list) and len(value) == before and key != "attention.indexer.types"  # of all but heads
    }
    return pairs | by_block | {"block_count": count, "nextn_predict_layers": heads}


def _number(value: oracle.Value) -> int:
    assert isinstance(value, int)
    return value


@cache
def tensors_of(architecture: str, heads: int | None = None) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes (ggml order) of all tensors that llama.cpp loads, with those of draft heads."""
    api, header, found = library.llama(), oracle._gguf().gguf_init_empty(), {}
    oracle._gguf().gguf_set_val_str(header, b"general.architecture", architecture.encode())
    oracle._gguf().gguf_set_val_str(header, b"tokenizer.ggml.model", b"no_vocab")
    oracle._set(oracle._gguf(), header, "tokenizer.ggml.token_type_count", 2)
    for key, value in {**pairs_of(architecture, heads), "vocab_size": WORDS}.items():
        oracle._set(oracle._gguf(), header, f"{architecture}.{key}", value)

    @api.llama_model_set_tensor_data_t
    def note(address: int, _data: object) -> None:
        tensor = GgmlTensor.from_address(address)
        shape = tuple(tensor.ne)
        found[tensor.name.decode()] = shape[: max(i + 1 for i in range(4) if shape[i] > 1 or i == 0)]

    parameters = api.llama_model_default_params()
    parameters.use_extra_bufts, parameters.load_mode, parameters.load_mtp = False, 0, True
    with oracle._logged() as said:
        model = api.llama_model_init_from_user(header, note, None, parameters)
    assert model, "".join(said[-5:])
    api.llama_model_free(model)
    oracle._gguf().gguf_free(header)
    absent = _ABSENT.get(architecture, ())
    return {
        name: shape
        for name, shape in found.items()
        if not (name.endswith(_FACTORS) or any(part in name for part in absent))
    }


def write_model(architecture: str, path: Path, *, seed: int = 0, heads: int | None = None) -> Path:
    """A model with random weights in F16 (F32 where they are few), and a vocabulary."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in pairs_of(architecture, heads).items():
        _add(writer, f"{architecture}.{key}", value)
    _add_vocabulary(writer)
    for number, (name, shape) in enumerate(tensors_of(architecture, heads).items()):
        writer.add_tensor(name, _weights(name, shape, np.random.default_rng([seed, number])))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.generic]:
    rows = shape[::-1]
    if name.endswith(".ssm_a"):  # states decay
        return np.full(rows, -1, np.float32)
    if len(shape) == 1 or "norm" in name:
        ones = "norm" in name or "scale" in name
        return (np.ones(rows) if ones else rng.normal(0, 0.02, rows)).astype(np.float32)
    values = rng.standard_normal(rows) / np.sqrt(shape[0])
    large = shape[0] >= 32 and np.prod(shape[1:]) >= 16
    return values.astype(np.float16 if name.endswith("weight") and large else np.float32)


def _add(writer: gguf.GGUFWriter, key: str, value: oracle.Value) -> None:
    """As models are made elsewhere, but for the type of numbers in lists, which llama.cpp asks for here."""
    if isinstance(value, str | int | float):
        models._add(writer, key, value)
    else:
        kind = gguf.GGUFValueType.UINT64 if key.endswith(oracle._WIDE) else gguf.GGUFValueType.UINT32
        writer.add_key_value(key, list(value), gguf.GGUFValueType.ARRAY, kind)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    fields = gguf.GGUFReader(EXAMPLE).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()[:WORDS]
    known = set(tokens)
    merges = [pair for pair in fields["tokenizer.ggml.merges"].contents() if pair.replace(" ", "", 1) in known]
    writer.add_uint32("tokenizer.ggml.token_type_count", 2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(fields["tokenizer.ggml.token_type"].contents()[:WORDS])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
