"""The families: each format is of one, and what is asked of a format is answered by its family."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from planner.errors import UsageError
from planner.formats.family import Family
from planner.formats.registry import (
    FAMILIES,
    activation_blocks,
    all_formats,
    family_named,
    family_of,
    kernel_of,
    round_trip,
)  # fmt: skip
from planner.terms import FamilyName


def test_every_name_has_a_family_that_answers_everything():
    assert tuple(FAMILIES) == get_args(FamilyName)
    facts = Family.__annotations__
    for name in get_args(FamilyName):
        family = family_named(name)
        assert family.name == name
        assert {fact for fact in facts if not hasattr(family, fact)} == set()
        assert set(family.halves) <= set(all_formats())


@pytest.fixture(params=FAMILIES)
def name(request):
    """A family's name; ik_llama.cpp's without its library is tested below."""
    if request.param == "ik_llama":
        request.getfixturevalue("ik_library")
    return request.param


def test_formats_know_their_family(name):
    family = FAMILIES[name]
    rows = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 256)
    assert family.own.items() <= family.formats.items() <= all_formats().items()
    for fmt in family.own.values():
        assert fmt.family == name
        assert kernel_of(fmt) == family.kernel
        assert activation_blocks()[fmt.name] == family.activation_block(fmt)
        assert not fmt.for_weights or family_of(["F16", fmt.name.upper()]) == name
        assert not fmt.for_weights or family.named(fmt.name.upper()) is fmt
    fmt = family.choose("all")[-1]
    assert np.array_equal(round_trip(fmt, rows, None), family.round_trip(fmt, rows, None))
    assert np.abs(round_trip(fmt, rows, None) - rows).max() < 0.01


def test_a_format_is_not_another_familys(name):
    family = FAMILIES[name]
    for fmt in all_formats().values():
        if fmt.name not in family.formats and fmt.quantized:
            with pytest.raises(UsageError):
                family.named(fmt.name)


def test_the_option_is_what_the_command_line_takes():
    for name, family in FAMILIES.items():
        assert family.option in ((), ("--family", name))
    assert next(iter(FAMILIES.values())).option == ()  # the default
