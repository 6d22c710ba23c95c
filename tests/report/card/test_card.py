"""`planner card`: a README as the hub reads it, whatever the metadata say."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

import planner
from planner.gguf import open_model
from planner.recipe import load_recipe
from planner.report.card import facts_of
from planner.report.card.front import front_matter
from tests.conftest import EXAMPLES, ok
from tests.edited import edited

TEXT = EXAMPLES / "evaluation.txt"
FEW = ("--text", TEXT, "-c", 64, "--chunks", 4, "-t", 2)
EVIL = 'A" \n---\n# {{x}} <script>alert(1)</script> | `rm -rf` [a](javascript:b) \x1b[31m: - "'


def parts(text):
    """Front matter and body."""
    _, front, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    return front, body


def yaml_of(front):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(front)


@pytest.fixture
def recipes(run, cheap, here):
    for bpw in ("4.5", "7.4"):
        ok(run("solve", "--state", cheap, "--bpw", bpw, "-o", f"{bpw}.json"))
    return ["4.5.json", "7.4.json"]


def test_a_card(run, here, example, recipes):
    ok(run("compare", example.model, recipes[0], *FEW))
    result = run("card", *recipes, "--results", "compare.json", "--base-model", "org/Prose-8M", "--by", "me",
                 "--repo", "me/Prose-8M-GGUF", "--dataset", "org/texts")  # fmt: skip
    front, body = parts((here / "README.md").read_text(encoding="utf-8"))
    assert yaml_of(front) == {
        "base_model": "org/Prose-8M", "base_model_relation": "quantized", "quantized_by": "me",
        "pipeline_tag": "text-generation", "datasets": ["org/texts"], "tags": ["gguf", "quantized", "imatrix"],
    }  # fmt: skip
    first, second = re.findall(r"^\| `(.*?)` \|", body, re.MULTILINE)
    assert re.fullmatch(r"Prose-8M-4\.50bpw-I?Q4_\w+\.gguf", first)
    assert second == "Prose-8M-7.40bpw.gguf"
    assert first in ok(result).out
    assert "licence" in result.err
    kept = json.loads((here / "compare.json").read_text())["comparisons"]
    (comparison,) = kept.values()
    share = comparison["results"]["4.5.json"]["statistics"]["same_top"]["value"]
    assert f"{100 * share:.2f} %" in body
    assert "evaluated in memory" in body
    assert "4 windows of 64 tokens" in body
    label = first.split("-")[-1].removesuffix(".gguf")
    assert f"llama-server -hf me/Prose-8M-GGUF:{label}" in body
    assert "ollama run hf.co/me/Prose-8M-GGUF" in body
    assert "prose-8m-sums.imatrix.gguf" in body
    assert str(EXAMPLES) not in body  # no paths of this machine


@pytest.mark.parametrize("ctx", [None, 1 << 20, 3 << 20])
def test_memories_are_for_a_context(run, here, cheap, example, recipes, ctx):
    """The memory that is named holds the file with its context, as solve counts it, and the next smaller does not."""
    tokens, name = ctx or 512, recipes[1]  # the model was trained on 512
    sizes = {choice.name: choice.bytes for choice in load_recipe(here / name).tensors}
    weights = sum(-(-size // 128) * 128 for tensor, size in sizes.items() if tensor != "token_embd.weight")
    with planner.open_state(cheap, read_only=True) as state:
        (card,) = state.solve(vram="96GiB", ctx=tokens).cards
    needed = weights + card.beside.total
    ok(run("quantize", example.model, name, "larger.gguf"))
    for file in (name, "larger.gguf"):
        done = ok(run("card", file, "-f", *(() if ctx is None else ("-c", ctx))))
        text = (here / "README.md").read_text()
        assert f"context of {tokens:,} tokens:" in text
        assert "keys and values in f16" in text
        assert ("trained on 512 tokens" in done.err) == (tokens > 512)
        (gib,) = map(int, re.findall(r"\| (\d+) GiB \|$", text, re.MULTILINE))
        usual = (1, 2, 3, 4, 6, 8, 10, 11, 12, 16, 20, 24)
        assert gib == min(size for size in usual if needed <= size << 30)


def test_its_commands_make_the_files(run, here, example, recipes):
    ok(run("card", *recipes))
    (here / example.model.name).symlink_to(example.model)
    commands = re.findall(r"^planner (quantize .*)$", (here / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 2
    for command, recipe in zip(commands, recipes, strict=True):
        words = shlex.split(command)
        ok(run(*words))
        assert Path(words[-1]).stat().st_size == load_recipe(here / recipe).size


def test_files_in_place_of_recipes(run, here, example, recipes):
    ok(run("quantize", example.model, recipes[0], "small.gguf"))
    ok(run("compare", example.model, "small.gguf", *FEW))
    found = ok(run("card", "small.gguf", "--results", "compare.json"))
    called = re.search(r"Prose-8M-4\.50bpw-\S+\.gguf", found.out)[0]
    assert f"Next: mv small.gguf {called}" in found.out
    text = (here / "README.md").read_text()
    assert f"planner import {called}" in text
    assert "mean KLD" in text
    assert "in memory" not in text
    ok(run("card", recipes[0], "-o", "recipe.md"))
    assert called in (here / "recipe.md").read_text()  # as its recipe says


def test_mlx_has_no_labels(run, here, example, cheap, recipes):
    ok(run("measure", example.model, "--family", "mlx", "--types", "g64", "--state", cheap, "--imatrix", example.sums))
    ok(run("solve", "--state", cheap, "--family", "mlx", "--bpw", "5", "-o", "mlx.json"))
    ok(run("card", "mlx.json"))
    front, body = parts((here / "README.md").read_text())
    assert yaml_of(front)["library_name"] == "mlx"
    assert "Prose-8M-mlx-5.00bpw" in body
    assert "planner export mlx.json --to mlx-lm" in body
    assert "llama-server" not in body
    assert "memory" not in body  # which is counted for llama.cpp
    mixed = run("card", "mlx.json", recipes[0], "-f")
    assert (mixed.status, "two cards" in " ".join(mixed.err.lower().split())) == (2, True)


def test_what_metadata_say_of_licence_and_origin(run, here, example):
    change = {
        "general.license": "other", "general.license.name": "my-licence", "general.license.link": "https://a.b/LICENSE",
        "general.source.repo_url": "https://huggingface.co/org/Name-7B", "general.name": "Name 7B",
        "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip
    edited(example.model, here / "x.gguf", change)
    ok(run("card", "x.gguf"))
    found = yaml_of(parts((here / "README.md").read_text())[0])
    assert found["base_model"] == "org/Name-7B"
    assert (found["license"], found["license_name"], found["license_link"]) == (
        "other", "my-licence", "https://a.b/LICENSE",
    )  # fmt: skip
    assert found["tags"] == ["gguf", "quantized", "conversational"]


def test_metadata_cannot_break_out(run, here, example):
    change = dict.fromkeys(
        ["general.name", "general.license", "general.license.name", "general.source.repo_url", "general.repo_url"], EVIL
    )
    edited(example.model, here / "x.gguf", change)
    result = ok(run("card", "x.gguf", "--by", EVIL))
    text = (here / "README.md").read_text(encoding="utf-8")
    assert "\x1b" not in text + result.text
    found = yaml_of(parts(text)[0])
    assert set(found) == {"quantized_by", "pipeline_tag", "tags"}
    assert "<script" not in re.sub(r"\\.", "", parts(text)[1])
    assert len(re.findall("^# ", text, re.MULTILINE)) == 1
    assert "](javascript" not in re.sub(r"\\.", "", parts(text)[1])
    (name,) = re.findall(r"^\| `(.*?)` \|", text, re.MULTILINE)
    assert re.fullmatch(r"[\w.-]+", name)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.one_of(st.text(), st.lists(st.text()))))
def test_front_matter_is_yaml_whatever_is_in_it(fields):
    text = front_matter(fields)
    assert text.count("\n---") == 1
    found = yaml_of(text.removeprefix("---").removesuffix("---")) or {}
    assert set(found) == {key for key, value in fields.items() if value}
    for key, value in found.items():
        assert type(value) is type(fields[key])
        if isinstance(value, str) and fields[key].isprintable():
            assert value == fields[key]


@given(st.lists(st.text(max_size=20), max_size=3))
def test_facts_of_any_metadata(texts):
    class Fake:
        def text(self, key):
            return texts[0] if texts else None

        def brief(self, key):
            return texts

    found = facts_of(Fake())
    for known in (found.base_model, found.license, *found.tags):
        assert known is None or re.fullmatch(r"[\w./-]+", known, re.ASCII)


def test_what_cannot_be(run, here, example, recipes):
    planned = load_recipe(here / recipes[0])
    moved = planned.model_copy(update={"model": planned.model.model_copy(update={"path": "gone.gguf"})})
    moved.save("gone.json")
    (here / "KEEP.md").write_text("mine")
    writer = gguf.GGUFWriter(here / "other.gguf", "llama")
    writer.add_name("other")
    with open_model(example.model) as model:
        writer.add_tensor("output.weight", model.rows(model["output.weight"])[:32])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for status, arguments, words in (
        (1, ("gone.json",), "gone.gguf, is not there. Say where it is with --model"),
        (1, (recipes[0], "-o", "KEEP.md"), "KEEP.md exists"),
        (1, (recipes[0], "--results", "none.json"), "There are no results in none.json"),
        (1, (recipes[0], "--results", recipes[0]), "is no file of results"),
        (1, (recipes[0], "other.gguf"), "is of another model"),
        (1, (recipes[0], "--model", "other.gguf"), "is for another model"),
        (2, (recipes[0], "--base-model", "https://x/y/z"), "is no name on the hub"),
        (2, (recipes[1], recipes[1]), "would have the same name"),
        (2, (), "Missing argument"),
    ):
        result = run("card", *arguments)
        assert (result.status, words in " ".join(result.err.split())) == (status, True), (arguments, result.text)
    assert (here / "KEEP.md").read_text() == "mine"
    assert not (here / "README.md").exists()
    ok(run("card", "gone.json", "--model", example.model))
