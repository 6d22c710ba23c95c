"""Between records and rows of the tables: which fields are JSON there, and a fast way back for measurements."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from state.records import LONGEST_NAME, Energies, Inventory, Measurement, Pass, Sensitivity, TensorRecord

__all__ = [
    "ENERGIES",
    "MEASUREMENT",
    "MODEL",
    "PASS",
    "SENSITIVITY",
    "TENSOR",
    "Table",
    "inventory_from_rows",
    "measurements_from_rows",
]

R = TypeVar("R", bound=BaseModel)
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
        """The names of all columns, as SQL."""
        return ", ".join(f'"{name}"' for name in self.fields)  # quoted: "values" is a word of SQL

    @property
    def insert(self) -> str:
        """The statement that adds a row unless one of the same identity is there."""
        marks = ", ".join("?" * len(self.fields))
        return f"INSERT INTO {self.name} ({self.columns}) VALUES ({marks}) ON CONFLICT DO NOTHING"

    def row(self, record: R) -> tuple[Any, ...]:
        """The record as a row."""
        values = ((name, getattr(record, name)) for name in self.fields)
        return tuple(json.dumps(value) if name in _JSON else value for name, value in values)

    def values(self, row: Iterable[Any]) -> dict[str, Any]:
        """The fields of a row, not validated. Raises `ValueError` or `TypeError` for JSON that cannot be parsed."""
        values = zip(self.fields, row, strict=True)
        return {name: json.loads(value) if name in _JSON else value for name, value in values}

    def differences(self, old: R, new: R) -> list[str]:
        """What a second record under the same identity contradicts, for a message."""
        value = (name for name in self.fields if name not in self.aside)
        pairs = ((name, getattr(old, name), getattr(new, name)) for name in value)
        return [f"{name} {before!r} → {after!r}" for name, before, after in pairs if before != after]


MODEL = Table("model", Inventory, tuple(name for name in Inventory.model_fields if name != "tensors"))
TENSOR = Table("tensor", TensorRecord, tuple(TensorRecord.model_fields), ("name",))
MEASUREMENT = Table(
    "measurement",
    Measurement,
    tuple(Measurement.model_fields),
    ("key",),
    frozenset({"kernel_seconds", "made_with"}),
)
ENERGIES = Table("energies", Energies, tuple(Energies.model_fields), ("key",), frozenset({"notes"}))
PASS = Table("pass", Pass, tuple(Pass.model_fields), ("key",), frozenset({"label", "seconds"}))
SENSITIVITY = Table(
    "sensitivity", Sensitivity, tuple(Sensitivity.model_fields), ("tensor", "source", "component", "key")
)


def inventory_from_rows(model: Sequence[Any], tensors: Iterable[Sequence[Any]]) -> Inventory:
    """The inventory; raises `ValueError` or `TypeError` when the rows are not sound."""
    values = MODEL.values(model)
    records = map(TENSOR.values, tensors)
    return Inventory.model_validate(
        values
        | {
            "has_means": {0: False, 1: True}.get(values["has_means"]),
            "tensors": tuple(record | {"shape": tuple(record["shape"])} for record in records),
        }
    )


_ALL_FIELDS = set(Measurement.model_fields)  # one for all: a frozen record never changes it
_KINDS: Mapping[str, object] = {name: field.annotation for name, field in Measurement.model_fields.items()}


def measurements_from_rows(rows: Sequence[tuple[Any, ...]]) -> list[Measurement]:
    """Records of rows in the order of the fields, checked like `Measurement(...)` but a column at a time.

    Validating 22,000 rows one by one takes longer than all else that happens before a plan is solved.
    Raises `ValueError` (pydantic's) about the first row that is not sound.
    """
    if not all(map(_sound, _KINDS, _KINDS.values(), zip(*rows, strict=True))):
        return [Measurement(**dict(zip(_KINDS, row, strict=True))) for row in rows]
    # What `Measurement.model_construct` does, in a tenth of the time. The fields in the order of the record.
    make, assign, records = Measurement.__new__, object.__setattr__, []
    for key, tensor, fmt, var, mean, massive, stderr, stderr_massive, some, total, seconds, made_with in rows:
        values = {
            "key": key,
            "tensor": tensor,
            "format": fmt,
            "err_var": var,
            "err_mean": mean,
            "err_massive": massive,
            "stderr": stderr,
            "stderr_massive": stderr_massive,
            "rows": some,
            "rows_total": total,
            "kernel_seconds": seconds,
            "made_with": made_with,
        }
        record = make(Measurement)
        assign(record, "__dict__", values)
        assign(record, "__pydantic_fields_set__", _ALL_FIELDS)
        assign(record, "__pydantic_extra__", None)
        assign(record, "__pydantic_private__", None)
        records.append(record)
    return records


def _sound(name: str, kind: object, column: tuple[Any, ...]) -> bool:
    """Whether a whole column is certainly fine; a doubt sends the rows to the full check."""
    if set(map(type, column)) != {kind}:
        return False
    if kind is float:
        return all(map(isfinite, column)) and min(column) >= 0
    if kind is int:
        return bool(min(column) >= 0)
    lengths = set(map(len, column))
    if name == "key":
        return min(lengths) >= 8 and max(lengths) <= 128 and not _other_than_hex(column)
    return max(lengths) <= LONGEST_NAME


def _other_than_hex(column: tuple[str, ...]) -> bytes:
    return "".join(column).encode("utf-8", "replace").translate(None, b"0123456789abcdef")
