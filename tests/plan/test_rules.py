"""Devices and ties by themselves: what is written, which tensors it finds, and what cannot be meant."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import UsageError
from planner.plan.rules import assign_devices, parse_device, parse_tie, tied
from state import Store
from tests.tiny import write

NAMES = (
    "token_embd.weight", "output_norm.weight",
    *(f"blk.{block}.{role}.weight" for block in (0, 1, 10)
      for role in ("attn_norm", "attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down")),
    *(f"{side}.blk.{block}.attn_{role}.weight" for side in ("enc", "dec") for block in (0, 1) for role in "qk"),
    "output.weight",
)  # fmt: skip
PATTERNS = (
    ".", "attn", r"attn_[qk]\.", r"attn_[kv]\.", r"ffn_(gate|up)", r"ffn_(up|down)", r"blk\.1\.", r"^blk\.0", "enc",
    "output", "norm",
)  # fmt: skip
RULES = settings(max_examples=300, deadline=None)


def of(path, names):
    write(path, {name: (256,) if "norm" in name else (256, 2) for name in names}, measured=("q8_0",))
    with Store.open(path, read_only=True) as store:
        return store.inventory()


@pytest.fixture(scope="module")
def inventory(tmp_path_factory):
    return of(tmp_path_factory.mktemp("rules") / "rules.planner", NAMES)


def test_what_a_device_is_made_of():
    device = parse_device(r"gpu:(?:blk\.\d+=?)\..*=1.5GiB")
    assert (device.name, device.pattern.pattern, device.capacity) == ("gpu", r"(?:blk\.\d+=?)\..*", 3 * 2**29)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not of the form NAME:REGEX=SIZE"),
        ("gpu", "not of the form NAME:REGEX=SIZE"),
        ("gpu=8GB", "not of the form NAME:REGEX=SIZE"),
        ("gpu:.*", "not of the form NAME:REGEX=SIZE"),
        (":.*=8GB", "not of the form NAME:REGEX=SIZE"),
        ("gpu:.*=", "'' is not a size"),
        ("gpu:.*=much", "'much' is not a size"),
        ("gpu:.*=-8GB", "'-8GB' is not a size"),
        ("gpu:(=8GB", "is not a regular expression"),
        ("gpu:*=8GB", "is not a regular expression"),
    ],
)
def test_devices_that_cannot_be_meant(text, words):
    with pytest.raises(UsageError, match=words) as caught:
        parse_device(text)
    assert caught.value.remedy


@RULES
@given(patterns=st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=4))
def test_a_tensor_goes_to_the_first_device_that_matches(inventory, patterns):
    devices = [parse_device(f"d{number}:{pattern}=1GB") for number, pattern in enumerate(patterns)]
    wanted = {}
    for name in NAMES:
        owners = [device for device in devices if re.search(device.pattern.pattern, name)]
        if owners:
            wanted[name] = owners[0].name
    if len(set(wanted.values())) < len(devices):
        with pytest.raises(UsageError, match="devices before it have taken every tensor"):
            assign_devices(devices, inventory)
    else:
        assert {name: device.name for name, device in assign_devices(devices, inventory).items()} == wanted


def test_a_device_that_finds_nothing(inventory):
    with pytest.raises(UsageError, match=r"--device gpu:ffn_dwn=1GB: no tensor's name matches") as caught:
        assign_devices([parse_device("gpu:ffn_dwn=1GB")], inventory)
    assert "ffn_down" in caught.value.remedy


def block_of(name):
    parts = name.split(".")
    return ".".join(parts[: parts.index("blk") + 2]) if "blk" in parts else None


def by_merging(texts):
    """Groups as a set of sets, by merging sets that share a tensor until none do."""
    free = [name for name in NAMES if "norm" not in name]
    groups = [{name} for name in free]
    for text in texts:
        fused = [r"attn_[qkv]\.", r"ffn_(gate|up)\."]
        for pattern in fused if text == "fused" else [text]:
            hits = [name for name in free if re.search(pattern, name)]
            blocks = {block_of(name) for name in hits}
            groups += [{name for name in hits if block_of(name) == block} for block in blocks]
    merged = True
    while merged:
        merged = False
        for one in groups:
            for other in groups:
                if one is not other and one & other:
                    one |= other
                    groups.remove(other)
                    merged = True
                    break
            if merged:
                break
    return {frozenset(group) for group in groups}


@RULES
@given(texts=st.lists(st.sampled_from([*PATTERNS[:-2], "fused"]), max_size=3))
def test_ties_join_the_tensors_of_a_block_and_each_other(inventory, texts):
    groups = tied([tie for text in texts for tie in parse_tie(text)], inventory)
    assert {frozenset(group) for group in groups} == by_merging(texts)
    order = [NAMES.index(group[0]) for group in groups]
    assert order == sorted(order)
    assert all([NAMES.index(name) for name in group] == sorted(map(NAMES.index, group)) for group in groups)


def test_blocks_of_an_encoder_and_a_decoder_are_different_ones(inventory):
    groups = tied(parse_tie("fused"), inventory)
    assert ["enc.blk.0.attn_q.weight", "enc.blk.0.attn_k.weight"] in groups
    assert ["dec.blk.1.attn_q.weight", "dec.blk.1.attn_k.weight"] in groups


def test_fused_are_the_sets_of_fused_kernels(tmp_path):
    kinds = ("ffn_gate", "ffn_up", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_exps")
    names = [f"blk.0.{kind}.weight" for kind in (*kinds, "attn_q", "attn_k", "attn_v", "attn_q_a", "attn_output")]
    groups = tied(parse_tie("fused"), of(tmp_path / "s.planner", names))
    found = {tuple(name.split(".")[2] for name in group) for group in groups if len(group) > 1}
    assert found == {
        ("ffn_gate", "ffn_up"),
        ("ffn_gate_exps", "ffn_up_exps"),
        ("ffn_gate_shexp", "ffn_up_shexp"),
        ("attn_q", "attn_k", "attn_v"),
    }


@pytest.mark.parametrize("text", ["nothing_like_it", "norm", "attn_v", r"token_embd|blk\.0\.ffn_down"])
def test_a_tie_that_joins_nothing(inventory, text):
    with pytest.raises(UsageError, match=f"--tie {re.escape(text)} joins nothing") as caught:
        tied([*parse_tie("fused"), *parse_tie(text)], inventory)
    assert caught.value.remedy


def test_fused_where_a_model_has_them_fused_already(tmp_path):
    names = ["blk.0.attn_qkv.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"]
    assert tied(parse_tie("fused"), of(tmp_path / "one.planner", names)) == [[name] for name in names]
    with pytest.raises(UsageError, match="--tie fused joins nothing"):
        tied(parse_tie("fused"), of(tmp_path / "two.planner", ["output.weight"]))


def test_ties_that_are_no_patterns():
    with pytest.raises(UsageError, match="is not a regular expression"):
        parse_tie("(")
