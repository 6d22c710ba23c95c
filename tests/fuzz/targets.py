"""What is done with a mutated file: for each kind, the commands that read it, and what each may leave behind."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.cli import run
from planner.errors import PlannerError

if TYPE_CHECKING:
    from planner.llama.branches import BranchedEngine
    from planner.llama.evaluate.taskfiles import Kind, Task

__all__ = ["TARGETS", "Action", "Target"]

_EXAMPLE = Path(__file__).parents[2] / "examples" / "prose-8m-f16.gguf"
_HAS_LLAMA = importlib.util.find_spec("llama_cpp") is not None
_SPLIT = "split-00001-of-00002.gguf"
_NEW_STATE = "new.planner new.planner.lock"  # what was measured before something went wrong is kept
_PATTERNS = ("llama-quantize", "ik_llama", "gguf-tool-suite")


@dataclass(frozen=True)
class Action:
    """`call` returns an exit status or raises; then `writes` (patterns) are there if it is 0, and `changes` may have
    changed or come into being in any case. `prepare` adapts the surroundings to the mutated file first."""

    name: str
    call: Callable[[], object]
    writes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    prepare: Callable[[], None] | None = None


@dataclass(frozen=True)
class Target:
    """A kind of file: what it is called when commands read it, how it is mutated, and the actions, of which each input
    gets one (those named more often, more often). `cost` is about how many times as long as others it takes."""

    file: str
    kind: str
    actions: Sequence[Action]
    needs: str = ""  # a module, without which there is no such target
    cost: int = 1

    @property
    def available(self) -> bool:
        return not self.needs or importlib.util.find_spec(self.needs) is not None

    def action(self, rng: Random) -> Action:
        return rng.choice(self.actions)


def _command(line: str, *, writes: str = "", changes: str = "", prepare: Callable[[], None] | None = None) -> Action:
    words = line.split()
    if not writes and "-o" in words:
        writes = words[words.index("-o") + 1]
    return Action(f"planner {line}", lambda: run(words), tuple(writes.split()), tuple(changes.split()), prepare)


def _digests(pattern: str, digest: Callable[[], str]) -> Callable[[], None]:
    """Let the recipe be for the mutated file: else nothing but its digest would be looked at."""

    def prepare() -> None:
        recipe = Path("recipe.json")
        text = recipe.read_text()
        try:
            recipe.write_text(re.sub(pattern, lambda found: f"{found[1]}{digest()}", text, flags=re.DOTALL))
        except PlannerError:
            return  # nothing of this kind at all

    return prepare


def _model_digest() -> str:
    from planner.gguf import open_model

    with open_model("mutated.gguf") as model:
        return model.digest


def _imatrix_digest(name: str) -> Callable[[], str]:
    def digest() -> str:
        from planner.gguf import read_imatrix

        return read_imatrix(name).digest

    return digest


_MODEL = _digests(r'("model": \{.*?"digest": ")[0-9a-f]*', _model_digest)


def _model() -> list[Action]:
    types = "--types q8_0,q4_0,q5_1,iq4_nl -t 1"
    quantize = "quantize mutated.gguf recipe.json new.gguf -t 1"
    solve = "solve mutated.gguf --state new.planner -o new.json --time-limit 2"
    return [
        _command("inspect mutated.gguf"),
        _command("inspect mutated.gguf --tensors --json"),
        _command("inspect mutated.gguf --no-scan --tensors"),
        _command("inspect x.imatrix --model mutated.gguf --tensors"),
        _command("diff mutated.gguf model.gguf"),
        _command("diff recipe.json mutated.gguf --state model.planner"),
        _command("import mutated.gguf -o new.json"),
        _command("import mutated.gguf --model mutated.gguf -o new.json"),
        _command("import recipe.json --model mutated.gguf -o new.json"),
        _command("imatrix mutated.gguf --merge x.imatrix -o new.imatrix"),
        _command(f"{quantize} --allow-requantize", writes="new.gguf", prepare=_MODEL),
        _command(quantize, writes="new.gguf", prepare=_MODEL),
        _command(f"{quantize} --max-shard-size 9kB", writes="new-0*.gguf", prepare=_MODEL),
        _command(f"measure mutated.gguf --no-imatrix --state new.planner {types}", changes=_NEW_STATE),
        _command(f"{solve} --imatrix x.imatrix --bpw 6 {types}", changes=_NEW_STATE),
        _command(
            f"{solve} --no-imatrix --allow-requantize --budget 20kB --family mlx --types g32 -t 1", changes=_NEW_STATE
        ),
    ]


def _imatrix(name: str) -> list[Action]:
    types = "--types q8_0,q4_0,iq4_nl -t 1"
    prepare = _digests(r'("imatrix": \{.*?"digest": ")[0-9a-f]*', _imatrix_digest(name))
    return [
        _command(f"inspect {name} --tensors"),
        _command(f"inspect {name} --model model.gguf --json"),
        _command(f"imatrix --merge {name} -o new.imatrix"),
        _command(f"imatrix model.gguf --merge {name} -o new.imatrix"),
        _command(f"imatrix --merge {name} --merge x.imatrix -o new.imatrix"),
        _command(f"imatrix --merge x.imatrix --merge {name} --output-format dat -o new.dat"),
        _command(f"quantize model.gguf recipe.json new.gguf --imatrix {name} -t 1", writes="new.gguf", prepare=prepare),
        _command(
            f"solve model.gguf --imatrix {name} --state new.planner -o new.json --bpw 5 --time-limit 2 {types}",
            changes=_NEW_STATE,
        ),
    ]


def _covariance() -> list[Action]:
    merge = "imatrix --merge mutated.cov --covariance new.cov -o new.imatrix"
    writes = "new.cov new.imatrix"

    def read() -> None:
        from planner.gguf import open_model
        from planner.gguf.covariance import Covariances

        with open_model("model.gguf") as model, Covariances.open("mutated.cov") as file:
            file.require(model)
            for tensor in model.tensors:
                for matrix in range(tensor.matrices):
                    file.matrix(tensor, matrix)

    return [
        *[_command(merge, writes=writes), Action("read all covariances", read)] * 3,
        _command(f"{merge} --merge x.cov", writes=writes),
        _command("imatrix model.gguf --merge x.cov --merge mutated.cov --covariance new.cov -o new.imatrix",
                 writes=writes),
        _command("inspect mutated.cov --model model.gguf"),
    ]  # fmt: skip


def _recipe() -> list[Action]:
    dialects = (*_PATTERNS, "mlx-lm", "auto-round", "evopress", "rco", "csv")
    diffs = _command("diff mutated.json recipe.json"), _command("diff recipe.json mutated.json --state model.planner")
    return [
        *[_command(f"export mutated.json --to {dialect} -o exported -t 1", writes="exported*") for dialect in dialects],
        _command("export mutated.json --to llama-quantize --compact", writes="mutated.types.txt"),
        _command("export mutated.json --to mlx-lm --compact", writes="mutated.mlx.json mutated.mlx.py"),
        _command("export mutated.json --to auto-round --compact", writes="mutated.auto-round.json"),
        *[_command("inspect mutated.json --tensors"), _command("inspect mutated.json --json")] * 2,
        *[_command("quantize model.gguf mutated.json new.gguf -t 1", writes="new.gguf")] * 4,
        *[_command("import mutated.json --model model.gguf --imatrix x.imatrix -o new.json")] * 2,
        *[_command("import mutated.json -o new.json")] * 2,
        *diffs * 2,
    ]


def _state() -> list[Action]:
    solve = "solve --state mutated.planner -o new.json --time-limit 2"
    changes = "mutated.planner mutated.planner.lock"
    actions = [
        _command("inspect mutated.planner --tensors"),
        _command("inspect mutated.planner --json"),
        _command(f"{solve} --bpw 6 --explain blk.0.attn_v.weight"),
        _command(f"{solve} --budget 17kB --run-on gpu"),
        _command(f"{solve} --bpw 5 --sensitivity structure --tie fused --active-budget 20kB"),
        _command(f"{solve} --bpw 5 --sensitivity measured --gap 0"),
        _command(f"{solve} --bpw 5 --sensitivity prior --device a:attn=7kB --pin ffn_up=iq4_nl"),
        _command("diff recipe.json model.gguf --state mutated.planner"),
        _command("import model.gguf --state mutated.planner -o new.json"),
        _command("import recipe.json --state mutated.planner -o new.json"),
        _command("import x.bpw_state --state mutated.planner", changes=changes),
        _command("import kld_results.csv --state mutated.planner", changes=changes),
        _command("measure model.gguf --state mutated.planner --types q8_0,q4_0 -t 1", changes=changes),
    ]
    # what SQLite keeps beside a file whose header says that somebody else wrote it so (WAL)
    return [replace(action, changes=(*action.changes, "*.planner-wal", "*.planner-shm")) for action in actions]


def _imports(name: str, *dialects: str) -> list[Action]:
    lines = [f"import {name} -o new.json"] * 2 + [f"import {name} --from {dialect} -o new.json" for dialect in dialects]
    return [_command(f"{line}{nearest}") for line in lines for nearest in ("", " --nearest")]


def _evidence(name: str) -> list[Action]:
    return [_command(f"import {name}", changes="model.planner model.planner.lock")]


@functools.cache
def _engine() -> BranchedEngine:
    """A model that reads what is mutated, once a process."""
    from planner.llama.branches import BranchedEngine

    return BranchedEngine(_EXAMPLE, context=1024, threads=1, branches=100)


def _tasks(kind: Kind) -> list[Action]:
    def read(count: int | None) -> Sequence[Task]:
        from planner.llama.evaluate.taskfiles import READERS, select

        return select(kind, READERS[kind](Path("mutated.tasks")), count)

    def score() -> None:
        from planner.llama.evaluate.tasks import branches_for, run_tasks

        tasks = read(3)
        if branches_for(tasks) <= _engine().branches:
            run_tasks(_engine(), tasks)

    actions = [Action("read all tasks", lambda: read(None)), Action("read two tasks", lambda: read(2))]
    return [*actions, Action("planner evaluate with tasks", score)] if _HAS_LLAMA else actions


def _progress() -> list[Action]:
    def load() -> None:
        from planner.llama.collect.checkpoint import Checkpoint
        from tests.fuzz.seeds import PROGRESS

        found = Checkpoint(Path("mutated.progress"), PROGRESS)
        progress = found.load(force=False)
        if progress is not None and progress.tokens is not None:
            found.load_products(progress, [np.empty((2, 3), np.float32)])

    return [Action("go on with planner imatrix", load)]


class _Chatting:
    """What `chat_tokens` asks of an engine, with any template."""

    path, bos, eos, adds_bos = Path("model.gguf"), 1, 2, True

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def token_text(self, token: int) -> str:
        return f"<{token}>"

    def tokenize(self, text: str, *, parse_special: bool) -> NDArray[np.int32]:
        return _engine().tokenize(text, parse_special=parse_special)


def _chat(conversations: str, templates: Sequence[str]) -> list[Action]:
    def render() -> None:
        from planner.llama.collect.chat import chat_tokens

        for template in templates:
            source = Path(template).read_bytes().decode("utf-8", "replace")
            chat_tokens(_Chatting(source), Path(conversations))  # type: ignore[arg-type]

    return [Action("planner imatrix with conversations", render)]


TARGETS = {
    "model": Target("mutated.gguf", "gguf", _model()),
    "split": Target(_SPLIT, "gguf", [_command(f"inspect {_SPLIT}"), _command(f"import {_SPLIT} -o new.json")]),
    "imatrix": Target("mutated.imatrix", "gguf", _imatrix("mutated.imatrix")),
    "covariance": Target("mutated.cov", "gguf", _covariance()),
    "dat": Target("mutated.dat", "records", _imatrix("mutated.dat")),
    "recipe": Target("mutated.json", "json", _recipe()),
    "state": Target("mutated.planner", "sqlite", _state()),
    "rules": Target("mutated.rules", "text", _imports("mutated.rules", *_PATTERNS)),
    "modules": Target("config.json", "json", _imports("config.json", "mlx-lm", "auto-round")),
    "table": Target("mutated.csv", "text", _imports("mutated.csv", "csv", "evopress", "rco")),
    "kld table": Target("mutated.csv", "text", _evidence("mutated.csv")),
    "bpw state": Target("mutated.bpw_state", "records", _evidence("mutated.bpw_state")),
    "multiple-choice": Target("mutated.tasks", "records", _tasks("multiple-choice")),
    "hellaswag": Target("mutated.tasks", "text", _tasks("hellaswag")),
    "winogrande": Target("mutated.tasks", "text", _tasks("winogrande")),
    "kld": Target("mutated.kld", "records", [_command(f"evaluate mutated.kld{more}") for more in ("", " --json")]),
    "progress": Target("mutated.progress", "progress", _progress()),
    "chat": Target("mutated.jsonl", "jsonl", _chat("mutated.jsonl", ["0.jinja", "1.jinja"]), needs="llama_cpp"),
    "template": Target("mutated.jinja", "text", _chat("chat.jsonl", ["mutated.jinja"]), needs="llama_cpp", cost=20),
}  # fmt: skip
