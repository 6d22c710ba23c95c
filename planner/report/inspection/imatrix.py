"""Facts of an importance matrix: its entries, and how much of a model they cover."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from planner.errors import ImatrixError, option
from planner.gguf import Coverage, Entry, Imatrix, Model, why_left_alone
from planner.gguf.covariance import Covariances
from planner.report.columns import by_role, labelled, percent, role_name, shown, table, wrapped
from planner.text import some

__all__ = [
    "CoverageFacts",
    "EntryFacts",
    "ImatrixFacts",
    "imatrix_facts",
    "imatrix_summary",
    "imatrix_text",
    "unseen_text",
]

_MOST = 12  # tensors listed of each fault
_UNSEEN = (
    "The imatrix holds zeros: no activation reached these channels. That is taken for not known, not for worthless: "
    "errors there count as in other channels."
)


@dataclass(frozen=True, slots=True)
class EntryFacts:
    """One entry: `values` for each of `experts` (1: no experts). `tokens`: fewest and most that an expert saw (in a
    legacy file: calls). `idle`: experts, from 0, that saw none; `unseen`: channels of the others, or of the whole
    tensor, that no activation reached."""

    name: str
    values: int
    experts: int
    tokens: tuple[int, int]
    idle: tuple[int, ...]
    sums: bool
    unseen: int


@dataclass(frozen=True, slots=True)
class CoverageFacts:
    """The imatrix beside a model. `belongs`: whether `planner` would take it for that model. `with_entry`: how many of
    the tensors `to_quantize` have one that fits."""

    model: str
    belongs: bool
    to_quantize: int
    with_entry: int
    covered: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: dict[str, str]
    unused: tuple[str, ...]
    never_activated: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class CovarianceFacts:
    """Covariances in a file: of `tensors`, which read so many `inputs`; fewest and most `channels` of one, and `tokens`
    that one of its matrices saw."""

    tensors: int
    inputs: int
    channels: tuple[int, int]
    tokens: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ImatrixFacts:
    """An imatrix; `tokens` is chunks times chunk size, and `reach` on how many tokens it was found how far noise
    reaches, each None where the file does not say."""

    kind: str
    path: str
    legacy: bool
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    tokens: int | None
    with_sums: int
    entries: tuple[EntryFacts, ...]
    coverage: CoverageFacts | None
    covariances: CovarianceFacts | None = None
    reach: int | None = None


def imatrix_facts(imatrix: Imatrix, model: Model | None = None, covariances: Covariances | None = None) -> ImatrixFacts:
    """Collect the facts of an imatrix and, with a model, of how they fit together; of `covariances` in the same
    file."""
    entries = [_entry_facts(name, entry) for name, entry in imatrix.entries.items()]
    return ImatrixFacts(
        kind="imatrix",
        path=str(imatrix.path),
        legacy=imatrix.legacy,
        datasets=imatrix.datasets,
        chunks=imatrix.chunk_count,
        chunk_size=imatrix.chunk_size,
        tokens=max(0, imatrix.chunk_count) * imatrix.chunk_size or None,
        with_sums=sum(entry.sums for entry in entries),
        entries=tuple(entries),
        coverage=None if model is None else _coverage(imatrix.coverage(model), imatrix, model),
        covariances=None if covariances is None else _covariance_facts(covariances),
        reach=max((found.tokens for found in imatrix.reach.values()), default=None),
    )


def _covariance_facts(file: Covariances) -> CovarianceFacts:
    widths = [one.width for one in file.inputs.values()]
    tokens = np.concatenate([file.tokens_of(name) for name in file.inputs])
    return CovarianceFacts(
        tensors=sum(len(one.tensors) for one in file.inputs.values()),
        inputs=len(widths),
        channels=(min(widths), max(widths)),
        tokens=(int(tokens.min()), int(tokens.max())),
    )


def _entry_facts(name: str, entry: Entry) -> EntryFacts:
    """Collect the facts of one entry."""
    counts = entry.counts
    idle = tuple(int(expert) for expert in np.flatnonzero(counts == 0))
    span = int(counts.min()), int(counts.max())
    return EntryFacts(name, entry.shape[1], entry.shape[0], span, idle, entry.has_means, entry.gaps)


def _coverage(coverage: Coverage, imatrix: Imatrix, model: Model) -> CoverageFacts:
    try:
        imatrix.require(model)
        belongs = True
    except ImatrixError:
        belongs = False
    wanted = {t.name for t in model.tensors if why_left_alone(t.name, t.shape, model.architecture, t.format) is None}
    return CoverageFacts(
        model=str(model.path),
        belongs=belongs,
        to_quantize=len(wanted),
        with_entry=len(wanted.intersection(coverage.covered)),
        covered=coverage.covered,
        missing=coverage.missing,
        mismatched=dict(coverage.mismatched),
        unused=coverage.unused,
        never_activated=dict(coverage.never_activated),
    )


def imatrix_summary(facts: ImatrixFacts) -> str:
    """Describe an imatrix and how it fits the model, without its entries."""
    lines = _head(facts)
    if facts.coverage is not None:
        lines += _coverage_text(facts.coverage)
    return "\n".join([*lines, *_section(_unseen(facts.entries))])


def imatrix_text(facts: ImatrixFacts, *, every_tensor: bool = False) -> str:
    """Format the facts as lines of 80 columns."""
    lines = _head(facts)
    if facts.coverage is not None:
        lines += ["", *_coverage_text(facts.coverage)]
    lines += ["", *_role_table(facts.entries)]
    lines += _section(_unseen(facts.entries))
    if idle := [entry for entry in facts.entries if entry.experts > 1 and entry.idle]:
        lines += ["", "Experts that no token of the text activated", *_idle((e.name, e.idle, e.experts) for e in idle)]
    if every_tensor:
        lines += ["", *_entry_table(facts.entries)]
    return "\n".join(lines)


def unseen_text(imatrix: Imatrix, names: Iterable[str]) -> str:
    """List the tensors among `names` with channels that no activation reached, and say what that means; "" without
    any."""
    known = imatrix.entries
    return "\n".join(_unseen(_entry_facts(name, known[name]) for name in names if name in known))


def _unseen(entries: Iterable[EntryFacts]) -> list[str]:
    gaps = [entry for entry in entries if entry.unseen]
    if not gaps:
        return []
    rows = [("  tensor", "channels", "")]
    for entry in gaps[:_MOST]:
        channels = entry.values * entry.experts
        what = f"all {channels:,}" if entry.unseen == channels else f"{entry.unseen:,} of {channels:,}"
        rows.append((f"  {shown(entry.name, 50)}", what, ""))
    more = [f"  and {len(gaps) - _MOST:,} more tensors: {by_role(entry.name for entry in gaps[_MOST:])}"]
    return [*wrapped(_UNSEEN), *table(rows, "<><"), *(more if len(gaps) > _MOST else [])]


def _section(lines: list[str]) -> list[str]:
    return ["", *lines] if lines else []


def _head(facts: ImatrixFacts) -> list[str]:
    lines = labelled("Imatrix", shown(facts.path, 400))
    lines += labelled("Kind", "legacy (.dat)" if facts.legacy else "GGUF")
    lines += labelled("Made from", some([shown(name, 40) for name in facts.datasets]) or "not said")
    size = f" of {facts.chunk_size:,} tokens: {facts.tokens or 0:,}" if facts.chunk_size else ""
    lines += labelled("Chunks", f"{facts.chunks:,}{size}" if facts.chunks > 0 else "not said")
    experts = sum(entry.experts > 1 for entry in facts.entries)
    lines += labelled("Entries", f"{len(facts.entries):,}" + (f", {experts:,} of them with experts" if experts else ""))
    if facts.with_sums == 0:
        sums = "no: sensitivities from this imatrix are less sure"
    elif facts.with_sums < len(facts.entries):
        sums = f"in {facts.with_sums:,} of the {len(facts.entries):,} entries"
    else:
        sums = "yes, of activations beside those of their squares"
    lines += labelled("Sums", sums)
    if facts.reach is not None:
        lines += labelled("Reach", f"of noise, from {facts.reach:,} tokens: losses are in nats")
    elif facts.with_sums:
        lines += labelled("Reach", "of noise not known: losses are up to scale")
    if (found := facts.covariances) is not None:
        what = f"{found.tensors:,} tensors: {found.inputs:,} inputs of {_span(list(found.channels))} channels"
        lines += labelled("Covariances", f"of {what}, {_span(list(found.tokens))} tokens")
    return lines


def _coverage_text(coverage: CoverageFacts) -> list[str]:
    lines = labelled("Model", shown(coverage.model, 400))
    verdict = f"{coverage.with_entry:,} of the {coverage.to_quantize:,} tensors that llama.cpp quantizes have an entry"
    if not coverage.belongs:
        lines += labelled("Warning", "this is the imatrix of another model")
    lines += labelled("Coverage", verdict)
    if coverage.missing:
        lines += labelled("Missing", by_role(coverage.missing))
        if set(coverage.missing) <= {"token_embd.weight", "output.weight"}:
            lines += labelled(
                "", f"(usual: llama-imatrix sees no token embedding, and the output with {option('process_output')})"
            )
    differences: dict[str, list[str]] = {}
    for name, difference in coverage.mismatched.items():
        differences.setdefault(difference, []).append(name)
    for number, (difference, names) in enumerate(list(differences.items())[:_MOST]):
        lines += labelled("" if number else "Mismatched", f"{by_role(names)}: {difference}")
    if len(differences) > _MOST:
        lines += labelled("", f"and in {len(differences) - _MOST:,} more ways")
    if coverage.unused:
        lines += labelled("Unused", by_role(coverage.unused))
    if idle := coverage.never_activated:
        experts = sum(map(len, idle.values()))
        lines += labelled("Never used", f"{experts:,} experts in {len(idle):,} tensors; the kernels get ones for them")
    return lines


def _role_table(entries: Iterable[EntryFacts]) -> list[str]:
    groups: dict[str, list[EntryFacts]] = {}
    for entry in entries:
        groups.setdefault(role_name(entry.name), []).append(entry)
    rows = [("role", "n", "values", "tokens", "experts", "never activated")]
    for role, members in groups.items():
        experts = sum(entry.experts for entry in members)
        idle = sum(len(entry.idle) for entry in members)
        rows.append(
            (
                shown(role, 28),
                f"{len(members)}",
                _span([entry.values for entry in members]),
                _span([count for entry in members for count in entry.tokens]),
                _span([entry.experts for entry in members]) if any(entry.experts > 1 for entry in members) else "",
                f"{idle:,} of {experts:,} ({percent(idle, experts)})" if idle else "",
            )
        )
    if not any(cell for row in rows[1:] for cell in row[4:]):  # no experts
        return table([row[:4] for row in rows], "<>>>")
    return table(rows, "<>>>><")


def _span(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _idle(entries: Iterable[tuple[str, tuple[int, ...], int]]) -> list[str]:
    rows: list[tuple[str, str, str]] = []
    more = 0
    for name, who, experts in entries:
        if len(rows) == _MOST:
            more += 1
            continue
        listed = ", ".join(map(str, who[:_MOST])) + (", …" if len(who) > _MOST else "")
        rows.append((f"  {shown(name, 40)}", f"{len(who):,} of {experts:,}", listed))
    return table(rows, "<><") + ([f"  and {more:,} more tensors"] if more else [])


def _entry_table(entries: Iterable[EntryFacts]) -> list[str]:
    rows = [("entry", "values", "experts", "tokens", "sums")]
    for entry in entries:
        tokens = _span(list(entry.tokens))
        rows.append(
            (shown(entry.name, 42), f"{entry.values:,}", f"{entry.experts:,}", tokens, "yes" if entry.sums else "no")
        )
    return table(rows, "<>>><")
