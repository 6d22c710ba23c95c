"""Fit `planner/sensitivity/prior.json` to published single-tensor KL divergences, and say how well it predicts.

    python benchmarks/fit_prior.py            print the table and the leave-one-out scores
    python benchmarks/fit_prior.py --write    and write planner/sensitivity/prior.json
    python benchmarks/fit_prior.py --study    compare with other forms of the model (some minutes)

The model, in logarithms: a tensor dropped alone raises the KLD above the file's noise floor by

    file × block × role × (role in this family of models) × (role in this file) × (last block: by kind of feed-forward)

with normal random effects for block, family and file, a role's value shrunk to its relative's (`nearest`), and
Huber weights: one ridge regression. Tensors dropped together share their value. The relative
error of the type cancels in the file's effect, as all tensors of a file are dropped to one type.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prior_tables import FAMILIES, MEASURED, File, Observation, Settings, read_all, read_measured

from planner.sensitivity.prior import BLOCK_MEAN, TIED, ffn_family, nearest

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "planner" / "sensitivity" / "prior.json"
DENSE = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")  # their geometric mean is 1
Key = tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """Logs: role -> value, kind of feed-forward -> factor, role -> slope over log(blocks / 40)."""

    roles: dict[str, float]
    last: dict[str, float]
    slope: float
    files: dict[str, int]

    def predict(self, file: File, obs: Observation) -> float:
        return float(np.logaddexp.reduce([self.one(role, obs.block == file.last, file.blocks) for role in obs.roles]))

    def one(self, role: str, last: bool, blocks: int) -> float:
        found = role
        while found not in self.roles and found != BLOCK_MEAN:
            found = nearest(found)
        value = self.roles.get(found, 0.0)
        if role in (TIED, "output", "token_embd"):
            value += self.slope * np.log(blocks / 40)
        kind = ffn_family(role)
        return value + (self.last.get(kind, 0.0) if last and kind else 0.0)


# --- fitting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One equation: sum of factors × unknowns = value."""

    terms: dict[Key, float]
    block: Key
    value: float
    variance: float


def fit(files: Sequence[File], s: Settings) -> Fit:
    """First the tensors dropped alone; then all, what was dropped together divided as the first fit says."""
    alone = _regress(files, s, None)
    return _regress(files, s, alone)


def _regress(files: Sequence[File], s: Settings, shares: Fit | None) -> Fit:
    rows = [row for f in files for obs in f.observations for row in _rows(f, obs, s, shares)]
    columns = {key: i for i, key in enumerate(dict.fromkeys(key for row in rows for key in row.terms))}
    x = np.zeros((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for key, factor in row.terms.items():
            x[i, columns[key]] = factor
    y, variance = np.array([row.value for row in rows]), np.array([row.variance for row in rows])
    numbers = {key: i for i, key in enumerate(dict.fromkeys(row.block for row in rows))}
    block = np.array([numbers[row.block] for row in rows])
    penalties, huber = _penalties(columns, s), np.ones(len(y))
    for _ in range(10):
        weight = huber / variance
        # the blocks' random effects, eliminated: a block's rows count by how they differ from its weighted mean
        total = np.bincount(block, weight) + s.block**-2
        means = np.zeros((len(total), len(columns) + 1))
        np.add.at(means, block, weight[:, None] * np.column_stack([x, y]))
        means /= total[:, None]
        centred = np.column_stack([x, y]) - means[block]
        normal = x.T @ (weight[:, None] * centred)
        beta = np.linalg.solve(penalties + normal[:, :-1], normal[:, -1])
        residual = y - x @ beta - (means @ np.append(-beta, 1.0))[block]
        huber = np.minimum(1.0, 1.5 * np.sqrt(variance) / np.maximum(np.abs(residual), 1e-12))
    return _fitted(columns, beta, files)


def _rows(file: File, obs: Observation, s: Settings, shares: Fit | None) -> list[Row]:
    """An equation a member. Members of a group get a share of its value, and of its weight."""
    if len(obs.roles) > 1 and shares is None:
        return []
    whole = shares.predict(file, obs) if shares and len(obs.roles) > 1 else 0.0
    rows = []
    for role in obs.roles:
        share = shares.one(role, obs.block == file.last, file.blocks) - whole if whole and shares else 0.0
        terms: dict[Key, float] = {("file", file.name): 1.0, ("role", role): 1.0}
        terms |= {("family", file.family, role): 1.0, ("deviation", file.name, role): 1.0}
        if obs.block is None and s.depth:
            terms["slope", ""] = float(np.log(file.blocks / 40))
        kind = ffn_family(role)
        if s.last and kind and obs.block == file.last:
            terms |= {("last", kind): 1.0, ("last deviation", file.name, kind): 1.0}
        block = (file.name, str(obs.block) if obs.block is not None else role)
        rows.append(Row(terms, block, obs.value + share, (obs.variance + s.residual**2) * len(obs.roles)))
    return rows


def _penalties(columns: dict[Key, int], s: Settings) -> NDArray[np.float64]:
    spread = {"deviation": s.deviation, "family": s.family, "last deviation": s.relative}
    spread |= {"last": s.alone, "slope": 1.0}
    roles = {key[1] for key in columns if key[0] == "role"}
    matrix = 1e-9 * np.eye(len(columns))
    for key, column in columns.items():
        if key[0] in spread:
            matrix[column, column] += spread[key[0]] ** -2
        elif key[0] == "role":
            relative = _known_relative(key[1], roles)
            pull = np.zeros(len(columns))
            pull[column] = 1 / (s.relative if relative else s.alone)
            if relative:
                pull[columns["role", relative]] = -pull[column]
            matrix += np.outer(pull, pull)
    return matrix


def _known_relative(role: str, known: set[str]) -> str | None:
    found = nearest(role)
    while found not in known and found != BLOCK_MEAN:
        found = nearest(found)
    return None if found == BLOCK_MEAN else found


def _fitted(columns: dict[Key, int], x: NDArray[np.float64], files: Sequence[File]) -> Fit:
    by_kind: dict[str, dict[str, float]] = defaultdict(dict)
    for key, column in columns.items():
        by_kind[key[0]][key[-1]] = float(x[column])
    roles = by_kind["role"]
    centre = float(np.mean([roles[role] for role in DENSE if role in roles]))
    count = {role: sum(any(role in o.roles for o in f.observations) for f in files) for role in roles}
    for kind in by_kind["last"]:
        count[f"last {kind}"] = sum(
            any(o.block == f.last and kind in map(ffn_family, o.roles) for o in f.observations) for f in files
        )
    slope = by_kind["slope"].get("", 0.0)
    return Fit({role: value - centre for role, value in roles.items()}, by_kind["last"], slope, count)


# --- scoring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """Of one file's block tensors, one common factor apart: median |log ratio| and R² of the log (uniform's is 0 by
    definition), both weighted by how far above the noise an observation lies; and predicted / observed outside the
    blocks."""

    median: float
    uniform: float
    r2: float
    outside: dict[str, float]


def score(table: Fit, file: File, s: Settings) -> Score:
    inside = [obs for obs in file.observations if obs.block is not None]
    weight = np.array([1 / (obs.variance + s.residual**2) for obs in inside])
    y = np.array([obs.value for obs in inside])
    flat = np.log([len(obs.roles) for obs in inside])
    predicted = np.array([table.predict(file, obs) for obs in inside])
    errors, uniform = predicted - y, flat - y
    errors, uniform = errors - _median(errors, weight), uniform - _median(uniform, weight)
    spread = np.average((uniform - np.average(uniform, weights=weight)) ** 2, weights=weight)
    r2 = 1 - np.average((errors - np.average(errors, weights=weight)) ** 2, weights=weight) / spread
    shift = _median(predicted - y, weight)
    outside = {
        " + ".join(obs.roles): float(np.exp(table.predict(file, obs) - obs.value - shift))
        for obs in file.observations
        if obs.block is None
    }
    return Score(_median(np.abs(errors), weight), _median(np.abs(uniform), weight), float(r2), outside)


def _median(values: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    order = np.argsort(values, kind="stable")
    return float(values[order][np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)])


def leave_out(files: Sequence[File], s: Settings) -> dict[str, tuple[Score, Score]]:
    """File -> scores of the fit without that file, and without its whole model family."""
    strangers = {k: fit([f for f in files if f.family != k], s) for k in FAMILIES}
    return {
        f.name: (score(fit([g for g in files if g is not f], s), f, s), score(strangers[f.family], f, s)) for f in files
    }


# --- the command ---------------------------------------------------------------------------------------------------


def render(table: Fit, files: Sequence[File]) -> str:
    """The text of prior.json: numbers to three digits, so that it is the same on every machine."""

    def rows(logs: dict[str, float], prefix: str = "") -> dict[str, dict[str, float]]:
        ordered = sorted(logs.items(), key=lambda item: -item[1])
        return {k: {"value": float(f"{np.exp(v):.3g}"), "files": table.files[prefix + k]} for k, v in ordered}

    document = {
        "about": "Sensitivity by role, relative: the geometric mean over a dense block's seven matrices is 1. "
        "Written by benchmarks/fit_prior.py; do not edit.",
        "source": "Per-tensor KLD tables of the GGUF-Tool-Suite project (MIT licence), 2026-08 snapshot, "
        "in benchmarks/data/single_tensor_kld.",
        "files": [f.name for f in files],
        "roles": rows(table.roles),
        "last_block": rows(table.last, "last "),
    }
    return json.dumps(document, indent=1) + "\n"


def report(files: Sequence[File], s: Settings) -> None:
    table = fit(files, s)
    print("role -> value (files)")
    for role, value in sorted(table.roles.items(), key=lambda item: -item[1]):
        print(f"  {role:20} {np.exp(value):8.3g} ({table.files[role]})")
    for kind, value in sorted(table.last.items()):
        print(f"  last block, {kind:8} {np.exp(value):8.3g} ({table.files['last ' + kind]})")
    print(
        f"\n{'held out':28}{'floor':>8}   |log ratio|: uniform  prior    R²   family out    R²   predicted / observed"
    )
    for f, (one, kin) in zip(files, leave_out(files, s).values(), strict=True):
        print(_line(f, one), f"{kin.median:12.3f} {kin.r2:5.2f}   {_outside(one)}")
    print("never fitted:")
    for f in map(read_measured, sorted(MEASURED.glob("*.csv"))):
        one = score(table, f, s)
        print(_line(f, one), f"{'':18}   {_outside(one)}")


def _line(f: File, one: Score) -> str:
    return f"{f.name:28}{f.floor:8.5f}   {one.uniform:20.3f} {one.median:6.3f} {one.r2:5.2f}"


def _outside(one: Score) -> str:
    return ", ".join(f"{role} {ratio:.2f}" for role, ratio in one.outside.items())


def study() -> None:
    """Mean scores of variants: published files held out, families held out, the two measured models."""
    base = Settings()
    variants = {
        "chosen": base,
        "no last-block factor": replace(base, last=False),
        "output, embeddings ~ depth": replace(base, depth=True),
        "no relatives": replace(base, relative=base.alone),
        "one floor a file": replace(base, envelope=0.0),
        "no floor": replace(base, envelope=0.0, floor_share=0.0),
        "floor 0.6": replace(base, floor_share=0.6, envelope=0.6),
        "floor 0.9": replace(base, floor_share=0.9, envelope=0.9),
        "families as files": replace(base, family=0.001, deviation=0.35),
        "family x 2": replace(base, family=2 * base.family),
        "deviation x 2": replace(base, deviation=base.deviation * 2),
        "relative x 2": replace(base, relative=base.relative * 2),
        "relative / 2": replace(base, relative=base.relative / 2),
        "noise x 2": replace(base, noise=2 * base.noise),
    }
    measured = [read_measured(path) for path in sorted(MEASURED.glob("*.csv"))]
    fixed = read_all(base)  # the same targets for all
    print(
        f"{'':30}  held out: |log|   R²   outside   family out: |log|   R²   outside   measured: |log|   R²   outside"
    )
    for name, s in variants.items():
        files = read_all(s)
        pairs = _against(files, fixed, s, base)
        line = [_means(part) for part in (*pairs, [score(fit(files, s), m, base) for m in measured])]
        print(f"{name:30}" + "      ".join(f"{a:10.3f} {b:6.3f} {c:7.3f}" for a, b, c in line), flush=True)


def _against(files: list[File], fixed: list[File], s: Settings, base: Settings) -> tuple[list[Score], list[Score]]:
    strangers = {k: fit([f for f in files if f.family != k], s) for k in FAMILIES}
    one = [score(fit([g for g in files if g.name != f.name], s), f, base) for f in fixed]
    return one, [score(strangers[f.family], f, base) for f in fixed]


def _means(scores: list[Score]) -> tuple[float, float, float]:
    outside = [abs(np.log(ratio)) for one in scores for ratio in one.outside.values()]
    return (
        float(np.mean([one.median for one in scores])),
        float(np.mean([one.r2 for one in scores])),
        float(np.mean(outside)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    parser.add_argument("--study", action="store_true", help="compare with other forms of the model")
    arguments = parser.parse_args()
    settings = Settings()
    files = read_all(settings)
    report(files, settings)
    if arguments.study:
        study()
    if arguments.write:
        TABLE.write_text(render(fit(files, settings), files), encoding="utf-8")
        print(f"\nwrote {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
