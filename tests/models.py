"""Made-up models and importance matrices, written with the gguf package: random weights, real names and shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from planner.gguf import Tensor, open_model, read_imatrix, why_left_alone
from planner.gguf.covariance import Input
from planner.gguf.covariance_writer import CovarianceFile
from planner.gguf.products import Part, Products
from planner.gguf.sums import Sums, TensorSums, merge_imatrices

# Formats whose kernels need no lookup tables: those take up to 20 seconds to build
CHEAP = "legacy,k,iq4_xs,iq4_nl"
FEW = "q2_K,q4_K,q8_0,q4_0"

Value = str | int | float | bool | Sequence[int]


@dataclass
class Maker:
    """What a made-up model consists of, in the order in which it is added; shapes are numpy's (rows first)."""

    architecture: str = "llama"
    seed: int = 0
    arrays: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    kinds: dict[str, gguf.GGMLQuantizationType] = field(default_factory=dict)
    pairs: dict[str, Value] = field(default_factory=dict)
    words: int = 0  # of a vocabulary with which llama.cpp runs the model; none if 0

    def matrix(self, name: str, *shape: int, scale: float = 0.05, dtype: type = np.float16) -> None:
        rng = np.random.default_rng([self.seed, len(self.arrays)])
        rows = rng.standard_normal(shape) * scale
        # rows of different size, as real ones are
        rows *= rng.lognormal(0, 0.5, shape[:-1])[..., None]
        self.arrays[f"{name}.weight"] = rows.astype(dtype)

    def norm(self, name: str, width: int, value: float = 1.0) -> None:
        self.arrays[f"{name}.weight"] = np.full(width, value, np.float32)

    def write(self, path: Path, *, split: int = 0) -> Path:
        """Write it; with `split`, in parts of that many tensors (returns the first)."""
        writer = gguf.GGUFWriter(path, self.architecture, split_max_tensors=split)
        writer.add_name("made up")
        writer.add_file_type(1)
        for key, value in self.pairs.items():
            _add(writer, f"{self.architecture}.{key}", value)
        if self.words:
            _add_words(writer, self.words)
        for name, array in self.arrays.items():
            writer.add_tensor(name, array, raw_dtype=self.kinds.get(name))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if not split:
            return path
        count = -(-len(self.arrays) // split)
        return path.with_name(f"{path.stem}-00001-of-{count:05d}.gguf")


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, list(value))


def _sizes(maker: Maker, blocks: int, width: int, heads: int, kv_heads: int, **more: Value) -> None:
    maker.pairs |= {
        "block_count": blocks,
        "embedding_length": width,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "context_length": 64,
        **more,
    }


def _attention(maker: Maker, block: int, width: int, heads: int, kv_heads: int, length: int) -> None:
    maker.matrix(f"blk.{block}.attn_q", heads * length, width)
    maker.matrix(f"blk.{block}.attn_k", kv_heads * length, width)
    maker.matrix(f"blk.{block}.attn_v", kv_heads * length, width)
    maker.matrix(f"blk.{block}.attn_output", width, heads * length)


def _feed_forward(maker: Maker, block: int, width: int, inner: int, suffix: str = "", *experts: int) -> None:
    maker.matrix(f"blk.{block}.ffn_gate{suffix}", *experts, inner, width)
    maker.matrix(f"blk.{block}.ffn_up{suffix}", *experts, inner, width)
    maker.matrix(f"blk.{block}.ffn_down{suffix}", *experts, width, inner)


def dense(*, width: int = 256, inner: int = 512, vocabulary: int = 320, blocks: int = 2, seed: int = 0) -> Maker:
    """A llama with its own output matrix."""
    maker = Maker(seed=seed)
    _sizes(maker, blocks, width, 4, 2)
    maker.matrix("token_embd", vocabulary, width)
    for block in range(blocks):
        maker.norm(f"blk.{block}.attn_norm", width)
        _attention(maker, block, width, 4, 2, width // 4)
        maker.norm(f"blk.{block}.ffn_norm", width)
        _feed_forward(maker, block, width, inner)
    maker.norm("output_norm", width)
    maker.matrix("output", vocabulary, width)
    return maker


def tied(**options: int) -> Maker:
    """The same with its output tied to the embedding."""
    maker = dense(**options)
    del maker.arrays["output.weight"]
    return maker


def encoder(*, width: int = 256, inner: int = 512, blocks: int = 2, output: int = 320) -> Maker:
    """A SigLIP with Gemma 3's projector, as convert_hf_to_gguf.py --mmproj writes them. Patches are convolved; the
    projector is stored transposed."""
    maker = Maker("clip")
    maker.pairs |= {
        "has_vision_encoder": True, "projector_type": "gemma3", "use_gelu": True,
        "vision.image_size": 56, "vision.patch_size": 14, "vision.embedding_length": width,
        "vision.feed_forward_length": inner, "vision.block_count": blocks, "vision.attention.head_count": 4,
        "vision.attention.layer_norm_epsilon": 1e-6, "vision.projection_dim": output,
        "vision.image_mean": [0.5] * 3, "vision.image_std": [0.5] * 3,
    }  # fmt: skip
    maker.matrix("mm.input_projection", width, output)
    maker.norm("mm.soft_emb_norm", width)
    maker.matrix("v.patch_embd", width, 3, 14, 14)
    maker.arrays["v.patch_embd.bias"] = np.zeros(width, np.float32)
    maker.matrix("v.position_embd", 16, width, dtype=np.float32)
    for block in range(blocks):
        before = f"v.blk.{block}."
        for role in ("attn_q", "attn_k", "attn_v", "attn_out"):
            maker.matrix(before + role, width, width)
        maker.matrix(before + "ffn_up", inner, width)
        maker.matrix(before + "ffn_down", width, inner)
        for role, length in (("attn_q", width), ("ffn_up", inner), ("ffn_down", width), ("ln1", width), ("ln2", width)):
            maker.arrays[f"{before}{role}.bias"] = np.zeros(length, np.float32)
        maker.norm(before + "ln1", width)
        maker.norm(before + "ln2", width)
    maker.norm("v.post_ln", width)
    return maker


def odd() -> Maker:
    """Widths that no block of 256 divides (288, 160), one that none of 32 does (72), in F16, F32 and BF16."""
    maker = dense(width=288, inner=160, vocabulary=96)
    maker.matrix("blk.0.attn_k", 144, 288, dtype=np.float32)
    maker.matrix("blk.1.odd", 48, 72)
    maker.matrix("blk.1.odder", 48, 72, dtype=np.float32)
    name = "blk.1.attn_v.weight"
    maker.arrays[name] = maker.arrays[name].astype(np.float32).view(np.uint16)[:, 1::2].copy().view(np.uint8)
    maker.kinds[name] = gguf.GGMLQuantizationType.BF16
    return maker


def experts(*, count: int = 4) -> Maker:
    """A mixture of experts (2 used) with a shared one in its second block."""
    maker = Maker("qwen2moe")
    _sizes(maker, 2, 256, 4, 2, expert_count=count, expert_used_count=2)
    maker.matrix("token_embd", 96, 256)
    for block in range(2):
        maker.norm(f"blk.{block}.attn_norm", 256)
        _attention(maker, block, 256, 4, 2, 64)
        maker.norm(f"blk.{block}.ffn_norm", 256)
        maker.matrix(f"blk.{block}.ffn_gate_inp", count, 256, dtype=np.float32)
        _feed_forward(maker, block, 256, 256, "_exps", count)
    _feed_forward(maker, 1, 256, 256, "_shexp")
    maker.norm("output_norm", 256)
    maker.matrix("output", 96, 256)
    return maker


def fused() -> Maker:
    """Phi-like: one matrix for query, key and value, one for gate and up."""
    maker = Maker("phi3")
    _sizes(maker, 1, 256, 4, 2)
    maker.matrix("token_embd", 96, 256)
    maker.norm("blk.0.attn_norm", 256)
    maker.matrix("blk.0.attn_qkv", 4 * 64 + 2 * 2 * 64, 256)
    maker.matrix("blk.0.attn_output", 256, 256)
    maker.norm("blk.0.ffn_norm", 256)
    maker.matrix("blk.0.ffn_up", 1024, 256)
    maker.matrix("blk.0.ffn_down", 256, 512)
    maker.norm("output_norm", 256)
    maker.matrix("output", 96, 256)
    return maker


def post_norm() -> Maker:
    """Gemma-like: what a block writes is normalized first; norms on queries and keys; heads longer than their share."""
    maker = Maker("gemma3")
    _sizes(maker, 2, 256, 2, 1, **{"attention.key_length": 256, "attention.value_length": 256})
    maker.matrix("token_embd", 96, 256)
    for block in range(2):
        maker.norm(f"blk.{block}.attn_norm", 256)
        _attention(maker, block, 256, 2, 1, 256)
        maker.norm(f"blk.{block}.attn_q_norm", 256)
        maker.norm(f"blk.{block}.attn_k_norm", 256)
        maker.norm(f"blk.{block}.post_attention_norm", 256, 0.5)
        maker.norm(f"blk.{block}.ffn_norm", 256)
        _feed_forward(maker, block, 256, 512)
        maker.norm(f"blk.{block}.post_ffw_norm", 256, 0.25)
    maker.norm("output_norm", 256)
    return maker


def latent() -> Maker:
    """DeepSeek-like latent attention."""
    maker = Maker("deepseek2")
    _sizes(maker, 1, 256, 2, 2, **{"attention.key_length": 96, "attention.value_length": 64})
    maker.matrix("token_embd", 96, 256)
    maker.norm("blk.0.attn_norm", 256)
    maker.matrix("blk.0.attn_q_a", 128, 256)
    maker.norm("blk.0.attn_q_a_norm", 128)
    maker.matrix("blk.0.attn_q_b", 2 * 96, 128)
    maker.matrix("blk.0.attn_kv_a_mqa", 64 + 32, 256)
    maker.norm("blk.0.attn_kv_a_norm", 64)
    maker.matrix("blk.0.attn_k_b", 2, 64, 64)
    maker.matrix("blk.0.attn_v_b", 2, 64, 64)
    maker.matrix("blk.0.attn_output", 256, 128)
    maker.norm("blk.0.ffn_norm", 256)
    _feed_forward(maker, 0, 256, 256)
    maker.norm("output_norm", 256)
    maker.matrix("output", 96, 256)
    return maker


def state_space() -> Maker:
    """Hybrid: a state-space layer, then one of attention; and a tensor of a role that nobody knows."""
    maker = Maker("jamba")
    _sizes(maker, 2, 256, 4, 2)
    maker.pairs["attention.head_count_kv"] = [0, 2]
    maker.matrix("token_embd", 96, 256)
    maker.norm("blk.0.attn_norm", 256)
    maker.matrix("blk.0.ssm_in", 1024, 256)
    maker.matrix("blk.0.ssm_conv1d", 512, 4, dtype=np.float32)
    maker.matrix("blk.0.ssm_x", 64, 512)
    maker.matrix("blk.0.ssm_dt", 512, 32)
    maker.matrix("blk.0.ssm_out", 256, 512)
    maker.matrix("blk.0.frobnicator", 64, 256)
    maker.norm("blk.1.attn_norm", 256)
    _attention(maker, 1, 256, 4, 2, 64)
    for block in range(2):
        maker.norm(f"blk.{block}.ffn_norm", 256)
        _feed_forward(maker, block, 256, 256)
    maker.norm("output_norm", 256)
    maker.matrix("output", 96, 256)
    return maker


def per_layer() -> Maker:
    """Gemma 4: per-layer embeddings; windows with shorter heads; a last block that uses another's keys and values, one
    that takes its keys for values; what blocks leave is scaled."""
    maker = Maker("gemma4")
    lengths = (32, 64, 32)
    _sizes(maker, 3, 256, 4, 2, **{
        "embedding_length_per_layer_input": 64, "attention.shared_kv_layers": 1, "attention.key_length": 64,
        "attention.value_length": 64, "attention.key_length_swa": 32, "attention.value_length_swa": 32,
        "attention.sliding_window_pattern": [1, 0, 1],
    })  # fmt: skip
    maker.matrix("token_embd", 96, 256)
    maker.matrix("per_layer_token_embd", 96, 3 * 64)
    maker.matrix("per_layer_model_proj", 3 * 64, 256)
    maker.norm("per_layer_proj_norm", 64)
    for block, length in enumerate(lengths):
        maker.norm(f"blk.{block}.attn_norm", 256)
        _attention(maker, block, 256, 4, 2, length)
        maker.norm(f"blk.{block}.attn_q_norm", length)
        maker.norm(f"blk.{block}.attn_k_norm", length)
        maker.norm(f"blk.{block}.post_attention_norm", 256, 0.5)
        maker.norm(f"blk.{block}.ffn_norm", 256)
        _feed_forward(maker, block, 256, 256)
        maker.norm(f"blk.{block}.post_ffw_norm", 256, 0.25)
        maker.matrix(f"blk.{block}.inp_gate", 64, 256)
        maker.matrix(f"blk.{block}.proj", 256, 64)
        maker.norm(f"blk.{block}.post_norm", 256, 0.5)
        maker.norm(f"blk.{block}.layer_output_scale", 1, 0.5)
    del maker.arrays["blk.1.attn_v.weight"]
    for role in ("attn_k", "attn_k_norm", "attn_v"):
        del maker.arrays[f"blk.2.{role}.weight"]
    maker.norm("output_norm", 256)
    return maker


def convolution() -> Maker:
    """LFM2: a short convolution, then attention."""
    maker = Maker("lfm2")
    _sizes(maker, 2, 256, 4, 2)
    maker.pairs["attention.head_count_kv"] = [0, 2]
    maker.matrix("token_embd", 96, 256)
    for block in range(2):
        maker.norm(f"blk.{block}.attn_norm", 256)
        maker.norm(f"blk.{block}.ffn_norm", 256)
        _feed_forward(maker, block, 256, 256)
    maker.matrix("blk.0.shortconv.in_proj", 768, 256)
    maker.matrix("blk.0.shortconv.conv", 256, 3, dtype=np.float32)
    maker.matrix("blk.0.shortconv.out_proj", 256, 256)
    _attention(maker, 1, 256, 4, 2, 64)
    maker.norm("output_norm", 256)
    return maker


def delta_net(*, blocks: int = 2) -> Maker:
    """Qwen 3.5: gated delta nets and attention with gated queries by turns, then a draft head."""
    maker = Maker("qwen35")
    _sizes(maker, blocks + 1, 256, 4, 2, nextn_predict_layers=1)
    maker.matrix("token_embd", 96, 256)
    for block in range(0, blocks, 2):
        maker.matrix(f"blk.{block}.attn_qkv", 2 * 64 + 256, 256)
        maker.matrix(f"blk.{block}.attn_gate", 256, 256)
        maker.matrix(f"blk.{block}.ssm_conv1d", 384, 4, dtype=np.float32)
        for role in ("alpha", "beta"):
            maker.matrix(f"blk.{block}.ssm_{role}", 32, 256)
        maker.matrix(f"blk.{block}.ssm_out", 256, 256)
    for block in (*range(1, blocks, 2), blocks):
        _attention(maker, block, 256, 4, 2, 64)
        maker.matrix(f"blk.{block}.attn_q", 512, 256)
    for block in range(blocks + 1):
        maker.norm(f"blk.{block}.attn_norm", 256)
        maker.norm(f"blk.{block}.post_attention_norm", 256)
        _feed_forward(maker, block, 256, 256)
    maker.matrix(f"blk.{blocks}.nextn.eh_proj", 256, 512)
    maker.matrix(f"blk.{blocks}.nextn.embed_tokens", 96, 256)
    maker.matrix(f"blk.{blocks}.nextn.shared_head_head", 96, 256)
    maker.norm("output_norm", 256)
    maker.matrix("output", 96, 256)
    return maker


def mixture(example: Path, path: Path) -> Path:
    """The example's first two blocks with four noisy copies of every feed-forward, of which a router picks two."""
    reader = gguf.GGUFReader(example)
    writer = gguf.GGUFWriter(path, "llama")
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "llama.block_count"):
            continue
        kind = entry.types[0]
        writer.add_key_value(name, entry.contents(), kind, entry.types[1] if len(entry.types) > 1 else None)
    for key, value in (("block_count", 2), ("expert_count", 4), ("expert_used_count", 2)):
        writer.add_uint32(f"llama.{key}", value)
    rng = np.random.default_rng(0)
    for tensor in reader.tensors:
        name = tensor.name
        if name.startswith("blk.") and int(name.split(".")[1]) > 1:
            continue
        if ".ffn_" not in name or "norm" in name:
            writer.add_tensor(name, tensor.data)
            continue
        noise = rng.normal(1, 0.15, (4, *tensor.data.shape))
        writer.add_tensor(name.replace(".weight", "_exps.weight"), (tensor.data * noise).astype(np.float16))
        if ".ffn_gate." in name:
            router = rng.normal(0, 1, (4, tensor.data.shape[1])).astype(np.float32)
            writer.add_tensor(name.replace("ffn_gate", "ffn_gate_inp"), router)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def wide(path: Path, *, words: int, width: int = 64) -> Path:
    """A llama of one block that runs: many words, of which no text has more than its bytes."""
    maker = Maker()
    _sizes(maker, 1, width, 2, 2, **{
        "feed_forward_length": 2 * width, "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": width // 2,
        "vocab_size": words,
    })  # fmt: skip
    maker.matrix("token_embd", words, width, scale=1.0)
    maker.norm("blk.0.attn_norm", width)
    _attention(maker, 0, width, 2, 2, width // 2)
    maker.norm("blk.0.ffn_norm", width)
    _feed_forward(maker, 0, width, 2 * width)
    maker.norm("output_norm", width)
    maker.matrix("output", words, width, scale=0.3)
    maker.words = words
    return maker.write(path)


def _add_words(writer: gguf.GGUFWriter, count: int) -> None:
    """A SentencePiece vocabulary: three special tokens, all bytes, and words that no text has."""
    control, byte, normal = 3, 6, 1  # llama_token_type
    words = [f"word{number}" for number in range(count - 259)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)), *words])
    writer.add_token_scores([0.0] * count)
    writer.add_token_types([2, control, control, *[byte] * 256, *[normal] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


MODELS: Mapping[str, Callable[[], Maker]] = {
    "dense": dense,
    "tied": tied,
    "odd": odd,
    "experts": experts,
    "fused": fused,
    "post_norm": post_norm,
    "latent": latent,
    "state_space": state_space,
    "per_layer": per_layer,
    "convolution": convolution,
    "delta_net": delta_net,
}


def write_imatrix(
    model: Path,
    path: Path,
    *,
    sums: bool = True,
    seed: int = 0,
    skip: Collection[str] = (),
    embedding: bool = False,
    counts: Mapping[str, Sequence[int]] | None = None,
    change: Callable[[str, NDArray[np.float32], NDArray[np.float32]], None] | None = None,
) -> Path:
    """An imatrix for all that llama.cpp would quantize, but `skip` (and, without `embedding`, that); channels differ.

    `counts` gives tokens per expert (default 64 each); `change(name, mean squares, means)` may edit the arrays
    [experts, n] in place. With `sums`, `.in_sum` too.
    """
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["made up"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 64)
    with open_model(model) as opened:
        for number, tensor in enumerate(opened.tensors):
            name = tensor.name
            if name in skip or (name == "token_embd.weight" and not embedding):
                continue
            if why_left_alone(name, tensor.shape, opened.architecture, tensor.format):
                continue
            rng = np.random.default_rng([seed, number])
            shape = tensor.matrices, tensor.row_length
            second = rng.lognormal(0, 1.5, shape).astype(np.float32)
            means = (np.sqrt(second) * rng.uniform(-0.7, 0.7, shape)).astype(np.float32)
            if change is not None:
                change(name, second, means)
            seen = np.array((counts or {}).get(name, [64] * tensor.matrices), np.float32)[:, None]
            writer.add_tensor(f"{name}.in_sum2", second * seen)
            if sums:
                writer.add_tensor(f"{name}.in_sum", means * seen)
            writer.add_tensor(f"{name}.counts", seen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_covariances(model: Path, imatrix: Path, path: Path, *, seed: int = 0) -> Path:
    """Covariances for all entries of an imatrix, of made-up activations: those of experts differ where they go down."""
    read = read_imatrix(imatrix)
    sums, rng = merge_imatrices([read]), np.random.default_rng(seed)
    readers: dict[str, list[Tensor]] = {}
    with open_model(model) as opened:
        for tensor in opened.tensors:
            if tensor.name in read.entries:
                kind = re.sub("attn_[qkv]\\.", "attn_qkv.", re.sub("ffn_(gate|up)", "ffn_up", tensor.name))
                readers.setdefault(kind, []).append(tensor)
    inputs = [
        Input(own[0].name, tuple(tensor.name for tensor in own), own[0].row_length,
              own[0].matrices if "down" in own[0].name else 1)
        for own in readers.values()
    ]  # fmt: skip
    with CovarianceFile(path.with_suffix(".part"), sums, inputs) as file:
        for one in inputs:
            parts = []
            for _ in range(one.matrices):
                rows = rng.standard_normal((64, one.width)) @ rng.standard_normal((one.width, one.width))
                products = Products(one.width)
                for add in products.additions(rows.astype(np.float32)):
                    add()
                parts.append(products.part())
            file.put(one, [[part] for part in parts], parts, [64] * one.matrices)
        file.finish(sums, path)
    return path


def made_up_covariances(
    model: Path, path: Path, *, skip: Collection[str] = (), tokens: int = 200, seed: int = 0
) -> Path:
    """Covariances for what `write_imatrix` covers, of made-up activations: each tensor reads its own, which have a
    mean and a few directions in common."""
    sums, parts = Sums(64, datasets=["made up"]), []
    with open_model(model) as opened:
        for number, tensor in enumerate(opened.tensors):
            name, width = tensor.name, tensor.row_length
            if name == "token_embd.weight" or name in skip:
                continue
            if why_left_alone(name, tensor.shape, opened.architecture, tensor.format):
                continue
            rng = np.random.default_rng([seed, number])
            shape = tensor.matrices, tokens, width
            common = rng.standard_normal((tensor.matrices, tokens, 4)) @ rng.standard_normal(
                (tensor.matrices, 4, width)
            )
            seen = (common + rng.standard_normal(shape) + rng.standard_normal(width)).astype(np.float32)
            counts = np.full(tensor.matrices, tokens)
            sums.tensors[name] = TensorSums(np.square(seen).sum(axis=1).ravel(), seen.sum(axis=1).ravel(), counts)
            parts.append((Input(name, (name,), width, tensor.matrices), [_products(one) for one in seen]))
    with CovarianceFile(path.with_suffix(".part"), sums, [one for one, _ in parts]) as file:
        for one, products in parts:
            file.put(one, [[each] for each in products], products, [tokens] * one.matrices)
        file.finish(sums, path)
    return path


def _products(seen: NDArray[np.float32]) -> Part:
    products = Products(seen.shape[1])
    for add in products.additions(seen):
        add()
    return products.part()
