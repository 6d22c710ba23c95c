"""Facts of a model: its tensors, and values that its conversion to F16 may have damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from planner.errors import option
from planner.gguf import Health, Model, Tensor, ids_beyond, vocabulary_fault, why_left_alone
from planner.gguf.provenance import RECIPE_KEY, rounding_in
from planner.report.columns import counted, labelled, percent, role_name, shape_text, shown, table
from planner.report.inspection.metadata import Entry, entries_of, metadata_text
from planner.sizes import format_size
from planner.text import some

__all__ = ["ModelFacts", "RoleFacts", "TensorFacts", "model_facts", "model_text"]

# F16's steps no longer shrink below 2⁻¹⁴. While that is a minority of a tensor's values, the others' rounding outweighs
# theirs; with half of normally distributed weights there, the whole rounding error is 1.17 times F16's usual (2.1e-4 of
# the weights, root mean square), with 96 % 2.8 times, and then it doubles as weights halve. Models in use: 0.01 to 6 %.
_MANY_SMALL = 0.5


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One tensor; `shape` row length first. `left_alone`: why llama.cpp would not quantize it. `values`: None where
    they were not read or are not F32, F16 or BF16."""

    name: str
    shape: tuple[int, ...]
    type: str
    bytes: int
    part: int
    left_alone: str | None
    values: Health | None


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """Tensors that differ in their block alone. `shapes`, `types`: how many tensors have each; `share` of all bytes."""

    role: str
    tensors: int
    shapes: dict[str, int]
    types: dict[str, int]
    elements: int
    bytes: int
    bpw: float
    share: float


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model. `bytes` of all files, `bpw` bits of tensor data per element; `scanned`: whether all values were read."""

    kind: str
    path: str
    files: tuple[str, ...]
    bytes: int
    gguf_version: int
    alignment: int
    architecture: str
    name: str | None
    blocks: int | None
    experts: int | None
    experts_used: int | None
    context: int | None
    parameters: int
    bpw: float
    left_alone: int
    rounding: str | None
    scanned: bool
    warnings: tuple[str, ...]
    roles: tuple[RoleFacts, ...]
    metadata: dict[str, Entry]
    tensors: tuple[TensorFacts, ...]


def model_facts(model: Model, healths: Mapping[str, Health | None] | None) -> ModelFacts:
    """Collect the facts of a model; `healths` by tensor, or None if the values were not read."""
    tensors = tuple(_tensor(model, tensor, (healths or {}).get(tensor.name)) for tensor in model.tensors)
    elements = sum(tensor.elements for tensor in model.tensors)
    return ModelFacts(
        kind="model",
        path=str(model.path),
        files=tuple(part.name for part in model.parts),
        bytes=model.size,
        gguf_version=model.version,
        alignment=model.alignment,
        architecture=model.architecture,
        name=model.metadata.text("general.name"),
        blocks=model.parameter("block_count"),
        experts=model.parameter("expert_count"),
        experts_used=model.parameter("expert_used_count"),
        context=model.parameter("context_length"),
        parameters=elements,
        bpw=8 * sum(tensor.nbytes for tensor in model.tensors) / elements,
        left_alone=sum(tensor.left_alone is not None for tensor in tensors),
        rounding=None if (recipe := model.metadata.text(RECIPE_KEY)) is None else rounding_in(recipe),
        scanned=healths is not None,
        warnings=(*_words(model), *_warnings(tensors)),
        roles=_roles(model.tensors),
        metadata=entries_of(model.metadata),
        tensors=tensors,
    )


def _tensor(model: Model, tensor: Tensor, health: Health | None) -> TensorFacts:
    why = why_left_alone(tensor.name, tensor.shape, model.architecture, tensor.format)
    return TensorFacts(tensor.name, tensor.shape, tensor.format, tensor.nbytes, tensor.part, why, health)


def _roles(tensors: Iterable[Tensor]) -> tuple[RoleFacts, ...]:
    groups: dict[str, list[Tensor]] = {}
    total = 0
    for tensor in tensors:
        groups.setdefault(role_name(tensor.name), []).append(tensor)
        total += tensor.nbytes
    facts = []
    for role, members in groups.items():
        elements, size = sum(tensor.elements for tensor in members), sum(tensor.nbytes for tensor in members)
        shapes = dict(Counter(shape_text(tensor.shape) for tensor in members).most_common())
        types = dict(Counter(tensor.format for tensor in members).most_common())
        facts.append(RoleFacts(role, len(members), shapes, types, elements, size, 8 * size / elements, size / total))
    return tuple(sorted(facts, key=lambda role: -role.bytes))


# Warnings


def _words(model: Model) -> list[str]:
    found = []
    if fault := vocabulary_fault(model):
        found.append(f"{fault[0].upper()}{fault[1:]}. llama.cpp does not load such a model: convert it again.")
    found += [
        f"{key} is {number:,}, which the vocabulary does not have: llama.cpp takes another token, or none."
        for key, number in ids_beyond(model).items()
    ]
    return found


def _warnings(tensors: Iterable[TensorFacts]) -> list[str]:
    seen = [(tensor, tensor.values) for tensor in tensors if tensor.values is not None]
    found = []
    if names := [tensor.name for tensor, health in seen if health.nan or health.inf]:
        found.append(
            f"NaN or infinite values in {_tensors(names)}. No format can keep them: "
            "convert the model again, to BF16 or F32 if it overflowed."
        )
    if names := [tensor.name for tensor, health in seen if tensor.type == "f16" and health.clipped]:
        found.append(
            f"Values at ±65,504, the largest of F16, in {_tensors(names)}. That is how a conversion "
            "leaves what it clipped: convert the model to BF16 instead."
        )
    # What is left alone stays F32
    kept = [(tensor, health) for tensor, health in seen if tensor.left_alone is None]
    if names := [tensor.name for tensor, health in kept if tensor.type != "f16" and health.clipped]:
        found.append(
            f"Values that F16 cannot hold (from 65,504) in {_tensors(names)}. Keep them as {_kinds(kept, names)}: "
            "a conversion to F16 would clip them."
        )
    small = [(tensor, health) for tensor, health in kept if health.below_f16 > _MANY_SMALL * health.elements]
    if names := [tensor.name for tensor, _ in small if tensor.type == "f16"]:
        found.append(
            f"More than half of the values are subnormal in {_tensors(names)}. The conversion to F16 rounded them "
            "coarsely, or to zero: convert the model to BF16 instead."
        )
    if names := [tensor.name for tensor, _ in small if tensor.type != "f16"]:
        found.append(
            f"More than half of the values are below F16's normal range (2^-14) in {_tensors(names)}. "
            f"Keep them as {_kinds(kept, names)}: a conversion to F16 would round them coarsely, or to zero."
        )
    return found


def _tensors(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({some([shown(name, 40) for name in names], 2)})"


def _kinds(tensors: Iterable[tuple[TensorFacts, Health]], names: list[str]) -> str:
    return " or ".join(sorted({tensor.type for tensor, _ in tensors if tensor.name in set(names)})).upper()


# Text


def model_text(facts: ModelFacts, *, every_tensor: bool = False) -> str:
    """Format the facts as lines of 80 columns."""
    lines = _head(facts)
    if facts.rounding is not None:
        lines += labelled("Rounding", facts.rounding)
    for warning in facts.warnings:
        lines += labelled("Warning", warning)
    if suspects := _suspects(facts):
        lines += ["", *suspects]
    lines += ["", *_role_table(facts)]
    lines += ["", f"Metadata, {len(facts.metadata)} pairs", *metadata_text(facts.metadata)]
    if every_tensor:
        lines += ["", *_tensor_table(facts)]
    return "\n".join(lines)


def _head(facts: ModelFacts) -> list[str]:
    what = [shown(facts.architecture, 30)]
    if facts.blocks:
        what.append(f"{facts.blocks} blocks")
    if facts.experts:
        what.append(f"{facts.experts} experts" + (f", {facts.experts_used} used" if facts.experts_used else ""))
    if facts.context:
        what.append(f"context {facts.context:,}")
    parts = len(facts.files)
    where = f"{shown(facts.path, 400)}" + (f" and {parts - 1} more part{'s' * (parts > 2)}" if parts > 1 else "")
    lines = labelled("Model", where)
    if facts.name:
        lines += labelled("Name", shown(facts.name, 120))
    lines += labelled("Kind", f"{', '.join(what)}, GGUF version {facts.gguf_version}")
    lines += labelled("Size", f"{facts.bytes:,} bytes ({format_size(facts.bytes)}), {facts.bpw:.4f} bpw")
    left = f", {facts.left_alone} of them left alone by llama.cpp" if facts.left_alone else ""
    lines += labelled("Weights", f"{facts.parameters:,} in {len(facts.tensors):,} tensors{left}")
    return lines + labelled("Values", _values(facts))


def _values(facts: ModelFacts) -> str:
    if not facts.scanned:
        return f"not read ({option('no_scan')})"
    healths = [tensor.values for tensor in facts.tensors if tensor.values is not None]
    if not healths:
        return "quantized, not looked at"
    total = sum(health.elements for health in healths)
    nan, inf = sum(health.nan for health in healths), sum(health.inf for health in healths)
    clipped, below = sum(health.clipped for health in healths), sum(health.below_f16 for health in healths)
    number = f"{nan:,} NaN, {inf:,} infinite, {clipped:,} at F16's limit or beyond" if nan + inf + clipped else ""
    text = (number or "all finite, none at F16's limit (65,504)") + f", {percent(below, total)} subnormal in F16"
    unread = len(facts.tensors) - len(healths)
    return text + (f"; {unread} quantized tensors not looked at" if unread else "")


def _suspects(facts: ModelFacts, most: int = 20) -> list[str]:
    """List the tensors that the warnings are about, with their counts."""
    rows = [("tensor", "type", "NaN", "Inf", "≥65,504", "subnormal")]
    suspects = [
        (tensor, tensor.values)
        for tensor in facts.tensors
        if tensor.values is not None
        and (not tensor.values.is_sound or tensor.values.below_f16 > _MANY_SMALL * tensor.values.elements)
    ]
    for tensor, health in suspects[:most]:
        counts = (f"{count:,}" for count in (health.nan, health.inf, health.clipped))
        share = percent(health.below_f16, health.elements)
        rows.append((shown(tensor.name, 34), tensor.type, *counts, f"{health.below_f16:,} ({share})"))  # type: ignore[arg-type]
    more = [f"and {len(suspects) - most:,} more"] if len(suspects) > most else []
    return table(rows, "<<>>><") + more if suspects else []


def _role_table(facts: ModelFacts) -> list[str]:
    rows = [("role", "n", "shape", "size", "bpw", "share", "types")]
    for role in facts.roles:
        first, *others = role.shapes
        shape = first if not others else f"{first} +{len(others)}"
        size, share = format_size(role.bytes), _share(role.share)
        name = shown(role.role, 24)
        rows.append((name, f"{role.tensors}", shape, size, f"{role.bpw:.2f}", share, counted(role.types)))
    data = sum(role.bytes for role in facts.roles)
    types = Counter(tensor.type for tensor in facts.tensors)
    rows.append(("all", f"{len(facts.tensors)}", "", format_size(data), f"{facts.bpw:.2f}", "100 %", counted(types)))
    return table(rows, "<><>>><")


def _share(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "<0.1 %"


def _tensor_table(facts: ModelFacts) -> list[str]:
    rows = [("tensor", "shape", "type", "bytes", "remarks")]
    rows += [
        (shown(tensor.name, 40), shape_text(tensor.shape), tensor.type, f"{tensor.bytes:,}", _remarks(tensor))
        for tensor in facts.tensors
    ]
    return table(rows, "<<<><")


def _remarks(tensor: TensorFacts) -> str:
    remarks = [f"left alone: {tensor.left_alone}"] if tensor.left_alone else []
    if (health := tensor.values) is not None:
        counts = {"NaN": health.nan, "Inf": health.inf, "≥65,504": health.clipped, "subnormal": health.subnormal}
        remarks += [f"{count:,} {what}" for what, count in counts.items() if count]
    return ", ".join(remarks)
