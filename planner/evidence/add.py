"""Other people's measurements added to the state: errors of the --target-bpw fork, divergences of the
GGUF-Tool-Suite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from planner.digests import digest
from planner.errors import RecipeError
from planner.evidence.bpw_state import Tried
from planner.evidence.kld_table import KldTable
from planner.formats.ggml import formats, nearest_known
from planner.names.gguf import ahead, is_tied, role_of
from planner.plan.findings import Findings, not_measured
from planner.text import some
from state import Inventory, Measurement, Pass, Store

__all__ = ["FORK_METRIC", "add_divergences", "add_fork_errors"]

FORK_METRIC = "target-bpw fork"
# is_angle_sensitive in the fork's src/llama-quant.cpp
_BY_ANGLE = ("attn_q.weight", "attn_k.weight", "attn_qkv.weight", "attn_q_a.weight", "attn_q_b.weight")
_LEAST_SPREAD = 0.05  # of a divergence, where the table's own noise is smaller


def add_fork_errors(store: Store, inventory: Inventory, tried: Mapping[str, Tried]) -> list[str]:
    """Add the fork's errors; return notes on them. Tensors with finished measurements of our own keep those.

    The mean over rows of a row's relative squared error takes the place of our ratio of sums; one minus the cosine is
    half of that for small errors, so it counts twice. Raises RecipeError if no tensor is the model's.
    """
    chosen = store.measurements(selected=True)
    own = {
        entry.tensor
        for entry in chosen.values()
        if entry.format in formats() and not entry.made_with.startswith(FORK_METRIC)
    }
    records = []
    other_size = []
    names = {tensor.name for tensor in inventory.tensors}
    for tensor in inventory.tensors:
        found = tried.get(tensor.name)
        if found is None or tensor.left_alone is not None:
            continue
        if tensor.elements != found.elements:
            other_size.append(tensor.name)
            continue
        rows = tensor.elements // tensor.row_length
        by_angle = inventory.has_means and any(part in tensor.name for part in _BY_ANGLE)
        looked_up = ["looked up"] if is_tied(tensor.name, names) else []  # its rows are as far off as its products
        for fmt, error in found.errors.items():
            if fmt == tensor.source_format or not formats()[fmt].fits(tensor.row_length):
                continue
            value = error / rows * (2 if by_angle else 1)
            key = digest(FORK_METRIC, inventory.model_digest, tensor.name, fmt, repr(value), *looked_up)
            records.append(
                Measurement(
                    key=key, tensor=tensor.name, format=fmt, err_var=value, err_mean=0.0,
                    err_massive=value if looked_up else 0.0, stderr=0.0, stderr_massive=0.0, rows=0, kernel_seconds=0.0,
                    made_with=f"{FORK_METRIC}, {'cosine' if by_angle else 'mean of row errors'}",
                )
            )  # fmt: skip
    if not records:
        raise RecipeError(
            f"None of its tensors is one of {inventory.model_name}.", "Give the model that it was measured on."
        )
    store.add(records)
    fresh = [record.key for record in records if record.tensor not in own]
    kept = [key for key, entry in chosen.items() if entry.tensor in own or entry.format not in formats()]
    store.select([*kept, *store.energies(selected=True), *dict.fromkeys(fresh)])
    free = [tensor.name for tensor in inventory.tensors if tensor.left_alone is None]
    covered = own | {record.tensor for record in records}
    notes = [f"{len(records):,} errors of {len({record.tensor for record in records})} tensors, by {FORK_METRIC}."]
    foreign = tried.keys() - names
    if foreign:
        notes.append(f"{some(sorted(foreign))}: not in this model, left out.")
    if other_size:
        notes.append(f"{some(other_size)}: of another size in this model, left out.")
    if len(covered) < len(free):
        notes.append(
            f"{len(free) - len(covered)} tensors were not tried yet: until `planner measure` has measured the model "
            "with planner's own metric, these can only stay as they are."
        )
    return notes


def add_divergences(store: Store, inventory: Inventory, table: KldTable) -> list[str]:
    """Add KL divergences of single tensors as passes, for `--sensitivity measured`; return notes on them.

    Tensors of one block with the same number were dropped together and are one pass. The smallest divergence of a type
    is taken as its noise. Numbers of draft heads, which the runs did not use, measure nothing. Raises StateFileError if
    errors to compare with are missing, RecipeError if the table is of other tensors or types.
    """
    findings = Findings.read(store)
    subject = findings.subject_of_passes()
    errors = {
        (name, fmt): parts for name, each in findings.errors.items() for fmt, parts in each.items() if fmt in formats()
    }
    if not errors:
        raise not_measured(store.path, others=True)
    passes: list[Pass] = []
    notes = []
    drafted = ahead(tensor.name for tensor in inventory.tensors)
    named = sorted({name for klds in table.klds.values() for name in klds} & drafted)
    if named:
        notes.append(f"{some(named)}: of draft heads, which were not run: not measured.")
    for kind, every in table.klds.items():
        klds = {name: kld for name, kld in every.items() if name not in drafted}
        if not klds:
            continue
        fmt = _stand_in(kind, {fmt for _, fmt in errors})
        if fmt.lower() != kind.lower():
            notes.append(f"Errors in {kind} are not known: those in {fmt} stand for them, for all tensors alike.")
        floor = min(klds.values())
        for names, kld in _together(name_and_kld for name_and_kld in klds.items() if (name_and_kld[0], fmt) in errors):
            passes.append(
                Pass(
                    key=digest("kld table", subject, kind, fmt, *names, repr(kld)), subject=subject,
                    label=f"GGUF-Tool-Suite {kind}", formats=dict.fromkeys(names, fmt),
                    errors={name: errors[name, fmt] for name in names}, kld=kld,
                    stderr=max(floor, _LEAST_SPREAD * kld), tokens=0, seconds=0.0,
                )
            )  # fmt: skip
    if not passes:
        raise RecipeError(
            f"None of the table's tensors is one of {inventory.model_name} with a measured error.",
            "Give the state of the model that the table is of.",
        )
    known = {entry.key for entry in store.passes(subject)}  # as of a partial table, before the rest was measured
    store.add_passes([entry for entry in passes if entry.key not in known])
    tensors = {name for entry in passes for name in entry.errors}
    unused = [
        name
        for name in dict.fromkeys(name for klds in table.klds.values() for name in klds)
        if name not in tensors and name not in drafted
    ]
    notes += _unused(unused, inventory)
    return [
        f"{len(passes)} divergences of {len(tensors)} tensors: planner solve --sensitivity measured",
        *notes,
        *table.notes,
    ]


def _unused(names: Iterable[str], inventory: Inventory) -> list[str]:
    """Return notes on tensors whose foreign measurements could not be used."""
    own = {tensor.name for tensor in inventory.tensors}
    every = list(names)
    foreign, known = [name for name in every if name not in own], [name for name in every if name in own]
    notes = [f"{some(foreign)}: not in this model, left out."] if foreign else []
    if known:
        notes.append(f"{some(known)}: left out, for there is no error of ours to compare with.")
    return notes


def _together(klds: Iterable[tuple[str, float]]) -> list[tuple[list[str], float]]:
    """Group tensors of one block that share a number; return each group with its number."""
    groups: dict[tuple[object, float], list[str]] = {}
    for name, kld in klds:
        block, _ = role_of(name)
        groups.setdefault((name if block is None else block, kld), []).append(name)
    return [(names, kld) for (_, kld), names in groups.items()]


def _stand_in(kind: str, measured: Iterable[str]) -> str:
    """Return the measured format nearest, in bits per weight, to a type of the table. Raises RecipeError for an unknown
    type."""
    known = {name.lower(): name for name in measured}
    wanted = nearest_known(kind) or kind
    if wanted.lower() in known:
        return known[wanted.lower()]
    table = {name.lower(): fmt.bpw for name, fmt in formats().items()}
    if wanted.lower() not in table:
        raise RecipeError(f"The table is of a type that nobody knows: {kind}.", "Give a kld_results.csv.")
    bits = table[wanted.lower()]
    return min(known.values(), key=lambda name: (abs(formats()[name].bpw - bits), name))
