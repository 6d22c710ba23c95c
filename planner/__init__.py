"""Pick a quantization format for every tensor of a GGUF model under a size budget, and write the model."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
