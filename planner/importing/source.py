"""What a file that is to be imported is."""

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
    """A file that was looked at, and the `dialect` that it is of; None for a GGUF, a recipe, and measurements, which
    `given.kind` tells apart."""

    given: Given
    dialect: str | None

    @property
    def where(self) -> str:
        """Its path, for messages."""
        return str(self.given.path)

    @property
    def has_measurements(self) -> bool:
        """Whether it holds what was measured, rather than a choice."""
        return self.given.kind in (kinds.BPW_STATE, kinds.KLD_TABLE)

    def text(self) -> str:
        """Return it as text. Raises RecipeError where it is none."""
        return self.given.text(RecipeError, "a recipe, rules or a table", lenient=True)


def identify(file: str | Path, dialect: str | None = None) -> Source:
    """Look at a file and tell what it is, unless `dialect` does. A `file` that does not exist may be rules itself.

    Raises RecipeError for what cannot be read, UsageError for what cannot be told.
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
