"""Small models of many architectures, as metadata: enough for llama.cpp to lay them out, and odd enough to tell rules
apart. Keys that an architecture does not read say nothing, so that most are the same for all."""

from __future__ import annotations

from tests.fit.oracle import Value

# Where rules of memory differ; and some of those that have none of their own
ARCHITECTURES = (
    "afmoe", "arwkv7", "bailingmoe3", "cohere2", "cohere2moe", "deci", "deepseek2", "deepseek32", "dots3note",
    "exaone-moe", "exaone4", "falcon", "falcon-h1", "gemma2", "gemma3", "gemma3n", "gemma4", "glm-dsa",
    "glm5-next", "gpt-oss", "granite_swa", "granitehybrid", "hy_v4", "jamba", "kimi-k3", "laguna", "lfm2", "lfm2moe",
    "llama", "llama4", "mamba", "mamba2", "maple", "mellum", "mimo2", "minimax-m3", "muse-glimmer", "nanbeige",
    "nemotron_h", "nemotron_h_moe", "olmo2", "openelm", "phi3", "plamo2", "plamo3", "qwen2moe", "qwen35", "qwen35moe",
    "qwen3next", "qwen4exp", "rwkv6", "rwkv7", "smallthinker", "spark2_5", "step35",
)  # fmt: skip

_HYBRID = ("bailingmoe3", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "lfm2", "lfm2moe", "nemotron_h",
           "nemotron_h_moe", "plamo2")  # fmt: skip
_LATENT = ("bailingmoe3", "deepseek2", "deepseek32", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "kimi-k3")
_DELTA = ("bailingmoe3", "glm5-next", "kimi-k3")
_NO_HEADS = ("arwkv7", "mamba", "mamba2", "rwkv6", "rwkv7")
_LISTED = ("cohere2moe", "dots3note", "granite_swa", "maple", "mimo2", "muse-glimmer", "spark2_5", "step35")
_DENSE = ("arwkv7", "cohere2", "deci", "exaone4", "falcon", "falcon-h1", "gemma2", "gemma3", "gemma3n", "gemma4",
          "granitehybrid", "jamba", "lfm2", "llama", "mamba", "mamba2", "muse-glimmer", "nanbeige", "nemotron_h",
          "olmo2", "openelm", "phi3", "plamo2", "plamo3", "qwen35", "rwkv6", "rwkv7", "spark2_5")  # fmt: skip


def metadata_of(architecture: str) -> dict[str, Value]:
    """Metadata of a model of this architecture, without its name before the keys."""
    blocks = 22 if architecture == "gemma3n" else 64 if architecture == "exaone4" else 6
    width, heads, kv_heads, inner = (128, 1, 1, 384) if architecture in _DELTA else (256, 4, 2, 384)
    if architecture == "minimax-m3":  # an indexer head for each
        kv_heads = heads
    pairs: dict[str, Value] = {
        "block_count": blocks, "embedding_length": width, "feed_forward_length": inner,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads, "attention.sliding_window": 300,
        "full_attention_interval": 2, "ssm.inner_size": 512, "ssm.conv_kernel": 4, "ssm.state_size": 128,
        "ssm.time_step_rank": heads, "ssm.group_count": 0 if architecture == "plamo2" else 2,
        "attention.indexer.head_count": heads if architecture == "minimax-m3" else 64,
        "attention.indexer.key_length": 128, "attention.indexer.top_k": 1 << 17, "attention.indexer.block_size": 4,
        "attention.indexer.local_blocks": 1, "attention.indexer.kpool": 4, "leading_dense_block_count": 1,
        "attention.q_lora_rank": 512, "attention.kv_lora_rank": 512, "num_loops": 2, **_SCALES,
    }  # fmt: skip
    pairs["rope.dimension_sections"] = [8, 12, 12, 0] if architecture == "bailingmoe3" else [width // heads // 4] * 4
    if architecture in _NO_HEADS:
        pairs |= {"attention.head_count": 0, "attention.head_count_kv": 0}
    if architecture in _HYBRID:
        pairs["attention.head_count_kv"] = [0 if block % 3 == 1 else kv_heads for block in range(blocks)]
    if architecture in ("nemotron_h", "nemotron_h_moe"):
        pairs["feed_forward_length"] = [inner if block % 3 == 2 else 0 for block in range(blocks)]
    if architecture in ("deci", "openelm"):
        pairs |= {"attention.head_count": [4, 2, 4, 2, 4, 4], "attention.head_count_kv": [2, 1, 2, 1, 1, 4]}
        pairs |= {"attention.key_length": 64, "attention.value_length": 64, "rope.dimension_count": 64}
    if "rwkv" in architecture:
        pairs |= {"wkv.head_size": 64, "token_shift_count": 1 if architecture == "arwkv7" else 2, **_RWKV}
    if architecture.startswith("lfm2"):
        pairs["shortconv.l_cache"] = 3
    if architecture in _DELTA:
        pairs |= {"kda.head_dim": 128, "kda.safe_gate": True, "kda.gate_lower_bound": -5.0}
    if architecture in _LATENT:
        pairs |= _latent(architecture, kv_heads=1 if architecture in _HYBRID else None)
    if architecture in _LISTED:
        pairs["attention.sliding_window_pattern"] = [block % 2 for block in range(blocks)]
    if architecture not in _DENSE:
        pairs |= {"expert_count": 4, "expert_used_count": 2, **_EXPERTS}
    return pairs | _OWN.get(architecture, {})


def _latent(architecture: str, *, kv_heads: int | None) -> dict[str, Value]:
    plain = architecture == "glm5-next"  # without rotation
    pairs: dict[str, Value] = {
        "attention.key_length": 512 if plain else 576, "attention.value_length": 512,
        "rope.dimension_count": 0 if plain else 64, "attention.key_length_mla": 192, "attention.value_length_mla": 128,
    }  # fmt: skip
    return pairs if kv_heads else pairs | {"attention.head_count_kv": 1}


_SCALES: dict[str, Value] = {
    "logit_scale": 1.0, "residual_scale": 1.0, "embedding_scale": 1.0, "attention.scale": 1.0,
    "attention.clamp_kqv": 1.0, "attention.max_alibi_bias": 8.0, "attn_res.block_size": 12, "attn_res_block_size": 12,
    "activation.situ_beta": 4.0, "activation.situ_linear_beta": 25.0, "use_parallel_residual": False,
}  # fmt: skip
_RWKV: dict[str, Value] = {
    "time_mix_extra_dim": 64, "time_decay_extra_dim": 128, "attention.decay_lora_rank": 32,
    "attention.iclr_lora_rank": 32, "attention.value_residual_mix_lora_rank": 32, "attention.gate_lora_rank": 32,
}  # fmt: skip
_EXPERTS: dict[str, Value] = {
    "expert_feed_forward_length": 384, "expert_shared_feed_forward_length": 192, "expert_shared_count": 1,
    "interleave_moe_layer_step": 2, "expert_gating_func": 2, "expert_weights_scale": 1.0, "moe_latent_size": 384,
    "expert_weights_norm": True,
}  # fmt: skip
_INDEXERS: dict[str, Value] = {"attention.indexer.types": [1, 0, 1, 0, 1, 0]}
_MIXED: dict[str, Value] = {
    "hyper_connection.count": 4, "hyper_connection.sinkhorn_iterations": 2, "hyper_connection.epsilon": 1e-6,
    "hyper_connection.low_rank": 8, "hyper_connection.magnitude": 2.0, "attention.compress_ratios": [4] * 6,
}  # fmt: skip
_OWN: dict[str, dict[str, Value]] = {
    "bailingmoe3": {"swiglu_clamp_exp": 1.0},
    "dots3note": {
        **_INDEXERS, "attention.kv_lora_rank_swa": 512, "attention.key_length_swa": 576,
        "attention.value_length_swa": 512, "attention.key_length_mla_swa": 192, "attention.value_length_mla_swa": 128,
        "rope.freq_base_swa": 1e4,
    },
    "gemma4": {
        "embedding_length_per_layer_input": 128, "attention.shared_kv_layers": 2, "attention.key_length_swa": 32,
        "attention.value_length_swa": 32, "attention.sliding_window_pattern": [1, 1, 1, 0, 1, 0],
    },
    "qwen35": {"nextn_predict_layers": 1, "block_count": 7},
    "glm5-next": _MIXED,
    "hy_v4": {**_MIXED, **_INDEXERS, "swiglu_clamp_exp": 10.0},
    "maple": {"swiglu_clamp_exp": 7.0},
    "minimax-m3": {"rope.dimension_count": 64},
    "qwen4exp": {
        **_MIXED, "attention.indexer.key_length": 64, "ple.layers": [0], "ple.ngram_size": 3, "ple.heads_per_ngram": 2,
        "ple.conv_kernel": 4, "ple.eos_token_id": 0, "embedding_length_per_layer_input": 64,
        "ple.layer_multipliers": [1, 3, 5], "ple.head_offsets": [0, 128, 256, 384],
        "ple.head_vocab_sizes": [128, 128, 128, 128],
    },
}  # fmt: skip
