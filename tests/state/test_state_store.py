from __future__ import annotations

import copy
import pickle
import sqlite3
import struct
from contextlib import closing, suppress
from typing import Annotated, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BeforeValidator, ConfigDict, ValidationError, create_model

from state import Energies, Measurement, Pass, StateError, StateForeign, StateLocked, StateReadOnly, Store
from state.records import Count, Key, Name, Spread
from state.rows import MEASUREMENT
from state.schema import VERSION

reals = st.floats(allow_nan=False, allow_infinity=False)
spreads = st.floats(0, allow_infinity=False)
counts = st.integers(0, 2**63 - 1)
names = st.text(max_size=30)
keys = st.text("0123456789abcdef", min_size=8, max_size=64)
measurements = st.builds(
    Measurement,
    key=keys,
    tensor=names,
    format=names,
    err_var=spreads,
    err_mean=spreads,
    err_massive=spreads,
    stderr=spreads,
    stderr_massive=spreads,
    rows=counts,
    kernel_seconds=spreads,
    made_with=names,
)
energies_ = st.builds(
    Energies,
    key=keys,
    tensor=names,
    content_digest=keys,
    gaps_version=st.none() | counts,
    values=st.dictionaries(names, reals, max_size=4),
)
passes = st.builds(
    Pass,
    key=keys,
    subject=keys,
    label=names,
    formats=st.dictionaries(names, names, max_size=3),
    errors=st.dictionaries(names, st.tuples(reals, reals, reals), max_size=3),
    kld=reals,
    stderr=spreads,
    tokens=counts,
    seconds=spreads,
)
thorough = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def bits(record):
    """Every field, with floats as their bytes: 0.1 + 0.2 is not 0.3, and 1 is not 1.0."""

    def exact(value):
        if isinstance(value, dict):
            return {name: exact(item) for name, item in value.items()}
        if isinstance(value, tuple):
            return tuple(map(exact, value))
        return struct.pack("d", value) if isinstance(value, float) else (type(value), value)

    return {name: exact(getattr(record, name)) for name in type(record).__annotations__}


@thorough
@given(
    st.lists(measurements, max_size=5, unique_by=lambda record: record.key),
    st.lists(energies_, max_size=3, unique_by=lambda record: record.key),
    st.lists(passes, max_size=3, unique_by=lambda record: record.key),
)
def test_what_is_written_is_read_to_the_last_bit(tmp_path_factory, found, facts, runs):
    path = tmp_path_factory.mktemp("state") / "x.planner"
    with Store.open(path, create=True) as store:
        store.add(found, facts)
        store.add_passes(runs)
    with Store.open(path, read_only=True) as store:
        assert list(map(bits, store.measurements().values())) == list(map(bits, found))
        assert list(store.measurements()) == [record.key for record in found]
        assert list(map(bits, store.energies().values())) == list(map(bits, facts))
        assert list(map(bits, store.passes())) == list(map(bits, runs))


def _no_integer(value):
    assert not isinstance(value, int)  # SQLite's columns of reals yield none
    return value


FIELDS = Measurement._fields
KINDS = get_type_hints(Measurement)
CHECKS = {str: Name, int: Count, float: Annotated[Spread, BeforeValidator(_no_integer)]}
Checked = create_model(
    "Checked",
    __config__=ConfigDict(strict=True),
    **{name: (Key if name == "key" else CHECKS[kind], ...) for name, kind in KINDS.items()},
)
values = st.one_of(st.none(), st.binary(max_size=9), names, st.integers(-(2**63), 2**63 - 1), st.floats(), keys)


@settings(deadline=None, max_examples=300)
@given(st.lists(measurements, min_size=1, max_size=3), st.data())
def test_measurements_are_checked_as_strictly_as_other_records(records, data):
    rows = [list(MEASUREMENT.row(record)) for record in records]
    if data.draw(st.booleans(), "spoil one value"):
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(values)
    try:
        expected = [tuple(dict(Checked(**dict(zip(FIELDS, row, strict=True)))).values()) for row in rows]
    except ValidationError:
        with pytest.raises(ValueError, match="no measurement has such a"):
            MEASUREMENT.records(rows)
    else:
        assert list(map(MEASUREMENT.row, MEASUREMENT.records(rows))) == expected


def test_records_read_are_like_records_made(measurement, filled):
    made = measurement(3)
    with Store.open(filled, read_only=True) as store:
        read = store.measurements([made.key])[made.key]
    assert read == made
    assert repr(read) == repr(made)
    assert hash(read) == hash(made)
    assert pickle.loads(pickle.dumps(read)) == copy.deepcopy(read) == made
    with pytest.raises(AttributeError):
        read.rows = 1


def test_only_the_keys_asked_for(filled, measurement, energies):
    wanted = [measurement(number).key for number in (7, 3, 999)] + ["f" * 64] * 1000
    with Store.open(filled, read_only=True) as store:
        assert set(store.measurements(wanted)) == {measurement(7).key, measurement(3).key}
        assert store.measurements([]) == {}
        assert list(store.energies([energies(2).key])) == [energies(2).key]


def test_adding_again_changes_nothing(filled, measurement, energies, make_pass):
    before = filled.read_bytes()
    with Store.open(filled) as store:
        store.add([measurement(1, kernel_seconds=9.0, made_with="another machine")], [energies(1)])
        store.add_passes([make_pass(2)])
        assert store.measurements()[measurement(1).key].kernel_seconds == 0.25
    assert filled.read_bytes() == before


@pytest.mark.parametrize(
    "change", [{"err_var": 0.5}, {"stderr": 0.5}, {"rows": 17}, {"tensor": "other"}, {"format": "q2_K"}]
)
def test_one_key_has_one_value(filled, measurement, change):
    with Store.open(filled) as store:
        before = store.measurements()
        with pytest.raises(StateError, match=f"another measurement under {measurement(1).key}.*{next(iter(change))}"):
            store.add([measurement(1000), measurement(1, **change)])
        assert store.measurements() == before  # all or nothing
        store.add([measurement(1000)])
        assert len(store.measurements()) == len(before) + 1


def test_one_key_has_one_value_in_a_single_call_too(path, measurement, energies, make_pass):
    with Store.open(path, create=True) as store:
        with pytest.raises(StateError, match="err_mean"):
            store.add([measurement(1), measurement(1, err_mean=0.5)])
        with pytest.raises(StateError, match="own"):
            store.add([measurement(1)], [energies(1), energies(1, values={"own": 0.5})])
        with pytest.raises(StateError, match="content_digest"):
            store.add_energies([energies(1), energies(1, content_digest=energies(2).content_digest)])
        with pytest.raises(StateError, match="kld"):
            store.add_passes([make_pass(1), make_pass(1, kld=0.5)])
        assert (store.measurements(), store.energies(), store.passes()) == ({}, {}, ())


def test_an_error_of_the_caller_adds_nothing(path, measurement):
    def failing():
        yield measurement(1)
        raise KeyboardInterrupt

    with Store.open(path, create=True) as store:
        with pytest.raises(KeyboardInterrupt):
            store.add(failing())
        assert store.measurements() == {}
        store.add([measurement(2)])
    with Store.open(path) as store:
        assert list(store.measurements()) == [measurement(2).key]


def test_inventory_there_and_back(path, inventory):
    with Store.open(path, create=True) as store:
        assert store.inventory() is None
        store.set_inventory(inventory())
        assert store.inventory() == inventory()
        kinds = {name: type(value) for name, value in store.inventory().metadata.items()}
        assert kinds == {"block_count": int, "rope.freq_base": float, "scaled": bool, "file_type": str, "big": int}
        store.set_inventory(inventory(imatrix_name=None, imatrix_digest=None, has_means=False))
        assert store.inventory().imatrix_digest is None


def test_a_reader_sees_the_model_and_its_tensors_of_one_moment(filled, inventory, monkeypatch):
    monkeypatch.setattr("state.connection.PATIENCE", 0.05)
    rows = Store._rows

    def interrupted(store, table, **options):
        found = rows(store, table, **options)
        if store is reader and table.name == "model":
            with suppress(StateLocked):
                writer.set_inventory(inventory(model_path="/else", tensors=inventory().tensors[:1]))
        return found

    with Store.open(filled, read_only=True) as reader, Store.open(filled) as writer:
        monkeypatch.setattr(Store, "_rows", interrupted)
        assert reader.inventory() == inventory()


def test_another_model_is_refused_and_both_are_named(filled, inventory):
    with Store.open(filled) as store:
        with pytest.raises(StateForeign, match=r"belongs to Prose 8M .*not to Prose 70B") as caught:
            store.set_inventory(inventory(model_name="Prose 70B", model_digest="ab" * 32))
        assert "another state file" in caught.value.remedy
        assert store.inventory() == inventory()


def test_another_imatrix_keeps_every_measurement_but_not_the_selection(filled, inventory):
    with Store.open(filled) as store:
        before = store.measurements()
        store.set_inventory(inventory(model_path="/elsewhere.gguf"))
        assert len(store.measurements(selected=True)) == 20
        store.set_inventory(inventory(imatrix_digest="cd" * 32))
        assert store.measurements() == before
        assert store.measurements(selected=True) == store.energies(selected=True) == {}


def test_the_selection_is_exactly_what_was_named_last(filled, measurement, energies):
    chosen = [measurement(number).key for number in (30, 31)]
    with Store.open(filled) as store:
        store.select(chosen + chosen)
        assert list(store.measurements(selected=True)) == chosen
        assert list(store.measurements([chosen[0], measurement().key], selected=True)) == chosen[:1]
        assert store.errors() == [measurement(number)[1:6] for number in (30, 31)]
        assert store.energies(selected=True) == {}
        with pytest.raises(StateError, match="nothing under the key ffff"):
            store.select([energies().key, "f" * 64])
        assert list(store.measurements(selected=True)) == chosen


def test_passes_by_subject(path, make_pass):
    other = make_pass(1, subject="ab" * 32)
    with Store.open(path, create=True) as store:
        store.add_passes([make_pass(0), other, make_pass(0, seconds=9.0)])  # the time that it took is no value
        assert store.passes() == (make_pass(0), other)
        assert store.passes(other.subject) == (other,)
        with pytest.raises(StateError, match="kld"):
            store.add_passes([make_pass(2), make_pass(0, kld=0.5)])
        assert store.passes() == (make_pass(0), other)
    with Store.open(path, read_only=True) as store:
        assert store.passes() == (make_pass(0), other)
        assert store.summary().passes == 2


def test_summary(filled):
    with Store.open(filled, read_only=True) as store:
        summary = store.summary()
    assert summary.schema_version == VERSION
    assert summary.file_bytes == filled.stat().st_size
    assert (summary.tensors, summary.measurements, summary.selected, summary.energies) == (2, 40, 20, 10)
    assert summary.by_tensor["blk.9.ffn_down.weight"] == {"q4_K": 1, "q6_K": 1, "iq2_xs": 1, "q8_0": 1}
    assert summary.passes == 5
    assert summary.made_with == {"planner 0.1, ggml 0.20.2": 40}
    assert summary.kernel_seconds == 10.0


def test_summary_of_nothing(path):
    with Store.open(path, create=True) as store:
        summary = store.summary()
    assert (summary.tensors, summary.measurements, summary.by_tensor) == (0, 0, {})


def test_a_store_opened_for_reading_cannot_write(filled, measurement, inventory, make_pass):
    with Store.open(filled, read_only=True) as store:
        for write in (
            lambda: store.add([measurement(99)]),
            lambda: store.set_inventory(inventory(model_path="/else")),
            lambda: store.add_passes([make_pass(99)]),
            lambda: store.select([]),
        ):
            with pytest.raises(StateReadOnly, match="reading only"):
                write()


def test_reading_leaves_no_trace(filled):
    before = filled.read_bytes()
    with Store.open(filled, read_only=True) as store:
        store.summary()
        assert [file.name for file in filled.parent.iterdir()] == [filled.name]
    assert [file.name for file in filled.parent.iterdir()] == [filled.name]
    assert filled.read_bytes() == before


def test_opening_for_writing_alone_changes_nothing(filled):
    before = filled.read_bytes()
    with Store.open(filled):
        pass
    assert [file.name for file in filled.parent.iterdir()] == [filled.name]
    assert filled.read_bytes() == before


def test_a_closed_store_says_so(filled):
    store = Store.open(filled)
    store.close()
    store.close()
    with pytest.raises(StateError, match="closed"):
        store.measurements()


def test_commits_reach_the_disk(filled):
    with Store.open(filled) as store:
        connection = store._connection
        assert connection.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_it_is_an_ordinary_database(filled):
    with closing(sqlite3.connect(filled)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM measurement WHERE selected").fetchone() == (20,)
