"""Facts of a state file: its contents, and whether it is ready for solving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from planner.formats.registry import FAMILIES, all_formats
from planner.gguf import requires_imatrix
from planner.report.columns import labelled, shown, table, wrapped
from planner.sizes import format_size
from planner.text import command, some
from state import Inventory, Measurement, Store

__all__ = ["FormatFacts", "MeasuredFacts", "StateFacts", "state_facts", "state_text"]


@dataclass(frozen=True, slots=True)
class FormatFacts:
    """One format: measured in `tensors` of the `possible` ones, whose rows its blocks fill. Errors are relative (of the
    tensor's energy), over the finished set or, before there is one, over everything measured."""

    format: str
    bpw: float | None
    tensors: int
    possible: int
    needs_imatrix: bool
    median_error: float
    largest_error: float
    kernel_seconds: float


@dataclass(frozen=True, slots=True)
class MeasuredFacts:
    """One tensor and the formats that it was measured in."""

    name: str
    left_alone: str | None
    formats: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StateFacts:
    """A state file. `finished`: a set of measurements has been selected, so that `planner solve` needs no model.

    `stale` measurements are outside that set: of another imatrix, other settings or other kernels.
    """

    kind: str
    path: str
    bytes: int
    schema: int
    finished: bool
    model: str | None
    architecture: str | None
    model_digest: str | None
    model_path: str | None
    imatrix: str | None
    sums: bool
    settings: dict[str, bool | int | float | str]
    to_quantize: int
    left_alone: int
    measurements: int
    selected: int
    stale: int
    energies: int
    kernel_seconds: float
    made_with: dict[str, int]
    formats: tuple[FormatFacts, ...]
    tensors: tuple[MeasuredFacts, ...]


def state_facts(store: Store, path: str) -> StateFacts:
    """Collect the facts of an open state; `path` as the user gave it. Raises the state's errors."""
    summary, inventory = store.summary(), store.inventory()
    chosen = store.measurements(selected=True)
    # another process may be adding to it: count what was read last
    found = list((chosen or store.measurements()).values())
    wanted = [tensor for tensor in inventory.tensors if tensor.left_alone is None] if inventory else []
    by_tensor: dict[str, list[str]] = {}
    for record in found:
        by_tensor.setdefault(record.tensor, []).append(record.format)
    return StateFacts(
        kind="state",
        path=path,
        bytes=summary.file_bytes,
        schema=summary.schema_version,
        finished=bool(chosen),
        model=inventory.model_name if inventory else None,
        architecture=inventory.architecture if inventory else None,
        model_digest=inventory.model_digest if inventory else None,
        model_path=inventory.model_path if inventory else None,
        imatrix=inventory.imatrix_name if inventory else None,
        sums=inventory.has_means if inventory else False,
        settings=dict(inventory.metadata) if inventory else {},
        to_quantize=len(wanted),
        left_alone=len(inventory.tensors) - len(wanted) if inventory else 0,
        measurements=summary.measurements,
        selected=summary.selected,
        stale=summary.measurements - summary.selected if chosen else 0,
        energies=summary.energies,
        kernel_seconds=summary.kernel_seconds,
        made_with=summary.made_with,
        formats=tuple(_formats(found, inventory)),
        tensors=tuple(
            MeasuredFacts(tensor.name, tensor.left_alone, tuple(sorted(set(by_tensor.get(tensor.name, ())))))
            for tensor in (inventory.tensors if inventory else ())
        ),
    )


def _formats(found: Iterable[Measurement], inventory: Inventory | None) -> list[FormatFacts]:
    known = all_formats()
    lengths = Counter(t.row_length for t in inventory.tensors if t.left_alone is None) if inventory else Counter()
    groups: dict[str, list[Measurement]] = {}
    for record in found:
        groups.setdefault(record.format, []).append(record)
    facts = []
    for name, records in groups.items():
        fmt = known.get(name)
        errors = [record.err_var + record.err_mean for record in records]
        possible = sum(count for length, count in lengths.items() if fmt is None or fmt.fits(length))
        seconds = sum(record.kernel_seconds for record in records)
        tensors = len({record.tensor for record in records})
        bpw = fmt.bpw if fmt else None
        needy = fmt is not None and requires_imatrix("blk.0.any.weight", fmt)
        facts.append(FormatFacts(name, bpw, tensors, possible, needy, median(errors), max(errors), seconds))
    return sorted(facts, key=lambda fact: (fact.bpw or 0, -fact.median_error))


def state_text(facts: StateFacts, *, every_tensor: bool = False) -> str:
    """Format the facts as lines of 80 columns."""
    lines = _head(facts)
    if facts.formats:
        lines += ["", *_format_table(facts)]
    if every_tensor and facts.tensors:
        rows = [("tensor", "measured in")]
        every = [fact.format for fact in facts.formats]
        rows += [(shown(tensor.name, 44), shown(_measured_in(tensor, every), 2000)) for tensor in facts.tensors]
        lines += ["", *table(rows, "<<")]
    path = Path(facts.path)
    if facts.finished:
        measured = {fact.format for fact in facts.formats}
        option = next((entry.option for entry in FAMILIES.values() if not measured.isdisjoint(entry.formats)), ())
        lines += ["", f"Next: {command('planner', 'solve', '--state', path, *option, '--budget', 'SIZE')}"]
    elif facts.model_path is not None:
        imatrix = ("--imatrix", Path(facts.imatrix)) if facts.imatrix else ()
        step = command("planner", "measure", Path(facts.model_path), *imatrix, "--state", path)
        lines += ["", f"Next: {step}"]
    return "\n".join(lines)


def _measured_in(tensor: MeasuredFacts, every: list[str]) -> str:
    if not tensor.formats:
        return f"left alone: {tensor.left_alone}" if tensor.left_alone else "nothing yet"
    missing = [name for name in every if name not in tensor.formats]
    if not missing:
        return f"all {len(every)} formats"
    return "all but " + " ".join(missing) if len(missing) < len(every) / 2 else " ".join(tensor.formats)


def _head(facts: StateFacts) -> list[str]:
    lines = labelled("State", shown(facts.path, 400))
    lines += labelled("Size", f"{facts.bytes:,} bytes ({format_size(facts.bytes)}), schema {facts.schema}")
    if facts.model is None or facts.model_digest is None:
        return lines + labelled("Model", "none yet: the run that made the file was stopped before it said which")
    name = f"{shown(facts.model, 100)} ({shown(facts.architecture or '', 30)}, {facts.model_digest[:12]})"
    lines += labelled("Model", f"{name}, last seen at {shown(facts.model_path or '', 400)}")
    sums = "with sums of activations" if facts.sums else "without sums of activations"
    lines += labelled("Imatrix", f"{shown(facts.imatrix, 400)}, {sums}" if facts.imatrix else "none")
    lines += labelled("Tensors", f"{facts.to_quantize:,} to quantize, {facts.left_alone:,} left alone by llama.cpp")
    count = f"{facts.measurements:,} measurements, {facts.kernel_seconds:,.0f} s of kernels"
    lines += labelled("Measured", f"{count}, with {some([shown(name, 40) for name in facts.made_with]) or 'nothing'}")
    settings = [
        f"{key.removeprefix('sampling.')} {value}" for key, value in facts.settings.items() if "sampling" in key
    ]
    if settings:
        lines += labelled("Sampling", shown(", ".join(settings), 200))
    if facts.finished:
        stale = f", {facts.stale:,} more of other settings, imatrices or kernels" if facts.stale else ""
        return lines + labelled("Finished", f"yes: {facts.selected:,} measurements to solve from{stale}")
    return lines + labelled("Finished", "no: measuring was stopped, or goes on; what is there is kept")


def _format_table(facts: StateFacts) -> list[str]:
    rows = [("format", "bpw", "tensors", "median error", "largest", "kernels")]
    for fact in facts.formats:
        bpw = f"{fact.bpw:.4g}" if fact.bpw is not None else "?"
        count = f"{fact.tensors:,} of {fact.possible:,}"
        errors = f"{100 * fact.median_error:.3g} %", f"{100 * fact.largest_error:.3g} %"
        rows.append((shown(fact.format, 16), bpw, count, *errors, f"{fact.kernel_seconds:,.1f} s"))
    lines = table(rows, "<>>>>>")
    if needy := [fact.format for fact in facts.formats if fact.needs_imatrix and fact.tensors < fact.possible]:
        lines += wrapped(f"Only tensors with an entry in the imatrix are measured in {', '.join(needy)}.")
    return lines
