"""Rules as people publish and mistype them: what finds nothing is named; scripts are read as a shell reads them."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dialects.imports import guess_dialect, nearest_known, read_choices
from planner.errors import RecipeError, UsageError
from planner.formats.ggml import formats

NAMES = [
    "token_embd.weight", "output.weight", "output_norm.weight",
    *(f"blk.{block}.{role}.weight" for block in range(12)
      for role in ("attn_norm", "attn_q", "attn_v", "attn_output", "ffn_down", "ffn_up")),
]  # fmt: skip
PATTERNS = ("llama-quantize", "ik_llama", "gguf-tool-suite")


def read(text, dialect, **options):
    return read_choices(text, dialect, NAMES, "llama", "it", **options)


# What decides nothing


@pytest.mark.parametrize("dialect", PATTERNS)
def test_rules_that_decide_nothing_are_named(dialect):
    found = read(
        "ffn_dwon=q8_0\noutput.weight=q6_K\nblk.*attn_output=q4_K\nattn_norm=f32\n.*=q5_K\nattn_v=q8_0\n", dialect
    )
    assert found.formats["blk.3.attn_output.weight"] == "q6_K"
    nothing, hidden = found.notes
    assert nothing == "1 rule finds no tensor: 'ffn_dwon'."
    assert hidden.startswith("2 of 6 rules decide nothing")
    assert "'blk.*attn_output' (behind 'output.weight'), 'attn_v' (behind '.*')" in hidden
    assert ("took the last" in hidden) == (dialect == "llama-quantize")


@given(
    st.lists(
        st.sampled_from(["blk", "attn", "attn_q", r"\.1\.", "ffn", "no", "^output", r"^output\.weight$"]), min_size=1
    )
)
def test_notes_by_counting(patterns):
    """A rule has a note exactly where taking it away changes nothing."""
    kinds = [f"q{2 + number % 4}_K" for number in range(len(patterns))]
    rules = list(zip(patterns, kinds, strict=True))
    first = {name: next((i for i, (p, _) in enumerate(rules) if re.search(p, name)), None) for name in NAMES}
    if not any(number is not None for number in first.values()):
        return
    found = read("\n".join(f"{pattern}={kind}" for pattern, kind in rules), "ik_llama")
    silent = [number for number in range(len(rules)) if number not in first.values()]
    without = [number for number in silent if not any(re.search(patterns[number], name) for name in NAMES)]
    counts = [int(note.split()[0]) for note in found.notes]
    assert counts == [count for count in (len(without), len(silent) - len(without)) if count]


def test_rules_without_number():
    with pytest.raises(RecipeError, match="30,000 rules"):
        read("blk.*a=q4_K\n" * 30_000, "ik_llama")


def test_notes_are_short():
    text = "".join(f"nothing_{number}=q4_K\n^blk\\.0\\.nothing_{number}$=q4_K\n" for number in range(400)) + ".*=q4_K\n"
    begin = time.monotonic()
    (note,) = read(text, "llama-quantize").notes
    assert "and 794 more" in note
    assert len(note) < 400
    assert time.monotonic() - begin < 10


# Blocks of lines, and scripts

RULES = [
    ("blk\\.(0|1)\\.attn_q.*", "q8_0"), ("blk\\..*\\.attn_.*", "q5_K"), ("blk\\.\\d+\\.ffn_(?!up).*", "q6_K"),
    ("blk\\..*\\.ffn_up.*", "q4_K"), ("token_embd\\.weight$", "q4_K"), ("output\\.weight", "q6_K"),
]  # fmt: skip
BLOCK = "\n# Attention: isn't it, of [0-11]\n" + "\n\n# more, and = signs\n".join(f"{p}={k}" for p, k in RULES) + "\n"
JOINED = ",".join(f"{pattern}={kind}" for pattern, kind in RULES)
SHELL = """#!/usr/bin/env bash
# don't change the "order"
model=/models/it.gguf

custom="%s"
#custom="
#blk=q2_K
#"
custom=$(
  echo "$custom" | grep -v '^#' | \\
  sed -Ez 's:\\n+:,:g;s:,$::;s:^,::'
)
./build/bin/llama-quantize --custom-q "$custom" --imatrix it.dat "$model" out.gguf Q4_K 8
"""
WAYS = {
    "block": BLOCK,
    "indented": "".join(f"    {line}\n" for line in BLOCK.splitlines()),
    "windows": BLOCK.replace("\n", "\r\n"),
    "commas": ",\n".join(f"{pattern}={kind}" for pattern, kind in RULES) + ",\n",
    "remarks": "# all\n" + "\n".join(f"{pattern} = {kind}   # remark, long" for pattern, kind in RULES),
    "fenced": f"```\n{BLOCK}```\n",
    "script": SHELL % BLOCK,
    "script of Windows": (SHELL % BLOCK).replace("\n", "\r\n"),
    "option": f"llama-quantize --imatrix a.dat --custom-q '{JOINED}' in.gguf out.gguf q4_K",
    "continued": "#!/bin/sh\nllama-quantize --custom-q \"" + ",\\\n".join(JOINED.split(",")) + "\" in.gguf q4_K\n",
    "document": f"#!/bin/bash\nrules=$(cat <<'EOF' | grep -v '^#' | tr '\\n' ','\n{BLOCK}EOF\n)\n",
    "twice": f"ik --custom-q '{JOINED[: JOINED.index(',')]}' \\\n --custom-q \"{JOINED[JOINED.index(',') + 1 :]}\" a b",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_rules_as_people_publish_them(way):
    text = WAYS[way]
    assert guess_dialect(Path("it.txt"), text) == "ik_llama"
    assert guess_dialect(Path("it.sh"), text) == "ik_llama"
    expected = {
        name: next(kind for pattern, kind in RULES if re.search(pattern, name))
        for name in NAMES
        if name != "output_norm.weight"
    }
    found = read(text, "ik_llama")
    assert found.formats == expected
    assert not found.notes


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no Bash")
def test_bash_makes_the_same_rules_of_a_script(tmp_path):
    """The script itself, with llama-quantize's argument shown instead."""
    script = (SHELL % BLOCK.replace("# Attention: isn't it", "# Attention")).replace(
        "./build/bin/llama-quantize --custom-q", "printf %s\\\\n"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    argument = done.stdout.splitlines()[0]
    assert argument == JOINED
    assert read(argument, "ik_llama").formats == read(script, "ik_llama").formats


def test_tensor_types_of_a_command_line():
    options = r"--tensor-type 'ATTN_v=q8_0' --tensor-type blk\\.1=q6_K --tensor-type output=Q5_K"
    text = f"#!/bin/sh\nllama-quantize {options} \\\n in.gguf out.gguf q4_K\n"
    assert guess_dialect(Path("make.sh"), text) == "llama-quantize"
    found = read(text, "llama-quantize").formats
    some = [found[name] for name in ("blk.7.attn_v.weight", "blk.1.ffn_up.weight", "output.weight")]
    assert some == ["q8_0", "q6_K", "Q5_K"]


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("a=q4_K,b=q5_K", "ik_llama"), ("# one\na=q4_K\n", "ik_llama"), ("  # one\n  a=q4_K\n", "ik_llama"),
        ("a=q4_K # why\n", "ik_llama"), ("a=q4_K\nb=q5_K\n", "llama-quantize"), ("a=q4_K b=q5_K", "llama-quantize"),
        ("\n\n  a=q4_K\n", "llama-quantize"), ("## Quant mix recipe created using\na=q4_K\n", "gguf-tool-suite"),
    ],
)  # fmt: skip
def test_dialects_of_rules(text, dialect):
    assert guess_dialect(Path("rules.txt"), text) == dialect


def test_neither_rules_nor_a_dialect():
    with pytest.raises(UsageError, match="of no dialect"):
        guess_dialect(Path("x.txt"), "Dear reader\n")
    with pytest.raises(RecipeError, match=r"rule 1 is 'echo hello'"):
        read("#!/bin/sh\necho hello\n", "ik_llama")


PARTS = [*"\"'\\#\n =,<$(a", "EOF", "<<", "custom=", "--custom-q ", "a=q4_K", "#!", "(?!", "blk"]


def read_or_refused(text, dialect):
    try:
        read(text, dialect)
    except RecipeError as error:
        return error
    return None


@settings(deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=40).map("".join), st.sampled_from(PATTERNS))
def test_no_script_is_too_much(text, dialect):
    refused = read_or_refused(f"#!/bin/sh\n{text}", dialect)
    assert refused is None or refused.remedy


def test_no_script_makes_us_wait():
    begin = time.monotonic()
    for part in ("<<a\n", "'\"", '"\\', "\\\n", "a=", "# ", "=q4_K,"):
        refused = read_or_refused("#!\n" + part * (400_000 // len(part)), "ik_llama")
        assert refused is None or len(refused.problem) < 500
    assert time.monotonic() - begin < 20


# Types of ik_llama.cpp


def test_the_nearest_type_fills_the_row():
    assert nearest_known("q6_0") == "q6_K"
    assert nearest_known("q6_0", 352) == "q5_1"
    assert nearest_known("q6_0", 72) == "f16"  # no block fills such a row
    repacked = {"q4_K_R4": "q4_K", "q8_k_r8": "q8_0", "mxfp4_r8": "mxfp4", "q4_0_4x8": "q4_0", "bf16_r16": "bf16"}
    assert {kind: nearest_known(kind) for kind in repacked} == repacked
    assert [nearest_known(kind) for kind in ("q4_K", "i2_s", "nonsense_r4")] == [None] * 3
    assert nearest_known("Q8_K") == "q8_0"  # of activations: no file has it
    rng = random.Random(0)
    for _ in range(50):
        kind, row = rng.choice(["iq4_k", "iq5_ks", "iq2_kl", "iq6_k", "q6_0_r4"]), 32 * rng.randint(1, 40)
        assert formats()[nearest_known(kind, row)].fits(row)
    found = read(
        "output=q6_0\n.*=q6_0\n", "ik_llama", nearest=True, rows={**dict.fromkeys(NAMES, 256), "output.weight": 96}
    )
    assert (found.formats["output.weight"], found.formats["token_embd.weight"]) == ("q5_1", "q6_K")
    assert "1 tensor gets q5_1 for q6_0, which ggml does not have." in found.notes


# Tables


def test_a_line_that_another_overrides():
    found = read(
        "a.weight: 4.5 (4.5-Q4_K.pth)\na.weight: 5.5 (5.5-Q5_K.pth)\nb: 4.5 (4.5-Q4_K.pth)\nb: 4.5 (4.5-Q4_K.pth)\n",
        "evopress",
    )
    assert found.formats == {"a.weight": "Q5_K", "b": "Q4_K"}
    assert found.notes == ("a.weight: named again with another type; the last line counts.",)


def test_what_stands_before_a_name_is_taken_off():
    found = read("tensor,format\nlanguage_model.blk.1.attn_q.weight,q4_K\nvision.blk.1.attn_q.weight,q8_0\n", "csv")
    assert found.formats == {"blk.1.attn_q.weight": "q4_K", "vision.blk.1.attn_q.weight": "q8_0"}


# Allocations of RCO

ALLOCATION = """\
# RCO allocation: Model-GSQ-RCO-IQ3_XXS, target 3.0 bpw
# histogram: IQ3_XXS 2, Q6_K 1, F32 1

token_embd.weight: IQ3_XXS
output.weight: Q6_K
  blk.0.ffn_up.weight: IQ3_XXS
blk.0.attn_norm.weight: F32
"""


def test_an_allocation_as_it_is_published():
    wanted = {
        "token_embd.weight": "IQ3_XXS", "output.weight": "Q6_K", "blk.0.ffn_up.weight": "IQ3_XXS",
        "blk.0.attn_norm.weight": "F32",
    }  # fmt: skip
    for text in (ALLOCATION, ALLOCATION.replace("\n", "\r\n"), ALLOCATION.replace(": ", "="), ALLOCATION.rstrip()):
        found = read(text, "rco")
        assert found.formats == wanted
        assert not found.notes
    assert read("a.weight: Q4_K\na.weight: Q5_K\n", "rco").notes == (
        "a.weight: named again with another type; the last line counts.",
    )


def test_what_an_allocation_says_besides_types():
    """As of a model whose experts were pruned: which of them are left, by the numbers that they had."""
    kept = "\n[kept experts]\nblk.0.ffn_gate_exps.weight: 0,1,2,4,8\nblk.1.ffn_gate_exps.weight: 3,5\nlayers: 2\n"
    found = read(ALLOCATION + kept, "rco")
    assert found.formats == read(ALLOCATION, "rco").formats
    assert found.notes == (
        "4 lines give no tensor a type: '[kept experts]', 'blk.0.ffn_gate_exps.weight: 0,1,2,4,8', "
        "'blk.1.ffn_gate_exps.weight: 3,5' and 1 more.",
    )
    with pytest.raises(RecipeError, match="no line TENSOR: TYPE"):
        read(kept, "rco")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ALLOCATION, "rco"),
        (ALLOCATION.replace(": ", ":  ").replace("\n", "\r\n"), "rco"),
        ("blk.0.ffn_up.weight: Q9_Z\n", None),
        ("name: q4_K\n", None),
        ("# an allocation\nblk.0.ffn_up.weight: 4.5 (4.5-Q4_K.pth)\n", "evopress"),
        ("# rules\nblk.0.ffn_up.weight=q4_K\n", "ik_llama"),
        ("blk.0.ffn_up.weight: iq4_ks\n", "rco"),
    ],
)
def test_allocations_are_told_from_others(text, told):
    if told is None:
        with pytest.raises(UsageError, match="of no dialect"):
            guess_dialect(Path("x.txt"), text)
    else:
        assert guess_dialect(Path("x.txt"), text) == told
    assert guess_dialect(Path("x.RCO-allocation.txt"), text) == "rco"
