"""MLX's affine formats: names, sizes, sets, and what users may call them."""

from __future__ import annotations

import pytest

from planner.errors import UsageError
from planner.formats.ggml import formats, library_digest
from planner.formats.mlx import AFFINE, affine_named
from planner.formats.registry import all_formats, belongs, choose_formats, kernel_of, named_in


def test_every_combination_is_there_once():
    assert len(AFFINE) == 18
    assert {(entry.bits, entry.group) for entry in AFFINE.values()} == {
        (bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)
    }
    assert [entry.bpw for entry in AFFINE.values()] == sorted({entry.bpw for entry in AFFINE.values()})


@pytest.mark.parametrize("entry", AFFINE.values(), ids=AFFINE)
def test_sizes(entry):
    """Packed weights, and 16 bits each for a scale and a bias."""
    assert entry.bpw == entry.bits + 32 / entry.group
    assert entry.row_bytes(256) * 8 == 256 * entry.bits + 256 // entry.group * 32
    assert not entry.fits(entry.group // 2)
    assert entry.parameters == {"bits": entry.bits, "group_size": entry.group}


def test_families_do_not_overlap():
    assert not set(AFFINE) & set(formats())
    assert list(all_formats()) == [*formats(), *AFFINE]
    assert belongs("q4_K", "gguf")
    assert not belongs("q4_K", "mlx")
    assert belongs("mlx_q4_g64", "mlx")
    assert not belongs("mlx_q4_g64", "gguf")
    assert not belongs("f16", "mlx")  # nothing is quantized to it


def test_kernels_are_told_apart():
    assert kernel_of(AFFINE["mlx_q4_g64"]) == ("mlx-affine 1",)
    assert kernel_of(formats()["q4_K"])[1] == library_digest()


def test_names():
    assert named_in("mlx", " MLX_Q4_g64 ") is affine_named("mlx_q4_g64") is AFFINE["mlx_q4_g64"]
    assert named_in("mlx", "BF16") is formats()["bf16"]
    assert named_in("gguf", "Q4_k") is formats()["q4_K"]
    with pytest.raises(UsageError, match="Near names: mlx_q4_g64"):
        named_in("mlx", "mlx_q4_g63")
    with pytest.raises(UsageError, match="none of MLX's"):
        named_in("mlx", "q4_K")
    with pytest.raises(UsageError, match="--family mlx"):
        named_in("gguf", "mlx_q4_g64")


def test_choices():
    assert [entry.name for entry in choose_formats("mlx", "all")] == list(AFFINE)
    assert [entry.name for entry in choose_formats("mlx", "g64,-mlx_q2_g64,mlx_q3_g32")] == [
        "mlx_q3_g64", "mlx_q3_g32", "mlx_q4_g64", "mlx_q5_g64", "mlx_q6_g64", "mlx_q8_g64",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="all, g32, g64, g128"):
        choose_formats("mlx", "all,-all")
    with pytest.raises(UsageError, match="--family mlx"):
        choose_formats("gguf", "all,mlx_q4_g64")
