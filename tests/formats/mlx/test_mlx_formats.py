"""MLX's affine formats: names, sizes, sets, and what users may call them."""

from __future__ import annotations

import pytest

from planner.errors import UsageError
from planner.formats.ggml import formats, library_digest
from planner.formats.mlx import AFFINE, affine_named
from planner.formats.registry import FAMILIES, all_formats, kernel_of

GGUF, MLX = FAMILIES["gguf"], FAMILIES["mlx"]


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
    assert "q4_K" in GGUF.formats
    assert "q4_K" not in MLX.formats
    assert "mlx_q4_g64" in MLX.formats
    assert "mlx_q4_g64" not in GGUF.formats
    assert "f16" not in MLX.formats  # nothing is quantized to it


def test_kernels_are_told_apart():
    assert kernel_of(AFFINE["mlx_q4_g64"]) == ("mlx-affine 1",)
    assert kernel_of(formats()["q4_K"])[1] == library_digest()


def test_names():
    assert MLX.named(" MLX_Q4_g64 ") is affine_named("mlx_q4_g64") is AFFINE["mlx_q4_g64"]
    assert MLX.named("BF16") is formats()["bf16"]
    assert GGUF.named("Q4_k") is formats()["q4_K"]
    with pytest.raises(UsageError, match="Near names: mlx_q4_g64"):
        MLX.named("mlx_q4_g63")
    with pytest.raises(UsageError, match="none of MLX's"):
        MLX.named("q4_K")
    with pytest.raises(UsageError, match="--family mlx"):
        GGUF.named("mlx_q4_g64")


def test_choices():
    assert [entry.name for entry in MLX.choose("all")] == list(AFFINE)
    assert [entry.name for entry in MLX.choose("g64,-mlx_q2_g64,mlx_q3_g32")] == [
        "mlx_q3_g64", "mlx_q3_g32", "mlx_q4_g64", "mlx_q5_g64", "mlx_q6_g64", "mlx_q8_g64",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="all, g32, g64, g128"):
        MLX.choose("all,-all")
    with pytest.raises(UsageError, match="--family mlx"):
        GGUF.choose("all,mlx_q4_g64")
