"""Draft heads: no source of sensitivities gives them away, and rules decide about their formats."""

from __future__ import annotations

import dataclasses

import pytest

import planner
from benchmarks.architectures import add_passes
from planner.evidence.add import add_divergences
from planner.evidence.kld_table import read_kld_table
from planner.formats.ggml import formats
from planner.gguf import open_model
from planner.names.gguf import ahead
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.plan.rules import parse_rule
from planner.sensitivity import SOURCES
from planner.sizes import parse_bits
from state import Store
from tests.models import delta_net, write_imatrix

TYPES = "iq1_m,q2_K,q3_K,q4_K,q5_K,q6_K,q8_0"
BLOCKS = 12
HEAD = ahead(delta_net(blocks=BLOCKS).arrays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a draft head, of which the imatrix has nothing, measured; and passes of it: of all tensors alone and
    together, none of which the head changes."""
    folder = tmp_path_factory.mktemp("draft")
    model = delta_net(blocks=BLOCKS).write(folder / "m.gguf")
    matrix = write_imatrix(model, folder / "x.imatrix", skip=HEAD)
    with planner.open_state(folder / "s.planner", create=True) as state:
        state.measure(model, imatrix=matrix, types=TYPES)
    with Store.open(folder / "s.planner") as store:
        add_passes(store, HEAD)
    return folder


@pytest.fixture(scope="module")
def findings(folder):
    with Store.open(folder / "s.planner", read_only=True) as store:
        return Findings.read(store)


def bits_of(plan):
    return {name: formats()[fmt].bpw for name, fmt in plan.recipe.formats.items() if name in plan.drafted}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("bpw", ["2.2", "3", "4.5"])
def test_heads_have_four_bits_whatever_the_source_and_the_size(source, bpw, findings):
    plan = make_plan(findings, PlanRequest(bpw=parse_bits(bpw), sensitivity=source))
    assert set(plan.drafted) == {name for name in HEAD if "norm" not in name}
    assert min(bits_of(plan).values()) >= 4
    assert not set(plan.unplaced) & HEAD
    assert plan.recipe.bpw <= float(bpw)


def test_they_take_more_bits_as_there_are_more(findings):
    few, many = (make_plan(findings, PlanRequest(bpw=parse_bits(bpw))) for bpw in ("3", "7.5"))
    assert sum(bits_of(many).values()) > sum(bits_of(few).values())


def test_what_passes_say_of_them_says_nothing(findings):
    """Zeros of theirs, or their being changed in a pass with others, move no sensitivity."""
    without = dataclasses.replace(
        findings,
        passes=tuple(
            one.model_copy(update={"errors": kept})
            for one in findings.passes
            if (kept := {name: error for name, error in one.errors.items() if name not in HEAD})
        ),
    )
    told, untold = (found.sensitivities("measured") for found in (findings, without))
    assert told == untold
    assert all(told[name].per_unit.variance > 0 for name in told)
    assert {told[name].source for name in told if name in HEAD} == {"prior"}


def test_they_count_as_the_last_block_does(findings):
    found = {name: own.per_unit for name, own in findings.sensitivities("prior").items()}
    for role in ("attn_q", "attn_output", "ffn_up", "ffn_down"):
        assert found[f"blk.{BLOCKS}.{role}.weight"] == found[f"blk.{BLOCKS - 1}.{role}.weight"]
    assert found[f"blk.{BLOCKS}.nextn.shared_head_head.weight"] == found["output.weight"]


@pytest.mark.parametrize(("draft", "expected"), [("keep", "f16"), ("q8_0", "q8_0")])
def test_rules_for_heads(draft, expected, findings):
    plan = make_plan(findings, PlanRequest(bpw=parse_bits("6"), draft=draft))
    assert {plan.recipe.formats[name] for name in plan.drafted} == {expected}
    others = {fmt for name, fmt in plan.recipe.formats.items() if name not in HEAD and "norm" not in name}
    assert len(others - {"f32"}) > 1


@pytest.mark.parametrize("draft", ["auto", "keep", "q8_0"])
def test_rules_that_users_write_go_first(draft, findings):
    pin = parse_rule("nextn.eh_proj=q3_K")
    cap = parse_rule(rf"blk\.{BLOCKS}\.ffn=q2_K")
    plan = make_plan(findings, PlanRequest(bpw=parse_bits("6"), draft=draft, pins=(pin,), caps=(cap,)))
    assert plan.recipe.formats[f"blk.{BLOCKS}.nextn.eh_proj.weight"] == "q3_K"
    assert plan.recipe.formats[f"blk.{BLOCKS}.ffn_up.weight"] in ("q2_K", "iq1_m")


def test_a_table_of_others_measures_no_heads(folder):
    names = ["output.weight", "blk.0.ffn_up.weight", f"blk.{BLOCKS}.ffn_up.weight", f"blk.{BLOCKS}.attn_q.weight"]
    table = read_kld_table(f"QTYPE,{','.join(names)}\nq3_K,0.3,0.001,0.000001,0\n", "x.csv")
    with Store.open(folder / "s.planner") as store:
        subject = Findings.read(store).subject
        before = {entry.key for entry in store.passes(subject)}
        notes = add_divergences(store, store.inventory(), table)
        added = [entry for entry in store.passes(subject) if entry.key not in before]
    assert {name for entry in added for name in entry.errors} == set(names[:2])
    assert (
        min(entry.kld for entry in added) == min(entry.stderr for entry in added) == 0.001
    )  # the noise, without theirs
    assert any("draft heads" in note and names[2] in note for note in notes)


def test_solve_says_what_they_take(folder, run):
    solved = run("solve", "--state", folder / "s.planner", "--bpw", 4.5, "--draft", "q8_0", "-o", folder / "r.json")
    assert solved.status == 0, solved.text
    with open_model(folder / "m.gguf") as model:
        size = sum(model.by_name[name].elements for name in HEAD if "norm" not in name) * 34 // 32
    assert f"tensors of draft heads (nextn), {size:,} bytes" in solved.out
