"""Pages of HTML: a model's whole problem, to be explored in a browser without a network."""

from __future__ import annotations

from planner.report.page.data import Start, page_data
from planner.report.page.page import page_of, report_page

__all__ = ["Start", "page_data", "page_of", "report_page"]
