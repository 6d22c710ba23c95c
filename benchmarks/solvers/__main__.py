"""Time, gap and memory of every method, beside what other tools do: `python -m benchmarks.solvers [--quick]`.

Each run is a process of its own on one thread: seconds are those of `solve` by the clock and of processor time (on a
busy machine they differ), memory is the peak of the process less that with the problem built. "loss over ours" is a
row's loss over `auto`'s. "auto, 1 s" is `auto` asked for a gap of 1e-5 and stopped after a second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.solvers import heuristics, problems
from solvers import METHODS, InfeasibleError, Problem, check, solve

HEURISTICS = {"greedy by ratio": heuristics.greedy_by_ratio, "bisection + greedy": heuristics.bisection_and_greedy}


def build(name: str) -> Problem:
    if name in problems.HARD:
        return problems.HARD[name]()
    kind, model, bpw = name.split("|")
    return (problems.devices if kind == "3 limits" else problems.real)(model, float(bpw))


def names(quick: bool) -> Iterator[str]:
    for model in problems.models():
        for bpw in (2.5, 4.5) if quick else problems.BPW:
            yield f"1 limit|{model}|{bpw}"
    for model in ("Kimi-K2-Thinking", "GLM-5.1"):
        for bpw in (3.0,) if quick else problems.BPW:
            yield f"3 limits|{model}|{bpw}"
    yield from problems.HARD


def run(name: str, method: str, gap: float, time_limit: float) -> dict[str, object]:
    """One measurement, in this process."""
    problem = build(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, processor = time.perf_counter(), time.process_time()
    result: dict[str, object] = {}
    if method in HEURISTICS:
        result["loss"] = float(check(problem, HEURISTICS[method](problem).tolist()).loss)
    else:
        try:
            answer = solve(problem, method=method, gap=gap, time_limit=time_limit)
        except InfeasibleError as error:
            return {"status": str(error)}
        result |= {"loss": answer.loss, "gap": answer.gap, "status": answer.status.value, "by": answer.method}
    result["seconds"] = time.perf_counter() - started
    result["processor"] = time.process_time() - processor
    result["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    result["groups"] = len(problem)
    return result


def measure(name: str, method: str, gap: float, time_limit: float) -> dict[str, object]:
    """One measurement, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.solvers", "--one", name, method, str(gap), str(time_limit)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solvers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two budgets a model instead of eight")
    parser.add_argument("--methods", default="auto,lagrangian", help=f"of {','.join(METHODS)}; default %(default)s")
    parser.add_argument("--gap", type=float, default=1e-6)
    parser.add_argument("--time-limit", type=float, default=10.0)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, method, gap, limit = arguments.one
        print(json.dumps(run(name, method, float(gap), float(limit))))
        return
    print(
        "| problem | groups | method | status | seconds | processor | gap | MB | loss over ours |\n" + "|---" * 9 + "|"
    )
    worst: dict[str, list[float]] = {}
    for name in names(arguments.quick):
        ours = measure(name, "auto", arguments.gap, arguments.time_limit)
        if "loss" not in ours:
            print(f"| {name.replace('|', ' ')} | | auto | {ours['status']} | | | | | |")
            continue
        others = [method for method in arguments.methods.split(",") if method and method != "auto"]
        rows = {"auto": ours} | {m: measure(name, m, arguments.gap, arguments.time_limit) for m in others}
        rows["auto, 1 s"] = measure(name, "auto", 1e-5, 1.0)
        if not name.startswith("3 limits"):
            rows |= {m: measure(name, m, 0.0, 0.0) for m in HEURISTICS}
        for method, row in rows.items():
            ratio = float(str(row["loss"])) / float(str(ours["loss"]))
            gap_text = f"{row['gap']:.1e}" if "gap" in row else ""
            print(
                f"| {name.replace('|', ' ')} | {row['groups']} | {method} | {row.get('status', '')} "
                f"| {row['seconds']:.2f} | {row['processor']:.2f} | {gap_text} | {row['megabytes']:.0f} "
                f"| {ratio:.6f} |",
                flush=True,
            )
            worst.setdefault(method, []).append(ratio)
    print("\nloss over ours, geometric mean and greatest:")
    for method, ratios in worst.items():
        print(f"  {method}: {np.exp(np.log(ratios).mean()):.5f}, {max(ratios):.4f} ({len(ratios)} problems)")


if __name__ == "__main__":
    main()
