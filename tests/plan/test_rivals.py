"""What a plan is checked against: other sources' answers, and mixes of llama.cpp that fit in its place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.formats.ggml import formats, select_formats
from planner.gguf import requires_imatrix
from planner.plan.findings import Findings
from planner.plan.mixes import MIXES, mix_formats
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.plan.rivals import rivals
from planner.plan.rules import parse_rule
from planner.plan.target import Other, Target
from planner.recipe import parse_recipe
from state import Store

BUDGET = 5_400_000


@pytest.fixture
def findings(whole):
    with Store.open(whole, read_only=True) as store:
        return Findings.read(store)


def found(findings, request, label=None):
    return rivals(findings, request, make_plan(findings, request), label)


def test_the_answers_of_other_sources(findings):
    request = PlanRequest(budget=BUDGET)
    first, *others = found(findings, request)
    assert first.label == "structure"  # there is no pass of the model
    by_source = {rival.label: rival for rival in others if not rival.is_mix}
    assert set(by_source) == {"structure+prior", "prior"}
    for label, rival in by_source.items():
        assert rival.recipe == make_plan(findings, replace(request, sensitivity=label)).recipe
        assert rival.plan.recipe == rival.recipe


def test_no_two_are_alike(findings):
    request = PlanRequest(budget=BUDGET, pins=(parse_rule(".=q4_K"),))
    assert [rival.label for rival in found(findings, request) if not rival.is_mix] == ["structure"]
    request = PlanRequest(budget=BUDGET)
    again = found(findings, request, "polished")
    assert again[0].label == "polished"
    assert "structure" not in [rival.label for rival in again]  # as it is the same


@pytest.mark.parametrize("budget", [3_000_000, BUDGET, 8_000_000])
def test_mixes_that_fit(findings, budget):
    """The largest, and the one that is expected to lose least, of all that llama-quantize could make."""
    request = PlanRequest(budget=budget)
    mixes = {rival.label: rival for rival in found(findings, request) if rival.is_mix}
    losses = findings.losses("structure")
    sizes, expected = {}, {}
    for mix in MIXES:
        wanted = mix_formats(findings.inventory, mix)
        size = findings.inventory.header_bytes + sum(
            formats()[wanted.get(tensor.name, tensor.source_format)].tensor_bytes(tensor.shape)
            for tensor in findings.inventory.tensors
        )
        if size <= budget:
            sizes[mix] = size
            expected[mix] = sum(losses.error_and_loss(name, fmt)[1] for name, fmt in wanted.items())
    assert set(mixes) == {max(sizes, key=sizes.get), min(expected, key=expected.get)}
    for mix, rival in mixes.items():
        assert rival.recipe.size == sizes[mix] <= budget
        assert rival.plan.recipe.loss == pytest.approx(expected[mix])


def test_a_mix_that_is_kept_is_a_recipe_like_any_other(findings):
    request = PlanRequest(budget=BUDGET)
    plan = make_plan(findings, request)
    mix = next(rival for rival in rivals(findings, request, plan) if rival.is_mix)
    recipe = mix.plan.recipe
    assert recipe.formats == mix.recipe.formats
    assert parse_recipe(recipe.model_dump_json(), "it") == recipe
    assert recipe.bound == plan.recipe.bound <= recipe.loss  # nothing within the limits loses less than that
    assert {choice.why for choice in recipe.tensors if not choice.left_alone} == {f"as in {mix.label}"}


RULES = {
    "a floor": PlanRequest(budget=BUDGET, floors=(parse_rule("attn_k=q8_0"),)),
    "types": PlanRequest(budget=BUDGET, formats=select_formats("legacy")),
    "a pin": PlanRequest(budget=BUDGET, pins=(parse_rule("output.weight=q8_0"),)),
    "a limit": PlanRequest(budget=BUDGET, active=3_000_000),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_mix_that_breaks_a_rule_is_only_compared(rule, findings):
    mixes = [rival for rival in found(findings, RULES[rule]) if rival.is_mix]
    assert mixes
    assert all(rival.plan is None for rival in mixes)


def test_without_an_imatrix_no_mix_needs_one(findings):
    bare = replace(findings, inventory=findings.inventory.model_copy(update={"imatrix_digest": None}))
    request = PlanRequest(budget=3_450_000, sensitivity="prior")
    for rival in found(bare, request):
        for choice in rival.recipe.tensors if rival.is_mix else ():
            assert not requires_imatrix(choice.name, formats()[choice.format])
    assert any(rival.is_mix and "IQ" in rival.label for rival in found(findings, request))


def test_a_target_is_taken_as_the_size_that_was_found(findings):
    request = PlanRequest(target=Target(than=Other("Q4_K_M")))
    first, *others = found(findings, request)
    assert first.plan.reached is not None
    assert all(rival.recipe.size <= first.recipe.size for rival in others)
    assert others
