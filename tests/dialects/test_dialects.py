"""What other quantizers make of our files, by their parsers' rules written down once more; and what comes back."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dialects.auto_round import layer_config
from planner.dialects.exports import export_recipe
from planner.dialects.imports import read_choices
from planner.errors import RecipeError
from planner.formats.ggml import formats
from planner.names.transformers import ARCHITECTURES, module_of
from planner.plan.assess import assess
from tests.dialects.inventories import MODELS, inventory, random_formats, recipe_of

KINDS = {kind.name.lower(): kind.name for kind in gguf.GGMLQuantizationType}
PATTERNS = ("llama-quantize", "ik_llama", "gguf-tool-suite")
EXACT = (*PATTERNS, "evopress", "rco", "csv")


def exported(recipe, dialect, tmp_path, **options):
    texts, _ = export_recipe(recipe, dialect, tmp_path / "r.json", **options)
    return next(iter(texts.values()))


def std_regex(pattern, name):
    """std::regex_search over bytes; the escapes that we write mean the same in Python."""
    return re.search(pattern.encode(), name.encode("utf-8", "surrogateescape"))


def as_llama_quantize(text, names):
    """parse_tensor_type_file: words; lowercased; the first that is found; types in any case."""
    rules = [word.split("=", 1) for word in text.split()]
    rules = [(pattern.lower(), kind.lower()) for pattern, kind in rules]
    assert all(kind in KINDS for _, kind in rules)
    return {name: next((kind for pattern, kind in rules if std_regex(pattern, name)), None) for name in names}


def as_ik_llama(text, names):
    """parse_custom_quants of what $(cat) leaves: split at commas, then at the first =; types to the letter."""
    rules = [part.split("=", 1) for part in text.rstrip("\n").split(",")]
    assert all(kind in formats() for _, kind in rules)
    found = {name: next((kind for pattern, kind in rules if std_regex(pattern, name)), None) for name in names}
    return {name: kind.lower() if kind else None for name, kind in found.items()}


def as_tool_suite(text, names):
    """quant_downloader.sh: lines but comments, IFS='=' read; patterns without what Bash does not share with Python."""
    rules = [line.split("=")[:2] for line in text.split("\n") if line and not line.startswith("#")]
    return {name: next((kind.lower() for pattern, kind in rules if re.search(pattern, name)), None) for name in names}


READERS = {"llama-quantize": as_llama_quantize, "ik_llama": as_ik_llama, "gguf-tool-suite": as_tool_suite}


def made(model, seed):
    wanted = random_formats(model, seed)
    return assess(inventory(model), wanted, None, why="solved").recipe


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("model", MODELS)
def test_a_hundred_recipes_come_back(model, seed, tmp_path):
    recipe = made(model, seed)
    names = [choice.name for choice in recipe.tensors]
    free = {choice.name: choice.format for choice in recipe.tensors if not choice.left_alone}
    assert len(free) > 100
    for dialect in EXACT:
        for compact in (False, True) if dialect in PATTERNS else (False,):
            if dialect == "ik_llama" and not compact and len(names) > 1000:
                continue  # more than one argument may hold; see test_rules_too_long_for_one_argument
            text = exported(recipe, dialect, tmp_path, compact=compact)
            found = read_choices(text, dialect, names, recipe.model.architecture, "it")
            assert not found.notes
            back = assess(inventory(model), found.formats, None, why="solved")
            assert back.recipe == recipe
            assert not back.notes
            if dialect in READERS and seed < 2:  # which try every pattern on every name: for some names
                some = list(free)[seed :: len(free) // (30 if compact else 4)]
                assert READERS[dialect](text, some) == {name: free[name].lower() for name in some}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no Bash")
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("model", ["Qwen3.5-0.8B", "Kimi-K2-Thinking"])
def test_bash_itself_reads_the_recipe(model, compact, tmp_path):
    """The loops of quant_downloader.sh: reading, splitting, matching."""
    recipe = made(model, 3)
    (tmp_path / "it.recipe").write_text(exported(recipe, "gguf-tool-suite", tmp_path, compact=compact))
    wanted = dict(list(recipe.formats.items())[:: max(1, len(recipe.tensors) // 40)])
    script = r"""
    while IFS= read -r line || [[ -n "$line" ]]; do
      [[ -z "$line" || "$line" =~ ^# ]] && continue
      IFS='=' read -r pat qtype _ <<< "$line"; P+=("$pat"); Q+=("$qtype")
    done < "$1"; shift
    for t in "$@"; do for i in "${!P[@]}"; do [[ "$t" =~ ${P[$i]} ]] && { echo "${Q[$i]}"; break; }; done; done"""
    words = ["bash", "-c", script, "bash", str(tmp_path / "it.recipe"), *wanted]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert dict(zip(wanted, done.stdout.split(), strict=True)) == wanted


def test_rules_too_long_for_one_argument(tmp_path):
    names = {f"blk.{block}.{role}_{'x' * 30}.weight": "q4_K" for block in range(500) for role in "abcdef"}
    with pytest.raises(RecipeError, match="in one argument") as caught:
        exported(recipe_of(names), "ik_llama", tmp_path)
    assert "--compact" in caught.value.remedy
    assert len(exported(recipe_of(names), "ik_llama", tmp_path, compact=True)) < 300


HOSTILE = st.text(
    st.sampled_from([*"ab.0 ,=:\"'#\\$^*+?()[]{}|/%-~A\n\r\t\x00\x1b\x7f\u202e", "ä", "漢", "\udcff"]),
    min_size=1, max_size=14,
).map(lambda text: f"{text}.weight")  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(HOSTILE, st.sampled_from(["q4_K", "q8_0", "iq3_s"]), min_size=1, max_size=5), st.booleans())
@pytest.mark.parametrize("dialect", EXACT)
def test_hostile_names_come_back_or_are_refused(dialect, tmp_path_factory, names, compact):
    recipe = recipe_of(names)
    try:
        text = exported(recipe, dialect, tmp_path_factory.mktemp("h"), compact=compact and dialect in PATTERNS)
    except RecipeError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert "cannot be told" in refused.problem
        assert refused.remedy
        assert dialect != "csv"
        return
    found = read_choices(text, dialect, list(names), "llama", "it").formats
    assert {name: fmt.lower() for name, fmt in found.items()} == {name: fmt.lower() for name, fmt in names.items()}
    others = [f"{name}x" for name in names] + ["a", "blk.0.weight"]
    if dialect in READERS:
        theirs = READERS[dialect](text, [*names, *others])
        assert theirs == {**dict.fromkeys(others), **{name: fmt.lower() for name, fmt in names.items()}}
    if dialect in ("llama-quantize", "ik_llama"):
        assert text.isascii()
    if dialect == "evopress":  # gguf_stitcher.py: lines, trimmed, split at the first colon
        lines = [line.strip().split(":", 1) for line in io.StringIO(text)]
        assert {name.strip(): re.search(r"-([^.]+)\.pth", rest)[1].lower() for name, rest in lines} == {
            name: fmt.lower() for name, fmt in names.items()
        }
    if dialect == "csv":
        assert [row["tensor"] for row in csv.DictReader(io.StringIO(text, newline=""))] == list(names)


@pytest.mark.parametrize(
    ("dialect", "kind"), [("ik_llama", "tq1_0"), ("gguf-tool-suite", "tq2_0"), ("evopress", "mxfp4")]
)
def test_types_that_a_dialect_lacks(dialect, kind, tmp_path):
    with pytest.raises(RecipeError, match=kind) as caught:
        exported(recipe_of({"blk.0.ffn_up.weight": kind}), dialect, tmp_path)
    assert kind in caught.value.remedy


@pytest.mark.parametrize("dialect", ["csv", "evopress", "rco"])
def test_what_cannot_be_merged(dialect, tmp_path):
    with pytest.raises(RecipeError, match=r"merged|no patterns") as caught:
        exported(recipe_of({"a": "q4_K"}), dialect, tmp_path, compact=True)
    assert "--compact" in caught.value.remedy


def test_ik_llama_is_told_what_it_would_quantize_otherwise(tmp_path):
    stays = {"blk.0.altup_proj.weight": "f32", "blk.0.attn_norm.weight": "f32"}
    text = exported(recipe_of({"output.weight": "q6_K"}, left_alone=stays), "ik_llama", tmp_path)
    assert text == "^output\\.weight$=q6_K,^blk\\.0\\.altup_proj\\.weight$=f32\n"
    _, found = export_recipe(recipe_of({"blk.0.ssm_x.weight": "q8_0"}), "ik_llama", tmp_path / "r.json")
    assert "leaves blk.0.ssm_x.weight" in found.notes[0]


@pytest.mark.parametrize(
    ("number", "base"),
    [
        (15, "Q4_K_M"),
        (23, "IQ3_XXS"),
        (7, "Q8_0"),
        (1, "Q8_0"),
        (36, "Q8_0"),
        (39, "Q8_0"),
        (38, "Q8_0"),
        (999, "Q8_0"),
    ],
)
def test_ik_llama_is_given_a_base_that_it_has(number, base, tmp_path):
    """F16, TQ1_0, NVFP4 and MXFP4_MOE are none; the file says what it is all the same."""
    recipe = recipe_of({"output.weight": "q6_K"}).model_copy(update={"file_type": number})
    _, found = export_recipe(recipe, "ik_llama", tmp_path / "r.json")
    assert found.command.split()[-2] == base
    said = f"--override-kv general.file_type=int:{number}"
    assert (said in found.command) == (number in (1, 36, 38, 39))


# AutoRound


def auto_round_decides(config, modules):
    """resolver.py: a key that is a module means it; others by to_standard_regex, searched for, take it from that."""
    found = {key: value for key, value in config.items() if key in modules}
    for key, value in config.items():
        if key in modules:
            continue
        regex = "".join("\\." if c == "." and key[i + 1 : i + 2] != "*" else c for i, c in enumerate(key))
        if not any(sign in key for sign in (".*", "^", "$", "|", "(", ")", "[", "]", "?", "+")):
            regex = re.escape(key)
        found |= {module: value for module in modules if re.search(regex, module)}
    return found


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("model", [name for name, architecture in MODELS.items() if architecture in ARCHITECTURES])
def test_auto_round(model, compact):
    known = inventory(model)
    wanted = {
        name: fmt
        for name, fmt in random_formats(model, 1, ("q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "q8_0", "q4_0")).items()
        if not re.search(r"\.(attn_[kv]_b|nextn.*)\.weight", name)
    }
    recipe = assess(known, wanted, None, why="solved").recipe
    recipe = recipe.model_copy(update={"tensors": tuple(c for c in recipe.tensors if c.name in wanted)})
    config, near, notes = layer_config(recipe, compact=compact)
    assert not near
    assert not notes
    paths = {name: module_of(name, known.architecture).path for name in wanted}
    modules = [
        path.replace("*", str(expert)) for path in paths.values() for expert in (0, 7, 12)[: 3 if "*" in path else 1]
    ]
    found = auto_round_decides(config, modules)
    for name, path in paths.items():
        preset = found[path.replace("*", "7")]
        assert preset.removeprefix("GGUF:").removesuffix("_S").lower() == wanted[name].lower(), name
    back = read_choices(json.dumps(config), "auto-round", list(wanted), known.architecture, "it")
    assert back.formats == wanted


def test_auto_round_of_others():
    """The last key that is searched for and finds a module counts, before its name; what is no type is refused."""
    names = [f"blk.{block}.{role}.weight" for block in range(12) for role in ("attn_q", "ffn_down")]
    config = {
        "model.layers.1.self_attn.q_proj": "GGUF:Q6_K",
        "mlp.down_proj": "GGUF:Q3_K_S",
        "layers.1.": "GGUF:Q8_0",
        "model.layers.2.mlp.down_proj": {"bits": 16, "data_type": "float"},
    }
    found = read_choices(json.dumps(config), "auto-round", names, "llama", "it").formats
    assert found == {
        "blk.1.attn_q.weight": "q8_0", "blk.1.ffn_down.weight": "q8_0",
        **{f"blk.{block}.ffn_down.weight": "q3_K" for block in range(12) if block != 1},
    }  # fmt: skip
    for value in ("W4A16", {"bits": 4, "group_size": 128}, 4, None):
        with pytest.raises(RecipeError, match=r"for 'model\.layers\.0\.mlp\.up_proj', which is no type of GGUF"):
            read_choices(json.dumps({"model.layers.0.mlp.up_proj": value}), "auto-round", names, "llama", "it")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gguf_has_the_same_modules(architecture):
    """gguf's own map from transformers' names leads from each of our paths back to the tensor."""
    kinds = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in kinds:
        pytest.skip("this release of gguf does not know it")
    to_gguf = gguf.get_tensor_name_map(kinds[architecture], 4)
    for role in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_down", "ffn_up", *ARCHITECTURES[architecture]):
        try:
            path = module_of(f"blk.2.{role}.weight", architecture).path
        except RecipeError:
            continue
        name = to_gguf.get_name(path.replace("experts.*.", "experts."), try_suffixes=(".weight",))
        known = {f"blk.2.{role}", None}
        # linear attention's projection has gguf's name for any fused one; Llama's experts are Mixtral's
        assert name in known or role in ("attn_qkv", "attn_gate"), (path, name)
