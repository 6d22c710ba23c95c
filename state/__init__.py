"""The resumable state of a plan: one SQLite file with a model's inventory and everything measured of it.

It knows nothing of model files or of solving. `Store` is the way in; the rest are records and errors.
"""

from __future__ import annotations

from state.errors import (
    StateCorrupt,
    StateError,
    StateForeign,
    StateFull,
    StateLocked,
    StateMissing,
    StateNewer,
    StateReadOnly,
)
from state.records import (
    COVARIANCE,
    HEADLESS,
    LONGEST_NAME,
    Energies,
    Inventory,
    Measurement,
    Pass,
    Summary,
    TensorRecord,
)
from state.store import Store

__all__ = [
    "COVARIANCE",
    "HEADLESS",
    "LONGEST_NAME",
    "Energies",
    "Inventory",
    "Measurement",
    "Pass",
    "StateCorrupt",
    "StateError",
    "StateForeign",
    "StateFull",
    "StateLocked",
    "StateMissing",
    "StateNewer",
    "StateReadOnly",
    "Store",
    "Summary",
    "TensorRecord",
]
