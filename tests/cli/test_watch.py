"""Commands that run llama.cpp, and what is left to say when it ends the process."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from planner.cli.child import VARIABLE, needs_watch
from planner.cli.watch import obituary
from planner.lastwords import LastWords, read_last_words
from planner.recipe import load_recipe
from tests.conftest import EXAMPLES
from tests.edited import edited

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")

TEXT = EXAMPLES / "evaluation.txt"
CALIBRATION = EXAMPLES / "calibration.txt"


def child_of(process):
    """The process id of the child that a watching process has started, once it is there."""
    children = psutil.Process(process.pid).children
    wait_until(children, process)
    return children()[0].pid


def wait_until(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("line", "watched"),
    [
        ("evaluate a.gguf --text b", True),
        ("compare a.gguf b.gguf --text c", True),
        ("card a.json", False),
        ("bench a.gguf", True),
        ("imatrix a.gguf --text b", True),
        ("sensitivity a.gguf --text b", True),
        ("solve a.gguf --bpw 4 --polish b", True),
        ("solve a.gguf --bpw 4 --polish=b", True),
        ("solve a.gguf --bpw 4 --check b", True),
        ("solve a.gguf --bpw 4", False),
        ("solve evaluate", False),
        ("evaluate --help", False),
        ("quantize a b c", False),
        ("--version", False),
        ("", False),
    ],
)
def test_what_is_watched(line, watched):
    assert needs_watch(line.split()) == watched


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """The folder in which children leave their last words."""
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def running(notes):
    return any(b'["running", "/' in path.read_bytes() for path in notes.glob("planner-*.words"))


@pytest.fixture
def commands(example, cheap):
    """Name → arguments of a command that goes on for a while, what is to be said of its work, and a file that tells
    that it is in the middle, if there is one."""
    model, text = example.model, ("--text", CALIBRATION, "-t", 1)
    state = ("--state", cheap, "--types", "q4_K,q8_0")
    polish = ("--bpw", 5, "--polish", CALIBRATION, "-t", 1)
    return {
        "evaluate": (("evaluate", model, *text, "-c", 128), "are kept", ".prose-8m-f16.kld.*"),
        "compare": (("compare", model, model, *text, "-c", 128), "shown and kept", ".prose-8m-f16.kld.*"),
        "imatrix": (("imatrix", model, *text, "-c", 64), "goes on from there", "imatrix.gguf.progress"),
        "sensitivity": (("sensitivity", model, *text, *state), "goes on from there", None),
        "bench": (("bench", model, "-r", 50, "-t", 1), "are shown", None),
        "polish": (("solve", model, *polish, *state), "best that was found", "recipe.json"),
    }


@pytest.mark.parametrize("command", ["evaluate", "compare", "imatrix", "sensitivity", "bench", "polish"])
def test_a_crash_is_one_message(command, commands, notes, here, start, example):
    arguments, kept, middle = commands[command]
    before = {path.name for path in here.iterdir()}
    process = start(*arguments, cwd=here)
    child = child_of(process)
    wait_until(lambda: running(notes) and (middle is None or list(here.glob(middle))), process)
    time.sleep(0.3)
    os.kill(child, signal.SIGSEGV)
    out, err = process.communicate(timeout=60)
    said = " ".join(err.split())
    assert process.returncode == 1, err
    assert said.count("Error:") == 1
    assert "segmentation fault" in said
    assert example.model.name in said
    assert kept in said
    assert "Traceback" not in out + err
    assert "Fatal" not in out + err
    left = {path.name for path in here.iterdir()} - before - {"imatrix.gguf.progress", "recipe.json"}
    assert not left, "something half written is left"
    assert not list(notes.iterdir())
    if command == "polish":
        assert load_recipe(here / "recipe.json").tensors


def test_signals_to_the_parent_reach_the_child(here, start, example):
    for number, status in ((signal.SIGSEGV, 1), (signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)):
        process = start("evaluate", example.model, "--text", TEXT, "-t", 1, cwd=here)
        child = child_of(process)
        wait_until(lambda: list(here.glob(".prose*")), process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, err
        assert "Traceback" not in out + err
        assert list(here.iterdir()) == []
        assert gone(child)


def test_ctrl_c_from_the_terminal_and_from_the_parent_is_one(here, start, example):
    process = start("evaluate", example.model, "--text", TEXT, "-t", 1, cwd=here)
    child = child_of(process)
    wait_until(lambda: list(here.glob(".prose*")), process)
    os.kill(child, signal.SIGINT)  # as a terminal does, to the whole group
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Stopped. 0 of 1 files" in " ".join(err.split())
    assert "Traceback" not in err


def test_ctrl_c_at_any_moment_of_the_start(here, start, example):
    for delay in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        process = start("evaluate", example.model, "--text", TEXT, "-t", 1, cwd=here)
        child_of(process)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "Traceback" not in out + err
        assert "Stopped" in err


IN_A_CALLBACK = """
import ctypes, signal, time
from planner.cli.watch import start_watched

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's jobs in the background ignore
start_watched()
times = []

@ctypes.CFUNCTYPE(None)
def called_by_c():
    if not times:
        times.append(1)
        signal.raise_signal(signal.SIGINT)

try:
    called_by_c()
    print("nothing was raised")
    for _ in range(1000):
        called_by_c()
        time.sleep(0.01)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_not_lost_in_a_callback():
    environment = {**os.environ, VARIABLE: json.dumps([None, None])}
    done = subprocess.run([sys.executable, "-c", IN_A_CALLBACK], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("nothing was raised\ninterrupted\n", "")


def test_the_child_does_not_outlive_its_parent(notes, here, start, example):
    process = start("evaluate", example.model, "--text", TEXT, "-t", 1, cwd=here)
    child = child_of(process)
    wait_until(lambda: list(here.glob(".prose*")), process)
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 30
    while not gone(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert gone(child)
    assert list(here.iterdir()) == []
    assert list(notes.iterdir()) == []


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.expert_used_count", 3),  # as it loads
        ("llama.attention.layer_norm_rms_epsilon", -1.0),  # in the middle of a run
    ],
)
def test_an_assertion_of_llama_cpp_is_quoted(key, value, here, start, example):
    broken = edited(example.model, here / "broken.gguf", {key: value})
    base = start("evaluate", example.model, broken, "--text", TEXT, "--chunks", 1, "-t", 1, cwd=here)
    out, err = base.communicate(timeout=120)
    said = " ".join(err.split())
    assert base.returncode == 1, out + err
    assert f"llama.cpp crashed while running {broken}" in said
    assert "GGML_ASSERT(" in said
    assert "vendor" not in said
    assert len(err.splitlines()) < 15
    assert "PPL" in out, "results of what was finished are shown"
    assert (here / "prose-8m-f16.kld").exists(), "what was finished is kept"
    again = start("evaluate", example.model, "--text", TEXT, "--chunks", 1, "-t", 1, cwd=here)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "are kept" not in err, "the original was run twice"


def test_the_terminal_is_as_it_was(here, example):
    """A progress bar hides the cursor: who comes after a crash shows it again."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from planner.cli import main; main()", "evaluate", str(example.model)]
    process = subprocess.Popen(
        [*command, "--text", str(TEXT), "-t", "1"], cwd=here, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    os.close(theirs)
    seen = bytearray()

    def read():
        try:
            while data := os.read(ours, 4096):
                seen.extend(data)
        except OSError:  # the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    child = child_of(process)
    hidden, shown = b"\x1b[?25l", b"\x1b[?25h"
    wait_until(lambda: hidden in seen, process)
    time.sleep(0.5)
    os.kill(child, signal.SIGABRT)
    assert process.wait(60) == 1
    reader.join(30)
    os.close(ours)
    assert seen.rindex(shown) > seen.rindex(hidden)
    assert b"crashed while running" in b" ".join(bytes(seen).split())
    assert seen.rindex(b"Error:") > seen.rindex(shown)


def test_without_room_for_notes_it_runs_all_the_same(here, example, monkeypatch, capfd):
    from planner.cli.watch import watch

    def refuse(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    assert watch(["evaluate", str(example.model), "--text", str(TEXT), "--chunks", "1", "-t", "1"]) == 0
    assert "PPL" in capfd.readouterr().out


def test_last_words():
    def note(kind, what):
        return b"\x1e" + json.dumps([kind, what]).encode() + b"\n"

    data = (
        note("running", "first.gguf") + b"warning of the first\n" + note("temporary", "/tmp/a\nb") + note("running", "")
        + note("running", "m\udcffodel.gguf") + b"\x80one\n\ntwo" + note("temporary", "x") + b"\nthree\nfour\nfive\n"
    )  # fmt: skip
    words = read_last_words(data)
    assert words.running == "m\udcffodel.gguf"
    assert words.temporary == (Path("/tmp/a\nb"), Path("x"))
    assert words.said == ("two", "three", "four", "five")
    assert read_last_words(b"") == LastWords(None, (), ())
    assert read_last_words(note("running", "a") + note("running", "")).running is None


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (-signal.SIGKILL, "memory"),
        (-signal.SIGILL, "compiled for another processor"),
        (-signal.SIGBUS, "shortened"),
        (-signal.SIGABRT, "gave up"),
        (0xC0000005, "segmentation fault"),
        (77, "exit status 77"),
    ],
)
def test_what_is_said_of_a_death(status, words):
    text = obituary(["bench", "a b.gguf"], status, LastWords("a b.gguf", (), ("\x1b[31mboom",)))
    assert words in text
    assert "a b.gguf" in text
    assert "\x1b" not in text
