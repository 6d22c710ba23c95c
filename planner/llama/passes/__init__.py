"""Passes of a model with changed weights: measured sensitivities, calibration, polish."""

from __future__ import annotations

__all__: list[str] = []
