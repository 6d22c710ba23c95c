"""What all tests share: the example model, what was measured of it, and ways to run the commands."""

from __future__ import annotations

import os

# As the command has it, before numpy is loaded: threads of BLAS get in the way of ours
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from planner.errors import options_spelt
from tests.models import CHEAP

# What tests say of types is true without ik_llama.cpp's: those that want them ask for `ik_library`
IK_LIBRARY = os.environ.pop("PLANNER_GGML_IK", "")

# Machines are of any speed, and busy: no example has a time to meet
settings.register_profile("planner", deadline=None)
settings.load_profile("planner")

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# A shell's background jobs, and so what they start, are born deaf to SIGINT
_PLANNER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from planner.cli import main
main()
"""
_PATIENCE = 600  # seconds for another worker to measure


@dataclass(frozen=True)
class Example:
    """The model that comes with the project, and its importance matrices."""

    model: Path = EXAMPLES / "prose-8m-f16.gguf"
    sums: Path = EXAMPLES / "prose-8m-sums.imatrix.gguf"
    plain: Path = EXAMPLES / "prose-8m.imatrix.gguf"


@dataclass(frozen=True)
class Result:
    """What a command did. `text` is all that it said."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


Run = Callable[..., Result]


def ok(result: Result) -> Result:
    """Return the result of a command that has to succeed."""
    assert result.status == 0, result.text
    return result


@pytest.fixture(scope="session")
def example() -> Example:
    return Example()


@pytest.fixture(autouse=True)
def spelling() -> Iterator[None]:
    """Messages call options as they do on the command line; in `tests/api`, as a program reads them."""
    from planner.cli import spelt

    with options_spelt(spelt):
        yield


@pytest.fixture
def ik_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """ik_llama.cpp's ggml library, loaded: the one that PLANNER_GGML_IK names when the tests are started."""
    if not IK_LIBRARY:
        pytest.skip("PLANNER_GGML_IK names no ggml library of ik_llama.cpp")
    monkeypatch.setenv("PLANNER_GGML_IK", IK_LIBRARY)
    forget_types()
    yield Path(IK_LIBRARY)
    monkeypatch.undo()
    forget_types()


def forget_types() -> None:
    """Let the types of ik_llama.cpp be looked for again; ggml's own stay the same objects."""
    from planner.formats.ggml.formats import _by_id, formats, ik_formats
    from planner.formats.ggml.ik_library import load_ik
    from planner.formats.registry import activation_blocks, all_formats

    for cached in (load_ik, ik_formats, formats, _by_id, all_formats, activation_blocks):
        cached.cache_clear()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `planner ARGUMENTS…` in this process."""
    from planner.cli import run as run_cli

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        status = run_cli([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start `planner ARGUMENTS…` as a process of its own, in `cwd`."""
    paths = os.pathsep.join([*(entry for entry in sys.path if entry), str(ROOT)])

    def call(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", _PLANNER, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return call


def _once(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """A file that all workers of a session share, made by the first that asks."""
    done, failed = folder / name, folder / f"{name}.failed"
    try:
        (folder / f"{name}.lock").mkdir()
    except FileExistsError:
        deadline = time.monotonic() + _PATIENCE
        while not done.exists():
            if failed.exists() or time.monotonic() > deadline:
                pytest.fail(f"another worker could not make {name}")
            time.sleep(0.1)
        return done
    try:
        make(folder / f"making-{name}")
        (folder / f"making-{name}").rename(done)
    except BaseException:
        failed.touch()
        raise
    return done


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all pytest-xdist workers have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _measure(example: Example, types: str) -> Callable[[Path], None]:
    from planner.cli import run as run_cli

    def make(path: Path) -> None:
        arguments = ["measure", str(example.model), "--imatrix", str(example.sums), "--state", str(path), "-t", "2"]
        assert run_cli([*arguments, "--types", types]) == 0

    return make


@pytest.fixture(scope="session")
def _cheap(shared: Path, example: Example) -> Path:
    return _once(shared, "cheap.planner", _measure(example, CHEAP))


@pytest.fixture(scope="session")
def _whole(shared: Path, example: Example) -> Path:
    return _once(shared, "whole.planner", _measure(example, "all"))


@pytest.fixture
def cheap(_cheap: Path, tmp_path: Path) -> Path:
    """A copy of the example's finished state, in formats without lookup tables."""
    return shutil.copy(_cheap, tmp_path / "cheap.planner")


@pytest.fixture
def whole(_whole: Path, tmp_path: Path) -> Path:
    """A copy of the example's finished state, in all formats."""
    return shutil.copy(_whole, tmp_path / "whole.planner")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
