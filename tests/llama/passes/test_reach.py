"""How far noise reaches: against divergences of tensors changed alone, and as a file has it."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import gguf
import numpy as np
import pytest

from planner.errors import ImatrixError
from planner.gguf import open_model, read_imatrix
from planner.gguf.entry import LOGITS_REACH, Reach
from planner.gguf.imatrix_writer import write_imatrix
from planner.gguf.sums import Sums, TensorSums, merge_imatrices
from planner.llama.engine import Engine, cut
from planner.llama.passes.reach import depths, sound, windows_for
from planner.llama.text import read_text
from planner.names.gguf import ATTENTION_WRITERS, FFN_WRITERS, role_of
from tests.architectures import write_model
from tests.conftest import EXAMPLES
from tests.models import mixture

MEASURED = EXAMPLES.parent / "benchmarks" / "data" / "measured_sensitivity" / "prose-8m.csv"


def listened(model: Path, windows: np.ndarray) -> dict[str, Reach]:
    found: dict[str, Reach] = {}
    with open_model(model) as opened:
        steps = list(sound(opened, windows, found, threads=1, gpu_layers=0))
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    assert steps[-1][0] == steps[-1][1]
    return found


def with_bias(source: Path, path: Path, name: str) -> Path:
    """The model with one more vector, of zeros and as wide as the stream."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, "llama")
    for key, entry in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = entry.types[0]
            writer.add_key_value(key, entry.contents(), kind, entry.types[1] if len(entry.types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.add_tensor(name, np.zeros(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def windows(example) -> np.ndarray:
    with Engine(example.model, context=512, threads=1, predicts=False) as engine:
        return cut(engine.tokenize(read_text(EXAMPLES / "calibration.txt")), 512)


@pytest.fixture(scope="module")
def reached(example, windows) -> dict[str, Reach]:
    return listened(example.model, windows[:8])


def test_losses_are_divergences_in_nats(run, example, reached, here):
    """Sensitivities of single tensors of the bundled model were measured apart, by passes over other tokens."""
    imatrix, state, recipe = here / "imatrix.gguf", here / "s.planner", here / "recipe.json"
    text = ("--text", EXAMPLES / "calibration.txt", "--chunks", 8, "--no-reach", "-t", 1)
    assert run("imatrix", example.model, *text, "-o", imatrix).status == 0
    assert not read_imatrix(imatrix).reach
    sums = merge_imatrices([read_imatrix(imatrix)])
    sums.add_reach(reached)
    write_imatrix(sums, imatrix, force=True)
    measure = run(
        "measure", example.model, "--imatrix", imatrix, "--state", state, "--types", "q3_K,q5_K,q8_0", "-t", 1
    )
    assert measure.status == 0, measure.text
    solved = run("solve", "--state", state, "--kld", "0.01", "-o", recipe)
    assert "expected" in solved.out, solved.text
    text = ("--text", EXAMPLES / "evaluation.txt", "-c", 256, "--chunks", 16, "-t", 1)
    found = run("evaluate", example.model, recipe, "--imatrix", imatrix, *text, "--json")
    assert found.status == 0, found.text
    assert json.loads(found.out)["files"][1]["kld"]["value"] == pytest.approx(0.01, rel=0.5)

    from planner.plan.findings import Findings
    from state import Store

    with Store.open(state, read_only=True) as store:
        sensitivities = Findings.read(store).losses("structure").sensitivities
    roles: dict[str, list[float]] = {}
    with MEASURED.open(newline="") as file:
        for row in csv.DictReader(file):
            expected = sensitivities[row["tensor"]].per_unit.variance
            roles.setdefault(role_of(row["tensor"])[1], []).append(float(row["sensitivity"]) / expected)
    # what the table says of values is of another metric: docs/design.md, "Structure"
    means = {role: math.exp(np.mean(np.log(ratios))) for role, ratios in roles.items() if role != "attn_v"}
    assert len(means) == 8
    assert all(0.6 < mean < 1.6 for mean in means.values()), means
    spreads = [np.log(roles[role]).std() for role in ("attn_output", "ffn_down", "ffn_gate", "ffn_up")]
    assert max(spreads) < 0.35, spreads


def test_every_write_is_known_and_the_same_twice(example, windows, reached):
    with open_model(example.model) as model:
        writers = {tensor.name for tensor in model.tensors if role_of(tensor.name)[1].startswith(
            (*ATTENTION_WRITERS, *FFN_WRITERS)
        )}  # fmt: skip
    assert set(reached) == writers | {"token_embd.weight", LOGITS_REACH}
    again = listened(example.model, windows[:8])
    assert {name: pytest.approx(nats, rel=0.02) for name, (nats, _) in reached.items()} == {
        name: nats for name, (nats, _) in again.items()
    }


def test_a_long_text_gives_more_windows_than_are_run_at_a_time(example, windows, reached):
    assert len(windows_for(windows, 8)) == 8
    found = listened(example.model, windows)
    assert found.keys() == reached.keys()
    assert all(found[name].tokens == 8 * 256 for name in found)
    assert all(found[name].nats == pytest.approx(nats, rel=0.5) for name, (nats, _) in reached.items())


def test_nothing_is_said_where_no_stream_is_found(tmp_path):
    found: dict[str, Reach] = {}
    with open_model(write_model("hy_v4", tmp_path / "m.gguf")) as model:
        words = np.random.default_rng(0).integers(3, 60, (4, 32)).astype(np.int32)
        assert list(sound(model, words, found, threads=1, gpu_layers=0)) == []
    assert not found


def test_a_bias_behind_a_product_changes_no_error(example, windows, tmp_path, reached):
    """The bundled model with biases of zeros behind its first writer: noise goes into the product as without."""
    path = with_bias(example.model, tmp_path / "b.gguf", "blk.0.attn_output.bias")
    found = listened(path, windows[:8])
    name = "blk.0.attn_output.weight"
    assert found[name].nats == pytest.approx(reached[name].nats, rel=0.02)


@pytest.mark.parametrize("architecture", ["gemma2", "mixture"])
def test_norms_behind_writes_and_experts(architecture, example, tmp_path):
    """Where noise cannot be put into a product whose share is known, it goes into the stream."""
    model = tmp_path / "m.gguf"
    if architecture == "mixture":
        mixture(example.model, model)
    else:
        write_model(architecture, model)
    with Engine(model, context=32, threads=1, predicts=False) as engine:
        words = engine.vocabulary_size
    found = listened(model, np.random.default_rng(0).integers(3, words, (4, 32)).astype(np.int32))
    assert len(found) > 3
    assert all(nats > 0 for nats, _ in found.values())


def test_a_few_windows_are_chosen_of_many():
    assert depths(1) == [0]
    assert depths(3) == [0, 1, 2]
    some = windows_for(np.arange(1000 * 512, dtype=np.int32).reshape(1000, 512), 28)
    assert some.shape == (8, 256)
    assert windows_for(np.zeros((1, 64), np.int32), 2).shape == (1, 64)
    assert len(windows_for(np.zeros((100, 512), np.int32), 28)) == 6
    assert len(windows_for(np.zeros((40, 512), np.int32), 28)) == 4


def test_files_hold_it_and_are_merged_by_tokens(tmp_path, run):
    paths = []
    for number, (nats, tokens) in enumerate(((1.0, 100), (4.0, 200))):
        sums = Sums(
            16, {"blk.0.ffn_down.weight": TensorSums.zeros(32, 1)}, reach={"token_embd.weight": Reach(nats, tokens)}
        )
        paths.append(tmp_path / f"{number}.gguf")
        write_imatrix(sums, paths[-1], force=True)
    files = [read_imatrix(path) for path in paths]
    assert files[1].reach == {"token_embd.weight": Reach(4.0, 200)}
    assert "Reach       of noise, from 200 tokens: losses are in nats" in run("inspect", paths[1]).out
    sums = Sums(16, {"blk.0.ffn_down.weight": TensorSums.zeros(32, 1)})
    write_imatrix(sums, tmp_path / "without.gguf", force=True)
    assert "Reach       of noise not known: losses are up to scale" in run("inspect", tmp_path / "without.gguf").out
    assert merge_imatrices(files).reach == {"token_embd.weight": Reach(3.0, 300)}


@pytest.mark.parametrize("nats", [0.0, -1.0, math.nan, math.inf])
def test_what_cannot_be_is_refused(tmp_path, nats):
    path = tmp_path / "i.gguf"
    sums = Sums(16, {"blk.0.ffn_down.weight": TensorSums.zeros(32, 1)}, reach={"logits": Reach(nats, 100)})
    write_imatrix(sums, path, force=True)
    with pytest.raises(ImatrixError, match=r"logits\.reach is not two numbers above zero"):
        read_imatrix(path)
