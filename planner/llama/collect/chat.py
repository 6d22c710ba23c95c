"""Render conversations for a model: a JSONL file in OpenAI's form, with the model's own template."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import UsageError, option
from planner.inputs.reading import read_text
from planner.llama.collect.rendering import Renderer
from planner.llama.engine import Engine
from planner.text import command

__all__ = [
    "Conversation",
    "chat_tokens",
    "conversations_in",
    "open_renderer",
    "read_conversations",
    "rendered_tokens",
    "time_of",
]

_FORM = 'Each line is {"messages": [{"role": "user", "content": "…"}, …]}, and "tools" where there are any.'

_SHAREGPT = (
    'jq -c \'{messages: [.conversations[] | {role: ({human: "user", gpt: "assistant"}[.from] // .from), '
    "content: .value}]}' makes it."
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One line of the file: where it stands, its messages and its tools (None: none)."""

    where: str
    messages: list[dict[str, Any]]
    tools: list[Any] | None


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Yield the conversations of a file; empty lines are skipped. Raises UsageError, naming the line."""
    yield from conversations_in(path, read_text(path, UsageError))


def conversations_in(path: Path, text: str) -> Iterator[Conversation]:
    """Yield the conversations of the text of a file, as `read_conversations` does."""
    if text.lstrip().startswith("["):
        raise UsageError(
            f"{path}, line 1: a list in JSON, not a conversation a line.",
            f"Make lines of it: `{command('jq', '-c', '.[]', path)}`",
        )
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _conversation(f"{path}, line {number}", line)


def chat_tokens(engine: Engine, path: Path) -> NDArray[np.int32]:
    """Tokenize all conversations of a file, one after the other, i32[n]. Raises UsageError, and
    ModelError for a template that is broken, or takes too long or too much."""
    conversations = list(read_conversations(path))
    parts = [np.empty(0, np.int32)]
    with open_renderer(engine, path) as renderer:
        for each in conversations:
            text = renderer.render(each.where, each.messages, each.tools)
            parts.append(rendered_tokens(engine, text))
    return np.concatenate(parts)


def open_renderer(engine: Engine, path: Path) -> Renderer:
    """Open a model's chat template for the conversations of a file. Raises UsageError where the model has none,
    ModelError for one that is broken, InferenceError without Jinja."""
    source = engine.chat_template
    if source is None:
        raise UsageError(
            f"{engine.path} has no chat template.",
            f"Give text with {option('text')}, instead of conversations; planner imatrix reads text that is rendered "
            f"already with {option('parse_special')}.",
        )
    bos, eos = _spelling(engine, engine.bos), _spelling(engine, engine.eos)
    return Renderer(str(engine.path), source, bos=bos, eos=eos, now=time_of(path))


def time_of(path: Path) -> str:
    """Return what templates that write today's date are given, in ISO 8601: the file's own time, so that it gives the
    same tomorrow."""
    return datetime.datetime.fromtimestamp(path.stat().st_mtime).isoformat()


def rendered_tokens(engine: Engine, text: str) -> NDArray[np.int32]:
    """Tokenize what a template made, or the beginning of it, i32[n]."""
    bos = _spelling(engine, engine.bos)
    # the tokenizer adds it; white space before it is a slip of the template's
    if engine.adds_bos and bos and text.lstrip().startswith(bos):
        text = text.lstrip().removeprefix(bos)
    return engine.tokenize(text, parse_special=True)


def _spelling(engine: Engine, token: int) -> str:
    return engine.token_text(token) if token >= 0 else ""


def _conversation(where: str, line: str) -> Conversation:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: no JSON: {error}.", _FORM) from error
    messages = found.get("messages") if isinstance(found, dict) else None
    if isinstance(found, dict) and messages is None and isinstance(found.get("conversations"), list):
        raise UsageError(
            f'{where}: ShareGPT\'s form ("conversations" of "from" and "value"), not OpenAI\'s.', f"{_FORM} {_SHAREGPT}"
        )
    if not isinstance(messages, list) or not messages:
        raise UsageError(f'{where}: there is no list "messages".', _FORM)
    tools = found.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise UsageError(f'{where}: "tools" is no list.', _FORM)
    return Conversation(where, [_message(where, message) for message in messages], tools)


def _message(where: str, message: object) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UsageError(f'{where}: a message without "role".', _FORM)
    content = message.get("content")
    if isinstance(content, list):
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if not all(isinstance(text, str) for text in texts):
            raise UsageError(f"{where}: content that is not text.", "Leave out images and audio.")
        content = "".join(text for text in texts if text is not None)
    elif content is not None and not isinstance(content, str):
        raise UsageError(f'{where}: "content" is neither text nor a list of parts.', _FORM)
    if content is None and "tool_calls" not in message:
        raise UsageError(f'{where}: a message without "content".', _FORM)
    # half of a surrogate pair is no text
    whole = None if content is None else content.encode("utf-8", "replace").decode("utf-8")
    return {**message, "content": whole}
