"""What is printed arrives on every terminal, and what is meant to be pasted can be."""

from __future__ import annotations

import errno
import io
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cli import terminal
from planner.cli.messages import explain, wrapped
from planner.errors import OutputError
from planner.files import refused, write_atomically
from planner.text import command, plain, quoted
from tests.conftest import ROOT
from tests.models import FEW, dense, write_imatrix

BASH = shutil.which("bash")


def said(*arguments, folder, **environment):
    """What a process of its own prints, as bytes."""
    paths = os.pathsep.join([*(entry for entry in sys.path if entry), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "planner", *map(str, arguments)],
        cwd=folder, env={**os.environ, "PYTHONPATH": paths, **environment}, capture_output=True, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert b"Internal error" not in done.stderr, done.stderr.decode()
    return done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1", "utf-16", "utf-8"])
def test_no_encoding_is_too_poor(encoding, here):
    dense(width=256, inner=256, vocabulary=64, blocks=1).write(here / "tiny 中→ä.gguf")
    for arguments in (["--help"], ["evaluate", "--help"], ["inspect", "tiny 中→ä.gguf"], ["inspect", "none 中→ä"]):
        text = said(*arguments, folder=here, PYTHONIOENCODING=encoding).decode(encoding)
        assert len(text) > 20
    assert "none" in text
    assert "中→ä" in text if encoding.startswith("utf") else "\\u4e2d->" in text


def test_a_locale_without_letters(here):
    dense(width=256, inner=256, vocabulary=64, blocks=1).write(here / "tiny ä.gguf")
    text = said("inspect", "tiny ä.gguf", folder=here, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert b"256" in text


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_names_of_files_that_are_no_text(here, run):
    model = dense(width=256, inner=256, vocabulary=64, blocks=1).write(here / "caf\udce9.gguf")
    solved = run("solve", model, "--bpw", 5, "--types", FEW, "-t", 1)
    assert solved.status == 0, solved.text
    assert solved.out.endswith(f"Next: planner quantize {quoted(model)} recipe.json OUT.gguf\n")
    assert run("quantize", model, "recipe.json", "out.gguf").status == 0
    for arguments in (["inspect", model, "--json"], ["inspect", model], ["inspect", "caf\udce8.gguf"]):
        said(*arguments, folder=here, PYTHONIOENCODING="utf-8")
    out = said("quantize", model, "recipe.json", "caf\udcea.gguf", folder=here, PYTHONIOENCODING="utf-8")
    assert out.startswith(b"caf\xea.gguf\n"), "a script reads the name back"


def test_streams_write_what_is_near(monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for encoding in ("ascii", "cp1252"))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    terminal.never_fail()
    import click

    click.echo("1 ± 2 → 3… 中 \udce9")
    click.echo("1 ± 2 → 3… 中", err=True)
    assert out.buffer.getvalue() == b"1 +/- 2 -> 3... \\u4e2d \xe9\n"
    assert err.buffer.getvalue() == "1 ± 2 -> 3… \\u4e2d\n".encode("cp1252")
    monkeypatch.setattr(sys, "stdout", None)
    terminal.never_fail()
    terminal.finish()


# Commands

PLAIN = ["my model (f16).gguf", "it's.gguf", "-dash.gguf", "a=b.gguf", "mödel 中.gguf", "glob[1]*.gguf"]
ODD = ["caf\udce9.gguf", "a`b`$c\\n'x.gguf", "new\nline\x1b[2J.gguf", "!history&;|<>#~", "two  spaces"]


@pytest.mark.skipif(BASH is None, reason="needs a shell")
@pytest.mark.parametrize("name", [*PLAIN, *ODD])
def test_what_is_printed_means_the_file(name):
    word = quoted(Path(name))
    assert word.isprintable()
    assert "`" not in word
    read = subprocess.run([str(BASH), "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
    assert Path(os.fsdecode(read)) == Path(name)
    assert not read.startswith(b"-")


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="`"), min_size=1), min_size=1))
def test_words_that_can_be_printed_are_quoted_as_the_library_does(words):
    assert shlex.split(command(*words)) == words
    for word, path in zip(words, shlex.split(command(*map(Path, words))), strict=True):
        assert Path(path) == Path(word)
        assert not path.startswith("-")


def test_commands_are_not_broken():
    path = quoted(Path("a rather long  name of a file, with spaces in it.gguf"))
    for begin in range(60):
        text = wrapped(
            f"{'x' * begin} `planner evaluate {path} QUANT` and more words. Else: planner measure MODEL --text FILE"
        )
        assert f"`planner evaluate {path} QUANT`" in text
        assert "planner measure MODEL --text FILE" in text


@pytest.mark.parametrize("name", PLAIN)
def test_every_command_that_is_printed_can_be_pasted(name, here, run):
    dense(width=256, inner=256, vocabulary=64, blocks=1).write(here / name)
    matrix = write_imatrix(here / name, here / "im matrix.gguf")
    same = (f"./{name}", "--imatrix", matrix.name, "--types", FEW, "-t", 1)
    measured = run("measure", *same, "--state", "a state.planner")
    solved = run("solve", *same, "--bpw", 5, "-o", "my recipe.json")
    shown = [run("inspect", path) for path in ("a state.planner", "my recipe.json")]
    for result in (measured, solved, *shown):
        assert result.status == 0, result.text
        words = shlex.split(result.out.split("Next: ")[1].replace("SIZE", "300kB"))
        assert words[0] == "planner"
        again = run(*words[1:], *(["-f"] if words[1] == "quantize" else []))
        assert again.status == 0, again.text
    for dialect in ("llama-quantize", "ik_llama", "evopress"):
        words = shlex.split(run("export", "my recipe.json", "--to", dialect).out)
        assert any(Path(word) == Path(name) and not word.startswith("-") for word in words)


# What a system refuses


@pytest.mark.parametrize(
    ("code", "problem", "remedy"),
    [
        ("EFBIG", "FAT32", "--max-shard-size"),
        ("ENOSPC", "disk is full", "Make room"),
        ("EDQUOT", "quota", "Make room"),
        ("EROFS", "read-only", "another disk"),
        ("EACCES", "permission denied", "Check the permissions"),
        ("ENOENT", "directory does not exist", "Create"),
        ("EIO", os.strerror(errno.EIO), "another place"),
    ],
)
def test_why_a_file_cannot_be_written(code, problem, remedy):
    number = getattr(errno, code)
    found = refused(Path("out.gguf"), OSError(number, os.strerror(number)))
    assert "out.gguf cannot be written" in found.problem
    assert problem in found.problem
    assert remedy in found.remedy
    status, text = explain(OSError(number, os.strerror(number), "x"))
    assert status == 1
    assert "x: " in text


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a disk that is full")
def test_output_to_a_full_disk(here):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "planner", "--help"], stdout=full, stderr=subprocess.PIPE, cwd=ROOT, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: The output cannot be written: the disk is full.\nMake room")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_devices_and_pipes_are_written_to_and_not_replaced(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", b"text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    with pytest.raises(OutputError):
        write_atomically(tmp_path / "no" / "file", b"")


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="no names for open files")
def test_an_open_file_is_written_to_by_its_number(tmp_path):
    """As /dev/stdout is, sent to a file by a shell."""
    with (tmp_path / "out").open("wb") as file:
        write_atomically(Path(f"/dev/fd/{file.fileno()}"), b"text")
        assert (tmp_path / "out").stat().st_ino == os.fstat(file.fileno()).st_ino
    assert (tmp_path / "out").read_bytes() == b"text"


def test_what_a_terminal_would_act_on_is_escaped():
    assert plain("a\x1b[31m\udce9\u202e") == "a\\x1b[31m\\udce9\\u202e"
