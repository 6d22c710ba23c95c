"""What refined codes are worth, and what they cost: each type's error, divergence, and time.

    python -m benchmarks.rounding types MODEL COVARIANCES [TENSOR…]
    python -m benchmarks.rounding divergence MODEL IMATRIX COVARIANCES TEXT [TYPE…]
    python -m benchmarks.rounding shrinkage MODEL TYPE CALIBRATION EVALUATION TOKENS…
    python -m benchmarks.rounding depth MODEL COVARIANCES CALIBRATION EVALUATION CHUNKS TYPE…
    python -m benchmarks.rounding speed [THREADS…]
    python -m benchmarks.rounding time MODEL IMATRIX COVARIANCES TYPE

`types`: error d H dᵀ of refined codes over that of ggml's, by the shrunk metric that they are refined against, by the
covariances as they were collected, and the worst row by the first. Rows that blocks do not divide are laid side by
side. `divergence`: with all tensors but token_embd in a type, over that without refinement, in the engine's memory.
`depth`: of files whose tensors are all in a type and refined along the depth by so many chunks of the calibration
text, over that of files refined against the covariances; those of the same chunks if it is to be fair. `speed`: made-up
rows, by their length and by threads, and products of matrices of the same size by numpy's BLAS. `time`: quantizing a
model, and quantizing and refining it, in seconds of CPU, and the most memory.
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from planner import cli
from planner.formats.ggml import dequantize_rows, formats, quantize_rows
from planner.formats.ggml.refine import Metric, can_refine, refine_rows
from planner.gguf import open_model, read_imatrix, why_left_alone
from planner.gguf.covariance import Covariances
from planner.gguf.quantize import quantize_model
from planner.gguf.refinement import Refinement

ROWS = 128
CONTEXT = 256
EVALUATED = 8192  # tokens
SHRINKAGES = (0.01, 0.1, 0.3, 1.0, 3.0)


def types(model_path: Path, covariances_path: Path, *names: str) -> None:
    print("type     tensor                        shrunk  as collected  worst row")
    with open_model(model_path) as model, Covariances.open(covariances_path) as covariances:
        chosen = names or [f"blk.{model.parameter('block_count') // 2}.{role}.weight" for role in
                           ("attn_q", "attn_output", "ffn_gate", "ffn_down")]  # fmt: skip
        for fmt in formats().values():
            if not (fmt.quantized and fmt.for_weights and can_refine(fmt)):
                continue
            products = []
            for name in chosen:
                tensor = model[name]
                collected = covariances.matrix(tensor)
                rows = model.rows(tensor, 0, min(ROWS, tensor.rows))
                beside = math.lcm(tensor.row_length, fmt.block) // tensor.row_length
                rows = rows[: len(rows) // beside * beside].reshape(-1, beside * tensor.row_length)
                collected = np.kron(np.eye(beside, dtype=np.float32), collected)
                metric = Metric.of(collected.copy())
                before = quantize_rows(fmt, rows, np.diag(collected).copy())
                after = refine_rows(fmt, rows, before, metric)
                shrunk = [errors(fmt, data, rows, metric.matrix) for data in (before, after)]
                plain = [errors(fmt, data, rows, collected).sum() for data in (before, after)]
                ratios = shrunk[1].sum() / shrunk[0].sum(), plain[1] / plain[0], (shrunk[1] / shrunk[0]).max()
                products.append(ratios[:2])
                print(f"{fmt.name:8} {name:<28}  {ratios[0]:6.3f}  {ratios[1]:12.3f}  {ratios[2]:9.3f}", flush=True)
            means = np.exp(np.log(products).mean(axis=0))
            print(f"{fmt.name:8} {'geometric mean':<28}  {means[0]:6.3f}  {means[1]:12.3f}")


def errors(fmt, data, rows, matrix):
    d = dequantize_rows(fmt, data, rows.shape[1]).astype(np.float64) - rows
    return ((d @ matrix.astype(np.float64)) * d).sum(axis=1)


def free_tensors(model, fmt):
    return [tensor.name for tensor in model.tensors
            if tensor.name != "token_embd.weight" and fmt.fits(tensor.row_length)
            and not why_left_alone(tensor.name, tensor.shape, model.architecture, tensor.format)]  # fmt: skip


def divergence(model_path: Path, imatrix_path: Path, covariances_path: Path, text: Path, *names: str) -> None:
    names = names or [each.name for each in formats().values() if can_refine(each)]
    print("type      ggml's codes   refined   ratio")
    with open_model(model_path) as model, Covariances.open(covariances_path) as covariances:
        chosen = [dict.fromkeys(free_tensors(model, formats()[name]), formats()[name]) for name in names]
        imatrix = read_imatrix(imatrix_path)
        plain = in_memory(model, chosen, imatrix, None, text)
        found = []
        for name, before, after in zip(
            names, plain, in_memory(model, chosen, imatrix, Refinement(covariances), text), strict=True
        ):
            found.append(after / before)
            print(f"{name:8}  {before:12.6f}  {after:8.6f}  {found[-1]:6.3f}", flush=True)
        print(f"geometric mean {np.exp(np.log(found).mean()):.3f}, worst {max(found):.3f}")


def shrinkage(model_path: Path, name: str, calibration: str, evaluation: str, *counts: str) -> None:
    print("tokens      λ   ggml's codes   refined   ratio")
    with open_model(model_path) as model, tempfile.TemporaryDirectory() as folder:
        chosen = dict.fromkeys(free_tensors(model, formats()[name]), formats()[name])
        file, imatrix = Path(folder, "covariances.gguf"), Path(folder, "imatrix.gguf")
        for count in counts:
            arguments = ["imatrix", str(model_path), "--text", calibration, "-c", str(CONTEXT), "-o", str(imatrix)]
            if cli.run([*arguments, "--chunks", str(int(count) // CONTEXT), "--covariance", str(file)]):
                sys.exit(1)
            with Covariances.open(file) as covariances:
                (plain,) = in_memory(model, [chosen], read_imatrix(imatrix), None, Path(evaluation))
                for value in SHRINKAGES:
                    refinement = Refinement(covariances, value)
                    (kld,) = in_memory(model, [chosen], read_imatrix(imatrix), refinement, Path(evaluation))
                    print(f"{int(count):6,}  {value:5}  {plain:13.6f}  {kld:8.6f}  {kld / plain:6.3f}", flush=True)
            file.unlink()
            imatrix.unlink()


def depth(model_path: Path, covariances_path: Path, calibration: Path, evaluation: Path, chunks: str,
          *names: str) -> None:  # fmt: skip
    from planner.llama.engine import Engine, cut
    from planner.llama.evaluate.baseline import record
    from planner.llama.evaluate.compare import diverge
    from planner.llama.rounding.depth import round_along_depth
    from planner.llama.rounding.rounder import DepthRequest
    from planner.llama.text import read_text

    with Engine(model_path, context=CONTEXT) as engine:
        baseline = record(engine, cut(engine.tokenize(read_text(evaluation)), CONTEXT, EVALUATED // CONTEXT))
    print("type      refined   along the depth   over refined          CPU")
    with (
        baseline, open_model(model_path) as model, Covariances.open(covariances_path) as covariances,
        tempfile.TemporaryDirectory() as folder,
    ):  # fmt: skip
        file, refinement, imatrix = Path(folder, "file.gguf"), Refinement(covariances), covariances.imatrix

        def ahead(rounded, found):
            request = DepthRequest(model, found, imatrix, refinement, (calibration,), int(chunks))
            round_along_depth(request, rounded, lambda what, done, total: None)

        for name in names:
            chosen = dict.fromkeys(free_tensors(model, formats()[name]), name)
            found, clocks = [], []
            for way in (None, ahead):
                begun = time.process_time()
                quantize_model(model, chosen, imatrix, file, file_type=1, force=True, refinement=refinement, ahead=way)
                clocks.append(time.process_time() - begun)
                with Engine(file, context=CONTEXT, threads=2) as engine:
                    klds = diverge(engine, baseline).kld.astype(np.float64)
                found.append(klds.reshape(baseline.windows, -1).mean(axis=1))
            plain, deep = found
            drawn = np.random.default_rng(0).integers(0, len(plain), (1000, len(plain)))
            error = (deep[drawn].sum(axis=1) / plain[drawn].sum(axis=1)).std()
            over = f"{deep.sum() / plain.sum():5.3f} ± {error:.3f}"
            seconds = f"{clocks[0]:4.0f}, {clocks[1]:4.0f} s"
            print(f"{name:7} {plain.mean():9.6f}   {deep.mean():15.6f}   {over}   {seconds}", flush=True)


def in_memory(model, recipes, imatrix, refinement, text: Path) -> Iterator[float]:
    """Yield the divergence of each recipe, formats by tensor, in the engine's memory."""
    from planner.llama.evaluate.baseline import record
    from planner.llama.evaluate.compare import diverge
    from planner.llama.passes.perturb import open_perturber
    from planner.llama.text import spread_windows

    with open_perturber(
        model.path, model, imatrix, refinement=refinement, context=CONTEXT, threads=2, gpu_layers=0
    ) as changer:
        (windows,) = spread_windows(changer.engine, text, CONTEXT, EVALUATED)
        with record(changer.engine, windows) as baseline:
            for chosen in recipes:
                changer.change({tensor: fmt for tensor, fmt in chosen.items() if tensor in changer.weights})
                yield float(diverge(changer.engine, baseline).kld.mean(dtype=np.float64))


def speed(*threads: str) -> None:
    rng = np.random.default_rng(0)
    print("type     inputs  threads   Mweights/s   of it, products of matrices would be: Mweights/s by BLAS")
    for width in (512, 1536, 4096):
        activations = rng.standard_normal((width // 2, 40)) @ rng.standard_normal((40, width))
        activations += rng.standard_normal(activations.shape) + 1
        metric = Metric.of((activations.T @ activations / len(activations)).astype(np.float32))
        rows = (rng.standard_normal((256, width)) * 0.05).astype(np.float32)
        began = time.perf_counter()
        rows @ metric.matrix
        blas = rows.size / (time.perf_counter() - began) / 1e6
        for name in ("q4_K", "iq4_nl", "iq3_xxs"):
            fmt = formats()[name]
            data = quantize_rows(fmt, rows, np.diag(metric.matrix).copy())
            refine_rows(fmt, rows[:1], data[:1], metric)
            for count in map(int, threads or ("1", "2")):
                with ThreadPoolExecutor(count) as pool:
                    began = time.perf_counter()
                    list(pool.map(lambda _: refine_rows(fmt, rows, data, metric), range(count)))  # noqa: B023
                    rate = count * rows.size / (time.perf_counter() - began) / 1e6
                print(f"{name:8} {width:6}  {count:7}  {rate:11.2f}  {blas:12.2f}", flush=True)


def timed(model_path: Path, imatrix_path: Path, covariances_path: Path, name: str) -> None:
    seconds = []
    for covariances in ((), (covariances_path,)):
        output = subprocess.run([sys.executable, "-m", "benchmarks.rounding", "once", model_path, imatrix_path, name,
                                 *covariances], check=True, capture_output=True, text=True).stdout  # fmt: skip
        print(output, end="", flush=True)
        seconds.append(float(output.split()[1]))
    print(f"quantizing and refining take {seconds[1] / seconds[0]:.2f} times as long as quantizing")


def once(model_path: Path, imatrix_path: Path, name: str, *covariances: str) -> None:
    fmt = formats()[name]
    with open_model(model_path) as model, tempfile.TemporaryDirectory() as folder:
        chosen = dict.fromkeys(free_tensors(model, fmt), name)
        refinement = Refinement(Covariances.open(covariances[0])) if covariances else None
        if refinement:  # compiled or loaded: seconds, once
            rows = np.zeros((1, 256), np.float32)
            refine_rows(fmt, rows, quantize_rows(fmt, rows), Metric(np.eye(256, dtype=np.float32)))
        began, clock = time.perf_counter(), time.process_time()
        quantize_model(model, chosen, read_imatrix(imatrix_path), Path(folder, "out.gguf"), file_type=1,
                       refinement=refinement)  # fmt: skip
        taken, cpu = time.perf_counter() - began, time.process_time() - clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"CPU {cpu:.1f} s, {taken:.1f} s of wall clock, {peak:.0f} MiB: {'refined' if covariances else 'quantized'}")


def main(command: str = "", *arguments: str) -> None:
    commands = {
        "types": types,
        "divergence": divergence,
        "shrinkage": shrinkage,
        "depth": depth,
        "speed": speed,
        "time": timed,
        "once": once,
    }
    files = {"types": 2, "divergence": 4, "shrinkage": 1, "depth": 4, "time": 3, "once": 2}.get(command, 0)
    if command not in commands:
        sys.exit(__doc__)
    commands[command](*map(Path, arguments[:files]), *arguments[files:])


if __name__ == "__main__":
    main(*sys.argv[1:])
