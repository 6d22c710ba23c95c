"""Memory beside the weights: the context by architecture, compute buffers, and what lies on the card."""

from __future__ import annotations

from planner.fit.compute import RESERVE
from planner.fit.context import CACHE_TYPES, Context
from planner.fit.layers import Layer
from planner.fit.needs import ALIGNMENT, Beside, Needs, longest, stays_in_ram, weights_on_card
from planner.fit.parameters import KEYS, as_text

__all__ = [
    "ALIGNMENT",
    "CACHE_TYPES",
    "KEYS",
    "RESERVE",
    "Beside",
    "Context",
    "Layer",
    "Needs",
    "as_text",
    "longest",
    "stays_in_ram",
    "weights_on_card",
]
