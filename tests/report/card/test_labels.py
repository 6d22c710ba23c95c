"""Names that tools find files by, and that do not mislead about size."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.gguf import open_model, why_left_alone
from planner.gguf.quantize import quantize_model
from planner.report.card import TOLERANCE, Labels, labels_for
from planner.report.card.labels import file_name, model_name
from tests.models import dense

# What huggingface.js, which answers ollama, looks for in a name, and takes the last of (packages/gguf/src/quant.ts)
QUANTS = (
    "F32", "F16", "Q4_0", "Q4_1", "Q4_1_SOME_F16", "Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L",
    "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ1_S",
    "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16",
)  # fmt: skip
PATTERN = re.compile(rf"(?:UD-)?(?:{'|'.join(QUANTS)})(?:_[A-Z]+)?")


@pytest.fixture(scope="module")
def labels(example):
    with open_model(example.model) as model:
        return Labels.of(model, imatrix=True)


def test_what_the_hub_reads_is_the_label(labels):
    for label in labels.bpw:
        for name in ("Name-7B", "Qwen3.5-27B-Instruct", "x"):
            called = file_name(name, 4.21, label)
            assert PATTERN.findall(called.upper())[-1] == label
            # and llama.cpp's -hf: the label, in any case, before a dot or a dash (common/download.cpp)
            assert re.search(re.escape(label.lower()) + "[.-]", called, re.IGNORECASE)
    assert not PATTERN.findall(file_name("Name-7B", 7.4, None).upper())


def test_a_mix_of_llama_cpp_gets_its_own_label(labels, example, tmp_path):
    """Made by the rules, its bits are what the labels say."""
    with open_model(example.model) as model:
        names = [
            tensor.name for tensor in model.tensors
            if not why_left_alone(tensor.name, tensor.shape, model.architecture, tensor.format)
        ]  # fmt: skip
        quantize_model(model, dict.fromkeys(names, "q8_0"), None, tmp_path / "x.gguf", file_type=7)
    with open_model(tmp_path / "x.gguf") as made:
        bpw = 8 * sum(tensor.nbytes for tensor in made.tensors) / sum(tensor.elements for tensor in made.tensors)
        assert labels.bpw["Q8_0"] == bpw
        assert Labels.of(made, imatrix=True).bpw == labels.bpw  # whichever file of the model is asked
    assert labels_for(labels, [(bpw, {"q8_0"})]) == ["Q8_0"]


@given(
    files=st.lists(
        st.tuples(st.floats(1.5, 17), st.sets(st.sampled_from(["q4_K", "iq3_s", "q6_K", "q8_0"]))), max_size=12
    )
)
def test_no_label_misleads_and_none_is_given_twice(labels, files):
    found = labels_for(labels, files)
    given = [label for label in found if label is not None]
    assert len(given) == len({*given})
    for (bpw, _), label in zip(files, found, strict=True):
        near = [name for name, own in labels.bpw.items() if abs(math.log(bpw / own)) <= math.log1p(TOLERANCE)]
        if label is not None:
            assert label in near
        else:
            assert {*near} <= {*given}  # others have them


def test_a_type_that_the_file_uses_goes_first(labels):
    between = math.sqrt(labels.bpw["Q4_K_S"] * labels.bpw["IQ4_NL"])
    assert labels.near(between, {"q4_K"})[0].startswith("Q4_K")
    assert labels.near(between, {"iq4_nl"})[0] == "IQ4_NL"
    assert labels_for(labels, [(7.4, {"q6_K", "q8_0"})]) == [None]  # between Q6_K and Q8_0 there is nothing


def test_mixes_are_of_the_model_itself(tmp_path, labels):
    """A model that is mostly vocabulary has other bits in the same mix."""
    dense(vocabulary=4096).write(tmp_path / "x.gguf")
    with open_model(tmp_path / "x.gguf") as model:
        other = Labels.of(model, imatrix=True)
    assert abs(other.bpw["Q2_K"] - labels.bpw["Q2_K"]) > 0.3
    assert np.isfinite(list(other.bpw.values())).all()


@given(st.text(max_size=300), st.text(max_size=40))
def test_names_are_safe_whatever_the_metadata_say(title, stem):
    name = model_name(title, stem)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name)
