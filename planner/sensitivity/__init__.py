"""How much the model's output suffers from a tensor's error: uniform, by role (prior), from
facts of the structure (structure), from passes of the model (measured)."""

from __future__ import annotations

from planner.sensitivity.confidence import likely_ratio, spread_of_ratios
from planner.sensitivity.design import DESIGNS, Design, factored, select_passes
from planner.sensitivity.facts import Facts
from planner.sensitivity.link import SCATTER, Link, Point, Prediction, fit_link
from planner.sensitivity.measured import IN_NATS, UP_TO_SCALE, Observation, Spreads, prior_covariance
from planner.sensitivity.parts import ErrorParts
from planner.sensitivity.prior import Prior, prior
from planner.sensitivity.rounding import NOT_ROUNDED, Rounding
from planner.sensitivity.sources import (
    SOURCES,
    Source,
    TensorSensitivity,
    covariance_about,
    default_source,
    measured_sensitivities,
    sensitivities,
)
from planner.sensitivity.structure import STRUCTURE_VERSION, in_nats

__all__ = [
    "DESIGNS",
    "IN_NATS",
    "NOT_ROUNDED",
    "SCATTER",
    "SOURCES",
    "STRUCTURE_VERSION",
    "UP_TO_SCALE",
    "Design",
    "ErrorParts",
    "Facts",
    "Link",
    "Observation",
    "Point",
    "Prediction",
    "Prior",
    "Rounding",
    "Source",
    "Spreads",
    "TensorSensitivity",
    "covariance_about",
    "default_source",
    "factored",
    "fit_link",
    "in_nats",
    "likely_ratio",
    "measured_sensitivities",
    "prior",
    "prior_covariance",
    "select_passes",
    "sensitivities",
    "spread_of_ratios",
]
