"""Experts that a file stores one by one mean what stacked ones mean."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from planner.gguf import open_model, read_imatrix
from planner.measure import Settings, moments, survey_tensor
from planner.measure.anatomy import read_anatomy
from planner.measure.energies import block_facts
from planner.measure.inventory import take_inventory
from planner.names.gguf import is_expert, role_of
from planner.plan.limits import size_limits
from planner.recipe import load_recipe
from planner.sensitivity import prior
from tests.models import experts, write_imatrix

COUNTS = (40, 0, 100, 5)


def one_by_one(name):
    return [name.replace("_exps.", f".{number}.") for number in range(len(COUNTS))]


@pytest.fixture
def pair(tmp_path):
    """The same model and imatrix twice: with experts stacked, and one by one; (model, imatrix) paths of each."""
    stacked, apart = experts(), experts()
    apart.arrays = {}
    for name, array in stacked.arrays.items():
        names = one_by_one(name) if "_exps." in name else [name]
        apart.arrays |= dict(zip(names, array if "_exps." in name else [array], strict=True))
    counts = {name: COUNTS for name in stacked.arrays if "_exps." in name}
    paths = stacked.write(tmp_path / "stacked.gguf"), apart.write(tmp_path / "apart.gguf")
    whole = write_imatrix(paths[0], tmp_path / "stacked.imatrix.gguf", counts=counts)
    writer = gguf.GGUFWriter(tmp_path / "apart.imatrix.gguf", "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["made up"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 64)
    for name, entry in read_imatrix(whole).entries.items():
        names = one_by_one(name) if "_exps." in name else [name]
        for number, own in enumerate(names):
            writer.add_tensor(f"{own}.in_sum2", np.ascontiguousarray(entry.raw_sum2[number : number + 1]))
            writer.add_tensor(f"{own}.in_sum", np.ascontiguousarray(entry.raw_sums[number : number + 1]))
            writer.add_tensor(f"{own}.counts", entry.counts[number : number + 1, None].astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (paths[0], whole), (paths[1], tmp_path / "apart.imatrix.gguf")


def facts_of(path, matrix):
    imatrix = read_imatrix(matrix)
    with open_model(path) as model:
        surveys = [
            survey_tensor(model, tensor, moments(tensor, imatrix), find_massive=False)
            for tensor in model.tensors
            if role_of(tensor.name)[0] == 0 and tensor.rows > 1 and "gate_inp" not in tensor.name
        ]
        tokens = {name: float(entry.counts.sum()) for name, entry in imatrix.entries.items()}
        return block_facts(surveys, read_anatomy(model), 0, tokens), {survey.tensor.name: survey for survey in surveys}


def test_the_facts_of_all_experts_add_up_to_those_of_the_stack(pair):
    (stacked, _), (apart, surveys) = (facts_of(*files) for files in pair)
    for name, whole in stacked.items():
        if "_exps." not in name:
            assert apart[name].values() == pytest.approx(whole.values())
            continue
        parts = [apart[own] for own in one_by_one(name)]
        for key in ("var", "mean", "write"):
            assert sum(part.values()[key] for part in parts) == pytest.approx(whole.values()[key], rel=1e-9)
        assert [part.added.variance > 0 for part in parts] == [count > 0 for count in COUNTS]
        # relative errors are of an expert's own energy: its part goes with that, and with how often it is used
        energies = np.array([surveys[own].energy for own in one_by_one(name)]) * COUNTS
        expected = whole.added.variance * energies / energies.sum()
        assert [part.added.variance for part in parts] == pytest.approx(expected, rel=1e-9)


def test_prior_counts_experts_together(pair):
    values = []
    for path, _ in pair:
        with open_model(path) as model:
            names = [tensor.name for tensor in model.tensors]
            values.append({name: entry.value for name, entry in prior(names, blocks=2).items()})
    stacked, apart = values
    for name, value in stacked.items():
        parts = one_by_one(name) if "_exps." in name else [name]
        assert sum(apart[own] for own in parts) == pytest.approx(value)
        assert all(is_expert(own) == ("_exps." in name) for own in parts)


def test_those_not_used_are_not_read(pair):
    """What one token reads is the same, however experts are stored."""
    loads = []
    for path, _ in pair:
        with open_model(path) as model:
            inventory = take_inventory(model, None, Settings())
        (limit,) = size_limits(inventory, inventory.tensors, budget=None, bpw=None, devices=(), active=10**9)
        loads.append(limit.overhead)
    assert loads[0] == pytest.approx(loads[1], abs=3 * len(COUNTS) * 2)


def test_an_expert_that_is_never_used_gets_no_bytes(pair, here, run):
    path, matrix = pair[1]
    done = run("solve", path, "--imatrix", matrix, "--bpw", "6", "--types", "q2_K,q4_K,q8_0", "-t", 1)
    assert done.status == 0, done.text
    formats = load_recipe(here / "recipe.json").formats
    for name, fmt in formats.items():
        if is_expert(name) and ".1.weight" in name:
            assert fmt == "q2_K"
    assert {fmt for name, fmt in formats.items() if is_expert(name)} > {"q2_K"}
