"""What is read from a finished state, and the losses that follow from it."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from planner.errors import StateFileError, UsageError
from planner.evidence.add import add_divergences
from planner.evidence.kld_table import KldTable
from planner.formats.ggml import formats
from planner.plan.assess import assess
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.recipe import load_recipe
from planner.sensitivity import ErrorParts
from state import Energies, Pass, Store
from tests import tiny

SHAPES = {
    "token_embd.weight": (256, 8), "blk.0.attn_norm.weight": (256,), "blk.0.ffn_down.weight": (256, 8),
    "output.weight": (256, 8),
}  # fmt: skip
FACTS = {
    "token_embd.weight": {"var": 4.0, "mean": 4.0, "massive": 0.0, "write": 4.0, "stage": -1.0},
    "blk.0.ffn_down.weight": {"var": 4.0, "mean": 2.0, "massive": 0.0, "write": 4.0, "stage": 1.0, "fine": 0.5},
    "output.weight": {"output": 12.0},
}


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def write(path, facts=FACTS):
    """A finished state with these facts."""
    tiny.write(path, SHAPES)
    energies = [
        Energies(key=digest(name), tensor=name, values=values, content_digest=digest("made up"))
        for name, values in facts.items()
    ]
    with Store.open(path) as store:
        store.add_energies(energies)
        store.select([*store.measurements(selected=True), *(entry.key for entry in energies)])


@pytest.fixture
def state(tmp_path):
    write(tmp_path / "s.planner")
    return tmp_path / "s.planner"


def read(path):
    with Store.open(path, read_only=True) as store:
        return Findings.read(store)


def test_a_plan_needs_no_state_that_is_open(state):
    findings = read(state)
    state.unlink()
    first, second = (make_plan(findings, PlanRequest(budget=10_000)) for _ in range(2))
    assert first.recipe == second.recipe
    with pytest.raises(dataclasses.FrozenInstanceError):
        findings.subject = None


def test_factors_are_of_sensitivities(state):
    findings = read(state)
    request, name = PlanRequest(budget=5000), "blk.0.ffn_down.weight"
    before, after = (make_plan(findings, request, factors).recipe for factors in (None, {name: 1e6}))
    rank = [formats()[recipe.formats[name]].bpw for recipe in (before, after)]
    assert rank[1] > rank[0]


def test_plans_and_imports_count_the_same_losses(state):
    """By the one function for both, and as the errors and sensitivities multiply."""
    findings = read(state)
    recipe = make_plan(findings, PlanRequest(budget=5000)).recipe
    losses = findings.losses()
    imported = assess(findings.inventory, recipe.formats, losses, why="imported").recipe
    known = findings.sensitivities("structure")
    for choice, other in zip(recipe.tensors, imported.tensors, strict=True):
        assert (choice.err, choice.loss) == (other.err, other.loss)
        if choice.left_alone:
            continue
        assert losses.error_and_loss(choice.name, choice.format) == (choice.err, choice.loss)
        parts = findings.errors[choice.name].get(choice.format)
        if parts is None:
            assert (choice.err, choice.loss) == (0, 0)
            continue
        rounding = known[choice.name].rounding.of(256 if formats()[choice.format].block == 256 else 32)
        assert choice.loss == pytest.approx(known[choice.name].per_unit.variance * (parts.variance + rounding))


def test_losses_of_a_tensor_in_formats(state):
    losses = read(state).losses("structure")
    name = "blk.0.ffn_down.weight"
    assert losses.error_and_loss(name, "f16") == (0.0, 0.0)  # as it is stored
    assert losses.error_and_loss(name, "iq4_nl") is None
    error, loss = losses.error_and_loss(name, "q8_0")
    share = 4.0 / 8.0  # of the stream
    assert loss == pytest.approx(share * (error + 0.5))
    assert losses.without_rounding().error_and_loss(name, "q8_0") == (error, pytest.approx(share * error))
    assert losses.times({name: 3.0}).error_and_loss(name, "q8_0") == (error, pytest.approx(3 * loss))
    assert losses.times({name: 3.0}).error_and_loss("output.weight", "q8_0") == losses.error_and_loss(
        "output.weight", "q8_0"
    )
    assert losses.in_family("mlx").error_and_loss(name, "q8_0") is None


def test_parts_of_errors():
    parts = ErrorParts(variance=1.0, mean=2.0, massive=4.0)
    assert parts.total == 3.0
    with pytest.raises(AttributeError):
        parts.mean = 0.0


def nothing_finished(path):
    tiny.write(path, SHAPES)
    with Store.open(path) as store:
        store.select([])
    return path


def test_one_error_where_nothing_is_finished(tmp_path, run):
    path, recipe = nothing_finished(tmp_path / "s.planner"), tmp_path / "r.json"
    made = tiny.write(tmp_path / "finished.planner", SHAPES)
    recipe.write_text(made.plan(budget=10_000).recipe.model_dump_json())
    problem = "s.planner holds no finished measurements."
    with Store.open(path) as store:
        assert Findings.find(store) is None
        with pytest.raises(StateFileError, match="no finished measurements") as error:
            add_divergences(store, store.inventory(), KldTable({"q2_K": {"output.weight": 0.5}}, ()))
    assert "Measure first: planner measure MODEL" in error.value.remedy
    for arguments in (("solve", "--state", path, "--budget", 9000), ("diff", recipe, recipe, "--state", path)):
        found = run(*arguments)
        assert found.status == 1
        assert problem in " ".join(found.err.split())
        assert "Measure first: planner measure MODEL" in " ".join(found.err.split())
    found = run("solve", "--state", path, "--budget", 9000, "--family", "mlx")
    assert "--family mlx" in found.err
    imported = run("import", recipe, "--state", path, "-o", tmp_path / "again.json")
    assert imported.status == 0, imported.text  # sizes are known all the same
    assert load_recipe(tmp_path / "again.json").formats == load_recipe(recipe).formats


def test_passes_need_weights_that_were_read(tmp_path):
    """Errors may be somebody else's: there is nothing then that passes could be known to be of."""
    tiny.write(tmp_path / "s.planner", SHAPES)
    findings = read(tmp_path / "s.planner")
    assert findings.subject is None
    with pytest.raises(StateFileError, match="no finished measurements"):
        findings.subject_of_passes()


def test_passes_of_other_weights_do_not_count(state):
    findings = read(state)
    assert findings.subject == findings.subject_of_passes()
    passes = [
        Pass(key=digest(subject), subject=subject, label="x", formats={"output.weight": "q2_K"},
             errors={"output.weight": ErrorParts(0.1, 0.0, 0.0)}, kld=0.1, stderr=0.01, tokens=9, seconds=0.0)
        for subject in (findings.subject, digest("other"))
    ]  # fmt: skip
    with Store.open(state) as store:
        store.add_passes(passes[1:])
    assert read(state).passes == ()
    assert read(state).best_source == read(state).reference == "structure"
    with pytest.raises(UsageError, match="no passes"):
        read(state).losses("measured")
    with Store.open(state) as store:
        store.add_passes(passes[:1])
    findings = read(state)
    assert findings.passes == tuple(passes[:1])
    assert findings.passes[0].errors == {"output.weight": (0.1, 0.0, 0.0)}
    assert (findings.best_source, findings.reference) == ("measured", "structure")
    assert make_plan(findings, PlanRequest(budget=9000)).prediction is not None


@pytest.mark.parametrize("values", [{"var": 1.0}, {"output": -1.0}])
def test_facts_that_cannot_be_are_damage(values, tmp_path):
    write(tmp_path / "s.planner", FACTS | {"output.weight": values})
    with pytest.raises(StateFileError, match=r"is damaged: what it holds of output\.weight"):
        read(tmp_path / "s.planner")


def test_what_is_of_no_tensor_of_the_model_is_left_out(tmp_path):
    write(tmp_path / "s.planner", FACTS | {"foreign.weight": {"var": 1.0}})
    assert read(tmp_path / "s.planner").facts.keys() == FACTS.keys()
