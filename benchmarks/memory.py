"""Peak memory of `measure` and `quantize` on a 4 GB model with one tensor of 1 GB: fails above 700 MB.

    python benchmarks/memory.py [--types q8_0,q4_0,iq3_xxs] [--threads 1,2] [--keep FOLDER]

The model is made here, of random weights in F16, with an imatrix; 7 GB of disk are needed. What counts is memory that
belongs to the process alone (RssAnon + RssShmem of Linux's /proc/PID/status, read every 50 ms). Pages of the mapped
model (RssFile) are the page cache's: the kernel takes them back when it needs room. They are shown beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 700e6
WIDTH, FFN, VOCABULARY, BLOCKS = 4096, 14336, 131072, 7
RUN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from planner.cli import main; main()"


@dataclass
class Peak:
    """Most bytes seen of each kind. `high_water` is VmHWM: everything, mapped pages included."""

    own: int = 0
    mapped: int = 0
    high_water: int = 0

    def look(self, process: int) -> None:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        fields = {
            key: int(value.split()[0]) * 1024 for key, value in (line.split(":", 1) for line in lines if "kB" in line)
        }
        self.own = max(self.own, fields.get("RssAnon", 0) + fields.get("RssShmem", 0))
        self.mapped = max(self.mapped, fields.get("RssFile", 0))
        self.high_water = max(self.high_water, fields.get("VmHWM", 0))


def shapes() -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes (rows, row length) of the model's tensors: 4.1 GB in F16, of which the embedding is 1.07 GB."""
    yield "token_embd.weight", (VOCABULARY, WIDTH)
    for block in range(BLOCKS):
        for role, rows, length in (
            ("attn_q", WIDTH, WIDTH), ("attn_k", WIDTH // 4, WIDTH), ("attn_v", WIDTH // 4, WIDTH),
            ("attn_output", WIDTH, WIDTH), ("ffn_gate", FFN, WIDTH), ("ffn_up", FFN, WIDTH), ("ffn_down", WIDTH, FFN),
        ):  # fmt: skip
            yield f"blk.{block}.{role}.weight", (rows, length)


def write_model(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Synthetic 4 GB")
    writer.add_block_count(BLOCKS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(32)
    writer.add_head_count_kv(8)
    for name, shape in shapes():
        writer.add_tensor_info(name, shape, np.dtype(np.float16), 2 * shape[0] * shape[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    pool = generator.standard_normal(1 << 23, dtype=np.float32)
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    for name, shape in shapes():  # every one a multiple of 32 bytes: no padding between them
        left = shape[0] * shape[1]
        scale = np.float32(0.02 * (1 + len(name) % 3))
        while left:
            chunk = np.roll(pool[: min(left, len(pool))], int(generator.integers(len(pool)))) * scale
            file.write(chunk.astype(np.float16).tobytes())
            left -= len(chunk)
    writer.close()


def write_imatrix(path: Path) -> None:
    """Sums and sums of squares of log-normal activations, over 100 chunks of 512 tokens."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["random"])
    writer.add_uint32("imatrix.chunk_count", 100)
    writer.add_uint32("imatrix.chunk_size", 512)
    generator = np.random.default_rng(1)
    tokens = 100 * 512
    for name, (_, length) in shapes():
        if name.startswith("blk"):
            second = generator.lognormal(size=(1, length)).astype(np.float32)
            mean = np.sqrt(second) * generator.uniform(-0.5, 0.5, size=(1, length)).astype(np.float32)
            writer.add_tensor(f"{name}.in_sum2", second * tokens)
            writer.add_tensor(f"{name}.in_sum", mean * tokens)
            writer.add_tensor(f"{name}.counts", np.full((1, 1), tokens, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def watch(arguments: list[str], folder: Path) -> tuple[Peak, float]:
    """Run a command of planner and watch its memory; its peak, and the seconds that it took."""
    peak, began = Peak(), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(ROOT), *arguments], cwd=folder, stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        try:
            peak.look(process.pid)
        except (OSError, ValueError):  # it has just ended
            break
        time.sleep(0.05)
    if process.wait() != 0:
        raise SystemExit(f"planner {' '.join(arguments)} failed")
    return peak, time.perf_counter() - began


@contextlib.contextmanager
def folder_for(keep: Path | None) -> Iterator[Path]:
    """A folder for large files: that one, or one for the time being."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
    else:
        with tempfile.TemporaryDirectory(prefix="planner-memory-") as folder:
            yield Path(folder)


def run(folder: Path, types: str, threads: list[int]) -> bool:
    """Print the table; True if all stay below the limit."""
    if not (folder / "big.gguf").exists():
        write_model(folder / "big.gguf")
        write_imatrix(folder / "big.imatrix.gguf")
    size = (folder / "big.gguf").stat().st_size
    print(f"model {size / 1e9:.2f} GB, largest tensor {2 * VOCABULARY * WIDTH / 1e9:.2f} GB, types {types}\n")
    print(f"{'command':<10} {'threads':>7} {'own MB':>8} {'mapped MB':>10} {'VmHWM MB':>9} {'seconds':>8}")
    good = True
    for count in threads:
        for state in folder.glob("big.planner*"):
            state.unlink()
        measure = ["measure", "big.gguf", "--imatrix", "big.imatrix.gguf", "--types", types, "-t", str(count)]
        quantize = ["quantize", "big.gguf", "recipe.json", "out.gguf", "--force", "-t", str(count)]
        for arguments in (measure, ["solve", "--bpw", "6"], quantize):
            peak, seconds = watch(arguments, folder)
            good &= peak.own <= LIMIT
            print(
                f"{arguments[0]:<10} {count:>7} {peak.own / 1e6:>8.0f} {peak.mapped / 1e6:>10.0f} "
                f"{peak.high_water / 1e6:>9.0f} {seconds:>8.1f}",
                flush=True,
            )
    print(f"\n{'ok' if good else 'TOO MUCH'}: the limit is {LIMIT / 1e6:.0f} MB of the process's own memory")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default="q8_0,q4_0,iq3_xxs", help="what measure is asked for")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--keep", type=Path, help="folder for the files; they stay there")
    arguments = parser.parse_args()
    threads = [int(count) for count in arguments.threads.split(",")]
    with folder_for(arguments.keep) as folder:
        good = run(folder, arguments.types, threads)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
