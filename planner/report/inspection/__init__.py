"""The output of `planner inspect`: facts of a file as plain records (also for JSON), and their text."""

from __future__ import annotations

from planner.report.inspection.imatrix import (
    ImatrixFacts,
    imatrix_facts,
    imatrix_summary,
    imatrix_text,
    unseen_text,
)
from planner.report.inspection.model import ModelFacts, model_facts, model_text
from planner.report.inspection.recipe import RecipeFacts, recipe_facts, recipe_text
from planner.report.inspection.state import StateFacts, state_facts, state_text

__all__ = [
    "ImatrixFacts",
    "ModelFacts",
    "RecipeFacts",
    "StateFacts",
    "imatrix_facts",
    "imatrix_summary",
    "imatrix_text",
    "model_facts",
    "model_text",
    "recipe_facts",
    "recipe_text",
    "state_facts",
    "state_text",
    "unseen_text",
]
