"""kill -9 and Ctrl-C while measuring: what was done stays, and going on ends where an undisturbed run does."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from planner.formats.ggml import format_named
from planner.recipe import load_recipe
from state import StateError, Store
from tests.models import dense, write_imatrix

TYPES = "q4_1,q5_1,q4_K,q5_K,iq4_xs,iq4_nl"


def measurements(path):
    """All that was measured; how long the kernels took is nobody's business."""
    with Store.open(path, read_only=True) as store:
        return {key: entry._replace(kernel_seconds=0.0) for key, entry in store.measurements().items()}


def energies(path):
    with Store.open(path, read_only=True) as store:
        return store.energies()


@pytest.fixture
def model(here):
    return dense(width=256, inner=1024, vocabulary=1024, blocks=4).write(here / "model.gguf")


@pytest.fixture
def matrix(model, here):
    return write_imatrix(model, here / "x.imatrix")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9")
def test_kill_9_at_random_moments_and_going_on(model, matrix, here, run, start):
    arguments = ("measure", model, "--imatrix", matrix, "--types", TYPES, "-t", 2, "--state")
    began = time.monotonic()
    alone = start(*arguments, "alone.planner", cwd=here)
    alone.communicate()
    duration = time.monotonic() - began
    assert alone.returncode == 0
    reference = measurements("alone.planner")
    assert len(reference) == (4 * 7 + 2) * len(TYPES.split(","))

    counts, kills = [], 0
    for _ in range(60):
        process = start(*arguments, "killed.planner", cwd=here)
        # moments before there is anything to lose are not worth much: starting Python takes a good part of the time
        time.sleep(duration * random.uniform(0.3, 1.0))
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:  # it was done: once more from the beginning
            assert measurements("killed.planner") == reference
            Path("killed.planner").unlink()
            counts = []
            continue
        kills += 1
        try:
            found = measurements("killed.planner")
        except StateError:
            assert not any(counts)  # killed before there was a whole file
            continue
        assert found.items() <= reference.items()
        counts.append(len(found))
        assert counts == sorted(counts), "something that was measured is gone"
        if kills >= 12 and counts[-1] < len(reference):
            break
    assert kills >= 12

    last = start(*arguments, "killed.planner", cwd=here)
    out, err = last.communicate()
    assert last.returncode == 0, err
    assert f"{len(reference) - counts[-1]} of them new" in out, "something was measured twice"
    assert measurements("killed.planner") == reference
    assert energies("killed.planner") == energies("alone.planner")
    for state in ("killed", "alone"):
        assert run("solve", "--state", f"{state}.planner", "--bpw", 4.8, "-o", f"{state}.json").status == 0
    assert (here / "killed.json").read_bytes() == (here / "alone.json").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("types", [TYPES, "iq1_s,iq2_s,q4_K"])
def test_ctrl_c_stops_soon_and_says_what_is_saved(types, here, start):
    model = dense(width=1024, inner=4096, vocabulary=4096, blocks=2).write(here / "large.gguf")
    matrix = write_imatrix(model, here / "large.imatrix")
    # the tightest tolerance, so that it goes on for a while
    arguments = ("measure", model, "--imatrix", matrix, "--types", types, "--tolerance", "0.0001", "-t", 2)
    process = start(*arguments, cwd=here)
    deadline = time.monotonic() + 60
    while not (here / "large.planner").exists() or (here / "large.planner").stat().st_size == 0:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)  # kernels end what they have begun, on a busy machine slowly
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "saved in" in " ".join(err.split())
    assert "same command goes on" in " ".join(err.split())
    saved = int(err.split("Stopped. ")[1].split(" ")[0])
    assert saved == len(measurements("large.planner"))
    assert format_named("q4_K").name not in out


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_while_writing_leaves_nothing(model, matrix, here, run, start):
    solved = run("solve", model, "--imatrix", matrix, "--bpw", 5, "--types", "q4_K,q5_K")
    assert solved.status == 0, solved.text
    slow = here / "recipe.json"
    slow.write_text(slow.read_text().replace('"q4_K"', '"iq4_xs"').replace('"q5_K"', '"iq4_xs"'))
    process = start("quantize", model, "recipe.json", "out.gguf", "-t", 1, cwd=here)
    while not list(here.glob(".out.gguf.*")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    if process.returncode == 0:
        pytest.skip("it was too fast to be interrupted")
    assert process.returncode == 130, err
    assert "Stopped. Nothing was written." in err
    assert not list(here.glob("*out.gguf*"))
    assert run("quantize", model, "recipe.json", "out.gguf").status == 0
    assert load_recipe(slow).formats["output.weight"] == "iq4_xs"
