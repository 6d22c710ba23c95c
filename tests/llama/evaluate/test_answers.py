"""Conversations: which tokens are answers, what is kept of them, and what they are compared by."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import BaselineError, PlannerError, UsageError
from planner.inputs.kinds import BASELINE
from planner.inputs.reading import kind_at
from planner.llama.collect.chat import Conversation
from planner.llama.collect.rendering import Renderer
from planner.llama.engine import Block, Engine
from planner.llama.evaluate.answers import Answers, Passage, open_baseline, record_answers
from planner.llama.evaluate.chats import answer_passages, answers_of
from planner.llama.evaluate.compare import base_nll, diverge
from planner.llama.workers import Workers
from tests.edited import edited

PLAIN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + ' END\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# Reasoning is in the last answer alone, as templates of reasoning models have it
THINKING = (
    "{% for m in messages %}{{ m.role + ': ' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>' + m.content + '</think>' }}{% endif %}"
    "{{ m.content + ' END\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: <think>' }}{% endif %}"
)


def conversation(*contents: str, first: str = "user") -> Conversation:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(contents)]
    return Conversation("line 1", messages, None)


def spans_of(template: str, *each: Conversation) -> list[list[tuple[str, list[str]]]]:
    """The texts, and the answers in them as they are spelt."""
    with Renderer("m.gguf", template, bos="", eos="", now="2025-01-02") as renderer:
        return [
            [(text, [text[begin:end] for begin, end in spans]) for text, spans in answers_of(one, renderer)]
            for one in each
        ]


def test_answers_are_what_the_assistant_says_and_what_ends_it():
    two, opened, unanswered = spans_of(
        PLAIN, conversation("a", "b", "c", "d"), conversation("hello", "a", "b", first="assistant"), conversation("a")
    )
    assert two == [("user: a END\nassistant: b END\nuser: c END\nassistant: d END", ["b END", "d END"])]
    assert opened == [("assistant: hello END\nuser: a END\nassistant: b END", ["b END"])]
    assert unanswered == []


def test_answers_that_are_rewritten_later_are_read_as_they_were_given():
    (found,) = spans_of(THINKING, conversation("a", "b", "c", "d"))
    assert found == [
        ("user: a END\nassistant: b END\nuser: c END\nassistant: <think>d</think>d END", ["d</think>d END"]),
        ("user: a END\nassistant: <think>b</think>b END", ["b</think>b END"]),
    ]


@pytest.fixture(scope="module")
def chatty(tmp_path_factory, example) -> Path:
    return edited(example.model, tmp_path_factory.mktemp("chat") / "chat.gguf", {"tokenizer.chat_template": PLAIN})


@pytest.fixture
def chats(tmp_path) -> Path:
    """A file whose time templates may write; its text is given."""
    (tmp_path / "x.jsonl").touch()
    return tmp_path / "x.jsonl"


def lines(*conversations: list[str]) -> str:
    return "\n".join(json.dumps({"messages": conversation(*contents).messages}) for contents in conversations)


CHATS = (["Where is he?", "He is at home.", "Why?", "It rains."], ["Who was it?", "The old man, of course."])


def test_tokens_of_answers(chatty, chats):
    with Engine(chatty, context=64, threads=1) as engine:
        passages, longer = answer_passages(engine, chats, lines(*CHATS), None)
        said = [[engine.token_text(token) for token in passage.tokens[passage.positions + 1]] for passage in passages]
    assert longer == 0
    texts = ["".join(words).replace("\u0120", " ") for words in said]
    assert texts == [" He is at home. END It rains. END", " The old man, of course. END"]


def test_what_does_not_fit_is_left_out(chatty, chats):
    with Engine(chatty, context=18, threads=1) as engine:
        whole, longer = answer_passages(engine, chats, lines(*CHATS), None)
        assert longer == 2
        assert all(len(passage.tokens) == 18 for passage in whole)
        assert all(passage.positions[-1] == 16 for passage in whole)
        first, _ = answer_passages(engine, chats, lines(*CHATS), 1)
        assert len(first) == 1
    with Engine(chatty, context=4, threads=1) as engine, pytest.raises(BaselineError, match="within 4 tokens"):
        answer_passages(engine, chats, lines(*CHATS), None)
    with Engine(chatty, context=64, threads=1) as engine, pytest.raises(BaselineError, match="has no answer"):
        answer_passages(engine, chats, lines(["nobody answers"]), None)


def test_compared_by_the_same_predictions_as_each_run_alone(chatty, chats, tmp_path):
    """The oracle runs every conversation token by token."""
    with Engine(chatty, context=64, threads=1) as engine:
        passages, _ = answer_passages(engine, chats, lines(*CHATS), None)
        with record_answers(engine, passages, tmp_path / "x.kld") as kept:
            found = diverge(engine, kept)
            nll = base_nll(kept)
        expected, tokens = [], []
        for passage in passages:
            engine.forget()
            for place, token in enumerate(passage.tokens.tolist()):
                one = np.array([token], np.int32)
                row = engine.decode(one, np.array([place], np.int32), np.zeros(1, np.int32), np.ones(1, np.bool_))[0]
                if place in passage.positions:
                    log_p = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
                    expected.append(-log_p[passage.tokens[place + 1]])
                    tokens.append(passage.tokens[place + 1])
    assert found.tokens.tolist() == tokens
    # llama.cpp adds up batches in another order than single tokens, on each processor in one of its own
    np.testing.assert_allclose(nll, expected, atol=5e-3)
    np.testing.assert_allclose(found.nll, expected, atol=5e-3)
    assert np.abs(found.kld).max() < 1e-3


class Parrot:
    """An engine whose logits are random, the same for the same text."""

    path, vocabulary_size, context, workers = Path("parrot.gguf"), 11, 12, Workers(2, "parrot")

    def passage(self, tokens, wanted, number):
        rng = np.random.default_rng(int(tokens.sum()))
        yield Block(number, len(tokens), 0, (4 * rng.standard_normal((int(wanted.sum()), 11))).astype(np.float32))


@st.composite
def some_passages(draw):
    found = []
    for length in draw(st.lists(st.integers(2, 12), min_size=1, max_size=5)):
        tokens = draw(st.lists(st.integers(0, 10), min_size=length, max_size=length))
        places = draw(st.sets(st.integers(0, length - 2), min_size=1))
        found.append(Passage(np.array(tokens, np.int32), np.array(sorted(places), np.int32)))
    return found


@settings(max_examples=40, deadline=None)
@given(some_passages())
def test_what_is_kept_comes_back(tmp_path_factory, passages):
    path = tmp_path_factory.mktemp("kept") / "x.kld"
    record_answers(Parrot(), passages, path).close()
    assert kind_at(path, PlannerError) == BASELINE
    with open_baseline(path) as kept:
        assert isinstance(kept, Answers)
        assert (kept.context, kept.windows, kept.vocabulary) == (12, len(passages), 11)
        assert kept.predictions == [len(passage.positions) for passage in passages]
        for number, passage in enumerate(passages):
            assert kept.passages[number].tokens.tolist() == passage.tokens.tolist()
            assert kept.targets(number).tolist() == passage.tokens[passage.positions + 1].tolist()
            assert len(kept.rows(number)) == len(passage.positions)
        assert np.abs(diverge(Parrot(), kept).kld).max() < 1e-3
        for prompt in kept.prompts(3, 4):
            assert 0 < len(prompt) <= 8


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 120), st.binary(min_size=1, max_size=8), st.booleans())
def test_damage_is_an_error_or_harmless(tmp_path_factory, place, garbage, cut):
    path = tmp_path_factory.mktemp("damage") / "x.kld"
    passages = [Passage(np.arange(8, dtype=np.int32), np.array([2, 3, 6], np.int32))] * 2
    record_answers(Parrot(), passages, path).close()
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:place] if cut else data[:place] + garbage + data[place + len(garbage) :])
    with contextlib.suppress(BaselineError), open_baseline(path) as kept:
        assert kept.tokens.max() < kept.vocabulary
        assert np.isfinite(base_nll(kept)).all()
        assert all(len(kept.targets(number)) == len(kept.rows(number)) for number in range(kept.windows))


def test_a_model_without_a_template(example):
    with Engine(example.model, context=16, threads=1) as engine, pytest.raises(UsageError, match="no chat template"):
        answer_passages(engine, Path("examples/README.md"), lines(*CHATS), None)
