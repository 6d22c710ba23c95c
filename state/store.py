"""The state file: open, read, add. See `Store`."""

from __future__ import annotations

import contextlib
import gc
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from state.connection import (
    bounded_rows,
    check_plain_file,
    file_bytes,
    open_for_reading,
    open_for_writing,
    transaction,
)
from state.errors import StateError, StateForeign, StateReadOnly, corrupt, translated
from state.lock import WriterLock
from state.records import Energies, Inventory, Measurement, Pass, Summary
from state.rows import (
    ENERGIES,
    ERRORS,
    MEASUREMENT,
    MODEL,
    PASS,
    TENSOR,
    Table,
    inventory_from_rows,
)

__all__ = ["Store"]

R = TypeVar("R")
_KEYS_A_QUERY = 500  # SQLite takes at least 999 parameters


class Store:
    """One open state file; a context manager. Made by `Store.open`.

    Everything written is durable when the method returns. Every method raises a `StateError` and nothing else when
    the file or the disk is at fault. For use by one thread.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: WriterLock | None) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool = False, read_only: bool = False) -> Self:
        """Open the state file at `path`, made first with `create` where there is none.

        One process at a time may have it open for writing (`StateLocked` at once for the others); any number may
        read it meanwhile with `read_only`. That writes nothing, so a read-only disk will do (except after a crash in
        the middle of a commit, which whoever opens the file next has to undo). A file of an older schema is
        migrated, in memory when `read_only`.

        Raises `StateMissing`, `StateForeign`, `StateNewer`, `StateCorrupt`, `StateLocked`, `StateFull`,
        `StateReadOnly`, or `StateError` for what is none of these.
        """
        check_plain_file(Path(path), may_be_missing=create and not read_only)
        where = _resolved(path)
        if read_only:
            return cls(where, open_for_reading(where), None)
        lock = WriterLock(where)
        try:
            return cls(where, open_for_writing(where, create=create), lock)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Close the file and let others write to it; a second call does nothing."""
        self._connection.close()
        if self._lock:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The model

    def inventory(self) -> Inventory | None:
        """Return the model that the state belongs to, or None before `set_inventory`."""
        with self._reading("the model's inventory"):
            models = list(self._rows(MODEL))
            tensors = list(self._rows(TENSOR, order="position"))
            return inventory_from_rows(models[0], tensors) if models else None

    def set_inventory(self, inventory: Inventory) -> None:
        """Record the model, and the imatrix, that the state belongs to.

        Another model than before is refused (`StateForeign`). The same model with another imatrix is fine: all
        measurements stay, since each is valid for its key; only `select` has to be called again.
        """
        before = self.inventory()
        if before == inventory:
            return
        if before and before.model_digest != inventory.model_digest:
            raise StateForeign(
                f"{self.path} is the state of another model: it belongs to {before.model_name} "
                f"({before.model_digest[:12]}), not to {inventory.model_name} ({inventory.model_digest[:12]}).",
                "Use another state file for this model, or move this one away.",
            )
        with self._writing() as connection:
            connection.execute("DELETE FROM model")
            connection.execute("DELETE FROM tensor")
            connection.execute(MODEL.insert, MODEL.row(inventory))
            connection.executemany(TENSOR.insert, map(TENSOR.row, inventory.tensors))
            if before and before.imatrix_digest != inventory.imatrix_digest:
                _unselect(connection)

    # Measurements

    def measurements(self, keys: Iterable[str] | None = None, *, selected: bool = False) -> dict[str, Measurement]:
        """Return measurements by key, in the order in which they were added: all, those of `keys` that exist, or those
        that the last `select` named."""
        with self._reading("a measurement"), _no_collecting():
            return {record.key: record for record in self._records(MEASUREMENT, keys, selected)}

    def errors(self) -> list[tuple[str, str, float, float, float]]:
        """Return tensor, format, `err_var`, `err_mean` and `err_massive` of the measurements that the last `select`
        named, in the order in which they were added: what a plan needs, in half the time of all that is known."""
        query = f"SELECT {', '.join(ERRORS)} FROM {MEASUREMENT.name} WHERE selected = 1 ORDER BY id"
        with self._reading("a measurement"):
            chunks = bounded_rows(self._connection, self.path, query)
            for rows in chunks:
                MEASUREMENT.check(rows, ERRORS)
            return list(chain.from_iterable(chunks))

    def add(self, measurements: Iterable[Measurement], energies: Iterable[Energies] = ()) -> None:
        """Add all of them or, on an error, none.

        What is there already with the same value is left alone (`kernel_seconds` and `made_with` are no part of the
        value). With another value it is an error: the key does not cover all that the value depends on. Raises
        `ValueError` for a measurement that is not sound, such as one with NaN.
        """
        with self._writing() as connection:
            _put(connection, self.path, MEASUREMENT, measurements)
            _put(connection, self.path, ENERGIES, energies)

    def select(self, keys: Iterable[str]) -> None:
        """Name the finished set: all measurements and energies, and no others, that belong to the present model and
        imatrix under the present settings. With it a plan can be made without the model, whose rows the keys come
        from. Unknown keys are an error."""
        wanted = list(dict.fromkeys(keys))
        with self._writing() as connection:
            _unselect(connection)
            for key in wanted:
                rows = (
                    connection.execute(f"UPDATE {table} SET selected = 1 WHERE key = ?", (key,)).rowcount
                    for table in ("measurement", "energies")
                )
                if sum(rows) < 1:
                    raise StateError(f"{self.path} holds nothing under the key {key}.", "Add it before selecting it.")

    # Structure and passes

    def energies(self, keys: Iterable[str] | None = None, *, selected: bool = False) -> dict[str, Energies]:
        """Return structure facts by key; the arguments are those of `measurements`."""
        with self._reading("the energies of a tensor"):
            return {record.key: record for record in self._records(ENERGIES, keys, selected)}

    def add_energies(self, energies: Iterable[Energies]) -> None:
        """Add all of them or none, as `add` does."""
        self.add((), energies)

    def passes(self, subject: str | None = None) -> tuple[Pass, ...]:
        """Return all passes, or those about one subject, in the order in which they were added."""
        with self._reading("a pass"):
            return tuple(record for record in self._records(PASS) if subject in (None, record.subject))

    def add_passes(self, passes: Iterable[Pass]) -> None:
        """Add all of them or none; another value under the same key is an error."""
        with self._writing() as connection:
            _put(connection, self.path, PASS, passes)

    def summary(self) -> Summary:
        """Count what the file holds."""
        with self._reading("the header"):
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            tensors = self.inventory()
            records = self.measurements().values()
            by_tensor: dict[str, Counter[str]] = {}
            for record in records:
                by_tensor.setdefault(record.tensor, Counter())[record.format] += 1
            return Summary(
                schema_version=version,
                file_bytes=file_bytes(self._connection),
                tensors=len(tensors.tensors) if tensors else 0,
                measurements=len(records),
                selected=len(self.measurements(selected=True)),
                energies=len(self.energies()),
                passes=len(self.passes()),
                by_tensor={tensor: dict(formats) for tensor, formats in by_tensor.items()},
                made_with=dict(Counter(record.made_with for record in records)),
                kernel_seconds=sum(record.kernel_seconds for record in records),
            )

    # How they do it

    def _rows(self, table: Table[Any], order: str = "id") -> Iterator[tuple[Any, ...]]:
        query = f"SELECT {table.columns} FROM {table.name} ORDER BY {order}"
        return chain.from_iterable(bounded_rows(self._connection, self.path, query))

    def _records(self, table: Table[R], keys: Iterable[str] | None = None, selected: bool = False) -> Iterator[R]:
        for rows in self._chunks(table, keys, selected):
            yield from table.records(rows)

    def _chunks(self, table: Table[Any], keys: Iterable[str] | None, selected: bool) -> Iterator[list[tuple[Any, ...]]]:
        query = f"SELECT {table.columns} FROM {table.name} WHERE {'selected = 1' if selected else '1'}"
        if keys is None:
            yield from bounded_rows(self._connection, self.path, f"{query} ORDER BY id")
            return
        wanted = iter(keys)
        while some := tuple(islice(wanted, _KEYS_A_QUERY)):
            marks = ", ".join("?" * len(some))
            yield from bounded_rows(self._connection, self.path, f"{query} AND key IN ({marks})", some)

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Read inside one consistent view of the file; raise `StateCorrupt` for what is not as it was written."""
        try:
            with translated(self.path), self._view():
                yield
        except (ValueError, TypeError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
            raise corrupt(self.path, f"{what} in it is not what it should be") from error

    @contextlib.contextmanager
    def _view(self) -> Iterator[None]:
        """Let the block's queries see the file as it was at the first of them, whatever is written meanwhile."""
        if self._connection.in_transaction:  # a view inside a view is the same view
            yield
            return
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Write in one transaction, on disk when the block ends."""
        if self._lock is None:
            raise StateReadOnly(f"The state file {self.path} was opened for reading only.", "Open it for writing.")
        with translated(self.path), transaction(self._connection):
            yield self._connection


def _put(connection: sqlite3.Connection, path: Path, table: Table[R], records: Iterable[R]) -> None:
    """Insert what is not there; raise a `StateError` where something else is there."""
    same = " AND ".join(f"{name} = ?" for name in table.identity)
    found = f"SELECT {table.columns} FROM {table.name} WHERE {same}"
    for record in records:
        row = table.row(record)
        if connection.execute(table.insert, row).rowcount:
            continue
        identity = tuple(getattr(record, name) for name in table.identity)
        try:
            (old,) = table.records([connection.execute(found, identity).fetchone()])
        except (ValueError, TypeError, RecursionError) as error:  # TypeError: only the index has it
            raise corrupt(path, f"the {table.name} under {' '.join(identity)} is not what it should be") from error
        if differences := table.differences(old, record):
            raise StateError(
                f"{path} already holds another {table.name} under {' '.join(identity)}: {', '.join(differences)}.",
                "The key does not cover all that the value depends on: please report this. "
                "To go on, move the state file away and measure again.",
            )


def _unselect(connection: sqlite3.Connection) -> None:
    for table in (MEASUREMENT, ENERGIES):
        connection.execute(f"UPDATE {table.name} SET selected = 0 WHERE selected")


def _resolved(path: str | os.PathLike[str]) -> Path:
    """Return the path without symbolic links: one file has one lock and one journal, whatever it is called."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise StateError(f"The state file {os.fspath(path)!r} cannot be reached ({error}).", "Name another.") from error


@contextlib.contextmanager
def _no_collecting() -> Iterator[None]:
    """Switch the garbage collector off: many new objects, and looking for cycles takes as long as making them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
