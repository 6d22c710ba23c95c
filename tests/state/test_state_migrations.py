"""Files of every schema version are opened and resumed. The machinery is tried with two made-up versions more."""

from __future__ import annotations

import shutil
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
def test_frozen_files_are_read(frozen, read_only, path, measurement, energies, sensitivity, make_pass, inventory):
    shutil.copyfile(frozen, path)
    with Store.open(path, read_only=read_only) as store:
        assert store.inventory() == inventory()
        assert list(store.measurements().values()) == [measurement(number) for number in range(12)]
        assert list(store.measurements(selected=True).values()) == [measurement(number) for number in range(8)]
        assert list(store.energies().values()) == [energies(number) for number in range(3)]
        assert len(store.sensitivities("measured")) == 3
        assert store.sensitivities()[1] == sensitivity(0, component="massive")
        assert store.passes() == (() if frozen.stem == "v1" else (make_pass(0), make_pass(1)))


@pytest.mark.parametrize("frozen", FROZEN, ids=lambda file: file.stem)
def test_frozen_files_are_resumed(frozen, path, measurement, inventory):
    shutil.copyfile(frozen, path)
    with Store.open(path) as store:
        store.set_inventory(inventory())
        store.add([measurement(11), measurement(12)])
        assert len(store.measurements()) == 13
    assert version_of(path) == schema.VERSION


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
    connection.execute("ALTER TABLE sensitivity ADD COLUMN note TEXT")


def halve(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE sensitivity SET value = value / 2, note = 'halved'")


def fail(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE sensitivity SET value = -1")
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


@pytest.fixture
def two_later(monkeypatch):
    def arrange(*steps):
        monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, *steps))
        monkeypatch.setattr(schema, "VERSION", LATER)
        tables = schema.TABLES.replace("    UNIQUE (tensor, source", "    note TEXT,\n    UNIQUE (tensor, source")
        monkeypatch.setattr(schema, "TABLES", tables)

    return arrange


@pytest.mark.parametrize("steps_behind", [1, 2])
def test_older_files_go_through_the_steps_they_lack(filled, sensitivity, two_later, steps_behind):
    if steps_behind == 1:
        with closing(sqlite3.connect(filled)) as connection:
            add_note(connection)
            connection.execute(f"PRAGMA user_version = {LATER - 1}")
    two_later(add_note, halve)
    with Store.open(filled) as store:
        assert [record.value for record in store.sensitivities()] == [sensitivity(n).value / 2 for n in range(5)]
        assert store.summary().schema_version == LATER
        assert len(store.measurements()) == 40
    assert version_of(filled) == LATER
    with Store.open(filled) as store:  # once
        assert store.sensitivities()[0].value == sensitivity(0).value / 2


def test_readers_migrate_in_memory(filled, sensitivity, two_later):
    before = filled.read_bytes()
    two_later(add_note, halve)
    with Store.open(filled, read_only=True) as store:
        assert store.sensitivities()[0].value == sensitivity(0).value / 2
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
