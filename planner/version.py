"""The version of the package: what `planner --version` and every output file say."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
