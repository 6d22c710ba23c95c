"""Limits, ties and explanations on the command line: what is said, what is refused, and that advice can be typed in."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from planner.recipe import load_recipe
from tests.conftest import ok
from tests.models import experts, write_imatrix
from tests.tiny import write

SHAPES = {
    "token_embd.weight": (256, 24),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.attn_q.weight": (256, 12),
    "blk.0.attn_k.weight": (256, 7),
    "blk.0.ffn_down.weight": (256, 30),
    "blk.1.ffn_down.weight": (256, 30),
    "output.weight": (256, 24),
}


@pytest.fixture
def state(here):
    return write(here / "tiny.planner", SHAPES)


@pytest.fixture
def solve(state, run):
    """`planner solve` beside the state of a tiny model, options as they are typed."""

    def call(text):
        return run("solve", *shlex.split(text))

    return call


def refused(result, status, here):
    """The message in one line; no recipe was written."""
    assert result.status == status, result.text
    assert result.out == ""
    assert not (here / "recipe.json").exists()
    assert "bug" not in result.err
    assert max(map(len, result.err.splitlines())) <= 80
    return " ".join(result.err.split())


def limit_lines(out):
    """Name → used, capacity, bytes left, as they are printed."""
    pattern = r"^Limit      (\w+): (.+) of (.+), ([\d,]+) bytes left$"
    return {name: (used, most, left) for name, used, most, left in re.findall(pattern, out, re.MULTILINE)}


def test_each_limit_has_its_line(solve, here):
    out = ok(solve(r"--budget 26kB --device 'gpu:^blk\.0\.=12kB' --device 'cpu:.=1MB' --active-budget 20000")).out
    lines = limit_lines(out)
    assert list(lines) == ["file", "gpu", "cpu", "active"]
    recipe = load_recipe(here / "recipe.json")
    size = {choice.name: choice.bytes for choice in recipe.tensors}
    used = {
        "file": recipe.size,
        "gpu": sum(-(-size[name] // 32) * 32 for name in size if name.startswith("blk.0.")),
        "cpu": sum(-(-size[name] // 32) * 32 for name in size if not name.startswith("blk.0.")),
        "active": sum(size.values()) - size["token_embd.weight"] * 23 // 24,
    }
    most = {"file": 26_000, "gpu": 12_000, "cpu": 10**6, "active": 20_000}
    assert {name: int(left.replace(",", "")) for name, (_, _, left) in lines.items()} == {
        name: most[name] - used[name] for name in most
    }
    data = json.loads((here / "recipe.json").read_text())
    assert data["budget"].startswith("26.00 kB (26000 bytes); gpu: 12.00 kB (12000 bytes); cpu: ")
    assert recipe.bound <= recipe.loss


@pytest.mark.parametrize(
    "option", ["--device 'all:.=20kB'", "--active-budget 18kB", r"--bpw 4.5 --device 'gpu:blk\.=1MB'"]
)
def test_any_limit_is_enough(solve, option):
    ok(solve(option))


def test_ties(solve, here):
    ok(solve("--budget 24kB --tie fused --tie 'ffn_down|attn_k'"))
    formats = load_recipe(here / "recipe.json").formats
    assert len({formats[f"blk.0.{role}.weight"] for role in ("attn_q", "attn_k", "ffn_down")}) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "Give the size that is wanted: --budget, --bpw, --device, --active-budget or --vram."),
        ("--budget 20kB --device gpu=8GB", "'gpu=8GB' is not of the form NAME:REGEX=SIZE. Write for example"),
        ("--budget 20kB --device gpu:.*=much", "'much' is not a size"),
        ("--budget 20kB --device 'gpu:(=8GB'", "is not a regular expression"),
        ("--budget 20kB --device file:.=8GB", "--device file:.=8GB: 'file' is what another limit is called."),
        ("--budget 20kB --device active:.=8GB", "'active' is what another limit is called."),
        ("--device gpu:attn=8GB --device gpu:.=9GB", "--device gpu:.=9GB: there is a device 'gpu' already."),
        ("--device gpu:.=8GB --device cpu:attn=9GB", "devices before it have taken every tensor that it matches."),
        ("--budget 20kB --device gpu:ffn_dwon=8GB", "no tensor's name matches. Near names: "),
        ("--budget 20kB --tie '('", "is not a regular expression"),
        ("--budget 20kB --tie attn_qq", "--tie attn_qq joins nothing"),
        ("--budget 20kB --tie ffn_down", "--tie ffn_down joins nothing: no block has two tensors"),
        ("--budget 20kB --explain blk.0.attn_q", "Near names: blk.0.attn_q.weight"),
        ("--budget 20kB --explain blk.0.attn_norm.weight", "is not a tensor that a format was chosen for"),
        ("--active-budget fast", "'fast' is not a size"),
        ("--bpw 1e-999999999", "is not a number of bits"),
        ("--bpw 1e99", "is not a number of bits"),
        ("--bpw 4/0", "is not a number of bits"),
        ("--budget 20kB --tie fused --pin attn_q=q8_0 --pin attn_k=q4_K", "No format is possible for all that is tied"),
    ],
)
def test_what_cannot_be_meant(options, words, solve, here):
    assert words in refused(solve(options), 2, here)


@pytest.mark.parametrize(
    "options",
    [
        "--budget 0",
        "--budget 100kB --active-budget 0",
        "--budget 100kB --device gpu:attn=0",
        "--budget 11kB --device gpu:attn=1kB",
        r"--budget 24kB --device 'gpu:^blk\.=6kB' --pin output=q8_0",
        "--device gpu:attn=1kB --active-budget 4kB --budget 10kB",
        "--bpw 1.5",
        "--bpw 4 --active-budget 20kB --pin ffn=q8_0",
    ],
)
def test_what_a_message_advises_can_be_typed_in(options, solve, here):
    message = refused(solve(options), 1, here)
    if len(re.findall("--(budget|bpw|device|active)", options)) == 1:
        assert "below the minimum" in message
    advice = re.search(r"Raise (.*); or allow smaller formats with --types, --pin and --min\.", message)[1]
    for alternative in advice.split(", or "):
        words = shlex.split(options)
        for option, amount in re.findall(
            r"(--budget|--bpw|--active-budget|--device \w+) to (?:[\d.]+ kB \()?([\d.]+)", alternative
        ):
            place, _, device = option.partition(" ")
            at = next(k for k, word in enumerate(words) if word == place and words[k + 1].startswith(device))
            words[at + 1] = f"{words[at + 1].rpartition('=')[0]}={amount}" if device else amount
        ok(solve(shlex.join(words)))
        (here / "recipe.json").unlink()


def test_explanations(solve):
    out = ok(solve("--budget 20kB --tie fused --explain blk.0.attn_q.weight --explain output.weight")).out
    first, second = out.split("\n\n")[-2:]
    assert re.match(r"blk\.0\.attn_q\.weight as \S+: [\d.]+ kB, loss ", first)
    assert re.search(r"^  with +blk\.0\.attn_k\.weight$", first, re.MULTILINE)
    assert second.startswith("output.weight as ")
    assert "with" not in second
    for text in (first, second):
        assert re.search(r"^  price +loss \S+ a byte of file$", text, re.MULTILINE)
        assert re.search(r"^  (better|worse) +(q2_K|q4_K|q8_0|f16) +[+-][\d,]+ bytes", text, re.MULTILINE)


def test_active_bytes_of_a_real_mixture(here, run):
    """What the model's metadata says of experts reaches the plan."""
    model = experts(count=4).write(here / "moe.gguf")  # of which 2 are used
    matrix = write_imatrix(model, here / "x.imatrix")
    arguments = ("solve", model, "--imatrix", matrix, "--types", "q4_K,q8_0", "-t", 1)
    out = ok(run(*arguments, "--active-budget", "900kB", "--tie", "fused")).out
    recipe = load_recipe(here / "recipe.json")
    read = sum(
        choice.bytes // 2
        if "_exps" in choice.name
        else choice.bytes // 96
        if "token_embd" in choice.name
        else choice.bytes
        for choice in recipe.tensors
    )
    assert limit_lines(out)["active"][2] == f"{900_000 - read:,}"
    assert 0 <= 900_000 - read < 200_000
    for block in (0, 1):
        same = {recipe.formats[f"blk.{block}.ffn_{kind}_exps.weight"] for kind in ("gate", "up")}
        assert len(same) == 1
