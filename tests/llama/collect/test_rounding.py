"""What is expected of rounded activations, against those of the model as it reads a text; and what plans make of it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from planner.formats.ggml import formats
from planner.formats.registry import activation_blocks
from planner.gguf import open_model, read_imatrix
from planner.llama.collect.activations import activations_of
from planner.llama.engine import Engine, cut
from planner.llama.graph import Node
from planner.llama.text import read_text
from planner.measure import moments, survey_tensor
from planner.measure.anatomy import read_anatomy
from planner.measure.rounding import rounded, rounding_of
from tests.conftest import EXAMPLES


class Rounder:
    """Adds up how the energies of products' errors compare with those of the products, weight by weight."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns, self.sums = columns, {name: np.zeros(3) for name in columns}

    def wants(self, node: Node) -> bool:
        return node.operation == "MUL_MAT" and node.sources[0].name in self.columns

    def see(self, node: Node) -> None:
        name = node.sources[0].name
        (group,) = activations_of(node)
        rows = group.rows[::5].astype(np.float64)
        errors = (rows, *(rounded(rows, block) - rows for block in (32, 256)))
        self.sums[name] += [(np.square(error) @ self.columns[name]).sum() for error in errors]


def test_the_imatrix_says_how_activations_are_rounded(example):
    """Nearly where inputs are normed, roughly where they have long tails."""
    imatrix = read_imatrix(example.sums)
    with open_model(example.model) as model:
        anatomy = read_anatomy(model)
        surveys = {
            tensor.name: survey_tensor(model, tensor, moments(tensor, imatrix), find_massive=False)
            for tensor in model.tensors
            if tensor.rows > 1 and tensor.name.startswith(("blk.2.", "blk.6.", "output."))
        }
    rounder = Rounder({name: survey.columns[0] for name, survey in surveys.items()})
    with Engine(example.model, context=256, threads=2, observer=rounder) as engine:
        windows = cut(engine.tokenize(read_text(EXAMPLES / "calibration.txt")), 256, 16)
        for _ in engine.windows(windows, first=0):
            pass
    for name, survey in surveys.items():
        energy, *errors = rounder.sums[name]
        # an estimate is relative to the product's energy; here energies of channels were added up one by one
        factor = survey.energy / float(survey.columns[0] @ survey.moments.second[0])
        expected = rounding_of(survey, anatomy, tied=False)
        fine, coarse = expected.fine * factor * energy / errors[0], expected.coarse * factor * energy / errors[1]
        if "ffn_down" in name or name == "output.weight":
            assert 0.6 < fine < 1.6, name
            assert 0.45 < coarse < 1.6, name
        else:
            assert fine == pytest.approx(1, abs=0.1), name
            assert coarse == pytest.approx(0.9, abs=0.15), name


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
        assert activation_blocks()[fmt.name] == blocks[traits(fmt.id).contents.vec_dot_type], fmt.name
