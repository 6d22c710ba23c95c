"""Types that ggml does not have: what they are called, and which of ggml's stand in for them."""

from pathlib import Path

import pytest

from planner.formats.ggml import CANDIDATES, FOREIGN, format_by_id, formats, nearest_known, unknown_type


def test_no_number_of_ours_is_a_strangers():
    assert not [number for number in FOREIGN if format_by_id(number)]
    names = [foreign.name for foreign in FOREIGN.values()]
    assert len(set(names)) == len(names)
    assert not set(names) & set(formats())


@pytest.mark.parametrize("row", [32, 64, 96, 128, 256, 288, 576, 1000, 4096])
@pytest.mark.parametrize("number", sorted(FOREIGN))
def test_what_stands_in_fits_the_row_and_is_the_nearest_that_does(number, row):
    near = nearest_known(FOREIGN[number].name, row)
    if near is None:
        assert FOREIGN[number].name in ("q8_1_x4", "q8_2_x4")  # of activations: no weights
        return
    assert formats()[near].fits(row)
    anywhere = nearest_known(FOREIGN[number].name)
    if formats()[anywhere].fits(row):
        assert near == anywhere
    elif row % 32 == 0:
        assert near in CANDIDATES or near == anywhere
    else:
        assert near in ("f16", "bf16")


def test_the_row_decides():
    assert nearest_known("q6_0") == nearest_known("q6_0", 512) == "q6_K"
    assert nearest_known("q6_0", 288) == "q5_1"  # 6 bits; q8_0, which llama.cpp puts for q6_K, has 8.5
    assert nearest_known("q4_K_R4") == "q4_K"
    assert nearest_known("q4_0_4_4", 288) == "q4_0"
    assert nearest_known("q4_K") is nearest_known("nonsense") is None


@pytest.mark.parametrize(
    ("number", "problem", "remedy"),
    [
        (4, "4 (q4_2), which ggml has no more", "newer file of the model"),
        (31, "31 (q4_0_4_4), which ggml has no more", "in q4_0, which llama.cpp rearranges"),
        (36, "36 (iq4_nl_4_4, or i2_s of Microsoft's BitNet), which ggml has no more", "in iq4_nl, which"),
        (37, "37 (iq4_nl_4_8), which", "in iq4_nl, which"),
        (144, "144 (iq4_ks), which only ik_llama.cpp has", "import 'a model.gguf' --nearest"),
        (212, "212 (q4_k_r4), which only ik_llama.cpp has", "Run the file with ik_llama.cpp"),
        (77, "77, which neither", "PLANNER_GGML"),
        (3_000_000, "3000000, which neither", ""),
    ],
)
def test_what_is_said_of_them(number, problem, remedy):
    said, advice = unknown_type(number, 256, Path("x/a model.gguf"))
    assert problem in said
    assert remedy in advice
    assert bool(remedy) == bool(advice)
