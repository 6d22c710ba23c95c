"""How much the model's output suffers from a tensor's error: uniform, by role (prior), from weights and
imatrix (structure), from passes of the model (measured)."""

from __future__ import annotations

from planner.sensitivity.anatomy import Anatomy, read_anatomy
from planner.sensitivity.design import DESIGNS, Design, factored, most_telling
from planner.sensitivity.experts import EXPERTS_VERSION
from planner.sensitivity.link import Link, Point, Prediction, fit_link
from planner.sensitivity.measured import Observation, spread
from planner.sensitivity.prior import Prior, is_expert, prior, role_of
from planner.sensitivity.rounding import NOT_ROUNDED, Rounding, rounding_of
from planner.sensitivity.sources import (
    SOURCES,
    Source,
    TensorSensitivity,
    default_source,
    measured_sensitivities,
    sensitivities,
)
from planner.sensitivity.structure import STRUCTURE_VERSION, Facts, block_facts, global_facts

__all__ = [
    "DESIGNS",
    "EXPERTS_VERSION",
    "NOT_ROUNDED",
    "SOURCES",
    "STRUCTURE_VERSION",
    "Anatomy",
    "Design",
    "Facts",
    "Link",
    "Observation",
    "Point",
    "Prediction",
    "Prior",
    "Rounding",
    "Source",
    "TensorSensitivity",
    "block_facts",
    "default_source",
    "factored",
    "fit_link",
    "global_facts",
    "is_expert",
    "measured_sensitivities",
    "most_telling",
    "prior",
    "read_anatomy",
    "role_of",
    "rounding_of",
    "sensitivities",
    "spread",
]
