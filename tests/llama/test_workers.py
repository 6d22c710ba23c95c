"""Threads that are waited for, whatever happens."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from planner.errors import ModelError
from planner.llama.engine import Engine
from planner.llama.workers import Workers


def test_results_are_in_order():
    with Workers(3, "test") as workers:
        assert workers.map(lambda number: number * number, range(50)) == [number * number for number in range(50)]
        assert workers.map(str, []) == []
        assert workers.submit(lambda: "done").result() == "done"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nobody_is_at_work_after_an_error(error):
    at_work, began, started = set(), threading.Event(), []

    def work(number):
        if number == 0:
            began.wait()  # the other thread is in the middle of something
            raise error
        at_work.add(number)
        started.append(number)
        began.set()
        time.sleep(0.2)
        at_work.discard(number)

    with Workers(2, "test") as workers:
        with pytest.raises(error):
            workers.map(work, range(100))
        assert not at_work
        assert len(started) < 99


def test_a_start_that_is_interrupted_leaves_no_thread(monkeypatch):
    before, submit = threading.active_count(), ThreadPoolExecutor.submit

    def interrupted(pool, *arguments):
        if len(pool._threads) == 2:
            raise KeyboardInterrupt
        return submit(pool, *arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Workers(3, "test")
    _wait_for(lambda: threading.active_count() == before)


def test_a_model_that_does_not_load_leaves_no_thread(tmp_path):
    before = threading.active_count()
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError):
        Engine(tmp_path / "broken.gguf", context=16, threads=2)
    assert threading.active_count() == before


def _wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()
