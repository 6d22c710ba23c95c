"""Closed sets of terms that users choose among. Importing them costs nothing, so that `--help` can list them."""

from __future__ import annotations

from typing import Literal

__all__ = ["Design", "Draft", "FamilyName", "RunOn", "Source"]

FamilyName = Literal["gguf", "ik_llama", "mlx"]
"""Formats that one engine has: ggml's types, these and ik_llama.cpp's own, or MLX's affine formats."""

Source = Literal["uniform", "prior", "structure", "structure+prior", "measured"]
"""Where sensitivities come from."""

Design = Literal["per-tensor", "factored"]
"""Passes of the model: over every tensor alone, or over blocks and roles."""

Draft = Literal["auto", "keep", "q8_0", "drop"]
"""Formats of draft heads: chosen as others are, but of 4 bits at least; as they are stored; 8 bits; or no heads."""

RunOn = Literal["cpu", "gpu"]
"""Where a file will run."""
