"""Problems to measure solvers on: real inventories, and families that are known to be hard.

Real: the tensors of published models and how much each moved the output when dropped to a very low-bit type
(`benchmarks/data/single_tensor_kld`, from GGUF-Tool-Suite, MIT). The loss of a format is that sensitivity times the
format's relative error on Gaussian weights, measured with ggml's kernels on 64 rows of 4096 (no imatrix).
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from solvers import Limit, Problem

DATA = Path(__file__).parents[1] / "data" / "single_tensor_kld"
BPW = (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.5, 6.5)

# ggml name: weights a block, bytes a block, relative squared error on Gaussian weights
FORMATS: dict[str, tuple[int, int, float]] = {
    "iq1_s": (256, 50, 0.236),
    "iq1_m": (256, 56, 0.204),
    "iq2_xxs": (256, 66, 0.118),
    "iq2_xs": (256, 74, 0.0898),
    "iq2_s": (256, 82, 0.062),
    "q2_K": (256, 84, 0.072),
    "iq3_xxs": (256, 98, 0.0331),
    "iq3_s": (256, 110, 0.0189),
    "q3_K": (256, 110, 0.0209),
    "iq4_xs": (256, 136, 0.00573),
    "iq4_nl": (32, 18, 0.00563),
    "q4_0": (32, 18, 0.00669),
    "q4_1": (32, 20, 0.0049),
    "q4_K": (256, 144, 0.00502),
    "q5_0": (32, 22, 0.00164),
    "q5_1": (32, 24, 0.00115),
    "q5_K": (256, 176, 0.00125),
    "q6_K": (256, 210, 0.0003),
    "q8_0": (32, 34, 2.88e-05),
    "bf16": (1, 2, 0.0),
}
# What the types of the tables, some of them ik_llama.cpp's, come nearest to.
NEAREST = {"iq1_kt": 0.204, "iq1_m": 0.204, "iq1_m_r4": 0.204, "iq2_xxs": 0.118, "iq2_ks": 0.0898, "q2_k_r4": 0.072}


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]  # ggml order
    sensitivity: float  # KLD (nats) a unit of relative error

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def models() -> list[str]:
    return sorted(path.stem for path in DATA.glob("*.csv"))


def tensors(model: str) -> list[Tensor]:
    """The tensors of `model` that can be quantized; a missing sensitivity is the median of the others."""
    with (DATA / f"{model}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source_type"] != "f32" and "x" in row["shape"]]
    found: list[tuple[str, tuple[int, ...], float | None]] = []
    for row in rows:
        values = [
            float(row[f"kld_{kind}"]) / error
            for kind, error in NEAREST.items()
            if row.get(f"kld_{kind}") not in (None, "", "404")
        ]
        shape = tuple(map(int, row["shape"].split("x")))
        found.append((row["tensor"], shape, statistics.mean(values) if values else None))
    middle = statistics.median(value for _, _, value in found if value is not None)
    return [Tensor(name, shape, middle if value is None else value) for name, shape, value in found]


def options(tensor: Tensor) -> tuple[list[int], list[float], list[str]]:
    """Bytes, losses and names of the formats whose blocks divide the row."""
    fitting = {name: spec for name, spec in FORMATS.items() if tensor.shape[0] % spec[0] == 0}
    return (
        [tensor.elements // block * size for block, size, _ in fitting.values()],
        [tensor.sensitivity * error for _, _, error in fitting.values()],
        list(fitting),
    )


def real(model: str, bpw: float) -> Problem:
    """Every tensor a group of about 20 formats, and one limit."""
    inventory = tensors(model)
    budget = int(sum(tensor.elements for tensor in inventory) * bpw / 8)
    return _problem([(tensor.name, [tensor]) for tensor in inventory], [Limit("file", budget)])


def devices(model: str, bpw: float) -> Problem:
    """Ties of fused kernels and three limits: the file, the memory beside experts, and the bytes read a token."""
    tied: dict[str, list[Tensor]] = {}
    for tensor in tensors(model):
        key = re.sub(r"ffn_(gate|up)_exps", "ffn_gate_up_exps", tensor.name)
        key = re.sub(r"ffn_(gate|up)(_shexp)?\.", r"ffn_gate_up\2.", key)
        key = re.sub(r"attn_[qkv]\.", "attn_qkv.", key)
        tied.setdefault(key, []).append(tensor)
    groups = list(tied.items())
    total = sum(tensor.elements for _, members in groups for tensor in members)
    shares = {name: Fraction(8, members[0].shape[2]) if "exps" in name else Fraction(1) for name, members in groups}
    gpu = [name for name, _ in groups if "exps" not in name]
    beside = sum(tensor.elements for name, members in groups if name in set(gpu) for tensor in members)
    read = sum(tensor.elements * shares[name] for name, members in groups for tensor in members)
    return _problem(
        groups,
        [
            Limit("file", int(total * bpw / 8)),
            Limit("gpu", int(beside * (bpw + 1.0) / 8), gpu),
            Limit("active", int(read * (bpw + 0.7) / 8), shares),
        ],
    )


def _problem(groups: list[tuple[str, list[Tensor]]], limits: list[Limit]) -> Problem:
    offsets, sizes, losses, labels = [0], [], [], []
    for _, members in groups:
        tables = [dict(zip(names, zip(s, e, strict=True), strict=True)) for s, e, names in map(options, members)]
        for label in tables[0]:
            if all(label in table for table in tables):
                sizes.append(sum(table[label][0] for table in tables))
                losses.append(sum(table[label][1] for table in tables))
                labels.append(label)
        offsets.append(len(sizes))
    names = [name for name, _ in groups]
    return Problem.from_arrays(np.array(offsets), np.array(sizes), losses, limits, names=names, labels=labels)


def _random(weights: NDArray[np.int64], losses: NDArray[np.float64], share: float) -> Problem:
    """A limit that leaves `share` of the way from the least to the greatest weight. Arrays [groups, options]."""
    groups, width = weights.shape
    least, most = int(weights.min(axis=1).sum()), int(weights.max(axis=1).sum())
    budget = Limit("file", least + int((most - least) * share))
    return Problem.from_arrays(np.arange(groups + 1) * width, weights.ravel(), losses.ravel(), [budget])


def uncorrelated(groups: int = 1000, width: int = 20, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    return _random(rng.integers(1, 10**9, (groups, width)), rng.random((groups, width)), 0.5)


def strongly_correlated(groups: int = 1000, width: int = 20, seed: int = 0) -> Problem:
    """What an option saves is its weight plus a constant: nearly every ratio is alike (Pisinger's hard family)."""
    rng = np.random.default_rng(seed)
    weights = np.sort(rng.integers(1, 1000, (groups, width)), axis=1)
    return _random(weights, (weights.max() * 2 - weights - 10.0 * (np.arange(width) > 0)).astype(float), 0.5)


def equal_ratios(groups: int = 1000, width: int = 20, seed: int = 0) -> Problem:
    """Every byte saves the same, so the bound says nothing: a subset-sum problem over even weights."""
    rng = np.random.default_rng(seed)
    weights = 2 * np.sort(rng.integers(1, 10**6, (groups, width)), axis=1)
    return _random(weights, 1e-9 * (weights.max() - weights).astype(float), 0.5)


def near_ties(groups: int = 1000, width: int = 20, seed: int = 0) -> Problem:
    """One group many times over, its losses apart by parts in a thousand million."""
    rng = np.random.default_rng(seed)
    weights = np.tile(np.sort(rng.integers(10**6, 10**8, width)), (groups, 1))
    losses = 1.0 / weights[:1] * (1.0 + 1e-9 * rng.random((groups, width)))
    return _random(weights, losses * 1e6, 0.4)


def every_expert(groups: int = 100_000, width: int = 20, seed: int = 0) -> Problem:
    """As if every expert of a large model were a tensor of its own: few sizes, log-normal sensitivities."""
    rng = np.random.default_rng(seed)
    specs = list(FORMATS.values())[:width]
    elements = rng.choice([2048 * 7168, 1536 * 4096, 768 * 2048], groups)
    weights = np.stack([elements // block * size for block, size, _ in specs], axis=1)
    errors = np.array([error for _, _, error in specs]) * rng.lognormal(0, 0.1, (groups, len(specs)))
    return _random(weights, errors * rng.lognormal(0.0, 1.0, (groups, 1)), 0.2)


HARD: dict[str, Callable[[], Problem]] = {
    "uncorrelated": uncorrelated,
    "strongly correlated": strongly_correlated,
    "equal ratios": equal_ratios,
    "near ties": near_ties,
    "every expert (100,000)": every_expert,
}
