"""A page of one file: HTML, styles, script and data, and a policy that lets it load nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from planner.plan.findings import Findings
from planner.plan.request import PlanRequest
from planner.plan.target import Other
from planner.report.page.data import Start, page_data

__all__ = ["page_of", "report_page"]

_SCRIPTS = ("solver", "problem", "files", "words", "chart", "map", "inspector", "facts", "memory", "explorer")
_PLACE = re.compile(r"\{\{(\w+)\}\}")


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

    Nothing in `data` is ever read as HTML: in the page it is JSON without `<`, and the script makes text of it alone.
    """
    script = "\n".join(_read(f"{name}.js") for name in _SCRIPTS)
    style = _read("style.css")
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; base-uri 'none'; "
        "form-action 'none'"
    )
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"policy": policy, "title": html.escape(title), "style": style, "data": text, "script": script}
    return _PLACE.sub(lambda place: parts[place[1]], _read("page.html"))


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return the source expression of Content Security Policy for one inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
