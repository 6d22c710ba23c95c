"""What is asked of a model before llama.cpp runs it, where llama.cpp would abort or answer with nonsense."""

from __future__ import annotations

import numpy as np
import pytest

from planner.errors import InferenceError, ModelError
from planner.gguf import open_model, read_imatrix
from planner.llama.engine import Engine
from planner.llama.fitness import check_model
from tests.conftest import EXAMPLES
from tests.edited import bert, edited
from tests.models import Maker, dense

TEXT = EXAMPLES / "calibration.txt"
WORDS = "tokenizer.ggml.tokens"


def words_of(example) -> list[str]:
    with open_model(example.model) as model:
        return list(model.metadata[WORDS])


@pytest.fixture
def letters(here):
    (here / "letters.txt").write_text("a b c d e f g h i j " * 200)
    return here / "letters.txt"


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "--text", TEXT, "-c", 64, "-t", 1),
        ("bench", "-p", 16, "-n", 2, "-r", 1, "-t", 1),
        ("sensitivity", "--text", TEXT, "--passes", 2, "-t", 1),
        ("solve", "--bpw", 6, "--polish", TEXT, "-t", 1),
    ],
)
def test_encoders_predict_nothing(run, here, example, command):
    """Refused before anything is measured or kept, in the place of the original and of the others."""
    bert(here / "embedder")
    name, *options = command
    done = run(name, "embedder", *options)
    assert done.status == 1
    assert "embedder predicts no next token: bert is an encoder." in " ".join(done.err.split())
    assert [path.name for path in here.iterdir() if path.suffix == ".kld"] == []
    if name == "evaluate":
        assert "predicts no next token" in run(name, example.model, "embedder", *options).err
        assert not list(here.glob("*.kld"))


def test_an_encoder_s_imatrix(run, here, letters):
    """Windows of a batch are run in one piece, and seen whole."""
    bert(here / "embedder")
    done = run("imatrix", "embedder", "--text", letters, "-c", 64, "--chunks", 30, "-t", 1)
    assert done.status == 0, done.text
    found = read_imatrix("imatrix.gguf")
    assert len(found.entries) == 12
    assert {int(entry.counts[0]) for entry in found.entries.values()} == {30 * 64}


def test_positions_that_are_learned_end(run, here, letters):
    bert(here / "embedder", positions=64)
    done = run("imatrix", "embedder", "--text", letters, "-c", 128, "-t", 1)
    assert (done.status, "has learned 64 positions" in done.err) == (2, True), done.text
    assert run("imatrix", "embedder", "--text", letters, "--chunks", 1, "-t", 1).status == 0
    with Engine(here / "embedder", context=64, threads=1, windows_at_a_time=1, predicts=False) as engine:
        far = np.full(1, 64, np.int32)
        with pytest.raises(InferenceError, match="learned 64 positions, and 65"):
            engine.decode(far, far, np.zeros(1, np.int32), np.ones(1, np.bool_))


@pytest.mark.parametrize(
    ("architecture", "what"), [("t5", "encoder-decoder"), ("clip", "projector"), ("eagle3", "draft")]
)
def test_what_is_no_decoder_is_not_run(run, here, architecture, what):
    maker = Maker(architecture)
    maker.matrix("token_embd", 32, 64)
    maker.write(here / "other.gguf")
    for command in (
        ("imatrix", "other.gguf", "--text", TEXT),
        ("evaluate", "other.gguf", "--text", TEXT),
        ("bench", "other.gguf"),
    ):
        done = run(*command)
        assert (done.status, what in done.err, architecture in done.err) == (1, True, True), done.text


def test_attention_in_both_directions(here):
    maker = dense()
    maker.pairs["attention.causal"] = False
    with open_model(maker.write(here / "both.gguf")) as model:
        with pytest.raises(ModelError, match=r"llama\.attention\.causal is false"):
            check_model(model, context=64)
        check_model(model, context=64, predicts=False)


def test_a_word_that_is_there_twice(run, here, example):
    words = words_of(example)
    words[4000] = words[3999]
    edited(example.model, here / "twice.gguf", {WORDS: words})
    for command in (
        ("imatrix", "twice.gguf", "--text", TEXT), ("evaluate", "twice.gguf", "--text", TEXT), ("bench", "twice.gguf"),
    ):  # fmt: skip
        done = run(*command)
        said = " ".join(done.err.split())
        assert (done.status, f'"{words[3999]}" twice: as token 3,999 and as token 4,000' in said) == (1, True), said
    assert f'"{words[3999]}" twice' in " ".join(run("inspect", "twice.gguf").out.split())


def test_words_are_compared_as_llama_cpp_reads_them(here, example):
    """By their bytes, up to a zero; an empty word gets a name of its own."""
    for index, changed, twice in (
        ((5, 6), ("", ""), False), ((5, 6), ("", "[EMPTY_5]"), True), ((5, 6), ("one\0two", "one"), True),
    ):  # fmt: skip
        words = words_of(example)
        for number, word in zip(index, changed, strict=True):
            words[number] = word
        with open_model(edited(example.model, here / "words.gguf", {WORDS: words})) as model:
            if twice:
                with pytest.raises(ModelError, match="twice"):
                    check_model(model, context=64)
            else:
                check_model(model, context=64)


def test_words_without_rows(run, here, example):
    edited(example.model, here / "fewer.gguf", {WORDS: words_of(example)[:4000]})
    done = run("bench", "fewer.gguf", "-p", 16, "-n", 2, "-r", 1)
    assert done.status == 1
    assert "4,000 words, and token_embd.weight has 4,096 rows" in " ".join(done.err.split())
    assert "4,000 words" in run("inspect", "fewer.gguf").out


@pytest.mark.parametrize("end", ["bos", "eos"])
def test_ends_of_a_text_that_no_word_is(run, here, example, end):
    """llama.cpp takes another word, or aborts when it tokenizes."""
    key = f"tokenizer.ggml.{end}_token_id"
    edited(example.model, here / "end.gguf", {key: 99_999, f"tokenizer.ggml.add_{end}_token": True})
    done = run("imatrix", "end.gguf", "--text", TEXT, "-c", 64, "--chunks", 1, "-t", 1)
    assert (done.status, f"{key} is 99,999, beyond it" in " ".join(done.err.split())) == (1, True), done.text
    assert f"{key} is 99,999" in " ".join(run("inspect", "end.gguf").out.split())
    unused = edited(example.model, here / "unused.gguf", {key: 99_999, "tokenizer.ggml.padding_token_id": 2**32 - 1})
    with Engine(unused, context=16, threads=1):
        pass


def test_a_beginning_that_nothing_names(run, here, example):
    words = words_of(example)
    change = {
        "tokenizer.ggml.model": "gemma4", "tokenizer.ggml.pre": None, "tokenizer.ggml.bos_token_id": None,
        "tokenizer.ggml.add_bos_token": True, WORDS: words,
    }  # fmt: skip
    edited(example.model, here / "no-bos.gguf", change)
    done = run("imatrix", "no-bos.gguf", "--text", TEXT, "-c", 64, "--chunks", 1, "-t", 1)
    assert (done.status, "tokenizer.ggml.bos_token_id names none" in " ".join(done.err.split())) == (1, True), done.text


def test_characters_that_cannot_be_spelt(run, here, example):
    """SentencePiece without a token for every byte: llama.cpp ends the process at a character that is no word."""
    change = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.merges": None, "tokenizer.ggml.pre": None}
    words = words_of(example)
    words[100] = "\u2581"
    model = edited(example.model, here / "letters.gguf", {**change, WORDS: words})
    with Engine(model, context=16, threads=1) as engine:
        assert len(engine.tokenize("ab a"))
        for text, unknown in (("ab\nab", r"'\\n'"), ("a\u00fcb\U0001f600", "\U0001f600")):
            with pytest.raises(ModelError, match=f"neither the character .*{unknown}"):
                engine.tokenize(text)
    none = edited(example.model, here / "none.gguf", {"tokenizer.ggml.model": "none"})
    done = run("evaluate", none, "--text", TEXT, "--chunks", 1, "-t", 1)
    assert (done.status, "has no vocabulary" in " ".join(done.err.split())) == (1, True), done.text
    assert run("bench", none, "-p", 16, "-n", 0, "-r", 1, "-t", 1).status == 0


def test_contexts_beyond_the_training_are_named(run, here, example):
    short = edited(example.model, here / "short.gguf", {"llama.context_length": 64})
    beyond = "trained on 64 tokens at most: a context of 128 is beyond"
    for command in (
        ("evaluate", short, short, "--text", TEXT, "-c", 128, "--chunks", 1, "-t", 2),
        ("imatrix", short, "--text", TEXT, "-c", 128, "--chunks", 1, "-t", 2, "-f"),
        ("bench", short, "-p", 128, "-n", 0, "-r", 1, "-t", 2),
    ):
        done = run(*command)
        assert (done.status, " ".join(done.err.split()).count(beyond)) == (0, 1), done.text
    assert (
        "beyond" not in run("evaluate", short, "--text", TEXT, "--chunks", 1, "-t", 2).err
    )  # the default is what fits
    task = "\n".join([TEXT.read_text(encoding="utf-8")[:900].replace("\n", " "), "0", "a.", "b.", "c.", "d."])
    (here / "task.txt").write_text(task + "\n", encoding="utf-8")
    asked = run("evaluate", short, "--hellaswag", "task.txt", "-t", 2)
    assert asked.status == 0
    assert "trained on 64 tokens at most" in asked.err


def test_layers_for_a_gpu_that_is_not_there(run, here, example, monkeypatch):
    from planner.llama.library import llama

    monkeypatch.setattr(llama(), "llama_supports_gpu_offload", lambda: False)
    arguments = ("bench", example.model, "-p", 16, "-n", 0, "-r", 1, "-t", 2)
    done = run(*arguments, "-ngl", 99)
    assert done.status == 0
    assert "-ngl 99 has no effect" in done.err
    assert run(*arguments).err == ""


def test_short_texts_are_counted(run, here, example):
    (here / "short.txt").write_text("Once upon a time.")
    (here / "empty.txt").write_text("")
    with Engine(example.model, context=16, threads=1) as engine:
        count = len(engine.tokenize("Once upon a time."))
    for text, tokens in (("short.txt", count), ("empty.txt", 0)):
        done = run("evaluate", example.model, "--text", text)
        assert (done.status, f"The text has {tokens} tokens, and one window needs 512." in done.err) == (1, True), (
            done.text
        )
        done = run("imatrix", example.model, "--text", text)
        assert (done.status, f"{tokens} tokens, and a chunk is 512" in " ".join(done.err.split())) == (2, True), (
            done.text
        )
