"""Draft heads run beside the model that they belong to, and their weights get sums like all others."""

from __future__ import annotations

import numpy as np
import pytest

from planner.gguf import open_model, read_imatrix
from planner.gguf.drafts import draft_heads
from planner.gguf.sums import merge_imatrices
from planner.llama.collect.collector import Collector
from planner.llama.drafts import _RUN
from planner.llama.engine import Engine
from tests import architectures

WINDOWS, LENGTH = 3, 32
TOKENS = np.random.default_rng(0).integers(1, 300, (WINDOWS, LENGTH)).astype(np.int32)


def sums_of(path, heads, **settings):
    """Sums of all that is multiplied while the windows are read, with those of the weights `heads`."""
    sums = merge_imatrices((), LENGTH)
    observers = {"observer": Collector(sums), "heads": Collector(sums, only=heads) if heads else None}
    with Engine(path, context=LENGTH, threads=1, predicts=False, **observers, **settings) as engine:
        for _ in engine.windows(TOKENS, first=0):
            pass
    return sums.tensors


@pytest.mark.parametrize("architecture", sorted(_RUN))
def test_heads_are_collected_and_nothing_else_changes(architecture, tmp_path):
    path = architectures.write_model(architecture, tmp_path / "m.gguf", heads=1)
    with open_model(path) as model:
        heads = draft_heads(model)
    found, plain = sums_of(path, heads), sums_of(path, None)
    assert found.keys() & heads
    assert found.keys() - heads == plain.keys()
    for name, entry in plain.items():
        np.testing.assert_array_equal(entry.sum2, found[name].sum2)
        assert np.array_equal(entry.counts, found[name].counts)
    for name in ("nextn.eh_proj", "attn_output", "ffn_down_shexp", "ffn_down"):
        for key in found.keys() & heads:
            if f".{name}." in key:
                assert found[key].sum2.sum() > 0, key


@pytest.mark.parametrize("settings", [{}, {"batch": 16, "windows_at_a_time": 1}], ids=["whole", "pieces"])
def test_heads_read_tokens_and_the_state_before(settings, tmp_path):
    """`eh_proj` reads the normed embedding of a token, and the normed state of the one before, which a window's first
    token does not have; also where windows run in pieces."""
    path = architectures.write_model("qwen35", tmp_path / "m.gguf")
    with open_model(path) as model:
        heads = draft_heads(model)
        table = model.by_name["blk.6.nextn.embed_tokens.weight"]
        embeddings = model.rows(table, 0, table.rows)[TOKENS.ravel()].astype(np.float64)
    entry = sums_of(path, heads, **settings)["blk.6.nextn.eh_proj.weight"]
    width = embeddings.shape[1]
    energies = embeddings**2 / ((embeddings**2).mean(axis=1, keepdims=True) + 1e-5)  # norms have weights of 1
    np.testing.assert_allclose(entry.sum2[:width], energies.sum(axis=0), rtol=1e-3)
    assert entry.sum2[width:].sum() == pytest.approx(WINDOWS * (LENGTH - 1) * width, rel=3e-3)


def test_the_command_makes_a_file_that_has_them(tmp_path, run):
    path = architectures.write_model("qwen35", tmp_path / "m.gguf")
    text = tmp_path / "t.txt"
    text.write_text(architectures.EXAMPLE.with_name("evaluation.txt").read_text(encoding="utf-8")[:800])
    made = run("imatrix", path, "--text", text, "--ctx", 64, "-o", tmp_path / "x.gguf")
    assert made.status == 0, made.text
    assert "nextn.eh_proj" not in made.out
    assert "blk.6.nextn.eh_proj.weight" in read_imatrix(tmp_path / "x.gguf").entries


def test_covariances_leave_sums_of_heads_as_they_are(tmp_path, run):
    """Neither what is tried out before the text is read nor passes after the first count."""
    path = architectures.write_model("qwen35", tmp_path / "m.gguf")
    text = tmp_path / "t.txt"
    text.write_text(architectures.EXAMPLE.with_name("evaluation.txt").read_text(encoding="utf-8")[:800])
    base = ("imatrix", path, "--text", text, "--ctx", 64, "-t", 1, "-f")
    assert run(*base, "-o", tmp_path / "plain.gguf").status == 0
    expected = read_imatrix(tmp_path / "plain.gguf")
    for memory, passes in (("100MB", "one pass over"), ("2MB", "passes over")):
        matrix, covariance = tmp_path / f"{memory}.imatrix", tmp_path / f"{memory}.gguf"
        made = run(*base, "-o", matrix, "--covariance", covariance, "--memory", memory)
        assert made.status == 0, made.text
        assert passes in " ".join(made.err.split())
        assert matrix.read_bytes() == (tmp_path / "plain.gguf").read_bytes()
        assert read_imatrix(covariance).digest == expected.digest
