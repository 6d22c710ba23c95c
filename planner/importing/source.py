"""Identification of a file to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from planner.dialects.imports import are_rules, guess_dialect
from planner.errors import RecipeError, UsageError
from planner.inputs import kinds
from planner.inputs.reading import Given, look

__all__ = ["Source", "identify"]


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was looked at, and its `dialect`; None for a GGUF, a recipe, and measurements, which `given.kind`
    tells apart."""

    given: Given
    dialect: str | None

    @property
    def where(self) -> str:
        """Path of the file, for messages."""
        return str(self.given.path)

    @property
    def has_measurements(self) -> bool:
        """True if the file holds measurements rather than a choice of formats."""
        return self.given.kind in (kinds.BPW_STATE, kinds.KLD_TABLE)

    def text(self) -> str:
        """Return the contents as text. Raises RecipeError for anything else."""
        return self.given.text(RecipeError, "a recipe, rules or a table", lenient=True)


def identify(file: str | Path, dialect: str | None = None) -> Source:
    """Look at a file and determine its dialect, unless `dialect` gives it. A `file` that does not exist may itself be
    rules.

    Raises RecipeError for a file that cannot be read, UsageError for one that cannot be identified.
    """
    path = Path(file)
    if not _exists(path) and (dialect == "ik_llama" or (dialect is None and "=" in str(file))):
        return _rules(str(file))
    given = look(path, RecipeError)
    in_no_dialect = (kinds.GGUF, kinds.BPW_STATE, kinds.KLD_TABLE, *((kinds.RECIPE,) if dialect is None else ()))
    if given.kind in in_no_dialect:
        return Source(given, None)
    text = Source(given, dialect).text()
    return Source(given, dialect or guess_dialect(path, text))


def _rules(text: str) -> Source:
    if not are_rules(text):
        raise UsageError(
            f"{text} does not exist.", "Check the path. For rules in its place: PATTERN=TYPE,PATTERN=TYPE,..."
        )
    data = text.encode("utf-8", "surrogateescape")
    return Source(Given(Path("the rules given"), kinds.TEXT, data, whole=True, piped=False), "ik_llama")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # rules are too long for a name, or hold what no name may
        return False
