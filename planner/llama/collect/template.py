"""Chat templates: untrusted Jinja, run as Hugging Face's `apply_chat_template` runs it.

A sandbox, whitespace control, `tojson` without escapes for HTML, `raise_exception`, `strftime_now`, and
`{% generation %}` passed through. What a template may take is limited twice: here, where an operation says beforehand
how much it makes, on every system; and in the process that `planner.llama.collect.rendering` starts for it, where the
system counts memory and a clock runs. This module is all that is loaded there.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import re
import signal
from typing import Any, BinaryIO, NoReturn

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.sandbox

__all__ = ["Template", "TooMuch", "serve"]

_MOST = 1 << 24  # characters or items that one operation may make
_LONGEST = 1 << 14  # bits of a number: about what Python writes out
_WIDEST = 1 << 20  # that a text is filled up to
# Where a format string has a width of seven digits, or one that is an argument
_PERCENT_WIDTH = re.compile(r"%[^%a-zA-Z]*(?:\*|[0-9]{7})")
_BRACE_WIDTH = re.compile(r"\{[^{}]*(?:[0-9]{7}|\{)")
_NUMBERED = ("center", "indent", "batch", "slice", "wordwrap", "truncate")  # filters with a number of what to make
_WIDE = "a wide format"
_MEMORY = 512 << 20  # bytes of address space, of which Python and Jinja take a tenth
_ORPHANED = 60  # seconds: if nobody has ended this process by then, nobody will


class TooMuch(Exception):
    """Raised when a template exceeds its limits."""


class Template:
    """A chat template. `now` is the time that it sees.

    Raises whatever Jinja raises for a source that it does not understand.
    """

    def __init__(self, source: str, *, bos: str, eos: str, now: datetime.datetime) -> None:
        self._given = {"bos_token": bos, "eos_token": eos, "raise_exception": _refuse, "strftime_now": now.strftime}
        self._template = _environment().from_string(source)

    def render(self, messages: list[dict[str, Any]], tools: list[Any] | None, *, asking: bool = False) -> str:
        """Render a conversation; if `asking`, with what precedes an answer. Raises whatever the template raises."""
        failure: Exception | None = None
        # templates want arguments of tool calls as objects, most of them; OpenAI's form has JSON text
        for some in _with_arguments(messages), messages:
            try:
                text = self._template.render(messages=some, tools=tools, add_generation_prompt=asking, **self._given)
                return str(text).encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair is no text
            except (TooMuch, MemoryError, RecursionError):
                raise
            except Exception as error:  # a template runs code of its own, and may fail in any way
                failure = failure or error
            if some == messages:
                break
        assert failure is not None
        raise failure


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Render for another process: a line of JSON is a request or an answer. The first request is {source, bos, eos,
    now}, the others are {messages, tools, asking, most}; answers are {text} or {failure, much}."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _limit_memory()
    answers.write(b"{}\n")  # all is loaded
    answers.flush()
    template: Template | None = None
    for line in requests:
        if hasattr(signal, "alarm"):
            signal.alarm(_ORPHANED)
        try:
            request = json.loads(line)
            if template is None:
                now = datetime.datetime.fromisoformat(request["now"])
                template = Template(request["source"], bos=request["bos"], eos=request["eos"], now=now)
                answer = {"text": ""}
            else:
                answer = {"text": template.render(request["messages"], request["tools"], asking=request["asking"])}
                if len(answer["text"]) > request["most"]:
                    raise TooMuch(f"{len(answer['text']):,} characters of text")
            data = json.dumps(answer).encode("ascii")
        except Exception as error:
            data = _failure(error)
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        answers.write(data + b"\n")
        answers.flush()


def _failure(error: Exception) -> bytes:
    text = (str(error)[:500] or type(error).__name__).rstrip(".")
    if isinstance(error, jinja2.TemplateSyntaxError):
        text += f" (line {error.lineno})"
    if isinstance(error, MemoryError):
        text = f"more than {_MEMORY >> 20} MiB of memory"
    if isinstance(error, RecursionError):
        text = "to go deeper into itself than Python can"
    much = isinstance(error, TooMuch | MemoryError | RecursionError)
    return json.dumps({"failure": text, "much": much}).encode("ascii")


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _with_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with arguments of tool calls as objects instead of JSON text."""

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


# The sandbox


class _Generation(jinja2.ext.Extension):  # type: ignore[misc, unused-ignore]
    """The tag that marks an assistant's words, which matters only in training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        parser.stream.skip(1)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Generator(jinja2.compiler.CodeGenerator):  # type: ignore[misc, unused-ignore]
    def visit_Concat(self, node: Any, frame: Any) -> None:  # noqa: N802
        """Compile `a ~ b` to a concatenation that checks the length first."""
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):  # type: ignore[misc, unused-ignore]
    """Checks operations whose results can be huge before they run; they are not folded when a template is compiled."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            _check(_length(left) + _length(right))
        elif operator == "*":
            _check(_length(left) * abs(right) if isinstance(right, int) else 0)
            _check(_length(right) * abs(left) if isinstance(left, int) else 0)
            _check_bits(_bits(left) + _bits(right))
        elif operator == "**":
            _check_bits(_bits(left) * abs(right) if isinstance(right, int) else 0)
        elif isinstance(left, str) and _PERCENT_WIDTH.search(left):
            raise TooMuch(_WIDE)
        return super().call_binop(context, operator, left, right)

    def concatenated(self, parts: tuple[Any, ...]) -> str:
        """Concatenate the parts. Raises TooMuch."""
        texts = [str(part) for part in parts]
        _check(sum(map(len, texts)))
        return "".join(texts)

    def wrap_str_format(self, value: Any) -> Any:
        """Check the widths in a text whose `format` is asked for. Raises TooMuch."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _BRACE_WIDTH.search(str(value.__self__).replace("{{", "").replace("}}", "")):
            raise TooMuch(_WIDE)
        return wrapped

    def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(getattr(function, "__self__", None), str):
            _check_widths((*arguments, *named.values()))
        return super().call(context, function, *arguments, **named)


def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    for name in _NUMBERED:
        environment.filters[name] = _narrow(environment.filters[name])
    environment.filters["format"] = _format
    environment.globals["range"] = _range
    del environment.globals["lipsum"]
    return environment


def _narrow(filter_: Any) -> Any:
    """Return a filter that checks its numbers first; Jinja's other arguments stay as they are."""

    @functools.wraps(filter_)
    def checked(*arguments: Any, **named: Any) -> Any:
        _check_widths((*arguments, *named.values()))
        return filter_(*arguments, **named)

    return checked


def _range(*arguments: int) -> range:
    try:
        found: range = jinja2.sandbox.safe_range(*arguments)
    except OverflowError as error:
        raise TooMuch(f"a range of more than {jinja2.sandbox.MAX_RANGE:,}") from error
    return found


def _format(text: str, *arguments: Any, **named: Any) -> str:
    if _PERCENT_WIDTH.search(str(text)):
        raise TooMuch(_WIDE)
    return str(text) % (named or arguments)


def _check(size: int) -> None:
    if size > _MOST:
        raise TooMuch(f"{size:,} characters or items at once" if size < 1 << 60 else "more than can be counted")


def _check_bits(bits: int) -> None:
    if bits > _LONGEST:
        raise TooMuch("a number too long to write")


def _check_widths(values: Any) -> None:
    widest = max((abs(value) for value in values if isinstance(value, int)), default=0)
    if widest > _WIDEST:
        raise TooMuch(f"a width of {widest:,}" if widest < 1 << 60 else "a width beyond counting")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
