"""Calibration: files made and evaluated so that predicted KL divergences are in real units (see
`planner.sensitivity.link`)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import ModelError
from planner.formats.ggml import formats
from planner.gguf import Imatrix, Model, open_model
from planner.gguf.provenance import RECIPE_KEY, rounded_as
from planner.gguf.quantize import quantize_model
from planner.gguf.refinement import Refinement
from planner.lastwords import note
from planner.llama.engine import Engine
from planner.llama.evaluate.baseline import Baseline
from planner.llama.evaluate.compare import Progress, diverge
from planner.llama.passes.kld import by_window, mean_kld, pass_key
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.recipe import Recipe
from state import Pass, Store

__all__ = ["calibrate", "calibration_recipes", "remember"]

# Bits per weight between which divergences are predicted, and how many recipes of that range are tried
_LEAST_BPW, _MOST_BPW = 3.0, 6.5
_RECIPES = 3
_MARGIN = 1.02  # keep away from both ends of the possible range


def calibration_recipes(findings: Findings) -> list[Recipe]:
    """Return recipes over the usual range of sizes, as far as the model can be stored in them."""
    inventory = findings.inventory
    shapes = {tensor.name: tensor.shape for tensor in inventory.tensors}
    sizes: dict[str, list[int]] = {tensor.name: [] for tensor in inventory.tensors}
    for tensor, errors in findings.errors.items():
        known = (formats()[fmt] for fmt in errors if fmt in formats())
        sizes[tensor] = [fmt.tensor_bytes(shapes[tensor]) for fmt in known]
    bits = 8 / sum(tensor.elements for tensor in inventory.tensors)
    least, most = (
        bits * sum(pick(sizes[own.name] or [own.nbytes]) for own in inventory.tensors) for pick in (min, max)
    )
    low = max(_LEAST_BPW, least * _MARGIN)
    high = max(min(_MOST_BPW, most / _MARGIN), low)
    step = (high / low) ** (1 / (_RECIPES - 1))
    targets = dict.fromkeys(Fraction(round(low * step**number, 2)).limit_denominator(100) for number in range(_RECIPES))
    return [make_plan(findings, PlanRequest(bpw=target)).recipe for target in targets]


def calibrate(
    store: Store,
    model: Model,
    imatrix: Imatrix | None,
    refinement: Refinement | None,
    baseline: Baseline,
    recipes: Sequence[Recipe],
    *,
    threads: int,
    gpu_layers: int,
    progress: Progress | None = None,
) -> Iterator[Pass]:
    """Make each recipe's file, temporarily beside the state, and evaluate it; yield each result once it is stored.

    Results that the state already holds are not computed again. Raises OutputError if there is no room for a file, and
    StateFileError without finished measurements.
    """
    subject = Findings.read(store).subject_of_passes()
    known = {entry.key: entry for entry in store.passes(subject)}
    for recipe in recipes:
        key = pass_key(subject, baseline.tokens, recipe.formats)
        if key in known:
            yield known[key]
            continue
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"{store.path.stem}-", dir=store.path.parent) as folder:
            note("temporary", folder)
            file = Path(folder) / "calibration.gguf"
            quantize_model(
                model, recipe.formats, imatrix, file, file_type=recipe.file_type, refinement=refinement, threads=threads
            )
            with Engine(file, context=baseline.context, threads=threads, gpu_layers=gpu_layers) as engine:
                found = diverge(engine, baseline, progress).kld
        entry = _entry(subject, baseline, recipe.formats, found, f"{recipe.bpw:.2f} bpw", time.monotonic() - begun)
        store.add_passes([entry])
        yield entry


def remember(store: Store, file: Path, baseline: Baseline, klds: NDArray[np.float32]) -> bool:
    """Store the evaluation of a file, divergences f32[windows * scored], for later predictions; return False, and do
    nothing, if its codes were not rounded as those that the state's measurements are of.

    Raises StateFileError without finished measurements, and ModelError for a file of another model.
    """
    findings = Findings.read(store)
    subject, inventory = findings.subject_of_passes(), findings.inventory
    with open_model(file) as model:
        shapes = {tensor.name: tensor.shape for tensor in model.tensors}
        used = {tensor.name: tensor.format for tensor in model.tensors}
        provenance = model.metadata.text(RECIPE_KEY) or ""
    if shapes != {tensor.name: tensor.shape for tensor in inventory.tensors}:
        raise ModelError(
            f"{file} has not the tensors of {inventory.model_name}, which {store.path} is about.",
            "Give the state of the model that was quantized.",
        )
    refined = () if inventory.covariance is None else inventory.covariance[1:]
    if not rounded_as(provenance, *refined):
        return False
    key = pass_key(subject, baseline.tokens, used)
    if key not in {entry.key for entry in store.passes(subject)}:
        store.add_passes([_entry(subject, baseline, used, klds, file.name, 0.0)])
    return True


def _entry(
    subject: str, baseline: Baseline, used: Mapping[str, str], klds: NDArray[np.float32], label: str, seconds: float
) -> Pass:
    kld, stderr = mean_kld(by_window(klds, baseline))
    return Pass(
        key=pass_key(subject, baseline.tokens, used), subject=subject, label=label, formats=dict(used), errors={},
        kld=kld, stderr=stderr, tokens=baseline.tokens.size, seconds=seconds,
    )  # fmt: skip
