"""Models that llama.cpp runs, or should not: the example with other metadata, and small ones of other architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
_HEADS = "GGUF."


def edited(
    example: Path,
    path: Path,
    change: Mapping[str, object] | None = None,
    *,
    arrays: Callable[[Arrays], Arrays] = lambda found: found,
    architecture: str = "llama",
) -> Path:
    """The example with values of keys changed, added (texts, numbers and booleans) or, where None, left out;
    and with other `arrays`. Keys of its architecture follow the name of that."""

    def renamed(key: str) -> str:
        return key.replace("llama.", f"{architecture}.", 1) if key.startswith("llama.") else key

    reader, change = gguf.GGUFReader(example), dict(change or {})
    writer = gguf.GGUFWriter(path, architecture)
    for key, entry in reader.fields.items():
        if key.startswith(_HEADS) or key == "general.architecture":
            continue
        value, kinds = change.pop(key, entry.contents()), entry.types
        if value is not None:
            writer.add_key_value(renamed(key), value, kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for key, value in change.items():
        name = renamed(key)
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_string(name, str(value))
    found = arrays({tensor.name: tensor.data for tensor in reader.tensors})
    for name, array in found.items():
        writer.add_tensor(name, array)
    return _written(writer, path)


def bert(path: Path, *, positions: int = 128) -> Path:
    """A BERT of two blocks with random weights."""
    width, inner = 64, 128
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"\u2581{letter}" for letter in "abcdefghij")]
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int, dtype: type = np.float16) -> NDArray[Any]:
        return (rng.standard_normal((rows, columns)) * 0.05).astype(dtype)

    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    arrays: Arrays = {
        "token_embd.weight": matrix(len(words), width),
        "position_embd.weight": matrix(positions, width, np.float32),
        "token_types.weight": matrix(2, width, np.float32),
        "token_embd_norm.weight": ones,
        "token_embd_norm.bias": zeros,
    }
    for block in range(2):
        for role in ("attn_q", "attn_k", "attn_v", "attn_output"):
            arrays[f"blk.{block}.{role}.weight"] = matrix(width, width)
            arrays[f"blk.{block}.{role}.bias"] = zeros
        for norm in ("attn_output_norm", "layer_output_norm"):
            arrays[f"blk.{block}.{norm}.weight"], arrays[f"blk.{block}.{norm}.bias"] = ones, zeros
        arrays[f"blk.{block}.ffn_up.weight"] = matrix(inner, width)
        arrays[f"blk.{block}.ffn_up.bias"] = np.zeros(inner, np.float32)
        arrays[f"blk.{block}.ffn_down.weight"] = matrix(width, inner)
        arrays[f"blk.{block}.ffn_down.bias"] = zeros
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_block_count(2)
    writer.add_context_length(positions)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(words)
    writer.add_token_type_count(2)
    writer.add_token_types([3] * 5 + [1] * (len(words) - 5))
    for name, number in (("bos", 2), ("eos", 3), ("unk", 1), ("sep", 3), ("pad", 0), ("mask", 4)):
        getattr(writer, f"add_{name}_token_id")(number)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    return _written(writer, path)


def phi(example: Path, path: Path, bias: NDArray[np.float32]) -> Path:
    """A phi-2 of one block with the example's vocabulary, whose logits get `bias`, f32[4096]."""
    width, inner = 64, 128
    rng = np.random.default_rng(1)

    def matrix(rows: int, columns: int) -> NDArray[Any]:
        return (rng.standard_normal((rows, columns)) * 0.1).astype(np.float16)

    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    shapes = {"attn_qkv": (3 * width, width), "attn_output": (width, width), "ffn_up": (inner, width)}
    shapes["ffn_down"] = (width, inner)
    arrays: Arrays = {"token_embd.weight": matrix(len(bias), width), "output.weight": matrix(len(bias), width)}
    arrays |= {"output.bias": bias, "output_norm.weight": ones, "output_norm.bias": zeros}
    arrays |= {"blk.0.attn_norm.weight": ones, "blk.0.attn_norm.bias": zeros}
    for role, shape in shapes.items():
        arrays[f"blk.0.{role}.weight"] = matrix(*shape)
        arrays[f"blk.0.{role}.bias"] = np.zeros(shape[0], np.float32)
    sizes: dict[str, object] = {
        "embedding_length": width, "block_count": 1, "feed_forward_length": inner, "rope.dimension_count": 16,
        "attention.head_count_kv": 4, "attention.layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    changes = {f"llama.{key}": value for key, value in sizes.items()}
    return edited(example, path, changes, arrays=lambda _: arrays, architecture="phi2")


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
