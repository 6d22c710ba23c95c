"""Measured sensitivities: passes of the model with tensors changed, one after the other, into the state file.

The model is loaded once. A pass puts one tensor (or a block of them, or a role) through a format, runs the text, takes
the KL divergence from the unchanged model, and puts the weights back. Every pass is stored as soon as it is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.formats.ggml import Format, formats
from planner.llama.evaluate.baseline import Baseline, record
from planner.llama.evaluate.compare import Progress, diverge
from planner.llama.passes.kld import by_window, mean_kld, pass_key
from planner.llama.passes.perturb import Perturber
from planner.names.gguf import ahead
from planner.plan.findings import Findings
from planner.sensitivity import Design, covariance_about, factored, select_passes
from state import Pass, Store

__all__ = ["Trial", "Trials", "plan_trials"]

# Formats for passes: those with the fastest kernels (docs/formats.md), so that each tensor can be given a medium-sized
# error; in blocks of 256 and of 32
_MIDDLING = ("q3_K", "q6_K", "q4_0", "q5_0", "q8_0")
# What a pass may lose: 0.05 nats, by reach, or else a share of the stream's energy, which is about 0.01. Found over
# predicted are the same there as for less
_MOST_LOSS = 0.05


@dataclass(frozen=True)
class Trial:
    """A pass to run: these tensors through these formats."""

    label: str
    changes: Mapping[str, Format]


def plan_trials(findings: Findings, design: Design | None, passes: int | None, *, affordable: int) -> list[Trial]:
    """Return the passes of a design, or the `passes` most informative ones, over all measured tensors. Without either,
    each tensor alone if there are at most `affordable`, else the factored design."""
    inventory, reference = findings.inventory, findings.sensitivities(findings.reference)
    losses = {
        tensor: {fmt: reference[tensor].loss(parts) for fmt, parts in errors.items() if fmt in _MIDDLING}
        for tensor, errors in findings.errors.items()
    }
    drafted = ahead(record.name for record in inventory.tensors)  # which no pass runs through
    names = [record.name for record in inventory.tensors if losses[record.name] and record.name not in drafted]
    if passes is not None:
        covariance = covariance_about(reference, names, findings.spreads)
        elements = {record.name: record.elements for record in inventory.tensors}
        groups = select_passes(names, covariance, elements, passes)
    elif design == "factored" or (design is None and len(names) > affordable):
        groups = factored(names)
    else:
        groups = [(name, (name,)) for name in names]
    return [
        Trial(label, {name: _middling(losses[name], _MOST_LOSS / len(members)) for name in members})
        for label, members in groups
    ]


def _middling(losses: Mapping[str, float], most: float) -> Format:
    """Return the format with the largest loss up to `most`, or, if there is none, the one with the smallest."""
    within = [name for name, loss in losses.items() if loss <= most]
    name = max(within, key=lambda name: losses[name]) if within else min(losses, key=lambda name: losses[name])
    return formats()[name]


class Trials(Closing):
    """Passes over one stretch of text, `windows` i32[n, context], of the model that a perturber holds; a context
    manager, which releases the unchanged model's log-probabilities. Made by `Trials.start`.

    `baseline` are these log-probabilities, a temporary file; `seconds` is the time of one pass.
    """

    def __init__(
        self, store: Store, subject: str, perturber: Perturber, windows: NDArray[np.int32], baseline: Baseline
    ) -> None:
        self._store, self._subject, self._perturber, self._windows = store, subject, perturber, windows
        self.baseline = baseline
        begun = time.monotonic()
        # Rounding of log-probabilities to 16 bits: the same divergence in every pass, so it is subtracted
        self._at_rest = self._evaluate()
        self.seconds = time.monotonic() - begun

    @classmethod
    def start(
        cls, store: Store, perturber: Perturber, windows: NDArray[np.int32], progress: Progress | None = None
    ) -> Self:
        """Run the unchanged model, twice. Raises StateFileError if the state holds no finished measurements."""
        subject = Findings.read(store).subject_of_passes()
        baseline = record(perturber.engine, windows, progress=progress)
        try:
            return cls(store, subject, perturber, windows, baseline)
        except BaseException:
            baseline.close()
            raise

    def close(self) -> None:
        """Release the unchanged model's log-probabilities."""
        self.baseline.close()

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials that the state does not hold and whose tensors can be changed."""
        known = {entry.key for entry in self._store.passes(self._subject)}
        return [trial for trial in trials if self._key(trial) not in known and self._reachable(trial)]

    def run(self, trials: Sequence[Trial], deadline: float | None = None) -> Iterator[Pass]:
        """Run passes one after the other; store and yield each. Weights are put back after every one.

        None is begun that would not be done by `deadline` (of `time.monotonic()`), if it took as long as the longest.
        """
        longest = self.seconds
        for trial in trials:
            begun = time.monotonic()
            if deadline is not None and begun + longest > deadline:
                return
            try:
                errors = self._perturber.change(trial.changes)
                klds = self._evaluate()
            finally:
                self._perturber.restore()
            kld, stderr = mean_kld(klds - self._at_rest)
            entry = Pass(
                key=self._key(trial), subject=self._subject, label=trial.label,
                formats={name: fmt.name for name, fmt in trial.changes.items()}, errors={**errors},
                kld=kld, stderr=stderr, tokens=self._windows.size, seconds=time.monotonic() - begun,
            )  # fmt: skip
            self._store.add_passes([entry])
            longest = max(longest, entry.seconds)
            yield entry

    def _evaluate(self) -> NDArray[np.float64]:
        return by_window(diverge(self._perturber.engine, self.baseline).kld, self.baseline)

    def _reachable(self, trial: Trial) -> bool:
        return all(name in self._perturber.weights for name in trial.changes)

    def _key(self, trial: Trial) -> str:
        return pass_key(self._subject, self._windows, {name: fmt.name for name, fmt in trial.changes.items()})
