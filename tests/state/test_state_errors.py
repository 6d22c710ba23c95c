from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from state import StateCorrupt, StateError, StateForeign, StateFull, StateLocked, StateMissing, StateReadOnly, Store
from state.errors import from_os, from_sqlite, translated

CODES = sorted(name for name in dir(sqlite3) if name.startswith("SQLITE_") and name not in {"SQLITE_OK"})
MODES = [{}, {"create": True}, {"read_only": True}]


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("it failed")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize("name", CODES)
def test_every_code_of_sqlite_has_words(name, path):
    error = from_sqlite(sqlite_error(getattr(sqlite3, name)), path)
    assert str(path) in error.problem
    assert error.remedy
    assert str(error) == f"{error.problem}\n{error.remedy}"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_BUSY, StateLocked),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StateLocked),
        (sqlite3.SQLITE_FULL, StateFull),
        (sqlite3.SQLITE_IOERR_WRITE, StateFull),
        (sqlite3.SQLITE_IOERR_FSYNC, StateFull),
        (sqlite3.SQLITE_READONLY, StateReadOnly),
        (sqlite3.SQLITE_READONLY_ROLLBACK, StateReadOnly),
        (sqlite3.SQLITE_NOTADB, StateForeign),
    ],
)
def test_codes_that_callers_tell_apart(code, kind, path):
    assert type(from_sqlite(sqlite_error(code), path)) is kind


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_error_of_the_file_system_has_words(code, path):
    error = from_os(OSError(code, os.strerror(code)), path)
    assert error.problem
    assert error.remedy


def test_no_error_of_sqlite_escapes(path):
    kinds = [sqlite3.Error, *sqlite3.Error.__subclasses__(), *sqlite3.DatabaseError.__subclasses__()]
    for kind in kinds:
        with pytest.raises(StateError), translated(path):
            raise kind("it failed")


def test_a_schema_that_is_not_text(filled):
    """SQLite quotes it in the message of its error, which Python then fails to decode."""
    content = bytearray(filled.read_bytes())
    content[content.index(b"CREATE TABLE energies") + 3] = 0xF3
    filled.write_bytes(content)
    for mode in MODES:
        with pytest.raises(StateCorrupt):
            Store.open(filled, **mode)


@pytest.mark.parametrize("mode", MODES[::2])
def test_no_file(path, mode):
    with pytest.raises(StateMissing, match="no state file") as caught:
        Store.open(path, **mode)
    assert caught.value.remedy
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("mode", MODES)
def test_no_folder(path, mode):
    with pytest.raises(StateMissing):
        Store.open(path / "below" / "x.planner", **mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_folder(path, mode):
    path.mkdir()
    with pytest.raises(StateForeign, match="not a file"):
        Store.open(path, **mode)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
@pytest.mark.parametrize("mode", MODES)
def test_a_pipe_is_not_waited_for(path, mode):
    os.mkfifo(path)
    with pytest.raises(StateForeign, match="not a file"):
        Store.open(path, **mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_names_that_cannot_be(tmp_path, mode, name):
    with pytest.raises(StateError):
        Store.open(tmp_path / name, **mode)


@pytest.mark.parametrize("name", ["a b?mode=memory#c%20.planner", "file:x.planner", ":memory:", "größe", "'\"\\"])
def test_names_that_are_taken_literally(tmp_path, name, measurement, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store.open(name, create=True) as store:
        store.add([measurement()])
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with Store.open(Path(name), read_only=True) as store:
        assert len(store.measurements()) == 1


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_not_utf_8(tmp_path, measurement):
    path = os.path.join(os.fsencode(tmp_path), b"\xff.planner")  # noqa: PTH118 - bytes
    with Store.open(os.fsdecode(path), create=True) as store:
        store.add([measurement()])
    assert [os.fsencode(file.name) for file in tmp_path.iterdir()] == [b"\xff.planner"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("content", [b"GGUF" + bytes(200), b"{}", b"\n" * 5000, b"SQLite format 3\0"])
def test_other_files_are_left_as_they_are(path, mode, content):
    path.write_bytes(content)
    with pytest.raises(StateError) as caught:
        Store.open(path, **mode)
    assert caught.value.remedy
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("mode", MODES)
def test_the_database_of_another_program(path, mode):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE measurement (key)")
    content = path.read_bytes()
    with pytest.raises(StateForeign, match="another program"):
        Store.open(path, **mode)
    assert path.read_bytes() == content


def test_an_empty_file_is_what_a_killed_run_leaves(path, measurement):
    path.touch()
    for mode in ({}, {"read_only": True}):
        with pytest.raises(StateMissing, match="empty"):
            Store.open(path, **mode)
    with Store.open(path, create=True) as store:
        store.add([measurement()])


def test_something_else_under_the_name_of_the_lock(filled):
    lock = filled.with_name(filled.name + ".lock")
    lock.mkdir()
    with pytest.raises(StateError):
        Store.open(filled)
    lock.rmdir()
    victim = filled.with_name("victim")
    victim.write_text("precious")
    lock.symlink_to(victim)
    with pytest.raises(StateError):
        Store.open(filled)
    assert victim.read_text() == "precious"


def test_a_record_too_large_to_be_real(path, energies):
    huge = energies(values={f"{number:04000}": 1.0 for number in range(100)})
    with Store.open(path, create=True) as store:
        with pytest.raises(StateError, match="too large"):
            store.add_energies([huge])
        assert store.energies() == {}


def test_a_reader_that_holds_on_delays_and_then_fails_a_write(filled, measurement, monkeypatch):
    monkeypatch.setattr("state.connection.PATIENCE", 0.05)
    with Store.open(filled) as store, closing(sqlite3.connect(filled, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM measurement").fetchone()
        with pytest.raises(StateLocked, match="another program"):
            store.add([measurement(999)])
        reader.execute("ROLLBACK")
        store.add([measurement(999)])
        assert len(store.measurements()) == 41
