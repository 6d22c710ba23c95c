"""All dialects by name, and where each is implemented: a new one is a module and a line here.

Modules are imported when their dialect is used, so that the names cost `--help` nothing.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.errors import UsageError

if TYPE_CHECKING:
    from planner.dialects.dialect import Dialect

__all__ = ["DIALECTS", "Entry", "load_dialect", "readable", "writable"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A dialect's name, as `--to` and `--from` take it, and the `module` that has it as DIALECT.

    `writes`: recipes can be exported to it; `reads`: its files can be imported.
    """

    name: str
    module: str
    writes: bool = True
    reads: bool = True


# In the order of the help. To guess what a file is, the last is asked first: what almost any text could be comes early
DIALECTS: tuple[Entry, ...] = (
    Entry("llama-quantize", "planner.dialects.llama_quantize"),
    Entry("ik_llama", "planner.dialects.ik_llama"),
    Entry("gguf-tool-suite", "planner.dialects.tool_suite"),
    Entry("auto-round", "planner.dialects.auto_round"),
    Entry("mlx-lm", "planner.dialects.mlx_lm"),
    Entry("rco", "planner.dialects.rco"),
    Entry("evopress", "planner.dialects.evopress"),
    Entry("csv", "planner.dialects.table"),
)


def writable() -> list[str]:
    """Return the dialects that a recipe can be exported to."""
    return [entry.name for entry in DIALECTS if entry.writes]


def readable() -> list[str]:
    """Return the dialects that can be imported."""
    return [entry.name for entry in DIALECTS if entry.reads]


def load_dialect(name: str) -> Dialect:
    """Import a dialect's module and return its DIALECT. Raises UsageError for an unknown name."""
    for entry in DIALECTS:
        if entry.name == name:
            dialect: Dialect = importlib.import_module(entry.module).DIALECT
            return dialect
    raise UsageError(f"There is no dialect {name!r}.", f"There are {', '.join(entry.name for entry in DIALECTS)}.")
