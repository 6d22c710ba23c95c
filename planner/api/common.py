"""Arguments that functions of the library share, and errors of the package `state` as ours."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import StateFileError, UsageError
from planner.sizes import parse_size
from state import StateError

if TYPE_CHECKING:
    from planner.gguf import Model

__all__ = [
    "Progress",
    "StrPath",
    "Texts",
    "check_choice",
    "check_number",
    "model_at",
    "paths",
    "several",
    "size_in_bytes",
    "state_errors",
]

StrPath = str | os.PathLike[str]
Texts = str | Iterable[str]
Progress = Callable[[str, float, float], None]  # what was done last, how much is done, of how much


@contextlib.contextmanager
def model_at(model: StrPath | Model) -> Iterator[Model]:
    """Open a model and close it at the end, unless it is open already."""
    from planner.gguf import Model, open_model

    if isinstance(model, Model):
        yield model
        return
    with open_model(Path(model)) as opened:
        yield opened


@contextlib.contextmanager
def state_errors() -> Iterator[None]:
    """Turn errors of the package `state`, which stands alone, into ours."""
    try:
        yield
    except StateError as error:
        raise StateFileError(error.problem, error.remedy) from error


def several(texts: Texts) -> list[str]:
    """Return the texts of an argument that is one or several."""
    return [texts] if isinstance(texts, str) else list(texts)


def paths(given: StrPath | Iterable[StrPath]) -> list[Path]:
    """Return the paths of an argument that is one or several."""
    return [Path(given)] if isinstance(given, str | os.PathLike) else list(map(Path, given))


def size_in_bytes(size: str | int | None) -> int | None:
    """Return the bytes of a size. Raises UsageError for a text that is none."""
    return parse_size(size) if isinstance(size, str) else size


def check_choice(name: str, value: str | None, choices: Collection[str]) -> None:
    """Raise UsageError for a value that is not among the choices; None is."""
    if value is not None and value not in choices:
        raise UsageError(f"{name}: {value!r} is not known.", f"Give one of: {', '.join(choices)}.")


def check_number(name: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Raise UsageError for a number outside of its range; None is inside."""
    if value is not None and not least <= value <= most:
        upper = "" if most == math.inf else f" and at most {most:g}"
        raise UsageError(f"{name}: {value!r} is out of range.", f"Give at least {least:g}{upper}.")
