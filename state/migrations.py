"""Migrate a file of an older schema to the current one.

`STEPS[i]` takes a file from version `i + 1` to `i + 2`. It runs inside one transaction with all the others, so a
crash leaves the file as it was. A step is never changed once it was released: `tests/state/assets` has one frozen
file of every version, and the tests open them all.

Steps insert and never replace: pages of a damaged file that refer to each other in circles yield a row twice, and end
the migration with SQLite's error.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Sequence

__all__ = ["STEPS", "Step", "migrate"]

Step = Callable[[sqlite3.Connection], None]

_DIGEST = re.compile("[0-9a-f]{8,128}")

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

_MEASUREMENT_OF_VERSION_3 = """CREATE TABLE measurement (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    tensor TEXT NOT NULL,
    format TEXT NOT NULL,
    err_var REAL NOT NULL,
    err_mean REAL NOT NULL,
    err_massive REAL NOT NULL,
    stderr REAL NOT NULL,
    stderr_massive REAL NOT NULL,
    rows INTEGER NOT NULL,
    kernel_seconds REAL NOT NULL,
    made_with TEXT NOT NULL,
    selected INTEGER NOT NULL DEFAULT 0
)"""

_ENERGIES_OF_VERSION_3 = """CREATE TABLE energies (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    tensor TEXT NOT NULL,
    content_digest TEXT NOT NULL,
    gaps_version INTEGER,
    "values" TEXT NOT NULL,
    selected INTEGER NOT NULL DEFAULT 0
)"""


def _add_passes(connection: sqlite3.Connection) -> None:
    connection.execute(_PASS_OF_VERSION_2)


def _content_out_of_notes(connection: sqlite3.Connection) -> None:
    """Move the content digest and the version of gaps to columns of their own; drop what nothing reads."""
    connection.execute("DROP TABLE sensitivity")

    # DROP COLUMN would do, but only since SQLite 3.35
    connection.execute("ALTER TABLE measurement RENAME TO measurement_2")
    connection.execute(_MEASUREMENT_OF_VERSION_3)
    kept = (
        "id, key, tensor, format, err_var, err_mean, err_massive, stderr, stderr_massive, rows, kernel_seconds, "
        "made_with, selected"
    )
    connection.execute(f"INSERT INTO measurement ({kept}) SELECT {kept} FROM measurement_2")
    connection.execute("DROP TABLE measurement_2")

    connection.execute("ALTER TABLE energies RENAME TO energies_2")
    connection.execute(_ENERGIES_OF_VERSION_3)
    for number, key, tensor, notes, values, selected in connection.execute(
        'SELECT id, key, tensor, notes, "values", selected FROM energies_2'
    ):
        row = (number, key, tensor, *_content_and_gaps(notes), values, selected)
        connection.execute("INSERT INTO energies VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    connection.execute("DROP TABLE energies_2")


def _content_and_gaps(notes: object) -> tuple[str, int | None]:
    """Split notes of version 2: `{"content": "…"}`, with `"gaps": 1` where the imatrix entry has zeros."""
    try:
        found = json.loads(notes)  # type: ignore[arg-type]
        content, gaps = found["content"], found.get("gaps")
        if _DIGEST.fullmatch(content) and (gaps is None or (type(gaps) is int and 0 <= gaps < 2**31)):
            return content, gaps
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError("a tensor's notes in it are not what they should be")


STEPS: Sequence[Step] = (_add_passes, _content_out_of_notes)  # version 1 is the first


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a file from `version` to the current schema, inside the caller's transaction.

    Raises ValueError for what no version wrote, and SQLite's errors.
    """
    for number, step in enumerate(STEPS[version - 1 :], start=version + 1):
        step(connection)
        connection.execute(f"PRAGMA user_version = {number}")
