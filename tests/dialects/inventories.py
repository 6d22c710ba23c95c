"""Recipes over inventories of real models, without their weights."""

from __future__ import annotations

import csv
import random
from functools import cache
from math import prod
from pathlib import Path

from planner.formats.ggml import formats
from planner.gguf import why_left_alone
from planner.recipe import Choice, ModelSource, Recipe
from state import Inventory, TensorRecord

FOLDER = Path(__file__).parents[2] / "benchmarks/data/single_tensor_kld"
# file → architecture: dense, state spaces, experts with them, experts, latent attention
MODELS = {
    "Qwen3-4B-Instruct-2507": "qwen3", "Qwen3.5-0.8B": "qwen35", "Qwen3.5-35B-A3B": "qwen35moe",
    "GLM-4.5-Air": "glm4moe", "Kimi-K2-Thinking": "deepseek2",
}  # fmt: skip
TYPES = (
    "iq1_m",
    "iq2_xxs",
    "iq3_s",
    "iq4_xs",
    "iq4_nl",
    "q2_K",
    "q3_K",
    "q4_K",
    "q5_K",
    "q6_K",
    "q8_0",
    "q4_0",
    "bf16",
)


@cache
def inventory(model: str) -> Inventory:
    """The tensors of a published model, under the digest 00000000."""
    tensors = []
    with (FOLDER / f"{model}.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            shape = tuple(map(int, row["shape"].split("x")))
            kind, name = formats()[row["source_type"]], row["tensor"]
            tensors.append(
                TensorRecord(
                    name=name, shape=shape, source_format=kind.name, elements=prod(shape),
                    nbytes=kind.row_bytes(shape[0]) * prod(shape[1:]), row_length=shape[0],
                    left_alone=why_left_alone(name, shape, MODELS[model], kind.name),
                )
            )  # fmt: skip
    return Inventory(
        model_name=model, architecture=MODELS[model], model_digest="00000000", model_path=f"{model}.gguf",
        header_bytes=4096, alignment=32, imatrix_name=None, imatrix_digest=None, has_means=False, metadata={},
        tensors=tuple(tensors),
    )  # fmt: skip


def random_formats(model: str, seed: int, types: tuple[str, ...] = TYPES) -> dict[str, str]:
    """A format for each tensor that may be quantized: the more runs of layers share one, the larger the seed's mood."""
    rng = random.Random(f"{model} {seed}")
    chaos = rng.choice([0.0, 0.02, 0.2, 1.0])
    usual: dict[tuple[str, int], str] = {}
    found = {}
    for tensor in inventory(model).tensors:
        if tensor.left_alone is not None:
            continue
        parts = tensor.name.split(".")
        role, band = parts[-2], int(parts[1]) // rng.choice([8, 8, 8, 3]) if parts[0] == "blk" else -1
        fits = [name for name in types if formats()[name].fits(tensor.row_length)]
        kind = usual.setdefault((role, band), rng.choice(fits))
        found[tensor.name] = kind if rng.random() > chaos and kind in fits else rng.choice(fits)
    return found


def recipe_of(
    names: dict[str, str], *, architecture: str = "llama", left_alone: dict[str, str] | None = None
) -> Recipe:
    """A recipe of matrices of 256 x 256 with these formats."""
    every = [(name, fmt, "solved") for name, fmt in names.items()]
    every += [(name, fmt, "left alone: a vector") for name, fmt in (left_alone or {}).items()]
    return Recipe(
        planner="0", ggml="0", model=ModelSource(name="m", architecture=architecture, digest="0", path="m.gguf"),
        imatrix=None, sensitivity="none", seed=0, tolerance=0.05, budget="", size=9, bpw=4, loss=None, bound=None,
        status="imported", file_type=15,
        tensors=tuple(
            Choice(
                name=name, shape=(256, 256), format=fmt, bytes=formats()[fmt].row_bytes(256) * 256, err=None,
                loss=None, why=why,
            )
            for name, fmt, why in every
        ),
    )  # fmt: skip
