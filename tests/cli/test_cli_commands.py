"""The commands as people use them: what they print, where they write, what they take over from before."""

from __future__ import annotations

import json
import re

import gguf
import numpy as np
import pytest

from planner import __version__
from planner.cli.messages import explain
from planner.gguf import open_model
from planner.recipe import load_recipe
from planner.text import plain
from tests.conftest import ok
from tests.models import FEW, dense, experts, write_imatrix


@pytest.fixture
def model(here):
    return dense(width=256, inner=256, vocabulary=64, blocks=2).write(here / "model.gguf")


@pytest.fixture
def matrix(model, here):
    return write_imatrix(model, here / "x.imatrix")


def test_help_and_version(run):
    overview = ok(run("--help")).out
    for command in ("inspect", "measure", "solve", "quantize", "export"):
        assert command in overview
        text = ok(run(command, "--help")).out
        assert len(text.splitlines()) > 5
        assert max(map(len, text.splitlines())) <= 80
    assert __version__ in ok(run("--version")).out
    assert run("nonsense").status == 2
    assert run("solve", "--nonsense").status == 2


def test_measure_says_what_there_is_and_what_is_next(model, matrix, run):
    first = ok(run("measure", model, "--imatrix", matrix, "--types", FEW))
    assert re.search(r"(\d+) measurements in \S*model\.planner, \1 of them\s+new", first.out)
    assert "Next: planner solve --state model.planner --budget SIZE" in first.out
    again = ok(run("measure", model, "--types", FEW))  # the imatrix of before
    assert "0 of them new" in " ".join(again.out.split())
    assert again.err == ""


def test_what_is_missing_is_said_once(model, here, run):
    blind = write_imatrix(model, here / "plain.imatrix", sums=False)
    result = ok(run("measure", model, "--imatrix", blind, "--types", "q4_K"))
    assert result.err.count("sums of activations") == 1
    assert "planner imatrix" in " ".join(result.err.split())
    none = ok(run("measure", model, "--no-imatrix", "--types", "q4_K,iq2_xs", "--state", "none.planner"))
    assert none.err.count("No imatrix") == 1
    assert "--no-imatrix" not in none.err


def test_solve_prints_a_table_that_adds_up(model, matrix, here, run):
    ok(run("measure", model, "--imatrix", matrix, "--types", FEW))
    out = ok(run("solve", "--bpw", 5)).out
    recipe = load_recipe(here / "recipe.json")
    table = out.split("\n\n")[0].splitlines()
    assert table[0].split() == ["role", "n", "size", "loss", "types"] or "bpw" in table[0]
    assert max(map(len, table)) <= 80
    rows = [line for line in table[1:] if not line.startswith("    ")]
    assert sum(int(re.match(r"(left alone|\S+)\s+(\d+)", row)[2]) for row in rows) == len(recipe.tensors)
    shares = [float(share) for share in re.findall(r"([\d.]+) %", out.split("\n\n")[0])]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert f"{recipe.size:,} bytes" in out
    assert f"{recipe.bpw:.4f} bpw" in out
    assert "planner quantize" in out.split("Next:")[1]


@pytest.mark.parametrize("source", ["uniform", "prior", "structure", "structure+prior"])
def test_every_sensitivity(source, model, matrix, here, run):
    ok(run("measure", model, "--imatrix", matrix, "--types", FEW))
    out = ok(run("solve", "--bpw", 5, "--sensitivity", source)).out
    assert f"by {source}" in out
    assert load_recipe(here / "recipe.json").sensitivity == source


def test_pins_of_formats_that_were_not_measured_are_measured(model, matrix, here, run):
    arguments = ("solve", model, "--imatrix", matrix, "--bpw", 6, "--types", FEW, "--pin", r"blk\.0\.attn_v=q5_1")
    ok(run(*arguments))
    assert load_recipe(here / "recipe.json").formats["blk.0.attn_v.weight"] == "q5_1"
    assert "q5_1" not in {
        fmt for name, fmt in load_recipe(here / "recipe.json").formats.items() if name != "blk.0.attn_v.weight"
    }
    # and are there when the model is not
    ok(run("solve", "--bpw", 6, "--pin", r"blk\.0\.attn_v=q5_1", "-o", "again.json"))


def test_floors_and_caps(model, matrix, here, run):
    ok(run("measure", model, "--imatrix", matrix, "--types", FEW))
    ok(run("solve", "--bpw", 6, "--min", "q4_K", "--max", "ffn=q4_K"))
    formats = load_recipe(here / "recipe.json").formats
    assert "q2_K" not in formats.values()
    assert {fmt for name, fmt in formats.items() if "ffn" in name and "norm" not in name} <= {"q4_K", "q4_0"}


def test_both_ways_to_say_a_size(model, matrix, here, run):
    ok(run("measure", model, "--imatrix", matrix, "--types", FEW))
    ok(run("solve", "--bpw", "5.5", "-o", "bits.json"))
    size = load_recipe(here / "bits.json").size
    ok(run("solve", "--budget", size, "-o", "bytes.json"))
    assert load_recipe(here / "bytes.json").loss <= load_recipe(here / "bits.json").loss * (1 + 1e-9)
    ok(run("solve", "--budget", f"{size / 1024} KiB", "-o", "kib.json"))
    assert load_recipe(here / "kib.json").formats == load_recipe(here / "bytes.json").formats


def test_quantizing_twice_gives_the_same_bytes(model, matrix, here, run):
    ok(run("solve", model, "--imatrix", matrix, "--bpw", 5, "--types", FEW))
    ok(run("quantize", model, "recipe.json", "one.gguf", "-t", 1))
    ok(run("quantize", model, "recipe.json", "two.gguf", "-t", 2))
    assert (here / "one.gguf").read_bytes() == (here / "two.gguf").read_bytes()
    before = (here / "one.gguf").stat().st_ino
    ok(run("quantize", model, "recipe.json", "one.gguf", "--force"))
    assert (here / "one.gguf").read_bytes() == (here / "two.gguf").read_bytes()
    assert (here / "one.gguf").stat().st_ino != before  # a new file under the old name


def test_a_recipe_edited_by_hand(model, matrix, here, run):
    ok(run("solve", model, "--imatrix", matrix, "--bpw", 5, "--types", FEW))
    data = json.loads((here / "recipe.json").read_text())
    for tensor in data["tensors"]:
        if "attn_v" in tensor["name"]:
            tensor["format"] = "Q6_K" if "blk.0" in tensor["name"] else "bf16"
    (here / "mine.json").write_text(json.dumps(data))
    out = ok(run("quantize", model, "mine.json", "out.gguf")).out
    with open_model(here / "out.gguf") as written:
        assert written["blk.0.attn_v.weight"].format == "q6_K"
        assert written["blk.1.attn_v.weight"].format == "bf16"
        assert "as promised" not in out
        assert f"{data['size']:,}" in out


def test_shards(model, matrix, here, run):
    ok(run("solve", model, "--imatrix", matrix, "--bpw", 6, "--types", FEW))
    out = ok(run("quantize", model, "recipe.json", "cut.gguf", "--max-shard-size", "200KB")).out
    parts = sorted(here.glob("cut-*.gguf"))
    assert len(parts) > 1
    assert max(part.stat().st_size for part in parts) <= 200_000
    assert all(part.name in out for part in parts)
    ok(run("quantize", model, "recipe.json", "whole.gguf"))
    names = [tensor.name for part in parts for tensor in gguf.GGUFReader(part).tensors]
    with open_model(parts[0]) as cut, open_model(here / "whole.gguf") as whole:
        assert sorted(names) == sorted(whole.by_name)
        for tensor in whole.tensors:
            assert np.array_equal(cut.raw_rows(cut[tensor.name]), whole.raw_rows(tensor))


def test_what_is_written_into_the_file(model, matrix, here, run):
    ok(run("solve", model, "--imatrix", "x.imatrix", "--bpw", 5, "--types", "q4_K"))
    ok(run("quantize", model, "recipe.json", "out.gguf"))
    fields = {key: field.contents() for key, field in gguf.GGUFReader(here / "out.gguf").fields.items()}
    assert fields["general.file_type"] == load_recipe(here / "recipe.json").file_type == 15
    assert fields["general.quantization_version"] == 2
    assert fields["quantize.imatrix.file"] == "x.imatrix"
    assert fields["quantize.imatrix.dataset"] == "made up"
    assert fields["quantize.imatrix.chunks_count"] == 2
    assert fields["quantize.imatrix.entries_count"] == 15
    assert len(fields["quantize.planner.recipe"]) == 64
    assert fields["quantize.planner.version"].strip() == __version__


def test_experts_that_were_never_used_get_the_least(here, run):
    maker = experts(count=4)
    model = maker.write(here / "model.gguf")
    unused = {name: [0, 0, 0, 0] for name in maker.arrays if "blk.1." in name and "_exps" in name}
    matrix = write_imatrix(model, here / "x.imatrix", counts=unused)
    ok(run("solve", model, "--imatrix", matrix, "--bpw", 5, "--types", FEW))
    # an imatrix that never saw any expert of a block says nothing of their use: they count alike
    assert load_recipe(here / "recipe.json").loss > 0


def test_several_states(model, matrix, here, run):
    ok(run("measure", model, "--imatrix", matrix, "--types", FEW, "--state", "a.planner"))
    ok(run("measure", model, "--no-imatrix", "--types", FEW, "--state", "b.planner"))
    assert run("solve", "--bpw", 5).status == 2
    ok(run("solve", "--bpw", 5, "--state", "b.planner"))
    assert load_recipe(here / "recipe.json").imatrix is None
    assert run("solve", model, "--bpw", 5, "--types", FEW).status == 0  # model.planner, a third one


# Messages


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain text, ümlaut", "plain text, ümlaut"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\rb\tc\x00", "a\\rb\\tc\\x00"),
        ("line\nError: all is lost", "line\\nError: all is lost"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\udcff"),  # a byte of a file name that is not UTF-8
    ],
)
def test_names_of_strangers(given, shown):
    assert plain(given) == shown


def test_every_error_is_explained(monkeypatch):
    from planner import errors
    from state import StateLocked

    kinds = [kind for kind in map(errors.__dict__.get, errors.__all__) if isinstance(kind, type)]
    assert len(kinds) > 10
    for kind in kinds:
        status, text = explain(kind("This is wrong.", "Do that."))
        assert status in (1, 2, 130)
        assert "This is wrong." in text
        assert "Do that." in text
    assert explain(StateLocked("It is locked.", "Wait."))[0] == 1
    assert "locked" in explain(StateLocked("It is locked.", "Wait."))[1]
    status, text = explain(OSError(28, "No space left on device", "/x/y"))
    assert (status, "/x/y" in text, "room" in text) == (1, True, True)
    assert explain(MemoryError())[0] == 1
    monkeypatch.delenv("PLANNER_DEBUG", raising=False)
    with pytest.raises(ZeroDivisionError) as caught:
        raise ZeroDivisionError("oops")
    status, text = explain(caught.value)
    assert status == 1
    assert "Traceback" not in text
    assert "bug" in text


def test_nothing_is_drawn_where_nobody_looks(model, matrix, run):
    result = ok(run("measure", model, "--imatrix", matrix, "--types", FEW))
    assert "\x1b" not in result.text
    assert "\r" not in result.text


def test_a_reader_that_has_gone(start, model, matrix, here, run):
    ok(run("measure", model, "--imatrix", matrix, "--types", FEW))
    with start("solve", "--bpw", 5, cwd=here) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
    assert process.returncode in (0, 1)
