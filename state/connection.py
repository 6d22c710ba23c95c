"""Open a state file: check it before anything in it is believed, and bound what is read from it.

Rollback journal (the default) rather than a write-ahead log: it works on network file systems and read-only disks,
leaves one file behind, and readers wait only for the moment of a commit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from state import schema
from state.errors import StateError, StateForeign, StateMissing, StateNewer, corrupt, from_os, translated
from state.migrations import migrate

__all__ = ["bounded_rows", "check_plain_file", "file_bytes", "open_for_reading", "open_for_writing", "transaction"]

PATIENCE = 10.0  # seconds to wait for a commit, or for a reader, of another process
LARGEST_RECORD = 2**18  # bytes; a row of ours has a few hundred
CHUNK = 256  # rows


def check_plain_file(path: Path, *, may_be_missing: bool) -> None:
    """Raise a `StateError` unless `path` is a plain file: opening a pipe or a device could wait forever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if may_be_missing:
            return
        raise StateMissing(
            f"There is no state file {path}.", "Measure the model first, or name its state file."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise StateError(f"The state file {path} cannot be reached ({error}).", "Name another file.") from error
    if not stat.S_ISREG(mode):
        raise StateForeign(f"{path} is not a file.", "Name a state file.")


def open_for_writing(path: Path, *, create: bool) -> sqlite3.Connection:
    """Connect to the file, which is made or migrated where needed. The caller holds the writer's lock."""
    if path.exists() and not os.access(path, os.W_OK):  # SQLite would quietly open it for reading
        raise from_os(PermissionError(errno.EACCES, "no permission to write"), path)
    connection = _connect(path, "rwc" if create else "rw")
    try:
        with translated(path):
            # FULL, and sync the folder too: then a commit survives power loss
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("PRAGMA fullfsync = ON")  # macOS's fsync alone does not reach the disk
            with transaction(connection):  # fails here, not hours later, when the file cannot be written
                if not _is_empty(connection):
                    _check_version(connection, path)
                    _migrate(connection, path)
                elif create:
                    schema.create(connection)
        _check_layout(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Connect without the right to write. An older schema is migrated in memory; the file stays as it is."""
    connection = _connect(path, "ro")
    try:
        with translated(path):
            connection = _recovered(connection, path)
            if not _is_empty(connection) and _check_version(connection, path) < schema.VERSION:
                on_disk, connection = connection, _tuned(sqlite3.connect(":memory:", isolation_level=None))
                with contextlib.closing(on_disk):
                    on_disk.backup(connection)
                with transaction(connection):
                    _migrate(connection, path)
        _check_layout(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # as_uri: in a name as it is, a "?" would begin options
    with translated(path):
        uri = f"{path.as_uri()}?mode={mode}"
        return _tuned(sqlite3.connect(uri, uri=True, timeout=PATIENCE, isolation_level=None))


def _tuned(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_RECORD)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def _recovered(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Undo a write that a crash cut short, as the first to open the file must, readers too."""
    try:
        _is_empty(connection)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise
        connection.close()
        with contextlib.closing(_connect(path, "rw")) as writable:
            _is_empty(writable)
        connection = _connect(path, "ro")
    return connection


def _is_empty(connection: sqlite3.Connection) -> bool:
    """Return whether nothing was ever committed: the file was just made, or its maker was killed."""
    return bool(connection.execute("SELECT NOT EXISTS (SELECT 1 FROM sqlite_master)").fetchone()[0])


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check_version(connection: sqlite3.Connection, path: Path) -> int:
    if connection.execute("PRAGMA application_id").fetchone()[0] != schema.APPLICATION_ID:
        raise StateForeign(f"{path} is a database of another program, not a state file.", "Name another file.")
    version = _version(connection)
    if version > schema.VERSION:
        raise StateNewer(
            f"The state file {path} was written by a newer version "
            f"(schema {version}; this one knows up to {schema.VERSION}).",
            "Upgrade with `pip install -U gguf-planner`, or measure into another state file.",
        )
    if version < 1:
        raise corrupt(path, f"its header names the schema {version}")
    return version


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    try:
        migrate(connection, _version(connection))
    except ValueError as error:
        raise corrupt(path, str(error)) from error


def _check_layout(connection: sqlite3.Connection, path: Path) -> None:
    with translated(path):
        if _is_empty(connection):
            raise StateMissing(
                f"The state file {path} is empty: the run that made it was stopped before it wrote anything.",
                "Measure the model first, or name another state file.",
            )
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
            schema.create(fresh)
            expected = schema.layout(fresh)
        if schema.layout(connection) != expected:
            raise corrupt(path, "its tables are not those of a state file")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit all of the block's writes or none; they are on disk when the block ends."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite undoes some failures, such as a full disk, by itself
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def file_bytes(connection: sqlite3.Connection) -> int:
    """Return the size of the database. SQLite itself refuses a file whose header promises more pages than it has."""
    pages, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return int(pages * size)


def _text_length(column: tuple[Any, ...]) -> int:
    kinds = set(map(type, column))
    if kinds == {str}:
        return sum(map(len, column))
    if kinds & {str, bytes}:
        return sum(len(value) for value in column if isinstance(value, str | bytes))
    return 0


def bounded_rows(
    connection: sqlite3.Connection, path: Path, query: str, parameters: tuple[object, ...] = ()
) -> list[list[tuple[Any, ...]]]:
    """Return the rows of a query, in lists of at most `CHUNK`.

    A sound file holds no more text than it has bytes. One whose pages refer to each other in circles can yield rows
    without end, so reading stops with `StateCorrupt` when it has spent more than the file's size.
    The query has ended when this returns: one still open somewhere would keep writers waiting.
    """
    left = file_bytes(connection)
    chunks = []
    with contextlib.closing(connection.execute(query, parameters)) as cursor:
        while rows := cursor.fetchmany(CHUNK):
            left -= len(rows) + sum(map(_text_length, zip(*rows, strict=True)))
            if left < 0:
                raise corrupt(path, "it yields more than it can hold")
            chunks.append(rows)
    return chunks
