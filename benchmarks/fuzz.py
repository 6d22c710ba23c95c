"""Files of strangers: what planner does with a great many that are not quite right.

    python -m benchmarks.fuzz --count 100000
    python -m benchmarks.fuzz --target recipe --seed 7 --first 1234 --count 1

Files of every kind that planner reads are made, mutated (tests/fuzz) and given to the commands that read them. Each
has to be taken, or refused with a message: in 10 s and 1 GB, without a crash, a traceback, control characters or files
left behind. What fails is kept, and a command is printed that tries it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.runner import Failure, Report, prepare, try_inputs
from tests.fuzz.targets import TARGETS

_AT_A_TIME = 2_500  # inputs of one process


def main() -> int:
    available = [name for name, target in TARGETS.items() if target.available]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="inputs in all [default: 10,000]")
    parser.add_argument("--target", action="append", choices=available, help="a kind of file [default: all]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for inputs that fail")
    given = parser.parse_args()
    names = given.target or available
    work = [
        (name, given.first + start, min(_AT_A_TIME, count - start))
        for name, count in _shares(names, given.count).items()
        for start in range(0, count, _AT_A_TIME)
    ]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="planner-fuzz-") as folder, ThreadPoolExecutor(given.jobs) as pool:
        prepare(Path(folder))
        found = pool.map(lambda part: try_inputs(Path(folder), given.seed, [part], given.keep)[part[0]], work)
        totals = _added(found)
    print(_table(totals))
    print(f"\n{sum(total.inputs for total in totals):,} inputs in {time.monotonic() - begun:,.0f} s, seed {given.seed}")
    failures = [failure for total in totals for failure in total.failures]
    for failure in failures:
        if failure.file is not None:
            print(_shown(failure, given.seed))
    return 1 if failures else 0


def _shares(names: Sequence[str], count: int) -> dict[str, int]:
    """How many inputs each target gets: fewer those that take long."""
    whole = sum(1 / TARGETS[name].cost for name in names)
    shares = {name: int(count / TARGETS[name].cost / whole) for name in names}
    shares[names[0]] += count - sum(shares.values())
    return shares


def _added(parts: Iterable[Report]) -> list[Report]:
    totals: dict[str, Report] = {}
    for part in parts:
        total = totals.setdefault(part.target, Report(part.target))
        total.inputs += part.inputs
        total.accepted += part.accepted
        total.refused += part.refused
        total.seconds += part.seconds
        total.slowest = max(total.slowest, part.slowest)
        total.memory = max(total.memory, part.memory)
        total.failures += part.failures
        if part.failures:
            print(f"{part.target}: {len(part.failures)} failures", file=sys.stderr)
    return list(totals.values())


def _table(totals: list[Report]) -> str:
    lines = ["target            inputs  per s  refused  accepted  slowest s  memory MB  failures"]
    lines += [
        f"{total.target:15} {total.inputs:8,} {total.inputs / max(total.seconds, 1e-9):6.0f} {total.refused:8,} "
        f"{total.accepted:9,} {total.slowest:10.2f} {total.memory / 1e6:10.0f} {len(total.failures):9,}"
        for total in totals
    ]
    return "\n".join(lines)


def _shown(failure: Failure, seed: int) -> str:
    again = f"python -m benchmarks.fuzz --target '{failure.target}' --seed {seed} --first {failure.number} --count 1"
    detail = "\n    ".join(failure.detail.strip().splitlines()[-8:])
    return f"\n{failure.action}: {failure.what}\n  {failure.file}\n  {again}\n    {detail}"


if __name__ == "__main__":
    sys.exit(main())
