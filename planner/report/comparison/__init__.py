"""Comparisons of many files of one model: as tables, as CSV, as facts for JSON, and as a page."""

from __future__ import annotations

from planner.report.comparison.page import comparison_page
from planner.report.comparison.tables import comparison_csv, comparison_facts, comparison_text

__all__ = ["comparison_csv", "comparison_facts", "comparison_page", "comparison_text"]
