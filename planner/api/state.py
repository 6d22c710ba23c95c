"""A state file: measure a model into it, and plan from it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, get_args

from planner.api.common import (
    Progress,
    StrPath,
    Texts,
    check_choice,
    check_number,
    model_at,
    paths,
    several,
    size_in_bytes,
    state_errors,
)
from planner.api.others import other_file
from planner.closing import Closing
from planner.files import write_atomically
from planner.formats.ggml import Format
from planner.formats.registry import family_named
from planner.plan.cards import parse_fit
from planner.plan.findings import Findings
from planner.plan.offer import MARGIN, POINTS, Offer, make_offer
from planner.plan.plan import Plan, make_plan
from planner.plan.request import ANY_SIZE, PlanRequest
from planner.plan.rules import Rule, Tie, parse_device, parse_rule, parse_tie, pinned_formats
from planner.plan.target import Target
from planner.recipe import Recipe, load_recipe
from planner.sizes import parse_bits, parse_extent, parse_size
from planner.terms import Draft, FamilyName, RunOn, Source
from state import Store

if TYPE_CHECKING:  # planning need not wait for what reads models
    from planner.gguf import Imatrix, Model

__all__ = ["State", "open_state"]


def open_state(path: StrPath, *, create: bool = False, read_only: bool = False) -> State:
    """Open a state file, with `create` a new one where there is none.

    One process at a time may have it open for writing; any number may read it meanwhile, with `read_only`. Raises
    StateFileError for a file that is missing, locked, damaged, of a newer planner, or no state.
    """
    with state_errors():
        return State(Store.open(path, create=create, read_only=read_only))


class State(Closing):
    """An open state file: what was measured of one model. Close it, or use it in a `with` statement.

    `store` has its contents, record by record.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def path(self) -> Path:
        """Path of the state file."""
        return self.store.path

    def close(self) -> None:
        """Close the file and let others write to it; a second call does nothing."""
        self.store.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def measure(
        self,
        model: StrPath | Model,
        *,
        imatrix: StrPath | Imatrix | None = None,
        no_imatrix: bool = False,
        covariance: StrPath | None = None,
        shrinkage: float | None = None,
        types: Texts = "all",
        pin: Texts = (),
        family: FamilyName = "gguf",
        seed: int = 0,
        tolerance: float = 0.05,
        allow_requantize: bool = False,
        threads: int | None = None,
        scheduler: str | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Measure how wrong every tensor of a model becomes in every format of `types`; return how many measurements
        there are. Those that the state has already are not made again, and those made are kept when it is stopped.

        Without `imatrix`, the one that the state was made with is taken again, unless there is to be `no_imatrix`. With
        the file `covariance`, which has an imatrix too, codes are refined against it as `quantize` would (`shrinkage`
        as there), and errors are measured by it.
        `pin` names formats that single tensors are measured in besides. Rows of a tensor are sampled, by `seed`, until
        the standard error is within `tolerance` of the error. Kernels run in `threads`, or in the workers of the Dask
        `scheduler` at an address.

        Raises ModelError, ImatrixError, CovarianceError, UsageError, KernelError, ClusterError for machines that are of
        no use, and StateFileError for the state of another model.
        """
        from planner.api.refining import inputs_of
        from planner.measure import Settings
        from planner.measure.campaign import Campaign

        check_choice("family", family, get_args(FamilyName))
        check_number("tolerance", tolerance, sys.float_info.min, 1)
        check_number("threads", threads, 1)
        formats = family_named(family).choose(_names(types))
        rules = [parse_rule(text, family=family) for text in several(pin)]
        done = 0
        inputs = inputs_of(self.store, imatrix, no_imatrix=no_imatrix, covariance=covariance, shrinkage=shrinkage)
        with state_errors(), model_at(model) as opened, inputs as (matrix, refinement):
            campaign = Campaign(
                opened, matrix, self.store, formats, Settings(seed, tolerance), family=family, refinement=refinement,
                pinned=pinned_formats(rules, opened.by_name), allow_requantize=allow_requantize,
            )  # fmt: skip
            for step in campaign.run(threads or os.cpu_count() or 1, scheduler):
                done = step.done
                if progress:
                    progress(step.what, step.done, step.total)
        return done

    def solve(
        self,
        *,
        budget: str | int | None = None,
        bpw: str | float | Fraction | None = None,
        device: Texts = (),
        active_budget: str | int | None = None,
        vram: str | int | None = None, ctx: int | None = None, kv: str | None = None, parallel: int | None = None,
        ubatch_size: int | None = None, mmproj: StrPath | None = None, margin: str | int | None = None,
        kld: float | None = None, loss: float | None = None, than: StrPath | None = None,
        tie: Texts = (), pin: Texts = (),
        min: Texts = (), max: Texts = (),  # noqa: A002 (as the command line calls them)
        types: Texts | None = None,
        sensitivity: Source | None = None,
        run_on: RunOn = "cpu", draft: Draft = "auto", family: FamilyName = "gguf",
        method: str = "auto", gap: float = 1e-6, time_limit: float | None = 10.0,
    ) -> Plan:  # fmt: skip
        """Pick a format for every tensor so that all limits hold and the loss is as small as possible.

        Limits, at least one: `budget` is the size of the file, `bpw` bits of tensor data per weight, `device` the size
        of what goes to a device ("NAME:REGEX=SIZE"), `active_budget` the bytes that one token reads, `vram` the memory
        of a card that holds all of the model with `ctx` tokens of context (`kv`, "f16" by default, is the type of keys
        and values, or "q8_0,q4_0" those of each; `parallel` sequences share the tokens; `mmproj` is an encoder's file;
        `margin` replaces what is estimated for all else). With `ctx`, devices hold their share of it too. Or the other
        way round, the smallest file whose predicted KL divergence is at most `kld`, whose loss is at most `loss`, or
        that loses no more `than` another: a GGUF, a recipe, or a mix of llama.cpp by its name. Rules: tensors
        that `pin` ("REGEX=TYPE") gives a type, nothing smaller than `min` or larger than `max` ("TYPE" or
        "REGEX=TYPE"), and one type for what a `tie` (a pattern, or "fused") finds in a block. `draft`: formats of draft
        heads, "auto" for 4 bits at least, "keep", "q8_0", or "drop" for a file without them.

        Raises StateFileError where measurements are missing, UsageError for options that cannot be followed,
        BudgetError for limits or targets that no recipe meets, and RecipeError for another file that is of no use.
        """
        check_choice("draft", draft, get_args(Draft))
        request = PlanRequest(
            budget=size_in_bytes(budget),
            bpw=None if bpw is None else parse_bits(str(bpw)),
            devices=tuple(map(parse_device, several(device))),
            active=size_in_bytes(active_budget),
            fit=parse_fit(
                vram=size_in_bytes(vram), ctx=ctx, kv=kv, parallel=parallel, ubatch_size=ubatch_size, mmproj=mmproj,
                margin=size_in_bytes(margin),
            ),
            **_asked(family, types, tie, pin, min, max, sensitivity, run_on),
            draft=draft,
            method=method,
            gap=gap,
            time_limit=time_limit,
            target=_target(kld, loss, than),
        )  # fmt: skip
        return self._planned(request)

    def frontier(
        self,
        *,
        from_: str = "2bpw",
        to: str = "8.5bpw",
        points: int = POINTS,
        ladder: int | None = None,
        with_: StrPath | Iterable[StrPath] = (),
        mixes: bool = True,
        memory: Texts = (),
        reserve: str | int = MARGIN,
        ctx: int | None = None,
        device: Texts = (),
        active_budget: str | int | None = None,
        tie: Texts = (),
        pin: Texts = (),
        min: Texts = (),  # noqa: A002
        max: Texts = (),  # noqa: A002
        types: Texts | None = None,
        sensitivity: Source | None = None,
        run_on: RunOn = "cpu",
        family: FamilyName = "gguf",
    ) -> Offer:
        """Work out what every size `from_` one `to` another ("2bpw" or "9GB") loses: an `Offer` with `curve.points`.

        Its `landmarks` are files `with_` it (GGUFs, recipes), `mixes` of llama.cpp, and memories with `reserve` left
        free, and room for `ctx` tokens of context; its `ladder` has so many sizes worth publishing. Limits and rules
        are those of `solve`, at every size.

        Raises what `solve` raises.
        """
        check_number("points", points, 2)
        request = PlanRequest(
            bpw=ANY_SIZE,
            devices=tuple(map(parse_device, several(device))),
            active=size_in_bytes(active_budget),
            **_asked(family, types, tie, pin, min, max, sensitivity, run_on),
        )
        with state_errors():
            return make_offer(
                Findings.read(self.store, family), request, low=parse_extent(from_), high=parse_extent(to),
                points=points, others=[other_file(path) for path in paths(with_)], mixes=mixes,
                memories=[parse_size(text) for text in several(memory)], reserve=size_in_bytes(reserve) or 0,
                ctx=ctx, ladder=ladder,
            )  # fmt: skip

    def report(
        self,
        path: StrPath,
        *,
        recipe: StrPath | Recipe | None = None,
        budget: str | int | None = None,
        bpw: str | float | Fraction | None = None,
        beside: StrPath | Iterable[StrPath] = (),
        tie: Texts = (),
        pin: Texts = (),
        min: Texts = (),  # noqa: A002
        max: Texts = (),  # noqa: A002
        types: Texts | None = None,
        sensitivity: Source | None = None,
        run_on: RunOn = "cpu",
        family: FamilyName = "gguf",
    ) -> None:
        """Write a page of HTML on which every size can be explored, as `planner report` does. It opens with a `recipe`
        and its pins, or with a size; files `beside` are in its chart; rules, as for `solve`, bound what it offers.

        Raises what `solve` raises, RecipeError for a recipe of another model, and OutputError.
        """
        from planner.report.page import Start, report_page

        check_choice("family", family, get_args(FamilyName))
        opened = recipe if recipe is None or isinstance(recipe, Recipe) else load_recipe(Path(recipe))
        family = family if opened is None else opened.family
        request = PlanRequest(
            bpw=ANY_SIZE,
            **_asked(family, types, tie, pin, min, max, sensitivity, run_on),
        )
        start = Start(opened, size_in_bytes(budget), None if bpw is None else float(parse_bits(str(bpw))))
        with state_errors():
            findings = Findings.read(self.store, family)
        others = [other_file(file) for file in paths(beside)]
        write_atomically(Path(path), report_page(findings, request, start, beside=others).encode())

    def _planned(self, request: PlanRequest) -> Plan:
        with state_errors():
            return make_plan(Findings.read(self.store, request.family, request.draft), request)


class _Asked(TypedDict):
    """What is asked of a recipe, whatever its size."""

    family: FamilyName
    formats: tuple[Format, ...] | None
    pins: tuple[Rule, ...]
    floors: tuple[Rule, ...]
    caps: tuple[Rule, ...]
    ties: tuple[Tie, ...]
    sensitivity: Source | None
    run_on: RunOn


def _asked(
    family: FamilyName, types: Texts | None, tie: Texts, pin: Texts, least: Texts, most: Texts,
    sensitivity: Source | None, run_on: RunOn,
) -> _Asked:  # fmt: skip
    """Read arguments as `solve` describes them. Raises UsageError."""
    check_choice("family", family, get_args(FamilyName))
    check_choice("run_on", run_on, get_args(RunOn))
    check_choice("sensitivity", sensitivity, get_args(Source))
    bounded = functools.partial(parse_rule, default_pattern="", family=family)
    return {
        "family": family,
        "formats": None if types is None else family_named(family).choose(_names(types)),
        "pins": tuple(parse_rule(text, family=family) for text in several(pin)),
        "floors": tuple(map(bounded, several(least))),
        "caps": tuple(map(bounded, several(most))),
        "ties": tuple(part for text in several(tie) for part in parse_tie(text)),
        "sensitivity": sensitivity,
        "run_on": run_on,
    }


def _names(types: Texts) -> str | list[str]:
    return types if isinstance(types, str) else list(types)


def _target(kld: float | None, loss: float | None, than: StrPath | None) -> Target | None:
    if kld is None and loss is None and than is None:
        return None
    return Target(loss=loss, kld=kld, than=None if than is None else other_file(than))
