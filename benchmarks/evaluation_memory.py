"""Peak memory of `evaluate` with a vocabulary of 262,144 words, over 32,768 tokens: fails above 2 GB beyond the models.

    python benchmarks/evaluation_memory.py [--tokens 32768] [--keep FOLDER]

Two models of one narrow layer are made here, of random weights, F16 and Q8_0; the log-probabilities of the first take
8.6 GB of disk. What counts is all that the process had in memory at its peak (VmHWM, mapped files too), less the bytes
of both models.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import gguf
import numpy as np
from memory import folder_for, watch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
LIMIT = 2e9
WIDTH, VOCABULARY, HEADS = 64, 262144, 2
CONTEXT = 512


def tokenizer(writer: gguf.GGUFWriter) -> None:
    """Three special tokens, all bytes, and words that no text has: every character is a token."""
    control, byte, normal = 3, 6, 1  # llama_token_type
    words = [f"word{number}" for number in range(VOCABULARY - 259)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)), *words])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([2, control, control, *[byte] * 256, *[normal] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write_model(path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """A llama of one block, its output tied to the embedding."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCABULARY)
    tokenizer(writer)
    generator = np.random.default_rng(0)
    shapes = {"token_embd": (VOCABULARY, WIDTH), "blk.0.ffn_down": (WIDTH, 2 * WIDTH)}
    shapes |= {f"blk.0.{role}": (WIDTH, WIDTH) for role in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.0.{role}": (2 * WIDTH, WIDTH) for role in ("ffn_gate", "ffn_up")}
    for name, shape in shapes.items():
        weights = (0.3 * generator.standard_normal(shape)).astype(np.float32)
        data = weights.astype(np.float16) if kind == gguf.GGMLQuantizationType.F16 else gguf.quantize(weights, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run(folder: Path, tokens: int) -> bool:
    """Print the table; True if both runs stay below the limit."""
    models = folder / "wide-f16.gguf", folder / "wide-q8_0.gguf"
    if not models[1].exists():
        write_model(models[0], gguf.GGMLQuantizationType.F16)
        write_model(models[1], gguf.GGMLQuantizationType.Q8_0)
    letters = np.random.default_rng(1).choice(list("abcdefghijklmnopqrstuvwxyz "), tokens + 16)
    (folder / "text.txt").write_text("".join(letters), encoding="ascii")
    size = sum(path.stat().st_size for path in models)
    command = ["evaluate", *(path.name for path in models), "--text", "text.txt", "--chunks", str(tokens // CONTEXT)]
    print(f"vocabulary {VOCABULARY:,}, {tokens:,} tokens, models {size / 1e6:.0f} MB\n")
    print(f"{'run':<22} {'own MB':>8} {'mapped MB':>10} {'beyond models MB':>17} {'seconds':>8}")
    good = True
    for name in ("log-probabilities, too", "they are there"):
        peak, seconds = watch(command, folder)
        beyond = max(peak.own, peak.high_water) - size
        good &= beyond <= LIMIT
        print(
            f"{name:<22} {peak.own / 1e6:>8.0f} {peak.mapped / 1e6:>10.0f} {beyond / 1e6:>17.0f} {seconds:>8.1f}",
            flush=True,
        )
    print(f"\n{'ok' if good else 'TOO MUCH'}: the limit is {LIMIT / 1e6:.0f} MB beyond the models")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--keep", type=Path, help="folder for the files; they stay there")
    arguments = parser.parse_args()
    with folder_for(arguments.keep) as folder:
        good = run(folder, arguments.tokens)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
