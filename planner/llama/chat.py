"""Conversations as the model sees them: a JSONL file in OpenAI's form, rendered with the model's own template.

Templates are Jinja as Hugging Face's `apply_chat_template` runs it: a sandbox, whitespace control, `tojson` without
escapes for HTML, `raise_exception`, `strftime_now`, and `{% generation %}` passed through.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from planner.errors import InferenceError, ModelError, UsageError
from planner.llama.engine import Engine

__all__ = ["Conversation", "Template", "chat_tokens", "read_conversations"]

_FORM = 'Each line is {"messages": [{"role": "user", "content": "…"}, …]}, and "tools" where there are any.'


@dataclass(frozen=True, slots=True)
class Conversation:
    """One line of the file: where it stands, its messages and its tools (None: none)."""

    where: str
    messages: list[dict[str, Any]]
    tools: list[Any] | None


class Template:
    """A model's chat template. `now` is what it takes for the time.

    Raises ModelError for one that Jinja does not understand, InferenceError where Jinja is missing.
    """

    def __init__(self, source: str, *, bos: str, eos: str, now: datetime.datetime) -> None:
        try:
            import jinja2
        except ImportError as error:
            raise InferenceError("jinja2 is needed for --chat.", "pip install 'gguf-planner[llama]'") from error
        self._given = {"bos_token": bos, "eos_token": eos, "raise_exception": _refuse, "strftime_now": now.strftime}
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(
                f"The model's chat template cannot be read: {error}.", "Give text rendered already, with --text."
            ) from error

    def render(self, conversation: Conversation) -> str:
        """The conversation as text, without a prompt for an answer. Raises UsageError where the template refuses."""
        failure: Exception | None = None
        # templates want arguments of tool calls as objects, most of them; OpenAI's form has JSON text
        for messages in _with_arguments(conversation.messages), conversation.messages:
            try:
                text = self._template.render(
                    messages=messages, tools=conversation.tools, add_generation_prompt=False, **self._given
                )
                return str(text)
            except Exception as error:  # a template runs code of its own, and may fail in any way
                failure = failure or error
            if messages == conversation.messages:
                break
        raise UsageError(
            f"{conversation.where}: the model's chat template refuses it: {failure}.",
            "Templates may want user and assistant in turn, and know no other roles.",
        ) from failure


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a file; empty lines are passed over. Raises UsageError, naming the line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield _conversation(f"{path}, line {number}", line)


def chat_tokens(engine: Engine, path: Path) -> NDArray[np.int32]:
    """All conversations of a file as the model reads them, one after the other, i32[n]. Raises UsageError."""
    source = engine.chat_template
    if source is None:
        raise UsageError(
            f"{engine.path} has no chat template.", "Give text with --text; rendered already, with --parse-special."
        )
    bos = engine.token_text(engine.bos) if engine.bos >= 0 else ""
    eos = engine.token_text(engine.eos) if engine.eos >= 0 else ""
    conversations = list(read_conversations(path))
    # templates that write today's date: the file's own, so that it gives the same tomorrow
    now = datetime.datetime.fromtimestamp(path.stat().st_mtime)
    template = Template(source, bos=bos, eos=eos, now=now)
    parts = [np.empty(0, np.int32)]
    for conversation in conversations:
        text = template.render(conversation)
        if engine.adds_bos and bos:
            text = text.removeprefix(bos)  # the tokenizer adds it
        parts.append(engine.tokenize(text, parse_special=True))
    return np.concatenate(parts)


def _conversation(where: str, line: bytes) -> Conversation:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: no JSON: {error}.", _FORM) from error
    messages = found.get("messages") if isinstance(found, dict) else None
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


def _with_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose tool calls have their arguments as objects instead of JSON text."""

    def parsed(call: Any) -> Any:
        try:
            return {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
        except (ValueError, TypeError, KeyError, RecursionError):
            return call

    return [
        {**message, "tool_calls": [parsed(call) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list)
        else message
        for message in messages
    ]


def _environment() -> Any:
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):  # type: ignore[misc, unused-ignore]
        """Marks what an assistant wrote, which matters only in training."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            parser.stream.skip(1)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
