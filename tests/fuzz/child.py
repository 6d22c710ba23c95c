"""The process that mutated files are tried in: what breaks, breaks here.

    python -m tests.fuzz.child FOLDER SEED TARGET:FIRST:COUNT ...

FOLDER holds `place` and `seeds.json` (see `runner`). For every input two lines go to stdout, as JSON: what is about to
be tried, and how it went. A hang ends the process with a traceback on stderr, as a crash does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fnmatch
import gc
import io
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TextIO

from planner.cli.messages import explain
from planner.errors import PlannerError
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS, Action, Target

__all__ = ["PATIENCE", "Place", "attempt", "main", "make_input"]

PATIENCE = 10.0  # seconds
MEMORY = 1 << 30  # bytes that an input may need beyond what the process has
_LOOKED_AT = 2_000_000  # characters of output


def make_input(name: str, seed: int, number: int, seeds: Sequence[bytes]) -> tuple[bytes, Action]:
    """The mutated file, and what is done with it: the same wherever and whenever it is asked for."""
    rng = Random(f"{seed}/{name}/{number}")
    target = TARGETS[name]
    return mutated(rng, target.kind, seeds), target.action(rng)


@dataclass(frozen=True)
class Outcome:
    """What an action did: its exit status and its words; and what is wrong with that, None if nothing."""

    status: int
    text: str
    fault: str | None


class Place:
    """The folder that commands run in; it is as it was before every input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self._stamps = {name: _stamp(folder / name) for name in self._files}
        self.expected: dict[str, bytes] = {}

    def restore(self) -> None:
        for path in self.folder.iterdir():
            if path.name not in self._files:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, data in self._files.items():
            if _stamp(self.folder / name) != self._stamps[name]:
                (self.folder / name).write_bytes(data)
                self._stamps[name] = _stamp(self.folder / name)
        self.expected = {}

    def expect(self) -> None:
        """What is there now is what an action may find, and has to leave."""
        self.expected = {
            path.name: path.read_bytes()
            for path in self.folder.iterdir()
            if path.name not in self._files or _stamp(path) != self._stamps[path.name]
        }

    def fault(self, action: Action, status: int) -> str | None:
        """What is wrong with the files that an action left."""
        present = {path.name: path for path in self.folder.iterdir()}
        before = {*self._files, *self.expected}
        for name in sorted(before):
            if any(fnmatch.fnmatch(name, pattern) for pattern in action.changes):
                continue
            if name not in present:
                return f"{name} is gone"
            if name in self.expected:
                changed = present[name].read_bytes() != self.expected[name]
            else:
                changed = _stamp(present[name]) != self._stamps[name]
            if changed:
                return f"{name} has changed"
        new = sorted(present.keys() - before)
        promised = {name for name in new for pattern in action.writes if fnmatch.fnmatch(name, pattern)}
        allowed = {name for name in new for pattern in action.changes if fnmatch.fnmatch(name, pattern)}
        left = [name for name in new if name not in allowed and (status != 0 or name not in promised)]
        if left:
            return f"exit status {status}, and {', '.join(left)} is there"
        if status == 0 and action.writes and not promised:
            return "it wrote nothing"
        return _unreadable(present[name] for name in sorted(promised)) if status == 0 else None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None


def _unreadable(paths: Iterator[Path]) -> str | None:
    """Which of the files that were written planner itself cannot read."""
    from planner.gguf import open_model, read_imatrix
    from planner.recipe import load_recipe

    for path in paths:
        try:
            if path.suffix == ".gguf" and "-0000" not in path.name:
                open_model(path).close()
            elif path.name in ("new.imatrix", "new.dat"):
                read_imatrix(path)
            elif path.name == "new.json":
                load_recipe(path)
        except PlannerError as error:
            return f"wrote what cannot be read: {error}"
    return None


def attempt(place: Place, target: Target, data: bytes, action: Action) -> Outcome:
    """Give the action the file, and judge what it does."""
    place.restore()
    (place.folder / target.file).write_bytes(data)
    if action.prepare is not None:
        action.prepare()
    place.expect()
    with _streams() as (out, err):
        status = _status(action)
    out, err = (stream.buffer.getvalue().decode("utf-8", "replace")[:_LOOKED_AT] for stream in (out, err))
    return Outcome(status, err, _wrong_words(status, out, err) or place.fault(action, status))


def _status(action: Action) -> int:
    try:
        found = action.call()
        return found if isinstance(found, int) else 0
    except Exception as error:
        status, text = explain(error)
        sys.stderr.write(f"{text}\n")
        return status


@contextlib.contextmanager
def _streams() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    """Output as Python's in a pipe: strict on stdout, escaping on stderr."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        yield streams[0], streams[1]
        for stream in streams:
            stream.flush()


def _wrong_words(status: int, out: str, err: str) -> str | None:
    for word in ("Internal error", "Traceback", "out of memory", "Exception ignored"):
        if word in err:
            return word
    if status not in (0, 1, 2):
        return f"exit status {status}"
    if status and not err.strip():
        return "no message"
    for text in (out, err):
        if wild := next((one for one in text if not one.isprintable() and one != "\n"), None):
            return f"{wild!r} is printed"
    return None


def _limit_memory() -> None:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return  # only Linux counts like that
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _peak() -> int:
    """Bytes that were ever resident."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: Sequence[str]) -> None:
    folder, seed = Path(arguments[0]).resolve(), int(arguments[1])
    output = sys.stdout  # what commands print goes elsewhere
    seeds = {
        name: [Path(path).read_bytes() for path in paths]
        for name, paths in json.loads((folder / "seeds.json").read_text()).items()
    }
    os.environ["PLANNER_DEBUG"] = "1"  # faults with their traceback
    faulthandler.enable()
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        place = Place(Path(shutil.copytree(folder / "place", Path(work) / "place")))
        os.chdir(place.folder)
        _warm_up(place, {name: seeds[name] for name in (part.split(":")[0] for part in arguments[2:])})
        _limit_memory()
        base = _peak()
        for part in arguments[2:]:
            name, first, count = part.split(":")
            for number in range(int(first), int(first) + int(count)):
                data, action = make_input(name, seed, number, seeds[name])
                _report(output, {"target": name, "number": number, "action": action.name})
                faulthandler.dump_traceback_later(PATIENCE, exit=True)
                begun = time.perf_counter()
                outcome = attempt(place, TARGETS[name], data, action)
                seconds = time.perf_counter() - begun
                faulthandler.cancel_dump_traceback_later()
                line: dict[str, object] = {"status": outcome.status, "seconds": seconds, "memory": _peak() - base}
                if outcome.fault is not None:
                    line |= {"fault": outcome.fault, "text": outcome.text[-6000:]}
                _report(output, line)
        os.chdir(folder)


def _report(output: TextIO, line: dict[str, object]) -> None:
    output.write(f"{json.dumps(line)}\n")
    output.flush()


def _warm_up(place: Place, seeds: dict[str, list[bytes]]) -> None:
    """Load what commands load when they first run; sound files have to be taken, or nothing would be tried."""
    for name, sound in seeds.items():
        taken = {action.name: False for action in TARGETS[name].actions}
        for action in dict.fromkeys(TARGETS[name].actions):
            for data in sound:
                outcome = attempt(place, TARGETS[name], data, action)
                assert outcome.fault is None, f"{name}: {action.name}: {outcome.fault}\n{outcome.text}"
                taken[action.name] |= outcome.status == 0
        assert all(taken.values()), f"no sound {name} is taken by: {[line for line, done in taken.items() if not done]}"
    gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
