"""`general.file_type`: names as in the gguf package, and llama.cpp's guesses."""

import gguf
import pytest

from planner.formats.ggml import GUESSED, file_type_of, file_types, formats


def test_every_number_of_the_gguf_package_has_its_name():
    for kind in gguf.LlamaFileType:
        if kind is not gguf.LlamaFileType.GUESSED:
            assert file_types()[kind.value] == kind.name.split("_", 1)[1]


@pytest.mark.parametrize("name", sorted(name for name, fmt in formats().items() if fmt.for_weights))
def test_every_type_that_weights_can_have_has_a_number(name):
    number = file_type_of({name: 1})
    assert number != GUESSED
    assert file_types()[number] in (name.upper(), f"{name.upper()}_M", f"{name.upper()}_MOE")


@pytest.mark.parametrize(
    ("weights", "number"),
    [
        # as llama.cpp's loader guesses: the mix of medium size, and the type itself where there is one
        ({"q4_K": 1}, 15), ({"q3_K": 1}, 12), ({"q5_K": 1}, 17), ({"q2_K": 1}, 10), ({"iq2_s": 1}, 28),
        ({"iq3_s": 1}, 26), ({"mxfp4": 1}, 38), ({"nvfp4": 1}, 39), ({"q1_0": 1}, 40), ({"q2_0": 1}, 41),
        ({"f32": 1}, 0), ({"f16": 1}, 1), ({"bf16": 1}, 32), ({"f32": 1, "f16": 2}, 1),
        ({"q4_K": 3, "q6_K": 2}, 15), ({"f16": 9, "q6_K": 2, "q8_0": 1}, 18),
        ({"mlx_q4_g64": 1}, GUESSED), ({}, GUESSED),
    ],
)  # fmt: skip
def test_mixes(weights, number):
    assert file_type_of(weights) == number
