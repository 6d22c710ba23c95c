"""Where the time of planner's heavy commands goes, how far each is from its floor, and llama.cpp's own beside it.

    python -m benchmarks.speed FOLDER [--models 0.1,0.6,1] [--work measure,quantize,...] [--threads 1,2]
        [--llama-quantize BINARY]

Models of real shapes and random weights, with an imatrix and covariances, are made in FOLDER, and used if they are
there. Compiled code is made before, once (`compiling`). Every command is a process of its own. Its CPU time
is split by clocks of threads around the functions in `PARTS`, each without what it calls that is in there too;
`llama.cpp` is what its threads take while it runs a model.

The floor is what no command could be below that uses the same kernels: their CPU time, shared by the threads, or the
time in which memory moves the bytes that have to be read and written, whichever is longer. It is in seconds of CPU
time, for all threads together, as are the others, so that a busy machine changes little.

llama.cpp's side is `llama-quantize`, or, where that is not given, the function that it calls, in a process of its own;
`ratio` is of seconds of the clock, ours to its: of `measure`, to a Q4_K_M pass.
Recipes are those of llama.cpp's mixes, so that both write the same types; tensors are compared byte by byte.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner.gguf import open_model
from tests.models import Maker, write_imatrix

ROOT = Path(__file__).resolve().parent.parent

# blocks, width, feed-forward, heads, of them for keys, words, own output
SHAPES: Mapping[str, tuple[int, int, int, int, int, int, bool]] = {
    "0.1": (30, 576, 1536, 9, 3, 49152, False),  # SmolLM2-135M
    "0.5": (24, 896, 4864, 14, 2, 151936, False),  # Qwen2.5-0.5B
    "0.6": (24, 896, 4864, 14, 2, 151936, True),  # the same, with an output of its own
    "1": (16, 2048, 8192, 32, 8, 128256, False),  # Llama-3.2-1B
    "2": (28, 1536, 8960, 12, 2, 151936, True),  # Qwen2.5-1.5B
}
"""Of models by billions of weights."""

PARTS: Mapping[str, Sequence[str]] = {
    "reading": ("planner.measure.survey:_read",),
    "conversion": ("planner.gguf.model:Model.rows", "planner.formats.ggml.kernels:dequantize_rows"),
    "kernels": ("planner.formats.ggml.fast:quantize", "planner.formats.ggml.refine.rows:refine_rows"),
    "error": (
        "planner.measure.metric:errors_of", "planner.measure.survey:survey_tensor",
        "planner.llama.evaluate.divergence:compare", "planner.llama.evaluate.logprobs:encode",
        "planner.llama.collect.collector:Collector.see", "planner.llama.collect.multiplier:Multiplier.see",
    ),
    "tables": ("planner.formats.ggml.reference:prepare_tables",),
    "checks": (
        "planner.gguf.health:all_finite", "planner.formats.ggml.kernels:rows_are_valid",
        "planner.formats.ggml.kernels:_check_range",
    ),
    "writing": ("planner.files:Output.write", "planner.files:Output.end"),
    "state": (
        "state:Store.add", "state:Store.add_energies", "state:Store.select", "state:Store.set_inventory",
        "state:Store.measurements", "state:Store.errors", "state:Store.energies",
    ),
}  # fmt: skip
"""What is clocked, as module:name; what a command has left is `rest`: imports, planning, Python between."""
COLUMNS = ("reading", "conversion", "kernels", "tables", "llama.cpp", "error", "checks", "writing", "state", "rest")

spent: Counter[str] = Counter()
_own, _lock = threading.local(), threading.Lock()


def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its thread's CPU time added to `spent[part]`, without that of clocked functions that it calls."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        before, _own.inner = getattr(_own, "inner", 0.0), 0.0
        began = time.thread_time()
        try:
            return function(*arguments, **options)
        finally:
            took = time.thread_time() - began
            with _lock:
                spent[part] += took - _own.inner
            _own.inner = before + took

    return run


def child(kept: Path, arguments: Sequence[str]) -> None:
    """Run a command of planner in this process, and keep how its time was spent."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as planner's own entry point has it
    command = arguments[0]
    for module in ("planner.cli", f"planner.cli.{command}", "planner.measure.campaign", "planner.gguf.quantize"):
        importlib.import_module(module)
    for part, names in PARTS.items():
        for name in names:
            if "llama" in name and command not in ("imatrix", "evaluate"):
                continue
            where, _, path = name.partition(":")
            owner: Any = importlib.import_module(where)
            *outer, last = path.split(".")
            owner = functools.reduce(getattr, outer, owner)
            before = getattr(owner, last)
            holders = [owner] if outer else [each for key, each in sys.modules.items() if key.startswith("planner")]
            for holder in holders:
                for key in [key for key, value in vars(holder).items() if value is before]:
                    setattr(holder, key, clocked(part, before))
    from planner.cli import run

    if status := run(arguments):
        raise SystemExit(status)
    everything = time.process_time()
    if command in ("imatrix", "evaluate"):  # what neither is clocked nor this thread's is llama.cpp's
        spent["llama.cpp"] = everything - sum(spent.values()) - (time.thread_time() - getattr(_own, "inner", 0.0))
    spent["rest"] = everything - sum(spent.values())
    kept.write_text(json.dumps(spent), encoding="utf-8")


@dataclass(frozen=True)
class Run:
    """Seconds of the clock and of all processors, and parts of the latter."""

    clock: float
    cpu: float
    parts: Mapping[str, float]


def timed(command: Sequence[str], kept: Path | None = None) -> Run:
    """Run a command to its end; if it is a `child`, its parts are `kept` there."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        clock = time.perf_counter() - began
        if status:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()[-2000:]}")
    parts = json.loads(kept.read_text(encoding="utf-8")) if kept else {}
    return Run(clock, used.ru_utime + used.ru_stime, parts)


class Large(Maker):
    """A maker whose weights are drawn in float32, a piece at a time: Gaussian, rows and channels log-normal."""

    def matrix(self, name: str, *shape: int, scale: float = 0.02, dtype: type = np.float16) -> None:
        random = np.random.default_rng([self.seed, len(self.arrays)])
        channels = random.lognormal(0, 0.3, shape[1]).astype(np.float32) * np.float32(scale)
        made = np.empty(shape, dtype)
        for start in range(0, shape[0], 1024):
            part = random.standard_normal((min(1024, shape[0] - start), shape[1]), np.float32)
            made[start : start + 1024] = part * channels * random.lognormal(0, 0.5, (len(part), 1)).astype(np.float32)
        self.arrays[f"{name}.weight"] = made


def make(name: str, folder: Path) -> Path:
    """Return a model of `SHAPES` in a folder, with MODEL.imatrix.gguf beside it; made if it is not there."""
    path = folder / f"{name}b.gguf"
    if path.exists():
        return path
    blocks, width, inner, heads, key_heads, words, output = SHAPES[name]
    maker = Large(words=words)
    maker.pairs |= {
        "block_count": blocks, "embedding_length": width, "feed_forward_length": inner, "context_length": 4096,
        "attention.head_count": heads, "attention.head_count_kv": key_heads, "vocab_size": words,
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": width // heads,
    }  # fmt: skip
    maker.matrix("token_embd", words, width)
    for block in range(blocks):
        for role, rows, length in (
            ("attn_q", width, width), ("attn_k", width // heads * key_heads, width),
            ("attn_v", width // heads * key_heads, width), ("attn_output", width, width),
            ("ffn_gate", inner, width), ("ffn_up", inner, width), ("ffn_down", width, inner),
        ):  # fmt: skip
            maker.matrix(f"blk.{block}.{role}", rows, length)
        maker.norm(f"blk.{block}.attn_norm", width)
        maker.norm(f"blk.{block}.ffn_norm", width)
    maker.norm("output_norm", width)
    if output:
        maker.matrix("output", words, width)
    maker.write(path.with_suffix(".part")).rename(path)
    write_imatrix(path, path.with_suffix(".imatrix.gguf"), embedding=not output)
    return path


class Bench:
    """One model's works, in a folder."""

    def __init__(self, model: Path, given: argparse.Namespace, threads: str) -> None:
        self.model, self.folder, self.given, self.threads = model, model.parent, given, threads
        self.imatrix = model.with_suffix(".imatrix.gguf")
        self.out = {side: model.with_suffix(f".{side}.gguf") for side in ("theirs", "ours")}

    def planner(self, *arguments: object) -> Run:
        """Run a command of planner."""
        kept, words = self.folder / "parts.json", map(str, arguments)
        command = [sys.executable, "-m", "benchmarks.speed", "--child", str(kept), "--", *words, "-t", self.threads]
        return timed(command, kept)

    def take(self, imatrix: Path) -> Path:
        """Return a recipe with the types of llama.cpp's file."""
        recipe = self.model.with_suffix(".json")
        inputs = ("--model", str(self.model), "--imatrix", str(imatrix), "-f", "-o", str(recipe))
        timed([sys.executable, "-m", "planner", "import", str(self.out["theirs"]), *inputs])
        return recipe

    def llama(self, mix: str) -> Run:
        """Let llama.cpp write a mix."""
        model, imatrix, out = map(str, (self.model, self.imatrix, self.out["theirs"]))
        if self.given.llama_quantize:
            return timed([self.given.llama_quantize, "--imatrix", imatrix, model, out, mix, self.threads])
        code = "import sys; from pathlib import Path; from benchmarks.mixes import write_mix as write; a = sys.argv[1:]"
        code += "; write(Path(a[0]), Path(a[1]), a[2], Path(a[3]), int(a[4]))"
        return timed([sys.executable, "-c", code, model, imatrix, mix, out, self.threads])

    def measure(self) -> Iterator[tuple[str, Run, Run | None]]:
        """A state of all types, and one of those that are asked for; each beside a Q4_K_M pass."""
        state = self.model.with_suffix(".planner")
        theirs = self.llama("Q4_K_M")
        for types in self.given.types.split(" "):
            state.unlink(missing_ok=True)
            ours = self.planner("measure", self.model, "--imatrix", self.imatrix, "--state", state, "--types", types)
            yield f"measure {types}", ours, theirs

    def quantize(self) -> Iterator[tuple[str, Run, Run | None]]:
        """llama.cpp's mixes, and files of ours with the same types, whose tensors have to have the same bytes."""
        for mix in self.given.mixes.split(","):
            theirs = self.llama(mix)
            ours = self.planner("quantize", self.model, self.take(self.imatrix), self.out["ours"], "-f")
            with open_model(self.out["theirs"]) as first, open_model(self.out["ours"]) as second:
                for tensor in first.tensors:
                    if not np.array_equal(first.raw_rows(tensor), second.raw_rows(second[tensor.name])):
                        raise SystemExit(f"{mix}: {tensor.name} has other bytes than llama.cpp's")
            yield f"quantize {mix}", ours, theirs

    def inference(self) -> Iterator[tuple[str, Run, Run | None]]:
        """Collecting, with covariances and without; rounding against them; log-probabilities, and divergences."""
        text = ROOT / "examples" / "calibration.txt"
        covariances, quick = self.model.with_suffix(".covariances"), ("--text", text, "--chunks", self.given.chunks)
        sums = self.model.with_suffix(".sums.gguf")
        yield "imatrix", self.planner("imatrix", self.model, *quick, "-f", "-o", sums), None
        more = ("--covariance", covariances)
        yield "imatrix, covariances", self.planner("imatrix", self.model, *quick, "-f", "-o", sums, *more), None
        self.llama("Q4_K_M")
        yield "rounding", self.planner("quantize", self.model, self.take(sums), self.out["ours"], "-f", *more), None
        base = self.model.with_suffix(".kld")
        base.unlink(missing_ok=True)
        keep = (*quick, "--kl-divergence-base", base)
        yield "evaluate, original", self.planner("evaluate", self.model, *keep), None
        yield "evaluate, file", self.planner("evaluate", base, self.out["theirs"]), None


def compile_all() -> Run:
    """Quantize a few rows to every format that there is compiled code for."""
    code = "from planner.formats.ggml import fast, formats; [fast.quantizer(formats()[name]) for name in fast.MODULES]"
    code += "; fast.widener(formats()['f16'])"
    return timed([sys.executable, "-c", code])


def bandwidth() -> float:
    """Bytes that one core copies in a second, of CPU time."""
    block, best = np.ones(1 << 27, np.uint8), 0.0
    for _ in range(3):
        began = time.thread_time()
        block.copy()
        best = max(best, len(block) / (time.thread_time() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default="0.1,0.6,1", help=f"of {', '.join(SHAPES)} [default: %(default)s]")
    parser.add_argument("--work", default="measure,quantize,inference", help="[default: %(default)s]")
    parser.add_argument("--types", default="all", help="sets of types to measure, by spaces [default: %(default)s]")
    parser.add_argument("--mixes", default="Q4_K_M,IQ4_XS,IQ2_M", help="[default: %(default)s]")
    parser.add_argument("--chunks", type=int, default=2, help="windows of 512 tokens to run [default: %(default)s]")
    parser.add_argument("--threads", default=str(os.cpu_count() or 1), help="numbers of them [default: %(default)s]")
    parser.add_argument("--llama-quantize", help="binary [default: the function of llama-cpp-python]")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    copied = bandwidth()
    print(f"memory copies {copied / 1e9:.1f} GB a second; compiling {compile_all().cpu:.0f} s\n")
    print("seconds of processors; seconds of the clock; llama.cpp's of both")
    columns = (*COLUMNS, "all", "floor", "clock", "its all", "its clock", "ratio")
    print(f"{'model, threads, work':<27}" + "".join(f"{name:>11}" for name in columns))
    for name, threads in itertools.product(given.models.split(","), given.threads.split(",")):
        model = make(name, given.folder.resolve())
        bench = Bench(model, given, threads)
        for work in given.work.split(","):
            for what, ours, theirs in getattr(bench, work)():
                kernels = ours.parts.get("kernels", 0.0) + ours.parts.get("llama.cpp", 0.0)
                floor = max(kernels, model.stat().st_size / copied)
                cells = [*(ours.parts.get(column, 0.0) for column in COLUMNS), ours.cpu, floor, ours.clock]
                cells += [theirs.cpu, theirs.clock, ours.clock / theirs.clock] if theirs else []
                print(f"{f'{name}, {threads}, {what}':<27}" + "".join(f"{cell:>11.2f}" for cell in cells), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(Path(sys.argv[2]), sys.argv[4:])
    else:
        main()
