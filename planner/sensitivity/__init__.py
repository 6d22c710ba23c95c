"""How much the model's output suffers from a tensor's error: uniform, by role (prior), from weights and
imatrix (structure)."""

from __future__ import annotations

from planner.sensitivity.anatomy import Anatomy, read_anatomy
from planner.sensitivity.prior import Prior, prior, role_of
from planner.sensitivity.sources import SOURCES, Source, TensorSensitivity, default_source, sensitivities
from planner.sensitivity.structure import STRUCTURE_VERSION, Facts, block_facts, global_facts

__all__ = [
    "SOURCES",
    "STRUCTURE_VERSION",
    "Anatomy",
    "Facts",
    "Prior",
    "Source",
    "TensorSensitivity",
    "block_facts",
    "default_source",
    "global_facts",
    "prior",
    "read_anatomy",
    "role_of",
    "sensitivities",
]
