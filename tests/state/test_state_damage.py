"""Damaged and hostile files end in a `StateError`, whatever is done with them."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from state import StateCorrupt, StateError, StateForeign, StateLocked, Store
from state.connection import file_bytes

thorough = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
OLDEST, *_, NEWEST = sorted((Path(__file__).parent / "assets").glob("v*.planner"))
SIZE = min(file.stat().st_size for file in (OLDEST, NEWEST))
frozen = st.sampled_from([OLDEST, NEWEST])  # the oldest is migrated first


@contextmanager
def survived():
    """A damaged file may be refused, but nobody keeps it locked."""
    try:
        yield
    except StateLocked:
        pytest.fail("locked")
    except StateError:
        pass


def use_in_every_way(path, measurement, energies, make_pass, inventory):
    """Anything but a `StateError` fails the test; each step goes on where the one before gave up."""
    for mode in ({"read_only": True}, {}, {"create": True}):
        with survived(), Store.open(path, **mode) as store:
            steps = [
                store.inventory,
                store.measurements,
                store.errors,
                store.energies,
                store.passes,
                store.summary,
            ]
            steps.append(lambda: store.measurements([measurement(n).key for n in range(12)], selected=True))
            steps.append(lambda: store.add([measurement(5), measurement(500)], [energies(5), energies(500)]))
            steps.append(lambda: store.add_passes([make_pass(1), make_pass(500)]))
            steps.append(lambda: store.set_inventory(inventory(imatrix_digest=None)))
            steps.append(lambda: store.select([measurement(5).key, energies(0).key]))
            for step in steps:
                with survived():
                    step()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("state.connection.PATIENCE", 0.05)


@pytest.fixture
def use(measurement, energies, make_pass, inventory):
    return lambda path: use_in_every_way(path, measurement, energies, make_pass, inventory)


@thorough
@given(frozen, st.integers(0, SIZE - 1))
@example(NEWEST, 0)
@example(NEWEST, 1)
@example(NEWEST, 100)
@example(OLDEST, 100)
@example(NEWEST, 4096)
@example(OLDEST, 4096)
def test_truncated_anywhere(path, use, frozen, length):
    path.write_bytes(frozen.read_bytes()[:length])
    with survived(), Store.open(path, read_only=True) as store:
        assert len(store.measurements()) == 12  # all or an error: nothing is lost in silence
        assert length > SIZE - 4096  # the last page is one that measurements do not need
    use(path)


@thorough
@given(frozen, st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 255)), min_size=1, max_size=20))
def test_flipped_anywhere(path, use, frozen, flips):
    content = bytearray(frozen.read_bytes())
    for position, bits in flips:
        content[position] ^= bits
    path.write_bytes(content)
    use(path)


@thorough
@given(
    frozen,
    st.lists(st.tuples(st.integers(0, 140), st.integers(1, 255)), min_size=1, max_size=4),
    st.integers(0, SIZE // 4096 - 1),
)
def test_flipped_where_it_hurts(path, use, frozen, flips, page):
    """The beginnings of pages: the header of the file, and what says where the records of a page are."""
    content = bytearray(frozen.read_bytes())
    for position, bits in flips:
        content[page * 4096 + position] ^= bits
    path.write_bytes(content)
    use(path)


@thorough
@given(st.binary(max_size=200))
def test_any_bytes(path, use, content):
    path.write_bytes(content)
    use(path)


@thorough
@given(frozen, st.binary(max_size=2000), st.booleans())
def test_any_journal_beside_it(path, use, frozen, content, genuine):
    shutil.copyfile(frozen, path)
    magic = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" if genuine else b""
    path.with_name(path.name + "-journal").write_bytes(magic + content)
    use(path)


def tamper(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE measurement SET err_var = 9e999 WHERE id = 3",
        "UPDATE measurement SET err_var = 'abc' WHERE id = 3",
        "UPDATE measurement SET stderr = -1 WHERE id = 3",
        "UPDATE measurement SET rows = 0.5 WHERE id = 3",
        "UPDATE measurement SET rows = -5 WHERE id = 3",
        "UPDATE measurement SET key = 'KEY' WHERE id = 3",
        "UPDATE measurement SET tensor = x'ff00' WHERE id = 3",
        "UPDATE measurement SET tensor = CAST(x'ff00' AS TEXT) WHERE id = 3",
        "UPDATE measurement SET made_with = printf('%.5000c', 'x')",
        "UPDATE measurement SET made_with = printf('%.1000000c', 'x') WHERE id = 3",
        "UPDATE energies SET \"values\" = '{' WHERE id = 1",
        'UPDATE energies SET "values" = \'{"own": NaN}\' WHERE id = 1',
        'UPDATE energies SET "values" = \'{"own": 1e999}\' WHERE id = 1',
        "UPDATE energies SET \"values\" = '[1]' WHERE id = 1",
        "UPDATE energies SET \"values\" = printf('%.100000c', '[') WHERE id = 1",
        "UPDATE energies SET \"values\" = '{\"own\": ' || printf('%.9000c', '9') || '}' WHERE id = 1",
        "UPDATE energies SET \"values\" = x'7b' WHERE id = 1",
        'UPDATE energies SET "values" = 5 WHERE id = 1',
        "UPDATE energies SET content_digest = '' WHERE id = 1",
        "UPDATE energies SET content_digest = 3 WHERE id = 1",
        "UPDATE energies SET gaps_version = -1 WHERE id = 1",
        "UPDATE energies SET gaps_version = 'x' WHERE id = 1",
        "UPDATE pass SET errors = '{\"a\": [1, 2]}' WHERE id = 1",
        "UPDATE pass SET stderr = -1 WHERE id = 1",
        "UPDATE model SET has_means = 2",
        "UPDATE model SET metadata = 'null'",
        "UPDATE model SET metadata = '{\"a\": [1]}'",
        "UPDATE model SET model_digest = ''",
        "UPDATE tensor SET shape = '5' WHERE position = 1",
        "UPDATE tensor SET shape = '[1.5]' WHERE position = 1",
        "UPDATE tensor SET shape = '{\"a\": 1}' WHERE position = 1",
        "UPDATE tensor SET nbytes = -1 WHERE position = 1",
    ],
)
def test_values_that_cannot_be(filled, use, statement):
    tamper(filled, statement)
    with pytest.raises(StateError) as caught, Store.open(filled, read_only=True) as store:
        store.summary()
    assert type(caught.value) is StateCorrupt or "too large" in caught.value.problem
    assert ".recover" in caught.value.remedy
    use(filled)


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE VIEW extra AS SELECT 1"],
        ["CREATE TRIGGER extra AFTER INSERT ON measurement BEGIN DELETE FROM model; END"],
        ["CREATE TABLE extra (a)"],
        ["CREATE INDEX extra ON measurement (tensor)"],
        ["DROP TABLE energies"],
        ["ALTER TABLE measurement ADD COLUMN more"],
        ["ALTER TABLE measurement DROP COLUMN selected"],
        ["ALTER TABLE tensor ADD COLUMN computed AS (abs(nbytes))"],
        [
            "DROP TABLE pass",
            "CREATE VIEW pass AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n FROM r) SELECT n FROM r",
        ],
        ["DROP TABLE pass", "CREATE VIRTUAL TABLE pass USING fts5(key, subject)"],
    ],
)
def test_tables_that_are_not_ours(filled, use, statements):
    try:
        tamper(filled, *statements)
    except sqlite3.OperationalError as error:
        pytest.skip(f"this SQLite cannot make one: {error}")
    for mode in ({}, {"read_only": True}):
        with pytest.raises(StateCorrupt, match="tables"):
            Store.open(filled, **mode)


def go_round_in_circles(path: Path) -> None:
    """Make an inner page whose children are all the same page, several levels up: 400 to the n-th power rows."""
    with closing(sqlite3.connect(path)) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'measurement'").fetchone()[0]
        pages = file_bytes(connection) // 4096
    content = bytearray(path.read_bytes())

    def page(number):
        return content[(number - 1) * 4096 : number * 4096]

    assert page(root)[0] == 5  # an inner page of a table
    leaf = struct.unpack(">I", page(root)[8:12])[0]
    levels = [root, *range(pages + 1, pages + 5)]
    content += bytes(4 * 4096)
    for level, number in enumerate(levels):
        child = levels[level + 1] if level + 1 < len(levels) else leaf
        cells = 400
        body = bytearray(4096)
        start = 4096 - 5 * cells
        body[0:12] = struct.pack(">BHHHBI", 5, 0, cells, start, 0, child)
        for cell in range(cells):
            body[12 + 2 * cell : 14 + 2 * cell] = struct.pack(">H", start + 5 * cell)
            body[start + 5 * cell : start + 5 * cell + 5] = struct.pack(">IB", child, cell % 128)
        content[(number - 1) * 4096 : number * 4096] = body
    content[28:32] = struct.pack(">I", pages + 4)
    path.write_bytes(content)


def test_pages_that_go_round_in_circles(path, measurement):
    with Store.open(path, create=True) as store:
        store.add([measurement(number, made_with="x" * 500) for number in range(200)])
    go_round_in_circles(path)
    with Store.open(path, read_only=True) as store, pytest.raises(StateCorrupt) as caught:
        store.measurements()
    assert "more than it can hold" in caught.value.problem


def test_a_migration_does_not_go_round_in_circles(path):
    shutil.copyfile(OLDEST, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        columns = ", ".join(row[1] for row in connection.execute("PRAGMA table_info(measurement)"))
        copied = columns.replace("id, key", "NULL, printf('%064x', 1000 * n + id)").replace(
            "made_with", "printf('%.500c', 'x')"
        )
        numbers = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 20)"
        connection.execute(f"{numbers} INSERT INTO measurement ({columns}) SELECT {copied} FROM measurement, r")
    with Store.open(path, read_only=True) as store:
        assert len(store.measurements()) == 12 * 21
    go_round_in_circles(path)
    for mode in ({"read_only": True}, {}):
        with pytest.raises(StateCorrupt):
            Store.open(path, **mode)


def test_a_record_that_only_the_index_has(filled, measurement):
    with closing(sqlite3.connect(filled)) as connection:
        number = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'measurement'").fetchone()[0]
    content = bytearray(filled.read_bytes())
    page = content[(number - 1) * 4096 : number * 4096]
    leaf = number if page[0] == 13 else struct.unpack(">I", page[8:12])[0]
    header = (leaf - 1) * 4096
    assert content[header] == 13  # a leaf
    content[header + 3 : header + 5] = bytes(2)  # with no records any more
    filled.write_bytes(content)
    with Store.open(filled) as store, pytest.raises(StateCorrupt):
        store.add([measurement(number) for number in range(40)])


def test_a_write_ahead_log_by_somebody_else(filled, measurement):
    tamper(filled, "PRAGMA journal_mode = WAL")
    with Store.open(filled) as store:
        store.add([measurement(99)])
    with Store.open(filled, read_only=True) as store:
        assert len(store.measurements()) == 41


def test_foreign_header(filled):
    tamper(filled, "PRAGMA application_id = 7")
    with pytest.raises(StateForeign, match="another program"):
        Store.open(filled)
