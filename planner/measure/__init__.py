"""Measuring of a model into its state: sampled rows, ggml's kernels, the imatrix-weighted error, and facts of the
structure."""

from __future__ import annotations

from planner.measure.loop import Job, Measured, Settings, measure_jobs
from planner.measure.metric import METRIC_VERSION, Estimate
from planner.measure.moments import Moments, moments
from planner.measure.survey import Survey, survey_in_place, survey_tensor

__all__ = [
    "METRIC_VERSION",
    "Estimate",
    "Job",
    "Measured",
    "Moments",
    "Settings",
    "Survey",
    "measure_jobs",
    "moments",
    "survey_in_place",
    "survey_tensor",
]
