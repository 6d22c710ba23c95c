"""What measuring costs beside quantizing: CPU time of measuring the bundled model from nothing, in all formats, as a
share of the time of quantizing it fully to each of them.

    python benchmarks/measuring.py [--write]

Each side is a process of one thread, and is timed by its own CPU clock, so that a busy machine changes little. Building
the lookup tables of iq formats, which both sides do once a process, is counted apart. `--write` keeps the figures in
benchmarks/results/measuring.json, from which docs/formats.md takes the speed of kernels.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "measuring.json"
MODEL = ROOT / "examples" / "prose-8m-f16.gguf"
IMATRIX = ROOT / "examples" / "prose-8m-sums.imatrix.gguf"
sys.path.insert(0, str(ROOT))


def tables() -> dict[str, float]:
    """Build all tables in this process; CPU seconds of each format's (iq1_m finds iq1_s's)."""
    from planner.formats.ggml import formats, has_tables, prepare_tables

    seconds = {}
    for fmt in formats().values():
        if has_tables(fmt):
            began = time.process_time()
            prepare_tables((fmt,))
            seconds[fmt.name] = time.process_time() - began
    return seconds


def measure() -> dict[str, object]:
    """Measure everything into a fresh state."""
    from planner.formats.ggml import select_formats
    from planner.gguf import open_model, read_imatrix
    from planner.measure import Settings
    from planner.measure.campaign import Campaign
    from state import Store

    built = tables()
    began = time.process_time()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_model(MODEL) as model,
        Store.open(Path(folder) / "new.planner", create=True) as store,
    ):
        campaign = Campaign(model, read_imatrix(IMATRIX), store, select_formats("all"), Settings())
        *_, last = campaign.run(threads=1)
        found = store.measurements(selected=True).values()
        kernels = sum(entry.kernel_seconds for entry in found)
        sampled = sum(entry.rows * model.by_name[entry.tensor].row_length for entry in found)
        share = sampled / sum(model.by_name[entry.tensor].elements for entry in found)
    seconds = time.process_time() - began
    return {"tables": built, "seconds": seconds, "kernels": kernels, "measurements": last.done, "share": share}


def quantize() -> dict[str, object]:
    """Quantize the whole model to each format, every tensor that llama.cpp would and that can take it."""
    from planner.formats.ggml import select_formats
    from planner.gguf import open_model, read_imatrix, requires_imatrix, why_left_alone
    from planner.gguf.quantize import quantize_model

    built, seconds, weights = tables(), {}, {}
    with tempfile.TemporaryDirectory() as folder, open_model(MODEL) as model:
        imatrix = read_imatrix(IMATRIX)
        for fmt in select_formats("all"):
            tensors = [
                tensor
                for tensor in model.tensors
                if why_left_alone(tensor.name, tensor.shape, model.architecture) is None
                and fmt.fits(tensor.row_length)
                and (imatrix.covers(tensor) or not requires_imatrix(tensor.name, fmt))
            ]
            chosen = {tensor.name: fmt.name for tensor in tensors}
            began = time.process_time()
            quantize_model(model, chosen, imatrix, Path(folder) / f"{fmt.name}.gguf", file_type=0, threads=1)
            seconds[fmt.name] = time.process_time() - began
            weights[fmt.name] = sum(tensor.elements for tensor in tensors)
    return {"tables": built, "seconds": seconds, "weights": weights}


def child(side: str) -> dict[str, object]:
    output = subprocess.run([sys.executable, __file__, "--side", side], check=True, capture_output=True, text=True)
    result = json.loads(output.stdout)
    assert isinstance(result, dict)
    return result


def report(results: dict[str, dict[str, object]]) -> None:
    measuring, quantizing = results["measure"], results["quantize"]
    seconds, built = float(measuring["seconds"]), sum(measuring["tables"].values())  # type: ignore[arg-type, attr-defined]
    each: dict[str, float] = quantizing["seconds"]  # type: ignore[assignment]
    whole, also_built = sum(each.values()), sum(quantizing["tables"].values())  # type: ignore[attr-defined]
    print(f"model      {MODEL.name}, {len(each)} formats, {measuring['measurements']} measurements\n")
    print(f"{'CPU seconds':<32} {'measure':>8} {'quantize':>9} {'ratio':>8}")
    print(f"{'without tables':<32} {seconds:>8.1f} {whole:>9.1f} {seconds / whole:>8.1%}")
    print(f"{'tables of iq formats':<32} {built:>8.1f} {also_built:>9.1f}")
    together = (seconds + built) / (whole + also_built)
    print(f"{'both':<32} {seconds + built:>8.1f} {whole + also_built:>9.1f} {together:>8.1%}")
    print(f"\nweights that went through kernels: {measuring['share']:.1%} of those in all formats")
    weights: dict[str, int] = quantizing["weights"]  # type: ignore[assignment]
    print("\nmillions of weights a second, one core, reading and writing included:")
    for name in sorted(each, key=lambda name: each[name] / weights[name]):
        print(f"  {name:<8} {weights[name] / each[name] / 1e6:>7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the figures")
    parser.add_argument("--side", choices=["measure", "quantize"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure() if arguments.side == "measure" else quantize()))
        return
    results = {side: child(side) for side in ("measure", "quantize")}
    report(results)
    if arguments.write:
        from planner.formats.ggml import library_version

        about = {"machine": f"{platform.machine()}, {processor()}", "ggml": library_version()}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"about": about, **results}, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
