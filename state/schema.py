"""Tables of the current schema, and the layout by which a file is checked to have exactly those."""

from __future__ import annotations

import sqlite3

__all__ = ["APPLICATION_ID", "VERSION", "create", "layout"]

APPLICATION_ID = 0x504C4E52  # "PLNR", in the header of every state file
VERSION = 3  # user_version in the header; a change here needs a step in migrations.py and a frozen file in the tests

TABLES = """
CREATE TABLE model (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    model_name TEXT NOT NULL,
    architecture TEXT NOT NULL,
    model_digest TEXT NOT NULL,
    model_path TEXT NOT NULL,
    header_bytes INTEGER NOT NULL,
    alignment INTEGER NOT NULL,
    imatrix_name TEXT,
    imatrix_digest TEXT,
    has_means INTEGER NOT NULL,
    metadata TEXT NOT NULL -- JSON object
);
CREATE TABLE tensor (
    position INTEGER PRIMARY KEY, -- order in the model
    name TEXT NOT NULL UNIQUE,
    shape TEXT NOT NULL, -- JSON array
    source_format TEXT NOT NULL,
    elements INTEGER NOT NULL,
    nbytes INTEGER NOT NULL,
    row_length INTEGER NOT NULL,
    left_alone TEXT
);
CREATE TABLE measurement (
    id INTEGER PRIMARY KEY, -- order of arrival
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
    selected INTEGER NOT NULL DEFAULT 0 -- belongs to the finished set of the present model and imatrix
);
CREATE TABLE energies (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    tensor TEXT NOT NULL,
    content_digest TEXT NOT NULL, -- of the tensor's content
    gaps_version INTEGER, -- of the rule that filled the zeros of its imatrix entry; NULL where it has none
    "values" TEXT NOT NULL, -- JSON object
    selected INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE pass (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    subject TEXT NOT NULL,
    label TEXT NOT NULL,
    formats TEXT NOT NULL, -- JSON object
    errors TEXT NOT NULL, -- JSON object of arrays
    kld REAL NOT NULL,
    stderr REAL NOT NULL,
    tokens INTEGER NOT NULL,
    seconds REAL NOT NULL
);
"""


def create(connection: sqlite3.Connection) -> None:
    """Make an empty state of the current schema, inside the caller's transaction."""
    for statement in TABLES.split(";\n"):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def layout(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    """Return everything in the schema as comparable rows: objects, then the columns of every table.

    Compared with the layout of a fresh file, it refuses views, triggers, virtual tables (root page 0) and computed
    columns, through which a hostile file could make a plain SELECT do anything. Reads at most 100 objects.
    """
    objects = connection.execute(
        "SELECT type, name, tbl_name, rootpage > 0 FROM sqlite_master ORDER BY type, name LIMIT 100"
    ).fetchall()
    rows: list[tuple[object, ...]] = list(objects)
    for kind, name, *_ in objects:
        if kind == "table":
            columns = connection.execute(
                'SELECT ?, name, type, "notnull", pk, hidden FROM pragma_table_xinfo(?) LIMIT 100', (name, name)
            )
            rows.extend(columns)
    return rows
