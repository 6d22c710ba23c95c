"""Measurements + sensitivities + limits → solvers.Problem → Recipe. Works from the state alone, without the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from planner import __version__
from planner.candidates import Candidate, Candidates, TiedGroup
from planner.errors import BudgetError, StateFileError, UsageError
from planner.ggml import Format, library_version
from planner.recipes import Choice, ImatrixSource, ModelSource, Recipe
from planner.rules import Device, Rule, Tie, assign_devices
from planner.sensitivity import Source, default_source, role_of, sensitivities
from planner.sizes import format_size
from solvers import (
    Explanation,
    Group,
    InfeasibleError,
    Limit,
    Option,
    Problem,
    ProblemError,
    Solution,
    explain,
    solve,
)
from state import Inventory, Store, TensorRecord

__all__ = ["LimitUse", "Plan", "Request", "make_plan"]

# general.file_type (llama_ftype in llama.h) by the format that holds most of the weights, as llama.cpp guesses it
_FILE_TYPES = {
    "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_K": 10, "q3_K": 12, "q4_K": 15, "q5_K": 17, "q6_K": 18,
    "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq2_s": 28, "iq4_xs": 30,
    "iq1_m": 31, "tq1_0": 36, "tq2_0": 37, "mxfp4": 38,
}  # fmt: skip
_FALLBACK_FILE_TYPE = 15
_FILE, _BPW = "file", "bpw"  # limits that go without a name


@dataclass(frozen=True)
class Request:
    """What is asked of a plan. At least one limit: `budget` (bytes of the file), `bpw` (bits of tensor data per
    element), `devices` (bytes of the tensors on each), `active` (bytes that generating one token reads)."""

    budget: int | None = None
    bpw: Fraction | None = None
    devices: tuple[Device, ...] = ()
    active: int | None = None
    formats: tuple[Format, ...] | None = None
    pins: tuple[Rule, ...] = ()
    floors: tuple[Rule, ...] = ()
    caps: tuple[Rule, ...] = ()
    ties: tuple[Tie, ...] = ()
    sensitivity: Source | None = None
    method: str = "auto"
    gap: float = 1e-6
    time_limit: float | None = 10.0


@dataclass(frozen=True, slots=True)
class LimitUse:
    """A limit at the answer, in its own unit ("bytes" or "bits"): `used` of `capacity`, and what a unit more saves."""

    name: str
    used: int
    capacity: int
    price: float


@dataclass(frozen=True)
class Plan:
    """A recipe with what is worth saying about it; `sources` says where each tensor's sensitivity came from."""

    recipe: Recipe
    limits: tuple[LimitUse, ...]
    sources: Mapping[str, str]
    seconds: float
    _problem: Problem
    _solution: Solution
    _groups: Mapping[str, str]

    @property
    def unplaced(self) -> list[str]:
        """Tensors that `structure` was asked for and could not place."""
        if self.recipe.sensitivity in ("prior", "uniform"):
            return []
        return [name for name, source in self.sources.items() if source == "prior"]

    def explain(self, tensor: str) -> Explanation:
        """Why a tensor (and what is tied to it) has its format: the next better and worse one, and the prices.

        Raises UsageError for a tensor that was not there to choose for.
        """
        if tensor not in self._groups:
            raise UsageError(f"{tensor} is not a tensor that a format was chosen for.", "`planner inspect` lists them.")
        return explain(self._problem, self._solution, self._groups[tensor])


@dataclass(frozen=True)
class _Limit:
    """A limit in the making. `weigh`: what a tensor in so many bytes counts for; `overhead`: what stays as it is."""

    name: str
    capacity: int
    overhead: Fraction
    weigh: Callable[[TensorRecord, int], int | Fraction]
    spoken: Callable[[float], str]

    def solver_limit(self, groups: Sequence[TiedGroup]) -> Limit:
        if self.name == _FILE:  # what the options' own bytes are
            return Limit(self.name, self.capacity - self.overhead)
        weights = {
            group.name: [
                sum(self.weigh(tensor, entry.nbytes) for tensor, entry in zip(group.tensors, option, strict=True))
                for option in group.options
            ]
            for group in groups
        }
        return Limit(self.name, self.capacity - self.overhead, weights={k: v for k, v in weights.items() if any(v)})


def make_plan(store: Store, request: Request) -> Plan:
    """Solve for a request from what the state holds.

    Raises StateFileError where measurements are missing, UsageError for rules that cannot be followed, BudgetError for
    limits that no recipe meets or that leave nothing to decide.
    """
    inventory = store.inventory()
    measured = list(store.measurements(selected=True).values())
    if inventory is None or not measured:
        raise StateFileError(
            f"{store.path} holds no finished measurements.",
            "Measure first: planner measure MODEL --imatrix FILE. What is measured already will be kept.",
        )
    _check_measured(inventory, {entry.format for entry in measured}, request.formats or ())
    source = request.sensitivity or default_source(
        has_imatrix=inventory.imatrix_digest is not None, has_means=inventory.has_means
    )
    facts = {entry.tensor: entry.values for entry in store.energies(selected=True).values() if entry.values}
    blocks = inventory.metadata.get("block_count", 0)
    by_tensor = sensitivities(source, [tensor.name for tensor in inventory.tensors], facts, blocks=int(blocks))
    candidates = Candidates(
        inventory, measured, by_tensor, allowed=request.formats, pins=request.pins, floors=request.floors,
        caps=request.caps, ties=request.ties,
    )  # fmt: skip
    limits = _limits(inventory, candidates, request)
    problem, solution = _solve(inventory, candidates, limits, request)
    assert solution.picks is not None
    chosen = {
        tensor.name: entry
        for group, pick in zip(candidates.groups, solution.picks, strict=True)
        for tensor, entry in zip(group.tensors, group.options[pick], strict=True)
    }
    recipe = _recipe(inventory, candidates, chosen, source, limits)
    recipe = recipe.model_copy(update={"bound": min(solution.bound, recipe.loss), "status": str(solution.status)})
    uses = [
        LimitUse(limit.name, int(use.used + limit.overhead), limit.capacity, use.price)
        for limit, use in zip(limits, solution.usage, strict=True)
    ]
    return Plan(
        recipe=recipe,
        limits=tuple(uses),
        sources={name: by_tensor[name].source for name in chosen},
        seconds=solution.seconds,
        _problem=problem,
        _solution=solution,
        _groups={tensor.name: group.name for group in candidates.groups for tensor in group.tensors},
    )


def _check_measured(inventory: Inventory, measured: Collection[str], wanted: Iterable[Format]) -> None:
    """Raise UsageError for formats that some tensor could take and that were never measured."""
    with_imatrix = inventory.imatrix_digest is not None

    def possible(fmt: Format) -> bool:
        return any(
            tensor.left_alone is None
            and tensor.source_format != fmt.name
            and fmt.fits(tensor.row_length)
            and (with_imatrix or not requires_imatrix(tensor.name, fmt))
            for tensor in inventory.tensors
        )

    absent = [fmt for fmt in wanted if fmt.name not in measured]
    if not absent:
        return
    from planner.gguf import requires_imatrix  # takes a while to load, and is mostly not needed

    missing = [fmt.name for fmt in absent if possible(fmt)]
    if missing:
        raise UsageError(
            f"Nothing was measured as {', '.join(missing)}.",
            "Give the model, so that it can be measured: planner solve MODEL --types ...",
        )


def _limits(inventory: Inventory, candidates: Candidates, request: Request) -> list[_Limit]:
    """The limits of a request. Raises UsageError for devices that get no tensor."""
    elements = sum(tensor.elements for tensor in inventory.tensors)

    def in_bytes(size: float) -> str:
        return f"{format_size(round(size))} ({round(size)} bytes)"

    def padded(tensor: TensorRecord, nbytes: int) -> int:
        return _padded(nbytes, inventory)

    def add(name: str, capacity: int, header: int, weigh: Callable[[TensorRecord, int], int | Fraction]) -> None:
        overhead = header + sum((Fraction(weigh(tensor, tensor.nbytes)) for tensor in candidates.fixed), Fraction(0))
        limits.append(_Limit(name, capacity, overhead, weigh, in_bytes))

    limits: list[_Limit] = []
    if request.budget is not None:
        add(_FILE, request.budget, inventory.header_bytes, padded)
    if request.bpw is not None:
        overhead = Fraction(8 * sum(tensor.nbytes for tensor in candidates.fixed))
        capacity = int(request.bpw * elements)
        limits.append(
            _Limit(
                "bpw", capacity, overhead, lambda tensor, nbytes: 8 * nbytes, lambda bits: f"{bits / elements:.4f} bpw"
            )
        )
    where = assign_devices(request.devices, inventory)
    for device in request.devices:
        mine = {name for name, owner in where.items() if owner is device}

        def on_device(tensor: TensorRecord, nbytes: int, mine: set[str] = mine) -> int:
            return _padded(nbytes, inventory) if tensor.name in mine else 0

        add(device.name, device.capacity, 0, on_device)
    if request.active is not None:
        shares = _active_shares(inventory)
        add("active", request.active, 0, lambda tensor, nbytes: shares[tensor.name] * nbytes)
    return limits


def _active_shares(inventory: Inventory) -> dict[str, Fraction]:
    """The share of a tensor's bytes that generating one token reads: of stacked experts those that are used, of token
    embeddings a row (unless they are the output too), of all else everything."""
    experts = int(inventory.metadata.get("expert_count", 0))
    used = int(inventory.metadata.get("expert_used_count", 0)) or experts
    tied = all(tensor.name != "output.weight" for tensor in inventory.tensors)
    shares = {}
    for tensor in inventory.tensors:
        _, role = role_of(tensor.name)
        share = Fraction(1)
        if experts and role.endswith("_exps") and tensor.shape[-1] == experts:
            share = Fraction(min(used, experts), experts)
        elif role == "per_layer_token_embd" or (role == "token_embd" and not tied):
            share = Fraction(1, max(1, tensor.elements // tensor.row_length))
        shares[tensor.name] = share
    return shares


def _solve(
    inventory: Inventory, candidates: Candidates, limits: Sequence[_Limit], request: Request
) -> tuple[Problem, Solution]:
    groups = [
        Group(
            group.name,
            [
                Option(
                    sum(_padded(entry.nbytes, inventory) for entry in option),
                    sum(entry.loss for entry in option),
                    option[0].format.name,
                )
                for option in group.options
            ],
        )
        for group in candidates.groups
    ]
    problem = Problem(groups, [limit.solver_limit(candidates.groups) for limit in limits])
    for limit in limits:
        least, most = (value + limit.overhead for value in problem.extremes(limit.name))
        if limit.capacity < least:
            raise BudgetError(
                f"{_titled(limit)} is below the minimum of {limit.spoken(float(least))}."
                + _causes(inventory, candidates, limit),
                "Raise the limit, or allow smaller formats with --types, --pin and --min.",
            )
        if limit.capacity > most and len(limits) == 1:
            raise BudgetError(
                f"{_titled(limit)} is above the maximum of {limit.spoken(float(most))}: nothing is to be decided.",
                "Use the largest formats as they are, or lower the limit.",
            )
    try:
        solution = solve(problem, method=request.method, gap=request.gap, time_limit=request.time_limit)
    except InfeasibleError as error:
        raise _conflict(error, limits) from error
    except ProblemError as error:
        raise UsageError(f"{error}.", "Check --method, --gap and --time-limit.") from error
    if solution.picks is None:
        raise BudgetError("No recipe was found in time.", "Give more time with --time-limit.")
    return problem, solution


def _titled(limit: _Limit) -> str:
    """A limit as a user knows it."""
    spoken = limit.spoken(limit.capacity)
    return spoken if limit.name in (_FILE, _BPW) else f"{limit.name}: {spoken}"


def _conflict(error: InfeasibleError, limits: Sequence[_Limit]) -> BudgetError:
    """Limits that cannot hold together, in the user's terms."""
    by_name = {limit.name: limit for limit in limits}
    names = [_titled(by_name[name]) for name in error.analysis.limits]
    cures = [
        " and ".join(
            f"{name} to {by_name[name].spoken(float(value + by_name[name].overhead))}"
            for name, value in change.capacities.items()
        )
        for change in error.analysis.changes
    ]
    return BudgetError(
        f"These limits cannot hold together: {'; '.join(names)}.",
        f"Raise {', or '.join(cures)}." if cures else "Raise one of them, or allow smaller formats.",
    )


def _causes(inventory: Inventory, candidates: Candidates, limit: _Limit) -> str:
    """What takes the room under a limit: pins, tensors that stay, the largest of the others."""

    def weight(group: TiedGroup) -> float:
        least = group.options[0]
        return float(sum(limit.weigh(t, entry.nbytes) for t, entry in zip(group.tensors, least, strict=True)))

    pinned = sum(weight(group) for group in candidates.groups if group.name in candidates.pins)
    causes = [f"pins take {limit.spoken(pinned)}"] if pinned else []
    header = inventory.header_bytes if limit.name == _FILE else 0
    causes.append(f"tensors that llama.cpp leaves alone {limit.spoken(float(limit.overhead) - header)}")
    if header:
        causes.append(f"metadata {limit.spoken(header)}")
    largest = max(candidates.groups, key=weight)
    causes.append(f"the largest tensor, {largest.name}, {limit.spoken(weight(largest))} as its smallest format, "
                  f"{largest.options[0][0].format.name}")  # fmt: skip
    return f" Of it, {', '.join(causes)}."


def _padded(nbytes: int, inventory: Inventory) -> int:
    return -(-nbytes // inventory.alignment) * inventory.alignment


def _recipe(
    inventory: Inventory,
    candidates: Candidates,
    chosen: Mapping[str, Candidate],
    source: Source,
    limits: Sequence[_Limit],
) -> Recipe:
    choices = [_choice(tensor, chosen.get(tensor.name), candidates.pins) for tensor in inventory.tensors]
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
        budget="; ".join(_titled(limit) for limit in limits),
        size=inventory.header_bytes + sum(_padded(choice.bytes, inventory) for choice in choices),
        bpw=8 * sum(choice.bytes for choice in choices) / elements,
        loss=sum(choice.loss for choice in choices),
        bound=0.0,
        status="",
        file_type=_file_type(inventory, chosen),
        tensors=tuple(choices),
    )


def _choice(tensor: TensorRecord, entry: Candidate | None, pins: Mapping[str, Rule]) -> Choice:
    if entry is None:
        why = f"left alone: {tensor.left_alone}"
        return Choice(name=tensor.name, format=tensor.source_format, bytes=tensor.nbytes, err=0, loss=0, why=why)
    why = f"pinned: {pins[tensor.name].text}" if tensor.name in pins else "solved"
    return Choice(
        name=tensor.name, format=entry.format.name, bytes=entry.nbytes, err=entry.err, loss=entry.loss, why=why
    )


def _file_type(inventory: Inventory, chosen: Mapping[str, Candidate]) -> int:
    """The llama_ftype of the quantized format that holds most weights."""
    weights: dict[str, int] = {}
    for tensor in inventory.tensors:
        entry = chosen.get(tensor.name)
        # llama-quantize heeds --tensor-type only beside a quantized file type
        if entry is not None and entry.format.quantized:
            weights[entry.format.name] = weights.get(entry.format.name, 0) + prod(tensor.shape)
    return _FILE_TYPES.get(max(weights, key=lambda name: weights[name], default=""), _FALLBACK_FILE_TYPE)
