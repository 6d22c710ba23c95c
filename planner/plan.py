"""Measurements + sensitivities + limits → solvers.Problem → Recipe. Works from the state alone, without the model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from planner import __version__
from planner.errors import BudgetError, StateFileError, UsageError
from planner.ggml import Format, format_named, formats, library_version
from planner.recipes import Choice, ImatrixSource, ModelSource, Recipe
from planner.sensitivity import Source, TensorSensitivity, default_source, sensitivities
from planner.sizes import format_size
from solvers import Group, Limit, Option, Problem, solve
from state import Inventory, Measurement, Store, TensorRecord

__all__ = ["Plan", "Request", "Rule", "make_plan", "parse_rule"]

# general.file_type (llama_ftype in llama.h) by the format that holds most of the weights, as llama.cpp guesses it
_FILE_TYPES = {
    "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_K": 10, "q3_K": 12, "q4_K": 15,
    "q5_K": 17, "q6_K": 18, "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26,
    "iq2_s": 28, "iq4_xs": 30, "iq1_m": 31, "tq1_0": 36, "tq2_0": 37, "mxfp4": 38,
}  # fmt: skip
_FALLBACK_FILE_TYPE = 15


@dataclass(frozen=True, slots=True)
class Rule:
    """A pin, floor or cap: tensors whose name `pattern` finds, and a format. `text` is what the user wrote."""

    pattern: re.Pattern[str]
    format: Format
    text: str


@dataclass(frozen=True)
class Request:
    """What is asked of a plan: one of `budget` (bytes of the file) and `bpw` (bits of tensor data per element)."""

    budget: int | None = None
    bpw: Fraction | None = None
    formats: tuple[Format, ...] | None = None
    pins: tuple[Rule, ...] = ()
    floors: tuple[Rule, ...] = ()
    caps: tuple[Rule, ...] = ()
    sensitivity: Source | None = None
    method: str = "auto"
    gap: float = 1e-6
    time_limit: float | None = 10.0


@dataclass(frozen=True)
class Plan:
    """A recipe with what is worth saying about it. `unplaced` are tensors whose sensitivity is only the prior's."""

    recipe: Recipe
    inventory: Inventory
    slack: int
    sources: Mapping[str, str]
    gap: float
    seconds: float

    @property
    def unplaced(self) -> list[str]:
        """Tensors that `structure` was asked for and could not place."""
        asked = self.recipe.sensitivity
        return (
            []
            if asked in ("prior", "uniform")
            else [name for name, source in self.sources.items() if source == "prior"]
        )


def parse_rule(text: str, *, default_pattern: str | None = None) -> Rule:
    """A rule `REGEX=TYPE`, or `TYPE` alone for all tensors where `default_pattern` allows. Raises UsageError."""
    pattern, separator, name = text.rpartition("=")
    if not separator:
        if default_pattern is None:
            raise UsageError(f"{text!r} is not of the form REGEX=TYPE.", "Write for example 'attn_v=q6_K'.")
        pattern = default_pattern
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"{pattern!r} is not a regular expression: {error}.", "Write for example 'blk\\.0\\..*=q8_0'."
        ) from error
    return Rule(compiled, format_named(name), text)


def make_plan(store: Store, request: Request) -> Plan:
    """Solve for a request from what the state holds.

    Raises StateFileError where measurements are missing, UsageError for rules that cannot be followed,
    BudgetError for a budget that no recipe meets or that leaves nothing to decide.
    """
    inventory = store.inventory()
    measured = list(store.measurements(selected=True).values())
    if inventory is None or not measured:
        raise StateFileError(
            f"{store.path} holds no finished measurements.",
            "Measure first: planner measure MODEL --imatrix FILE. What is measured already will be kept.",
        )
    missing = {fmt.name for fmt in request.formats or ()} - {entry.format for entry in measured}
    if missing:
        raise UsageError(
            f"Nothing was measured as {', '.join(sorted(missing))}.",
            "Give the model, so that it can be measured: planner solve MODEL --types ...",
        )
    facts = {entry.tensor: entry.values for entry in store.energies(selected=True).values() if entry.values}
    source = request.sensitivity or default_source(
        has_imatrix=inventory.imatrix_digest is not None, has_means=inventory.has_means
    )
    names = [tensor.name for tensor in inventory.tensors]
    weights = sensitivities(source, names, facts, blocks=int(inventory.metadata.get("block_count", 0)))
    options = _Options(inventory, measured, weights, request)
    problem, target = _problem(inventory, options, request)
    solution = solve(problem, method=request.method, gap=request.gap, time_limit=request.time_limit)
    if solution.picks is None:
        raise BudgetError("No recipe was found in time.", "Give more time with --time-limit.")
    chosen = [own[pick] for own, pick in zip(options.by_tensor, solution.picks, strict=True)]
    recipe = _recipe(inventory, options, chosen, source, target)
    recipe = recipe.model_copy(update={"bound": min(solution.bound, recipe.loss), "status": str(solution.status)})
    used = solution.usage[0].slack if solution.usage else 0
    slack = int(used) if request.budget is not None else int(used // 8)
    sources = {name: weights[name].source for name in options.names}
    return Plan(recipe, inventory, slack, sources, solution.gap, solution.seconds)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A format that a tensor may take: its bytes, error and loss."""

    format: Format
    nbytes: int
    err: float
    loss: float


class _Options:
    """What each tensor that may change can become, after pins, floors and caps."""

    def __init__(
        self,
        inventory: Inventory,
        measured: Iterable[Measurement],
        weights: Mapping[str, TensorSensitivity],
        request: Request,
    ) -> None:
        self.fixed = [tensor for tensor in inventory.tensors if tensor.left_alone is not None]
        free = [tensor for tensor in inventory.tensors if tensor.left_alone is None]
        self.names = [tensor.name for tensor in free]
        self.pins = _matches(request.pins, inventory, "--pin")
        self._floors = _matches(request.floors, inventory, "--min", several=True)
        self._caps = _matches(request.caps, inventory, "--max", several=True)
        found: dict[str, dict[str, Measurement]] = {}
        for measurement in measured:
            found.setdefault(measurement.tensor, {})[measurement.format] = measurement
        for name in self.pins:
            if name not in self.names:
                _check_fixed(next(tensor for tensor in self.fixed if tensor.name == name), self.pins[name][0])
        self.by_tensor = [
            self._of(tensor, found.get(tensor.name, {}), weights[tensor.name], request) for tensor in free
        ]

    def _of(
        self, tensor: TensorRecord, found: Mapping[str, Measurement], weight: TensorSensitivity, request: Request
    ) -> list[_Candidate]:
        pin = self.pins.get(tensor.name)
        candidates = [
            _candidate(tensor, formats()[name], entry, weight) for name, entry in found.items() if name in formats()
        ]
        candidates.append(_candidate(tensor, formats()[tensor.source_format], None, weight))
        if pin is not None:
            return [_pinned(tensor, pin[0], candidates)]
        if request.formats is not None:
            # the source's own format stays: some tensors fit no block, and it costs nothing to offer it
            halves = {"f16"} if tensor.source_format == "f32" else set()
            allowed = {fmt.name for fmt in request.formats} | halves | {tensor.source_format}
            candidates = [entry for entry in candidates if entry.format.name in allowed]
        floors, caps = self._floors.get(tensor.name, []), self._caps.get(tensor.name, [])
        kept = [
            entry
            for entry in candidates
            if all(entry.format.bpw >= rule.format.bpw for rule in floors)
            and all(entry.format.bpw <= rule.format.bpw for rule in caps)
        ]
        if not kept:
            texts = ", ".join(rule.text for rule in (*floors, *caps))
            raise UsageError(
                f"No format of {tensor.name} satisfies {texts}: there are "
                f"{', '.join(entry.format.name for entry in sorted(candidates, key=lambda entry: entry.nbytes))}.",
                "Widen --min or --max, or allow more --types.",
            )
        return sorted(kept, key=lambda entry: (entry.nbytes, entry.loss))


def _candidate(
    tensor: TensorRecord, fmt: Format, measured: Measurement | None, weight: TensorSensitivity
) -> _Candidate:
    nbytes = fmt.row_bytes(tensor.row_length) * (tensor.elements // tensor.row_length)
    if measured is None:
        return _Candidate(fmt, nbytes, 0.0, 0.0)
    err = measured.err_var + measured.err_mean
    return _Candidate(fmt, nbytes, err, weight.loss(measured.err_var, measured.err_mean, measured.err_massive))


def _pinned(tensor: TensorRecord, rule: Rule, candidates: Sequence[_Candidate]) -> _Candidate:
    if not rule.format.fits(tensor.row_length):
        raise UsageError(
            f"--pin {rule.text}: {tensor.name} has rows of {tensor.row_length} weights, no whole number of "
            f"{rule.format.name}'s blocks of {rule.format.block}.",
            f"Pin it to a format with smaller blocks: {_fitting(candidates)}.",
        )
    for entry in candidates:
        if entry.format.name == rule.format.name:
            return entry
    raise UsageError(
        f"--pin {rule.text}: {tensor.name} was not measured in {rule.format.name}.",
        f"Give the model, so that it can be measured, or pin it to one of: {_fitting(candidates)}. "
        "A type of 3 bits and below needs the tensor's imatrix entry.",
    )


def _fitting(candidates: Sequence[_Candidate]) -> str:
    return ", ".join(entry.format.name for entry in sorted(candidates, key=lambda entry: entry.nbytes))


def _check_fixed(tensor: TensorRecord, rule: Rule) -> None:
    if rule.format.name != tensor.source_format:
        raise UsageError(
            f"--pin {rule.text}: llama.cpp leaves {tensor.name} as it is ({tensor.left_alone}).",
            "Make the pattern narrower, so that it does not find this tensor.",
        )


def _matches(
    rules: Sequence[Rule], inventory: Inventory, option: str, *, several: bool = False
) -> dict[str, list[Rule]]:
    """Tensor → the rules that apply to it. A rule of one pattern finds what llama.cpp would quantize; it is an
    error if it finds nothing, or if two pins contradict each other."""
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        hits = [tensor for tensor in inventory.tensors if rule.pattern.search(tensor.name)]
        free = [tensor for tensor in hits if tensor.left_alone is None]
        if not hits:
            names = [tensor.name for tensor in inventory.tensors]
            near = difflib.get_close_matches(rule.pattern.pattern.replace("\\", ""), names, n=3, cutoff=0.3)
            raise UsageError(
                f"{option} {rule.text}: no tensor's name matches.",
                f"Near names: {', '.join(near)}." if near else "`planner inspect` lists the names.",
            )
        for tensor in free or ([] if several else hits):
            before = found.setdefault(tensor.name, [])
            if before and not several and before[0].format is not rule.format:
                raise UsageError(
                    f"{option} {before[0].text} and {option} {rule.text} contradict each other for {tensor.name}.",
                    "Make one of the patterns narrower.",
                )
            before.append(rule)
    return found


def _problem(inventory: Inventory, options: _Options, request: Request) -> tuple[Problem, str]:
    """The knapsack, and what its limit is called. Raises BudgetError where there is nothing to solve."""
    if request.budget is not None:
        target = f"{request.budget} bytes"
        overhead = inventory.header_bytes + sum(_padded(tensor.nbytes, inventory) for tensor in options.fixed)
        sizes = [[_padded(entry.nbytes, inventory) for entry in own] for own in options.by_tensor]
        capacity = request.budget - overhead
    else:
        assert request.bpw is not None
        target = f"{float(request.bpw):g} bpw"
        overhead = 8 * sum(tensor.nbytes for tensor in options.fixed)
        sizes = [[8 * entry.nbytes for entry in own] for own in options.by_tensor]
        capacity = int(request.bpw * sum(tensor.elements for tensor in inventory.tensors)) - overhead
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    asked = _spoken(request, inventory, capacity)
    if capacity < least:
        raise BudgetError(
            f"{asked} is below the minimum of {_spoken(request, inventory, least, overhead)}."
            + _causes(inventory, options),
            "Raise the budget, or allow smaller formats with --types, --pin and --min.",
        )
    if capacity > most:
        raise BudgetError(
            f"{asked} is above the maximum of {_spoken(request, inventory, most, overhead)}: nothing is to be decided.",
            "Use the largest formats as they are, or lower the budget.",
        )
    groups = [
        Group(name, [Option(size, entry.loss, entry.format.name) for size, entry in zip(own_sizes, own, strict=True)])
        for name, own_sizes, own in zip(options.names, sizes, options.by_tensor, strict=True)
    ]
    return Problem(groups, [Limit("budget", capacity)]), target


def _spoken(request: Request, inventory: Inventory, capacity: int, overhead: int | None = None) -> str:
    """A limit in the user's terms; `overhead` is added to what the solver counts."""
    if request.budget is not None:
        size = request.budget if overhead is None else capacity + overhead
        return f"{format_size(size)} ({size} bytes)"
    elements = sum(tensor.elements for tensor in inventory.tensors)
    assert request.bpw is not None
    bpw = float(request.bpw) if overhead is None else (capacity + overhead) / elements
    return f"{bpw:.4g} bpw" if overhead is None else f"{bpw:.4f} bpw"


def _causes(inventory: Inventory, options: _Options) -> str:
    """What takes the room: pins, tensors that stay, tensors that have few formats to choose from."""
    pinned = sum(
        own[0].nbytes for name, own in zip(options.names, options.by_tensor, strict=True) if name in options.pins
    )
    fixed = sum(tensor.nbytes for tensor in options.fixed)
    causes = [
        f"tensors that llama.cpp leaves alone take {format_size(fixed)}",
        f"metadata {format_size(inventory.header_bytes)}",
    ]
    if pinned:
        causes.insert(0, f"pins take {format_size(pinned)}")
    largest = max(zip(options.names, options.by_tensor, strict=True), key=lambda pair: pair[1][0].nbytes, default=None)
    if largest is not None:
        causes.append(
            f"the largest tensor, {largest[0]}, {format_size(largest[1][0].nbytes)} as {largest[1][0].format.name}"
        )
    return f" Of it, {', '.join(causes)}."


def _padded(nbytes: int, inventory: Inventory) -> int:
    return -(-nbytes // inventory.alignment) * inventory.alignment


def _recipe(
    inventory: Inventory,
    options: _Options,
    chosen: Sequence[_Candidate],
    source: Source,
    target: str,
) -> Recipe:
    by_name = dict(zip(options.names, chosen, strict=True))
    choices = []
    for tensor in inventory.tensors:
        entry = by_name.get(tensor.name)
        if entry is None:
            choices.append(
                Choice(
                    name=tensor.name, format=tensor.source_format, bytes=tensor.nbytes, err=0, loss=0,
                    why=f"left alone: {tensor.left_alone}",
                )
            )  # fmt: skip
            continue
        why = f"pinned: {options.pins[tensor.name][0].text}" if tensor.name in options.pins else "solved"
        choices.append(
            Choice(
                name=tensor.name, format=entry.format.name, bytes=entry.nbytes, err=entry.err, loss=entry.loss, why=why
            )
        )
    elements = sum(tensor.elements for tensor in inventory.tensors)
    imatrix = None
    if inventory.imatrix_digest is not None:
        imatrix = ImatrixSource(path=inventory.imatrix_name or "", digest=inventory.imatrix_digest)
    return Recipe(
        planner=__version__,
        ggml=library_version(),
        model=ModelSource(
            name=inventory.model_name,
            architecture=inventory.architecture,
            digest=inventory.model_digest,
            path=inventory.model_path,
        ),
        imatrix=imatrix,
        sensitivity=source,
        seed=int(inventory.metadata.get("sampling.seed", 0)),
        tolerance=float(inventory.metadata.get("sampling.tolerance", 0)),
        budget=target,
        size=inventory.header_bytes + sum(_padded(choice.bytes, inventory) for choice in choices),
        bpw=8 * sum(choice.bytes for choice in choices) / elements,
        loss=sum(choice.loss for choice in choices),
        bound=0.0,
        status="",
        file_type=_file_type(inventory, by_name),
        tensors=tuple(choices),
    )


def _file_type(inventory: Inventory, chosen: Mapping[str, _Candidate]) -> int:
    """The llama_ftype of the quantized format that holds most weights."""
    weights: dict[str, int] = {}
    for tensor in inventory.tensors:
        entry = chosen.get(tensor.name)
        # llama-quantize heeds --tensor-type only beside a quantized file type
        if entry is not None and entry.format.quantized:
            weights[entry.format.name] = weights.get(entry.format.name, 0) + prod(tensor.shape)
    return _FILE_TYPES.get(max(weights, key=lambda name: weights[name], default=""), _FALLBACK_FILE_TYPE)
