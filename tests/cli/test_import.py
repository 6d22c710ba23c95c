"""`planner import`: other people's choices and measurements, for a model of one's own."""

from __future__ import annotations

import json
import struct

import pytest

from planner.formats.ggml import formats
from planner.gguf import open_model
from planner.recipe import load_recipe
from state import Store
from tests.conftest import ok
from tests.models import dense


@pytest.fixture
def solved(cheap, here, run):
    """A recipe of the example beside its state."""
    cheap.rename(here / "prose.planner")
    assert run("solve", "--budget", "5MB").status == 0
    return here


def same(one, other):
    return [(c.name, c.format, c.bytes, c.err, c.loss) for c in one.tensors] == [
        (c.name, c.format, c.bytes, c.err, c.loss) for c in other.tensors
    ] and (one.size, one.bpw, one.loss, one.file_type) == (other.size, other.bpw, other.loss, other.file_type)


@pytest.mark.parametrize("dialect", ["llama-quantize", "ik_llama", "gguf-tool-suite", "evopress", "rco", "csv"])
def test_what_is_exported_comes_back_with_sizes_and_losses(dialect, solved, run):
    assert run("export", "recipe.json", "--to", dialect, "-o", "exported").status == 0
    done = run("import", "exported", "--from", dialect, "-o", "back.json")
    assert done.status == 0, done.text
    assert same(load_recipe(solved / "recipe.json"), load_recipe(solved / "back.json"))
    assert "Note" not in done.text


def test_dialects_are_told_by_content(solved, run):
    for dialect in ("llama-quantize", "ik_llama", "gguf-tool-suite", "evopress", "rco", "csv"):
        assert run("export", "recipe.json", "--to", dialect, "--threads", 1).status == 0
    (solved / "allocation.txt").write_bytes((solved / "recipe.rco-allocation.txt").read_bytes())
    for name in (
        "recipe.types.txt", "recipe.custom-q.txt", "recipe.recipe", "recipe.evopress.txt", "recipe.csv",
        "recipe.rco-allocation.txt", "allocation.txt",
    ):  # fmt: skip
        done = run("import", name, "-o", "back.json", "-f")
        assert done.status == 0, done.text
        assert same(load_recipe(solved / "recipe.json"), load_recipe(solved / "back.json"))
    rules = (solved / "recipe.custom-q.txt").read_text().strip()
    assert run("import", rules, "-o", "back.json", "-f").status == 0
    assert same(load_recipe(solved / "recipe.json"), load_recipe(solved / "back.json"))


def test_anybodys_gguf_as_a_recipe_for_the_model(solved, run, example):
    assert run("quantize", example.model, "recipe.json", "theirs.gguf").status == 0
    done = run("import", "theirs.gguf", "-o", "back.json")
    assert done.status == 0, done.text
    assert same(load_recipe(solved / "recipe.json"), load_recipe(solved / "back.json"))
    assert run("quantize", example.model, "back.json", "mine.gguf").status == 0
    assert (solved / "mine.gguf").read_bytes() == (solved / "theirs.gguf").read_bytes()
    (solved / "prose.planner").unlink()
    alone = run("import", "theirs.gguf", "-o", "own.json")
    assert alone.status == 0, alone.text
    assert "not known" in alone.out
    assert load_recipe(solved / "own.json").formats == load_recipe(solved / "recipe.json").formats
    shown = run("inspect", "own.json", "--tensors")
    assert shown.status == 0, shown.text
    assert "not known (imported)" in shown.out
    other = run("import", "theirs.gguf", "--model", example.model, "-o", "for-model.json")
    assert other.status == 0, other.text
    assert run("quantize", example.model, "for-model.json", "plain.gguf").status in (0, 1)


def test_a_recipe_edited_by_hand(solved, run, example):
    text = (solved / "recipe.json").read_text()
    recipe = load_recipe(solved / "recipe.json")
    before = next(choice for choice in recipe.tensors if choice.name == "blk.3.ffn_up.weight")
    after = "q8_0" if before.format != "q8_0" else "q4_K"
    line = next(line for line in text.splitlines() if '"blk.3.ffn_up.weight"' in line)
    (solved / "recipe.json").write_text(text.replace(line, line.replace(f'"{before.format}"', f'"{after}"')))
    done = run("import", "recipe.json", "-o", "new.json")
    assert done.status == 0, done.text
    assert f"blk.3.ffn_up.weight is now {after}" in done.out
    new = load_recipe(solved / "new.json")
    choice = next(choice for choice in new.tensors if choice.name == "blk.3.ffn_up.weight")
    assert choice.bytes == formats()[after].row_bytes(choice.shape[0]) * choice.shape[1]
    assert choice.why == "edited"
    assert new.size - recipe.size == choice.bytes - before.bytes
    assert new.loss == pytest.approx(recipe.loss + choice.loss - before.loss)
    assert new.bound is None
    compared = run("diff", "recipe.json", "new.json")  # the edited file itself is counted anew as well
    assert "B is as large as A" in compared.out
    written = run("quantize", example.model, "recipe.json", "edited.gguf")
    assert written.status == 0, written.text
    assert f"Edited: blk.3.ffn_up.weight is now {after}" in written.err
    assert f"promised {recipe.size:,}" in written.out
    assert (solved / "edited.gguf").stat().st_size == new.size
    unchanged = run("import", "new.json", "-o", "again.json")
    assert unchanged.status == 0
    assert "is now" not in unchanged.out
    assert load_recipe(solved / "again.json") == new


@pytest.mark.parametrize(
    ("text", "words", "remedy"),
    [
        ("blk=iq5_ks", "does not have: iq5_ks (q5_K)", "--nearest"),
        ("blk=nonsense", "not a tensor type", "ggml's names"),
        ("nothing=q4_K", "finds a tensor", "--from"),
        ("(=q4_K", "without its", "pattern"),
        ("a b", "of no dialect", "--from"),
    ],
)
def test_what_cannot_be_imported(text, words, remedy, solved, run):
    (solved / "rules.txt").write_text(text)
    done = run("import", "rules.txt", "-o", "x.json")
    assert done.status in (1, 2)
    assert words in " ".join(done.err.split())
    assert remedy in done.err
    assert not (solved / "x.json").exists()


def test_a_gguf_of_ik_llama(here, run):
    """Repacked types have the sizes of those that they are made of: numbers in a real file are exchanged."""
    path = dense(width=256, inner=512).write(here / "model.gguf")
    rules = "ffn_down=q6_K,ffn=q4_K,attn_q=iq4_xs"
    assert run("import", rules, "--model", path, "-o", "plain.json").status == 0
    assert run("quantize", path, "plain.json", "plain.gguf").status == 0
    data = (here / "plain.gguf").read_bytes()
    for ours, theirs in ((14, 214), (12, 212), (23, 223)):
        for name in (name for name, fmt in load_recipe(here / "plain.json").formats.items()):
            fmt = formats()[load_recipe(here / "plain.json").formats[name]]
            at = data.index(name.encode()) + len(name) + 4 + 16  # two dimensions
            if fmt.id == ours:
                data = data[:at] + struct.pack("<I", theirs) + data[at + 4 :]
    (here / "theirs.gguf").write_bytes(data)
    refused = run("import", "theirs.gguf", "--model", path, "-o", "x.json")
    assert refused.status == 1
    assert "which only ik_llama.cpp has" in " ".join(refused.err.split())
    done = run("import", "theirs.gguf", "--model", path, "--nearest", "-o", "back.json")
    assert done.status == 0, done.text
    assert load_recipe(here / "back.json").formats == load_recipe(here / "plain.json").formats
    assert "q4_K for q4_k_r4, which ggml does not have" in " ".join(done.text.split())
    alone = run("import", "theirs.gguf", "--nearest", "-o", "own.json")
    assert alone.status == 0, alone.text
    assert load_recipe(here / "own.json").formats == load_recipe(here / "plain.json").formats
    assert "give the original with --model" in " ".join(alone.text.split())


def test_the_nearest_type_is_one_that_fits(here, run):
    """Where blocks of 256 weights do not fill the rows, q5_1 is nearer to q6_0 than q8_0, llama.cpp's for q6_K."""
    path = dense(width=288, inner=512).write(here / "model.gguf")
    assert run("import", "ffn=q6_0", "--nearest", "--model", path).status == 0
    chosen = load_recipe(here / "recipe.json").formats
    assert chosen["blk.0.ffn_up.weight"] == "q5_1"
    assert chosen["blk.0.ffn_down.weight"] == "q6_K"


def test_types_that_no_substitute_is_known_for(here, run):
    path = dense(width=288, inner=512).write(here / "model.gguf")
    done = run("import", "ffn=nvfp4", "--model", path)
    said = " ".join(done.err.split())
    assert done.status == 1
    assert "blk.0.ffn_gate.weight cannot be nvfp4. Rows of 288 weights are no multiple of the 64 of nvfp4" in said
    assert "Possible are iq4_nl, q4_0, q4_1, q5_0, q5_1, q8_0, f16, bf16" in said


def test_the_nearest_types(solved, run):
    (solved / "it.recipe").write_text("# a comment\n^blk\\..*ffn=iq4_ks_r4\n.*=q8_0=locked\n")
    done = run("import", "it.recipe", "--nearest", "-o", "x.json")
    assert done.status == 0, done.text
    assert "get iq4_xs for iq4_ks_r4" in " ".join(done.out.split())
    recipe = load_recipe(solved / "x.json")
    assert recipe.formats["blk.3.ffn_up.weight"] == "iq4_xs"
    assert recipe.formats["blk.3.attn_q.weight"] == "q8_0"


def test_rules_that_decide_nothing_are_said(solved, run):
    (solved / "rules.sh").write_text("#!/bin/sh\ncustom='\n# all\nffn_dwon=q6_0\n.*=q4_K\nattn_v=q8_0\n'\n")
    done = run("import", "rules.sh", "-o", "x.json")
    assert done.status == 0, done.text
    said = " ".join(done.out.split())
    assert "1 rule finds no tensor: 'ffn_dwon'" in said
    assert "1 of 3 rules decides nothing" in said
    assert load_recipe(solved / "x.json").formats["blk.3.attn_v.weight"] == "q4_K"


def test_tensors_that_are_not_named_stay(solved, run):
    done = run("import", "ffn_down=q4_K,blk.*_norm=q8_0", "-o", "x.json")
    assert done.status == 0, done.text
    said = " ".join(done.out.split())
    assert "not named, so these stay as they are" in said
    assert "llama.cpp never quantizes these" in said
    assert load_recipe(solved / "x.json").formats["output.weight"] == "f16"


def bpw_state(model, names, error=0.5):
    """As save_state of the fork writes it."""
    parts = [struct.pack("<QQQ", 0x4250572D5632, 7, len(names))]
    for name in names:
        tensor = model[name]
        rows = tensor.elements // tensor.row_length
        parts.append(struct.pack(f"<I{len(name)}sQiffQ", len(name), name.encode(), 2, 0, 1.0, 9.0, tensor.elements))
        for fmt, err in (("q4_K", error * rows), ("q8_0", 0.01 * rows)):
            parts.append(struct.pack("<ifQd", formats()[fmt].id, formats()[fmt].bpw, 1, err))
    return b"".join(parts)


def test_a_state_of_the_fork_can_be_solved(here, run, example):
    with open_model(example.model) as model:
        names = [tensor.name for tensor in model.tensors if tensor.format == "f16"]
        data = bpw_state(model, names)
        foreign = data.replace(b"blk.0.attn_q.weight", b"blk.9.attn_q.weight")
    (here / "run.bpw_state").write_bytes(data)
    done = run("import", "run.bpw_state", "--model", example.model, "--imatrix", example.plain, "--state", "s.planner")
    assert done.status == 0, done.text
    with Store.open(here / "s.planner", read_only=True) as store:
        found = store.measurements(selected=True).values()
        assert {entry.made_with.split(",")[0] for entry in found} == {"target-bpw fork"}
        assert len(found) == 2 * len(names)
        assert {round(entry.err_var, 9) for entry in found} == {0.5, 0.01}
    assert run("solve", "--budget", "7MB").status == 0
    (here / "foreign.bpw_state").write_bytes(foreign)
    noted = run("import", "foreign.bpw_state", "--state", "s.planner")
    assert "blk.9.attn_q.weight: not in this model" in " ".join(noted.out.split())
    for cut in range(0, len(data), 97):
        (here / "cut.bpw_state").write_bytes(data[:cut])
        broken = run("import", "cut.bpw_state", "--state", "s.planner")
        assert broken.status in (1, 2), cut
        assert "Internal" not in broken.text


def test_own_measurements_are_kept(solved, run, example):
    with open_model(example.model) as model:
        (solved / "run.bpw_state").write_bytes(bpw_state(model, ["output.weight"]))
    before = load_recipe(solved / "recipe.json")
    assert run("import", "run.bpw_state").status == 0
    assert run("solve", "--budget", "5MB", "-o", "after.json").status == 0
    assert load_recipe(solved / "after.json").formats == before.formats


def test_tables_of_divergences_become_passes(solved, run):
    recipe = load_recipe(solved / "recipe.json")
    names = [choice.name for choice in recipe.tensors if choice.why == "solved"]
    values = ["0.5" if name == "output.weight" else "404" if "blk.7" in name else f"0.0{len(name)}" for name in names]
    (solved / "kld_results.csv").write_text(f"QTYPE,{','.join(names)}\niq2_ks,{','.join(values)}\n")
    done = run("import", "kld_results.csv")
    assert done.status == 0, done.text
    assert "stand for them" in done.out
    with Store.open(solved / "prose.planner", read_only=True) as store:
        passes = store.passes()
    assert {name for entry in passes for name in entry.errors} == {name for name in names if "blk.7" not in name}
    assert any(len(entry.errors) > 1 for entry in passes)
    measured = run("solve", "--budget", "5MB", "--sensitivity", "measured", "-o", "m.json")
    assert measured.status == 0, measured.text
    (solved / "kld_results.csv").write_text(f"QTYPE,{names[0]},blk.99.attn_q.weight\nq4_K,0.01,0.02\n")
    other = run("import", "kld_results.csv")
    assert other.status == 0, other.text
    assert "blk.99.attn_q.weight: not in this model" in " ".join(other.out.split())
    grown = f"QTYPE,{','.join(names[:3])}\nq4_K,0.01,{{}},0.03\n"
    counts = []
    for second in ("404", "0.02", "0.00021"):  # the last is below all others, as if it were the noise
        (solved / "kld_results_partial.csv").write_text(grown.format(second))
        ok(run("import", "kld_results_partial.csv"))
        with Store.open(solved / "prose.planner", read_only=True) as store:
            counts.append(len(store.passes()))
    assert (counts[1] - counts[0], counts[2] - counts[1]) == (1, 1)
    (solved / "kld_results.csv").write_text("QTYPE,a\nq4_K,x\n")
    assert run("import", "kld_results.csv").status == 1
    (solved / "kld_results.csv").write_text("QTYPE,a\nq4_K,0.5\n")
    assert run("import", "kld_results.csv").status == 1


def test_nothing_is_overwritten_unasked(solved, run):
    before = (solved / "recipe.json").read_bytes()
    done = run("import", "ffn=q4_K")
    assert done.status == 1
    assert "exists" in done.err
    assert (solved / "recipe.json").read_bytes() == before
    assert json.loads(before)["tensors"]
