"""The bundled model made over into other architectures: `python -m benchmarks.made_over gemma4 OUT.gguf`.

What it has learned stays where it fits: its embedding, queries, keys, values and feed-forwards, rescaled so that blocks
write about what they wrote. The rest is random: the gates of per-layer embeddings and delta nets. Such a model is no
better than its parts, but what it predicts hangs together, and quantizing it costs what it costs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from planner.gguf import open_model, read_imatrix
from planner.measure import moments, survey_tensor
from tests.architectures import EXAMPLE

__all__ = ["MADE_OVER", "make_over"]

Floats = NDArray[np.float32]
Arrays = dict[str, Floats]
Values = Mapping[str, int | float | list[int]]

WIDTH, HEADS, KV_HEADS, LENGTH, BLOCKS = 256, 4, 2, 64, 8
IMATRIX = EXAMPLE.with_name("prose-8m-sums.imatrix.gguf")
_PER_LAYER = 64
_SHARE = 0.5  # of the amplitude of a feed-forward's write, what a per-layer embedding writes
_LEFT = 0.8  # of the stream, what a block of Gemma 4 leaves


def gemma4(weights: Arrays, size: Mapping[str, Floats]) -> tuple[Values, Arrays]:
    """Gemma 4: norms of all that is written, of queries, keys and values; windows in half of the blocks; the last two
    without keys of their own; per-layer embeddings, random projections of the embedding, behind random gates."""
    rng = np.random.default_rng(0)
    embedding = weights["token_embd"]
    arrays = {
        "token_embd": embedding / np.sqrt(WIDTH),
        "output_norm": weights["output_norm"],
        "output": weights["output"],
        "per_layer_token_embd": embedding @ _random(rng, WIDTH, BLOCKS * _PER_LAYER) / np.sqrt(_PER_LAYER),
        "per_layer_model_proj": _random(rng, BLOCKS * _PER_LAYER, WIDTH) * np.sqrt(WIDTH),
        "per_layer_proj_norm": np.full(_PER_LAYER, 0.5, np.float32),
        "rope_freqs": np.ones(LENGTH // 2, np.float32),
    }
    arrays["per_layer_token_embd"] /= np.sqrt(np.square(arrays["per_layer_token_embd"]).mean() * _PER_LAYER)
    for block in range(BLOCKS):
        name, left = f"blk.{block}.", _LEFT**block
        own = {role: weights[name + role] for role in ("attn_norm", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")}
        own["attn_q"], own["attn_k"] = _halves(weights[name + "attn_q"]), _halves(weights[name + "attn_k"])
        own["attn_v"] = weights[name + "attn_v"]
        heads = np.repeat(_head_sizes(size[name + "attn_v"]), HEADS // KV_HEADS)
        own["attn_output"] = weights[name + "attn_output"] * np.repeat(heads, LENGTH)
        logits = _rms(size[name + "attn_q"]) * _rms(size[name + "attn_k"]) / np.sqrt(LENGTH)
        own["attn_q_norm"] = np.full(LENGTH, logits, np.float32)
        own["attn_k_norm"] = np.ones(LENGTH, np.float32)
        ffn = _rms(size[name + "ffn_down"]) * left
        own["post_attention_norm"] = np.full(WIDTH, _rms(size[name + "attn_output"]) * left, np.float32)
        own["post_ffw_norm"] = np.full(WIDTH, ffn, np.float32)
        own["inp_gate"] = _random(rng, _PER_LAYER, WIDTH)
        own["proj"] = _random(rng, WIDTH, _PER_LAYER)
        own["post_norm"] = np.full(WIDTH, _SHARE * ffn, np.float32)
        own["layer_output_scale"] = np.full(1, _LEFT, np.float32)
        if block >= BLOCKS - 2:
            for role in ("attn_k", "attn_k_norm", "attn_v"):
                del own[role]
        arrays |= {name + role: array for role, array in own.items()}
    return {
        "embedding_length_per_layer_input": _PER_LAYER, "attention.shared_kv_layers": 2, "attention.key_length": LENGTH,
        "attention.value_length": LENGTH, "attention.key_length_swa": LENGTH, "attention.value_length_swa": LENGTH,
        "attention.sliding_window": 128, "attention.sliding_window_pattern": [1, 0] * (BLOCKS // 2),
        "rope.freq_base_swa": 10000.0, "rope.dimension_count": LENGTH, "rope.dimension_count_swa": LENGTH,
    }, arrays  # fmt: skip


def qwen35(weights: Arrays, size: Mapping[str, Floats]) -> tuple[Values, Arrays]:
    """Qwen 3.5: attention with gated queries in every second block, in the others gated delta nets of the same queries,
    keys and values; gates are random."""
    rng = np.random.default_rng(0)
    arrays = {name: weights[name] for name in ("token_embd", "output_norm", "output")}
    for block in range(BLOCKS):
        name = f"blk.{block}."
        own = {role: weights[name + role] for role in ("attn_norm", "ffn_gate", "ffn_up", "ffn_down")}
        own["post_attention_norm"] = weights[name + "ffn_norm"]
        q, k, v = _halves(weights[name + "attn_q"]), _halves(weights[name + "attn_k"]), weights[name + "attn_v"]
        if block % 2:
            gates = _random(rng, HEADS, LENGTH, WIDTH)
            own["attn_q"] = np.stack([q.reshape(HEADS, LENGTH, WIDTH), gates], axis=1).reshape(-1, WIDTH)
            own["attn_k"], own["attn_v"] = k, v
            own["attn_output"] = 2 * weights[name + "attn_output"]
            for role in ("attn_q", "attn_k"):
                own[role + "_norm"] = np.full(LENGTH, _rms(size[name + role]), np.float32)
        else:
            twice = np.repeat(v.reshape(KV_HEADS, LENGTH, WIDTH), HEADS // KV_HEADS, axis=0).reshape(-1, WIDTH)
            shared = q.reshape(KV_HEADS, HEADS // KV_HEADS, LENGTH, WIDTH)[:, 0].reshape(-1, WIDTH)
            own["attn_qkv"] = np.concatenate([shared, k, twice])
            own["attn_gate"] = _random(rng, WIDTH, WIDTH)
            own["ssm_conv1d"] = np.concatenate([np.full((512, 3), 0.1), np.ones((512, 1))], axis=1, dtype=np.float32)
            own["ssm_alpha"], own["ssm_beta"] = _random(rng, HEADS, WIDTH), _random(rng, HEADS, WIDTH)
            own["ssm_dt.bias"] = np.full(HEADS, -3.0, np.float32)
            own["ssm_a"] = np.full(HEADS, -1.0, np.float32)
            own["ssm_norm"] = np.full(LENGTH, 2 * _rms(size[name + "attn_v"]), np.float32)
            own["ssm_out"] = weights[name + "attn_output"]
        arrays |= {name + role: array for role, array in own.items()}
    return {
        "attention.key_length": LENGTH, "attention.value_length": LENGTH, "full_attention_interval": 2,
        "ssm.conv_kernel": 4, "ssm.inner_size": WIDTH, "ssm.state_size": LENGTH, "ssm.time_step_rank": HEADS,
        "ssm.group_count": KV_HEADS, "rope.dimension_count": LENGTH, "rope.dimension_sections": [LENGTH // 2, 0, 0, 0],
    }, arrays  # fmt: skip


MADE_OVER: Mapping[str, Callable[[Arrays, Mapping[str, Floats]], tuple[Values, Arrays]]] = {
    "gemma4": gemma4,
    "qwen35": qwen35,
}


def make_over(architecture: str, path: Path) -> Path:
    """Write the bundled model as one of this architecture, in F16."""
    weights, sizes = _example()
    values, arrays = MADE_OVER[architecture](weights, sizes)
    common = {
        "block_count": BLOCKS, "embedding_length": WIDTH, "feed_forward_length": 768, "context_length": 512,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10000.0,
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"Prose 8M as {architecture}")
    writer.add_file_type(1)
    for key, value in {**common, **values}.items():
        kind = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}.get(type(value))
        if kind is not None:
            writer.add_key_value(f"{architecture}.{key}", value, kind)
        else:
            writer.add_array(f"{architecture}.{key}", value)
    for key, field in gguf.GGUFReader(EXAMPLE).fields.items():
        if key.startswith("tokenizer."):
            within = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], within)
    for name, array in arrays.items():
        small = array.ndim == 1 or "conv1d" in name
        full = name if name.endswith((".bias", ".ssm_a")) else f"{name}.weight"
        writer.add_tensor(full, np.ascontiguousarray(array, np.float32 if small else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _example() -> tuple[Arrays, dict[str, Floats]]:
    """The bundled model's weights by role, and the mean squares of what its matrices make."""
    matrix = read_imatrix(IMATRIX)
    weights, sizes = {}, {}
    with open_model(EXAMPLE) as model:
        for tensor in model.tensors:
            name, rows = tensor.name.removesuffix(".weight"), model.rows(tensor, 0, tensor.rows)
            weights[name] = np.array(rows[0] if tensor.rows == 1 else rows, np.float32)
            if tensor.rows > 1 and name != "token_embd":
                survey = survey_tensor(model, tensor, moments(tensor, matrix), find_massive=False)
                sizes[name] = np.asarray((survey.out_mean**2 + survey.out_var)[0], np.float32)
    return weights, sizes


def _random(rng: np.random.Generator, *shape: int) -> Floats:
    """Rows that make variance 1 out of inputs of variance 1."""
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def _halves(rows: Floats) -> Floats:
    """Rows of queries or keys that rotate with their neighbours, for rotation with those half a head apart."""
    heads = rows.reshape(-1, LENGTH // 2, 2, WIDTH)
    return np.ascontiguousarray(heads.transpose(0, 2, 1, 3).reshape(rows.shape))


def _rms(squares: Floats) -> float:
    return float(np.sqrt(squares.mean()))


def _head_sizes(squares: Floats) -> Floats:
    return np.asarray(np.sqrt(squares.reshape(KV_HEADS, LENGTH).mean(axis=1)), np.float32)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architecture", choices=MADE_OVER)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    make_over(options.architecture, options.out)
