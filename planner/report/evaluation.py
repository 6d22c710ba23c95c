"""The output of `planner evaluate` and `planner bench`: facts of every file for JSON, and tables of 80 columns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.gguf import open_model
from planner.report.columns import Column, shown, table, tabulate, wrapped
from planner.sizes import format_size

if TYPE_CHECKING:
    from planner.llama.evaluate.bench import Speed
    from planner.llama.evaluate.statistics import Estimate, Shown, Statistics, Table
    from planner.llama.evaluate.tasks import Score

__all__ = [
    "Evaluated",
    "ModelSize",
    "evaluation_facts",
    "evaluation_text",
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


@dataclass(slots=True)
class Evaluated:
    """Results for one file: the original has a perplexity, the others statistics against it.

    A recipe is evaluated `in_memory`, and its size is the one that it promises. `exact_activations`: with a file of it,
    llama.cpp would round activations too.
    """

    size: ModelSize | None  # None: the original is a file of log-probabilities
    name: str
    ppl: Estimate | None = None
    statistics: Statistics | None = None
    scores: dict[str, Score] = field(default_factory=dict)
    in_memory: bool = False
    exact_activations: bool = False


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


def evaluation_text(files: Sequence[Evaluated], context: int | None, windows: int | None) -> str:
    """Lay out the tables of all files, the original first; `context` and `windows` are those of the text, if there was
    one."""
    blocks = []
    names = short_names([file.name for file in files])
    if context is not None:
        blocks.append(_summary(files, names))
        compared = [(name, file.statistics) for name, file in zip(names, files, strict=True) if file.statistics]
        if compared:
            blocks += [_statistics_table("file", "change", compared)]
            blocks += [_statistics_table("KLD of a token", "distribution", compared)]
            count = compared[0][1].tokens
            blocks.append(f"{count:,} predictions in {windows} windows of {context} tokens; KLD in nats")
        blocks += memory_notes(files)
    kinds = {kind: None for file in files for kind in file.scores}
    blocks += [_task_table(kind, files, names) for kind in kinds]
    return "\n\n".join(blocks)


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


def _summary(files: Sequence[Evaluated], names: Sequence[str]) -> str:
    rows = [("file", "size", "bpw", "PPL", "mean KLD")]
    for name, file in zip(names, files, strict=True):
        size, bpw = (format_size(file.size.bytes), f"{file.size.bpw:.3f}") if file.size else ("", "")
        kld = _estimate(file.statistics.kld) if file.statistics else ""
        # digits beyond its error: most of that is the text's, common to all rows
        finite = file.ppl is not None and math.isfinite(file.ppl.value)
        ppl = "" if file.ppl is None else f"{file.ppl.value:.4f} ± {file.ppl.error:.4f}" if finite else "inf"
        rows.append((name, size, bpw, ppl, kld))
    return "\n".join(table(rows, "<>>>>"))


def _statistics_table(label: str, name: Table, files: Sequence[tuple[str, Statistics]]) -> str:
    from planner.llama.evaluate.statistics import shown_in

    columns: list[Column[tuple[str, Statistics]]] = [Column(label, lambda file: file[0], "<")]
    columns += [Column(how.heading, partial(_cell, entry, how)) for entry, how in shown_in(name).items()]
    return "\n".join(tabulate(columns, files))


def _cell(name: str, how: Shown, file: tuple[str, Statistics]) -> str:
    value = getattr(file[1], name)
    if isinstance(value, int | float):
        return format(how.scale * value, how.format)
    return measured(how.scale * value.value, how.scale * value.error)


def _task_table(kind: str, files: Sequence[Evaluated], names: Sequence[str]) -> str:
    base = files[0].scores.get(kind)
    count = next(len(file.scores[kind].right) for file in files if kind in file.scores)
    chance = next(file.scores[kind].chance for file in files if kind in file.scores)
    rows = [(kind, f"score %, {count:,} tasks", f"(score − {chance}) / GB", "flips: worse", "better")]
    for name, file in zip(names, files, strict=True):
        if (score := file.scores.get(kind)) is None or file.size is None:
            continue
        flips = ("", "")
        if base is not None and score is not base:
            flips = f"{(base.right & ~score.right).sum():,}", f"{(score.right & ~base.right).sum():,}"
        efficiency = f"{score.efficiency(file.size.bytes):.2f}"
        rows.append((name, measured(score.percent, score.error), efficiency, *flips))
    return "\n".join(table(rows, "<>>>>"))


def speed_table(rows: Sequence[tuple[ModelSize, Sequence[Speed]]]) -> str:
    """Lay out tokens per second, a line for each model and test, as in llama-bench."""
    lines = [("model", "size", "bpw", "test", "tokens/s")]
    names = short_names([str(size.path) for size, _ in rows])
    for name, (size, speeds) in zip(names, rows, strict=True):
        for speed in speeds:
            rate = f"{speed.mean:.2f} ± {speed.deviation:.2f}"
            lines.append((name, format_size(size.bytes), f"{size.bpw:.3f}", speed.test, rate))
    return "\n".join(table(lines, "<>>>>"))


def evaluation_facts(files: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Return the results for JSON, to full precision; infinite values are None."""
    return [
        {
            "path": file.name,
            "bytes": file.size.bytes if file.size else None,
            "bpw": file.size.bpw if file.size else None,
            **({"in_memory": True, "exact_activations": file.exact_activations} if file.in_memory else {}),
            **({"ppl": statistics_facts(file.ppl)} if file.ppl and not file.statistics else {}),
            **(statistics_facts(file.statistics) if file.statistics else {}),
            **({"tasks": _scores(file)} if file.scores else {}),
        }
        for file in files
    ]


def _scores(file: Evaluated) -> dict[str, Any]:
    return {
        kind: {
            "tasks": len(score.right),
            "score": {"value": score.percent, "error": score.error},
            "efficiency": score.efficiency(file.size.bytes) if file.size else None,
            "right": [bool(right) for right in score.right],
        }
        for kind, score in file.scores.items()
    }


def _estimate(estimate: Estimate) -> str:
    return measured(estimate.value, estimate.error)


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the files' names in a table: the last part of their paths where these differ, else the paths."""
    short = [Path(path).name for path in paths]
    return [shown(name) for name in (short if len({*short}) == len({*paths}) else paths)]


def statistics_facts(value: Any) -> Any:
    """Return statistics, or an estimate, for JSON: infinite values are None."""
    if dataclasses.is_dataclass(value):
        return {entry.name: statistics_facts(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: statistics_facts(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
