"""`import planner`: what it offers is documented and typed, does what the commands do, and says so in its own words."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import planner
from planner.gguf import open_model
from tests.conftest import ROOT

OFFERED = [name for name in planner.__all__ if name not in ("__version__", "errors")]


@pytest.fixture
def spelling():
    """As a program reads it."""


def test_names_are_few_sorted_and_there():
    assert len(planner.__all__) <= 18
    for name in planner.__all__:
        assert getattr(planner, name) is not None
    assert set(planner.__all__) <= set(dir(planner))
    with pytest.raises(AttributeError, match="module 'planner' has no attribute 'nothing'"):
        _ = planner.nothing
    assert (ROOT / "planner/py.typed").is_file()


@pytest.mark.parametrize("name", OFFERED)
def test_everything_is_documented_and_typed(name):
    offered = getattr(planner, name)
    members = [(name, offered)]
    if inspect.isclass(offered):
        members += [(key, value) for key, value in vars(offered).items() if not key.startswith("_")]
    for key, member in members:
        if not callable(member) and not isinstance(member, property):
            continue
        assert inspect.getdoc(member), key
        function = member.fget if isinstance(member, property) else member
        if inspect.isfunction(function):
            hints = [parameter.annotation for parameter in inspect.signature(function).parameters.values()]
            assert inspect.Parameter.empty not in hints[key in vars(offered) if inspect.isclass(offered) else 0 :], key
            assert inspect.signature(function).return_annotation is not inspect.Signature.empty, key


def test_importing_it_loads_nothing():
    slow = "numpy", "pydantic", "ortools", "click", "gguf", "joblib", "llama_cpp"
    code = f"import sys, planner; planner.errors; print(sorted(set({slow!r}) & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


def test_options_are_called_as_the_commands_call_them():
    from planner.cli.compare import compare
    from planner.cli.evaluate import evaluate
    from planner.cli.frontier import frontier
    from planner.cli.measure import measure
    from planner.cli.quantize import quantize
    from planner.cli.report import report
    from planner.cli.solve import solve

    for function, command in (
        (planner.State.measure, measure),
        (planner.State.solve, solve),
        (planner.State.report, report),
        (planner.State.frontier, frontier),
        (planner.quantize, quantize),
        (planner.evaluate, evaluate),
        (planner.compare, compare),
    ):
        spelt = {word.lstrip("-").replace("-", "_") for option in command.params for word in option.opts}
        own = {"progress", "reading", "note"}  # which the command line draws and prints
        if function is planner.State.measure:
            own.add("pin")  # of solve, which measures what is missing
        if function is planner.State.report:
            own.add("recipe")  # an argument there
        given = inspect.signature(function).parameters.items()
        kept = {name.rstrip("_") for name, parameter in given if parameter.kind == 3}  # `from` is a word of Python
        assert kept - own <= spelt, function


def test_the_same_recipe_and_file_as_the_commands(example, cheap, here, run):
    assert run("solve", "--state", cheap, "--budget", "4.9MB", "--pin", "attn_v=q6_K", "--min", "q3_K").status == 0
    assert run("quantize", example.model, "recipe.json", "one.gguf").status == 0
    with planner.open_state(cheap, read_only=True) as state:
        plan = state.solve(budget="4.9MB", pin="attn_v=q6_K", min=["q3_K"])
    plan.recipe.save("two.json")
    assert Path("two.json").read_bytes() == Path("recipe.json").read_bytes()
    assert planner.load_recipe("two.json") == plan.recipe
    told = []
    written = planner.quantize(example.model, plan.recipe, "two.gguf", progress=lambda *step: told.append(step))
    assert Path("two.gguf").read_bytes() == Path("one.gguf").read_bytes()
    assert written.paths == (Path("two.gguf"),)
    assert written.bytes == written.promised == plan.recipe.size
    assert told[-1][1] == told[-1][2] > 0


def test_limits_in_every_form(cheap):
    with planner.open_state(cheap, read_only=True) as state:
        forms = [state.solve(budget=budget).recipe for budget in ("4.5MB", "4500000", 4_500_000)]
        assert forms[0] == forms[1] == forms[2]
        assert state.solve(bpw=4.5).recipe == state.solve(bpw="4.5").recipe == state.solve(bpw="9/2").recipe
        both = state.solve(bpw=5, budget="4.5MB", device=["near:attn=1MB", "far:ffn=3MB"], tie="fused", max="q6_K")
    assert {limit.name for limit in both.limits} == {"file", "bpw", "near", "far"}
    assert all(limit.used <= limit.capacity for limit in both.limits)
    assert str(both.recipe.size) in repr(both).replace(",", "")
    assert len(repr(both)) < 500


def test_measuring_goes_on_where_it_stopped(example, here):
    class Stop(Exception):
        pass

    def stop(what, done, total):
        if done >= 2:
            raise Stop

    options = {"imatrix": example.sums, "types": ["q8_0", "q4_0"], "threads": 2}
    with open_model(example.model) as model:
        with planner.open_state("a.planner", create=True) as state, pytest.raises(Stop):
            state.measure(model, progress=stop, **options)
        steps = []
        with planner.open_state("a.planner") as state:
            count = state.measure(model, progress=lambda *step: steps.append(step), **options)
            assert steps[0][1] >= 2
            assert steps[-1][1:] == (count, count)
            assert state.measure(model, **options, pin="attn_v=q5_0") > count
            assert {entry.format for entry in state.store.measurements().values()} == {"q8_0", "q4_0", "q5_0"}
            assert "a.planner" in repr(state)
        assert model.by_name  # still open


def test_the_imatrix_of_before_is_taken_again(example, here):
    with planner.open_state("a.planner", create=True) as state:
        state.measure(example.model, imatrix=str(example.sums), types="q8_0")
        state.measure(str(example.model), types="q8_0")
        assert state.store.inventory().imatrix_digest is not None
        state.measure(example.model, types="q8_0", no_imatrix=True)
        assert state.store.inventory().imatrix_digest is None


def test_every_error_is_one_of_ours(example, cheap, here):
    with pytest.raises(planner.errors.StateFileError):
        planner.open_state("missing.planner")
    with pytest.raises(planner.errors.ModelError):
        planner.open_model("missing.gguf")
    with pytest.raises(planner.errors.RecipeError):
        planner.load_recipe(example.model)
    with planner.open_state("a.planner", create=True) as state:
        with pytest.raises(planner.errors.StateFileError):  # one writer
            planner.open_state("a.planner")
        with pytest.raises(planner.errors.StateFileError, match="no finished measurements"):
            state.solve(bpw=4)
    with planner.open_state(cheap, read_only=True) as state:
        with pytest.raises(planner.errors.BudgetError):
            state.solve(budget="1MB")
        with pytest.raises(planner.errors.StateFileError):
            state.measure(example.model, types="q8_0", seed=7)
        for wrong in (
            {},
            {"budget": "much"},
            {"bpw": 0},
            {"bpw": float("nan")},
            {"bpw": 4, "family": "onnx"},
            {"bpw": 4, "run_on": "tpu"},
            {"bpw": 4, "sensitivity": "guess"},
            {"bpw": 4, "method": "luck"},
            {"bpw": 4, "gap": -1},
            {"bpw": 4, "pin": "nothing=q4_K"},
            {"bpw": 4, "types": "q99"},
        ):
            with pytest.raises(planner.errors.UsageError):
                state.solve(**wrong)
    with planner.open_state("b.planner", create=True) as state:
        for wrong in ({"tolerance": 0}, {"threads": 0}, {"family": "x"}, {"imatrix": example.sums, "no_imatrix": True}):
            with pytest.raises(planner.errors.UsageError):
                state.measure(example.model, types="q8_0", **wrong)


def test_messages_speak_to_whoever_reads_them(cheap, run):
    """A program has parameters, the command line options; neither is told of the other's, whoever came before."""
    with planner.open_state(cheap, read_only=True) as state:
        for _ in range(2):
            with pytest.raises(planner.errors.UsageError, match=r"^pin='nothing=q4_K': no tensor's name matches"):
                state.solve(bpw=4, pin="nothing=q4_K")
            assert "Error: --pin nothing=q4_K: no tensor" in run(
                "solve", "--state", cheap, "--bpw", 4, "--pin", "nothing=q4_K"
            ).err  # fmt: skip
            with pytest.raises(planner.errors.UsageError, match="budget, bpw, device, active_budget or vram"):
                state.solve()


def test_edits_are_told(example, cheap, here):
    with planner.open_state(cheap, read_only=True) as state:
        recipe = state.solve(bpw=4.5).recipe
    choices = [
        choice.model_copy(update={"format": "q8_0"}) if choice.name == "output.weight" else choice
        for choice in recipe.tensors
    ]
    notes = []
    written = planner.quantize(
        example.model, recipe.model_copy(update={"tensors": tuple(choices)}), "out.gguf", note=notes.append
    )
    assert [note for note in notes if "output.weight is now q8_0" in note]
    assert written.bytes != written.promised == recipe.size


def test_evaluation(example, cheap, here):
    pytest.importorskip("llama_cpp")
    with planner.open_state(cheap, read_only=True) as state:
        planner.quantize(example.model, state.solve(bpw=4.5).recipe, "small.gguf")
    told = []
    options = {"text": ROOT / "examples/evaluation.txt", "ctx": 64, "chunks": 2, "threads": 2}
    result = planner.evaluate(
        example.model, "small.gguf", **options, progress=lambda *step: told.append(step), kl_divergence_base="base.kld"
    )
    assert result.quants[0].statistics.kld.value > 0
    assert (result.context, result.windows) == (64, 2)
    assert "small.gguf" in str(result)
    assert "mean KLD" in str(result)
    assert {what for what, _, _ in told} == {example.model.name, "small.gguf"}
    again = planner.evaluate(example.model, "small.gguf", **options)
    assert again.quants == result.quants
    assert sorted(path.name for path in here.glob("*.kld*")) == ["base.kld", "base.kld.json"]
    with pytest.raises(planner.errors.UsageError):
        planner.evaluate(example.model, text="a.txt", ctx=1)


def test_the_page_runs(here, capsys):
    pytest.importorskip("llama_cpp")
    (here / "examples").symlink_to(ROOT / "examples")
    fenced = (ROOT / "docs/library.md").read_text(encoding="utf-8").split("```python\n")[1:]
    names: dict[str, typing.Any] = {}
    for number, block in enumerate(fenced):
        exec(compile(block.split("```")[0], f"docs/library.md, block {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "100%" in said
    assert "below the minimum" in said
    assert "Raise budget to 2.91 MB" in said
    assert "--" not in said
