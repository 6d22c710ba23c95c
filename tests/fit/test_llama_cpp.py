"""What is counted is what llama.cpp reserves, for published models and for others of most architectures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from planner.fit import Context, Needs
from planner.gguf import open_model
from planner.measure import Settings
from planner.measure.inventory import take_inventory
from planner.plan.cards import needs_of as needs_of_inventory
from tests.conftest import ROOT
from tests.fit import child, oracle
from tests.fit.made_up import ARCHITECTURES, metadata_of
from tests.fit.published import PUBLISHED
from tests.fit.test_context import needs_of

CONTEXTS = (
    Context(4096),
    Context(131072),
    Context(33000, ("f16", "f16"), 3),
    Context(32768, ("q8_0", "q4_0"), 2, 1024),
)
CLOSE = 6 * 2**20 / 100 / 2  # each of up to six figures is rounded to a hundredth of a MiB


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name):
    model = PUBLISHED[name]
    needs = needs_of(model)
    with oracle.made_up(model.architecture, {**model.metadata, **model.more}, vocabulary=model.vocabulary) as loaded:
        for given in CONTEXTS:
            context = given if needs.can_keep(given) else replace(given, kv=(given.kv[0],) * 2)
            found, theirs = needs.beside(context), child.reserved(loaded, context)
            assert found.kv == pytest.approx(theirs.kv, abs=CLOSE), context
            assert found.state == pytest.approx(theirs.state, abs=CLOSE), context
            unpacked = sum(
                2 * max(getattr(layer, side) for layer in needs.layers) * context.cells * context.sequences
                for side, kind in zip(("keys", "values"), context.kv, strict=True)
                if kind != "f16" and needs.layers
            )  # on a GPU alone
            assert theirs.compute <= found.compute - unpacked <= 2 * theirs.compute, context


@pytest.fixture(scope="module")
def figures():
    """Architecture → what llama.cpp reserves for its contexts, or its last words: it may end the process."""
    found, left = {}, list(ARCHITECTURES)
    while left:
        command = [sys.executable, "-m", "tests.fit.child", *left]
        quiet = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
        for name, line in zip(left, done.stdout.splitlines(), strict=False):
            found[name] = [oracle.Reserved(*each) for each in json.loads(line)]
        if left := [name for name in left if name not in found]:
            found[left.pop(0)] = done.stderr[-2000:]
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures(architecture, figures):
    assert isinstance(figures[architecture], list), figures[architecture]
    needs = Needs.of(architecture, oracle.as_kept(metadata_of(architecture)), {})
    for context, theirs in zip(child.CONTEXTS, figures[architecture], strict=True):
        found = needs.beside(context)
        assert found.kv == pytest.approx(theirs.kv, abs=CLOSE)
        assert found.state == pytest.approx(theirs.state, abs=CLOSE)


def test_a_shared_cache_takes_no_more(example):
    """llama-server without -np has four sequences that share all cells: what is counted for four is enough."""
    for name in ("gemma-3-27b", "qwen3.8-27b"):
        model = PUBLISHED[name]
        pairs = {**model.metadata, **model.more}
        with oracle.made_up(model.architecture, pairs, vocabulary=model.vocabulary) as loaded:
            theirs = oracle.reserved(loaded, 16384, parallel=4, unified=True)
        found = needs_of(model).beside(Context(16384, sequences=4))
        assert found.kv >= theirs.kv - CLOSE
        assert found.state == pytest.approx(theirs.state, abs=CLOSE)
        assert found.compute >= theirs.compute


def test_the_bundled_model_as_its_inventory_says(example):
    with open_model(example.model) as opened:
        inventory = take_inventory(opened, None, Settings(0, 0.05))
    needs = needs_of_inventory(inventory)
    with oracle.from_file(example.model) as loaded:
        for context in CONTEXTS:
            found, theirs = needs.beside(context), child.reserved(loaded, context)
            assert found.kv == pytest.approx(theirs.kv, abs=CLOSE)
            assert found.state == theirs.state == 0
            assert theirs.compute <= found.compute
