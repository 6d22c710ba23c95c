"""How well `structure` agrees with measured sensitivities, and the constants that fit them best.

    python benchmarks/fit_structure.py MODEL IMATRIX MEASURED.csv [MODEL IMATRIX MEASURED.csv …]

`MEASURED.csv` has columns tensor, sensitivity, standard_error: see benchmarks/data/measured_sensitivity/README.md.
For each model and role: c, the median of measured over predicted (it should be one number for all roles of a model),
and the spread of its logarithm. Then, over all models given, the factors that would make the roles of each model
agree, and for attention logits the a and b of a l/(l+b).
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from planner.gguf import open_model, read_imatrix, why_left_alone
from planner.measure import moments, survey_tensor
from planner.measure.anatomy import read_anatomy
from planner.measure.energies import (
    ATTENTION_LOGITS,
    ATTENTION_VALUE,
    FEED_FORWARD,
    LOGITS_HALF,
    block_facts,
    global_facts,
)
from planner.names.gguf import role_of
from planner.sensitivity import Facts
from planner.sensitivity.structure import stream_shares

REFERENCE = ("attn_output", "ffn_down")  # the writers: derived, without a fitted factor
LOGITS = ("attn_q", "attn_k")


def all_facts(model_path: str, imatrix_path: str) -> dict[str, Facts]:
    facts: dict[str, Facts] = {}
    with open_model(model_path) as model:
        imatrix, anatomy = read_imatrix(imatrix_path), read_anatomy(model)
        blocks = defaultdict(list)
        for tensor in model.tensors:
            if why_left_alone(tensor.name, tensor.shape, model.architecture, tensor.format) is None:
                block, role = role_of(tensor.name)
                known = moments(tensor, imatrix)
                survey = survey_tensor(model, tensor, known, find_massive=role.startswith("ffn_down"))
                if block is None:
                    facts[tensor.name] = global_facts(survey, anatomy, tied="output.weight" not in model.by_name)
                else:
                    blocks[block].append(survey)
        for number, surveys in blocks.items():
            facts |= block_facts(surveys, anatomy, number)
    return facts


def compare(
    name: str, facts: dict[str, Facts], measured: dict[str, float]
) -> tuple[dict[str, float], list[tuple[float, float]]]:
    """Print one model; return log c of each role relative to the writers', and (l, needed) of each attn_q and
    attn_k."""
    shares = stream_shares(facts)
    logs: dict[str, list[float]] = defaultdict(list)
    for tensor, value in measured.items():
        added = facts.get(tensor, Facts()).added
        massive = added is not None and added.massive > 0
        # the tables' errors include massive channels, which `shares` takes apart
        if tensor in shares and role_of(tensor)[0] is not None and not massive:
            logs[role_of(tensor)[1]].append(np.log(value / (shares[tensor].total / 2)))
    c = float(np.median(np.concatenate([logs[role] for role in REFERENCE])))
    print(f"\n{name}: c = {np.exp(c):.3f}")
    for role, values in sorted(logs.items()):
        ratio, spread = np.exp(np.median(values) - c), np.std(values)
        print(f"  {role:12} {ratio:5.2f} of it, sd of log {spread:.2f}  ({len(values)})")
    points = []
    for tensor, value in measured.items():
        if role_of(tensor)[1] in LOGITS and tensor in shares:
            output = tensor.replace(role_of(tensor)[1], "attn_output")
            # the present a l/(l+b), averaged over heads
            added, varying = facts[tensor].added, facts[output].varying
            assert added is not None
            assert varying is not None
            now = added.variance / varying
            points.append((_logits(now), value / np.exp(c) / shares[tensor].variance * now))
    return {role: float(np.median(values)) - c for role, values in logs.items()}, points


def _logits(factor: float) -> float:
    """The l that a factor 2.5 l/(l+5) stands for."""
    share = factor / ATTENTION_LOGITS
    return LOGITS_HALF * share / (1 - share)


def main(arguments: list[str]) -> None:
    if not arguments or len(arguments) % 3:
        sys.exit(__doc__)
    roles: dict[str, list[float]] = defaultdict(list)
    points: list[list[tuple[float, float]]] = []
    for model, imatrix, table in zip(*[iter(arguments)] * 3, strict=True):
        with Path(table).open(newline="") as file:
            measured = {row["tensor"]: float(row["sensitivity"]) for row in csv.DictReader(file)}
        found, own = compare(Path(model).name, all_facts(model, imatrix), measured)
        points.append(own)
        for role, value in found.items():
            roles[role].append(value)
    print("\nFactors that would make roles agree (geometric mean over models)")
    now = {"attn_v": ATTENTION_VALUE, "ffn_up": FEED_FORWARD, "ffn_gate": FEED_FORWARD}
    for role, constant in now.items():
        print(f"  {role:12} {constant * np.exp(np.mean(roles[role])):.2f} instead of {constant}")
    print(f"  attn_q, attn_k: a l/(l+b), now a = {ATTENTION_LOGITS}, b = {LOGITS_HALF}")
    print("   b     best a   rms of log")
    for b in (1.0, 2.0, 3.0, 5.0, 8.0, 12.0):
        # each model counts the same, whatever its number of layers
        residuals = [np.array([np.log(needed) - np.log(x / (x + b)) for x, needed in own]) for own in points]
        a = np.mean([r.mean() for r in residuals])
        rms = np.sqrt(np.mean([((r - a) ** 2).mean() for r in residuals]))
        print(f"  {b:4.1f}  {np.exp(a):6.2f}  {rms:8.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
