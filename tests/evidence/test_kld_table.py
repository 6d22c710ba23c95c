"""Tables of divergences, and those that look alike: each is taken or refused for what it is."""

from __future__ import annotations

import math
import random

import pytest

from planner.errors import RecipeError
from planner.evidence.kld_table import read_kld_table
from planner.inputs.kinds import HEAD, KLD_TABLE, kind_of

NAMES = [f"blk.{block}.{role}.weight" for block in range(6) for role in ("attn_q", "ffn_down")] + ["output.weight"]


def table(value, names=NAMES, kind="q2_K"):
    return f"QTYPE,{','.join(names)}\n{kind},{','.join(value(name) for name in names)}\n"


def klds(seed, low=-4.0, high=0.3):
    """As wide as published ones: from 1e-4 to 2 nats."""
    rng = random.Random(seed)
    return {name: 10 ** rng.uniform(low, high) for name in NAMES}


@pytest.mark.parametrize("seed", range(20))
def test_divergences_are_taken(seed):
    values = klds(seed)
    text = table(lambda name: f"{values[name]:.6f}")
    assert kind_of(text[:HEAD].encode(), len(text)) == KLD_TABLE
    found = read_kld_table(text, "it")
    assert found.klds == {"q2_K": {name: float(f"{kld:.6f}") for name, kld in values.items()}}
    assert not found.notes


ALIKE = {
    "perplexity": (lambda kld: f"{6.8085 * math.exp(kld):.6f}", "perplexities"),
    "low perplexity": (lambda kld: f"{1.9 * math.exp(kld):.4f}", "perplexities"),
    "same top": (lambda kld: f"{99 - 10 * kld:.3f}%", "percentages"),
    "same top without a sign": (lambda kld: f"{99 - 10 * kld:.3f}", "percentages"),
    "change": (lambda kld: f"{100 * math.expm1(kld):+.2f}%", "percentages"),
    "share": (lambda kld: f"{0.99 - kld / 10:.5f}", "shares"),
    "difference": (lambda kld: f"{kld - 0.05:.6f}", "no divergence is negative"),
}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("alike", ALIKE)
def test_what_looks_alike_is_refused(alike, seed):
    made, words = ALIKE[alike]
    values = klds(seed, low=-3.0, high=-0.5)
    with pytest.raises(RecipeError, match=words) as caught:
        read_kld_table(table(lambda name: made(values[name])), "it")
    assert "kld_results.csv" in caught.value.remedy


@pytest.mark.parametrize("head", ["group0", "group0,group1", "bpw,group0"])
def test_groups_are_refused(head):
    row = ",".join("0.5" for _ in head.split(","))
    with pytest.raises(RecipeError, match="groups of tensors"):
        read_kld_table(f"QTYPE,{head}\nbf16,{row}\nq2_K,{row}\n", "it")


def test_what_was_not_measured_is_left_out():
    cells = ["0.01", "404", "", "404%", "nan", "N/A", "inf", "0", "-0.00001", " 0.02 ", "null"]
    names = [f"t{number}" for number in range(len(cells))]
    text = f"QTYPE,{','.join(names)},group0\nq2_K,{','.join(cells)},0.8\nbf16,{','.join('0' for _ in names)},0\n"
    found = read_kld_table(text, "it")
    assert found.klds == {"q2_K": {"t0": 0.01, "t9": 0.02}}
    counts = {note.split(":")[0].split(", ")[1]: int(note.split()[0]) for note in found.notes}
    assert counts == {"not measured": 7, "without any divergence": 13, "of groups of tensors": 2}


FILL = 8  # decimals of fill_missing_metric.py, with zeros behind what was measured or without


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_what_a_curve_filled_in_is_left_out(seed, padded):
    """kld_results_partial.csv, and ..._interpolated.csv made of it: the same divergences are taken of both."""
    values, rng = klds(seed), random.Random(seed)
    gaps = set(rng.sample(NAMES, 5))

    def partial(name):
        return "404" if name in gaps else f"{values[name]:.6f}"

    def completed(name):
        if name in gaps:
            return f"{round(values[name], FILL - 1) + 3e-8:.{FILL}f}"
        return f"{values[name]:.6f}00" if padded else repr(float(f"{values[name]:.6f}"))

    first, second = read_kld_table(table(partial), "it"), read_kld_table(table(completed), "it")
    assert second.klds == first.klds
    assert set(second.klds["q2_K"]) == set(NAMES) - gaps
    (note,) = second.notes
    assert note.startswith("5 cells are left out, filled in by a curve: ")


def test_gaps_that_were_measured_later_are_taken():
    """The later table has the same numbers elsewhere, so that the partial one does not tell what was filled in."""
    values = klds(3)
    assert not read_kld_table(table(lambda name: f"{values[name]:.6f}"), "it").notes


@pytest.mark.parametrize("style", [".6g", ".9f", "r"])
def test_numbers_of_more_decimals_are_measured_where_most_are(style):
    values = {name: kld / 10 for name, kld in klds(5).items()}
    found = read_kld_table(table(lambda name: repr(values[name]) if style == "r" else f"{values[name]:{style}}"), "it")
    assert set(found.klds["q2_K"]) == set(NAMES)
    assert not found.notes


@pytest.mark.parametrize(
    "text", ["QTYPE,a\nq4_K,x\n", "QTYPE,a\nq4_K\n", "QTYPE,a\n", "QTYPE,a\nq4_K,404\n", 'QTYPE,"a\n']
)
def test_broken_tables(text):
    with pytest.raises(RecipeError) as caught:
        read_kld_table(text, "it")
    assert caught.value.remedy
