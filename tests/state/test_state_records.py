from __future__ import annotations

import math

import pytest
from pydantic import ValidationError


@pytest.mark.parametrize("field", ["err_var", "err_mean", "err_massive", "stderr", "stderr_massive", "kernel_seconds"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None, True])
def test_a_measurement_is_made_of_finite_numbers(measurement, field, value):
    with pytest.raises(ValidationError, match=field):
        measurement(**{field: value})


@pytest.mark.parametrize("field", ["stderr", "stderr_massive", "kernel_seconds", "rows", "rows_total"])
def test_spreads_and_counts_are_not_negative(measurement, field):
    with pytest.raises(ValidationError, match=field):
        measurement(**{field: -1})


@pytest.mark.parametrize("key", ["", "abc", "ABCDEF0123456789", "01234567g", "0" * 129, b"0" * 64, "0" * 63 + "\n"])
def test_a_key_is_a_hex_digest(measurement, key):
    with pytest.raises(ValidationError, match="key"):
        measurement(key=key)


def test_energies_are_finite(energies):
    with pytest.raises(ValidationError):
        energies(values={"own": math.inf})


def test_only_two_components(sensitivity):
    with pytest.raises(ValidationError, match="component"):
        sensitivity(component="both")


def test_records_are_frozen_and_refuse_unknown_fields(measurement, inventory):
    with pytest.raises(ValidationError, match="frozen"):
        measurement().err_var = 0.0
    with pytest.raises(ValidationError, match="colour"):
        inventory(colour="blue")


def test_minus_zero_becomes_zero_as_in_the_database(measurement):
    assert math.copysign(1, measurement(err_var=-0.0).err_var) == 1


def test_tensor_names_are_unique(inventory):
    twice = inventory().tensors[:1] * 2
    with pytest.raises(ValidationError, match="same name"):
        inventory(tensors=twice)


def test_file_names_that_are_not_utf_8_are_kept_as_well_as_text_can(inventory):
    assert inventory(model_path="/models/caf\udce9.gguf").model_path == "/models/caf?.gguf"


def test_other_names_are_text(inventory, measurement):
    with pytest.raises(ValidationError):
        measurement(tensor="blk\udce9")
    with pytest.raises(ValidationError):
        inventory(metadata={"name": "\udce9"})
