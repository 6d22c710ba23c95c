"""A state file: measure a model into it, and plan from it."""

from __future__ import annotations

import functools
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from planner.api.common import (
    Progress,
    StrPath,
    Texts,
    check_choice,
    check_number,
    model_at,
    several,
    size_in_bytes,
    state_errors,
)
from planner.closing import Closing
from planner.formats.registry import family_named
from planner.plan.cards import parse_fit
from planner.plan.findings import Findings
from planner.plan.plan import Plan, make_plan
from planner.plan.request import PlanRequest
from planner.plan.rules import parse_device, parse_rule, parse_tie, pinned_formats
from planner.sizes import parse_bits
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
        progress: Progress | None = None,
    ) -> int:
        """Measure how wrong every tensor of a model becomes in every format of `types`; return how many measurements
        there are. Those that the state has already are not made again, and those made are kept when it is stopped.

        Without `imatrix`, the one that the state was made with is taken again, unless there is to be `no_imatrix`. With
        the file `covariance`, which has an imatrix too, codes are refined against it as `quantize` would (`shrinkage`
        as there), and errors are measured by it.
        `pin` names formats that single tensors are measured in besides. Rows of a tensor are sampled, by `seed`, until
        the standard error is within `tolerance` of the error.

        Raises ModelError, ImatrixError, CovarianceError, UsageError, KernelError, and StateFileError for the state of
        another model.
        """
        from planner.api.refining import inputs_of
        from planner.measure import Settings
        from planner.measure.campaign import Campaign

        check_choice("family", family, get_args(FamilyName))
        check_number("tolerance", tolerance, sys.float_info.min, 1)
        check_number("threads", threads, 1)
        formats = family_named(family).choose(types if isinstance(types, str) else list(types))
        rules = [parse_rule(text, family=family) for text in several(pin)]
        done = 0
        inputs = inputs_of(self.store, imatrix, no_imatrix=no_imatrix, covariance=covariance, shrinkage=shrinkage)
        with state_errors(), model_at(model) as opened, inputs as (matrix, refinement):
            campaign = Campaign(
                opened, matrix, self.store, formats, Settings(seed, tolerance), family=family, refinement=refinement,
                pinned=pinned_formats(rules, opened.by_name), allow_requantize=allow_requantize,
            )  # fmt: skip
            for step in campaign.run(threads or os.cpu_count() or 1):
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
        `margin` replaces what is estimated for all else). With `ctx`, devices hold their share of it too. Rules:
        tensors that `pin` ("REGEX=TYPE") gives a type, nothing smaller than `min` or larger than `max` ("TYPE" or
        "REGEX=TYPE"), and one type for what a `tie` (a pattern, or "fused") finds in a block. `draft`: formats of draft
        heads, "auto" for 4 bits at least, "keep" or "q8_0".

        Raises StateFileError where measurements are missing, UsageError for options that cannot be followed, and
        BudgetError for limits that no recipe meets.
        """
        check_choice("family", family, get_args(FamilyName))
        check_choice("run_on", run_on, get_args(RunOn))
        check_choice("draft", draft, get_args(Draft))
        check_choice("sensitivity", sensitivity, get_args(Source))
        bounded = functools.partial(parse_rule, default_pattern="", family=family)
        request = PlanRequest(
            budget=size_in_bytes(budget),
            bpw=None if bpw is None else parse_bits(str(bpw)),
            devices=tuple(map(parse_device, several(device))),
            active=size_in_bytes(active_budget),
            fit=parse_fit(
                vram=size_in_bytes(vram), ctx=ctx, kv=kv, parallel=parallel, ubatch_size=ubatch_size, mmproj=mmproj,
                margin=size_in_bytes(margin),
            ),
            family=family,
            formats=None
            if types is None
            else family_named(family).choose(types if isinstance(types, str) else list(types)),
            pins=tuple(parse_rule(text, family=family) for text in several(pin)),
            floors=tuple(map(bounded, several(min))),
            caps=tuple(map(bounded, several(max))),
            ties=tuple(part for text in several(tie) for part in parse_tie(text)),
            sensitivity=sensitivity,
            run_on=run_on,
            draft=draft,
            method=method,
            gap=gap,
            time_limit=time_limit,
        )  # fmt: skip
        return self._planned(request)

    def _planned(self, request: PlanRequest) -> Plan:
        with state_errors():
            return make_plan(Findings.read(self.store, request.family), request)
