"""The table of sensitivities by role: where a value comes from, and that nobody edited it by hand."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.names.gguf import role_of
from planner.sensitivity.prior import BLOCK_MEAN, TIED, Prior, ffn_family, last_block, load_table, nearest, prior

ROOT = Path(__file__).resolve().parents[2]
DENSE = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def dense(blocks: int, *, tied: bool = False) -> list[str]:
    names = [f"blk.{i}.{role}.weight" for i in range(blocks) for role in DENSE]
    return ["token_embd.weight", *([] if tied else ["output.weight"]), *names]


def one(name: str, blocks: int = 9) -> Prior:
    return prior([name, "output.weight"], blocks=blocks)[name]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """benchmarks/fit_prior.py, imported as it sees itself when run: its own folder comes first."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("fit_prior")
    sys.path.remove(str(ROOT / "benchmarks"))


def test_committed_table_is_what_the_script_fits(script: ModuleType) -> None:
    settings = script.Settings()
    files = script.read_all(settings)
    now = json.loads(script.render(script.fit(files, settings), files))
    committed = json.loads(script.TABLE.read_text(encoding="utf-8"))
    for section in ("roles", "last_block"):
        ours, theirs = now.pop(section), committed.pop(section)
        assert ours.keys() == theirs.keys()
        for key, row in ours.items():
            assert row["files"] == theirs[key]["files"]
            # three digits; another BLAS may round the third the other way
            assert row["value"] == pytest.approx(theirs[key]["value"], rel=0.011)
    assert now == committed


def test_fit_recovers_known_roles_above_a_floor(script: ModuleType, tmp_path: Path) -> None:
    """Synthetic tables with a noise floor, a shared value, a failed run and a draft block."""
    truth = dict(zip(DENSE, (0.5, 0.6, 0.9, 1.0, 1.1, 1.8, 2.0), strict=True)) | {"output": 60.0, "token_embd": 8.0}
    floor, settings = 0.003, script.Settings(last=False)
    together = truth["attn_k"] + truth["attn_v"]
    files = []
    for number, name in enumerate(("GLM-a", "Kimi-b", "Qwen3.5-c")):
        rows = ["tensor,shape,source_type,elements,kld_iq1_m", "blk.6.nextn.eh_proj.weight,256x256,bf16,65536,"]
        for block, role in product(range(7), DENSE):
            alone = truth[role] if number or role not in ("attn_k", "attn_v") else together
            kld = floor + (0.004 * alone * 1.3 ** (number + block % 3) if block < 6 else 0)
            text = "404" if (block, role) == (2, "attn_q") else f"{kld:.8f}"
            rows.append(f"blk.{block}.{role}.weight,256x256,bf16,65536,{text}")
        scale = 0.004 * 1.3 ** (number + 1)
        rows += [f"{r}.weight,256x256,bf16,65536,{floor + scale * truth[r]:.8f}" for r in ("output", "token_embd")]
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(rows) + "\n")
        files.append(importlib.import_module("prior_tables").read_published(path, settings))
    assert (0, ("attn_k", "attn_v")) in {(obs.block, obs.roles) for obs in files[0].observations}
    assert [f.floor for f in files] == pytest.approx([floor] * 3)
    assert [f.last for f in files] == [5, 5, 5]
    fitted = script.fit(files, settings)
    centre = math.exp(sum(math.log(truth[role]) for role in DENSE) / 7)
    for role, value in truth.items():
        # shrunk towards 1: the far ones most
        assert math.exp(fitted.roles[role]) == pytest.approx(value / centre, rel=0.35 if value > 5 else 0.12), role


def test_dense_block_has_geometric_mean_one() -> None:
    got = prior(dense(3), blocks=3)
    logs = [math.log(got[f"blk.0.{role}.weight"].value) for role in DENSE]
    assert math.exp(sum(logs) / 7) == pytest.approx(1, rel=0.01)
    assert all(value.exact for value in got.values())


def test_tied_embedding_is_known_by_the_missing_output() -> None:
    tied = prior(dense(2, tied=True), blocks=2)["token_embd.weight"]
    untied = prior(dense(2), blocks=2)
    assert (tied.role, tied.exact) == (TIED, True)
    assert tied.value > untied["output.weight"].value > untied["token_embd.weight"].value > 2
    # the embedding of each layer is not the output's twin
    assert prior(["per_layer_token_embd.weight"], blocks=2)["per_layer_token_embd.weight"].role == "token_embd"


def test_order_that_every_published_model_shows() -> None:
    value = load_table().values
    assert value["attn_k"] < value["attn_v"] < value["attn_output"]
    assert value["attn_k"] < 1 < value["ffn_up"]
    assert value["ssm_alpha"] < 0.3
    assert 20 < value["output"] < 300
    assert value["ffn_down_shexp"] < value["ffn_down_exps"]


def test_last_block_counts_more_only_in_feed_forwards() -> None:
    got = prior(dense(4), blocks=4)
    last, other = got["blk.3.ffn_up.weight"], got["blk.2.ffn_up.weight"]
    assert last.value > 2 * other.value
    assert (last.role, last.exact) == ("ffn_up (last block)", True)
    assert got["blk.3.attn_v.weight"] == got["blk.2.attn_v.weight"]


def test_draft_blocks_do_not_count_as_last() -> None:
    names = [*dense(4), "blk.3.nextn.eh_proj.weight"]
    assert last_block(names, 4) == 2
    got = prior(names, blocks=4)
    assert got["blk.2.ffn_down.weight"].value > got["blk.1.ffn_down.weight"].value
    assert got["blk.3.ffn_down.weight"] == got["blk.2.ffn_down.weight"]  # but as it
    assert last_block(["blk.0.nextn.eh_proj.weight"], 1) == -1
    assert last_block([], 0) == -1


@pytest.mark.parametrize(
    ("name", "role", "exact"),
    [
        ("blk.3.ffn_down_exps.weight", "ffn_down_exps", True),
        ("blk.3.ffn_gate_up_exps.weight", "ffn_up_exps", False),
        ("blk.3.attn_kv_b.weight", "attn_v", False),
        ("blk.3.attn_q_b.weight", "attn_q_b", True),
        ("blk.3.indexer.attn_q_b.weight", "attn_k", False),
        ("blk.3.nextn.eh_proj.weight", "token_embd", False),
        ("blk.3.nextn.shared_head_head.weight", "output", False),
        ("blk.3.cross_attn_k.weight", "attn_k", False),
        ("blk.3.shortconv.out_proj.weight", "attn_output", False),
        ("blk.3.ssm_in.weight", "attn_qkv", False),
        ("blk.3.ssm_dt.weight", "ssm_alpha", False),
        ("blk.3.time_mix_value.weight", "attn_v", False),
        ("blk.3.channel_mix_key.weight", "ffn_up", False),
        ("enc.blk.3.ffn_down.weight", "ffn_down", True),
        ("cls.output.weight", "output", False),
        ("output_norm.weight", BLOCK_MEAN, False),
        ("blk.3.attn_q_norm.weight", BLOCK_MEAN, False),
        ("blk.3.ffn_gate_inp.weight", BLOCK_MEAN, False),
        ("blk.3.never_heard_of.weight", BLOCK_MEAN, False),
    ],
)
def test_a_role_without_a_row_borrows_and_says_so(name: str, role: str, exact: bool) -> None:
    got = one(name)
    assert (got.role, got.exact) == (role, exact)
    assert got.value == load_table().values.get(role, 1.0)


@given(
    st.lists(st.text(max_size=40) | st.from_regex(r"blk\.\d{1,30}\.[a-z_.]{0,30}(weight|bias)?", fullmatch=True)),
    st.integers(0, 99),
)
def test_any_names_get_a_positive_value_each(names: list[str], blocks: int) -> None:
    got = prior(names, blocks=blocks)
    assert got.keys() == set(names)
    assert all(0 < row.value < 1000 and row.role for row in got.values())


@given(st.text(alphabet="abdefgiklmnopqstuvwx_ ()", max_size=30) | st.sampled_from(sorted(load_table().values)))
def test_relatives_end_at_the_block_mean(role: str) -> None:
    seen = [role]
    while seen[-1] != BLOCK_MEAN:
        seen.append(nearest(seen[-1]))
        assert len(seen) < 8


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blk.12.attn_q.bias", (12, "attn_q")),
        ("blk.1.indexer.proj.weight", (1, "indexer.proj")),
        ("v.blk.7.ffn_up.weight", (None, "ffn_up")),
        ("token_embd.weight", (None, "token_embd")),
        ("blk.x.attn_q.weight", (None, "blk.x.attn_q")),
        ("", (None, "")),
    ],
)
def test_role_of(name: str, expected: tuple[int | None, str]) -> None:
    assert role_of(name) == expected


def test_ffn_family() -> None:
    roles = ("ffn_up", "ffn_up_exps", "ffn_gate_shexp", "ffn_gate_inp", "ffn_norm", "attn_q")
    assert [ffn_family(role) for role in roles] == ["ffn", "ffn_exps", "ffn_shexp", None, None, None]
