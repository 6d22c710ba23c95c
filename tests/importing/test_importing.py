"""What a user of the library can import, and what a file is told to be."""

from __future__ import annotations

import json
import struct

import pytest

from planner.errors import RecipeError, StateFileError, UsageError
from planner.importing import identify, import_measurements, import_recipe
from planner.inputs import kinds
from planner.recipe import save_recipe
from state import Store
from tests.models import dense

RULES = "ffn=q4_K,.*=q8_0"
TABLE = "QTYPE,output.weight\nq4_K,0.25\n"
FORK = struct.pack("<QQQ", 0x4250572D5632, 7, 0)


@pytest.fixture
def model(here):
    return dense().write(here / "model.gguf")


@pytest.fixture
def recipe(model, here):
    made = import_recipe(RULES, model=model).recipe
    save_recipe(made, here / "recipe.json")
    return made


def test_rules_for_a_model(recipe, model):
    formats = recipe.formats
    assert formats["blk.0.ffn_up.weight"] == "q4_K"
    assert formats["output.weight"] == "q8_0"
    assert recipe.loss is None  # nothing was measured


def test_a_gguf_is_for_itself(model):
    made = import_recipe(model)
    assert set(made.recipe.formats.values()) == {"f16", "f32"}
    assert not made.notes


def test_a_recipe_is_worked_out_again(recipe, model, here):
    assert import_recipe(here / "recipe.json", model=model).recipe == recipe
    with pytest.raises(UsageError, match="needs its model"):
        import_recipe(here / "recipe.json")


def test_a_recipe_may_have_its_mark_anywhere(recipe, model, here):
    """Not in the first bytes, as when another program has written the file again."""
    data = json.loads((here / "recipe.json").read_text())
    for encoding in ("utf-8", "utf-16"):
        text = json.dumps({"tensors": data.pop("tensors"), **data}, indent=4)
        assert text.index("format_version") > kinds.HEAD
        (here / "other.json").write_text(text, encoding=encoding)
        data = json.loads(text)
        assert identify(here / "other.json").given.kind == kinds.RECIPE
        assert import_recipe(here / "other.json", model=model).recipe == recipe


def test_other_json_is_a_dialect(here):
    (here / "a.json").write_text('{"model.layers.0.mlp.up_proj": "GGUF:Q4_K_S"}')
    (here / "b.json").write_text('{"quantization": {"bits": 4, "group_size": 64}}')
    assert identify(here / "a.json").dialect == "auto-round"
    assert identify(here / "b.json").dialect == "mlx-lm"


def test_types_alone_need_a_model():
    with pytest.raises(UsageError, match="which model are they for"):
        import_recipe(RULES)
    with pytest.raises(UsageError, match=r"^nowhere\.txt=1 does not exist"):
        import_recipe("nowhere.txt=1")


@pytest.mark.parametrize(("name", "data", "kind"), [
    ("kld_results.csv", TABLE.encode(), kinds.KLD_TABLE), ("run.bpw_state", FORK, kinds.BPW_STATE),
])  # fmt: skip
def test_measurements_are_no_recipe(name, data, kind, model, here):
    (here / name).write_bytes(data)
    for dialect in (None, "csv"):
        source = identify(here / name, dialect)
        assert source.given.kind == kind
        assert source.has_measurements
        assert source.dialect is None
    with pytest.raises(UsageError, match="holds measurements"):
        import_recipe(source, model=model)
    with pytest.raises(RecipeError, match="holds no measurements"):
        import_measurements(RULES, here / "s.planner", model=model)
    assert not (here / "s.planner").exists()


def test_a_state_without_a_model_gets_it(model, here):
    with Store.open(here / "s.planner", create=True):
        pass
    (here / "kld_results.csv").write_text(TABLE)
    with pytest.raises(UsageError, match="holds no model yet"):
        import_measurements(here / "kld_results.csv", here / "s.planner")
    with pytest.raises(UsageError, match="holds no model yet"):
        import_recipe(RULES, state=here / "s.planner")
    with pytest.raises(StateFileError, match="no finished measurements"):
        import_measurements(here / "kld_results.csv", here / "s.planner", model=model)
    assert import_recipe(RULES, state=here / "s.planner").recipe.formats["output.weight"] == "q8_0"
