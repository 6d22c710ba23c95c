"""Tiny states whose every recipe can be looked at: made-up errors, real names, and a search through all choices."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from planner.formats.ggml import formats
from planner.plan.findings import Findings
from planner.plan.plan import Plan, make_plan
from planner.plan.request import PlanRequest
from state import Inventory, Measurement, Store, TensorRecord

HEADER = 1000
ALIGNMENT = 32
FORMATS = ("q2_K", "q4_K", "q8_0")

Options = dict[str, tuple[int, float]]  # format → bytes, loss by "uniform"


@dataclass(frozen=True)
class Tiny:
    """A state file, and what is in it. `free` may be quantized; `fixed` (name → bytes) stays as it is."""

    path: Path
    free: dict[str, Options]
    fixed: dict[str, int]

    def plan(self, **request: object) -> Plan:
        with Store.open(self.path, read_only=True) as store:
            findings = Findings.read(store)
        return make_plan(findings, PlanRequest(sensitivity="uniform", gap=0.0, **request))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Load:
    """A limit as a test sees it: what each tensor's bytes count for, and what counts whatever is chosen."""

    weigh: Callable[[str, int], int]
    header: int = 0

    def of(self, tiny: Tiny, bytes_of: Mapping[str, int]) -> int:
        """What all tensors weigh together, those that stay included."""
        return self.header + sum(self.weigh(name, size) for name, size in {**tiny.fixed, **bytes_of}.items())


def padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


WHOLE_FILE = Load(lambda name, nbytes: padded(nbytes), HEADER)


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def write(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int = 0,
    *,
    sources: Mapping[str, str] | None = None,
    metadata: Mapping[str, int | str] | None = None,
    measured: Sequence[str] = FORMATS,
) -> Tiny:
    """A finished state of these tensors. Vectors and routers are left alone, in F32; of the rest `sources` says what it
    is, F16 if nothing. Errors fall with the bits, and are otherwise random."""
    rng = random.Random(seed)
    free: dict[str, Options] = {}
    fixed: dict[str, int] = {}
    records, measurements = [], []
    for name, shape in shapes.items():
        alone = len(shape) == 1 or "gate_inp" in name
        source = "f32" if alone else (sources or {}).get(name, "f16")
        nbytes = prod(shape) * (4 if source == "f32" else 2)
        records.append(
            TensorRecord(
                name=name, shape=shape, source_format=source, elements=prod(shape), nbytes=nbytes, row_length=shape[0],
                left_alone="a vector" if alone else None,
            )
        )  # fmt: skip
        if alone:
            fixed[name] = nbytes
            continue
        free[name] = {source: (nbytes, 0.0)}
        for fmt in measured:
            if formats()[fmt].fits(shape[0]):
                err = rng.uniform(0.5, 1.5) * 4.0 ** -formats()[fmt].bpw
                free[name][fmt] = (formats()[fmt].row_bytes(shape[0]) * prod(shape[1:]), err)
                measurements.append(
                    Measurement(
                        key=digest(name, fmt), tensor=name, format=fmt, err_var=err, err_mean=0.0, err_massive=0.0,
                        stderr=0.0, stderr_massive=0.0, rows=1, kernel_seconds=0.0, made_with="x",
                    )
                )  # fmt: skip
    inventory = Inventory(
        model_name="made up", architecture="llama", model_digest=digest("model"), model_path="/somewhere/model.gguf",
        header_bytes=HEADER, alignment=ALIGNMENT, imatrix_name="x.imatrix", imatrix_digest=digest("imatrix"),
        has_means=True, metadata={"block_count": 2, "sampling.seed": 0, "sampling.tolerance": 0.05, **(metadata or {})},
        tensors=tuple(records),
    )  # fmt: skip
    with Store.open(path, create=True) as store:
        store.set_inventory(inventory)
        store.add(measurements, [])
        store.select([entry.key for entry in measurements])
    return Tiny(path, free, fixed)


class Search:
    """All choices of formats that obey ties (sets of names) and pins (name → format): what each loses and weighs."""

    def __init__(self, tiny: Tiny, ties: Sequence[Collection[str]] = (), pins: Mapping[str, str] | None = None) -> None:
        self.tiny = tiny
        names = list(tiny.free)
        offered = [[fmt for fmt in tiny.free[name] if fmt == (pins or {}).get(name, fmt)] for name in names]
        picks = np.indices([len(own) for own in offered]).reshape(len(names), -1)
        kept = np.ones(picks.shape[1], bool)
        spelt = [np.array(own)[row] for own, row in zip(offered, picks, strict=True)]
        for tie in ties:
            members = [spelt[names.index(name)] for name in tie]
            for other in members[1:]:
                kept &= members[0] == other
        self._picks, self._offered, self._names = picks[:, kept], offered, names
        self.losses = self._sum(lambda name, fmt: tiny.free[name][fmt][1])

    def _sum(self, value: Callable[[str, str], float]) -> np.ndarray:
        tables = [
            np.array([value(name, fmt) for fmt in own]) for name, own in zip(self._names, self._offered, strict=True)
        ]
        return np.sum([table[row] for table, row in zip(tables, self._picks, strict=True)], axis=0)

    def weights(self, load: Load) -> np.ndarray:
        """What every choice weighs."""
        free = self._sum(lambda name, fmt: load.weigh(name, self.tiny.free[name][fmt][0]))
        return free + load.of(self.tiny, {})

    def least(self, limits: Sequence[tuple[Load, int]]) -> float | None:
        """The least loss within all limits, None if no choice holds them."""
        fits = np.ones(self.losses.size, bool)
        for load, capacity in limits:
            fits &= self.weights(load) <= capacity
        return float(self.losses[fits].min()) if fits.any() else None
