"""Files of every schema version are opened and resumed. The machinery is tried with two made-up versions more."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from state import StateCorrupt, StateFull, StateNewer, Store, migrations, schema

ASSETS = Path(__file__).parent / "assets"
LATER = schema.VERSION + 2
FROZEN = sorted(ASSETS.glob("v*.planner"))


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA user_version").fetchone()[0]


def set_version(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")


def test_every_version_has_its_steps_and_its_frozen_file():
    assert len(migrations.STEPS) == schema.VERSION - 1
    assert [file.stem for file in FROZEN] == [f"v{number + 1}" for number in range(schema.VERSION)]
    assert [version_of(file) for file in FROZEN] == [number + 1 for number in range(schema.VERSION)]


@pytest.mark.parametrize("frozen", FROZEN, ids=lambda file: file.stem)
@pytest.mark.parametrize("read_only", [True, False])
def test_frozen_files_are_read(frozen, read_only, path, measurement, energies, make_pass, inventory):
    shutil.copyfile(frozen, path)
    with Store.open(path, read_only=read_only) as store:
        assert store.inventory() == inventory()
        assert list(store.measurements().values()) == [measurement(number) for number in range(12)]
        assert list(store.measurements(selected=True).values()) == [measurement(number) for number in range(8)]
        assert list(store.energies().values()) == [energies(number) for number in range(3)]
        assert list(store.energies(selected=True).values()) == [energies(0)]
        assert store.passes() == (() if frozen.stem == "v1" else (make_pass(0), make_pass(1)))


@pytest.mark.parametrize("frozen", FROZEN, ids=lambda file: file.stem)
def test_frozen_files_are_resumed(frozen, path, measurement, inventory):
    shutil.copyfile(frozen, path)
    with Store.open(path) as store:
        store.set_inventory(inventory())
        store.add([measurement(11), measurement(12)])
        assert len(store.measurements()) == 13
    assert version_of(path) == schema.VERSION


OLD = FROZEN[:-1]
WITH_NOTES = [file for file in FROZEN if int(file.stem[1:]) < 3]


def with_notes(frozen: Path, path: Path, notes: object) -> None:
    shutil.copyfile(frozen, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE energies SET notes = ? WHERE id = 2", (notes,))


@pytest.mark.parametrize("frozen", WITH_NOTES, ids=lambda file: file.stem)
@pytest.mark.parametrize(
    "notes",
    ["", "[]", "3", '"content"', "{}", "[" * 100_000, b"{", 0.5, '{"content": 3}', '{"content": "\\ud800"}']
    + [f'{{"content": "{64 * "a"}", "gaps": {gaps}}}' for gaps in ("[]", '"1"', "-1", "1.5", 2**64, "NaN", "true")],
)
def test_notes_that_no_version_wrote(frozen, path, notes):
    with_notes(frozen, path, notes)
    before = path.read_bytes()
    for mode in ({}, {"read_only": True}):
        with pytest.raises(StateCorrupt, match="notes"):
            Store.open(path, **mode)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("frozen", OLD, ids=lambda file: file.stem)
def test_what_was_migrated_is_as_if_written_today(frozen, path, filled):
    shutil.copyfile(frozen, path)
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as migrated, closing(sqlite3.connect(filled)) as fresh:
        assert schema.layout(migrated) == schema.layout(fresh)
        assert migrated.execute("PRAGMA integrity_check").fetchone() == ("ok",)


MIGRATE = """
import os, signal
from state import Store, connection, migrations
steps = list(migrations.STEPS)
def killed(database):
    steps[-1](database)
    database.execute("PRAGMA cache_size = 1")  # changed pages go to the file before the end
    database.execute("UPDATE measurement SET made_with = printf('%.2000c', 'x')")
    print("migrated", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
migrations.STEPS = (*steps[:-1], killed)
Store.open(sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9")
@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("frozen", OLD, ids=lambda file: file.stem)
def test_a_migration_that_is_killed_leaves_the_old_file(frozen, path, programs, measurement, read_only):
    shutil.copyfile(frozen, path)
    before = path.read_bytes()
    assert programs.run(MIGRATE, path) == "migrated\n"
    assert path.read_bytes() != before
    assert path.with_name(path.name + "-journal").exists()
    with Store.open(path, read_only=read_only) as store:
        assert list(store.measurements().values()) == [measurement(number) for number in range(12)]
    if read_only:
        assert path.read_bytes() == before
    assert not path.with_name(path.name + "-journal").exists()


@pytest.mark.parametrize("mode", [{}, {"create": True}, {"read_only": True}])
def test_a_newer_file_names_the_cure_and_is_left_alone(filled, mode):
    set_version(filled, schema.VERSION + 1)
    before = filled.read_bytes()
    with pytest.raises(
        StateNewer, match=f"schema {schema.VERSION + 1}; this one knows up to {schema.VERSION}"
    ) as caught:
        Store.open(filled, **mode)
    assert "pip install -U gguf-planner" in caught.value.remedy
    assert filled.read_bytes() == before


@pytest.mark.parametrize("version", [0, -1, -(2**31)])
def test_no_version_at_all(filled, version):
    set_version(filled, version)
    with pytest.raises(StateCorrupt, match="schema"):
        Store.open(filled)


def add_note(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE pass ADD COLUMN note TEXT")


def halve(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE pass SET seconds = seconds / 2, note = 'halved'")


def fail(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE pass SET seconds = -1")
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


@pytest.fixture
def two_later(monkeypatch):
    def arrange(*steps):
        monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, *steps))
        monkeypatch.setattr(schema, "VERSION", LATER)
        tables = schema.TABLES.replace("    seconds REAL NOT NULL\n", "    seconds REAL NOT NULL,\n    note TEXT\n")
        monkeypatch.setattr(schema, "TABLES", tables)

    return arrange


@pytest.mark.parametrize("steps_behind", [1, 2])
def test_older_files_go_through_the_steps_they_lack(filled, make_pass, two_later, steps_behind):
    if steps_behind == 1:
        with closing(sqlite3.connect(filled)) as connection:
            add_note(connection)
            connection.execute(f"PRAGMA user_version = {LATER - 1}")
    two_later(add_note, halve)
    with Store.open(filled) as store:
        assert [record.seconds for record in store.passes()] == [make_pass(n).seconds / 2 for n in range(5)]
        assert store.summary().schema_version == LATER
        assert len(store.measurements()) == 40
    assert version_of(filled) == LATER
    with Store.open(filled) as store:  # once
        assert store.passes()[0].seconds == make_pass(0).seconds / 2


def test_readers_migrate_in_memory(filled, make_pass, two_later):
    before = filled.read_bytes()
    two_later(add_note, halve)
    with Store.open(filled, read_only=True) as store:
        assert store.passes()[0].seconds == make_pass(0).seconds / 2
        assert len(store.measurements()) == 40
    assert filled.read_bytes() == before


def test_a_migration_that_fails_half_way_changes_nothing(filled, two_later):
    before = filled.read_bytes()
    two_later(add_note, fail)
    for mode in ({}, {"read_only": True}):
        with pytest.raises(StateFull):
            Store.open(filled, **mode)
    assert filled.read_bytes() == before
    assert [file.name for file in filled.parent.iterdir()] == [filled.name]


def test_a_migration_that_forgets_something_is_noticed(filled, two_later):
    two_later(lambda connection: None, lambda connection: None)
    with pytest.raises(StateCorrupt, match="tables"):
        Store.open(filled, read_only=True)
