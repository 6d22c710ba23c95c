"""Makes mlx-affine.npz: rows, and what MLX's own `mx.quantize` and `mx.dequantize` make of them on the CPU.

pip install 'mlx[cpu]==0.32.4'
python tests/golden/mlx_affine.py
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np

ROWS, LENGTH = 10, 128


def rows() -> np.ndarray:
    """Ordinary and awkward rows, float32."""
    rng = np.random.default_rng(5)
    made = rng.standard_normal((ROWS, LENGTH)) * 0.05
    made[1] = np.abs(made[1])
    made[2] = -np.abs(made[2])
    made[3, :96] = 0
    made[4] = 0.375  # constant
    made[5] *= 1e-6  # below the least step
    made[6] *= 1e5
    made[7] = np.round(made[7] * 80) / 8  # ties
    made[8, 77] = 3.5  # an outlier
    made[9] += 0.5  # zero far away
    return made.astype(np.float32)


def main() -> None:
    mx.set_default_device(mx.cpu)
    arrays = {}
    for kind, dtype in (("f16", mx.float16), ("bf16", mx.bfloat16)):
        source = mx.array(rows()).astype(dtype)
        arrays[f"{kind}.rows"] = np.array(source.astype(mx.float32))
        for bits in (2, 3, 4, 5, 6, 8):
            for group in (32, 64, 128):
                weights, scales, biases = mx.quantize(source, group_size=group, bits=bits)
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
                back = mx.dequantize(weights, scales, biases, group_size=group, bits=bits)
                name = f"{kind}.mlx_q{bits}_g{group}"
                arrays[f"{name}.weights"] = np.array(weights).view(np.uint8)
                arrays[f"{name}.scales"] = np.array(scales)
                arrays[f"{name}.biases"] = np.array(biases)
                arrays[f"{name}.sum"] = np.array(back).astype(np.float64).sum(axis=1)
    np.savez_compressed(Path(__file__).with_name("mlx-affine.npz"), **arrays)


if __name__ == "__main__":
    main()
