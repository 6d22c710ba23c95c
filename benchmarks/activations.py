"""What a CPU loses by rounding activations to 8 bits: found by evaluating files, and as `planner` expects.

    python -m benchmarks.activations [MODEL IMATRIX CALIBRATION EVALUATION]

For some types: the KL divergence of a file with all tensors in that type, of the same weights in F32, and the
difference beside the sum of the losses that a plan would count. Takes some minutes for the bundled model.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from benchmarks.quality import divergence
from planner.cli import run
from planner.formats.registry import activation_blocks
from planner.gguf import open_model, read_imatrix, why_left_alone
from planner.gguf.quantize import quantize_model
from planner.llama.engine import Engine, cut
from planner.llama.evaluate.baseline import record
from planner.llama.text import read_text
from planner.plan.findings import Findings
from planner.sensitivity import ErrorParts
from state import Store

EXAMPLES = Path(__file__).parents[1] / "examples"
CONTEXT = 256
TYPES = ("q8_0", "q6_K", "q5_1", "q5_K", "q4_0", "q4_K", "iq4_nl", "iq4_xs")


def expectation(state: Path) -> dict[int, float]:
    """Losses (nats per token) by the length of the blocks in which activations are rounded."""
    with Store.open(state, read_only=True) as store:
        findings = Findings.read(store)
    known, exact = findings.sensitivities("measured"), ErrorParts(0, 0, 0)
    free = [known[tensor.name] for tensor in findings.inventory.tensors if tensor.left_alone is None]
    return {block: sum(entry.loss(exact, block) for entry in free) for block in (32, 256)}


def main(model_path: Path, imatrix_path: Path, calibration: Path, evaluation: Path) -> None:
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state, file, floats = folder / "activations.planner", folder / "file.gguf", folder / "floats.gguf"
        arguments = ["--imatrix", str(imatrix_path), "--state", str(state), "--text", str(calibration)]
        if run(["sensitivity", str(model_path), *arguments, "-c", str(CONTEXT), "--no-calibrate"]):
            raise SystemExit(1)
        expected, imatrix = expectation(state), read_imatrix(imatrix_path)
        with Engine(model_path, context=CONTEXT, threads=threads) as engine:
            baseline = record(engine, cut(engine.tokenize(read_text(evaluation)), CONTEXT))
        print("type      KLD       of it, by weights  by activations   expected")
        with baseline, open_model(model_path) as model:
            free = [
                tensor.name for tensor in model.tensors
                if not why_left_alone(tensor.name, tensor.shape, model.architecture, tensor.format)
            ]  # fmt: skip
            for fmt in TYPES:
                quantize_model(model, dict.fromkeys(free, fmt), imatrix, file, file_type=1, force=True)
                with open_model(file) as quantized:
                    quantize_model(quantized, dict.fromkeys(free, "f32"), None, floats, file_type=0, force=True,
                                   allow_requantize=True)  # fmt: skip
                whole, weights = (divergence(each, baseline, threads) for each in (file, floats))
                loss = expected[activation_blocks()[fmt]]
                print(f"{fmt:8}  {whole:.6f}  {weights:17.6f}  {whole - weights:14.6f}  {loss:9.6f}", flush=True)


if __name__ == "__main__":
    example = ("prose-8m-f16.gguf", "prose-8m-sums.imatrix.gguf", "calibration.txt", "evaluation.txt")
    main(*(map(Path, sys.argv[1:]) if len(sys.argv) > 1 else (EXAMPLES / file for file in example)))
