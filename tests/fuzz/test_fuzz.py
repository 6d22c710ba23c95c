"""Mutated files of every kind, a few hundred: each is taken, or refused with a message. `python -m benchmarks.fuzz`
tries more."""

from __future__ import annotations

from tests.fuzz.runner import prepare, try_inputs
from tests.fuzz.targets import TARGETS

EACH = 40


def test_mutated_files_are_taken_or_refused(tmp_path):
    folder = tmp_path / "fuzz"
    folder.mkdir()
    prepare(folder)
    work = [(name, 0, EACH) for name, target in TARGETS.items() if target.available]
    reports = list(try_inputs(folder, 0, work, tmp_path / "failures").values())
    failures = [failure for report in reports for failure in report.failures]
    assert not failures, "\n\n".join(
        f"{failure.action}: {failure.what}\n{failure.file}\n{failure.detail}" for failure in failures[:5]
    )
    assert all(report.inputs == EACH for report in reports)
    accepted = sum(report.accepted for report in reports)
    assert 0.1 < accepted / (EACH * len(reports)) < 0.9, "either nothing is wrong with them, or nothing right"
