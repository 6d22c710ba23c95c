"""Sound files of every kind to begin with, most of them as planner itself writes them, and the folder in which commands
run: a tiny model with all that belongs to it."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from planner.cli import run
from planner.gguf.sums import Sums, TensorSums
from planner.llama.collect.checkpoint import Checkpoint, Progress
from planner.llama.evaluate import logprobs
from planner.recipe import load_recipe
from state import Pass, Store
from tests.models import Maker, dense, write_covariances, write_imatrix

__all__ = ["PROGRESS", "Seeds", "make_seeds"]

Seeds = Mapping[str, list[Path]]

PROGRESS = {"the model": "00", "the text": "11"}
_ASSETS = Path(__file__).parents[1] / "state" / "assets"
_CONVERSATIONS: list[dict[str, object]] = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?\nSay it."},
                  {"role": "assistant", "content": "Because — é."}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Two"}, {"type": "text", "text": "parts"}]},
                  {"role": "assistant", "content": None, "tool_calls": [
                      {"type": "function", "function": {"name": "f", "arguments": '{"x": [1, 2.5]}'}}]},
                  {"role": "tool", "content": "7"}],
     "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
]  # fmt: skip
_TEMPLATES = (
    "{{ bos_token }}{%- for message in messages %}{%- if message.role == 'tool' %}<tool>{{ message.content }}</tool>"
    "{%- elif message.tool_calls %}{% for call in message.tool_calls %}{{ call.function.name }}"
    "({{ call.function.arguments | tojson }}){% endfor %}{% generation %}{{ eos_token }}{% endgeneration %}"
    "{%- else %}[{{ message['role'] | upper }}] {{ message.content | trim }}\n{%- endif %}{%- endfor %}",
    "{%- set ns = namespace(n=0) %}{%- macro show(x) %}{{ x.content if x.content is string else '' }}{% endmacro %}"
    "{% for message in messages[::-1] %}{% set ns.n = ns.n + 1 %}{{ '<|' ~ message.role ~ '|>' }}{{ show(message) }}"
    "{% if loop.last and ns.n > 99 %}{{ raise_exception('too many') }}{% endif %}{% if ns.n > 5 %}"
    "{% break %}{% endif %}"
    "{% endfor %}{{ strftime_now('%d %b %Y') }}{{ tools | tojson(indent=2) if tools }}{{ range(3) | join(',') }}",
)


def make_seeds(folder: Path) -> Seeds:
    """Fill the empty `folder`: `place` is what commands find around them. Returns the seeds of each target."""
    place, made = folder / "place", folder / "seeds"
    place.mkdir()
    made.mkdir()
    models = _models(place, made)
    with contextlib.chdir(place):  # what planner writes names its sources as they were given
        matrices = [_planner("imatrix", "--merge", "x.imatrix", "-o", made / "x.dat", "--output-format", "dat")]
        matrices.append(write_imatrix(models[0], made / "plain.imatrix", sums=False))
        matrices.append(write_imatrix(models[1], made / "moe.imatrix", counts={"blk.0.ffn_up_exps.weight": [64, 0, 3]}))
        correlated = [write_covariances(models[0], Path("x.imatrix"), Path("x.cov"))]
        correlated.append(write_covariances(models[1], made / "moe.imatrix", made / "moe.cov"))
        _planner("measure", "model.gguf", "--imatrix", "x.imatrix", "--types", "q8_0,q4_0,iq4_nl", "-t", 1)
        recipes = _recipes(place, made)
        others = _exports(made) | _measured_by_others(place)
        states = _states(made)
    return {
        "model": models, "split": [made / "split-00001-of-00002.gguf"],
        "imatrix": [place / "x.imatrix", *matrices[1:]], "dat": [matrices[0]], "recipe": recipes, "state": states,
        **others, **_tasks(made), "kld": [_logprobs(made / "x.kld"), _answers(made / "y.kld")],
        "covariance": [place / "x.cov", correlated[1]], "progress": [_progress(made / "x.progress")],
        "chat": [_text(place / "chat.jsonl", "\n".join(map(json.dumps, _CONVERSATIONS)) + "\n")],
        "template": [_text(place / f"{number}.jinja", text) for number, text in enumerate(_TEMPLATES)],
    }  # fmt: skip


def _planner(*arguments: object) -> Path:
    """Run a command that has to succeed; the path after its -o, or its last."""
    words = list(map(str, arguments))
    assert run(words) == 0, words
    return Path(words[words.index("-o") + 1] if "-o" in words else words[-1])


def _text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def _models(place: Path, made: Path) -> list[Path]:
    model = dense(width=32, inner=64, vocabulary=32, blocks=1).write(place / "model.gguf")
    write_imatrix(model, place / "x.imatrix")
    moe = Maker("qwen2moe")
    moe.pairs |= {"block_count": 1, "embedding_length": 32, "expert_count": 3, "expert_used_count": 2,
                  "attention.head_count": 2, "attention.head_count_kv": [1]}  # fmt: skip
    moe.matrix("token_embd", 16, 32)
    moe.norm("blk.0.attn_norm", 32)
    for name, shape in {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}.items():
        moe.matrix(f"blk.0.{name}", *shape, dtype=np.float32)
    moe.matrix("blk.0.ffn_gate_inp", 3, 32, dtype=np.float32)
    for name in ("gate", "up", "down"):
        moe.matrix(f"blk.0.ffn_{name}_exps", 3, 32, 32)
    moe.norm("output_norm", 32)
    values = moe.arrays["blk.0.attn_q.weight"]
    moe.arrays["blk.0.attn_q.weight"] = values.view(np.uint16)[:, 1::2].copy().view(np.uint8)
    moe.kinds["blk.0.attn_q.weight"] = gguf.GGMLQuantizationType.BF16
    dense(width=32, inner=32, vocabulary=16, blocks=1).write(place / "split.gguf", split=8)
    (place / "split.gguf").unlink(missing_ok=True)
    (place / "split-00001-of-00002.gguf").rename(made / "split-00001-of-00002.gguf")
    return [model, moe.write(made / "moe.gguf")]


def _states(made: Path) -> list[Path]:
    """As measured; with passes over single tensors and of whole files; of an older version."""
    known = Path(shutil.copy("model.planner", made / "known.planner"))
    _planner("import", "kld_results.csv", "--state", known)
    formats = load_recipe(Path("recipe.json")).formats
    with Store.open(known) as store:
        subject = store.passes()[0].subject
        store.add_passes([
            Pass(key=f"{number:064x}", subject=subject, label="x", formats=formats, errors={}, kld=0.01 * number,
                 stderr=0.001, tokens=100, seconds=1.0)
            for number in (1, 2)
        ])  # fmt: skip
    return [Path("model.planner").resolve(), known, _ASSETS / "v1.planner"]


def _recipes(place: Path, made: Path) -> list[Path]:
    own = place / _planner("solve", "--bpw", 6, "-o", "recipe.json")
    alone = _planner("solve", "model.gguf", "--no-imatrix", "--types", "q8_0,q5_1", "-t", 1,
                     "--state", made / "alone.planner", "--bpw", 8, "-o", made / "alone.json")  # fmt: skip
    mlx = _planner("solve", "model.gguf", "--imatrix", "x.imatrix", "--family", "mlx", "--types", "g32", "-t", 1,
                   "--state", made / "mlx.planner", "--bpw", 8, "-o", made / "mlx.json")  # fmt: skip
    return [own, alone, mlx]


def _exports(made: Path) -> dict[str, list[Path]]:
    def written(dialect: str, *options: str) -> Path:
        name = made / f"{dialect}{'-'.join(options)}.out"
        _planner("export", "recipe.json", "--to", dialect, "-t", 1, *options, "-o", name)
        return name

    mixed = r"^blk\.([0-9]|1[0-5])\.ffn_(up|gate)(_exps)?\.weight$=iq4_ks,token_embd=q8_0,.*=q4_0"
    return {
        "rules": [written(name, *options) for name in ("llama-quantize", "ik_llama", "gguf-tool-suite")
                  for options in ((), ("--compact",))] + [_text(made / "rules.txt", mixed)],
        "modules": [written("mlx-lm"), written("auto-round"), written("auto-round", "--compact")],
        "table": [written("csv"), written("evopress"), written("rco")],
    }  # fmt: skip


def _measured_by_others(place: Path) -> dict[str, list[Path]]:
    names = [choice.name for choice in load_recipe(place / "recipe.json").tensors]
    names = [name for name in names if "norm" not in name]
    rows = [["QTYPE", *names], ["iq4_nl", *(f"{0.001 * number:.4f}" for number in range(len(names)))]]
    rows.append(["q4_0", *("404" if number == 2 else f"{0.002 * number:.4f}" for number in range(len(names)))])
    body = b""
    for name in names:
        raw = name.encode()
        body += struct.pack("<I", len(raw)) + raw + struct.pack("<QiffQ", 2, 0, 4.5, 8.5, 1024)
        body += struct.pack("<ifQd", 2, 4.5, 576, 0.5) + struct.pack("<ifQd", 8, 8.5, 1088, 0.01)
    fork = place / "x.bpw_state"
    fork.write_bytes(struct.pack("<QQQ", 0x4250572D5632, 7, len(names)) + body)
    return {"kld table": [_text(place / "kld_results.csv", "\n".join(map(",".join, rows)) + "\n")], "bpw state": [fork]}


def _tasks(made: Path) -> dict[str, list[Path]]:
    def text(value: str) -> bytes:
        return struct.pack("<I", len(value.encode())) + value.encode()

    task = text("The sky is") + struct.pack("<I", 2) + text("blue.") + text("green, I think.")
    task += struct.pack("<2i", 1, 0) + struct.pack("<I", 0)
    choices = made / "choices.bin"
    choices.write_bytes(struct.pack("<4I", 3, 16, 16 + len(task), 16 + 2 * len(task)) + task * 3)
    lines = [f"Context {number}\n{number}\n one\n two\n three\n four\n" for number in range(3)]
    table = '1,"Ann gave _ a book, and left.",Bob,Eve,1\n2,The _ did not fit.,trophy,case,2\n'
    return {
        "multiple-choice": [choices],
        "hellaswag": [_text(made / "hellaswag.txt", "".join(lines))],
        "winogrande": [_text(made / "winogrande.csv", table)],
    }


def _logprobs(path: Path) -> Path:
    rng, context, vocabulary, windows = np.random.default_rng(0), 8, 12, 3
    head = b"_logits_" + np.array([context, vocabulary, windows], "<i4").tobytes()
    head += rng.integers(0, vocabulary, (windows, context)).astype("<i4").tobytes()
    logits = rng.standard_normal((windows * (context // 2 - 1), vocabulary)).astype(np.float32)
    path.write_bytes(head + logprobs.encode(logits).tobytes())
    return path


def _answers(path: Path) -> Path:
    """Log-probabilities of answers: passages of five and four tokens, with two answers' tokens and one."""
    rng, vocabulary = np.random.default_rng(0), 12
    numbers = [8, vocabulary, 2, 5, 4, 2, 1, *rng.integers(0, vocabulary, 9).tolist(), 1, 3, 2]
    rows = logprobs.encode(rng.standard_normal((3, vocabulary)).astype(np.float32))
    path.write_bytes(b"_answer_" + np.array(numbers, "<i4").tobytes() + rows.tobytes())
    return path


def _progress(path: Path) -> Path:
    sums = Sums(64, {name: TensorSums(np.ones(8, np.float32), np.ones(8, np.float32), np.array([64, 0]))
                     for name in ("blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight")}, ["text.txt"])  # fmt: skip
    tokens = {"blk.0.attn_q.weight": [64], "blk.0.ffn_down_exps.weight": [64, 0]}
    progress = Progress(1, sums, past=1, finished=("blk.0.ffn_up_exps.weight",), tokens=tokens)
    Checkpoint(path, PROGRESS).save(progress, {"text.txt": (1, 2)}, [np.ones((2, 3), np.float32)])
    return path
