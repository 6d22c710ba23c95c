"""`planner report`: the page in a browser; what it says is what planner says, and what it gives planner takes."""

from __future__ import annotations

import json
import math
import random
import re
from fractions import Fraction

import numpy as np
import pytest

from planner.dialects.dialect import ImportContext
from planner.dialects.llama_quantize import DIALECT, tensor_types
from planner.fit import Context, stays_in_ram
from planner.formats.ggml import formats
from planner.plan.cards import needs_of, parse_fit
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.plan.rules import parse_tie
from planner.recipe import load_recipe, recipe_schema
from planner.report.page import Start, page_data, page_of, report_page
from planner.sensitivity import SCATTER, Point, fit_link
from planner.sizes import align
from solvers import Group, InfeasibleError, Limit, Problem, solve
from state import Store
from tests import tiny
from tests.conftest import ok


@pytest.fixture
def recipe(whole, here, run):
    ok(run("solve", "--state", whole, "--budget", "4.5MB", "--pin", "attn_v=q6_K"))
    ok(run("report", "recipe.json", "--state", whole))
    return load_recipe(here / "recipe.json")


@pytest.fixture
def page(recipe, here, open_page):
    return open_page(here / "report.html")


def view(page):
    """What the page holds now: bytes of the file, loss, budget, formats by tensor, pins by tensor."""
    return page.evaluate(
        """() => {
            const { answer, budget } = explorer.view, { tensors, data } = explorer.problem;
            const free = tensors.filter((tensor) => tensor.group >= 0);
            const name = (option) => data.formats[option.format].name;
            return {
                size: answer.size, loss: answer.loss, bound: answer.bound, fits: answer.fits, budget,
                formats: Object.fromEntries(tensors.map((tensor) => [tensor.name, name(chosen(tensor, answer.picks))])),
                pins: Object.fromEntries(free.filter((tensor) => answer.pins[tensor.group] >= 0)
                    .map((tensor) => [tensor.name, name(tensor.options[answer.pins[tensor.group]])])),
            };
        }"""
    )


def settled(page):
    page.wait_for_timeout(250)  # the page answers in full when nothing has moved for 140 ms
    return view(page)


def downloaded(page, button, path):
    with page.expect_download() as waiting:
        page.click(button)
    assert waiting.value.suggested_filename == path.name
    waiting.value.save_as(path)
    return path


def test_it_opens_with_the_recipe(page, recipe):
    shown = view(page)
    assert shown["formats"] == recipe.formats
    assert shown["size"] == shown["budget"] == recipe.size
    assert math.isclose(shown["loss"], recipe.loss, rel_tol=1e-12)
    assert set(shown["pins"].values()) == {"q6_K"}
    assert set(shown["pins"]) == {name for name in recipe.formats if "attn_v" in name}
    assert page.title() == "Prose 8M: every size"
    assert page.inner_text("#size") == "4.50 MB"
    assert page.inner_text("#bpw") == f"{recipe.bpw:.3f}"
    assert page.inner_text("#pins").startswith("attn_v=q6_K ×8")
    assert page.locator(".cell").count() == 58
    assert "planner report recipe.json" in page.inner_text("#origin")
    assert recipe.model.digest[:16] in page.inner_text("#origin")


def test_what_is_taken_along_makes_the_file(page, here, run, example):
    page.fill("#size-box", "4.2MB")
    page.press("#size-box", "Enter")
    shown = view(page)
    assert shown["size"] <= shown["budget"] == 4_200_000
    taken = load_recipe(downloaded(page, "#take-recipe", here / "recipe.json"))
    assert taken.formats == shown["formats"]
    assert (taken.size, taken.loss) == (shown["size"], pytest.approx(shown["loss"], rel=1e-12))
    assert taken.bound <= taken.loss
    assert taken.budget == "4.20 MB (4200000 bytes)"
    assert set(json.loads((here / "recipe.json").read_text())) <= set(recipe_schema()["properties"])
    types = downloaded(page, "#take-types", here / "recipe.types.txt").read_text()
    assert types == tensor_types(taken)
    names = [choice.name for choice in taken.tensors]
    read = DIALECT.read(types, ImportContext(names, "llama", "page")).formats
    assert {name: fmt.lower() for name, fmt in read.items()} == {
        choice.name: choice.format.lower() for choice in taken.tensors if not choice.left_alone
    }
    assert (
        ok(run("export", "recipe.json", "--to", "llama-quantize", "-o", "x.txt")).out.split()[-2]
        == (page.inner_text("#commands").split("OUT.gguf")[-1].split()[0])
    )
    written = ok(run("quantize", example.model, "recipe.json", "out.gguf", "--imatrix", example.sums))
    assert f"{shown['size']:,} bytes" in written.out
    assert "as promised" in written.out
    assert "have the same types" in ok(run("diff", "recipe.json", "out.gguf")).out


def test_the_same_recipe_as_planner_writes(recipe, whole, here, run, open_page):
    """Of one choice of formats: the same numbers to the last bit."""
    taken = load_recipe(downloaded(open_page(here / "report.html"), "#take-recipe", here / "page" / "recipe.json"))
    own = {"budget", "bound", "status", "tensors"}
    assert taken.model_dump(exclude=own) == recipe.model_dump(exclude=own)
    for mine, theirs in zip(recipe.tensors, taken.tensors, strict=True):
        assert mine.model_dump(exclude={"why"}) == theirs.model_dump(exclude={"why"})
        assert mine.why.split(":")[0] == theirs.why.split(":")[0]
    ok(run("report", here / "page" / "recipe.json", "--state", whole, "-o", "again.html"))
    assert view(open_page(here / "again.html"))["pins"] == view(open_page(here / "report.html"))["pins"]


def test_dragging_and_keys_change_the_size(page):
    slider = page.locator("#slider")
    box = slider.bounding_box()
    before = view(page)
    knob = box["x"] + 12 + float(slider.input_value()) / 1000 * (box["width"] - 24)
    page.mouse.move(knob, box["y"] + box["height"] / 2)
    page.mouse.down()
    for step in range(1, 12):
        page.mouse.move(knob + 15 * step, box["y"] + box["height"] / 2)
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        moving = page.evaluate("explorer.view.answer.size")
        assert moving <= page.evaluate("explorer.view.budget")
    page.mouse.up()
    after = settled(page)
    assert after["budget"] > before["budget"]
    assert after["loss"] < before["loss"]
    assert page.input_value("#size-box") == page.evaluate("inBytes(explorer.view.budget)")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    one = settled(page)["budget"]
    page.keyboard.press("PageDown")
    assert settled(page)["budget"] < one < after["budget"]
    assert "bits per weight" in slider.get_attribute("aria-valuetext")
    assert page.is_visible("#back")
    page.click("#back")
    assert view(page) == before


def test_the_chart_tells_and_takes_sizes(page):
    box = page.locator("#chart").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.9)
    tip = page.inner_text("#chart-tip")
    assert re.fullmatch(r"[\d.]+ MB · [\d.]+ bpw\nloss [\d.]+", tip)
    page.mouse.down()
    page.mouse.up()
    assert page.evaluate("inBytes(explorer.view.budget)") == tip.split(" · ")[0]
    page.check("[name=scale][value=linear]", force=True)
    assert page.locator("#chart .here").count() == 1


def test_the_map_by_pointer(page, recipe):
    cell = page.get_by_label(re.compile(r"^blk\.3\.ffn_up\.weight:"))
    cell.hover()
    tip = page.inner_text("#map-tip")
    assert tip.startswith("blk.3.ffn_up.weight")
    assert re.search(r"better: \S+ \+[\d.]+ kB, loss −[\d.]+ %", tip)
    assert re.search(r"worse: \S+ −[\d.]+ kB, loss \+[\d.]+ %", tip)
    cell.click()
    assert page.inner_text("#inspector h3") == "blk.3.ffn_up.weight"
    page.locator("#inspector label", has_text="q5_K").locator("input").check()
    assert view(page)["pins"]["blk.3.ffn_up.weight"] == "q5_K"
    assert view(page)["formats"]["blk.3.ffn_up.weight"] == "q5_K"
    assert view(page)["size"] <= recipe.size
    assert cell.get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Remove the pin blk.3.ffn_up.weight=q5_K").click()
    assert "blk.3.ffn_up.weight" not in view(page)["pins"]
    page.get_by_label("Pin all attn_q to").select_option(label="q8_0")
    pinned = view(page)
    assert [fmt for name, fmt in pinned["formats"].items() if "attn_q" in name] == ["q8_0"] * 8
    assert pinned["size"] <= pinned["budget"]
    page.get_by_role("button", name="Remove all pins").click()
    assert view(page)["pins"] == {}


def test_the_map_by_keys(page):
    cell = page.get_by_label(re.compile(r"^blk\.0\.attn_q\.weight:"))
    cell.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.ariaLabel").startswith("blk.1.attn_k.weight:")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.ariaLabel").startswith("blk.7.attn_k.weight:")
    assert "blk.7.attn_k.weight" in page.inner_text("#map-tip")
    before = view(page)["formats"]["blk.7.attn_k.weight"]
    page.keyboard.press("Space")
    assert view(page)["pins"]["blk.7.attn_k.weight"] == before
    page.keyboard.press("+")
    better = view(page)["pins"]["blk.7.attn_k.weight"]
    assert better != before
    page.keyboard.press("-")
    assert view(page)["pins"]["blk.7.attn_k.weight"] != better
    assert page.evaluate("document.activeElement.ariaLabel").startswith("blk.7.attn_k.weight:")
    page.keyboard.press("Space")
    assert "blk.7.attn_k.weight" not in view(page)["pins"]
    assert page.evaluate(
        "[...document.querySelectorAll('.map')].every((map) => map.querySelectorAll('[tabindex=\"0\"]').length === 1)"
    )


def test_the_next_steps_are_those_of_explain(page, whole, recipe):
    with Store.open(whole, read_only=True) as store:
        plan = make_plan(Findings.read(store), PlanRequest(budget=recipe.size))
    page.evaluate("explorer.setPins((pins) => pins.fill(-1))")
    picks = list(plan.solved.solution.picks)
    for name in list(plan.solved.groups)[::7]:
        why = plan.explain(name)
        group = plan.solved.problem.group(plan.solved.groups[name])
        found = page.evaluate("([group, pick]) => neighbours(explorer.problem, group, pick)", [group, picks[group]])
        for step, word in ((why.better, "better"), (why.worse, "worse")):
            assert (found[word] is None) == (step is None)
            if step is not None:
                assert found[word]["to"] == step.index
                assert found[word]["bytes"] == step.bytes
                assert found[word]["loss"] == pytest.approx(step.loss, rel=1e-9)


def test_what_does_not_fit_is_said(page):
    page.fill("#size-box", "1MB")
    page.press("#size-box", "Enter")
    assert "Nothing fits 1.00 MB: the least with these pins is" in page.inner_text("#notice")
    assert page.is_disabled("#take-recipe")
    assert page.is_disabled("#take-types")
    page.fill("#size-box", "much")
    page.press("#size-box", "Enter")
    assert page.get_attribute("#size-box", "aria-invalid") == "true"
    page.fill("#bpw-box", "5")
    page.press("#bpw-box", "Enter")
    assert page.is_hidden("#notice")
    assert page.is_enabled("#take-recipe")
    assert 4.9 < float(page.inner_text("#bpw")) <= 5


def random_cases(problem, count, seed):
    """Budgets from the least to the most that there is, on a logarithmic scale, each with some pins."""
    rng = random.Random(seed)
    groups = [problem.options(g) for g in range(len(problem))]
    for _ in range(count):
        pins = [-1] * len(groups)
        for g in rng.sample(range(len(groups)), rng.choice([0, 0, 1, 3, 10])):
            pins[g] = rng.randrange(len(groups[g]))
        offered = [[o for i, o in enumerate(group) if pins[g] in (-1, i)] for g, group in enumerate(groups)]
        least, most = (sum(of(o.bytes for o in group) for group in offered) for of in (min, max))
        yield int(math.exp(rng.uniform(math.log(0.99 * least), math.log(most)))), pins, offered


@pytest.mark.parametrize("tied", [False, True], ids=["free", "tied"])
def test_answers_are_those_of_the_solvers(whole, here, open_page, tied):
    ties = parse_tie("fused") if tied else ()
    with Store.open(whole, read_only=True) as store:
        findings = Findings.read(store)
    request = PlanRequest(budget=1, ties=ties)
    (here / "x.html").write_text(report_page(findings, request, Start()), encoding="utf-8")
    page = open_page(here / "x.html")
    problem = make_plan(findings, PlanRequest(budget=2**60, ties=ties)).solved.problem
    groups = [problem.options(g) for g in range(len(problem))]
    assert page.evaluate("explorer.problem.groups.map((group) => group.map((option) => option.bytes))") == [
        [option.bytes for option in group] for group in groups
    ]
    cases = list(random_cases(problem, 200, seed=tied))
    answers = page.evaluate(
        "(cases) => cases.map(([budget, pins]) => solve(explorer.problem, budget, pins))",
        [[budget, pins] for budget, pins, _ in cases],
    )
    for (budget, pins, offered), answer in zip(cases, answers, strict=True):
        named = [Group(str(g), group) for g, group in enumerate(offered)]
        try:
            best = solve(Problem.from_groups(named, [Limit("file", budget)]), gap=0.0)
        except InfeasibleError:
            assert not answer["fits"]
            continue
        assert answer["fits"]
        assert all(pin in (-1, pick) for pin, pick in zip(pins, answer["picks"], strict=True))
        chosen = [group[pick] for group, pick in zip(groups, answer["picks"], strict=True)]
        assert sum(option.bytes for option in chosen) == answer["bytes"] <= budget
        assert answer["loss"] == pytest.approx(sum(option.loss for option in chosen), rel=1e-12)
        assert answer["loss"] <= best.loss * 1.001 + 1e-15
        assert answer["bound"] <= best.loss * (1 + 1e-9)


def test_a_page_of_a_large_model(tmp_path, open_page):
    """1,800 tensors in 20 formats: under 6 MB."""
    formats = (
        "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "q2_K", "iq3_xxs", "iq3_s", "q3_K", "iq4_xs", "iq4_nl", "q4_0",
        "q4_1", "q4_K", "q5_0", "q5_1", "q5_K", "q6_K", "q8_0",
    )  # fmt: skip
    roles = (
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate_exps",
        "ffn_up_exps",
        "ffn_down_exps",
        "ssm_in",
        "ssm_out",
    )
    shapes = {
        f"blk.{block}.{role}.weight": (2048, 512 + 64 * n) for block in range(200) for n, role in enumerate(roles)
    }
    state = tiny.write(tmp_path / "large.planner", shapes, measured=formats)
    with Store.open(state.path, read_only=True) as store:
        findings = Findings.read(store)
    text = report_page(findings, PlanRequest(budget=1, sensitivity="uniform"), Start(bpw=4.0))
    assert len(text.encode()) < 6_000_000
    (tmp_path / "large.html").write_text(text, encoding="utf-8")
    page = open_page(tmp_path / "large.html")
    assert page.evaluate("explorer.problem.groups.map((group) => group.length)") == [20] * 1800
    shown = view(page)
    assert shown["size"] <= shown["budget"]
    assert (
        shown["loss"]
        <= make_plan(findings, PlanRequest(budget=shown["budget"], sensitivity="uniform")).recipe.loss * 1.001
    )


CONTEXT = {
    "block_count": 48, "context_length": 131072, "embedding_length": 5120, "feed_forward_length": 13824,
    "attention.head_count": 40, "attention.head_count_kv": 8, "attention.key_length": 128,
    "attention.value_length": 128,
}  # fmt: skip
MATRICES = {
    "attn_q": (5120, 5120), "attn_k": (5120, 1024), "attn_v": (5120, 1024), "attn_output": (5120, 5120),
    "ffn_gate": (5120, 13824), "ffn_up": (5120, 13824), "ffn_down": (13824, 5120),
}  # fmt: skip


def test_a_card_and_a_context_make_a_budget(tmp_path, open_page):
    shapes = {"token_embd.weight": (5120, 152064), "output.weight": (5120, 152064)}
    shapes |= {f"blk.{block}.{role}.weight": shape for block in range(48) for role, shape in MATRICES.items()}
    state = tiny.write(
        tmp_path / "x.planner", shapes, metadata=CONTEXT, measured=("iq2_xs", "q3_K", "q4_K", "q5_K", "q6_K", "q8_0")
    )
    with Store.open(state.path, read_only=True) as store:
        findings = Findings.read(store)
    (tmp_path / "x.html").write_text(
        report_page(findings, PlanRequest(bpw=Fraction(5), sensitivity="prior"), Start()), encoding="utf-8"
    )
    page = open_page(tmp_path / "x.html")
    page.select_option("#context", "65536")
    needs, names = needs_of(findings.inventory), list(shapes)
    sizes = []
    for gib, kind in ((16, "f16"), (20, "f16"), (20, "q8_0"), (24, "q8_0"), (96, "f16")):
        page.select_option("#card", str(gib))
        page.select_option("#cache", kind)
        shown = view(page)
        nbytes = {name: formats()[fmt].tensor_bytes(shapes[name]) for name, fmt in shown["formats"].items()}
        weights = sum(align(size, 128) for name, size in nbytes.items() if not stays_in_ram(name, names))
        total = weights + needs.beside(Context.parse(65536, kind)).total
        said = page.inner_text("#fit-says")
        assert said.endswith(f"= {page.evaluate('inBytes', total)}.")
        if gib == 16:  # 12.9 GB of keys and values
            assert said.startswith("Nothing fits 16 GiB.")
            assert not shown["fits"] or total > gib * 2**30
            continue
        assert said.startswith(f"Fits {gib} GiB.")
        assert total <= gib * 2**30
        assert gib == 96 or total > 0.995 * gib * 2**30
        best = make_plan(
            findings,
            PlanRequest(
                sensitivity="prior",
                fit=parse_fit(
                    vram=gib * 2**30, ctx=65536, kv=kind, parallel=None, ubatch_size=None, mmproj=None, margin=None
                ),
            ),
        )
        assert shown["loss"] >= best.recipe.loss * (1 - 1e-9)  # whose token embeddings, in main memory, are free
        sizes.append(shown["size"])
    assert sizes == sorted(sizes)
    page.fill("#size-box", "10GB")
    page.press("#size-box", "Enter")
    assert page.input_value("#card") == ""
    assert page.inner_text("#fit-says").startswith("Needs a card of")


def test_mixes_and_files_are_in_the_chart(recipe, whole, here, run, open_page):
    ok(run("solve", "--state", whole, "--budget", "6MB", "-o", "larger.json"))
    ok(run("report", "recipe.json", "--state", whole, "--beside", "larger.json"))
    page = open_page(here / "report.html")
    marks = {mark["name"]: mark for mark in page.evaluate("explorer.problem.data.marks")}
    larger = load_recipe(here / "larger.json")
    assert marks["larger.json"]["size"] == larger.size
    assert marks["larger.json"]["loss"] == pytest.approx(larger.loss, rel=1e-12)
    assert {"Q4_K_M", "Q5_K_S", "IQ3_M"} <= set(marks)
    names = page.locator("#chart .mark-name").all_text_contents()
    assert {"the recipe", "larger.json", "Q4_K_M"} <= set(names)
    for mark in page.locator("#chart .mark").all():
        mark.hover(force=True)
        assert page.inner_text("#chart-tip").split("\n")[0] in {*marks, "the recipe"}


def test_divergences_are_predicted_as_planner_does(page):
    link = fit_link([Point(0.01, 0.012, 0.001), Point(0.1, 0.09, 0.004), Point(0.8, 0.5, 0.02)])
    given = {"parameters": link.parameters.tolist(), "covariance": link.covariance.tolist(), "scatter": SCATTER}
    for loss in np.geomspace(1e-6, 10, 25).tolist():
        expected = link.predict(loss)
        found = page.evaluate("([link, loss]) => predict(link, loss)", [given, loss])
        assert found == pytest.approx({"kld": expected.kld, "low": expected.low, "high": expected.high}, rel=1e-9)


def test_where_passes_tell_divergences_they_are_shown(whole, here, open_page):
    link = fit_link([Point(0.01, 0.012, 0.001), Point(0.1, 0.09, 0.004), Point(0.8, 0.5, 0.02)])
    with Store.open(whole, read_only=True) as store:
        data = page_data(Findings.read(store), PlanRequest(bpw=Fraction(5)), Start(bpw=4.5))
    data["link"] = {
        "parameters": link.parameters.tolist(), "covariance": link.covariance.tolist(), "scatter": SCATTER,
    }  # fmt: skip
    (here / "x.html").write_text(page_of(data, "x"), encoding="utf-8")
    page = open_page(here / "x.html")
    expected = link.predict(view(page)["loss"])
    kld, interval = page.inner_text("#loss").split("\n")
    assert float(kld) == pytest.approx(expected.kld, rel=0.01)
    low, high = map(float, interval.split(" to "))
    assert (low, high) == (pytest.approx(expected.low, rel=0.06), pytest.approx(expected.high, rel=0.06))
    assert "nats per token" in page.inner_text("#chart-title")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(recipe, here, open_page, scheme):
    page = open_page(
        here / "report.html",
        viewport={"width": 360, "height": 740},
        is_mobile=True,
        has_touch=True,
        color_scheme=scheme,
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_label(re.compile(r"^blk\.2\.ffn_up\.weight:")).tap()
    assert page.inner_text("#inspector h3") == "blk.2.ffn_up.weight"
    controls = "[...document.querySelectorAll('button, select, input[type=text]')].filter((one) => one.offsetParent)"
    small = page.evaluate(f"{controls}.filter((one) => one.offsetHeight < 24).length")
    assert small == 0


def contrast(page, selector):
    """The contrast of an element's text to what it stands on, as WCAG 2 has it."""
    return page.evaluate(
        """(selector) => {
            const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
            const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
                .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            return Math.min(...[...document.querySelectorAll(selector)].filter((one) => one.offsetParent).map((one) => {
                let under = one;
                while (under && numbers(getComputedStyle(under).backgroundColor)[3] === 0) under = under.parentElement;
                const ground = numbers(getComputedStyle(under ?? document.documentElement).backgroundColor);
                const pair = [luminance(numbers(getComputedStyle(one).color)), luminance(ground)].sort();
                return (pair[1] + 0.05) / (pair[0] + 0.05);
            }));
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(recipe, here, open_page, scheme):
    page = open_page(here / "report.html", color_scheme=scheme, reduced_motion="reduce")
    for size in ("2.5MB", "4.5MB", "8MB"):
        page.fill("#size-box", size)
        page.press("#size-box", "Enter")
        assert contrast(page, ".cell, button, p, dt, dd, th, td, label, code, figcaption, h1, h2, output") >= 4.5


def test_print_is_light_and_without_controls(recipe, here, open_page):
    page = open_page(here / "report.html", color_scheme="dark", reduced_motion="reduce")
    colour = "getComputedStyle(document.querySelector('.cell')).backgroundColor"
    dark = page.evaluate(colour)
    page.emulate_media(media="print")
    assert page.is_hidden("#slider")
    assert page.is_hidden("#take-recipe")
    assert page.is_visible("#roles")
    page.wait_for_function(f"{colour} !== '{dark}'")


def test_names_are_text(tmp_path, open_page):
    names = (
        "<script>alert(1)</script>", "</script><script>window.hacked = 1</script>",
        "blk.0.<img src=x onerror=alert(1)>.weight",
        "blk.0.{{script}}.weight", "blk.1.a b=C\tü\u2028.weight", "blk.1.__proto__.weight", "constructor",
        "output.weight",
    )  # fmt: skip
    state = tiny.write(tmp_path / "odd.planner", dict.fromkeys(names, (256, 8)))
    with Store.open(state.path) as store:
        store.set_inventory(
            store.inventory().model_copy(update={"model_name": "<b>bold</b>", "architecture": "'\"><i>"})
        )
        findings = Findings.read(store)
    text = report_page(findings, PlanRequest(budget=1, sensitivity="uniform"), Start())
    assert text.count("<script") == 2
    assert "<img" not in text
    (tmp_path / "x.html").write_text(text, encoding="utf-8")
    page = open_page(tmp_path / "x.html")
    assert page.inner_text("h1") == "<b>bold</b>"
    assert page.title() == "<b>bold</b>: every size"
    for name in names:
        page.evaluate(
            "(name) => explorer.map.cells.find(({ tensors }) => tensors[0].name === name).button.click()", name
        )
        assert page.text_content("#inspector h3") == name
        page.evaluate("explorer.map.cells.forEach(({ button }) => button.focus())")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('script, img, b > *, i > *').length") == 2
    taken = load_recipe(downloaded(page, "#take-recipe", tmp_path / "recipe.json"))
    assert set(taken.formats) == set(names)
    types = downloaded(page, "#take-types", tmp_path / "recipe.types.txt").read_text(encoding="utf-8")
    assert types == tensor_types(taken)


def test_experts_that_are_stored_one_by_one_share_a_cell(tmp_path, open_page):
    names = [
        f"blk.{block}.ffn_{role}.{expert}.weight" for block in range(2) for role in ("up", "down") for expert in (0, 1)
    ]
    state = tiny.write(tmp_path / "x.planner", dict.fromkeys([*names, "v.blk.0.attn_q.weight"], (256, 64)))
    with Store.open(state.path, read_only=True) as store:
        text = report_page(Findings.read(store), PlanRequest(bpw=Fraction(5), sensitivity="uniform"), Start())
    (tmp_path / "x.html").write_text(text, encoding="utf-8")
    page = open_page(tmp_path / "x.html")
    assert page.locator(".cell").count() == 5
    assert page.locator(".map caption").all_text_contents() == ["Blocks", "Blocks of v"]
    page.get_by_label(re.compile(r"^blk\.1\.ffn_up\.0\.weight:")).click()
    assert "and 1 more" in page.inner_text("#map-tip")
    page.get_by_label("Tensor", exact=True).select_option(label="blk.1.ffn_up.1.weight")
    page.locator("#inspector label", has_text="q8_0").locator("input").check()
    assert view(page)["pins"] == {"blk.1.ffn_up.1.weight": "q8_0"}


def test_nothing_but_its_own_script_may_run(recipe, here, browser):
    page = browser.new_page()
    page.goto((here / "report.html").as_uri())
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.foreign = 1' }))"
    )
    assert page.evaluate("window.foreign") is None
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate("fetch('https://example.org/').catch(() => {})")
    page.close()
