"""Options that are shared and grouped, and what they show in --help."""

from __future__ import annotations

from typing import NamedTuple, get_args

import click
import pytest
from click.testing import CliRunner

from planner.cli.options import LiteralChoice, family_option, grouped
from planner.cli.solve import solve
from planner.formats.registry import FAMILIES, all_formats
from planner.recipe import Recipe
from planner.sensitivity import DESIGNS, SOURCES
from planner.terms import Design, FamilyName, RunOn, Source
from solvers import METHODS


def choices(command: click.Command, name: str) -> tuple[str, ...]:
    (option,) = (each for each in command.params if each.name == name)
    assert isinstance(option.type, click.Choice)
    return tuple(option.type.choices)


def test_closed_sets_are_listed_once():
    assert choices(solve, "family") == get_args(FamilyName) == ("gguf", "ik_llama", "mlx")
    assert choices(solve, "sensitivity") == get_args(Source) == SOURCES
    assert choices(solve, "run_on") == get_args(RunOn)
    assert get_args(Design) == DESIGNS
    assert Recipe.model_fields["family"].annotation == FamilyName
    assert tuple(FAMILIES) == get_args(FamilyName)
    assert {name for family in FAMILIES.values() for name in family.own} == set(all_formats())


def test_help_names_every_method():
    shown = " ".join(CliRunner().invoke(solve, ["--help"]).output.split())
    assert f"Solver: {', '.join(METHODS)}. [default: auto]" in shown


def test_options_of_a_group_arrive_as_one():
    class Size(NamedTuple):
        width: int
        names: tuple[str, ...]

    size_options = grouped(
        "size", Size, click.option("--width", type=int, default=3), click.option("--name", "names", multiple=True)
    )
    seen: list[tuple[Size, str]] = []

    @click.command()
    @click.option("--before")
    @size_options
    @family_option
    def command(size: Size, family: FamilyName, before: str | None) -> None:
        seen.append((size, family))

    result = CliRunner().invoke(command, ["--name", "a", "--family", "mlx", "--name", "b"])
    assert result.exit_code == 0, result.output
    assert seen == [(Size(3, ("a", "b")), "mlx")]
    assert [each.name for each in command.params] == ["before", "width", "names", "family"]


@pytest.mark.parametrize("text", ["GGUF", "none", ""])
def test_other_words_are_refused(text: str):
    @click.command()
    @click.option("--family", type=LiteralChoice(FamilyName))
    def command(family: FamilyName | None) -> None: ...

    result = CliRunner().invoke(command, ["--family", text])
    assert result.exit_code == 2
    assert "'gguf', 'ik_llama', 'mlx'" in result.output
