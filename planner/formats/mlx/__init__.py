"""MLX's affine formats, and its quantization on numpy arrays."""

from __future__ import annotations

from planner.formats.mlx.formats import AFFINE, AFFINE_SETS, Affine, affine_named
from planner.formats.mlx.kernels import KERNEL, Quantized, dequantize_affine, quantize_affine, round_trip_affine

__all__ = [
    "AFFINE",
    "AFFINE_SETS",
    "KERNEL",
    "Affine",
    "Quantized",
    "affine_named",
    "dequantize_affine",
    "quantize_affine",
    "round_trip_affine",
]
