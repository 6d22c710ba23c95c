"""What `planner evaluate` and `planner bench` find: facts of every file for JSON, and how they are put into words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.gguf import open_model
from planner.report.columns import shown, table, wrapped
from planner.sizes import format_size

if TYPE_CHECKING:
    from planner.llama.evaluate.bench import Speed
    from planner.llama.evaluate.statistics import Estimate, Statistics
    from planner.llama.evaluate.tasks import Score
    from planner.llama.evaluate.trajectories import Alike

__all__ = [
    "Evaluated",
    "ModelSize",
    "OnText",
    "Results",
    "TextRead",
    "evaluation_facts",
    "measured",
    "memory_notes",
    "model_size",
    "short_names",
    "speed_table",
    "statistics_facts",
]


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A model's files: bytes of all of them, and bits of tensor data per weight."""

    path: Path
    bytes: int
    bpw: float


@dataclass(frozen=True, slots=True)
class TextRead:
    """What was read of a text: `predictions` in windows of `context` tokens or, of a `chat`, in conversations of at
    most so many; and how many prompts for trajectories it gave."""

    label: str
    chat: bool
    context: int
    windows: int
    predictions: int
    prompts: int


@dataclass(slots=True)
class OnText:
    """Results for one file on one text."""

    ppl: Estimate
    statistics: Statistics | None = None
    alike: Alike | None = None


@dataclass(slots=True)
class Evaluated:
    """Results for one file, on all texts together and on each: the original has a perplexity, the others statistics
    against it and, where they were asked for, trajectories.

    A recipe is evaluated `in_memory`, and its size is the one that it promises. `exact_activations`: with a file of it,
    llama.cpp would round activations too. `again`: the original, run once more.
    """

    size: ModelSize | None  # None: the original is a file of log-probabilities
    name: str
    ppl: Estimate | None = None
    statistics: Statistics | None = None
    alike: Alike | None = None
    texts: dict[str, OnText] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    in_memory: bool = False
    exact_activations: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True)
class Results:
    """All results of an evaluation: of files, the original first, and of the original again (`floor`), on `texts`."""

    files: Sequence[Evaluated]
    texts: Sequence[TextRead] = ()
    floor: Evaluated | None = None

    @property
    def finished(self) -> Results:
        """Those files that have results."""
        return dataclasses.replace(self, files=[file for file in self.files if file.ppl or file.scores])


def model_size(path: Path) -> ModelSize:
    """Read the head of a model. Raises ModelError."""
    with open_model(path) as model:
        bits = 8 * sum(tensor.nbytes for tensor in model.tensors)
        return ModelSize(path, model.size, bits / sum(tensor.elements for tensor in model.tensors))


def measured(value: float, error: float) -> str:
    """Format a value with its error, to two digits of the error.

    >>> measured(101.8398, 2.738), measured(0.000261016, 0.0000066), measured(0.5, 0)
    ('101.8 ± 2.7', '2.610e-04 ± 6.6e-06', '0.5')
    """
    if not (math.isfinite(value) and math.isfinite(error)) or error <= 0:
        return f"{value:.5g}"
    digits = 1 - math.floor(math.log10(error))
    if digits > 6:
        more = max(0, math.floor(math.log10(abs(value))) + digits) if value else 0
        return f"{value:.{more}e} ± {error:.1e}"
    return f"{value:.{max(0, digits)}f} ± {error:.{max(0, digits)}f}"


def memory_notes(files: Sequence[Evaluated]) -> list[str]:
    """Return what has to be said of recipes that were evaluated in memory; empty where there are none."""
    names = [
        name for name, file in zip(short_names([file.name for file in files]), files, strict=True) if file.in_memory
    ]
    if not names:
        return []
    said = f"In memory: {', '.join(names)}. No file was written; weights are rounded as in one, sizes are promised."
    if any(file.exact_activations for file in files):
        said += (
            " Where weights are quantized, llama.cpp rounds activations to 8 bits, too: that is not in it, and adds to "
            "a file's divergence, most visibly where that is small."
        )
    return ["\n".join(wrapped(said))]


def speed_table(rows: Sequence[tuple[ModelSize, Sequence[Speed]]]) -> str:
    """Lay out tokens per second, a line for each model and test, as in llama-bench."""
    lines = [("model", "size", "bpw", "test", "tokens/s")]
    names = short_names([str(size.path) for size, _ in rows])
    for name, (size, speeds) in zip(names, rows, strict=True):
        for speed in speeds:
            rate = f"{speed.mean:.2f} ± {speed.deviation:.2f}"
            lines.append((name, format_size(size.bytes), f"{size.bpw:.3f}", speed.test, rate))
    return "\n".join(table(lines, "<>>>>"))


def evaluation_facts(results: Results) -> dict[str, Any]:
    """Return all results for JSON, to full precision; infinite values are None. `windows` are those of texts."""
    texts = [text for text in results.texts if not text.chat]
    return {
        "context": texts[0].context if texts else None,
        "windows": sum(text.windows for text in texts) if texts else None,
        "texts": [statistics_facts(text) for text in results.texts],
        **({"floor": _model_facts(results.floor)} if results.floor else {}),
        "files": [_file_facts(file) for file in results.files],
    }


def _file_facts(file: Evaluated) -> dict[str, Any]:
    return {
        "path": file.name,
        "bytes": file.size.bytes if file.size else None,
        "bpw": file.size.bpw if file.size else None,
        **({"in_memory": True, "exact_activations": file.exact_activations} if file.in_memory else {}),
        **_model_facts(file),
        **({"tasks": _scores(file)} if file.scores else {}),
    }


def _model_facts(file: Evaluated) -> dict[str, Any]:
    """Return what was found of a model on all texts and, where there are several, on each."""
    facts = {} if file.ppl is None else _on_text(OnText(file.ppl, file.statistics, file.alike))
    if len(file.texts) > 1:
        facts["texts"] = {label: _on_text(found) for label, found in file.texts.items()}
    return facts


def _on_text(found: OnText) -> dict[str, Any]:
    facts = statistics_facts(found.statistics) if found.statistics else {"ppl": statistics_facts(found.ppl)}
    if found.alike is not None:
        share, error = found.alike.diverged
        facts["trajectories"] = {
            "divergence_at_32": {"value": share, "error": error},
            "same_tokens": found.alike.tokens.tolist(),
            "original_tokens": found.alike.lengths.tolist(),
        }
    return dict(facts)


def _scores(file: Evaluated) -> dict[str, Any]:
    return {
        kind: {
            "tasks": len(score.right),
            "score": {"value": score.percent, "error": score.error},
            "efficiency": score.efficiency(file.size.bytes) if file.size else None,
            **(
                {"spellings": {name: 100 * float(right.mean()) for name, right in score.spellings.items()}}
                if score.spellings
                else {}
            ),
            **({"subjects": score.by_subject} if score.subjects else {}),
            "right": [bool(right) for right in score.right],
        }
        for kind, score in file.scores.items()
    }


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the files' names in a table: the last part of their paths where these differ, else the paths."""
    short = [Path(path).name for path in paths]
    return [shown(name) for name in (short if len({*short}) == len({*paths}) else paths)]


def statistics_facts(value: Any) -> Any:
    """Return statistics, or an estimate, for JSON: infinite values are None."""
    if dataclasses.is_dataclass(value):
        return {entry.name: statistics_facts(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [statistics_facts(item) for item in value]
    if isinstance(value, Mapping):
        return {key: statistics_facts(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
