"""Pages without a browser: the command, and the data that they hold."""

from __future__ import annotations

import json
import re

import pytest

import planner
from planner.recipe import load_recipe
from tests.conftest import ok


def data_of(path):
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL
    )
    return json.loads(found[1])


@pytest.fixture
def made(cheap, here, run):
    ok(run("solve", "--state", cheap, "--budget", "5MB", "--pin", "^output=q8_0", "--tie", "fused"))
    return cheap


def test_the_same_input_makes_the_same_page(made, here, run):
    ok(run("report", "recipe.json", "--state", made, "-o", "a.html"))
    ok(run("report", "recipe.json", "--state", made, "-o", "b.html"))
    assert (here / "a.html").read_bytes() == (here / "b.html").read_bytes()
    said = ok(run("report", "recipe.json", "--state", made)).out
    assert said.startswith("report.html\n")


def test_the_library_writes_the_same(made, here, run):
    ok(run("report", "--state", made, "--bpw", "5", "--pin", "attn_v=q6_K", "--types", "k,q8_0", "--tie", "fused"))
    with planner.open_state(made, read_only=True) as state:
        state.report("x.html", bpw=5, pin="attn_v=q6_K", types="k,q8_0", tie="fused")
        state.report("y.html", recipe="recipe.json", tie="fused")
        state.report("z.html", recipe=load_recipe(here / "recipe.json"), tie="fused")
    theirs, mine = data_of(here / "report.html"), data_of(here / "x.html")
    assert theirs.pop("command").startswith("planner report --state ")
    assert mine.pop("command") == ""
    assert mine == theirs
    assert (here / "y.html").read_bytes() == (here / "z.html").read_bytes()


def test_rules_bound_what_it_offers(made, here, run):
    def offered(*arguments):
        ok(run("report", "--state", made, *arguments))
        data = data_of(here / "report.html")
        return {data["formats"][index]["name"] for choice in data["choices"] for index in data["sets"][choice]}

    assert offered("--types", "q4_K,q6_K") == {"q4_K", "q6_K", "f16"}
    assert offered("--min", "q4_K", "--max", "q6_K") == {
        "iq4_nl",
        "q4_0",
        "q4_1",
        "q4_K",
        "q5_0",
        "q5_1",
        "q5_K",
        "q6_K",
    }
    ok(run("report", "--state", made, "--tie", "fused"))
    assert len(data_of(here / "report.html")["choices"]) == 58 - 3 * 8


def test_pins_come_from_the_recipe_and_the_options(made, here, run):
    def pinned(*arguments):
        ok(run("report", "recipe.json", "--state", made, *arguments))
        data = data_of(here / "report.html")
        formats = {group: data["sets"][data["choices"][group]][option] for group, option in data["pins"]}
        return {
            name: data["formats"][formats[group]]["name"]
            for name, group in zip(data["names"], data["groupOf"], strict=True) if group in formats
        }  # fmt: skip

    assert pinned() == {"output.weight": "q8_0"}
    assert pinned("--pin", "^output.weight=q6_K", "--pin", "blk.0.attn_v=q5_K") == {
        "output.weight": "q6_K", "blk.0.attn_v.weight": "q5_K",
    }  # fmt: skip


def test_without_a_recipe_it_opens_with_a_size(made, here, run):
    ok(run("report", "--state", made, "--budget", "5MB"))
    assert data_of(here / "report.html")["start"] == {"bytes": 5_000_000, "bpw": None}
    ok(run("report", "--state", made))
    data = data_of(here / "report.html")
    assert data["start"] == {"bytes": None, "bpw": None}
    assert data["given"] is None


def test_an_edited_recipe_opens_with_its_size(made, here, run):
    text = (here / "recipe.json").read_text()
    (here / "recipe.json").write_text(re.sub(r'("blk.0.ffn_up.weight", "format": )"\w+"', r'\1"iq1_s"', text))
    ok(run("report", "recipe.json", "--state", made))
    data = data_of(here / "report.html")
    assert data["given"] is None
    assert data["start"]["bytes"] == load_recipe(here / "recipe.json").size


def test_mlx_has_no_tensor_types(here, run, example):
    ok(run("measure", example.model, "--family", "mlx", "--types", "mlx_q4_g64,mlx_q8_g64", "-t", "2"))
    ok(run("solve", "--family", "mlx", "--bpw", "6"))
    ok(run("report", "recipe.json"))
    data = data_of(here / "report.html")
    assert data["recipe"]["family"] == "mlx"
    assert data["typeFile"] is False
    assert data["exportedTo"] == "mlx-lm"
    assert not data["wholeFile"]


def test_what_cannot_be_shown(made, here, run, example):
    other = json.loads((here / "recipe.json").read_text())
    other["model"]["digest"] = "0" * 64
    (here / "other.json").write_text(json.dumps(other))
    for arguments, words in (
        (["other.json", "--state", made], "another model"),
        (["recipe.json", "--state", "none.planner"], "none.planner"),
        (["recipe.json"], "no state file"),
        (["recipe.json", "--state", made, "--budget", "5MB"], "Give one of them"),
        (["--state", made, "--budget", "much"], "not a size"),
        (["recipe.json", "--state", made, "--types", "q4_K"], "cannot be pinned to q8_0"),
        (["--state", made, "--pin", "output_norm=q4_K"], "leaves output_norm.weight as it is"),
        (["--state", made, "--pin", "nothing=q4_K"], "no tensor's name matches"),
        (["--state", made, "-o", here], "directory"),
    ):
        done = run("report", *arguments)
        assert done.status in (1, 2), done.text
        assert words in done.err, done.err
        assert "Traceback" not in done.err
    assert not (here / "report.html").exists()
