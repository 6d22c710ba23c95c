"""Plans from made-up states against a search through all recipes; rules, and what happens when they cannot hold."""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import BudgetError, StateFileError, UsageError
from planner.formats.ggml import formats, select_formats
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.plan.rules import parse_device, parse_rule, parse_tie
from planner.recipe import Recipe
from planner.sensitivity import ErrorParts, Facts, sensitivities
from state import Energies, Inventory, Measurement, Store, TensorRecord

NAMES = [
    "token_embd.weight",
    "blk.0.attn_norm.weight",
    "blk.0.attn_q.weight",
    "blk.0.attn_k.weight",
    "blk.0.ffn_down.weight",
    "blk.1.ffn_down.weight",
    "output.weight",
]
FORMATS = ("q2_K", "q4_K", "q8_0")
HEADER = 1000


def key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def record(name: str, rows: int, width: int = 256) -> TensorRecord:
    norm = name.endswith("norm.weight")
    shape = (width,) if norm else (width, rows)
    elements = width * (1 if norm else rows)
    return TensorRecord(
        name=name,
        shape=shape,
        source_format="f32" if norm else "f16",
        elements=elements,
        nbytes=elements * (4 if norm else 2),
        row_length=width,
        left_alone="a vector" if norm else None,
    )


def made_up(path: Path, seed: int, *, imatrix: bool = True, means: bool = True, width: int = 256) -> Path:
    """A finished state of a small model with random errors and energies."""
    rng = random.Random(seed)
    records = tuple(record(name, rng.randrange(1, 40), width) for name in NAMES)
    inventory = Inventory(
        model_name="made up",
        architecture="llama",
        model_digest=key("model", seed),
        model_path="/somewhere/model.gguf",
        header_bytes=HEADER,
        alignment=32,
        imatrix_name="x.imatrix" if imatrix else None,
        imatrix_digest=key("imatrix") if imatrix else None,
        has_means=imatrix and means,
        metadata={"block_count": 2, "sampling.seed": 0, "sampling.tolerance": 0.05},
        tensors=records,
    )
    measured = [
        Measurement(
            key=key(tensor.name, fmt),
            tensor=tensor.name,
            format=fmt,
            err_var=rng.uniform(0.5, 1.5) * 4.0 ** -formats()[fmt].bpw,
            err_mean=rng.uniform(0, 0.1) * 4.0 ** -formats()[fmt].bpw,
            err_massive=0.0,
            stderr=0.0,
            stderr_massive=0.0,
            rows=1,
            kernel_seconds=0.0,
            made_with="x",
        )
        for tensor in records
        if tensor.left_alone is None
        for fmt in FORMATS
        if formats()[fmt].fits(width)
    ]
    energies = [
        Energies(key=key("energies", name), tensor=name, content_digest=key("content", name), values=values)
        for name in NAMES
        if (values := facts(name, rng)) is not None
    ]
    with Store.open(path, create=True) as store:
        store.set_inventory(inventory)
        store.add(measured, energies)
        store.select([entry.key for entry in measured] + [entry.key for entry in energies])
    return path


def facts(name: str, rng: random.Random) -> dict[str, float] | None:
    if "norm" in name or "attn_k" in name:
        return None
    if name == "output.weight":
        return {"output": 12.0}
    energy = rng.uniform(0.1, 10)
    stage = -1.0 if name.startswith("token") else 1.0
    write = 0.0 if "attn_q" in name else energy
    rounding = {"fine": 1e-4 * rng.random(), "coarse": 0.01 * rng.random()}
    return {"var": energy, "mean": energy / 2, "massive": 0.0, "write": write, "stage": stage} | rounding


def plan(path: Path, **request: object):
    with Store.open(path, read_only=True) as store:
        findings = Findings.read(store, request.get("family", "gguf"))
    return make_plan(findings, PlanRequest(**request))  # type: ignore[arg-type]


def padded(nbytes: int) -> int:
    return -(-nbytes // 32) * 32


def everything(path: Path, source: str) -> tuple[list[str], list[list[tuple[str, int, float]]], int, int]:
    """Names, their options (format, bytes, loss), bytes that stay, and elements; without any code of the planner's."""
    with Store.open(path, read_only=True) as store:
        inventory = store.inventory()
        measured = store.measurements(selected=True).values()
        known = {entry.tensor: Facts.from_values(entry.values) for entry in store.energies(selected=True).values()}
    weights = sensitivities(source, [tensor.name for tensor in inventory.tensors], known, blocks=2)
    names, options, fixed, elements = [], [], 0, 0
    for tensor in inventory.tensors:
        elements += tensor.elements
        if tensor.left_alone is not None:
            fixed += padded(tensor.nbytes)
            continue
        own = [(tensor.source_format, tensor.nbytes, 0.0)]
        for entry in measured:
            if entry.tensor == tensor.name:
                block = 256 if formats()[entry.format].block == 256 else 32 * formats()[entry.format].quantized
                loss = weights[tensor.name].loss(ErrorParts(entry.err_var, entry.err_mean, entry.err_massive), block)
                own.append((entry.format, formats()[entry.format].row_bytes(tensor.row_length) * tensor.shape[1], loss))
        names.append(tensor.name)
        options.append(own)
    return names, options, fixed, elements


def best(path: Path, source: str, allowed) -> float | None:
    """The least loss of all recipes that `allowed(names, choice, size, bpw)` allows."""
    names, options, fixed, elements = everything(path, source)
    raw = sum(tensor_bytes for tensor_bytes in [fixed])
    least = None
    for choice in itertools.product(*options):
        size = HEADER + fixed + sum(padded(nbytes) for _, nbytes, _ in choice)
        bpw = Fraction(8 * (raw + sum(nbytes for _, nbytes, _ in choice)), elements)
        if allowed(dict(zip(names, choice, strict=True)), size, bpw):
            loss = sum(loss for _, _, loss in choice)
            least = loss if least is None or loss < least else least
    return least


def between(path: Path, share: float = 0.5) -> int:
    """A budget between the least and the most."""
    _, options, fixed, _ = everything(path, "uniform")
    least, most = (HEADER + fixed + sum(f(padded(n) for _, n, _ in own) for own in options) for f in (min, max))
    return round(least + share * (most - least))


def check(recipe: Recipe, path: Path, source: str) -> None:
    """Whatever the recipe says of itself is so."""
    names, options, fixed, elements = everything(path, source)
    by_name = {
        name: {fmt: (nbytes, loss) for fmt, nbytes, loss in own} for name, own in zip(names, options, strict=True)
    }
    size, loss, raw = HEADER + fixed, 0.0, 0
    for choice in recipe.tensors:
        raw += choice.bytes
        if choice.name not in by_name:
            assert choice.why.startswith("left alone")
            continue
        nbytes, own = by_name[choice.name][choice.format]
        assert (choice.bytes, choice.loss) == (nbytes, pytest.approx(own))
        size += padded(nbytes)
        loss += own
    assert recipe.size == size
    assert recipe.loss == pytest.approx(loss)
    assert recipe.bpw == pytest.approx(8 * raw / elements)
    assert 0 <= recipe.bound <= recipe.loss


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("states")
    return [made_up(folder / f"{seed}.planner", seed) for seed in range(4)]


FAST = settings(max_examples=30, deadline=None)


@FAST
@given(
    which=st.integers(0, 3),
    share=st.floats(0.0, 1.0),
    source=st.sampled_from(["uniform", "prior", "structure", "structure+prior"]),
    by_size=st.booleans(),
)
def test_plans_are_the_best_of_all_recipes(states, which, share, source, by_size):
    path = states[which]
    names, options, fixed, elements = everything(path, source)
    assert len(names) == 6
    if by_size:
        least, most = (HEADER + fixed + sum(f(padded(n) for _, n, _ in own) for own in options) for f in (min, max))
        budget = round(least + share * (most - least))
        made = plan(path, budget=budget, sensitivity=source)
        assert made.recipe.size <= budget
        (limit,) = made.limits
        assert (limit.used, limit.capacity) == (made.recipe.size, budget)
        optimum = best(path, source, lambda _, size, bpw: size <= budget)
    else:
        least, most = (8 * (fixed + sum(f(n for _, n, _ in own) for own in options)) for f in (min, max))
        bits = Fraction(least, elements) + Fraction(share) * Fraction(most - least, elements)
        made = plan(path, bpw=bits, sensitivity=source)
        assert made.recipe.bpw <= float(bits) * (1 + 1e-12)
        optimum = best(path, source, lambda _, size, bpw: bpw <= bits)
    assert made.recipe.loss == pytest.approx(optimum, rel=2e-6)
    assert made.recipe.sensitivity == source
    check(made.recipe, path, source)


def test_rounded_activations_count_where_they_are_rounded(states):
    """On a CPU the recipe is the best with what they cost; on a GPU, the best without."""
    moved = 0
    for path, share in itertools.product(states, (0.3, 0.5, 0.7)):
        on = {where: plan(path, budget=between(path, share), sensitivity="structure", run_on=where).recipe
              for where in ("cpu", "gpu")}  # fmt: skip
        cost = {}
        for block in (256, 32):
            with Store.open(path, read_only=True) as store:
                facts = {
                    entry.tensor: Facts.from_values(entry.values) for entry in store.energies(selected=True).values()
                }
            known = sensitivities("structure", NAMES, facts, blocks=2)
            cost[block] = {name: known[name].loss(ErrorParts(0, 0, 0), block) for name in known}

        def rounded(recipe, cost=cost):
            blocks = {choice.name: formats()[choice.format].block for choice in recipe.tensors}
            return sum(cost[block if block == 256 else 32][name] for name, block in blocks.items() if block > 1)

        assert on["gpu"].loss + rounded(on["gpu"]) >= on["cpu"].loss * (1 - 1e-5)
        assert on["cpu"].loss - rounded(on["cpu"]) >= on["gpu"].loss * (1 - 1e-5)
        moved += on["cpu"].formats != on["gpu"].formats
    assert moved > 3


@FAST
@given(which=st.integers(0, 3), share=st.floats(0.3, 1.0), data=st.data())
def test_rules_are_obeyed_and_nothing_more_is_lost(states, which, share, data):
    path = states[which]
    pins = data.draw(
        st.dictionaries(st.sampled_from(["attn_q", "blk.1", "output"]), st.sampled_from([*FORMATS, "f16"]))
    )
    floors = data.draw(st.dictionaries(st.sampled_from(["", "ffn", "embd"]), st.sampled_from(["q2_K", "q4_K"])))
    caps = data.draw(st.dictionaries(st.sampled_from(["", "ffn", "attn"]), st.sampled_from(["q8_0", "f16", "q4_K"])))
    size_of = {fmt: formats()[fmt].bpw for fmt in (*FORMATS, "f16")}

    def follows(choice):
        for name, (fmt, _, _) in choice.items():
            pinned = [wanted for pattern, wanted in pins.items() if pattern in name]
            if pinned:
                if fmt != pinned[0]:
                    return False
                continue
            if any(pattern in name and size_of[fmt] < size_of[least] for pattern, least in floors.items()):
                return False
            if any(pattern in name and size_of[fmt] > size_of[most] for pattern, most in caps.items()):
                return False
        return True

    sizes = []
    best(path, "structure", lambda choice, size, bpw: sizes.append(size) if follows(choice) else False)
    budget = round(min(sizes) + share * (max(sizes) - min(sizes)))
    made = plan(
        path,
        budget=budget,
        pins=tuple(parse_rule(f"{pattern}={fmt}") for pattern, fmt in pins.items()),
        floors=tuple(parse_rule(f"{pattern}={fmt}", default_pattern="") for pattern, fmt in floors.items()),
        caps=tuple(parse_rule(f"{pattern}={fmt}", default_pattern="") for pattern, fmt in caps.items()),
    )
    optimum = best(path, "structure", lambda choice, size, bpw: size <= budget and follows(choice))
    assert made.recipe.loss == pytest.approx(optimum, rel=2e-6)
    for choice in made.recipe.tensors:
        if any(pattern in choice.name for pattern in pins) and "norm" not in choice.name:
            assert choice.why.startswith("pinned")
    check(made.recipe, path, "structure")


@FAST
@given(which=st.integers(0, 3), share=st.floats(0.2, 0.9), file_share=st.floats(0.2, 0.9))
def test_devices_and_ties(states, which, share, file_share):
    path = states[which]
    ties = [("blk.0.attn_q.weight", "blk.0.attn_k.weight")]

    def on(choice):
        return sum(padded(nbytes) for name, (_, nbytes, _) in choice.items() if name.startswith("blk.0.")) + padded(
            1024
        )

    def same(choice):
        return all(choice[one][0] == choice[other][0] for one, other in ties)

    found = []
    best(path, "structure", lambda choice, size, bpw: found.append((size, on(choice))) if same(choice) else False)
    sizes, loads = zip(*found, strict=True)
    budget = round(min(sizes) + file_share * (max(sizes) - min(sizes)))
    room = round(min(loads) + share * (max(loads) - min(loads)))
    made = plan(
        path, budget=budget, devices=(parse_device(f"gpu:^blk\\.0\\.={room}"),), ties=parse_tie(r"attn_[qk]\.weight")
    )
    by_name = made.recipe.formats
    assert by_name["blk.0.attn_q.weight"] == by_name["blk.0.attn_k.weight"]
    used = {limit.name: limit.used for limit in made.limits}
    assert used["gpu"] <= room
    assert used["gpu"] == sum(padded(choice.bytes) for choice in made.recipe.tensors if choice.name[:6] == "blk.0.")
    optimum = best(path, "structure", lambda choice, size, bpw: size <= budget and on(choice) <= room and same(choice))
    assert made.recipe.loss == pytest.approx(optimum, rel=2e-6)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"pins": ["ffn_dwon=q4_K"]}, "--pin ffn_dwon=q4_K: no tensor.*\nNear names: .*ffn_down"),
        ({"floors": ["zzzz=q4_K"]}, "--min zzzz=q4_K: no tensor"),
        (
            {"pins": ["ffn=q4_K", r"blk\.1=q8_0"]},
            r"ffn=q4_K and --pin blk\\.1=q8_0 contradict.*blk\.1\.ffn_down",
        ),
        ({"pins": ["attn_norm=q8_0"]}, r"attn_norm=q8_0: llama\.cpp leaves blk\.0\.attn_norm\.weight"),
        ({"pins": ["ffn=q6_K"]}, r"blk\.0\.ffn_down\.weight was not measured in q6_K.\n.*q2_K, q4_K, q8_0, f16"),
        ({"floors": ["q8_0"], "caps": ["ffn=q4_K"]}, r"No format of blk\.0\.ffn_down\.weight satisfies q8_0, ffn=q4_K"),
    ],
)
def test_rules_that_cannot_be_followed(states, rules, words):
    parsed = {kind: tuple(parse_rule(text, default_pattern="") for text in texts) for kind, texts in rules.items()}
    with pytest.raises(UsageError, match=words) as caught:
        plan(states[0], budget=50_000, **parsed)
    assert caught.value.remedy


def test_pins_that_agree_or_only_find_what_stays(states):
    rules = tuple(map(parse_rule, ("ffn=q4_K", r"blk\.1=q4_K", "attn_norm=f32", "attn_q=q8_0", "attn=q8_0")))
    recipe = plan(states[0], budget=between(states[0]), pins=rules).recipe
    assert recipe.formats["blk.1.ffn_down.weight"] == recipe.formats["blk.0.ffn_down.weight"] == "q4_K"
    assert recipe.formats["blk.0.attn_norm.weight"] == "f32"  # which "attn" finds too, and is not about


def test_pins_to_what_rows_cannot_be(tmp_path):
    path = made_up(tmp_path / "odd.planner", 0, width=96)
    with pytest.raises(UsageError, match=r"--pin ffn=q4_K: blk\.0\.ffn_down\.weight has rows of 96") as caught:
        plan(path, budget=between(path), pins=(parse_rule("ffn=q4_K"),))
    assert "q8_0" in caught.value.remedy
    # but K-quants may be among the types
    recipe = plan(path, budget=between(path), formats=select_formats("q4_K,q8_0")).recipe
    assert set(recipe.formats.values()) == {"q8_0", "f16", "f32"}


def test_the_least_and_the_most(states):
    names, options, fixed, elements = everything(states[1], "structure")
    least, most = (HEADER + fixed + sum(f(padded(n) for _, n, _ in own) for own in options) for f in (min, max))
    assert plan(states[1], budget=least).recipe.size == least
    assert plan(states[1], budget=most).recipe.loss == 0
    with pytest.raises(BudgetError, match=rf"below the minimum of .*\({least} bytes\).*leaves? alone"):
        plan(states[1], budget=least - 1)
    for budget in (most + 1, 10**30):
        made = plan(states[1], budget=budget)
        assert (made.recipe.size, made.recipe.loss, made.limits[0].binds) == (most, 0, False)
    with pytest.raises(BudgetError, match=r"pins take"):
        plan(states[1], budget=least, pins=(parse_rule("ffn=q8_0"),))
    with pytest.raises(BudgetError, match=r"bpw is below the minimum of [0-9.]+ bpw"):
        plan(states[1], bpw=Fraction(1, 10))
    assert plan(states[1], bpw=Fraction(60)).recipe.size == most
    assert len(names) == 6
    assert elements > 0


def test_types_restrict_the_choice(states):
    recipe = plan(states[0], budget=40_000, formats=select_formats("q2_K,q8_0")).recipe
    assert set(recipe.formats.values()) <= {"q2_K", "q8_0", "f16", "f32"}
    with pytest.raises(UsageError, match=r"Nothing was measured as q5_K, q6_K.\nGive the model"):
        plan(states[0], budget=40_000, formats=select_formats("q2_K,q5_K,q6_K"))
    # what the source is already need not be measured
    assert plan(states[0], budget=40_000, formats=select_formats("q2_K,f16")).recipe.size <= 40_000


@pytest.mark.parametrize(
    ("imatrix", "means", "source"),
    [(True, True, "structure"), (True, False, "structure+prior"), (False, False, "prior")],
)
def test_the_source_follows_the_imatrix(imatrix, means, source, tmp_path):
    made = plan(made_up(tmp_path / "s.planner", 0, imatrix=imatrix, means=means), budget=40_000)
    assert made.recipe.sensitivity == source
    assert (made.recipe.imatrix is None) is not imatrix
    # attn_k has no facts, so structure cannot place it
    assert made.unplaced == ([] if source == "prior" else ["blk.0.attn_k.weight"])


def test_states_that_are_not_finished(tmp_path, states):
    with Store.open(tmp_path / "empty.planner", create=True):
        pass
    with pytest.raises(StateFileError, match="no finished measurements") as caught:
        plan(tmp_path / "empty.planner", budget=1000)
    assert "planner measure" in caught.value.remedy
    shutil.copy(states[0], tmp_path / "copy.planner")
    with Store.open(tmp_path / "copy.planner") as store:
        store.select([])
    with pytest.raises(StateFileError, match="no finished measurements"):
        plan(tmp_path / "copy.planner", budget=1000)


def test_the_same_question_has_the_same_answer(states):
    first, second = (plan(states[2], budget=between(states[2])).recipe for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("fmt", "number"), [("q4_K", 15), ("q2_K", 10), ("q8_0", 7), ("f16", 1)])
def test_the_file_type_is_that_of_most_weights(states, fmt, number):
    names, options, fixed, _ = everything(states[0], "uniform")
    exact = HEADER + fixed + sum(padded(n) for own in options for name, n, _ in own if name == fmt)
    recipe = plan(states[0], budget=exact, pins=(parse_rule(f"={fmt}"),)).recipe
    assert recipe.file_type == number
    assert recipe.size == exact
    assert len(names) == 6


def test_explanations(states):
    made = plan(states[0], budget=40_000)
    assert made.explain("output.weight") is not None
    with pytest.raises(UsageError, match=r"blk\.0\.attn_norm\.weight is not a tensor that a format was chosen for"):
        made.explain("blk.0.attn_norm.weight")
