"""Read the published and the measured single-tensor tables: what each tensor adds to the KLD above the noise floor."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np

from planner.names.gguf import role_of
from planner.sensitivity.prior import TIED, last_block

DATA = Path(__file__).resolve().parent / "data"
PUBLISHED = DATA / "single_tensor_kld"
MEASURED = DATA / "measured_sensitivity"
FAILED = 404.0
FAMILIES = {"Qwen3.5": ("Qwen3.5", "Qwen3.8"), "Qwen3": ("Qwen3-",), "GLM": ("GLM",), "Kimi": ("Kimi",)}
Key = tuple[int | None, tuple[str, ...]]  # block and the roles dropped together


@dataclass(frozen=True)
class Settings:
    """Standard deviations in natural-log units. Chosen by --study; the scores are flat around them."""

    floor_share: float = 0.8  # floor / lowest value, where nothing better is known: 0.90 and 0.78 where it is
    envelope: float = 0.8  # the same in mixture-of-experts models, over the blocks nearby
    noise: float = 0.1  # of a value, as a share of value and floor
    residual: float = 0.25
    block: float = 0.5
    family: float = 0.3  # of a role, from one family of models to another
    deviation: float = 0.2  # of a role, from file to file within a family
    relative: float = 0.5  # of a role, from its relative
    alone: float = 1.5  # of a role without relative, from the block mean
    last: bool = True
    depth: bool = False  # output and embeddings relative to blocks ~ log(number of blocks)


@dataclass(frozen=True)
class Observation:
    """Tensors of one block dropped together: log of what they add to the KLD, and that number's variance."""

    block: int | None
    roles: tuple[str, ...]
    value: float
    variance: float


@dataclass(frozen=True)
class File:
    name: str
    family: str
    blocks: int
    last: int
    floor: float
    observations: tuple[Observation, ...]


def read_published(path: Path, s: Settings) -> File:
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    names = [row["tensor"] for row in rows]
    blocks = 1 + max(role_of(name)[0] or 0 for name in names)
    last = last_block(names, blocks)
    tied = "output.weight" not in names
    columns = [
        _groups(rows, column, tied) for column in rows[0] if column.startswith("kld_")
    ]  # one {(block, roles): kld} a type
    bare = [k for groups in columns for (block, _), k in groups.items() if block is not None and block > last]
    used = [{key: k for key, k in groups.items() if (key[0] or 0) <= last and k > 0} for groups in columns]
    floors = [float(np.median(bare))] if bare else _floors(used, s)
    experts = any("_exps" in name for name in names)
    per_key: dict[Key, list[Observation]] = defaultdict(list)
    for groups, floor in zip(used, floors, strict=True):
        for (block, roles), kld in groups.items():
            near = _envelope(groups, block) * s.envelope if experts else 0.0
            per_key[block, roles].append(_observe(block, roles, kld, max(floor, near), s))
    merged = [_merge(several) for several in per_key.values()]
    family = next(family for family, starts in FAMILIES.items() if path.stem.startswith(starts))
    return File(path.stem, family, blocks, last, floors[0], tuple(merged))


def _groups(rows: list[dict[str, str]], column: str, tied: bool) -> dict[Key, float]:
    """(block, roles measured together) -> KLD. Equal values in a block to six decimals are one run."""
    runs: dict[tuple[int | None, float], list[str]] = defaultdict(list)
    for row in rows:
        value = float(row[column] or FAILED)
        if value < FAILED:
            block, role = role_of(row["tensor"])
            runs[block, value].append(TIED if tied and role == "token_embd" else role)
    found: dict[Key, float] = {}
    together = _together(runs.values())
    for (block, value), roles in runs.items():
        parts: dict[frozenset[str], list[str]] = defaultdict(list)
        for role in roles:
            parts[together[role]].append(role)
        for part in parts.values():
            found[block, tuple(sorted(part))] = value
    return found


def _together(runs: Iterable[list[str]]) -> dict[str, frozenset[str]]:
    """Role -> roles that share its value in most blocks; a rare coincidence joins nobody."""
    alone: dict[str, int] = defaultdict(int)
    pairs: dict[tuple[str, str], int] = defaultdict(int)
    for roles in runs:
        for role in roles:
            alone[role] += 1
        for pair in permutations(roles, 2):
            pairs[pair] += 1
    return {r: frozenset({r} | {b for (a, b), n in pairs.items() if a == r and n > alone[r] / 2}) for r in alone}


def _floors(columns: list[dict[Key, float]], s: Settings) -> list[float]:
    """Noise floor of each type. With several types, KLD is floor + sensitivity × error in each of them, so where the
    line of one type against another meets the diagonal, the sensitivity is zero."""
    blocks = [{key: k for key, k in groups.items() if key[0] is not None} for groups in columns]
    meets = []
    for a, b in permutations(blocks, 2):
        keys = [key for key in a if key in b]
        x, y = np.array([b[key] for key in keys]), np.array([a[key] for key in keys])
        i, j = np.triu_indices(len(keys), 1)
        apart = np.abs(x[i] - x[j]) > 0.1 * np.median(x)
        slope = float(np.median((y[i] - y[j])[apart] / (x[i] - x[j])[apart]))
        if abs(np.log(slope)) > 0.3:  # two types alike say nothing
            meets.append(float(np.median(y - slope * x)) / (1 - slope))
    lowest = [min(groups.values()) for groups in blocks]
    if meets:
        return [min(float(np.median(meets)), 0.95 * low) for low in lowest]
    return [s.floor_share * low for low in lowest]


def _envelope(groups: dict[Key, float], block: int | None) -> float:
    """Lowest value nearby: with routed experts any change upstream costs about this, whatever it was."""
    if block is None:
        return 0.0
    return min(k for (b, _), k in groups.items() if b is not None and abs(b - block) <= 3)


def _observe(block: int | None, roles: tuple[str, ...], kld: float, floor: float, s: Settings) -> Observation:
    above = max(kld - floor, 0.05 * floor)
    noise = s.noise * kld / above
    return Observation(block, roles, float(np.log(above)), noise * noise)


def _merge(several: list[Observation]) -> Observation:
    """One observation of a tensor that was dropped to several types: their noise is mostly common."""
    value = float(np.mean([obs.value for obs in several]))
    return replace(several[0], value=value, variance=float(np.mean([obs.variance for obs in several])))


def read_measured(path: Path) -> File:
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    blocks = 1 + max(role_of(row["tensor"])[0] or 0 for row in rows)
    observations = []
    for row in rows:
        block, role = role_of(row["tensor"])
        value, error = float(row["sensitivity"]), float(row["standard_error"])
        observations.append(Observation(block, (role,), float(np.log(value)), (error / value) ** 2))
    return File(path.stem, "", blocks, blocks - 1, 0.0, tuple(observations))


def read_all(s: Settings) -> list[File]:
    return [read_published(path, s) for path in sorted(PUBLISHED.glob("*.csv"))]
