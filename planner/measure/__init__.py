"""How wrong every tensor is in every format: sampled rows, ggml's kernels, the imatrix-weighted error."""

from __future__ import annotations

from planner.measure.loop import Job, Measured, Settings, measure_jobs, survey_blocks
from planner.measure.metric import METRIC_VERSION, Estimate
from planner.measure.moments import Moments, moments
from planner.measure.survey import Survey, survey_tensor

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
    "survey_blocks",
    "survey_tensor",
]
