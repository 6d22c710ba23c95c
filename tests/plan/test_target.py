"""The smallest file for a loss, a divergence or another file, against a search through all recipes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import BudgetError, RecipeError, UsageError
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.plan.rules import parse_device, parse_rule, parse_tie
from planner.plan.target import Other, Target
from planner.recipe import load_recipe
from state import Pass, Store
from tests.tiny import WHOLE_FILE, Load, Search, digest, padded, write

SHAPES = {
    "token_embd.weight": (256, 24),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.attn_q.weight": (256, 12),
    "blk.0.attn_v.weight": (256, 7),
    "blk.0.ffn_down.weight": (256, 19),
    "blk.1.ffn_down.weight": (256, 19),
    "output.weight": (256, 24),
}
FIRST = Load(lambda name, nbytes: padded(nbytes) if name.startswith("blk.0.") else 0)
ROUNDING = 1 + 1e-11


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets")
    return [write(folder / f"{seed}.planner", SHAPES, seed) for seed in range(3)]


@settings(max_examples=60, deadline=None)
@given(
    which=st.integers(0, 2), share=st.floats(0, 1), device=st.none() | st.floats(0, 1),
    tied=st.booleans(), pin=st.sampled_from([None, "q8_0", "q4_K"]),
)  # fmt: skip
def test_no_smaller_file_loses_so_little(models, which, share, device, tied, pin):
    tiny = models[which]
    ties = [{"blk.0.attn_q.weight", "blk.0.attn_v.weight"}] if tied else []
    search = Search(tiny, ties, {"output.weight": pin} if pin else None)
    most = float(search.losses.min() + share**3 * (search.losses.max() - search.losses.min())) + 1e-9
    request = {
        "ties": parse_tie(r"attn_[qv]\.") if tied else (),
        "pins": (parse_rule(f"^output={pin}"),) if pin else (),
    }
    fits = search.losses <= most * ROUNDING
    if device is not None:
        held = search.weights(FIRST)
        capacity = int(held.min() + device * (held.max() - held.min()))
        request["devices"] = (parse_device(rf"gpu:^blk\.0\.={capacity}"),)
        fits &= held <= capacity
    if not fits.any():
        with pytest.raises(BudgetError, match="No recipe loses at most"):
            tiny.plan(target=Target(loss=most), **request)
        return
    made = tiny.plan(target=Target(loss=most), **request)
    smallest = int(search.weights(WHOLE_FILE)[fits].min())
    assert made.recipe.size == smallest
    assert made.recipe.loss <= most * ROUNDING
    assert made.reached.least == smallest
    assert {limit.name: limit for limit in made.limits}["file"].capacity == smallest
    # of all files of that size it is one of the least loss
    small = search.weights(WHOLE_FILE) <= smallest
    if device is not None:
        small &= held <= capacity
    assert made.recipe.loss == pytest.approx(search.losses[small].min(), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(which=st.integers(0, 2), number=st.integers(0, 10**6))
def test_no_worse_than_another_file(models, which, number):
    tiny = models[which]
    names = list(tiny.free)
    formats = {}
    for name in names:
        number, pick = divmod(number, len(tiny.free[name]))
        formats[name] = list(tiny.free[name])[pick]
    loss = sum(tiny.free[name][fmt][1] for name, fmt in formats.items())
    made = tiny.plan(target=Target(than=Other("theirs", formats)))
    search = Search(tiny)
    assert made.recipe.size == search.weights(WHOLE_FILE)[search.losses <= loss * ROUNDING].min()
    other = made.reached.aim.other
    assert other.loss == pytest.approx(loss)
    assert other.formats.items() >= formats.items()
    assert made.recipe.size <= other.size
    assert made.recipe.budget == "no worse than theirs"


def test_limits_that_the_smallest_file_breaks(models):
    tiny = models[0]
    free = tiny.plan(target=Target(loss=1e-3))
    assert tiny.plan(target=Target(loss=1e-3), budget=free.recipe.size).recipe.size == free.recipe.size
    with pytest.raises(BudgetError, match=r"No recipe loses at most 0\.001, within .*The least loss that there is"):
        tiny.plan(target=Target(loss=1e-3), budget=free.recipe.size - 32)
    with pytest.raises(BudgetError, match="No recipe loses at most"):
        tiny.plan(target=Target(loss=1e-9), caps=(parse_rule("q4_K", default_pattern=""),))
    assert tiny.plan(target=Target(loss=0.0)).recipe.loss == 0
    wide = tiny.plan(target=Target(loss=1e9))
    assert wide.recipe.size == Search(tiny).weights(WHOLE_FILE).min()


def test_targets_that_say_nothing():
    for wrong in ({}, {"loss": 1.0, "kld": 1.0}, {"loss": -1.0}, {"kld": float("nan")}, {"loss": float("inf")}):
        with pytest.raises(UsageError):
            Target(**wrong)


def test_files_that_cannot_be_compared(models):
    tiny = models[0]
    with pytest.raises(RecipeError, match="None of the tensors"):
        tiny.plan(target=Target(than=Other("a stranger", {"blk.7.x.weight": "q4_K"})))
    with pytest.raises(UsageError, match=r"The loss of a file is not known.[\s\S]*Measure it"):
        tiny.plan(target=Target(than=Other("a file", {"output.weight": "q6_K"})))


def passes(subject, sensitivity):
    """Passes over every tensor of the tiny models, as if divergences were so many times the errors; and three files."""
    names = [name for name in SHAPES if "norm" not in name]
    values = {"subject": subject, "label": "x", "stderr": 1e-6, "tokens": 1, "seconds": 1.0}
    for name in names:
        yield Pass(
            key=digest(name), formats={name: "q2_K"}, errors={name: (0.01, 0.0, 0.0)}, kld=0.01 * sensitivity, **values
        )
    for fmt in ("q2_K", "q4_K", "q8_0"):
        yield fmt, names, values


@pytest.fixture
def measured(models):
    with Store.open(models[0].path, read_only=True) as store:
        findings = Findings.read(store)
    made = list(passes("0" * 64, 3.0))
    known = replace(findings, passes=tuple(entry for entry in made if isinstance(entry, Pass)), subject="0" * 64)
    losses = known.losses("measured")
    files = []
    for fmt, names, values in (entry for entry in made if not isinstance(entry, Pass)):
        loss = sum(losses.error_and_loss(name, fmt)[1] for name in names)
        files.append(
            Pass(key=digest(fmt), formats=dict.fromkeys(names, fmt), errors={}, kld=1e-6 + 1.2 * loss, **values)
        )
    return replace(known, passes=(*known.passes, *files))


def test_a_divergence(measured, models):
    sizes = []
    for kld in (0.3, 0.1, 0.01, 1e-3):
        plan = make_plan(measured, PlanRequest(target=Target(kld=kld), gap=0.0))
        assert plan.prediction.kld <= kld * (1 + 1e-9)
        assert plan.recipe.budget == f"KLD at most {kld:g}"
        losses = make_plan(measured, PlanRequest(budget=plan.recipe.size - 32, gap=0.0))
        assert losses.prediction.kld > kld  # a smaller file is expected to diverge more
        sizes.append(plan.recipe.size)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4
    with pytest.raises(BudgetError, match="below what any quantized file is expected to have"):
        make_plan(measured, PlanRequest(target=Target(kld=1e-12)))


def test_a_divergence_without_passes(models, run, here):
    with pytest.raises(UsageError, match="not known without passes"):
        models[0].plan(target=Target(kld=0.01))
    done = run("solve", "--state", models[0].path, "--kld", 0.01)
    assert done.status == 2
    for word in ("planner sensitivity", "--than Q4_K_M"):
        assert word in done.err


def test_the_command(cheap, here, run, example):
    made = run("solve", "--state", cheap, "--than", "q4_k_m", "-o", "ours.json")
    assert made.status == 0, made.text
    theirs = int(re.search(r"Than +([\d,]+) bytes", made.out)[1].replace(",", ""))
    ours = load_recipe(here / "ours.json")
    assert ours.budget == "no worse than Q4_K_M"
    assert f"{theirs - ours.size:,} bytes smaller" in made.out
    assert "no smaller file does" in made.out
    assert "Limit" not in made.out
    again = run("solve", "--state", cheap, "--than", "ours.json", "-o", "same.json")
    assert "Ours is as large" in again.out, again.text
    assert run("quantize", example.model, "ours.json", "ours.gguf").status == 0
    same = run("solve", "--state", cheap, "--than", "ours.gguf", "-o", "same.json")
    assert same.status == 0, same.text
    assert load_recipe(here / "same.json").size == ours.size
    by_loss = run("solve", "--state", cheap, "--loss", 0.05, "--device", r"gpu:blk\.[0-3]\.=1.4MB", "-o", "same.json")
    assert "Limit      gpu" in by_loss.out, by_loss.text
    assert load_recipe(here / "same.json").loss <= 0.05
    for wrong in (("--than", "Q4_K_XL"), ("--loss", "-1"), ("--loss", "1", "--kld", "1"), ("--than", "IQ2_M")):
        refused = run("solve", "--state", cheap, *wrong)
        assert refused.status in (1, 2)
        assert "Internal" not in refused.err
