"""Write the frozen state file of the current schema version: `python tests/state/assets/make.py`, from the project.

Once a version was released its file is never made again: it stands for the files that people have.
The records are computed, so that the tests can tell what has to be in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parent)]


def main() -> None:
    from conftest import make_energies, make_inventory, make_measurement, one_pass

    from state import Store
    from state.schema import VERSION

    path = HERE / f"v{VERSION}.planner"
    if path.exists():
        sys.exit(f"{path} is frozen; a new schema gets a new file")
    with Store.open(path, create=True) as store:
        store.set_inventory(make_inventory())
        store.add(map(make_measurement, range(12)), map(make_energies, range(3)))
        store.add_passes(map(one_pass, range(2)))
        store.select([make_measurement(number).key for number in range(8)] + [make_energies(0).key])


if __name__ == "__main__":
    main()
