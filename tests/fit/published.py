"""Models as they are published: what their GGUFs say, from where, and what that makes of their contexts by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Number = int | Sequence[int]


@dataclass(frozen=True)
class Published:
    """A model's metadata, its vocabulary, and by hand: bytes of a token's keys and values (f16) in layers that attend
    to everything; layers with windows, their window, and bytes of a token in one of them; numbers of the state of a
    sequence. `more` is what llama.cpp asks for besides, which nothing here depends on."""

    source: str
    architecture: str
    vocabulary: int
    metadata: Mapping[str, Number]
    per_token: int
    windows: tuple[int, int, int] = (0, 0, 0)
    state: int = 0
    more: Mapping[str, str | bool | float | Number] = field(default_factory=dict)


def _sizes(blocks: int, width: int, heads: Number, kv_heads: Number, head: int, inner: Number) -> dict[str, Number]:
    return {
        "block_count": blocks, "embedding_length": width, "feed_forward_length": inner, "attention.head_count": heads,
        "attention.head_count_kv": kv_heads, "attention.key_length": head, "attention.value_length": head,
    }  # fmt: skip


def _experts(count: int, used: int, inner: int) -> dict[str, Number]:
    return {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": inner}


def _ssm(kernel: int, inner: int, state: int, groups: int) -> dict[str, Number]:
    return {"ssm.conv_kernel": kernel, "ssm.inner_size": inner, "ssm.state_size": state, "ssm.group_count": groups}


def _pattern(period: int, blocks: int) -> list[int]:
    return [int(block % period < period - 1) for block in range(blocks)]


_LFM2 = [0, 0, 8, 0, 0, 8, 0, 0, 8, 0, 8, 0, 8, 0, 8, 0]
_HF = "huggingface.co"

PUBLISHED: Mapping[str, Published] = {
    "llama-3.1-8b": Published(
        f"{_HF}/meta-llama/Llama-3.1-8B/blob/main/config.json", "llama", 128256,
        _sizes(32, 4096, 32, 8, 128, 14336), 32 * 8 * 128 * 2 * 2, more={"rope.dimension_count": 128},
    ),
    "qwen3-32b": Published(
        f"{_HF}/Qwen/Qwen3-32B/blob/main/config.json", "qwen3", 151936,
        _sizes(64, 5120, 64, 8, 128, 25600), 64 * 8 * 128 * 2 * 2,
    ),
    "qwen3-30b-a3b": Published(
        f"{_HF}/Qwen/Qwen3-30B-A3B/blob/main/config.json", "qwen3moe", 151936,
        _sizes(48, 2048, 32, 4, 128, 6144) | _experts(128, 8, 768), 48 * 4 * 128 * 2 * 2,
    ),
    # metadata of a GGUF of 27B as it is logged there; Qwen3.8-27B has the same: 16 of 64 layers attend, says
    # github.com/ggml-org/llama.cpp/issues/26581
    "qwen3.8-27b": Published(
        "github.com/ggml-org/llama.cpp/pull/23792", "qwen35", 248320,
        _sizes(64, 5120, 24, 4, 256, 17408) | _ssm(4, 6144, 128, 16) | {"full_attention_interval": 4},
        65_536, state=48 * (3 * (6144 + 2 * 16 * 128) + 128 * 6144),
        more={"ssm.time_step_rank": 48, "rope.dimension_count": 64, "rope.dimension_sections": [11, 11, 10, 0]},
    ),
    "gemma-2-9b": Published(
        f"{_HF}/google/gemma-2-9b/blob/main/config.json", "gemma2", 256000,
        _sizes(42, 3584, 16, 8, 256, 14336) | {"attention.sliding_window": 4096},
        21 * 8 * 256 * 2 * 2, windows=(21, 4096, 8 * 256 * 2 * 2),
    ),
    "gemma-3-27b": Published(
        f"{_HF}/google/gemma-3-27b-it/blob/main/config.json", "gemma3", 262208,
        _sizes(62, 5376, 32, 16, 128, 21504) | {"attention.sliding_window": 1024},
        10 * 16 * 128 * 2 * 2, windows=(52, 1024, 16 * 128 * 2 * 2),
    ),
    # keys of the GGUF as logged in github.com/lemonade-sdk/llamacpp-rocm/issues/81: pattern, lengths, windows
    "gemma-4-26b-a4b": Published(
        f"{_HF}/google/gemma-4-26B-A4B/blob/main/config.json", "gemma4", 262144,
        _sizes(30, 2816, 16, [2 if block % 6 == 5 else 8 for block in range(30)], 512, 2112) | _experts(128, 8, 704)
        | {"attention.key_length_swa": 256, "attention.value_length_swa": 256, "attention.sliding_window": 1024,
           "attention.sliding_window_pattern": _pattern(6, 30), "attention.shared_kv_layers": 0},
        20_480, windows=(25, 1024, 8 * 256 * 2 * 2),
        more={"embedding_length_per_layer_input": 0, "rope.dimension_count": 512, "rope.dimension_count_swa": 256},
    ),
    "gpt-oss-20b": Published(
        "docs.nvidia.com/nemo/megatron-bridge/nightly/models/llm/gpt-oss.html", "gpt-oss", 201088,
        _sizes(24, 2880, 64, 8, 64, 2880) | _experts(32, 4, 2880) | {"attention.sliding_window": 128},
        12 * 8 * 64 * 2 * 2, windows=(12, 128, 8 * 64 * 2 * 2),
    ),
    "deepseek-v3": Published(  # latent attention: 512 numbers of the latent and 64 with rotation, once
        "github.com/deepseek-ai/DeepSeek-V3/blob/main/inference/configs/config_671B.json", "deepseek2", 129280,
        _sizes(61, 7168, 128, 1, 0, 18432) | _experts(256, 8, 2048)
        | {"attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192,
           "attention.value_length_mla": 128, "leading_dense_block_count": 3},
        61 * (512 + 64) * 2,
        more={"attention.kv_lora_rank": 512, "attention.q_lora_rank": 1536, "rope.dimension_count": 64,
              "expert_shared_count": 1, "expert_gating_func": 2, "expert_weights_scale": 2.5,
              "expert_weights_norm": True},
    ),
    "llama-4-scout": Published(  # chunks of 8,192 tokens in three layers of four
        f"{_HF}/meta-llama/Llama-4-Scout-17B-16E/blob/main/config.json", "llama4", 202048,
        _sizes(48, 5120, 40, 8, 128, 16384) | _experts(16, 1, 8192),
        12 * 8 * 128 * 2 * 2, windows=(36, 8192, 8 * 128 * 2 * 2),
        more={"interleave_moe_layer_step": 1, "rope.dimension_count": 128},
    ),
    "mamba2-2.7b": Published(
        f"{_HF}/state-spaces/mamba2-2.7b/blob/main/config.json", "mamba2", 50288,
        _sizes(64, 2560, 0, 0, 0, 0) | _ssm(4, 5120, 128, 1),
        0, state=64 * (3 * (5120 + 2 * 128) + 128 * 5120), more={"ssm.time_step_rank": 80},
    ),
    "falcon-h1-7b": Published(  # every layer attends and has a state; table of transformers' documentation
        f"{_HF}/docs/transformers/model_doc/falcon_h1", "falcon-h1", 130048,
        _sizes(44, 3072, 12, 2, 128, 12288) | _ssm(4, 3072, 256, 1),
        44 * 2 * 128 * 2 * 2, state=44 * (3 * (3072 + 2 * 256) + 256 * 3072), more={"ssm.time_step_rank": 24},
    ),
    "lfm2-1.2b": Published(  # 12,288 bytes a token: 384 MiB in 32,768, as that issue says
        "github.com/gpustack/gguf-parser-go/issues/31", "lfm2", 65536,
        _sizes(16, 2048, 32, _LFM2, 64, 8192) | {"shortconv.l_cache": 3},
        384 * 2**20 // 32768, state=10 * 2048 * 2,
    ),
    "rwkv7-2.9b": Published(
        f"{_HF}/fla-hub/rwkv7-2.9B-world/blob/main/config.json", "rwkv7", 65536,
        _sizes(32, 2560, 0, 0, 0, 10240) | {"wkv.head_size": 64, "token_shift_count": 2},
        0, state=32 * (2 * 2560 + 2560 * 64),
        more={"attention.decay_lora_rank": 96, "attention.iclr_lora_rank": 96,
              "attention.value_residual_mix_lora_rank": 64, "attention.gate_lora_rank": 320},
    ),
    "granite-4.0-h-tiny": Published(  # 4 of 40 layers attend
        f"{_HF}/ibm-granite/granite-4.0-h-tiny/blob/main/config.json", "granitehybrid", 100352,
        _sizes(40, 1536, 12, [4 if block in (5, 15, 25, 35) else 0 for block in range(40)], 128, 1024)
        | _experts(64, 6, 512) | _ssm(4, 3072, 128, 1),
        4 * 4 * 128 * 2 * 2, state=36 * (3 * (3072 + 2 * 128) + 128 * 3072),
        more={"ssm.time_step_rank": 48, "expert_shared_feed_forward_length": 1024, "attention.scale": 0.0078125,
              "rope.dimension_count": 128},
    ),
}  # fmt: skip
