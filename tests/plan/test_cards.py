"""A card's memory as a limit: on tiny states against a search through all recipes, and for the bundled model."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import BudgetError, ModelError, StateFileError, UsageError, option
from planner.fit import RESERVE, Context
from planner.plan.cards import Fit, parse_fit
from planner.plan.rules import parse_device, parse_rule, parse_tie
from planner.plan.target import Target
from planner.report import memory_lines
from planner.sizes import parse_size
from tests.tiny import Load, Search, padded, write

SHAPES = {
    "token_embd.weight": (256, 24),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.attn_q.weight": (256, 12),
    "blk.0.attn_k.weight": (256, 7),
    "blk.0.ffn_up.weight": (256, 9),
    "blk.1.attn_q.weight": (256, 12),
    "blk.1.attn_v.weight": (256, 5),
    "output.weight": (256, 24),
}
HEADS = {"embedding_length": 256, "attention.head_count": 4, "attention.head_count_kv": 2}
TOKEN = 2 * 64 * 2 * 2  # bytes a layer: two heads of 64, keys and values, two bytes each
EVEN = settings(max_examples=40, deadline=None)


def aligned(nbytes):
    return -(-nbytes // 128) * 128


ON_CARD = Load(lambda name, nbytes: 0 if name == "token_embd.weight" else aligned(nbytes))
TIED_ON_CARD = Load(lambda _name, nbytes: aligned(nbytes))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cards") / "a.planner", SHAPES, metadata=HEADS)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    shapes = {name: shape for name, shape in SHAPES.items() if name != "output.weight"}
    return write(tmp_path_factory.mktemp("cards") / "tied.planner", shapes, metadata=HEADS)


def fit(vram=None, tokens=512, margin=1000, mmproj=0, **more):
    return Fit(Context(tokens, **more), vram, mmproj, margin)


@EVEN
@given(data=st.data())
def test_the_best_of_all_that_fit(tiny, tied, data):
    for state, load, spare in ((tiny, ON_CARD, {"token_embd.weight": "q8_0"}), (tied, TIED_ON_CARD, {})):
        search = Search(state, pins=spare)  # what no limit counts gets the bits of q8_0
        weights = search.weights(load)
        tokens = data.draw(st.integers(1, 2000), label="tokens")
        cells = -(-tokens // 256) * 256
        beside = 2 * TOKEN * cells + 1000 + 77
        capacity = data.draw(st.integers(int(weights.min()) + beside, int(weights.max()) + beside), label="capacity")
        plan = state.plan(fit=fit(capacity, tokens, mmproj=77))
        assert plan.recipe.loss == pytest.approx(search.least([(load, capacity - beside)]))
        (card,), (limit,) = plan.cards, plan.limits
        bytes_of = {choice.name: choice.bytes for choice in plan.recipe.tensors if choice.name in state.free}
        assert limit.used == load.of(state, bytes_of) + beside <= limit.capacity == capacity
        assert (card.beside.kv, card.beside.mmproj, card.beside.compute) == (2 * TOKEN * cells, 77, 1000)
        assert card.beside.per_token == 2 * TOKEN


def test_what_stays_in_ram_is_no_larger_than_it_is_worth(tiny):
    """q8_0 at most, as long as nothing else is said of its size."""
    card, name = fit(10**9), "token_embd.weight"

    def given(**more):
        return tiny.plan(fit=card, **more).recipe.formats

    assert set(given().values()) == {"f16", "f32", "q8_0"}  # all that is on the card is copied
    assert given()[name] == "q8_0"
    assert given()["output.weight"] == "f16"
    largest = sum(padded(size) for size in tiny.fixed.values()) + 10**6
    for more in (
        {"budget": largest}, {"pins": (parse_rule(f"{name}=f16"),)}, {"floors": (parse_rule(f"{name}=f16"),)},
        {"target": Target(loss=0.0)}, {"ties": parse_tie("token_embd|output")},
    ):  # fmt: skip
        assert given(**more)[name] == "f16", more
    assert given(caps=(parse_rule(f"{name}=q4_K"),))[name] == "q4_K"


@EVEN
@given(st.integers(0, 12000), st.integers(0, 30000), st.integers(1, 1500))
def test_devices_keep_the_context_of_their_attention(tiny, gpu, cpu, tokens):
    """Block 0's attention is on the first, that of block 1 on the second; the encoder is on the first."""
    owners = {"gpu": "blk\\.0\\.attn", "cpu": "ffn|blk\\.1|output"}
    loads = [
        Load(lambda name, nbytes, pattern=re.compile(pattern): padded(nbytes) if pattern.search(name) else 0)
        for pattern in owners.values()
    ]
    kept = TOKEN * -(-tokens // 256) * 256
    beside = [kept + 50 + 9, kept + 50]
    search = Search(tiny)
    weights = [int(search.weights(load).min()) for load in loads]
    capacities = [least + more + extra for least, more, extra in zip(weights, beside, (gpu, cpu), strict=True)]
    devices = tuple(
        parse_device(f"{name}:{pattern}={size}")
        for (name, pattern), size in zip(owners.items(), capacities, strict=True)
    )
    plan = tiny.plan(fit=fit(None, tokens, 50, mmproj=9), devices=devices)
    left = [capacity - more for capacity, more in zip(capacities, beside, strict=True)]
    assert plan.recipe.loss == pytest.approx(search.least(list(zip(loads, left, strict=True))))
    assert [card.beside.total for card in plan.cards] == beside
    assert [limit.capacity for limit in plan.limits] == capacities


def test_other_limits_hold_beside_it(tiny):
    plan = tiny.plan(fit=fit(10**7), budget=30000)
    assert {limit.name for limit in plan.limits} == {"file", "vram"}
    assert plan.recipe.size <= 30000
    assert "vram: 10.00 MB (10000000 bytes) with 512 tokens of context" in plan.recipe.budget


def test_a_device_without_attention_keeps_nothing(tiny):
    devices = parse_device("gpu:attn=10MB"), parse_device("cpu:.=100kB")
    plan = tiny.plan(fit=fit(), devices=devices)
    assert [card.name for card in plan.cards] == ["gpu"]
    with pytest.raises(UsageError, match="no device holds attention"):
        tiny.plan(fit=fit(), devices=(parse_device("gpu:ffn=10MB"),))


def test_what_is_estimated_unless_given(tiny):
    plan = tiny.plan(fit=fit(2 * RESERVE, margin=None))
    (card,) = plan.cards
    assert card.beside.reserve == RESERVE
    assert card.beside.compute > 4 * 512 * 256
    lines = memory_lines(plan)
    assert any("compute buffers" in line for line in lines)
    assert sum("as given" in line for line in lines) == 0


def test_the_error_says_what_would_fit(tiny):
    """Every cure that it names works, and a step beyond does not."""
    room = 60_000 + 2 * TOKEN * 1280
    with pytest.raises(BudgetError) as error:
        tiny.plan(fit=fit(room, 4096))
    text = str(error.value)
    tokens = int(re.search(r"--ctx (\d+)", text)[1])
    least = int(re.search(r"vram to .*?\((\d+) bytes\)", text)[1])
    kind = re.search(r"--kv (\w+)", text)[1]
    assert tiny.plan(fit=fit(room, tokens)).cards
    assert tiny.plan(fit=fit(least, 4096)).cards
    assert tiny.plan(fit=fit(room, 4096, kv=(kind, kind))).cards
    for beyond in (fit(room, tokens + 256), fit(least - 1, 4096)):
        with pytest.raises(BudgetError):
            tiny.plan(fit=beyond)
    with pytest.raises(BudgetError, match="the KV cache alone exceeds it"):
        tiny.plan(fit=fit(100_000, 4096))
    with pytest.raises(BudgetError) as error:  # nothing but more memory would do
        tiny.plan(fit=fit(1000, 4096, margin=10**6))
    assert "ctx" not in error.value.remedy
    assert "kv" not in error.value.remedy


def test_a_state_of_before_says_how_to_go_on(tmp_path):
    old = write(tmp_path / "old.planner", SHAPES)
    with pytest.raises(StateFileError, match="older planner") as error:
        old.plan(fit=fit(10**9))
    assert "planner measure MODEL" in error.value.remedy
    assert old.plan(budget=30000).recipe.size <= 30000


def test_wishes_that_contradict_themselves(tiny):
    device = (parse_device("gpu:attn=1MB"),)
    for wish, match in (
        ({"fit": fit(10**6), "devices": device}, "one card"),
        ({"fit": fit()}, "nothing is there to hold it"),
        ({"fit": fit(10**6), "family": "mlx"}, "does not have these types"),
    ):
        with pytest.raises(UsageError, match=match):
            tiny.plan(**wish)
    with pytest.raises(UsageError, match="what another limit is called"):
        tiny.plan(devices=(parse_device("vram:attn=1MB"),))


NOTHING = dict.fromkeys(("vram", "ctx", "kv", "parallel", "ubatch_size", "mmproj", "margin"))


def test_options_say_nothing_without_a_context(example):
    assert parse_fit(**NOTHING) is None
    for name, value in {"vram": 1, "kv": "f16", "parallel": 1, "ubatch_size": 1, "margin": 0}.items():
        with pytest.raises(UsageError, match=f"{option(name)} says nothing"):
            parse_fit(**NOTHING | {name: value})
    with pytest.raises(ModelError, match="not the encoder"):
        parse_fit(**NOTHING | {"ctx": 512, "mmproj": example.model})
    for wrong in ({"ctx": 0}, {"ctx": "512"}, {"parallel": 0}, {"ubatch_size": 0}, {"margin": -1}):
        with pytest.raises(UsageError, match="out of range"):
            parse_fit(**NOTHING | {"ctx": 512} | wrong)


def test_lines_are_80_columns_wide(tmp_path):
    sizes = {
        "embedding_length": 2**17,
        "attention.head_count": 512,
        "context_length": 512,
        "attention.sliding_window": 9,
    }
    state = write(tmp_path / "wide.planner", SHAPES, metadata=HEADS | sizes)
    wish = Fit(Context(1000000, ("iq4_nl", "iq4_nl"), 16, 2048), parse_size("9TB"), 10**9)
    lines = memory_lines(state.plan(fit=wish))
    assert all(len(line) <= 80 for text in lines for line in text.splitlines()), lines
    assert any("trained on 512 tokens" in line for line in lines)
