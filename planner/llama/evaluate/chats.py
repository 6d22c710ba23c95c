"""Conversations as a model is asked them: which of their tokens are its answers.

An answer is what an assistant's message adds to all that comes before it, with the token that ends it. A template may
write an earlier answer otherwise once another question follows (without its reasoning, say); such an answer is then
read in a passage of its own, as it was when it was given.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import BaselineError, option
from planner.llama.collect.chat import Conversation, conversations_in, open_renderer, rendered_tokens
from planner.llama.collect.rendering import Renderer
from planner.llama.engine import Engine
from planner.llama.evaluate.answers import Passage

__all__ = ["Span", "answer_passages", "answers_in", "answers_of"]

Span = tuple[int, int]
"""Where an answer begins and ends in a text."""


def answer_passages(engine: Engine, path: Path, text: str, most: int | None) -> tuple[list[Passage], int]:
    """Return the passages of the first `most` conversations in a file's text, cut where the engine's context ends, and
    how many were cut.

    Raises UsageError for what is no conversation, or one that the template refuses, BaselineError where no answer is
    left.
    """
    found, longer = [], 0
    with open_renderer(engine, path) as renderer:
        for conversation in itertools.islice(conversations_in(path, text), most):
            for whole, spans in answers_of(conversation, renderer):
                passage = answers_in(engine, whole, spans)
                longer += len(passage.tokens) > engine.context
                kept = passage.positions[passage.positions < engine.context - 1]
                if kept.size:
                    found.append(Passage(passage.tokens[: engine.context], kept))
    if not found:
        raise BaselineError(
            f"{path} has no answer of an assistant within {engine.context:,} tokens.",
            f"Give conversations with answers, or a longer {option('ctx')}: conversations have four times as much.",
        )
    return found, longer


def answers_of(conversation: Conversation, renderer: Renderer) -> Iterator[tuple[str, list[Span]]]:
    """Yield texts, the last one first, with the spans of the answers in them, in order."""
    where, messages, tools = conversation.where, conversation.messages, conversation.tools
    whole, spans = "", list[Span]()
    for number in range(len(messages) - 1, 0, -1):
        if messages[number]["role"] != "assistant":
            continue
        before = renderer.render(where, messages[:number], tools, asking=True)
        after = renderer.render(where, messages[: number + 1], tools).rstrip()
        if not whole.startswith(after):
            if spans:
                yield whole, spans
            whole, spans = after, []
        pairs = enumerate(zip(before, after, strict=False))
        begin = next((place for place, (one, other) in pairs if one != other), min(len(before), len(after)))
        if begin < len(after):
            spans.insert(0, (begin, len(after)))
    if spans:
        yield whole, spans


def answers_in(engine: Engine, text: str, spans: list[Span]) -> Passage:
    """Tokenize a text with answers in it. A token that is partly an answer's is one of its tokens."""
    tokens = rendered_tokens(engine, text)
    ranges = [(_alike(engine, tokens, text[:begin]), _alike(engine, tokens, text[:end])) for begin, end in spans]
    wanted = [np.arange(max(begin, 1) - 1, end - 1, dtype=np.int32) for begin, end in ranges]
    return Passage(tokens, np.unique(np.concatenate(wanted)).astype(np.int32))


def _alike(engine: Engine, tokens: NDArray[np.int32], beginning: str) -> int:
    """Return how many tokens a text and its beginning have in common."""
    other = rendered_tokens(engine, beginning)
    length = min(len(tokens), len(other))
    differ = np.flatnonzero(tokens[:length] != other[:length])
    return int(differ[0]) if differ.size else length
