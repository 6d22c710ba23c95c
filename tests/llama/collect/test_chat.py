"""Conversations through chat templates; llama-cpp-python's own rendering is the oracle."""

from __future__ import annotations

import datetime
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from planner.errors import ModelError, UsageError
from planner.llama.collect.chat import chat_tokens, read_conversations
from planner.llama.collect.rendering import Renderer
from planner.llama.collect.template import Template, TooMuch
from planner.llama.engine import Engine
from tests.edited import edited

NOW = datetime.datetime(2025, 1, 2)
USER = {"role": "user", "content": "x"}
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRICT = """{{ bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {%- if message.role == 'assistant' %}
{% generation %}
{{ message.content | trim }}{{ eos_token }}
{% endgeneration %}
    {%- else %}
[INST] {{ message.content | tojson }} [/INST]
    {%- endif %}
    {%- if message.content == 'stop' %}{% break %}{% endif %}
{%- endfor %}"""


def render(source: str, *messages: dict[str, object]) -> str:
    """In this process."""
    return Template(source, bos="<s>", eos="</s>", now=NOW).render(list(messages), None)


def renderer(source: str) -> Renderer:
    return Renderer("m.gguf", source, bos="<s>", eos="</s>", now=NOW.isoformat())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=5), st.sampled_from([CHATML, STRICT]))
def test_rendered_as_llama_cpp_python_renders(contents, source):
    messages = [
        {"role": "user" if number % 2 == 0 else "assistant", "content": text} for number, text in enumerate(contents)
    ]
    theirs = Jinja2ChatFormatter(source, eos_token="</s>", bos_token="<s>", add_generation_prompt=False)
    assert render(source, *messages) == theirs(messages=messages).prompt


def test_a_template_that_refuses_names_the_line():
    with renderer(STRICT) as strict:
        with pytest.raises(UsageError, match=r"chat.jsonl, line 7: .*refuses it: roles must alternate\.") as refused:
            strict.render("chat.jsonl, line 7", [{"role": "assistant", "content": "x"}], None)
        assert "user and assistant in turn" in refused.value.remedy
        assert "[INST]" in strict.render("chat.jsonl, line 8", [USER], None)  # one that is refused harms no other
    with renderer("{{ messages[7].content.upper() }}") as wrong, pytest.raises(UsageError, match="refuses it"):
        wrong.render("line 1", [USER], None)


@pytest.mark.parametrize("hostile", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.clear() }}"])
def test_templates_stay_in_their_sandbox(hostile):
    with renderer(hostile) as hostile_one, pytest.raises(UsageError, match="refuses it"):
        hostile_one.render("line 1", [USER], None)


@pytest.mark.parametrize(
    "hungry",
    [
        "{{ 'x' * 3000000000 }}",
        "{{ ([0] * 99999999) | length }}",
        "{% set x = 'x' * 9999999 %}{{ x + x }}",
        "{% set x = 'x' * 9999999 %}{{ x ~ x }}",
        "{{ '%099999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '%099999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ 'x' | center(10**9) }}",
        "{{ 'x\n' | indent(1000000000) }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ '\t'.expandtabs(tabsize=1000000000) }}",
        "{{ [] | batch(1000000000, 0) | list }}",
        "{{ 10 ** 10000000000 }}",
        "{% set n = 10 ** 2000 %}{{ n * n * n }}",
        "{{ range(9999999) | list }}",
    ],
)
def test_what_says_how_much_it_makes_is_stopped_before(hungry):
    """On systems that limit no memory, too: so no process is started here."""
    with pytest.raises(TooMuch):
        render(hungry, USER)


@pytest.mark.parametrize("modest", ["{{ '**%s** 100%% of 12345678' % 'x' }}", "{{ '{{\"a\": {}}} *'.format(1) }}"])
def test_what_looks_like_it_is_not(modest):
    assert render(modest, USER) in ("**x** 100% of 12345678", '{"a": 1} *')


@pytest.mark.parametrize(
    ("endless", "words"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not come to an end"),
        ("{% set s = namespace(x='x') %}{% for i in range(60) %}{% set s.x = [s.x, s.x] %}{% endfor %}{{ s.x }}", ""),
        ("{% set s = namespace(x='xy') %}{% for i in range(40) %}{% set s.x = s.x.replace('', s.x) %}{% endfor %}", ""),
        ("{% set s = namespace(x='xy') %}{% for i in range(40) %}{% set s.x = s.x ~ s.x %}{% endfor %}", "at once"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "deeper into itself"),
        ("{{ 'x' * 9999999 }}", "9,999,999 characters of text"),
        pytest.param(
            "{% set s = namespace(x=[]) %}{% for i in range(99) %}{% set s.x = s.x + ['y' * 9999999 ~ i] %}"
            "{% endfor %}",
            "MiB of memory",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="memory is not limited"),
        ),
    ],
)
def test_templates_without_an_end_are_ended(endless, words, monkeypatch):
    # where all cores are busy, memory is not used up within two seconds
    monkeypatch.setattr("planner.llama.collect.rendering._SAVED", 60.0 if "memory" in words else 2.0)
    said = rf"m\.gguf: its chat template .*{words}.*, for chat\.jsonl, line 3"
    with renderer(endless) as without_end, pytest.raises(ModelError, match=said):
        without_end.render("chat.jsonl, line 3", [USER], None)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("{% for %}", r"line 1"),
        ("{% for m in messages %}{{ m.content }", r"unexpected '}' \(line 1\)"),
        ("{{ x | nothing }}", "No filter named 'nothing'"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "nested blocks"),
    ],
)
def test_a_template_that_is_no_jinja(broken, words):
    with pytest.raises(ModelError, match=rf"m\.gguf: its chat template cannot be read: .*{words}"):
        renderer(broken)


def test_a_template_too_deep_to_read():
    with pytest.raises(ModelError, match="its chat template"):
        renderer("{{ " + "(" * 50_000 + ")" * 50_000 + " }}")


def test_many_conversations_take_one_process(monkeypatch):
    """Time that is not used is kept, up to a limit; what is rendered takes little."""
    monkeypatch.setattr("planner.llama.collect.rendering._SAVED", 2.0)
    with renderer(CHATML) as one:
        process = one._process.pid
        texts = {
            one.render(f"line {number}", [{"role": "user", "content": "hi " * 500}], None) for number in range(500)
        }
        assert one._process.pid == process
        assert one._process.poll() is None
    assert len(texts) == 1
    assert one._process.poll() is not None


def test_time_and_arguments_of_tools():
    assert render("{{ strftime_now('%d %b %Y') }}") == "02 Jan 2025"
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}
    objects = "{{ messages[0].tool_calls[0].function.arguments.a }}"
    assert render(objects, call) == "1"
    text = "{{ 'call ' + messages[0].tool_calls[0].function.arguments }}"
    assert render(text, call) == 'call {"a": 1}'


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "chat.jsonl"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    lines = [
        {"messages": [{"role": "user", "content": parts}], "id": 3},
        {"messages": [{"role": "user", "content": "\ud800"}]},
    ]
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    first, second = read_conversations(path)
    assert first.messages == [{"role": "user", "content": "ab"}]
    assert second.messages[0]["content"] == "?"
    assert second.where.endswith("line 3")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "no JSON"),
        ("[]", 'no list "messages"'),
        ('{"conversations": [{"from": "human", "value": "x"}]}', "ShareGPT"),
        ('{"messages": []}', 'no list "messages"'),
        ('{"messages": [{"content": "x"}]}', 'without "role"'),
        ('{"messages": [{"role": "user"}]}', 'without "content"'),
        ('{"messages": [{"role": "user", "content": 3}]}', "neither text"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "not text"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": 1}', '"tools" is no list'),
        ("[" * 5000, "no JSON"),
        ("\udcff", "not text in UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, complaint):
    path = tmp_path / "chat.jsonl"
    good = '{"messages": [{"role": "user", "content": "x"}]}\n'
    path.write_bytes((good + line).encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=complaint) as caught:
        list(read_conversations(path))
    assert "line 2" in caught.value.problem


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_files_of_windows(tmp_path, encoding):
    path = tmp_path / "chat.jsonl"
    lines = ['{"messages": [{"role": "user", "content": "ä…\\r\\n"}]}'] * 2
    path.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode(encoding))
    assert [entry.messages[0]["content"] for entry in read_conversations(path)] == ["ä…\r\n"] * 2


def test_a_list_and_what_is_no_text(tmp_path):
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([{"messages": [USER]}], indent=1))
    with pytest.raises(UsageError, match=r"chat.json, line 1: a list in JSON") as refused:
        list(read_conversations(path))
    assert "jq -c '.[]'" in refused.value.remedy
    path.write_bytes(b'{"messages": "\xff"}')
    with pytest.raises(UsageError, match="not text in UTF-8"):
        list(read_conversations(path))


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("begin", ["{{ bos_token }}", "\n {{ bos_token }}", ""])
def test_one_beginning_a_conversation(example, here, adds, begin):
    """Whoever writes it: the template, the tokenizer, or both."""
    source = begin + "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    change = {
        "tokenizer.ggml.add_bos_token": adds, "tokenizer.chat_template": source, "tokenizer.ggml.bos_token_id": 0,
    }  # fmt: skip
    model = edited(example.model, here / "bos.gguf", change)
    lines = [json.dumps({"messages": [USER, {"role": "assistant", "content": "yes"}]}) for _ in range(3)]
    (here / "chat.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    with Engine(model, context=16, threads=1) as engine:
        tokens = chat_tokens(engine, here / "chat.jsonl")
        first = chat_tokens(engine, here / "chat.jsonl")[: len(tokens) // 3]
    assert (tokens == 0).sum() == (3 if adds or begin else 0)
    if adds:
        assert first[0] == 0
        plain = edited(example.model, here / "plain.gguf", {**change, "tokenizer.chat_template": source[len(begin) :]})
        with Engine(plain, context=16, threads=1) as engine:
            assert chat_tokens(engine, here / "chat.jsonl").tolist() == tokens.tolist()


def test_a_model_without_a_template(example, here, run):
    (here / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}', encoding="utf-8")
    done = run("imatrix", example.model, "--chat", "chat.jsonl")
    assert done.status == 2
    assert "has no chat template" in done.err
