"""Starts processes that try mutated files, and adds up what they report."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.child import PATIENCE, make_input
from tests.fuzz.seeds import make_seeds
from tests.fuzz.targets import TARGETS

__all__ = ["Failure", "Report", "prepare", "try_inputs"]

_ROOT = Path(__file__).parents[2]
_ALIKE = 3  # failures of one kind that are kept
_FRAME = re.compile(r'File "[^"]*?((?:planner|state|solvers)/[^"]*)", line (\d+)')


@dataclass(frozen=True)
class Failure:
    """One input that did what no input may: `file` is a copy of it, or None where enough of its kind are kept."""

    target: str
    number: int
    action: str
    what: str
    detail: str
    file: Path | None = None

    @property
    def kind(self) -> str:
        """What failures of one cause have in common."""
        frames = _FRAME.findall(self.detail)
        words = re.sub(r"'.*|\d+|new-\S+", "", self.what)
        return f"{words.strip()} {':'.join(frames[-1]) if frames else self.action.split()[1]}"


@dataclass
class Report:
    """What became of the inputs of one target. Seconds and bytes are the greatest."""

    target: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0  # of all
    slowest: float = 0.0
    memory: int = 0  # beyond what the process had when it was warm
    failures: list[Failure] = field(default_factory=list)

    def add(self, line: dict[str, object]) -> None:
        """Count an input by what its process said of it."""
        self.inputs += 1
        seconds = float(str(line["seconds"]))
        self.seconds += seconds
        self.slowest = max(self.slowest, seconds)
        self.memory = max(self.memory, int(str(line["memory"])))
        if "fault" not in line:
            self.accepted += line["status"] == 0
            self.refused += line["status"] != 0


def prepare(folder: Path) -> None:
    """Make sound files in the empty `folder`, for all processes."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        seeds = make_seeds(folder)
    (folder / "seeds.json").write_text(json.dumps({name: list(map(str, paths)) for name, paths in seeds.items()}))


def try_inputs(folder: Path, seed: int, work: Sequence[tuple[str, int, int]], keep: Path) -> dict[str, Report]:
    """Try inputs: of each (target, first, count) those numbers. Copies of what fails go to the folder `keep`."""
    reports = {name: Report(name) for name, _, _ in work}
    kinds: Counter[str] = Counter()
    left = list(work)
    while left:
        died = None
        for failure, line in _lines(folder, seed, left):
            report = reports[failure.target]
            if line is None:
                died = failure
                report.inputs += 1
            else:
                report.add(line)
            if line is None or "fault" in line:
                kinds[failure.kind] += 1
                report.failures.append(_kept(folder, seed, failure, keep if kinds[failure.kind] <= _ALIKE else None))
        if died is None:
            return reports
        place = next(index for index, (name, first, count) in enumerate(left)
                     if name == died.target and first <= died.number < first + count)  # fmt: skip
        name, first, count = left[place]
        left = [(name, died.number + 1, first + count - died.number - 1), *left[place + 1 :]]
    return reports


def _lines(
    folder: Path, seed: int, work: Sequence[tuple[str, int, int]]
) -> Iterator[tuple[Failure, dict[str, object] | None]]:
    """Each input and what is reported of it; the last with None, if the process died of it."""
    command = [sys.executable, "-m", "tests.fuzz.child", str(folder), str(seed)]
    paths = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
    with tempfile.TemporaryFile("w+", errors="replace") as errors, subprocess.Popen(
        [*command, *(f"{name}:{first}:{count}" for name, first, count in work)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        begun = None
        for text in process.stdout:
            line = json.loads(text)
            if begun is None:
                begun = line
                continue
            fault, detail = line.get("fault", ""), line.get("text", "")
            yield Failure(begun["target"], begun["number"], begun["action"], fault, detail), line
            begun = None
        status = process.wait()
        errors.seek(0)
        said = errors.read()[-6000:]
    if begun is not None:
        ended = f"died of signal {-status}" if status < 0 else f"died with {status}"
        what = f"no end in {PATIENCE:.0f} s" if "Timeout (" in said else ended
        yield Failure(begun["target"], begun["number"], begun["action"], what, said), None
    elif status:
        raise RuntimeError(f"the process that tries inputs ended with {status}:\n{said}")


def _kept(folder: Path, seed: int, failure: Failure, keep: Path | None) -> Failure:
    if keep is None:
        return failure
    paths = json.loads((folder / "seeds.json").read_text())[failure.target]
    data, _ = make_input(failure.target, seed, failure.number, [Path(path).read_bytes() for path in paths])
    keep.mkdir(parents=True, exist_ok=True)
    file = keep / f"{failure.target.replace(' ', '-')}-{seed}-{failure.number}-{TARGETS[failure.target].file}"
    file.write_bytes(data)
    return Failure(failure.target, failure.number, failure.action, failure.what, failure.detail, file)
