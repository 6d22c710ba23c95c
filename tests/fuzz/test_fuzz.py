"""Mutated files of every kind, a few hundred: each is taken, or refused with a message. `python -m benchmarks.fuzz`
tries more."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from planner.errors import UsageError
from tests.fuzz.child import Place, attempt
from tests.fuzz.runner import prepare, try_inputs
from tests.fuzz.targets import TARGETS, Action, Target

EACH = 40


def test_mutated_files_are_taken_or_refused(tmp_path):
    folder = tmp_path / "fuzz"
    folder.mkdir()
    prepare(folder)
    work = [(name, 0, EACH // target.cost) for name, target in TARGETS.items() if target.available]
    reports = list(try_inputs(folder, 0, work, tmp_path / "failures").values())
    failures = [failure for report in reports for failure in report.failures]
    assert not failures, "\n\n".join(
        f"{failure.action}: {failure.what}\n{failure.file}\n{failure.detail}" for failure in failures[:5]
    )
    assert [(report.target, report.inputs) for report in reports] == [(name, count) for name, _, count in work]
    accepted, inputs = (sum(counts) for counts in zip(*((one.accepted, one.inputs) for one in reports), strict=True))
    assert 0.1 < accepted / inputs < 0.9, "either nothing is wrong with them, or nothing right"


def _leaves_a_file() -> None:
    Path(".new.json.abc").touch()
    _refuses()


def _changes_a_file() -> None:
    Path("there").write_text("else")


def _fails() -> None:
    raise LookupError("nobody expects this")


def _refuses() -> None:
    raise UsageError("\x1b[2J", "")


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda: 0, None),
        (_refuses, None),  # escaped
        (_leaves_a_file, "exit status 2, and .new.json.abc is there"),
        (_changes_a_file, "there has changed"),
        (lambda: Path("there").unlink(), "there is gone"),
        (_fails, "Internal error"),
        (lambda: 1, "no message"),
        (lambda: 3, "exit status 3"),
        (lambda: click.echo("\x9b2J"), "'\\x9b' is printed"),
    ],
)
def test_faults_are_seen(call, fault, here):
    (here / "there").write_text("something")
    found = attempt(Place(here), Target("mutated", "text", ()), b"", Action("x", call))
    assert found.fault == fault
