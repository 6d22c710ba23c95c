"""Where work runs: in threads here, or by the workers of a Dask scheduler on other machines."""

from __future__ import annotations

from planner.work.crew import Crew, Handed, Stop, Stopped, Threads
from planner.work.machines import Machines, open_crew
from planner.work.shared import Reference, Unseen, reference

__all__ = ["Crew", "Handed", "Machines", "Reference", "Stop", "Stopped", "Threads", "Unseen", "open_crew", "reference"]
