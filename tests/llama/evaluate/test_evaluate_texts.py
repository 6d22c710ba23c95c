"""`planner evaluate` on several texts and conversations at once, with a floor and trajectories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.gguf import open_model, why_left_alone
from planner.gguf.quantize import quantize_model
from tests.conftest import EXAMPLES, ok
from tests.edited import edited

SENTENCES = (EXAMPLES / "evaluation.txt").read_text(encoding="utf-8").replace("\n", " ").split(". ")
TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + ' END\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
FEW = ("--ctx", 64, "--chunks", 3, "-t", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory, example) -> Path:
    return edited(example.model, tmp_path_factory.mktemp("m") / "model.gguf", {"tokenizer.chat_template": TEMPLATE})


@pytest.fixture(scope="module")
def quant(tmp_path_factory, model) -> Path:
    path = tmp_path_factory.mktemp("quant") / "q4_0.gguf"
    with open_model(model) as opened:
        formats = {
            tensor.name: "q4_0" for tensor in opened.tensors
            if not why_left_alone(tensor.name, tensor.shape, opened.architecture, tensor.format)
        }  # fmt: skip
        quantize_model(opened, formats, None, path, file_type=2)
    return path


@pytest.fixture
def texts(here) -> list[object]:
    """Options that name three texts and a chat."""
    for number, name in enumerate(("prose.txt", "code.txt", "letters.txt")):
        Path(name).write_text(". ".join(SENTENCES[40 * number : 40 * number + 40]))
    with Path("talk.jsonl").open("w") as file:
        for number in range(4):
            asked, answered = SENTENCES[200 + 2 * number], SENTENCES[201 + 2 * number]
            messages = [{"role": "user", "content": asked[:80]}, {"role": "assistant", "content": answered[:120]}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return [word for name in ("prose.txt", "code.txt", "letters.txt") for word in ("--text", name)] + [
        "--chat", "talk.jsonl",
    ]  # fmt: skip


def test_all_at_once(run, texts, model, quant):
    arguments = ("evaluate", model, quant, *texts, *FEW, "--floor", "--trajectories", 2)
    first = ok(run(*arguments))
    assert first.err.count("are kept in") == 4
    assert max(map(len, first.out.splitlines())) <= 80
    kept = {path.name: path.stat().st_mtime_ns for path in Path().glob("*.kld*")}
    assert set(kept) == {
        f"model.{name}.kld{note}"
        for name in ("prose.txt", "code.txt", "letters.txt", "talk.jsonl")
        for note in ("", ".json")
    }
    again = ok(run(*arguments, "--json"))
    assert again.err == ""
    assert kept == {path.name: path.stat().st_mtime_ns for path in Path().glob("*.kld*")}
    report = json.loads(again.out)
    base, found = report["files"]

    labels = [text["label"] for text in report["texts"]]
    assert labels == ["prose.txt", "code.txt", "letters.txt", "talk.jsonl"]
    assert [text["chat"] for text in report["texts"]] == [False, False, False, True]
    assert (report["context"], report["windows"]) == (64, 9)
    counts = {text["label"]: text["predictions"] for text in report["texts"]}
    assert counts["prose.txt"] == 3 * 31
    assert {label: own["tokens"] for label, own in found["texts"].items()} == counts
    assert found["tokens"] == sum(counts.values())
    for name in ("kld", "ln_ppl_ratio", "same_top"):  # all together are the mean over tokens
        mean = sum(counts[label] * found["texts"][label][name]["value"] for label in labels) / found["tokens"]
        assert found[name]["value"] == pytest.approx(mean, rel=1e-6)
        assert found[name]["error"] > 0
    assert sum(bucket["tokens"] for bucket in found["kld_by_confidence"]) == found["tokens"]
    assert base["texts"].keys() == set(labels)

    floor = report["floor"]
    assert abs(floor["kld"]["value"]) < 1e-4 < found["kld"]["value"]
    taken = found["trajectories"]
    assert len(taken["same_tokens"]) == sum(text["prompts"] for text in report["texts"]) == 8
    diverged = [same < length for same, length in zip(taken["same_tokens"], taken["original_tokens"], strict=True)]
    assert taken["divergence_at_32"]["value"] == sum(diverged) / 8
    assert floor["trajectories"]["divergence_at_32"]["value"] <= taken["divergence_at_32"]["value"]
    for label in labels:
        assert found["texts"][label]["trajectories"]["original_tokens"] <= [32, 32]


def test_a_text_says_the_same_alone_and_among_others(run, texts, model, quant):
    among = json.loads(ok(run("evaluate", model, quant, *texts, *FEW, "--json")).out)["files"][1]["texts"]
    for option, name in (("--text", "code.txt"), ("--chat", "talk.jsonl")):
        alone = json.loads(ok(run("evaluate", model, quant, option, name, *FEW, "--json")).out)["files"][1]
        assert "texts" not in alone
        for key in ("tokens", "kld", "kld_99", "kld_999", "ppl", "same_top", "kld_by_confidence"):
            assert alone[key] == among[name][key], key
    # the file that was kept stands in for the model
    from_file = json.loads(ok(run("evaluate", "model.talk.jsonl.kld", quant, "-t", 2, "--json")).out)
    assert from_file["files"][1]["kld"] == among["talk.jsonl"]["kld"]
    assert from_file["context"] is None


def test_a_recipe_is_followed_once_for_all_texts(run, texts, model, quant, monkeypatch):
    from planner.llama.passes import recipes

    followed = []
    follow = recipes.follow
    monkeypatch.setattr(recipes, "follow", lambda *arguments: followed.append(follow(*arguments)))
    ok(run("measure", model, "--no-imatrix", "--types", "q4_0,q8_0", "-t", 2))
    ok(run("solve", "--bpw", 6, "-o", "recipe.json"))
    found = json.loads(ok(run("evaluate", model, "recipe.json", quant, *texts, *FEW, "--json")).out)["files"]
    assert len(followed) == 1
    assert 0 < found[1]["texts"]["talk.jsonl"]["kld"]["value"] < found[2]["texts"]["talk.jsonl"]["kld"]["value"]


def test_what_does_not_go_together(run, texts, model, quant):
    ok(run("evaluate", model, "--text", "code.txt", *FEW, "--kl-divergence-base", "x.kld"))
    Path("other").mkdir()
    Path("other/code.txt").write_text("x")
    Path("none.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}))
    for status, arguments, words in (
        (2, (model, quant, "--floor"), "nothing to evaluate with"),
        (2, (model, quant, "--floor", "--hellaswag", "x"), "--floor goes with --text or --chat"),
        (2, ("x.kld", quant, "--floor"), "--floor goes with a model"),
        (2, ("x.kld", quant, "--trajectories", 3), "--trajectories goes with a model"),
        (2, (model, quant, "--text", "code.txt", "--text", "other/code.txt"), "Two texts are called code.txt"),
        (2, (model, quant, *texts, "--calibrate", "x.planner"), "--calibrate goes with one --text"),
        (2, (model, quant, "--text", "code.txt", "--ctx", 20, "--trajectories", 2), "Give a longer --ctx"),
        (1, (model, quant, "--chat", "none.jsonl"), "no answer of an assistant"),
        (2, (model, quant, "--chat", "code.txt"), "no JSON"),
    ):
        result = run("evaluate", *arguments)
        assert (result.status, words in " ".join(result.err.split())) == (status, True), (arguments, result.text)
        assert "Traceback" not in result.text
