"""Devices, active bytes, ties and explanations on tiny states, against a search through all recipes."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import BudgetError, StateFileError, UsageError
from planner.formats.ggml import select_formats
from planner.plan.limits import SizeLimit, size_limits
from planner.plan.request import PlanRequest
from planner.plan.rules import parse_device, parse_rule, parse_tie
from planner.report import explanation
from planner.sizes import parse_size
from state import StateCorrupt, Store
from tests.tiny import HEADER, WHOLE_FILE, Load, Search, padded, write

# Two of four experts, a router, an output of its own: nine tensors of which six have a choice
MIXTURE = {
    "token_embd.weight": (256, 24),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.attn_q.weight": (256, 12),
    "blk.0.attn_k.weight": (256, 7),
    "blk.0.ffn_gate_inp.weight": (256, 4),
    "blk.1.ffn_gate_exps.weight": (256, 3, 4),
    "blk.1.ffn_up_exps.weight": (256, 3, 4),
    "output_norm.weight": (256,),
    "output.weight": (256, 24),
}
EXPERTS = {"expert_count": 4, "expert_used_count": 2}
# What generating one token reads of each, spelt out
ACTIVE = {
    **dict.fromkeys(MIXTURE, Fraction(1)),
    "token_embd.weight": Fraction(1, 24),
    "blk.1.ffn_gate_exps.weight": Fraction(1, 2),
    "blk.1.ffn_up_exps.weight": Fraction(1, 2),
}
READ = Load(lambda name, nbytes: int(ACTIVE[name] * nbytes))
DEVICES = {
    "gpu": (r"^blk\.0\.|norm", lambda name: name.startswith("blk.0.") or "norm" in name),
    "cpu": (r"exps|attn", lambda name: "exps" in name),  # attn has gone to the first
}
TIES = {
    "fused": [{"blk.0.attn_q.weight", "blk.0.attn_k.weight"},
              {"blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"}],
    r"attn_[qk]\.": [{"blk.0.attn_q.weight", "blk.0.attn_k.weight"}],
    "token|output": [{"token_embd.weight", "output.weight"}],
}  # fmt: skip
LIMITS = settings(max_examples=60, deadline=None)


def on(owner):
    return Load(lambda name, nbytes: padded(nbytes) if owner(name) else 0)


LOADS = {"file": WHOLE_FILE, "active": READ, **{name: on(owner) for name, (_, owner) in DEVICES.items()}}


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    return [write(folder / f"{seed}.planner", MIXTURE, seed, metadata=EXPERTS) for seed in range(3)]


def request(capacities, ties=(), **more):
    """The request for limits by name."""
    return {
        "budget": capacities.get("file"),
        "active": capacities.get("active"),
        "devices": tuple(
            parse_device(f"{name}:{pattern}={capacities[name]}")
            for name, (pattern, _) in DEVICES.items()
            if name in capacities
        ),
        "ties": tuple(tie for text in ties for tie in parse_tie(text)),
        **more,
    }


def limits_of(capacities):
    return [(LOADS[name], capacity) for name, capacity in capacities.items()]


def check(tiny, made, capacities, ties):
    """What the plan says of itself is so."""
    chosen = {choice.name: (choice.format, choice.bytes) for choice in made.recipe.tensors if choice.name in tiny.free}
    assert {name: tiny.free[name][fmt][0] for name, (fmt, _) in chosen.items()} == {
        name: nbytes for name, (_, nbytes) in chosen.items()
    }
    for tie in ties:
        assert len({chosen[name][0] for name in tie}) == 1
    assert [limit.name for limit in made.limits] == [
        name for name in ("file", "gpu", "cpu", "active") if name in capacities
    ]
    for limit in made.limits:
        assert limit.capacity == capacities[limit.name]
        assert limit.used == LOADS[limit.name].of(tiny, {name: nbytes for name, (_, nbytes) in chosen.items()})
        assert limit.used <= limit.capacity
    assert made.recipe.size == WHOLE_FILE.of(tiny, {name: nbytes for name, (_, nbytes) in chosen.items()})


@st.composite
def some_limits(draw, lowest=0.0, least=1):
    names = draw(st.sets(st.sampled_from(sorted(LOADS)), min_size=least))
    if "cpu" in names:
        names.add("gpu")  # which takes what comes first
    return {name: draw(st.floats(lowest, 1.0)) for name in sorted(names)}


def capacities_for(search, shares):
    """Capacities that lie so far between the least and the most that all choices weigh."""
    found = {}
    for name, share in shares.items():
        weights = search.weights(LOADS[name])
        found[name] = round(weights.min() + share * (weights.max() - weights.min()))
    return found


@LIMITS
@given(which=st.integers(0, 2), shares=some_limits(), texts=st.sets(st.sampled_from(sorted(TIES))))
def test_plans_under_several_limits_are_the_best_of_all_recipes(mixtures, which, shares, texts):
    tiny, ties = mixtures[which], [tie for text in texts for tie in TIES[text]]
    search = Search(tiny, ties)
    capacities = capacities_for(search, shares)
    least = search.least(limits_of(capacities))
    assert least is not None  # the smallest formats are the smallest under every limit
    made = tiny.plan(**request(capacities, texts))
    assert made.recipe.loss == pytest.approx(least, rel=1e-9, abs=1e-15)
    assert made.recipe.bound <= least * (1 + 1e-9)
    check(tiny, made, capacities, ties)


OPTIONS = {
    "--device slow": "slow",
    "--budget": "file",
    "--active-budget": "active",
    "--device gpu": "gpu",
    "--device cpu": "cpu",
}


def cures(error):
    """What a message advises: for each of its alternatives, limit → bytes."""
    advice = re.fullmatch(r"Raise (.*); or allow smaller formats .*", error.remedy)[1]
    found = []
    for alternative in advice.split(", or "):
        steps = [
            re.fullmatch(r"(.+) to (?:[\d.]+ [kM]B \((\d+) bytes\)|(\d+) bytes)", step)
            for step in alternative.split(" and ")
        ]
        found.append({OPTIONS[step[1]]: int(step[2] or step[3]) for step in steps})
    return found


@LIMITS
@given(which=st.integers(0, 2), shares=some_limits(lowest=-0.4, least=2), texts=st.sets(st.sampled_from(sorted(TIES))))
def test_what_a_message_advises_helps_and_is_the_least_that_does(mixtures, which, shares, texts):
    tiny, ties = mixtures[which], [tie for text in texts for tie in TIES[text]]
    search = Search(tiny, ties)
    capacities = {name: max(0, capacity) for name, capacity in capacities_for(search, shares).items()}
    if search.least(limits_of(capacities)) is not None:
        return
    with pytest.raises(BudgetError) as caught:
        tiny.plan(**request(capacities, texts))
    problem, advised = caught.value.problem, cures(caught.value)
    assert advised
    for cure in advised:
        assert all(capacity > capacities[name] for name, capacity in cure.items())
        cured = {**capacities, **cure}
        assert tiny.plan(**request(cured, texts)).recipe.loss == pytest.approx(search.least(limits_of(cured)))
        for name, capacity in cure.items():
            assert search.least(limits_of({**cured, name: capacity - 1})) is None
    (cure,) = advised  # smaller formats are smaller under every limit, so that none stands against another
    alone = {name: int(search.weights(LOADS[name]).min()) for name in capacities}
    assert cure == {name: least for name, least in alone.items() if least > capacities[name]}
    (named,) = [name for name in cure if re.match(r"\d" if name == "file" else f"{name}: ", problem)]
    assert re.search(rf"below the minimum of ([\d.]+ kB \({cure[named]} bytes\)|{cure[named]} bytes)\. Of it", problem)


def test_limits_that_stand_against_each_other(mixtures, monkeypatch):
    """Bytes alone never do; a limit that large formats help to hold would, such as one on decoding time."""
    tiny = mixtures[0]
    slow = Load(lambda name, nbytes: 20_000 - nbytes)
    search = Search(tiny)

    def with_slow(inventory, fixed, **request):
        found = size_limits(inventory, fixed, **request)
        return [
            *found,
            SizeLimit("slow", 150_000, slow.of(tiny, {}), lambda tensor, nbytes: slow.weigh(tensor.name, nbytes)),
        ]

    monkeypatch.setattr("planner.plan.plan.size_limits", with_slow)
    limits = [(WHOLE_FILE, 20_000), (slow, 150_000)]
    assert search.least(limits) is None
    assert all(search.least([limit]) is not None for limit in limits)
    with pytest.raises(BudgetError, match=r"cannot hold together: 20\.00 kB .*; slow: 150\.00 kB") as caught:
        tiny.plan(budget=20_000)
    first, second = cures(caught.value)
    for cure, kept in ((first, slow), (second, WHOLE_FILE)):
        ((name, capacity),) = cure.items()
        raised = WHOLE_FILE if name == "file" else slow
        others = [(load, most) for load, most in limits if load is kept]
        assert search.least([*others, (raised, capacity)]) is not None
        assert search.least([*others, (raised, capacity - 1)]) is None


def read_in_q8_0(tiny, expected):
    """That all in q8_0 needs just so many active bytes."""
    pins = (parse_rule("=q8_0"),)
    assert tiny.plan(pins=pins, active=expected).limits[0].used == expected
    with pytest.raises(BudgetError, match="below the minimum"):
        tiny.plan(pins=pins, active=expected - 1)


def test_active_bytes_of_experts_and_of_embeddings(mixtures, tmp_path):
    row = 272  # bytes of 256 weights in q8_0
    others = row * (12 + 7 + 24) + 1024 * (1 + 4 + 1)  # the output among them; norms and the router in F32
    half = 2 * row * 3 * 2
    read_in_q8_0(mixtures[0], others + row + half)
    # of an embedding that is the output too, all is read
    shapes = {name: shape for name, shape in MIXTURE.items() if name != "output.weight"}
    read_in_q8_0(write(tmp_path / "tied.planner", shapes, metadata=EXPERTS), others + half)
    # where nothing is said of experts, all of them are
    read_in_q8_0(write(tmp_path / "unsaid.planner", MIXTURE), others + row + 2 * half)
    read_in_q8_0(write(tmp_path / "all.planner", MIXTURE, metadata={"expert_count": 4}), others + row + 2 * half)


def test_what_only_looks_like_experts_or_embeddings(tmp_path):
    row = 272
    shapes = {
        "per_layer_token_embd.weight": (256, 10),  # Gemma: a row, also where the output is tied
        "token_embd.weight": (256, 10),
        "blk.0.ffn_up_exps.weight": (256, 4, 3),  # three matrices, though the model is said to have four experts
        "blk.0.ffn_up_shexp.weight": (256, 4),  # the shared expert is read every time
    }
    read_in_q8_0(write(tmp_path / "like.planner", shapes, metadata=EXPERTS), row * (1 + 10 + 12 + 4))


def test_experts_that_do_not_divide(tmp_path):
    """Seven experts of which two are read: the bytes are exact all the same."""
    shapes = {"blk.0.ffn_up_exps.weight": (256, 5, 7), "blk.0.ffn_down_exps.weight": (256, 3, 7)}
    tiny = write(tmp_path / "seven.planner", shapes, metadata={"expert_count": 7, "expert_used_count": 2})
    two = Load(lambda name, nbytes: nbytes // 7 * 2)
    search = Search(tiny)
    for capacity in sorted(set(search.weights(two).astype(int).tolist()))[:-1]:
        made = tiny.plan(active=capacity)
        assert made.recipe.loss == pytest.approx(search.least([(two, capacity)]))
        assert made.limits[0].used <= capacity


def test_tensors_that_stay_count_on_their_device(mixtures):
    tiny = mixtures[0]
    stays = sum(padded(nbytes) for nbytes in tiny.fixed.values())
    made = tiny.plan(budget=60_000, devices=(parse_device(f"gpu:norm|gate_inp={stays}"),))
    assert [limit.used for limit in made.limits if limit.name == "gpu"] == [stays]
    with pytest.raises(BudgetError) as caught:
        tiny.plan(budget=60_000, devices=(parse_device(f"gpu:norm|gate_inp={stays - 1}"),))
    assert caught.value.problem.startswith("gpu: 6.14 kB (6143 bytes) is below the minimum of 6.15 kB (6144 bytes).")
    assert "leaves alone 6.14 kB (6144 bytes)" in caught.value.problem
    assert "largest" not in caught.value.problem  # nothing else is there
    assert cures(caught.value) == [{"gpu": stays}]


def test_all_limits_below_their_minimum_are_cured_at_once(mixtures):
    search = Search(mixtures[0])
    least = {name: int(search.weights(LOADS[name]).min()) for name in ("file", "gpu", "active")}
    with pytest.raises(BudgetError) as caught:
        mixtures[0].plan(**request({name: capacity - 1 for name, capacity in least.items()}))
    (cure,) = cures(caught.value)
    assert cure == least


def test_the_minimum_in_bits_can_be_asked_for(mixtures):
    tiny = mixtures[0]
    with pytest.raises(BudgetError) as caught:
        tiny.plan(bpw=Fraction("0.5"))
    (least,) = re.findall(r"--bpw to ([\d.]+) bpw", caught.value.remedy)
    smallest = tiny.plan(bpw=Fraction(least))
    assert float(smallest.recipe.bpw) <= float(least) < smallest.recipe.bpw + 1e-4


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), pins=st.sampled_from([(), ("=q4_K",), ("attn=q8_0",)]))
def test_the_size_that_is_printed_can_be_asked_for(tmp_path_factory, seed, pins):
    """However the digits were rounded that stand for the smallest recipe."""
    rng = np.random.default_rng(seed)
    shapes = {name: (256, *rng.integers(1, 90, len(shape) - 1).tolist()) for name, shape in MIXTURE.items()}
    tiny = write(tmp_path_factory.mktemp("sizes") / "s.planner", shapes)
    rules = tuple(map(parse_rule, pins))
    with pytest.raises(BudgetError) as caught:
        tiny.plan(bpw=Fraction("0.1"), pins=rules)
    (least,) = re.findall(r"minimum of ([\d.]+) bpw", caught.value.problem)
    smallest = tiny.plan(bpw=Fraction(least), pins=rules).recipe
    down = Fraction(least) - Fraction(1, 10_000)
    for bits in {Fraction(f"{smallest.bpw:.4f}"), *([down] if down < smallest.bpw else [])}:
        made = tiny.plan(bpw=bits, pins=rules)
        assert made.recipe.size == smallest.size
        assert made.limits[0].used <= made.limits[0].capacity
    with pytest.raises(BudgetError):
        tiny.plan(bpw=down - Fraction(1, 10_000), pins=rules)


def pasted(text):
    """A size as a message says it, without the exact one in parentheses."""
    return parse_size(text.split(" (")[0])


@LIMITS
@given(which=st.integers(0, 2), name=st.sampled_from(sorted({*LOADS} - {"cpu"})), pinned=st.booleans())
def test_the_minimum_in_any_unit_can_be_asked_for(mixtures, which, name, pinned):
    pins = {"pins": (parse_rule("attn=q8_0"),)} if pinned else {}
    with pytest.raises(BudgetError) as caught:
        mixtures[which].plan(**request({name: 1}), **pins)
    least = pasted(re.search(r"below the minimum of (.+?)\. Of it", caught.value.problem)[1])
    assert pasted(re.search(r"Raise --\S+(?: gpu)? to (.+?); or", caught.value.remedy)[1]) == least
    (limit,) = mixtures[which].plan(**request({name: least}), **pins).limits
    assert limit.used <= least


def test_limits_that_leave_nothing_to_decide(mixtures):
    tiny, search = mixtures[0], Search(mixtures[0])
    most = {name: int(search.weights(LOADS[name]).max()) for name in ("file", "gpu")}
    for wide in ({name: capacity + 1 for name, capacity in most.items()}, dict.fromkeys(LOADS, 10**29)):
        made = tiny.plan(**request(wide))
        assert (made.recipe.loss, made.recipe.gap, made.recipe.size) == (0, 0, most["file"])
        assert not any(limit.binds for limit in made.limits)
    # one that decides says so
    uses = tiny.plan(**request({"file": most["file"] - 1, "gpu": 10**29})).limits
    assert {limit.name: limit.binds for limit in uses} == {"file": True, "gpu": False}
    # what is pinned is what there is
    everything = (parse_rule("=q4_K"),)
    made = tiny.plan(bpw=Fraction(16), pins=everything)
    assert made.recipe.loss == Search(tiny, pins=dict.fromkeys(tiny.free, "q4_K")).losses[0]
    assert not made.limits[0].binds
    # one that decides is enough, and another may be as wide as it likes
    assert tiny.plan(**request({"file": most["file"] - 1, "gpu": 10**29})).recipe.loss > 0
    assert tiny.plan(**request({"file": most["file"], "gpu": most["gpu"] + 1})).recipe.loss == 0


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (["file:.=1GB"], "'file' is what another limit is called"),
        (["bpw:.=1GB"], "'bpw' is what another limit is called"),
        (["active:.=1GB"], "'active' is what another limit is called"),
        (["gpu:attn=1GB", "gpu:ffn=1GB"], "there is a device 'gpu' already"),
    ],
)
def test_names_of_devices(devices, words):
    with pytest.raises(UsageError, match=words) as caught:
        PlanRequest(budget=1, devices=tuple(map(parse_device, devices)))
    assert caught.value.remedy


def test_a_request_without_limits():
    with pytest.raises(UsageError, match="Give the size"):
        PlanRequest()


def test_a_pin_on_one_of_a_tie_is_for_all_of_it(mixtures):
    tiny = mixtures[0]
    made = tiny.plan(budget=25_000, ties=parse_tie("fused"), pins=(parse_rule("attn_k=q4_K"),))
    assert made.recipe.formats["blk.0.attn_q.weight"] == made.recipe.formats["blk.0.attn_k.weight"] == "q4_K"
    search = Search(tiny, TIES["fused"], {"blk.0.attn_k.weight": "q4_K"})
    assert made.recipe.loss == pytest.approx(search.least([(WHOLE_FILE, 25_000)]))
    with pytest.raises(BudgetError) as caught:
        tiny.plan(budget=HEADER, ties=parse_tie("fused"), pins=(parse_rule("attn_k=q4_K"),))
    pinned = padded(144 * 12) + padded(144 * 7)
    assert f"pins take {pinned / 1000:.2f} kB ({pinned} bytes)" in caught.value.problem


def test_ties_that_cannot_be(mixtures):
    pins = tuple(map(parse_rule, ("attn_q=q8_0", "attn_k=q4_K")))
    with pytest.raises(
        UsageError, match=r"tied: blk\.0\.attn_q\.weight can be q8_0; blk\.0\.attn_k\.weight can be q4_K"
    ):
        mixtures[0].plan(budget=50_000, ties=parse_tie("fused"), pins=pins)


def test_a_tie_of_other_widths_and_types_takes_what_all_can(tmp_path):
    names = ["blk.0.attn_q.weight", "blk.0.attn_k.weight"]
    sources = dict(zip(names, ("f16", "bf16"), strict=True))
    tiny = write(tmp_path / "s.planner", dict(zip(names, ((256, 8), (96, 8)), strict=True)), sources=sources)
    most = HEADER + 2 * (padded(272 * 8) + padded(102 * 8))
    # 96 is no multiple of the K-quants' 256, and f16 is not bf16: q8_0 remains
    assert set(tiny.plan(budget=most // 2 + 500, ties=parse_tie("fused")).recipe.formats.values()) == {"q8_0"}
    with pytest.raises(
        UsageError, match=r"attn_q\.weight can be .*f16.*; blk\.0\.attn_k\.weight can be .*bf16"
    ) as caught:
        tiny.plan(budget=most, ties=parse_tie("fused"), formats=select_formats("q4_K"))
    assert "--types" in caught.value.remedy


@LIMITS
@given(which=st.integers(0, 2), shares=some_limits(lowest=0.3), texts=st.sets(st.sampled_from(sorted(TIES))))
def test_explanations_are_true(mixtures, which, shares, texts):
    tiny, ties = mixtures[which], [tie for text in texts for tie in TIES[text]]
    search = Search(tiny, ties)
    capacities = capacities_for(search, shares)
    made = tiny.plan(**request(capacities, texts))
    now = {choice.name: choice.format for choice in made.recipe.tensors if choice.name in tiny.free}

    def bytes_of(formats):
        return {name: tiny.free[name][fmt][0] for name, fmt in formats.items()}

    def loss_of(formats):
        return sum(tiny.free[name][fmt][1] for name, fmt in formats.items())

    for name in tiny.free:
        group = {name}.union(*(tie for tie in ties if name in tie))
        assert {name, *made.tied_to(name)} == group
        told, text = made.explain(name), re.sub(r"\n {10}(?!loss)", " ", explanation(made, name))
        assert text.startswith(f"{name} as {now[name]}: ")
        common = set.intersection(*(set(tiny.free[member]) for member in group))
        changes = {fmt: loss_of({**now, **dict.fromkeys(group, fmt)}) - loss_of(now) for fmt in common}
        for step, word, sign in ((told.better, "better", -1), (told.worse, "worse", 1)):
            beside = [sign * change for change in changes.values() if sign * change > 1e-15]
            (line,) = re.findall(rf"^  {word} .*$", text, re.MULTILINE)
            if step is None:
                assert line.split() == [word, "none"]
                assert not beside
                continue
            changed = {**now, **dict.fromkeys(group, step.option.label)}
            assert step.loss == pytest.approx(changes[step.option.label], abs=1e-15)
            assert sign * step.loss == pytest.approx(min(beside), rel=1e-9, abs=1e-15)
            loads = {limit.name: LOADS[limit.name].of(tiny, bytes_of(changed)) for limit in made.limits}
            over = [limit.name for limit in made.limits if loads[limit.name] > limit.capacity]
            assert step.fits == (not over)
            assert line.endswith(f"; over {', '.join(over)}" if over else "; fits")
            assert f" {step.option.label} " in line
            assert f"{step.bytes:+,} bytes" in line
        assert max(map(len, explanation(made, name).splitlines())) <= 80
        prices = re.findall(r"loss (\S+) a byte of (\w+)$", text, re.MULTILINE)
        assert prices == [(f"{limit.price:.3g}", limit.name) for limit in made.limits]


def test_explanations_of_what_is_not_there(mixtures):
    made = mixtures[0].plan(budget=50_000)
    with pytest.raises(UsageError, match=r"blk\.0\.attn_q is not a tensor") as caught:
        made.explain("blk.0.attn_q")
    assert "blk.0.attn_q.weight" in caught.value.remedy
    with pytest.raises(UsageError, match=r"output_norm\.weight is not a tensor that a format was chosen for"):
        made.explain("output_norm.weight")


def test_a_state_with_numbers_beyond_all_sense_is_refused(tmp_path):
    """A tensor of 2**62 bytes: the sum leaves 64 bits."""
    tiny = write(tmp_path / "huge.planner", {"output.weight": (256, 2**53)})
    with pytest.raises(StateFileError, match="What the state holds cannot be") as caught:
        tiny.plan(budget=10**9)
    assert "Measure the model again" in caught.value.remedy


@pytest.mark.parametrize(
    "change", [{"row_length": 0}, {"row_length": 7}, {"elements": 10}, {"source_format": "q99_K"}, {"alignment": 0}]
)
def test_an_inventory_that_makes_no_sense_is_refused(change, tmp_path):
    tiny = write(tmp_path / "s.planner", {"output.weight": (256, 2)})
    with Store.open(tiny.path) as store:
        inventory = store.inventory()
        (tensor,) = inventory.tensors
        store.set_inventory(
            inventory.model_copy(update=change)
            if "alignment" in change
            else inventory.model_copy(update={"tensors": (tensor.model_copy(update=change),)})
        )
    with pytest.raises((StateFileError, StateCorrupt), match=r"What the state holds cannot be|is damaged"):
        tiny.plan(budget=10**6)


def test_words_where_numbers_should_be(tmp_path):
    words = {"block_count": "many", "expert_count": "some", "sampling.seed": "x", "sampling.tolerance": "y"}
    shapes = {"token_embd.weight": (256, 2), "output.weight": (256, 2)}
    recipe = write(tmp_path / "s.planner", shapes, metadata=words).plan(budget=HEADER + 1000).recipe
    assert (recipe.seed, recipe.tolerance) == (0, 0)


def test_the_search_itself(tmp_path):
    """Three recipes that can be counted on fingers."""
    tiny = write(tmp_path / "one.planner", {"output.weight": (256, 1)}, measured=("q8_0", "q4_K"))
    search = Search(tiny)
    assert sorted(search.weights(WHOLE_FILE).tolist()) == [HEADER + 160, HEADER + 288, HEADER + 512]
    assert search.least([(WHOLE_FILE, HEADER + 159)]) is None
    assert search.least([(WHOLE_FILE, HEADER + 511)]) == tiny.free["output.weight"]["q8_0"][1]
    assert np.count_nonzero(search.losses) == 2
