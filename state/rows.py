"""Convert between records and rows of the tables, where some fields are JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Generic, TypeVar, get_type_hints

from state.records import LONGEST_NAME, Energies, Inventory, Measurement, Pass, TensorRecord

__all__ = [
    "ENERGIES",
    "ERRORS",
    "MEASUREMENT",
    "MODEL",
    "PASS",
    "TENSOR",
    "Table",
    "inventory_from_rows",
]

R = TypeVar("R")
_JSON = {"shape", "metadata", "values", "formats", "errors"}


@dataclass(frozen=True)
class Table(Generic[R]):
    """A table whose columns are the fields of a record.

    `identity` are the fields under which a record is found again; `aside` those that say how it came about and are
    no part of its value.
    """

    name: str
    record: type[R]
    fields: tuple[str, ...]
    identity: tuple[str, ...] = ()
    aside: frozenset[str] = frozenset()

    @property
    def columns(self) -> str:
        """Names of all columns, as SQL."""
        return ", ".join(f'"{name}"' for name in self.fields)  # quoted: "values" is a word of SQL

    @property
    def insert(self) -> str:
        """Statement that adds a row unless one of the same identity is there."""
        marks = ", ".join("?" * len(self.fields))
        return f"INSERT INTO {self.name} ({self.columns}) VALUES ({marks}) ON CONFLICT DO NOTHING"

    def row(self, record: R) -> tuple[Any, ...]:
        """Return the record as a row."""
        values = ((name, getattr(record, name)) for name in self.fields)
        return tuple(json.dumps(value) if name in _JSON else value for name, value in values)

    def values(self, row: Iterable[Any]) -> dict[str, Any]:
        """Return the fields of a row, not validated. Raises `ValueError` or `TypeError` for unreadable JSON."""
        values = zip(self.fields, row, strict=True)
        return {name: json.loads(value) if name in _JSON else value for name, value in values}

    def records(self, rows: Sequence[Sequence[Any]]) -> list[R]:
        """Make records of rows. Raises `ValueError` or `TypeError` where one is not sound."""
        return [self.record(**self.values(row)) for row in rows]

    def differences(self, old: R, new: R) -> list[str]:
        """Return what a second record under the same identity contradicts, for a message."""
        value = (name for name in self.fields if name not in self.aside)
        pairs = ((name, getattr(old, name), getattr(new, name)) for name in value)
        return [f"{name} {before!r} → {after!r}" for name, before, after in pairs if before != after]


class _Measurements(Table[Measurement]):
    """The table of measurements, checked a column at a time: to validate 22,000 rows one by one takes longer than all
    else that happens before a plan is solved."""

    def row(self, record: Measurement) -> tuple[Any, ...]:
        """Return the record as a row. Raises `ValueError` where it is not sound."""
        row = super().row(record)
        self.check([row])
        return row

    def records(self, rows: Sequence[Sequence[Any]]) -> list[Measurement]:
        """Make records of rows. Raises `ValueError` where one is not sound."""
        self.check(rows)
        return list(map(Measurement._make, rows))

    def check(self, rows: Sequence[Sequence[Any]], fields: Sequence[str] | None = None) -> None:
        """Raise `ValueError` unless all of the rows, at least one, have sound values in these fields (default: all)."""
        for name, column in zip(fields or self.fields, zip(*rows, strict=True), strict=True):
            if not _sound(name, _KINDS[name], column):
                raise ValueError(f"no measurement has such a {name}")


ERRORS = ("tensor", "format", "err_var", "err_mean", "err_massive")
"""Fields of a measurement that its errors are found by, and these."""

_KINDS: dict[str, type] = get_type_hints(Measurement)


def _sound(name: str, kind: type, column: tuple[Any, ...]) -> bool:
    if set(map(type, column)) != {kind}:
        return False
    if kind is float:
        return all(map(isfinite, column)) and min(column) >= 0
    if kind is int:
        return bool(min(column) >= 0 and max(column) < 2**63)  # the integers that SQLite holds
    lengths = set(map(len, column))
    if name == "key":
        return min(lengths) >= 8 and max(lengths) <= 128 and not _other_than_hex(column)
    return max(lengths) <= LONGEST_NAME


def _other_than_hex(column: tuple[str, ...]) -> bytes:
    return "".join(column).encode("utf-8", "replace").translate(None, b"0123456789abcdef")


MODEL = Table("model", Inventory, tuple(name for name in Inventory.model_fields if name != "tensors"))
TENSOR = Table("tensor", TensorRecord, tuple(TensorRecord.model_fields), ("name",))
MEASUREMENT = _Measurements(
    "measurement",
    Measurement,
    tuple(_KINDS),
    ("key",),
    frozenset({"kernel_seconds", "made_with"}),
)
ENERGIES = Table("energies", Energies, tuple(Energies.model_fields), ("key",))
PASS = Table("pass", Pass, tuple(Pass.model_fields), ("key",), frozenset({"label", "seconds"}))


def inventory_from_rows(model: Sequence[Any], tensors: Iterable[Sequence[Any]]) -> Inventory:
    """Return the inventory. Raises `ValueError` or `TypeError` where the rows are not sound."""
    values = MODEL.values(model)
    records = [dict(zip(TENSOR.fields, row, strict=True)) for row in tensors]
    shapes = {text: tuple(json.loads(text)) for text in {record["shape"] for record in records}}  # few are different
    return Inventory.model_validate(
        values
        | {
            "has_means": {0: False, 1: True}.get(values["has_means"]),
            "tensors": tuple(record | {"shape": shapes[record["shape"]]} for record in records),
        }
    )
