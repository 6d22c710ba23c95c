"""Models as MLX stores them, and recipes of MLX's formats from measuring to export."""

from __future__ import annotations

import json
from fractions import Fraction
from math import prod
from pathlib import Path

import pytest

from planner.dialects.exports import export_recipe
from planner.errors import RecipeError, StateFileError, UsageError
from planner.formats import families as families_module
from planner.formats.mlx import AFFINE
from planner.formats.registry import FAMILIES, family_named
from planner.gguf import open_model
from planner.measure import Settings
from planner.measure.campaign import Campaign
from planner.measure.inventory import take_inventory
from planner.names.mlx import module_paths
from planner.plan.families import fused_ties
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.plan.rules import parse_rule
from planner.recipe import load_recipe
from planner.recipe.recount import recount
from state import Inventory, Store, TensorRecord
from tests import models

GGUF, MLX = FAMILIES["gguf"], FAMILIES["mlx"]
FEW = "mlx_q2_g64,mlx_q4_g32,mlx_q4_g64,mlx_q8_g128"


def inventory_of(architecture: str, *names: str, kind: str = "bf16", left_alone: tuple[str, ...] = ()) -> Inventory:
    """Matrices of 64 rows of 128."""
    return Inventory(
        model_name="made up", architecture=architecture, model_digest="00000000", model_path="m.gguf",
        header_bytes=4096, alignment=32, imatrix_name=None, imatrix_digest=None, has_means=False, metadata={},
        tensors=tuple(
            TensorRecord(
                name=name, shape=(128, 64), source_format="f32" if name in left_alone else kind, elements=8192,
                nbytes=32768 if name in left_alone or kind == "f32" else 16384, row_length=128,
                left_alone="a router" if name in left_alone else None,
            )
            for name in names
        ),
    )  # fmt: skip


def test_layers_that_look_ahead_are_no_part_of_mlxs():
    names = ("blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.1.nextn.eh_proj.weight", "blk.10.attn_q.weight")
    whole = inventory_of("glm4moe", *names)
    assert [tensor.name for tensor in MLX.inventory(whole).tensors] == [names[0], names[3]]
    assert MLX.left_out(names) == {names[1], names[2]}
    assert GGUF.left_out(names) == set()


def test_gguf_is_as_it_is():
    inventory = inventory_of("bloom", "output.weight")
    GGUF.check_architecture("bloom")
    assert GGUF.inventory(inventory) is inventory
    assert fused_ties(inventory, "gguf") == ()
    assert GGUF.can_quantize("anything", "bloom")


@pytest.mark.parametrize(("kind", "half"), [("bf16", "bf16"), ("f16", "f16"), ("f32", "bf16"), ("q8_0", "bf16")])
def test_what_is_not_quantized_has_16_bits(kind, half):
    names = ("output.weight", "blk.0.ffn_gate_inp.weight", "blk.0.frobnicator.weight", "rope_freqs.weight")
    found = MLX.inventory(inventory_of("qwen3moe", *names, kind=kind, left_alone=names[1:2]))
    assert [tensor.name for tensor in found.tensors] == list(names[:3])
    assert {(tensor.source_format, tensor.nbytes) for tensor in found.tensors} == {(half, 16384)}
    assert [tensor.left_alone for tensor in found.tensors] == [None, "a router", "no module of mlx-lm"]
    assert (found.header_bytes, found.alignment) == (0, 1)


def test_models_whose_modules_are_not_known(tmp_path):
    with pytest.raises(UsageError, match="bloom"):
        MLX.inventory(inventory_of("bloom", "output.weight"))
    maker = models.dense()
    maker.architecture = "bloom"
    maker.pairs = {}
    with (
        open_model(maker.write(tmp_path / "m.gguf")) as model,
        Store.open(tmp_path / "s.planner", create=True) as store,
        pytest.raises(UsageError, match="Leave --family out"),
    ):
        Campaign(model, None, store, MLX.choose(FEW), Settings(), family="mlx")


def test_a_matrix_that_mlx_lm_splits_stays():
    assert not MLX.can_quantize("blk.0.attn_kv_b.weight", "deepseek2")
    assert MLX.can_quantize("blk.0.attn_k_b.weight", "deepseek2")


def test_what_mlx_lm_fuses_has_one_format():
    names = [f"blk.{block}.{role}.weight" for block in (0, 1) for role in ("attn_qkv", "attn_gate", "ffn_up_exps")]
    ties = fused_ties(inventory_of("qwen3next", *names), "mlx")
    assert len(ties) == 1
    found = [name for name in names if ties[0].pattern.search(name)]
    assert found == [name for name in names if "attn" in name]
    assert fused_ties(inventory_of("qwen3", "blk.0.attn_q.weight", "blk.0.attn_k.weight"), "mlx") == ()


def test_plans_keep_together_what_is_fused(tmp_path):
    maker = models.Maker("qwen3next")
    maker.pairs = {"block_count": 1, "embedding_length": 256}
    maker.matrix("token_embd", 96, 256)
    maker.matrix("blk.0.attn_qkv", 512, 256)
    maker.matrix("blk.0.attn_gate", 64, 256, scale=0.5)
    maker.matrix("blk.0.ffn_up_exps", 2, 64, 256)
    path, state = maker.write(tmp_path / "m.gguf"), tmp_path / "s.planner"
    campaign(path, state, "mlx", FEW)
    with Store.open(state, read_only=True) as store:
        plan = make_plan(Findings.read(store), PlanRequest(bpw=Fraction(5), family="mlx"))
        assert plan.tied_to("blk.0.attn_qkv.weight") == ["blk.0.attn_gate.weight"]
        recipe = plan.recipe
    assert recipe.formats["blk.0.attn_qkv.weight"] == recipe.formats["blk.0.attn_gate.weight"]
    export_recipe(recipe, "mlx-lm", tmp_path / "r.json")
    apart = tuple(
        choice.model_copy(update={"format": "mlx_q2_g64" if "attn_qkv" in choice.name else "mlx_q8_g128"})
        for choice in recipe.tensors
    )
    with pytest.raises(RecipeError, match="one module"):
        export_recipe(recipe.model_copy(update={"tensors": apart}), "mlx-lm", tmp_path / "r.json")


def campaign(path: Path, state: Path, family: str, types: str) -> list[int]:
    """Measure; how many measurements were new."""
    with open_model(path) as model, Store.open(state, create=True) as store:
        steps = list(Campaign(model, None, store, family_named(family).choose(types), Settings(), family=family).run(1))
        return [steps[-1].done, steps[-1].fresh]


@pytest.mark.parametrize("name", ["dense", "odd", "experts", "latent", "state_space"])
def test_plans_of_made_up_models(name, tmp_path):
    """Rows that no group fills, stacks of experts, tensors of roles that nobody knows."""
    path, state = models.MODELS[name]().write(tmp_path / "m.gguf"), tmp_path / "s.planner"
    campaign(path, state, "mlx", FEW)
    with open_model(path) as model:
        inventory = MLX.inventory(take_inventory(model, None, Settings()))
    with Store.open(state, read_only=True) as store:
        recipe = make_plan(Findings.read(store), PlanRequest(bpw=Fraction(8), family="mlx")).recipe
    assert recipe.family == "mlx"
    assert [choice.name for choice in recipe.tensors] == [tensor.name for tensor in inventory.tensors]
    for choice in recipe.tensors:
        fmt = AFFINE.get(choice.format)
        if fmt is None:
            assert choice.format in ("f16", "bf16")
            assert choice.bytes == 2 * prod(choice.shape)
        else:
            assert choice.shape[0] % fmt.group == 0
            assert choice.bytes * 8 == prod(choice.shape) * fmt.bpw
            assert len(module_paths(choice.name, model.architecture)) == 1
    assert recipe.size == sum(choice.bytes for choice in recipe.tensors)
    assert recipe.bpw <= 8


def test_families_lie_side_by_side(tmp_path):
    path, state = models.dense().write(tmp_path / "m.gguf"), tmp_path / "s.planner"
    with_ggml = campaign(path, state, "gguf", "q4_0,q8_0")
    with Store.open(state, read_only=True) as store:
        before = store.measurements(selected=True)
        plan = make_plan(Findings.read(store), PlanRequest(bpw=Fraction(6))).recipe
        with pytest.raises(StateFileError, match="of the family mlx") as error:
            make_plan(Findings.read(store), PlanRequest(bpw=Fraction(6), family="mlx"))
        assert "--family mlx" in error.value.remedy
    with_mlx = campaign(path, state, "mlx", FEW)
    assert with_ggml[0] == with_ggml[1] > 0
    assert with_mlx[0] == with_mlx[1] == 2 * with_ggml[0]
    assert campaign(path, state, "gguf", "q4_0,q8_0")[1] == campaign(path, state, "mlx", FEW)[1] == 0
    with Store.open(state, read_only=True) as store:
        after = store.measurements(selected=True)
        assert before.items() <= after.items()
        assert {entry.made_with for key, entry in after.items() if key not in before} == {"mlx-affine 1"}
        findings = Findings.read(store)
    assert make_plan(findings, PlanRequest(bpw=Fraction(6))).recipe == plan
    assert make_plan(findings, PlanRequest(bpw=Fraction(6), family="mlx")).recipe.formats.keys() == plan.formats.keys()


def test_other_kernels_are_other_measurements(tmp_path, monkeypatch):
    path, state = models.dense().write(tmp_path / "m.gguf"), tmp_path / "s.planner"
    first = campaign(path, state, "mlx", FEW)
    monkeypatch.setattr(families_module, "library_version", lambda: "999")  # of ggml: no matter
    assert campaign(path, state, "mlx", FEW) == [first[0], 0]
    monkeypatch.setattr(families_module, "KERNEL", "mlx-affine 999")
    assert campaign(path, state, "mlx", FEW) == [first[0], first[0]]


def test_rules_are_of_the_family(tmp_path):
    path, state = models.dense().write(tmp_path / "m.gguf"), tmp_path / "s.planner"
    campaign(path, state, "mlx", FEW)
    with Store.open(state, read_only=True) as store:
        pins = (parse_rule("attn_v=MLX_Q8_g128", family="mlx"), parse_rule("^output.weight=f16", family="mlx"))
        floors = (parse_rule("mlx_q4_g64", default_pattern="", family="mlx"),)
        plan = make_plan(Findings.read(store), PlanRequest(bpw=Fraction(9), family="mlx", pins=pins, floors=floors))
    recipe = plan.recipe.formats
    assert {fmt for name, fmt in recipe.items() if "attn_v" in name} == {"mlx_q8_g128"}
    assert recipe["output.weight"] == "f16"
    assert "mlx_q2_g64" not in recipe.values()


@pytest.fixture(scope="module")
def state(tmp_path_factory, example):
    """The example measured in both families."""
    from planner.cli import run

    path = tmp_path_factory.mktemp("mlx") / "both.planner"
    common = ["measure", str(example.model), "--imatrix", str(example.sums), "--state", str(path), "-t", "1"]
    assert run([*common, "--types", "q4_0,q8_0"]) == 0
    assert run([*common, "--family", "mlx", "--types", FEW]) == 0
    return path


def test_from_the_state_to_mlx_lm(run, state, here, example):
    solved = run("solve", "--state", state, "--family", "mlx", "--budget", "4.7MB")
    assert solved.status == 0, solved.text
    assert "bytes (4.70 MB) of tensors" in solved.out
    assert "planner export recipe.json --to mlx-lm" in solved.out
    recipe = load_recipe(Path("recipe.json"))
    exported = run("export", "recipe.json", "--to", "mlx-lm")
    assert exported.status == 0
    assert "Note" not in exported.text
    found = json.loads(Path("recipe.mlx.json").read_text())["quantization"]
    del found["bits"], found["group_size"]
    weight = 0.0
    for choice in recipe.tensors:
        if choice.why.startswith("left alone"):
            weight += 2 * prod(choice.shape)
            continue
        (path,) = module_paths(choice.name, "llama")
        asked = found.pop(path)
        assert asked == (AFFINE[choice.format].parameters if choice.format in AFFINE else False)
        bits = asked["bits"] + 32 / asked["group_size"] if asked else 16
        weight += prod(choice.shape) * bits / 8
    assert not found
    assert weight == recipe.size <= 4_700_000


def test_what_only_ggml_can_do_is_refused(run, state, here, example):
    assert run("solve", "--state", state, "--family", "mlx", "--bpw", 5).status == 0
    for dialect in ("llama-quantize", "ik_llama", "gguf-tool-suite", "auto-round", "evopress", "rco"):
        refused = run("export", "recipe.json", "--to", dialect)
        assert refused.status == 1
        assert "--to mlx-lm" in refused.err
    assert run("export", "recipe.json", "--to", "csv").status == 0
    refused = run("quantize", example.model, "recipe.json", "out.gguf")
    assert refused.status == 1
    assert "--to mlx-lm" in refused.err
    assert not Path("out.gguf").exists()
    refused = run("solve", example.model, "--state", state, "--family", "mlx", "--bpw", 5, "--polish", "text")
    assert refused.status == 2
    refused = run("solve", "--state", state, "--bpw", 5, "--types", "mlx_q4_g64")
    assert refused.status == 2
    assert "--family mlx" in refused.err


def test_looking_at_recipes_and_editing_them(run, state, here):
    assert run("solve", "--state", state, "--bpw", 5, "-o", "gguf.json").status == 0
    assert run("solve", "--state", state, "--family", "mlx", "--bpw", 5).status == 0
    assert '"family"' not in Path("gguf.json").read_text()
    shown = run("inspect", "recipe.json")
    assert shown.status == 0
    assert "of tensors" in shown.out
    assert json.loads(run("inspect", "recipe.json", "--json").out)["family"] == "mlx"
    assert "mlx_q4_g64" in run("inspect", state).out
    compared = run("diff", "gguf.json", "recipe.json", "--state", state)
    assert compared.status == 0
    assert "losses are not all known" not in compared.out
    assert run("import", "recipe.json", "--state", state, "-o", "same.json").status == 0
    assert Path("same.json").read_bytes() == Path("recipe.json").read_bytes()

    lines = Path("recipe.json").read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if "blk.0.attn_q" in line)
    before = json.loads(lines[number].rstrip(","))
    lines[number] = lines[number].replace(before["format"], "mlx_q8_g128")
    Path("edited.json").write_text("\n".join(lines))
    assert run("import", "edited.json", "--state", state, "-o", "new.json").status == 0
    old, new = load_recipe(Path("recipe.json")), load_recipe(Path("new.json"))
    assert new.family == "mlx"
    assert new.formats == old.formats | {"blk.0.attn_q.weight": "mlx_q8_g128"}
    assert new.size - old.size == prod(before["shape"]) * 8.25 / 8 - before["bytes"]
    assert recount(load_recipe(Path("edited.json")))[0].size == new.size
    small = old.tensors[0].model_copy(
        update={"shape": (32, 1), "format": "mlx_q3_g32", "bytes": 12, "why": "solved"}
    )  # as 2 bits
    recipe = old.model_copy(update={"tensors": (small,), "size": 12})
    assert recount(recipe)[0].size == 16  # 3 bits, nothing between tensors
    assert run("export", "edited.json", "--to", "mlx-lm").status == 0

    Path("edited.json").write_text("\n".join(lines).replace("mlx_q8_g128", "q8_0"))
    for command in (["export", "edited.json", "--to", "mlx-lm"], ["import", "edited.json", "--state", state, "-f"]):
        refused = run(*command)
        assert refused.status == 1
        assert "none of MLX's affine formats" in refused.err
