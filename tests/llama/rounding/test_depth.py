"""Rounding along the depth: what is seen on the way, and what becomes of a model's predictions."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from planner.errors import ModelError
from planner.gguf import open_model
from planner.gguf.rounded import Rounded
from planner.llama.engine import Engine, cut
from planner.llama.evaluate.baseline import record
from planner.llama.evaluate.compare import diverge
from planner.llama.passes.weights import open_weights
from planner.llama.rounding.block import ALONE, of_block, write_block
from planner.llama.rounding.depth import round_along_depth
from planner.llama.rounding.rounder import DepthRequest
from planner.llama.rounding.seen import Seer, Whole, find_scale, find_writers
from tests.architectures import ARCHITECTURES, write_model
from tests.conftest import EXAMPLES, ok
from tests.models import mixture

CONTEXT = 64


@pytest.fixture
def text(here):
    words = (EXAMPLES / "calibration.txt").read_text(encoding="utf-8")
    (here / "text.txt").write_text(words[:12000], encoding="utf-8")
    return here / "text.txt"


def test_streams_are_sums_of_what_was_written(example, text):
    """The first is the embedding; each is the one before and what was added to it, which is what a weight makes of its
    input."""
    writers = [f"blk.{block}.{role}.weight" for block in (0, 1, 2) for role in ("attn_output", "ffn_down")]
    seen = []
    with Engine(example.model, context=CONTEXT, threads=1, observer=Seer(seen.append, writers, writers)) as engine:
        tokens = cut(engine.tokenize(text.read_text(encoding="utf-8")), CONTEXT, 10)  # some graphs are not full
        for _ in engine.read(tokens):
            pass
    # windows go through side by side, a piece of each in every graph
    assert len(seen) == 2
    width = len(seen[0].inputs[writers[0]]) // len(tokens)
    batches = [tokens[:, :width].reshape(-1), tokens[:, width:].reshape(-1)]
    with open_model(example.model) as model:
        embedding = model.rows(model["token_embd.weight"])
        for one, numbers in zip(seen, batches, strict=True):
            expected = embedding[numbers]
            for writer in writers:
                np.testing.assert_allclose(one.streams[writer], expected, rtol=0, atol=2e-3 * np.abs(expected).max())
                expected = expected + one.inputs[writer] @ model.rows(model[writer]).T


def test_all_writers_are_found(example, here):
    """Also in the last block, where rows are taken first; not those of experts."""
    moe = mixture(example.model, here / "moe.gguf")
    for path, blocks, roles in ((example.model, 8, {"attn_output", "ffn_down"}), (moe, 2, {"attn_output"})):
        with Engine(path, context=CONTEXT, threads=1, observer=Seer(list)) as engine:
            assert find_writers(engine) == {f"blk.{n}.{role}.weight": 256 for n in range(blocks) for role in roles}


BLOCKS = [(None, 0), (None, 3), (None, 7), *((name, 1) for name in sorted(ALONE) if name in ARCHITECTURES)]


@pytest.mark.parametrize(("architecture", "block"), BLOCKS)
def test_a_block_by_itself_makes_what_it_makes_in_the_model(example, here, architecture, block):
    """Of a table of its streams. Words are then places, which say where each row belongs."""
    path = example.model
    if architecture is not None:
        path = here / "model.gguf"
        write_model(architecture, path)
    windows = np.random.default_rng(block).integers(3, 60, (3, CONTEXT)).astype(np.int32)
    names = [f"l_out-{block - 1}", f"l_out-{block}"] if block else ["l_out-0"]
    graphs = []
    with Engine(
        path, context=CONTEXT, threads=1, observer=Seer(graphs.append, results=names), windows_at_a_time=1
    ) as engine:
        if engine.adds_bos:
            windows[:, 0] = engine.bos
        for _ in engine.read(windows):
            pass
    streams = [np.concatenate([seen.results[name] for seen in graphs]) for name in names]
    with open_model(path) as model:
        if not block:
            streams.insert(0, model.rows(model["token_embd.weight"])[windows.reshape(-1)])
        write_block(model, block, windows.size, here / "block.gguf")
        assert {name.split(".")[1] for name in of_block(model, block).values()} == {str(block)}
    whole, places = Whole(windows.size), np.arange(windows.size, dtype=np.int32).reshape(windows.shape)
    with (
        open_model(here / "block.gguf") as file,
        open_weights(file.path, file, context=CONTEXT, threads=1, gpu_layers=0) as weights,
    ):
        weights.engine.observer = Seer(list)
        weights.write("token_embd.weight", 0, streams[0])
        scale = find_scale(weights.engine, streams[0][0]) if block else 1.0
        assert (scale == pytest.approx(1)) == (block == 0 or architecture != "gemma2")
        weights.write("token_embd.weight", 0, streams[0] / np.float32(scale))
        weights.engine.observer = Seer(whole.take, results=["l_out-0"])
        for _ in weights.engine.read(places):
            pass
    np.testing.assert_allclose(whole.results["l_out-0"], streams[1], rtol=0, atol=1e-3 * np.abs(streams[1]).max())


def test_blocks_that_are_not_alike(here):
    """Are not tried: llama.cpp might end the process."""
    write_model("llama4", here / "model.gguf")
    with open_model(here / "model.gguf") as model, Rounded(here / "out.gguf") as rounded:
        request = DepthRequest(model, {}, None, None, (here / "none.txt",))
        with pytest.raises(ModelError, match="single blocks of the architecture llama4"):
            round_along_depth(request, rounded, lambda *step: None)


def divergence(model, file, windows):
    with Engine(model, context=256, threads=1) as engine:
        baseline = record(engine, windows)
    with baseline, Engine(file, context=256, threads=1) as engine:
        return float(diverge(engine, baseline).kld.mean(dtype=np.float64))


def test_it_diverges_less(example, here, run, text):
    """Than codes that are refined all at once, on text that neither has seen; the file is as large, and says what it
    is."""
    model, evaluation = example.model, EXAMPLES / "evaluation.txt"
    ok(run("imatrix", model, "--text", text, "-o", "x.imatrix", "--covariance", "cov.gguf", "-t", 1))
    ok(run("solve", model, "--imatrix", "x.imatrix", "--bpw", 4.6, "--types", "q2_K,q3_K,q8_0", "--pin",
           "token_embd=q8_0", "--pin", "output.weight=q8_0"))  # fmt: skip
    before = set(here.iterdir())
    ok(run("quantize", model, "recipe.json", "plain.gguf", "--covariance", "cov.gguf", "-t", 1))
    told = ok(run("quantize", model, "recipe.json", "deep.gguf", "--text", text, "-t", 1))
    assert "as promised" in told.out
    assert (here / "deep.gguf").stat().st_size == (here / "plain.gguf").stat().st_size
    assert set(here.iterdir()) == before | {here / "plain.gguf", here / "deep.gguf"}
    assert "refined along the depth by text" in " ".join(ok(run("inspect", "deep.gguf")).out.split())
    with Engine(model, context=256, threads=1) as engine:
        windows = cut(engine.tokenize(evaluation.read_text(encoding="utf-8")), 256, 12)
    plain, deep = (divergence(model, here / name, windows) for name in ("plain.gguf", "deep.gguf"))
    assert deep < 0.93 * plain


@pytest.fixture
def small(example, here, run, text):
    """A small mixture of experts with a recipe."""
    model = mixture(example.model, here / "model.gguf")
    ok(run("imatrix", model, "--text", text, "-c", CONTEXT, "--chunks", 8, "-o", "x.imatrix", "-t", 1))
    ok(run("solve", model, "--imatrix", "x.imatrix", "--bpw", 4.4, "--types", "q2_K,q3_K,q4_K,iq4_nl"))
    return model


def tensors(path):
    with open_model(path) as model:
        return {tensor.name: model.raw_rows(tensor).tobytes() for tensor in model.tensors}


def test_threads_change_no_bit_and_what_cannot_be_stays(small, here, run, text):
    ok(run("quantize", small, "recipe.json", "plain.gguf"))
    for threads in (1, 2):
        deep = run("quantize", small, "recipe.json", f"{threads}.gguf", "--text", text, "--chunks", 2, "-t", threads)
        assert "Not refined" in deep.err, ok(deep)
    assert (here / "1.gguf").read_bytes() == (here / "2.gguf").read_bytes()
    plain, deep = tensors(here / "plain.gguf"), tensors(here / "1.gguf")
    same = {name for name in plain if plain[name] == deep[name]}
    assert {
        name for name in same if name.endswith(("q.weight", "k.weight", "output.weight", "up_exps.weight"))
    } == set()
    assert same >= {"token_embd.weight", "blk.0.ffn_down_exps.weight", "blk.1.ffn_down_exps.weight"}


def test_what_cannot_be(small, here, run, text):
    (here / "short.txt").write_text("Too short.", encoding="utf-8")
    before = set(here.iterdir())
    for arguments, message in (
        (["--chunks", 2], "--chunks is of a text"),
        (["--text", "short.txt"], "short.txt is too short"),
        (["--text", "none.txt"], "none.txt"),
    ):
        result = run("quantize", small, "recipe.json", "out.gguf", *arguments)
        assert result.status in (1, 2), result.text
        assert message in result.err, result.text
    assert set(here.iterdir()) == before


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGINT"])
def test_nothing_is_left_of_a_run_that_was_ended(small, here, start, text, kind):
    before = set(here.iterdir())
    process = start("quantize", small, "recipe.json", "out.gguf", "--text", text, "-t", 1, cwd=here)
    try:
        while not any(link.startswith(str(here)) and "deleted" in link for link in open_files(process.pid)):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(getattr(signal, kind))
    finally:
        if process.poll() is None and kind == "SIGKILL":
            process.kill()
        process.communicate()
    assert set(here.iterdir()) == before


def open_files(pid):
    found = []
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return found
