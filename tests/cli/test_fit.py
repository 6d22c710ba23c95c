"""`planner solve --vram ... --ctx ...`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest

import planner
from planner.gguf import open_model
from state import Store
from tests.conftest import ok

CARD = ("--vram", "16MB", "--ctx", "512", "--margin", "9MB")
LISTED = ("weights", "KV cache", "recurrent state", "compute buffers", "driver, others", "margin", "mmproj")


def parts_of(text):
    """Part → size as printed, of the lines on memory."""
    return dict(re.findall(rf"^ {{11}}({'|'.join(LISTED)}) +([\d.]+ \w+)", text, re.MULTILINE))


def test_every_part_is_printed(example, cheap, here, run):
    text = ok(run("solve", "--state", cheap, *CARD)).out
    with open_model(example.model) as model:
        rows = sum(tensor.rows for tensor in model.tensors if "attn_k" in tensor.name or "attn_v" in tensor.name)
    per_token = 2 * rows  # each row makes a number of two bytes
    assert parts_of(text).keys() == {"weights", "KV cache", "margin"}
    assert parts_of(text)["KV cache"] == f"{512 * per_token / 1e6:.2f} MB"
    assert f" MB  {per_token:,} bytes a token\n" in text
    assert "vram with -ngl 99 -c 512 -np 1\n" in text
    recipe = json.loads(Path("recipe.json").read_text())
    sizes = {entry["name"]: entry["bytes"] for entry in recipe["tensors"]}
    card = sum(-(-size // 128) * 128 for name, size in sizes.items() if name != "token_embd.weight")
    assert card + 512 * per_token + 9_000_000 <= 16_000_000
    used = float(parts_of(text)["weights"].split()[0])
    assert used == pytest.approx(card / 1e6, abs=0.006)


def test_with_the_model_as_from_the_state(example, here, run):
    """A state of before lacks what is needed; with MODEL it is added."""
    arguments = ("--types", "q8_0,q4_0", "--imatrix", example.sums, "--state", "a.planner", *CARD)
    first = ok(run("solve", example.model, *arguments)).out
    again = ok(run("solve", "--state", "a.planner", "--types", "q8_0,q4_0", *CARD)).out
    assert parts_of(first) == parts_of(again)
    with Store.open(Path("a.planner")) as store:
        inventory = store.inventory()
        kept = {key: value for key, value in inventory.metadata.items() if "length" not in key}
        store.set_inventory(inventory.model_copy(update={"metadata": kept}))
    refused = run("solve", "--state", "a.planner", *CARD)
    assert refused.status == 1
    assert "older planner" in refused.err
    assert parts_of(ok(run("solve", example.model, *arguments)).out) == parts_of(first)


def test_the_library_gives_the_same(cheap, here, run):
    text = ok(run("solve", "--state", cheap, "--vram", "1.2GB", "--ctx", "1000", "--kv", "q8_0,q4_0", "-np", "2")).out
    with planner.open_state(cheap, read_only=True) as state:
        plan = state.solve(vram="1.2GB", ctx=1000, kv="q8_0,q4_0", parallel=2)
        (card,) = plan.cards
        with pytest.raises(planner.PlannerError, match="says nothing without"):
            state.solve(vram="1.2GB")
    assert "-c 1000 -np 2 -ctk q8_0 -ctv q4_0" in text
    assert parts_of(text).keys() == {"weights", "KV cache", "compute buffers", "driver, others"}
    shown = {name: float(size.split()[0]) for name, size in parts_of(text).items()}
    beside = card.beside
    assert shown["KV cache"] == pytest.approx(beside.kv / 1e6, abs=0.006)
    assert shown["compute buffers"] == pytest.approx(beside.compute / 1e6, abs=0.006)
    assert shown["driver, others"] == pytest.approx(beside.reserve / 1e9, abs=0.006)
    (limit,) = plan.limits
    assert limit.used == pytest.approx(beside.total + shown["weights"] * 1e6, abs=6000)


def test_an_encoder_takes_its_tensors(cheap, here, run):
    writer = gguf.GGUFWriter("mmproj.gguf", "clip")
    writer.add_type("mmproj")
    writer.add_tensor("v.patch_embd.weight", np.zeros((100, 256), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text = ok(run("solve", "--state", cheap, *CARD, "--mmproj", "mmproj.gguf")).out
    assert parts_of(text)["mmproj"] == "51.20 kB"
    other = run("solve", "--state", cheap, *CARD, "--mmproj", cheap)
    assert other.status == 1
    assert "mmproj" not in parts_of(ok(run("solve", "--state", cheap, *CARD)).out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--vram", "1GB"), "--vram says nothing without --ctx"),
        (("--ctx", "512"), "Give the card's memory too: --vram 24GiB"),
        (("--vram", "2GB", "--ctx", "512", "--kv", "q9"), "no such type of keys and values"),
        (("--vram", "2GB", "--ctx", "0"), "--ctx"),
        (("--vram", "two", "--ctx", "512"), "'two' is not a size"),
        (("--vram", "24", "--ctx", "512"), "Write the unit too: --vram 24GiB"),
        (("--vram", "2GB", "--ctx", "512", "-np", "1000"), "--parallel 1000 is out of range"),
        (("--vram", "2GB", "--ctx", "512", "--device", "a:blk=1GB"), "for one on several"),
        (("--vram", "2GB", "--ctx", "512", "--family", "mlx"), "does not have these types"),
    ],
)
def test_what_cannot_be_is_refused(cheap, here, run, arguments, said):
    result = run("solve", "--state", cheap, *arguments)
    assert result.status == 2
    assert said in " ".join(result.err.split())


def test_a_card_that_is_too_small(cheap, here, run):
    result = run("solve", "--state", cheap, "--vram", "12MB", "--ctx", "4096", "--margin", "5MB")
    assert result.status == 1
    most = re.search(r"Give at most --ctx (\d+);", result.err)[1]
    text = ok(run("solve", "--state", cheap, "--vram", "12MB", "--ctx", most, "--margin", "5MB")).out
    assert "trained on 512 tokens" in " ".join(text.split())
