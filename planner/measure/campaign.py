"""Measure a model into a state: find what is known already and what is missing, and measure that.

Everything kept has a key that covers all it depends on, so nothing stale is used and nothing valid is thrown away:

- facts of a tensor (content digest, energies): identity of the file, imatrix of its block, version of the formulas
- a measurement: content digest, imatrix entry, format, sampling settings, version of the metric, kernels
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.digests import digest, stamp
from planner.formats.ggml import Format
from planner.formats.registry import all_formats, family_named, kernel_of
from planner.gguf import GAPS_VERSION, Imatrix, Model, Tensor
from planner.gguf.reach import LOGITS_REACH
from planner.gguf.refinement import Refinement
from planner.measure.anatomy import read_anatomy
from planner.measure.energies import block_facts, global_facts
from planner.measure.experts import EXPERTS_VERSION
from planner.measure.inventory import take_inventory
from planner.measure.loop import Job, Measured, Settings, measure_jobs
from planner.measure.metric import METRIC_VERSION
from planner.measure.moments import moments
from planner.measure.rounding import rounding_of
from planner.measure.survey import Survey, survey_in_place
from planner.measure.targets import Block, Target, batches, find_blocks, notes_on
from planner.names.gguf import is_expert, is_tied
from planner.sensitivity import STRUCTURE_VERSION, Facts
from planner.terms import FamilyName
from planner.work import Crew, Stop, open_crew
from state import Energies, Measurement, Store

__all__ = ["Campaign", "Step"]


@dataclass(frozen=True)
class Step:
    """Progress: `what` was just finished; `done` of `total` measurements exist, `fresh` of them from this run."""

    what: str
    done: int
    total: int
    fresh: int


@dataclass(frozen=True)
class _Surveying:
    """What each who surveys blocks of a model does."""

    model: Model
    imatrix: Imatrix | None
    refinement: Refinement | None

    def __call__(self, block: Block, stop: Stop) -> list[Survey]:
        surveys = []
        for target in block.to_survey:
            known = moments(target.tensor, self.imatrix, self.refinement)
            surveys.append(survey_in_place(self.model, target.tensor, known, stop))
        return surveys


class Campaign:
    """Measures one model into one state file: every tensor in the `candidates`, and some, by name, in `pinned` formats
    too, all of one `family`. What the state holds of other families stays valid. With a `refinement`, formats are
    measured as they will be rounded, and by the covariances; what was measured without stays valid too.

    Creating it checks model, imatrix and state against each other: raises ImatrixError, ModelError, or
    the state's errors where they do not belong together.
    """

    def __init__(
        self,
        model: Model,
        imatrix: Imatrix | None,
        store: Store,
        candidates: Sequence[Format],
        settings: Settings,
        *,
        family: FamilyName = "gguf",
        refinement: Refinement | None = None,
        pinned: Mapping[str, Sequence[Format]] | None = None,
        allow_requantize: bool = False,
    ) -> None:
        family_named(family).check_architecture(model.architecture)
        coverage = None if imatrix is None else imatrix.require(model)
        self._model, self._imatrix, self._store, self._settings = model, imatrix, store, settings
        self._refinement, self._coverage = refinement, coverage
        self._anatomy = read_anatomy(model)
        self._blocks = find_blocks(
            model, imatrix, candidates, pinned or {}, family=family_named(family), allow_requantize=allow_requantize
        )
        store.set_inventory(take_inventory(model, imatrix, settings, refinement))

    @property
    def notes(self) -> list[str]:
        """Notes on the model and its imatrix for before anything is measured."""
        return notes_on(self._blocks, self._coverage, self._model.architecture)

    def run(self, threads: int, scheduler: str | None = None) -> Iterator[Step]:
        """Measure what is missing, in threads or by the workers of a Dask scheduler, storing every tensor's results as
        they come; yields progress. Raises ClusterError."""
        with open_crew(threads, scheduler) as crew:
            yield from self._run(crew)

    def _run(self, crew: Crew) -> Iterator[Step]:
        survey = _Surveying(self._model, self._imatrix, self._refinement)
        total = sum(len(target.formats) for block in self._blocks for target in block.targets)
        for block in self._blocks:
            self._recall(block)
        fresh, left = 0, _missing(self._blocks)
        yield Step("", total - left, total, fresh)
        for batch in batches([block for block in self._blocks if block.to_survey]):
            left -= _missing(batch)  # until the batch ends, what is missing outside of it, which does not change
            jobs: list[Job] = []
            for surveyed in crew.unordered(survey, batch):
                jobs += self._learn(*surveyed)
                yield Step("", total - left - _missing(batch), total, fresh)
            targets = {target.tensor.name: target for block in batch for target in block.targets}
            for found in measure_jobs(self._model, jobs, self._settings, crew):
                target = targets[found.tensor.name]
                self._store.add(self._records(target, found))
                target.missing = tuple(fmt for fmt in target.missing if fmt.name not in found.rows)
                fresh += len(found.rows)
                yield Step(found.tensor.name, total - left - _missing(batch), total, fresh)
            left += _missing(batch)
        self._store.select(self._selection())

    def saved(self) -> int:
        """Return how many of the wanted measurements the state holds. It is asked for these, as a run that was
        interrupted may have stored more than it has counted."""
        for block in self._blocks:
            for target in block.targets:
                if target.digest:
                    self._look_up(target)
        return sum(len(target.formats) for block in self._blocks for target in block.targets) - _missing(self._blocks)

    # What there is to do

    def _recall(self, block: Block) -> None:
        """Find the block's facts in the state and, if they are there, which measurements are missing."""
        shared = self._facts_basis(block)
        for target in block.targets:
            target.facts_key = digest(*shared, target.tensor.name)
        stored = self._store.energies([target.facts_key for target in block.targets])
        block.known = len(stored) == len(block.targets)
        if block.known:
            for target in block.targets:
                target.digest = stored[target.facts_key].content_digest
                self._look_up(target)

    def _look_up(self, target: Target) -> None:
        keys = {self._key(target, fmt): fmt for fmt in target.formats}
        found = self._store.measurements(keys)
        target.missing = tuple(fmt for key, fmt in keys.items() if key not in found)

    def _facts_basis(self, block: Block) -> list[str]:
        """Return all that the facts of a block depend on. Files are known by size and time of change, as `make` knows
        them; when these change the content is read again, and what was measured of the same content stays valid."""
        basis = [str(STRUCTURE_VERSION), str(METRIC_VERSION), repr(self._anatomy_of(block))]
        if any(is_expert(target.tensor.name) for target in block.targets):
            basis.append(EXPERTS_VERSION)
        for target in block.targets:
            tensor = target.tensor
            basis += [tensor.name, repr(tensor.shape), tensor.format, str(tensor.offset)]
            basis += [*map(str, stamp(self._model.parts[tensor.part])), *self._entry_keys(tensor)]
        if self._imatrix is not None and self._imatrix.reach:
            names = (*(target.tensor.name for target in block.targets), LOGITS_REACH)
            basis.append(repr([(self._imatrix.nats(name), self._imatrix.inside(name)) for name in names]))
        return basis

    def _anatomy_of(self, block: Block) -> object:
        anatomy = self._anatomy
        own = anatomy.blocks.get(block.number) if block.number is not None else None
        vectors = {name: vector.tobytes() for name, vector in own.vectors.items()} if own else {}
        sizes = (own.heads, own.kv_heads, own.key_length, own.value_length, own.scale, own.readers) if own else ()
        norms = () if block.number is not None else (anatomy.output_norm, anatomy.per_layer_norm)
        scales = (
            anatomy.embedding_scale, anatomy.residual_scale, anatomy.attention_scale, anatomy.activation,
            anatomy.rotary, *(norm.tobytes() for norm in norms if norm is not None),
        )  # fmt: skip
        return (anatomy.architecture, *scales, anatomy.experts, anatomy.experts_used, sizes, sorted(vectors.items()))

    def _entry_keys(self, tensor: Tensor) -> list[str]:
        """Return what of the imatrix the errors of a tensor depend on, and how they are taken if not as of most."""
        if self._imatrix is None or not self._imatrix.covers(tensor):
            return ["none"]
        tied = is_tied(tensor.name, self._model.by_name)
        outputs = self._imatrix.worth(tensor)
        worth = [] if outputs is None else [digest(outputs.tobytes().hex())]
        return [self._imatrix.entries[tensor.name].key, *(["looked up"] if tied else []), *worth]

    def _has_gaps(self, tensor: Tensor) -> bool:
        return self._imatrix is not None and self._imatrix.has_gaps(tensor)

    def _key(self, target: Target, fmt: Format) -> str:
        tensor, settings = target.tensor, self._settings
        where = (tensor.name, repr(tensor.shape), tensor.format, target.digest, *self._entry_keys(tensor))
        how = (repr(settings.seed), repr(settings.tolerance), str(METRIC_VERSION), *kernel_of(fmt))
        refined = self._refinement
        pairs = refined.key if refined is not None and refined.covariances.covers(tensor) else ()
        return digest(*where, fmt.name, *how, *pairs)

    # Doing it

    def _learn(self, block: Block, surveys: Sequence[Survey]) -> list[Job]:
        """Store the facts that follow from a block's surveys; return what is left to measure of it."""
        by_name = {survey.tensor.name: survey for survey in surveys}
        if not block.known:
            facts = self._facts(block, surveys)
            for target in block.targets:
                target.digest = by_name[target.tensor.name].digest
            self._store.add_energies(
                Energies(
                    key=target.facts_key,
                    tensor=target.tensor.name,
                    content_digest=target.digest,
                    gaps_version=GAPS_VERSION if self._has_gaps(target.tensor) else None,
                    values=facts[target.tensor.name].values(),
                )
                for target in block.targets
            )
            for target in block.targets:
                self._look_up(target)
        return [Job(by_name[t.tensor.name].slim(), t.missing) for t in block.targets if t.missing]

    def _facts(self, block: Block, surveys: Sequence[Survey]) -> dict[str, Facts]:
        tied = "output.weight" not in self._model.by_name
        if block.number is not None:
            entries = {} if self._imatrix is None else self._imatrix.entries
            names = [survey.tensor.name for survey in surveys]
            tokens = {name: float(entries[name].counts.sum()) for name in names if name in entries}
            placed = block_facts(surveys, self._anatomy, block.number, tokens)
        else:
            placed = {survey.tensor.name: global_facts(survey, self._anatomy, tied=tied) for survey in surveys}
        return {
            survey.tensor.name: replace(
                placed.get(survey.tensor.name, Facts()), rounding=rounding_of(survey, self._anatomy, tied=tied)
            )
            for survey in surveys
        }

    def _records(self, target: Target, found: Measured) -> Iterator[Measurement]:
        for fmt in target.missing:
            estimate = found.estimates.get(fmt.name)
            if estimate is not None:
                yield Measurement(
                    key=self._key(target, fmt),
                    tensor=target.tensor.name,
                    format=fmt.name,
                    err_var=estimate.error.variance,
                    err_mean=estimate.error.mean,
                    err_massive=estimate.error.massive,
                    stderr=estimate.stderr,
                    stderr_massive=estimate.stderr_massive,
                    rows=found.rows[fmt.name],
                    kernel_seconds=found.seconds[fmt.name],
                    made_with=kernel_of(fmt)[0],
                )

    def _selection(self) -> Iterator[str]:
        """Yield the keys of everything valid: facts, and measurements by this run and those before it."""
        every = [fmt for fmt in all_formats().values() if fmt.for_weights]
        for block in self._blocks:
            for target in block.targets:
                yield target.facts_key
                if not target.kept:
                    yield from self._store.measurements(self._key(target, fmt) for fmt in every)


def _missing(blocks: Sequence[Block]) -> int:
    """Count the measurements that blocks still need."""
    # Where facts are missing, the content is not known to be what was measured: nothing counts as done yet
    return sum(len(target.missing if target.digest else target.formats) for block in blocks for target in block.targets)
