"""Conversations through chat templates; llama-cpp-python's own rendering is the oracle."""

from __future__ import annotations

import datetime
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from planner.errors import ModelError, UsageError
from planner.llama.chat import Conversation, Template, read_conversations

NOW = datetime.datetime(2025, 1, 2)
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


def template(source: str) -> Template:
    return Template(source, bos="<s>", eos="</s>", now=NOW)


def conversation(*messages: dict[str, object]) -> Conversation:
    return Conversation("chat.jsonl, line 1", list(messages), None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=5), st.sampled_from([CHATML, STRICT]))
def test_rendered_as_llama_cpp_python_renders(contents, source):
    messages = [
        {"role": "user" if number % 2 == 0 else "assistant", "content": text} for number, text in enumerate(contents)
    ]
    theirs = Jinja2ChatFormatter(source, eos_token="</s>", bos_token="<s>", add_generation_prompt=False)
    assert template(source).render(conversation(*messages)) == theirs(messages=messages).prompt


def test_a_template_that_refuses_names_the_line():
    with pytest.raises(UsageError, match="line 1: the model's chat template refuses it: roles must alternate"):
        template(STRICT).render(conversation({"role": "assistant", "content": "x"}))
    with pytest.raises(UsageError, match="refuses it"):
        template("{{ messages[7].content.upper() }}").render(conversation({"role": "user", "content": "x"}))


@pytest.mark.parametrize(
    "hostile",
    ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.clear() }}", "{{ range(9999999) | list }}"],
)
def test_templates_stay_in_their_sandbox(hostile):
    messages = {"role": "user", "content": "x"}
    with pytest.raises(UsageError, match="refuses it"):
        template(hostile).render(conversation(messages))


def test_a_template_that_is_no_jinja():
    with pytest.raises(ModelError, match="cannot be read"):
        template("{% for %}")


def test_time_and_arguments_of_tools():
    assert template("{{ strftime_now('%d %b %Y') }}").render(conversation()) == "02 Jan 2025"
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}
    objects = "{{ messages[0].tool_calls[0].function.arguments.a }}"
    assert template(objects).render(conversation(call)) == "1"
    text = "{{ 'call ' + messages[0].tool_calls[0].function.arguments }}"
    assert template(text).render(conversation(call)) == 'call {"a": 1}'


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
        ('{"conversations": []}', 'no list "messages"'),
        ('{"messages": []}', 'no list "messages"'),
        ('{"messages": [{"content": "x"}]}', 'without "role"'),
        ('{"messages": [{"role": "user"}]}', 'without "content"'),
        ('{"messages": [{"role": "user", "content": 3}]}', "neither text"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "not text"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": 1}', '"tools" is no list'),
        ("[" * 5000, "no JSON"),
        ("\udcff", "no JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, complaint):
    path = tmp_path / "chat.jsonl"
    good = '{"messages": [{"role": "user", "content": "x"}]}\n'
    path.write_bytes((good + line).encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=f"line 2: .*{complaint}"):
        list(read_conversations(path))


def test_a_model_without_a_template(example, here, run):
    (here / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}', encoding="utf-8")
    done = run("imatrix", example.model, "--chat", "chat.jsonl")
    assert done.status == 2
    assert "has no chat template" in done.err
