"""Import of other people's files: their choices of formats as recipes, their measurements into the state."""

from __future__ import annotations

from planner.importing.basis import Basis, open_basis
from planner.importing.measurements import import_measurements
from planner.importing.recipes import import_recipe
from planner.importing.source import Source, identify

__all__ = ["Basis", "Source", "identify", "import_measurements", "import_recipe", "open_basis"]
