"""The curve against solving for each of its points; the ladder; the picture, the table and the files of it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

import planner
from benchmarks.solvers.problems import options, tensors
from planner.errors import BudgetError, RecipeError, UsageError
from planner.plan.curve import curve, landmarks
from planner.plan.findings import Findings
from planner.plan.ladder import choose_ladder
from planner.plan.offer import make_offer
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.plan.rules import parse_device, parse_rule, parse_tie
from planner.plan.target import Other
from planner.recipe import load_recipe
from planner.sensitivity import ErrorParts
from state import Inventory, Store, TensorRecord
from tests.conftest import ok
from tests.tiny import digest

ANY = Fraction(64)


def findings_of(path):
    with Store.open(path, read_only=True) as store:
        return Findings.read(store)


@pytest.fixture(scope="module")
def findings(_cheap):
    return findings_of(_cheap)


def increasing(points):
    return all(
        a.bytes < b.bytes and a.loss > b.loss and a.bpw < b.bpw and a.price >= b.price
        for a, b in itertools.pairwise(points)
    )


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"pins": (parse_rule("attn_v=q6_K"),), "ties": parse_tie("fused"), "run_on": "gpu"},
        {"floors": (parse_rule("q4_K", default_pattern=""),), "sensitivity": "uniform"},
    ],
)
def test_every_point_is_the_best_of_its_size(findings, rules):
    request = PlanRequest(bpw=ANY, **rules)
    found = curve(findings, request, points=9, low=Fraction(2), high=Fraction(17, 2))
    assert increasing(found.points)
    assert len(found.points) > 5
    for point in found.points:
        plan = make_plan(findings, replace(request, bpw=None, budget=point.bytes, gap=0.0))
        assert plan.recipe.size == point.bytes
        assert plan.recipe.bpw == pytest.approx(point.bpw, rel=1e-12)
        assert plan.recipe.loss == pytest.approx(point.loss, rel=1e-9)
        within, losing = found.within(point.bytes), found.losing(point.loss)
        assert (within.bytes, losing.bytes) == pytest.approx((point.bytes, point.bytes), rel=1e-3)
        assert (within.loss, losing.loss) == pytest.approx((point.loss, point.loss), rel=1e-3)
        assert within.bytes <= point.bytes
        assert losing.loss <= point.loss * (1 + 1e-9)
        before = found.within(point.bytes - 1)
        assert point is found.points[0] if before is None else before.bytes < point.bytes
    assert found.within(1) is None
    assert found.losing(-1.0) is None


def test_limits_hold_at_every_point(findings):
    device = parse_device(r"gpu:blk\.[0-5]\.=2.4MB")
    request = PlanRequest(bpw=ANY, devices=(device,))
    found = curve(findings, request, points=6, low=Fraction(4), high=None)
    free = curve(findings, PlanRequest(bpw=ANY), points=2, low=None, high=None)
    assert increasing(found.points)
    for point in found.points:
        unlimited = make_plan(findings, PlanRequest(budget=point.bytes))
        assert point.loss >= unlimited.recipe.loss * (1 - 2e-6)
        plan = make_plan(findings, replace(request, bpw=None, budget=point.bytes))
        assert plan.recipe.loss == pytest.approx(point.loss, rel=2e-6)
    assert found.points[-1].loss > free.points[-1].loss  # what the device leaves
    assert found.losing(free.points[-1].loss) is None
    assert found.within(10) is None
    assert found.losing(found.points[2].loss * 1.0001).bytes <= found.points[2].bytes


def test_what_stands_beside_it(findings):
    request = PlanRequest(bpw=ANY)
    found = curve(findings, request, points=20, low=Fraction(3), high=Fraction(8))
    marks = landmarks(
        found, findings, request, [Other("Q4_K_M"), Other("IQ2_M"), Other("mine", {"output.weight": "q4_K"})],
        [4_000_000, 5 * 2**20, 10**9], 1000,
    )  # fmt: skip
    assert [mark.label for mark in marks if mark.kind == "memory"] == ["4 MB", "5 MiB"]
    assert [mark.bytes for mark in marks] == sorted(mark.bytes for mark in marks)
    (mix,) = [mark for mark in marks if mark.kind == "mix"]  # types of the other were not measured
    assert mix.label == "Q4_K_M"
    assert mix.ours.bytes <= mix.bytes
    assert mix.ours.loss < mix.loss
    assert mix.same.bytes < mix.bytes
    assert mix.same.loss <= mix.loss
    (memory, _) = [mark for mark in marks if mark.kind == "memory"]
    assert memory.ours.bytes <= 4_000_000 - 1000
    with pytest.raises(UsageError, match="not known"):
        landmarks(found, findings, request, [Other("x", {"output.weight": "iq2_s"})])
    with pytest.raises(RecipeError):
        landmarks(found, findings, request, [Other("x", {"no.weight": "q4_K"})])


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_the_ladder_has_even_steps_and_reasons(findings, count):
    request = PlanRequest(bpw=ANY)
    offer = make_offer(findings, request, points=50, memories=[4 * 10**6, 6 * 10**6], reserve=0, ladder=count)
    rungs = offer.ladder.rungs
    assert len(rungs) == count
    first, last = offer.curve.points[0], offer.curve.points[-1]
    step = math.log(first.loss / last.loss) / (count - 1)
    assert offer.ladder.ratio == pytest.approx(math.exp(-step))
    for number, rung in enumerate(rungs):
        assert first.bytes <= rung.point.bytes <= last.bytes
        best = make_plan(findings, PlanRequest(budget=rung.point.bytes)).recipe.loss
        assert rung.point.loss <= best * 1.0011  # nothing worse than can be had
        off = abs(math.log(rung.point.loss) - (math.log(first.loss) - number * step)) / step
        assert off < 0.5 or rung.reason == "an even step"
        if rung.reason.startswith("the most that"):
            label = re.search(r"that (.+) hold", rung.reason)[1]
            (memory,) = [mark for mark in offer.landmarks if mark.label == label]
            assert memory.ours == rung.point
        elif rung.reason.startswith("as large as"):
            (mix,) = [mark for mark in offer.landmarks if mark.label == re.search(r"as (\w+),", rung.reason)[1]]
            assert mix.ours == rung.point
        else:
            assert rung.reason.startswith(("a corner", "an even step"))
    assert len({rung.point.bytes for rung in rungs}) == count


def test_a_ladder_that_cannot_be(findings):
    request = PlanRequest(bpw=ANY)
    narrow = curve(findings, request, points=3, low=Fraction(4), high=Fraction(401, 100))
    with pytest.raises(UsageError, match="only"):
        choose_ladder(narrow, 50, ())
    with pytest.raises(UsageError):
        choose_ladder(narrow, 1, ())


def trillion():
    """Findings of a model of 10¹² weights: real names and shapes, and how much each tensor moved the output."""
    known = tensors("Kimi-K2-Thinking")
    vectors = [(f"blk.{block}.attn_norm.weight", (7168,)) for block in range(365)]
    records = [
        TensorRecord(
            name=name, shape=shape, source_format="bf16" if len(shape) > 1 else "f32", elements=math.prod(shape),
            nbytes=math.prod(shape) * (2 if len(shape) > 1 else 4), row_length=shape[0],
            left_alone=None if len(shape) > 1 else "a vector",
        )
        for name, shape in [*((tensor.name, tensor.shape) for tensor in known), *vectors]
    ]  # fmt: skip
    inventory = Inventory(
        model_name="a trillion", architecture="deepseek2", model_digest=digest("trillion"), model_path="x.gguf",
        header_bytes=10**7, alignment=32, imatrix_name="x", imatrix_digest=digest("imatrix"), has_means=True,
        metadata={"block_count": 61, "expert_count": 384, "head_groups": 64}, tensors=tuple(records),
    )  # fmt: skip
    measured = {
        tensor.name: {
            label: ErrorParts(loss, 0.0, 0.0)
            for _, loss, label in zip(*options(tensor), strict=True)
            if label != "bf16"
        }
        for tensor in known
    }
    return Findings(Path("trillion.planner"), inventory, measured, {}, (), None)


def test_a_trillion_weights():
    known = trillion()
    assert sum(tensor.elements for tensor in known.inventory.tensors) > 10**12
    assert len(known.inventory.tensors) == 1096
    request = PlanRequest(bpw=ANY, sensitivity="uniform")
    offer = make_offer(known, request, points=100, ladder=6)
    assert increasing(offer.curve.points)
    assert len(offer.curve.points) == 100
    assert sum(mark.kind == "mix" for mark in offer.landmarks) > 20
    for point in offer.curve.points[5::30]:
        plan = make_plan(known, replace(request, bpw=None, budget=point.bytes))
        assert plan.recipe.loss >= point.loss * (1 - 1e-9)
        assert plan.recipe.loss <= point.loss * (1 + 2e-6)


def test_the_command(cheap, here, run, example):
    cheap.rename(here / "prose-8m-f16.planner")
    assert run("solve", "--bpw", 5).status == 0
    arguments = ("--memory", "4MB", "--reserve", "100kB", "--with", "recipe.json", "--ladder", 4)
    made = run("frontier", example.model, *arguments, "--recipes", "rungs")
    assert made.status == 0, made.text
    assert all(len(line) <= 80 for line in made.out.splitlines())
    for word in ("Q4_K_M", "recipe.json", "4 MB", "the loss falls to about", "without passes of the model"):
        assert word in made.out
    written = sorted((here / "rungs").glob("*.json"))
    assert len(written) == 4
    for line in re.findall(r"Recipe +(\S+) +([\d,]+) bytes", made.out):
        assert load_recipe(here / line[0]).size == int(line[1].replace(",", ""))

    facts = json.loads(run("frontier", *arguments, "--json", "--points", 5).out)
    assert len(facts["points"]) == 5
    assert facts["sensitivity"] == "structure"
    assert facts["points"][0]["kld"] is None
    rows = list(csv.DictReader(io.StringIO(run("frontier", *arguments, "--csv", "--points", 5).out)))
    assert {row["kind"] for row in rows} == {"point", "ladder", "mix", "file", "memory"}
    assert [int(row["bytes"]) for row in rows if row["kind"] == "point"] == [p["bytes"] for p in facts["points"]]
    (file,) = [row for row in rows if row["kind"] == "file"]
    assert int(file["bytes"]) == load_recipe(here / "recipe.json").size
    assert float(file["ours_loss"]) >= float(file["loss"]) * (1 - 2e-6)  # it is ours

    assert run("frontier", *arguments, "-o", "c.csv").status == 0
    assert run("frontier", *arguments, "-o", "c.json").status == 0
    assert len(json.loads((here / "c.json").read_text())["points"]) > 50


def test_pictures(cheap, here, run):
    pytest.importorskip("matplotlib")
    cheap.rename(here / "prose.planner")
    (here / "a$b_<x>.json").write_bytes(b"")
    assert run("solve", "--bpw", 5, "-o", "a$b_<x>.json").status == 0
    for _ in range(2):
        made = run("frontier", "--memory", "4MB", "--reserve", 0, "--ladder", 3, "--with", "a$b_<x>.json", "-f",
                   "-o", "c.svg")  # fmt: skip
        assert made.status == 0, made.text
        first = (here / "c.svg").read_bytes()
    assert ET.fromstring(first).tag.endswith("svg")
    assert run("frontier", "-f", "-o", "c.svg").status == 0
    assert (here / "c.svg").read_bytes() != first
    assert run("frontier", "-o", "c.png").status == 0
    assert (here / "c.png").read_bytes().startswith(b"\x89PNG")
    again = run("frontier", "-o", "c.png")
    assert again.status == 1
    assert "--force" in again.err


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--csv", "--json"), "exclude"),
        (("--recipes", "x"), "--ladder"),
        (("-o", "curve.pdf"), "suffix"),
        (("--from", "much"), "not a size"),
        (("--from", "5bpw", "--to", "4bpw"), "above"),
        (("--with", "none.gguf"), "does not exist"),
        (("--state", "none.planner"), "none.planner"),
        (("--from", "8bpw", "--to", "8bpw", "--ladder", 2), "one size"),
        (("--device", "gpu:^blk=500kB"), "below the minimum"),
    ],
)
def test_what_cannot_be_shown(wrong, says, cheap, here, run):
    cheap.rename(here / "prose.planner")
    refused = run("frontier", *wrong)
    assert refused.status in (1, 2), refused.text
    assert says in refused.err
    assert "Internal" not in refused.err


def test_the_library(cheap, example):
    with planner.open_state(cheap, read_only=True) as state:
        offer = state.frontier(from_="3bpw", to="6MB", points=4, ladder=2, memory="4MB", reserve=0, pin="attn_v=q6_K")
        assert len(offer.curve.points) == 4
        assert offer.curve.points[-1].bytes <= 6 * 10**6
        assert state.solve(than="Q4_K_M").recipe.size < state.solve(than="Q5_K_M").recipe.size
        with pytest.raises(BudgetError):
            state.solve(loss=1e-6, max="q4_K")


def test_memories_have_room_for_a_context(cheap, run, here):
    """What is left of a memory is what solve has for the weights there, with embeddings among them."""
    with planner.open_state(cheap, read_only=True) as state:
        (card,) = state.solve(vram="1.2GB", ctx=2000).cards
        context = card.beside.total - card.beside.reserve
        size = 5_000_000 + 3_000_000 + context
        offer = state.frontier(ctx=2000, reserve="3MB", memory=[str(size), "1MB"], mixes=False)
        (memory,) = [mark for mark in offer.landmarks if mark.kind == "memory"]
        assert memory.bytes == 5_000_000
        with pytest.raises(UsageError, match="does not have these types"):
            state.frontier(ctx=2000, family="mlx")
    text = ok(run("frontier", "--state", cheap, "-c", 2000, "--reserve", "3MB", "--memory", size, "--no-mixes")).out
    assert "left free for a context of 2,000 tokens and buffers" in " ".join(text.split())
