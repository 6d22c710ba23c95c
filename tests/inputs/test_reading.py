"""Files and pipes are read once and whole, in any encoding that text comes in, and nobody waits without end."""

from __future__ import annotations

import codecs
import contextlib
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.dialects.table import is_table, read_table
from planner.errors import RecipeError, UsageError
from planner.evidence.kld_table import read_kld_table
from planner.inputs import kinds, reading
from planner.inputs.reading import decode, kind_at, look, open_regular, read_bytes, read_text
from planner.recipe import load_recipe
from tests.models import dense, write_imatrix

pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(reading, "_FOR_WRITER", 0.1)
    monkeypatch.setattr(reading, "_FOR_MORE", 0.1)


@pytest.fixture
def pipe(tmp_path):
    """A function of data: the path of a FIFO into which it is written, a little later, by somebody else."""
    writers = []

    def write(path: Path, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it was refused by its head
            path.write_bytes(data)

    def make(data: bytes, name: str = "pipe") -> Path:
        path = tmp_path / name
        os.mkfifo(path)
        writers.append(threading.Timer(0.1, write, [path, data]))
        writers[-1].start()
        return path

    yield make
    for writer in writers:
        writer.join(10)
        assert not writer.is_alive(), "nobody read it"


@pipes
@pytest.mark.parametrize("size", [1, 5000, 300_000])
def test_a_pipe_is_read_whole(pipe, size):
    data = b"a=q4_K\n" * (size // 7 + 1)
    found = look(pipe(data), RecipeError)
    assert (found.data, found.whole, found.kind, found.name) == (data, True, kinds.TEXT, "a pipe")
    assert read_bytes(pipe(data, "second"), RecipeError) == data


@pipes
def test_a_pipe_without_an_end(tmp_path, impatient):
    os.mkfifo(tmp_path / "pipe")
    for read in (look, read_bytes):
        with pytest.raises(UsageError, match="Nothing was written"):
            read(tmp_path / "pipe", UsageError)
    with pytest.raises(UsageError, match="not a regular file"):
        open_regular(tmp_path / "pipe", UsageError)
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # somebody who never says anything
    try:
        with pytest.raises(UsageError, match="Nothing came"):
            read_bytes(tmp_path / "pipe", UsageError)
        os.write(writer, b"x" * 6000)
        with pytest.raises(UsageError, match="too large"):
            look(tmp_path / "pipe", UsageError, 1000)
    finally:
        os.close(writer)


@pytest.mark.parametrize("path", [os.devnull, "/dev/zero", "/dev/full", "."])
def test_devices_and_directories(path):
    if not Path(path).exists():
        pytest.skip("not here")
    for read in (look, read_bytes, open_regular, kind_at):
        with pytest.raises(UsageError, match="not a regular file"):
            read(Path(path), UsageError)


@pipes
def test_what_is_read_in_place_is_refused_from_a_pipe(pipe, tmp_path):
    model = dense(width=256, inner=256, vocabulary=64, blocks=1).write(tmp_path / "model.gguf")
    for number, data in enumerate((model.read_bytes(), b"SQLite format 3\0" + bytes(9000), kinds.BASELINE_MAGIC * 99)):
        with pytest.raises(RecipeError, match="not a regular file"):
            look(pipe(data, f"pipe{number}"), RecipeError)
    assert look(model, RecipeError).kind == kinds.GGUF


def test_files_of_which_the_head_is_enough(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"# comment\n" * 1000)
    found = look(path, RecipeError, 5000)
    assert (len(found.data), found.whole) == (kinds.HEAD, False)
    with pytest.raises(RecipeError, match="too large for a list"):
        found.text(RecipeError, "a list")


# Commands


@pytest.fixture
def model(here):
    return dense(width=256, inner=256, vocabulary=64, blocks=2).write(here / "model.gguf")


RULES = [f"blk.{block}.{role}=q{bits}_K" for block, bits in ((0, 5), (1, 4)) for role in ("attn", "ffn")]


@pipes
def test_rules_and_recipes_come_through_pipes(model, here, pipe, run):
    # the rules stand behind the first 8 KiB
    text = ("\n".join([f"nothing{number}=q8_0" for number in range(1000)] + RULES) + "\n").encode()
    (here / "rules.txt").write_bytes(text)
    assert run("import", "rules.txt", "--model", model, "-o", "file.json").status == 0
    done = run("import", pipe(text), "--model", model, "-o", "piped.json")
    assert done.status == 0, done.text
    recipe = load_recipe(here / "piped.json")
    assert recipe.formats == load_recipe(here / "file.json").formats
    assert {choice.why for choice in recipe.tensors} >= {"imported from a pipe"}
    content = (here / "piped.json").read_bytes()
    assert run("quantize", model, pipe(content, "two"), "out.gguf").status == 0
    assert run("inspect", pipe(content, "three")).status == 0
    assert run("import", pipe(content, "four"), "--model", model, "-o", "again.json").status == 0
    assert load_recipe(here / "again.json").formats == recipe.formats
    compared = run("diff", "file.json", pipe(content, "five"))
    assert "the same types" in compared.text, compared.text
    unnamed = run("export", pipe(content, "six"), "--to", "csv")
    assert unnamed.status == 2
    assert "-o" in unnamed.err


@pipes
def test_models_and_matrices_through_pipes_are_refused(model, here, run):
    matrix = write_imatrix(model, here / "x.imatrix")
    assert run("solve", model, "--imatrix", matrix, "--bpw", 5, "--types", "q4_K,q5_K", "-t", 1).status == 0
    os.mkfifo(here / "pipe")
    for command in (
        ("measure", "pipe"),
        ("measure", model, "--imatrix", "pipe"),
        ("quantize", "pipe", "recipe.json", "out.gguf"),
        ("quantize", model, "recipe.json", "out.gguf", "--imatrix", "pipe"),
        ("evaluate", "pipe", "--text", "text"),
        ("bench", "pipe"),
        ("imatrix", "--merge", "pipe", "-o", "out.gguf"),
        ("import", "recipe.json", "--model", "pipe"),
        ("inspect", matrix, "--model", "pipe"),
    ):
        result = run(*command)
        assert result.status in (1, 2), command
        assert "not a regular file" in " ".join(result.err.split()), command
    assert run("solve", "--state", "pipe", "--bpw", 5).status == 1


@pytest.mark.parametrize("name", ["runs/lr=1/recipe.json", "lr=1.txt", "a=b", "no/dir/type=q4_K"])
def test_a_path_that_is_not_there_is_no_rule(name, model, run):
    result = run("import", name, "--model", model)
    assert result.status == 2
    assert f"{name} does not exist" in result.err


def test_rules_in_place_of_a_file(model, here, run):
    assert run("import", "blk=IQ4_K,output=q8_0", "--nearest", "--model", model).status == 0
    assert load_recipe(here / "recipe.json").formats["output.weight"] == "q8_0"


# Text

MARKS = {"utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
MARKS |= {"utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE}


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0\ufeff")))
def test_text_is_the_same_however_it_is_written(text):
    for encoding, mark in MARKS.items():
        data = mark + text.replace("\n", "\r\n").encode(encoding)
        assert decode(data, "x", UsageError) == text
        assert decode(data, "x", UsageError, exact=True) == text.replace("\n", "\r\n")
        if text.lstrip().startswith("{"):
            assert kinds.kind_of(data[: kinds.HEAD], len(data)) == kinds.JSON


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("Ein Wort für alle.".encode("latin-1"), "byte 10, in line 1, is 0xfc"),
        ("zwei\nWörter".encode("latin-1"), "in line 2"),
        ("rules=q4_K\n".encode("utf-16-le"), "UTF-16 without a mark"),
        ("rules=q4_K\n".encode("utf-16-be"), "iconv -f utf-16be"),
        (codecs.BOM_UTF16_LE + b"a\0b", "UTF-16"),
        (b"\x1f\x8b\x08\0\xff", "compressed with gzip"),
    ],
)
def test_what_is_no_text(data, said, tmp_path):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(UsageError, match=said) as caught:
        read_text(tmp_path / "file", UsageError)
    assert "file" in caught.value.problem


def test_nothing_is_text_too():
    assert decode(b"", "x", UsageError) == ""


def test_comments_of_another_encoding_do_not_matter():
    text = decode("# für Müller\nblk=q4_K".encode("latin-1"), "x", UsageError, lenient=True)
    assert text.endswith("\nblk=q4_K")


@pytest.mark.parametrize("encoding", MARKS)
def test_rules_recipes_and_tables_of_windows(encoding, model, here, run):
    table = "format;Tensor\n" + "".join(f"q5_K;blk.{block}.ffn_up.weight\n" for block in range(2))
    rules = "\n".join(RULES) + "\n"
    assert run("import", rules.replace("\n", ",").rstrip(","), "--model", model, "-o", "plain.json").status == 0
    recipe = (here / "plain.json").read_text()
    for name, text in (("rules.txt", rules), ("table.csv", table), ("recipe.json", recipe)):
        (here / name).write_bytes(MARKS[encoding] + text.replace("\n", "\r\n").encode(encoding))
    for name in ("rules.txt", "recipe.json"):
        done = run("import", name, "--model", model, "-o", "out.json", "-f")
        assert done.status == 0, done.text
        assert load_recipe(here / "out.json").formats == load_recipe(here / "plain.json").formats
    assert run("import", "table.csv", "--model", model, "-o", "out.json", "-f").status == 0
    assert load_recipe(here / "out.json").formats["blk.1.ffn_up.weight"] == "q5_K"
    assert run("quantize", model, "recipe.json", "out.gguf").status == 0
    assert run("inspect", "recipe.json").status == 0


@pytest.mark.parametrize("separator", ",;\t")
@pytest.mark.parametrize("said", [False, True])
def test_tables_as_spreadsheets_write_them(separator, said):
    head = f"sep={separator}\n" if said else ""
    text = head + separator.join(["why", '"Tensor"', " Format "]) + "\n" + separator.join(['"a, b; c"', "x", "q4_K"])
    assert is_table(text)
    assert read_table(text, "t").formats == {"x": "q4_K"}
    comma = "." if separator == "," else ","
    table = head + separator.join(["QTYPE", "x"]) + "\n" + separator.join(["iq1_s", f"0{comma}25"]) + "\n"
    assert kinds.kind_of(table.encode(), len(table)) == kinds.KLD_TABLE
    assert read_kld_table(table, "t").klds == {"iq1_s": {"x": 0.25}}
