"""Activations rounded to 8 bits: against ggml's own kernels, and what becomes of it in a plan."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from planner.formats import all_formats, block_of_activations
from planner.ggml import dequantize_rows, formats, quantize_rows
from planner.gguf import open_model
from planner.llama.engine import Engine
from planner.llama.rounding import measure_rounding
from planner.mlx import AFFINE
from planner.passes import add_rounding, rounding_of, sensitivities_of, subject_of
from planner.sensitivity import NOT_ROUNDED, Rounding, TensorSensitivity
from state import Pass, Store
from tests.llama.test_imatrix_collect import Fake, node_of

TENSOR = "blk.3.ffn_down.weight"


class Shown:
    """An engine whose only operations are these."""

    def __init__(self, *nodes: SimpleNamespace) -> None:
        self.nodes, self.observer = nodes, cast(Any, "the one before")

    def windows(self, windows: object, *, first: int) -> Any:
        assert first == 0  # all tokens go through all blocks
        for node in self.nodes:
            if self.observer.wants(node):
                self.observer.see(node)
            yield 0, None


def product(name: str, shape: tuple[int, ...], activations: np.ndarray) -> SimpleNamespace:
    weight = Fake(name, np.zeros(shape, np.float16))
    return node_of("MUL_MAT", (weight, Fake("activations", activations)))


def rounded_as_q8_k(rows: np.ndarray) -> np.ndarray:
    """quantize_row_q8_K_ref of ggml-quants.c, block by block."""
    out = np.zeros_like(rows)
    for row, into in zip(rows, out, strict=True):
        for start in range(0, len(row), 256):
            block = row[start : start + 256]
            largest = block[np.argmax(np.abs(block))]
            inverse = -127 / largest
            into[start : start + 256] = np.minimum(127, np.rint(inverse * block)) / inverse
    return out


@pytest.fixture
def activations() -> np.ndarray:
    rng = np.random.default_rng(1)
    # products of two, as what goes into ffn_down is
    return (rng.standard_normal((100, 768)) * rng.standard_normal((100, 768))).astype(np.float32)


def test_errors_are_those_of_the_kernels(example, activations):
    q8_0 = formats()["q8_0"]
    with open_model(example.model) as model:
        tensor = model[TENSOR]
        weight = model.rows(tensor, 0, tensor.rows)
        engine = Shown(product(TENSOR, weight.shape, activations), product("cache_k_l0", weight.shape, activations))
        found = measure_rounding(cast(Engine, engine), model, np.zeros((1, 1), np.int32))
    assert engine.observer == "the one before"
    assert set(found) == {TENSOR}
    fine = dequantize_rows(q8_0, quantize_rows(q8_0, activations, None), 768)
    for rounded, ours in ((fine, found[TENSOR].fine), (rounded_as_q8_k(activations), found[TENSOR].coarse)):
        error = (rounded - activations) @ weight.T
        exact = np.square(error).sum() / np.square(activations @ weight.T).sum()
        assert ours == pytest.approx(exact, rel=0.15)
    assert found[TENSOR].coarse > 2 * found[TENSOR].fine


def test_massive_tokens_do_not_hide_the_others(example, activations):
    massive = activations.copy()
    massive[17, 5] = 1e5
    shape = (256, 768)
    with open_model(example.model) as model:
        with_it, without = (
            measure_rounding(cast(Engine, Shown(product(TENSOR, shape, rows))), model, np.zeros((1, 1), np.int32))
            for rows in (massive, activations)
        )
    assert with_it[TENSOR].coarse == pytest.approx(without[TENSOR].coarse, rel=0.05)


def test_zeros_have_no_error(example):
    with open_model(example.model) as model:
        nothing = Shown(product(TENSOR, (256, 768), np.zeros((20, 768), np.float32)))
        assert measure_rounding(cast(Engine, nothing), model, np.zeros((1, 1), np.int32)) == {}


def test_blocks_are_those_of_the_kernels():
    """`vec_dot_type` of llama.cpp's CPU kernels, for every format that they multiply."""

    class Traits(ctypes.Structure):
        """struct ggml_type_traits_cpu in ggml-cpu.h."""

        _fields_ = (
            ("from_float", ctypes.c_void_p),
            ("vec_dot", ctypes.c_void_p),
            ("vec_dot_type", ctypes.c_int),
            ("nrows", ctypes.c_int64),
        )

    llama_cpp = pytest.importorskip("llama_cpp")
    folder = Path(llama_cpp.__file__).parent / "lib"
    file = next(file for file in folder.iterdir() if "ggml-cpu" in file.name)
    traits = ctypes.CDLL(str(file)).ggml_get_type_traits_cpu
    traits.restype, traits.argtypes = ctypes.POINTER(Traits), (ctypes.c_int,)
    blocks = {8: 32, 9: 32, 15: 256}  # q8_0, q8_1, q8_K of enum ggml_type
    multiplied = [fmt for fmt in formats().values() if fmt.quantized and traits(fmt.id).contents.vec_dot]
    assert len(multiplied) > 18
    for fmt in multiplied:
        assert block_of_activations(fmt) == blocks[traits(fmt.id).contents.vec_dot_type], fmt.name


def test_nothing_is_rounded_without_quantization():
    for name in ("f32", "f16", "bf16", *AFFINE):
        assert block_of_activations(all_formats()[name]) == 0
    sensitivity = TensorSensitivity(2.0, 3.0, 0.0, "measured", rounding=Rounding(0.01, 0.04))
    assert sensitivity.loss(0.1, 0.1, 0) == pytest.approx(0.5)
    assert sensitivity.loss(0.1, 0.1, 0, 32) == pytest.approx(0.52)
    assert sensitivity.loss(0.1, 0.1, 0, 256) == pytest.approx(0.58)
    assert sensitivity.times(2).loss(0.1, 0.1, 0, 256) == pytest.approx(1.16)


def chosen(run, state, here, source):
    solved = run("solve", "--state", state, "--bpw", 4.8, "--sensitivity", source, "-o", "recipe.json")
    assert solved.status == 0, solved.text
    recipe = json.loads((here / "recipe.json").read_text())
    return next(entry["format"] for entry in recipe["tensors"] if entry["name"] == TENSOR)


def test_a_state_remembers_it_and_plans_with_it(run, cheap, here):
    """With activations that coarse blocks ruin, the same budget is spent on formats of fine ones."""
    before = chosen(run, cheap, here, "structure")
    assert block_of_activations(all_formats()[before]) == 256
    with Store.open(cheap) as store:
        inventory, subject = store.inventory(), subject_of(store)
        assert inventory is not None
        assert subject is not None
        assert rounding_of(store, inventory, subject) == {}
        names = [tensor.name for tensor in inventory.tensors]
        add_rounding(store, inventory, subject, {TENSOR: Rounding(1e-4, 10.0)})
        assert rounding_of(store, inventory, subject) == {
            name: Rounding(1e-4, 10.0) if name == TENSOR else NOT_ROUNDED for name in names
        }
        store.add_passes([
            Pass(
                key="ab" * 32, subject=subject, label="all", formats={TENSOR: "q4_0"}, errors={TENSOR: (0.1, 0.0, 0.0)},
                kld=0.1, stderr=0.01, tokens=1, seconds=1,
            )
        ])  # fmt: skip
        known = sensitivities_of(store, inventory, "structure", store.passes())
        assert known[TENSOR].rounding == Rounding(1e-4, 10.0)
    for source in "measured", "structure":
        after = chosen(run, cheap, here, source)
        assert block_of_activations(all_formats()[after]) == 32
