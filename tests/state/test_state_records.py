from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from state import Store


@pytest.fixture
def store(path):
    with Store.open(path, create=True) as store:
        yield store


def refused(store, sound, unsound, field):
    """Measurements are checked when they are added: all of them or none are."""
    with pytest.raises(ValueError, match=f"no measurement has such a {field}"):
        store.add([sound, unsound])
    assert store.measurements() == {}


@pytest.mark.parametrize("field", ["err_var", "err_mean", "err_massive", "stderr", "stderr_massive", "kernel_seconds"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None, True])
def test_a_measurement_is_made_of_finite_numbers(store, measurement, field, value):
    refused(store, measurement(1), measurement(**{field: value}), field)


@pytest.mark.parametrize("field", ["stderr", "stderr_massive", "kernel_seconds", "rows"])
def test_spreads_and_counts_are_not_negative(store, measurement, field):
    value = getattr(measurement(), field)
    refused(store, measurement(1), measurement(**{field: type(value)(-1)}), field)


@pytest.mark.parametrize("value", [0.5, "1", True, 2**63])
def test_counts_are_what_an_integer_of_the_database_holds(store, measurement, value):
    refused(store, measurement(1), measurement(rows=value), "rows")


@pytest.mark.parametrize("key", ["", "abc", "ABCDEF0123456789", "01234567g", "0" * 129, b"0" * 64, "0" * 63 + "\n"])
def test_a_key_is_a_hex_digest(store, measurement, energies, key):
    refused(store, measurement(1), measurement(key=key), "key")
    for field in ("key", "content_digest"):
        with pytest.raises(ValidationError, match=field):
            energies(**{field: key})


def test_energies_are_finite(energies):
    with pytest.raises(ValidationError):
        energies(values={"own": math.inf})


def test_records_are_frozen_and_refuse_unknown_fields(measurement, inventory):
    with pytest.raises(AttributeError):
        measurement().err_var = 0.0
    with pytest.raises(TypeError, match="colour"):
        measurement(colour="blue")
    with pytest.raises(ValidationError, match="frozen"):
        inventory().alignment = 1
    with pytest.raises(ValidationError, match="colour"):
        inventory(colour="blue")


def test_minus_zero_becomes_zero_as_in_the_database(store, measurement, energies):
    assert math.copysign(1, energies(values={"own": -0.0}).values["own"]) == 1
    store.add([measurement(err_var=-0.0)])
    assert math.copysign(1, store.measurements()[measurement().key].err_var) == 1


def test_tensor_names_are_unique(inventory):
    twice = inventory().tensors[:1] * 2
    with pytest.raises(ValidationError, match="same name"):
        inventory(tensors=twice)


def test_file_names_that_are_not_utf_8_are_kept_as_well_as_text_can(inventory):
    assert inventory(model_path="/models/caf\udce9.gguf").model_path == "/models/caf?.gguf"


def test_other_names_are_text(store, inventory, measurement):
    with pytest.raises(ValueError, match="surrogates"):
        store.add([measurement(1), measurement(tensor="blk\udce9")])
    refused(store, measurement(1), measurement(tensor="x" * 4097), "tensor")
    with pytest.raises(ValidationError):
        inventory(metadata={"name": "\udce9"})
