"""Covariances that are collected: against sums in float64 of the same activations, whatever the passes and stops."""

from __future__ import annotations

import itertools
import signal
import time
from random import Random

import numpy as np
import pytest

from planner.errors import ModelError, UsageError
from planner.gguf import open_model, read_imatrix
from planner.gguf.covariance import Covariances, Input
from planner.llama.collect.activations import activations_of, rows_of
from planner.llama.collect.collector import Collector, Text, collect
from planner.llama.collect.inputs import find_inputs
from planner.llama.collect.multiplier import Multiplier, products_bytes
from planner.llama.collect.passes import divide
from planner.llama.collect.run import CollectRequest, Gathering
from planner.llama.engine import Engine, cut
from planner.llama.graph import Enough, Node
from planner.llama.workers import Workers
from tests.edited import edited
from tests.models import mixture

CHUNKS = 12  # of 64 tokens, four at a time
F16 = 2.0**-11  # of a correlation, the most that rounding to f16 changes


class Exact:
    """Sums of products and rows in float64: of each weight's matrices; of experts that share their input, of all."""

    def __init__(self) -> None:
        self.sums: dict[str, dict[int, np.ndarray]] = {}
        self.rows: dict[str, dict[int, int]] = {}
        self._wants = Collector(None).wants

    def wants(self, node: Node) -> bool:
        return self._wants(node)

    def see(self, node: Node) -> None:
        name = node.sources[0].name
        shared = node.operation == "MUL_MAT_ID" and "_down_" not in name
        groups = (
            [(0, rows_of(node.sources[1]))] if shared else [(each.matrix, each.rows) for each in activations_of(node)]
        )
        for matrix, rows in groups:
            sums = self.sums.setdefault(name, {})
            sums[matrix] = sums.get(matrix, 0) + rows.T.astype(np.float64) @ rows
            counts = self.rows.setdefault(name, {})
            counts[matrix] = counts.get(matrix, 0) + len(rows)


@pytest.fixture(scope="module")
def words(example):
    return (example.model.parent / "calibration.txt").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Several batches of few tokens."""
    monkeypatch.setattr("planner.llama.engine.BATCH", 256)


@pytest.fixture
def text(words, here):
    (here / "text.txt").write_text(words[:6000], encoding="utf-8")
    return here / "text.txt"


def gather(model, text, folder, name="x", **more):
    """Collect as the command does; return the number of passes that it took."""
    with open_model(model) as opened:
        request = CollectRequest(
            opened, (text,), (), (), folder / f"{name}.imatrix", context=64, chunks=CHUNKS, threads=1,
            covariance=folder / f"{name}.gguf", **more,
        )  # fmt: skip
        with Gathering(request) as gathering:
            passes = len(gathering.passes.left)
            assert [*gathering.run()][-1] == gathering.total
            gathering.finish_covariances()
            gathering.forget()
    return passes


def exact(model, text) -> Exact:
    observer = Exact()
    with Engine(model, context=64, threads=1, observer=observer, predicts=False) as engine:
        windows = cut(engine.tokenize(text.read_text(encoding="utf-8")), 64, CHUNKS)
        assert [*collect(engine, [Text("x", windows)])]
    return observer


def correlation(sums: np.ndarray) -> np.ndarray:
    roots = np.sqrt(np.diag(sums))
    return sums / np.outer(roots, roots)


def test_covariances_are_those_of_the_activations(example, text, here):
    gather(example.model, text, here)
    expected = exact(example.model, text)
    with open_model(example.model) as model, Covariances.open(here / "x.gguf") as file:
        file.require(model)
        blocks = [tensor for tensor in model.tensors if file.covers(tensor)]
        assert {tensor.name for tensor in blocks} == expected.sums.keys()
        for tensor in blocks:
            sums, rows = expected.sums[tensor.name][0], expected.rows[tensor.name][0]
            found = file.matrix(tensor)
            assert file.tokens(tensor) == rows == CHUNKS * 64
            roots = np.sqrt(np.diag(sums) / rows)
            np.testing.assert_allclose(found / np.outer(roots, roots), correlation(sums), atol=2 * F16)
            np.testing.assert_array_equal(np.diag(found), file.imatrix.weights(tensor)[0])
        readers = {one.name.removeprefix("blk.3."): one.tensors for one in file.inputs.values()}
        assert set(readers["attn_q.weight"]) == {f"blk.3.attn_{role}.weight" for role in "qkv"}
        assert set(readers["ffn_gate.weight"]) == {"blk.3.ffn_gate.weight", "blk.3.ffn_up.weight"}
        assert len(file.inputs) == 4 * 8


def test_experts_share_what_they_read_and_have_their_own_of_what_they_write(example, text, here):
    model = mixture(example.model, here / "moe.gguf")
    gather(model, text, here)
    expected = exact(model, text)
    with open_model(model) as opened, Covariances.open(here / "x.gguf") as file:
        for name in ("blk.1.ffn_up_exps.weight", "blk.1.ffn_gate_exps.weight"):
            sums = expected.sums[name][0]
            for matrix in range(4):
                assert file.tokens(opened[name], matrix) == CHUNKS * 64
                found = file.matrix(opened[name], matrix)
                np.testing.assert_array_equal(np.diag(found), file.imatrix.weights(opened[name])[matrix])
                np.testing.assert_allclose(correlation(found.astype(float)), correlation(sums), atol=3 * F16)
        down = opened["blk.1.ffn_down_exps.weight"]
        everything = correlation(sum(expected.sums[down.name].values()))
        assert len(file.inputs) == 2 * 4
        for matrix in range(4):
            sums, rows = expected.sums[down.name][matrix], expected.rows[down.name][matrix]
            assert file.tokens(down, matrix) == rows
            weight = rows / (rows + down.row_length)
            shrunk = weight * correlation(sums) + (1 - weight) * everything
            found = file.matrix(down, matrix)
            np.testing.assert_allclose(correlation(found.astype(float)), shrunk, atol=3 * F16)


def test_memory_decides_the_passes_and_nothing_else(example, text, here):
    assert gather(example.model, text, here, "large") == 1
    most = max(products_bytes(Input("x", (), width, 1)) for width in (256, 768))
    assert gather(example.model, text, here, "small", memory=3 * most) > 3
    assert (here / "small.gguf").read_bytes() == (here / "large.gguf").read_bytes()
    with pytest.raises(UsageError, match=r"alone takes .* of memory"):
        gather(example.model, text, here, "smaller", memory=most - 1)
    assert not (here / "smaller.gguf").exists()


def test_passes_hold_what_fits():
    rng = Random(0)
    inputs = [Input(str(number), (str(number),), rng.choice((3, 50, 200)), rng.choice((1, 4))) for number in range(60)]
    most = max(map(products_bytes, inputs))
    for memory in (most, 2 * most, 10 * most):
        passes = divide(inputs, memory)
        assert [one for group in reversed(passes) for one in group] == inputs
        assert all(sum(map(products_bytes, group)) <= memory for group in passes)
        # what comes next would not have fitted
        for group, following in itertools.pairwise(passes):
            assert sum(map(products_bytes, group)) + products_bytes(following[-1]) > memory


@pytest.mark.parametrize("memory", [None, 4_000_000])
def test_a_run_that_stops_in_the_middle_loses_nothing(example, text, here, memory):
    gather(example.model, text, here, "whole")
    rng = Random(0)
    stops = 0
    while not (here / "stopped.gguf").exists():
        with open_model(example.model) as model:
            request = CollectRequest(
                model, (text,), (), (), here / "stopped.imatrix", context=64, chunks=CHUNKS, threads=1,
                covariance=here / "stopped.gguf", memory=memory,
            )  # fmt: skip
            with Gathering(request) as gathering:
                before = gathering.done
                for done in gathering.run(save_every=0):
                    assert done > before
                    if rng.random() < 0.5:
                        stops += 1
                        break
                else:
                    gathering.finish_covariances()
                    gathering.forget()
    assert stops
    assert (here / "stopped.gguf").read_bytes() == (here / "whole.gguf").read_bytes()
    assert not [path for path in here.iterdir() if path.name.endswith(".progress")]


def test_another_limit_begins_a_pass_anew_and_keeps_what_is_finished(example, text, here):
    gather(example.model, text, here, "whole")
    read = 0
    for memory in (6_000_000, 2_500_000, None):
        with open_model(example.model) as model:
            request = CollectRequest(
                model, (text,), (), (), here / "x.imatrix", context=64, chunks=CHUNKS, threads=1,
                covariance=here / "x.gguf", memory=memory,
            )  # fmt: skip
            with Gathering(request) as gathering:
                for _ in gathering.run(save_every=0):
                    read += 1
                    if memory is not None and read % 3 == 0 and gathering.done > CHUNKS:
                        break
                else:
                    gathering.finish_covariances()
    assert (here / "x.gguf").read_bytes() == (here / "whole.gguf").read_bytes()


def test_a_finished_part_that_is_gone_is_made_again(example, text, here):
    gather(example.model, text, here, "whole")
    for resume in (False, True):
        with open_model(example.model) as model:
            request = CollectRequest(
                model, (text,), (), (), here / "x.imatrix", context=64, chunks=CHUNKS, threads=1,
                covariance=here / "x.gguf", memory=6_000_000,
            )  # fmt: skip
            with Gathering(request) as gathering:
                for done in gathering.run(save_every=0):
                    if not resume and done > 2 * CHUNKS:
                        break
                else:
                    gathering.finish_covariances()
        (here / "x.gguf.progress").unlink(missing_ok=True)
    assert (here / "x.gguf").read_bytes() == (here / "whole.gguf").read_bytes()


def test_any_number_of_threads_gives_the_same_sums():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 300)).astype(np.float32)
    found = []
    for count in (1, 5):
        with Workers(count, "test") as workers:
            one = Multiplier([Input("a", ("a",), 300, 1)], workers)
            for _ in range(3):
                workers.map(lambda add: add(), one.products["a"][0].additions(rows))
            found.append(np.concatenate([block.reshape(-1) for block in one.products["a"][0].blocks]))
    np.testing.assert_array_equal(*found)


def test_later_passes_stop_where_they_have_seen_all(example, text):
    """The rest of the model is not run: nothing after the last input is asked for."""

    class Asked(Multiplier):
        def wants(self, node: Node) -> bool:
            asked.append(node.sources[0].name if node.sources else "")
            return super().wants(node)

        def see(self, node: Node) -> None:
            try:
                super().see(node)
            except Enough:
                asked.append("enough")
                raise

    asked: list[str] = []
    with (
        open_model(example.model) as model,
        Engine(example.model, context=64, threads=1, observer=Collector(None), predicts=False) as engine,
    ):
        inputs = find_inputs(engine, model)
        engine.observer = Asked([one for one in inputs if ".1." in one.name], engine.workers, stops=True)
        windows = cut(engine.tokenize(text.read_text(encoding="utf-8")), 64, 2)
        assert [*collect(engine, [Text("x", windows)])] == [2]
        assert engine.observer.tokens["blk.1.attn_q.weight"] == [128]
    assert asked.count("enough") == 1
    assert asked[-1] == "enough"
    assert not any("blk.3." in name for name in asked)


def test_activations_that_are_no_numbers_name_the_tensor():
    with Workers(1, "test") as workers:
        one = Multiplier([Input("blk.0.a.weight", (), 4, 1)], workers)
        for value, good in ((1.0, True), (np.nan, False)):
            rows = np.full((3, 4), [0, 1, value, 2], np.float32)
            for add in one.products["blk.0.a.weight"][0].additions(rows):
                add()
            if good:
                one.check()
        with pytest.raises(ModelError, match=r"NaN or infinite activations go into blk\.0\.a\.weight"):
            one.check()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9")
def test_killed_at_any_moment(example, text, here, start, monkeypatch):
    # saving after every batch is a matter of patience, not of the command line
    (here / "sitecustomize.py").write_text(
        "import planner.llama.collect.run as gather, planner.llama.engine as engine\nengine.BATCH = 256\n"
        "run = gather.Gathering.run\ngather.Gathering.run = lambda self: run(self, 0.0)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(here))
    arguments = ("imatrix", example.model, "--text", text, "-c", 64, "-t", 1, "-f")
    begin = time.monotonic()
    alone = start(*arguments, "-o", "a.imatrix", "--covariance", "a.gguf", cwd=here)
    _, said = alone.communicate()
    assert alone.returncode == 0, said
    undisturbed = time.monotonic() - begin
    rng, kills = Random(0), 0
    limit = ("--memory", "6MB", "-o", "k.imatrix", "--covariance", "k.gguf")
    while True:
        process = start(*arguments, *limit, cwd=here)
        patience = rng.uniform(0.4, 1) * undisturbed if kills < 3 else 600
        begin = time.monotonic()
        while process.poll() is None and time.monotonic() - begin < patience:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert kills
    assert (here / "k.gguf").read_bytes() == (here / "a.gguf").read_bytes()
    assert (here / "k.imatrix").read_bytes() == (here / "a.imatrix").read_bytes()
    left = {path.name for path in here.iterdir()} - {"text.txt", "sitecustomize.py", "__pycache__"}
    assert left == {"a.gguf", "a.imatrix", "k.gguf", "k.imatrix"}


def test_the_command_adds_covariances_of_the_model_alone(example, text, here, run):
    base = ("imatrix", example.model, "--text", text, "-c", 64, "--chunks", 8, "-t", 1, "-o", "x.imatrix", "-f")
    done = run(*base, "--covariance", "x.gguf")
    assert done.status == 0, done.text
    assert "Covariances:" in done.err
    assert "one pass over 512 tokens" in done.err
    assert "Fewer tokens than channels" in done.err
    assert read_imatrix("x.gguf").digest == read_imatrix("x.imatrix").digest
    shown = run("inspect", "x.gguf", "--model", example.model).out
    assert "Covariances of 57 tensors: 33 inputs of 256–768 channels, 512 tokens" in " ".join(shown.split())
    done = run(*base, "--covariance", "twice.gguf", "--merge", "x.gguf")
    assert done.status == 0, done.text
    merged = run("imatrix", "--merge", "x.gguf", "--merge", "x.gguf", "--covariance", "sum.gguf", "-o", "sum.imatrix")
    assert merged.status == 0, merged.text
    with (
        open_model(example.model) as model,
        Covariances.open("x.gguf") as once,
        Covariances.open("twice.gguf") as twice,
        Covariances.open("sum.gguf") as both,
    ):
        tensor = model["blk.2.ffn_down.weight"]
        assert twice.tokens(tensor) == both.tokens(tensor) == 2 * once.tokens(tensor)
        for other in (twice, both):
            scale = float(np.diag(once.matrix(tensor)).max())
            np.testing.assert_allclose(other.matrix(tensor), once.matrix(tensor), rtol=1e-5, atol=2 * F16 * scale)
    refused = run("imatrix", example.model, "--merge", example.sums, "--covariance", "y.gguf", "-o", "y.imatrix")
    assert refused.status == 1
    assert "an importance matrix without covariances" in " ".join(refused.err.split())
    moe = mixture(example.model, here / "moe.gguf")
    refused = run("imatrix", moe, "--merge", "x.gguf", "--text", text, "--covariance", "y.gguf", "-o", "y.imatrix")
    assert refused.status == 1
    assert "another model" in refused.err
    for wrong, words in (
        (("--covariance", "x.imatrix"), "cannot be both files"),
        (("--memory", "1GB"), "--memory goes with --covariance"),
        (("--covariance", "z.gguf", "--memory", "lots"), "is not a size"),
        (("--covariance", "z.gguf", "--memory", "1kB"), "alone takes"),
        (("--covariance", text), "would replace its own input"),
    ):
        refused = run(*base, *wrong)
        assert refused.status in (1, 2)
        assert words in " ".join(refused.err.split())
    assert {path.name for path in here.iterdir() if path.suffix != ".txt"} == {
        "x.gguf", "x.imatrix", "twice.gguf", "sum.gguf", "sum.imatrix", "moe.gguf"
    }  # fmt: skip


def test_a_tied_embedding_has_what_goes_into_the_logits(example, text, here):
    """As an output that is a copy of the embedding has: beside the covariances of the copy, those of the blocks are the
    same, and the embedding of that model has none."""

    def copied(arrays):
        return {**arrays, "output.weight": arrays["token_embd.weight"]}

    def shared(arrays):
        return {name: array for name, array in arrays.items() if name != "output.weight"}

    gather(edited(example.model, here / "copied.gguf", arrays=copied), text, here, "copied", output=True)
    gather(edited(example.model, here / "shared.gguf", arrays=shared), text, here, "shared", output=True)
    one, other = (read_imatrix(here / f"{name}.gguf").entries for name in ("copied", "shared"))
    assert "token_embd.weight" not in one
    assert set(one) - {"output.weight"} == set(other) - {"token_embd.weight"}
    np.testing.assert_array_equal(other["token_embd.weight"].raw_sum2, one["output.weight"].raw_sum2)
    with Covariances.open(here / "copied.gguf") as first, Covariances.open(here / "shared.gguf") as second:
        found = second.part("token_embd.weight", 0)
        expected = first.part("output.weight", 0)
        for own, theirs in zip(found.rows(), expected.rows(), strict=True):
            np.testing.assert_array_equal(own, theirs)
