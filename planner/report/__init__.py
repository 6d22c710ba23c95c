"""What people look at: tables."""

from __future__ import annotations

from planner.report.tables import role_table

__all__ = ["role_table"]
