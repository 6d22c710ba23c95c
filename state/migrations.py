"""How a file of an older schema becomes one of the current schema.

`STEPS[i]` takes a file from version `i + 1` to `i + 2`. It runs inside one transaction with all the others, so a
crash leaves the file as it was. A step is never changed once it was released: `tests/state/assets` has one frozen
file of every version, and the tests open them all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

__all__ = ["STEPS", "Step", "migrate"]

Step = Callable[[sqlite3.Connection], None]

_PASS_OF_VERSION_2 = """CREATE TABLE pass (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    subject TEXT NOT NULL,
    label TEXT NOT NULL,
    formats TEXT NOT NULL,
    errors TEXT NOT NULL,
    kld REAL NOT NULL,
    stderr REAL NOT NULL,
    tokens INTEGER NOT NULL,
    seconds REAL NOT NULL
)"""


def _add_passes(connection: sqlite3.Connection) -> None:
    connection.execute(_PASS_OF_VERSION_2)


STEPS: Sequence[Step] = (_add_passes,)  # version 1 is the first


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a file from `version` to the current schema, inside the caller's transaction."""
    for number, step in enumerate(STEPS[version - 1 :], start=version + 1):
        step(connection)
        connection.execute(f"PRAGMA user_version = {number}")
