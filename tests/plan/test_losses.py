from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from planner.plan.losses import subject_of
from state import Store

ASSETS = Path(__file__).parents[1] / "state" / "assets"
# What the versions that wrote v1 and v2 found, with the text of a tensor's notes where it is now made of two columns.
SUBJECT = "cd295110d81627944a9a458122f0eb2a5a356570b9dbe9513637887b928ed27c"


@pytest.mark.parametrize("frozen", sorted(ASSETS.glob("v*.planner")), ids=lambda file: file.stem)
@pytest.mark.parametrize("read_only", [True, False])
def test_passes_of_every_version_stay_those_of_their_weights(frozen, tmp_path, read_only):
    """The state's passes are known by this digest: were it another one, they would all be lost."""
    path = Path(shutil.copy(frozen, tmp_path))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE energies SET selected = 1")  # one of three tensors has gaps
    with Store.open(path, read_only=read_only) as store:
        inventory = store.inventory()
        assert inventory is not None
        assert subject_of(inventory, store.energies(selected=True).values()) == SUBJECT
