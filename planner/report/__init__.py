"""What people look at: tables."""

from __future__ import annotations

from planner.report.tables import explanation, limit_line, role_table

__all__ = ["explanation", "limit_line", "role_table"]
