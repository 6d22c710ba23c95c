"""A page on which every size of a model can be explored."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from planner.plan.findings import Findings
from planner.plan.request import PlanRequest
from planner.plan.target import Other
from planner.report.page.data import Start, page_data
from planner.report.pages import assembled

__all__ = ["page_of", "report_page"]

_SCRIPTS = ("solver", "problem", "files", "words", "chart", "map", "inspector", "facts", "memory", "explorer")


def report_page(
    findings: Findings,
    request: PlanRequest,
    start: Start,
    *,
    beside: Sequence[Other] = (),
    made_by: Sequence[str | Path] = (),
) -> str:
    """Return the page of a model's whole problem; arguments and errors as for `page_data`."""
    data = page_data(findings, request, start, beside=beside, made_by=made_by)
    return page_of(data, f"{findings.inventory.model_name}: every size")


def page_of(data: Mapping[str, object], title: str) -> str:
    """Return a page with data that it unpacks; the same data make the same page.

    Nothing in `data` is ever read as HTML: the script makes text of it alone.
    """
    packed = json.dumps(data, separators=(",", ":"))
    return assembled(__package__, [f"{name}.js" for name in _SCRIPTS], packed, title=html.escape(title))
