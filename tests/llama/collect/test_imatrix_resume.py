"""Stopped runs of `planner imatrix` go on, and end where an undisturbed one does."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

from planner.errors import InferenceError, UsageError
from planner.gguf import open_model
from planner.gguf.sums import Sums, TensorSums
from planner.llama.collect.checkpoint import Checkpoint, Progress
from planner.llama.collect.run import CollectRequest, Gathering

RUN = {"the model": "x", "the text": "y"}


def some() -> Sums:
    rng = np.random.default_rng(0)
    values = rng.random((3, 6)).astype(np.float32)
    return Sums(
        64,
        {"a": TensorSums(values[0], values[1], np.array([3, 2**40])), "b": TensorSums(values[2], None, np.array([0]))},
        ["text.txt"],
    )


@pytest.fixture
def text(example, here):
    whole = (example.model.parent / "calibration.txt").read_text(encoding="utf-8")
    (here / "text.txt").write_text(whole[:30000], encoding="utf-8")
    return here / "text.txt"


def request(model, text, here, **more):
    return CollectRequest(model, (text,), (), (), here / "x.gguf", context=64, chunks=96, threads=2, **more)


def test_what_is_kept_comes_back(tmp_path):
    kept = Checkpoint(tmp_path / "p", RUN)
    assert kept.load(force=False) is None
    kept.save(Progress(7, some()), {"text.txt": (7, 9)})
    found = Checkpoint(tmp_path / "p", RUN).load(force=False)
    assert found.done == 7
    sums = found.sums
    assert (sums.chunk_size, sums.datasets) == (64, ["text.txt"])
    for name, entry in some().tensors.items():
        np.testing.assert_array_equal(sums.tensors[name].sum2, entry.sum2)
        np.testing.assert_array_equal(sums.tensors[name].counts, entry.counts)
        assert (sums.tensors[name].sums is None) == (entry.sums is None)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_another_run_is_told_what_differs(tmp_path):
    Checkpoint(tmp_path / "p", RUN).save(Progress(7, some()), {})
    other = Checkpoint(tmp_path / "p", {**RUN, "the text": "z"})
    with pytest.raises(UsageError, match="differs in the text"):
        other.load(force=False)
    assert other.load(force=True) is None


def _with_header(whole: bytes, old: bytes, new: bytes) -> bytes:
    """The file with something else in its header, whose length agrees."""
    begin = whole.index(b"\n") + 9
    end = begin + int.from_bytes(whole[begin - 8 : begin], "little")
    header = whole[begin:end].replace(old, new)
    assert header != whole[begin:end]
    return whole[: begin - 8] + len(header).to_bytes(8, "little") + header + whole[end:]


def test_damage_is_an_error(tmp_path):
    path = tmp_path / "p"
    Checkpoint(path, RUN).save(Progress(7, some()), {})
    whole = path.read_bytes()
    for damaged in (
        b"",
        b"something else",
        whole[:40],
        whole[:-1],
        whole + b"x",
        whole.replace(b'"b"', b'"b'),
        whole[:27],
        _with_header(whole, b'"done": 7', b'"done": 1e999'),
        _with_header(whole, b'"experts": 2', b'"experts": 36893488147419103232'),
        _with_header(whole, b'"done": 7', b'"done": ' + b"[" * 100_000),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InferenceError, match="Remove it"):
            Checkpoint(path, RUN).load(force=False)


def test_a_run_that_stops_in_the_middle_loses_nothing(example, text, here):
    with open_model(example.model) as model:
        with Gathering(request(model, text, here)) as whole:
            assert [*whole.run(save_every=1e9)] == [32, 64, 96]
            assert not whole.progress.exists()
        with Gathering(request(model, text, here)) as first:
            for done in first.run(save_every=0):
                if done == 64:
                    break
            assert first.saved in (32, 64)
        with Gathering(request(model, text, here)) as second:
            assert second.done == first.saved
            assert [*second.run()][-1] == second.total == 96
            second.forget()
            assert not second.progress.exists()
    assert second.sums.datasets == whole.sums.datasets
    for name, entry in whole.sums.tensors.items():
        np.testing.assert_array_equal(entry.sum2, second.sums.tensors[name].sum2)
        np.testing.assert_array_equal(entry.sums, second.sums.tensors[name].sums)
        np.testing.assert_array_equal(entry.counts, second.sums.tensors[name].counts)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9")
def test_kill_9_and_ctrl_c(example, text, here, start, monkeypatch):
    # saving after every batch is a matter of patience, not of the command line
    (here / "sitecustomize.py").write_text(
        "import planner.llama.collect.run as gather\n"
        "run = gather.Gathering.run\ngather.Gathering.run = lambda self: run(self, 0.0)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(here))
    arguments = ("imatrix", example.model, "--text", text, "-c", 64, "-t", 1, "-o")
    alone = start(*arguments, "alone.gguf", cwd=here)
    _, said = alone.communicate()
    assert alone.returncode == 0, said
    for stop in signal.SIGKILL, signal.SIGINT:
        process = start(*arguments, "killed.gguf", cwd=here)
        progress, seen = here / "killed.gguf.progress", None
        before = progress.read_bytes() if progress.exists() else None
        while process.poll() is None and seen in (None, before):
            time.sleep(0.005)
            seen = progress.read_bytes() if progress.exists() else None
        process.send_signal(stop)
        _, said = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 130, 0), said
        if process.returncode == 130:
            assert "chunks are saved in" in said
        (here / "killed.gguf").unlink(missing_ok=True)  # it was faster than we were
    last = start(*arguments, "killed.gguf", "-f", cwd=here)
    _, said = last.communicate()
    assert last.returncode == 0, said
    assert (here / "killed.gguf").read_bytes() == (here / "alone.gguf").read_bytes()
    assert not (here / "killed.gguf.progress").exists()


def test_text_that_is_too_short_or_no_text(example, here, run):
    (here / "short.txt").write_text("Once upon a time.", encoding="utf-8")
    done = run("imatrix", example.model, "--text", "short.txt")
    assert done.status == 2
    assert "short.txt is too short" in done.err
    (here / "latin.txt").write_bytes(b"na\xefve")
    done = run("imatrix", example.model, "--text", "latin.txt")
    assert done.status == 2
    assert "not text in UTF-8: byte 2" in done.err
    assert "cannot be read" in run("imatrix", example.model, "--text", "none.txt").err
