"""The ladder of sources: uniform, prior, structure, and the mean of two."""

from __future__ import annotations

import math

import pytest

from planner.sensitivity import (
    SOURCES,
    ErrorParts,
    Facts,
    Rounding,
    TensorSensitivity,
    default_source,
    prior,
    sensitivities,
)
from planner.sensitivity.structure import stream_shares

NAMES = [
    "token_embd.weight",
    *(f"blk.{block}.{role}.weight" for block in range(3) for role in ("attn_q", "attn_output", "ffn_up", "ffn_down")),
    "blk.1.frobnicator.weight",
    "output.weight",
]


def made_up_facts():
    facts = {"output.weight": Facts(output=12.0)}
    for number, name in enumerate(NAMES):
        if "frobnicator" in name or name == "output.weight":
            continue
        writes = any(role in name for role in ("token_embd", "attn_output", "ffn_down"))
        energy = 1.0 + number
        facts[name] = Facts(
            ErrorParts(energy, energy / 3, 0.0),
            write=energy if writes else 0.0,
            stage=-1 if "embd" in name else int("ffn" in name),
        )
    return facts


def test_the_default_is_the_best_that_is_known():
    assert default_source(has_imatrix=True, has_means=True) == "structure"
    assert default_source(has_imatrix=True, has_means=False) == "structure+prior"
    assert default_source(has_imatrix=False, has_means=False) == "prior"
    assert default_source(has_imatrix=False, has_means=False, has_passes=True) == "measured"
    assert set(SOURCES) == {"uniform", "prior", "structure", "structure+prior", "measured"}


@pytest.mark.parametrize("source", sorted(set(SOURCES) - {"measured"}))
def test_every_tensor_gets_one(source):
    found = sensitivities(source, NAMES, made_up_facts(), blocks=3)
    assert list(found) == NAMES
    for entry in found.values():
        assert min(entry.per_unit) >= 0
        assert entry.per_unit.variance > 0
        assert all(map(math.isfinite, entry.per_unit))
    assert found["blk.1.frobnicator.weight"].source == ("uniform" if source == "uniform" else "prior")


def test_uniform_is_one():
    assert {entry.per_unit for entry in sensitivities("uniform", NAMES, {}, blocks=3).values()} == {(1.0, 1.0, 0.0)}


def test_prior_is_the_table():
    table = prior(NAMES, blocks=3)
    for name, entry in sensitivities("prior", NAMES, made_up_facts(), blocks=3).items():
        assert entry == TensorSensitivity(ErrorParts(*[table[name].value] * 3), "prior")


def test_structure_is_the_share_of_the_stream():
    facts = made_up_facts()
    found = sensitivities("structure", NAMES, facts, blocks=3)
    for name, share in stream_shares(facts).items():
        assert found[name].per_unit == share
        assert found[name].source == "structure"


def test_what_cannot_be_placed_is_on_the_scale_of_the_rest():
    found = sensitivities("structure", NAMES, made_up_facts(), blocks=3)
    table = prior(NAMES, blocks=3)
    blocks = [name for name in NAMES if name.startswith("blk") and "frobnicator" not in name]
    ratios = [found[name].per_unit.total / 2 / table[name].value for name in blocks]
    scale = math.prod(ratios) ** (1 / len(ratios))
    odd = "blk.1.frobnicator.weight"
    assert found[odd].per_unit.variance == found[odd].per_unit.mean == pytest.approx(scale * table[odd].value)


def test_half_and_half_is_the_geometric_mean():
    both, one, other = (
        sensitivities(source, NAMES, made_up_facts(), blocks=3) for source in ("structure+prior", "structure", "prior")
    )
    reference = "blk.1.frobnicator.weight"
    both, one, other = ({name: own.per_unit for name, own in every.items()} for every in (both, one, other))
    scale = both[reference].variance / other[reference].variance
    for name in NAMES:
        if name != reference:
            bulk, structure = both[name].total / 2, one[name].total / 2
            assert bulk == pytest.approx(math.sqrt(structure * other[name].variance * scale))
            assert both[name].variance / both[name].mean == pytest.approx(one[name].variance / one[name].mean)


def test_nothing_placed_is_prior():
    found = sensitivities("structure", NAMES, {}, blocks=3)
    assert found == sensitivities("prior", NAMES, {}, blocks=3)


def test_losses_are_never_negative():
    entry = TensorSensitivity(ErrorParts(2.0, 3.0, 5.0), "structure")
    assert entry.loss(ErrorParts(0.1, 0.01, 0.001)) == pytest.approx(0.235)
    assert entry.loss(ErrorParts(-1e-9, 0.0, 0.0)) == 0.0


@pytest.mark.parametrize("output", [None, 12.0])
@pytest.mark.parametrize("added", [None, ErrorParts(1.0, 2.0, 3.0)])
def test_facts_are_kept_as_numbers(added, output):
    place = {"write": 4.0, "stage": 1} if added else {}
    facts = Facts(added, **place, output=output, rounding=Rounding(0.1, 0.2))
    placed = {"var": 1.0, "mean": 2.0, "massive": 3.0, "write": 4.0, "stage": 1.0} if added else {}
    other = {"output": 12.0} if output else {}
    assert facts.values() == placed | other | {"fine": 0.1, "coarse": 0.2}
    assert Facts.from_values(facts.values()) == facts
    assert Facts.from_values(facts.values() | {"of another version": 1.0}) == facts


@pytest.mark.parametrize("values", [{"var": 1.0}, {"output": -1.0}, {"fine": -0.1}])
def test_facts_that_cannot_be(values):
    with pytest.raises(ValueError, match="energ"):
        Facts.from_values(values)
