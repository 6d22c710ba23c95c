"""Results as text, JSON facts and tables."""

from __future__ import annotations

from planner.report.memory import memory_lines
from planner.report.tables import explanation, limit_line, next_step, role_table, size_line

__all__ = ["explanation", "limit_line", "memory_lines", "next_step", "role_table", "size_line"]
