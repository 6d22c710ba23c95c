"""Polishing: a solved recipe improved by evaluated exchanges.

Sensitivities are estimates. If a tensor's sensitivity were half or twice its estimate, the solver would give the tensor
another format and pay for it, or spend what it frees, where that costs or gains most. Each such answer respects all
limits, pins and ties, and differs from the recipe by an exchange. If the evaluated KL divergence improves by more than
chance explains, the exchange is kept, and so is the sensitivity that led to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.formats.ggml import formats
from planner.llama.evaluate.baseline import Baseline, record
from planner.llama.evaluate.compare import Progress, diverge
from planner.llama.passes.kld import by_window, mean_kld
from planner.llama.passes.perturb import Perturber
from planner.plan.accounting import compose_recipe
from planner.plan.assess import assess
from planner.plan.findings import Findings
from planner.plan.plan import Plan, make_plan
from planner.plan.request import PlanRequest
from planner.recipe import Choice, Recipe
from planner.sensitivity import Prediction

__all__ = ["TOKENS", "Exchange", "Polish"]

TOKENS = 16384  # of the text: differences of 1 % are then seen in most models

_FACTORS = (2.0, 0.5)
_SURE = 3.0  # standard errors by which an exchange must improve: tens of exchanges are tried
_PRIOR_LOG_STD = 0.35  # of the logarithm of a sensitivity that no pass has measured


@dataclass(frozen=True, slots=True)
class Exchange:
    """A tried exchange: the changed formats, as (before, after); the change of the KL divergence (nats per token,
    negative is better) with its paired standard error; and whether it was kept."""

    changes: Mapping[str, tuple[str, str]]
    difference: float
    stderr: float
    kept: bool


class Polish(Closing):
    """The improvement of one plan over windows of text, i32[n, context], on the model that a perturber holds; a context
    manager, which releases the original's log-probabilities. Made by `Polish.start`.

    `before` is the KL divergence of the plan's recipe (nats per token) and its standard error; `seconds` is the time of
    one run of the model.
    """

    def __init__(
        self, findings: Findings, request: PlanRequest, perturber: Perturber, plan: Plan, baseline: Baseline,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self._findings, self._perturber, self._baseline = findings, perturber, baseline
        self.plan = plan
        # all later plans use the same source, with some sensitivities multiplied
        self._request = replace(request, sensitivity=plan.source)
        self._factors: dict[str, float] = {}
        self._formats = plan.recipe.formats
        self._apply({choice.name: choice.format for choice in plan.recipe.tensors if choice.loss})
        begun = time.monotonic()
        self._klds = self._evaluate(progress)
        self.seconds = time.monotonic() - begun
        self.before = self.now

    @classmethod
    def start(
        cls, findings: Findings, request: PlanRequest, perturber: Perturber, windows: NDArray[np.int32], plan: Plan,
        progress: Progress | None = None,
    ) -> Self:  # fmt: skip
        """Run the original, then the plan's recipe."""
        baseline = record(perturber.engine, windows, progress=progress)
        try:
            return cls(findings, request, perturber, plan, baseline, progress)
        except BaseException:
            baseline.close()
            raise

    def close(self) -> None:
        """Release the original's log-probabilities."""
        self._baseline.close()

    @property
    def now(self) -> tuple[float, float]:
        """The KL divergence of the current recipe (nats per token), and its standard error."""
        return mean_kld(self._klds)

    def run(self, passes: int) -> Iterator[Exchange]:
        """Try at most so many exchanges, those of the most uncertain losses first; yield each."""
        tried = {tuple(sorted(self._formats.items()))}
        for name, factor in self._candidates():
            if passes <= 0:
                return
            factors = {**self._factors, name: self._factors.get(name, 1.0) * factor}
            wanted = make_plan(self._findings, self._request, factors).recipe.formats
            identity = tuple(sorted(wanted.items()))
            if identity in tried:
                continue
            tried.add(identity)
            passes -= 1
            changes = {
                tensor: (self._formats[tensor], fmt) for tensor, fmt in wanted.items() if fmt != self._formats[tensor]
            }
            self._apply({tensor: after for tensor, (_, after) in changes.items()})
            klds = self._evaluate()
            difference, stderr = mean_kld(klds - self._klds)
            kept = difference < -_SURE * stderr
            if kept:
                self._factors, self._formats, self._klds = factors, wanted, klds
            else:
                self._apply({tensor: before for tensor, (before, _) in changes.items()})
            yield Exchange(changes, difference, stderr, kept)

    def plan_as_it_stands(self) -> Plan:
        """Return the plan with the current recipe and the divergence now expected, assuming that the relative gain on
        this text holds elsewhere. Losses are by the sensitivities before polishing, since the bound refers to those."""
        prediction, (before, _), (now, _) = self.plan.prediction, self.before, self.now
        if prediction is not None and before > 0:
            gain = min(max(now, 0.0) / before, 1.0)
            prediction = Prediction(prediction.kld * gain, prediction.low * gain, prediction.high * gain)
        return replace(self.plan, recipe=self._recipe(), prediction=prediction)

    def _recipe(self) -> Recipe:
        solved, inventory = self.plan.recipe, self._findings.inventory
        losses = self._findings.losses(self.plan.source)
        polished = assess(inventory, self._formats, losses, why="polished").recipe

        def choice(before: Choice, after: Choice) -> Choice:
            return before if before.format == after.format else after

        choices = [choice(*pair) for pair in zip(solved.tensors, polished.tensors, strict=True)]
        return compose_recipe(
            inventory, choices, sensitivity=solved.sensitivity, budget=solved.budget, bound=solved.bound,
            status=solved.status,
        )  # fmt: skip

    def _candidates(self) -> Iterator[tuple[str, float]]:
        """Yield tensors and factors on their sensitivities, the most uncertain losses first."""
        known = self._findings.sensitivities(self.plan.source)

        def doubt(choice: Choice) -> float:
            return (choice.loss or 0.0) * (known[choice.name].log_std or _PRIOR_LOG_STD)

        for choice in sorted(self.plan.recipe.tensors, key=doubt, reverse=True):
            if choice.loss and choice.name in self._perturber.weights:
                for factor in _FACTORS:
                    yield choice.name, factor

    def _apply(self, wanted: Mapping[str, str]) -> None:
        """Bring tensors in the engine's memory into these formats."""
        stored = {tensor.name: tensor.source_format for tensor in self._findings.inventory.tensors}
        self._perturber.restore([name for name, fmt in wanted.items() if fmt == stored[name]])
        self._perturber.change({name: formats()[fmt] for name, fmt in wanted.items() if fmt != stored[name]})

    def _evaluate(self, progress: Progress | None = None) -> NDArray[np.float64]:
        return by_window(diverge(self._perturber.engine, self._baseline, progress).kld, self._baseline)
