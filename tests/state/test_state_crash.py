"""Whatever was reported as written is there afterwards: kill -9, full disks, interrupted commits, read-only places."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from state import StateError, StateFull, StateReadOnly, Store

WRITE = """
from conftest import make_energies, make_inventory, make_measurement
from state import Store
print("ready", flush=True)
with Store.open(sys.argv[1], create=True) as store:
    store.set_inventory(make_inventory())
    start = len(store.measurements()) // 4
    for batch in range(start, start + 100_000):
        store.add([make_measurement(4 * batch + i) for i in range(4)], [make_energies(batch)])
        print(batch, flush=True)
        if batch % 5 == 0:
            store.select([make_measurement(4 * batch + i).key for i in range(4)])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9")
def test_kill_9_at_random_moments(path, programs, measurement, energies):
    durable = 0
    for turn in range(80):
        if turn >= 20 and durable > 20:  # most machines are that fast
            break
        writer = programs.start(WRITE, path)
        assert writer.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0, 0.01 if turn < 5 else 0.2))  # the first ones while the file is being made
        writer.kill()
        out, err = writer.communicate()
        assert not err
        reported = [int(line) for line in out.splitlines() if out.endswith("\n") or line != out.splitlines()[-1]]
        durable = max([durable, *(batch + 1 for batch in reported)])
        if not durable and not path.exists():
            continue
        with Store.open(path, create=True, read_only=False if turn % 2 else durable > 0) as store:
            found, facts = store.measurements(), store.energies()
            assert len(found) in {4 * durable, 4 * durable + 4}  # the last may be written and not yet reported
            assert found == {measurement(n).key: measurement(n) for n in range(len(found))}
            assert facts == {energies(n).key: energies(n) for n in range(len(found) // 4)}
            assert len(store.measurements(selected=True)) in {0, 4}
            assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            durable = len(facts)
    assert durable > 20  # or the kills came too early to tell anything


@pytest.fixture
def cut_short(filled, tmp_path):
    """A state as it is on disk in the middle of a large commit: half the pages are new, the journal has the old."""
    with closing(sqlite3.connect(filled, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # pages are written as they change, not all at the end
        connection.execute("BEGIN")
        connection.execute("UPDATE measurement SET err_var = -1, made_with = printf('%.500c', 'x')")
        copy = tmp_path / "copy"
        copy.mkdir(mode=0o755)
        for name in (filled.name, filled.name + "-journal"):
            shutil.copyfile(filled.with_name(name), copy / name)
        connection.execute("ROLLBACK")
    shutil.copytree(copy, tmp_path / "control")
    (tmp_path / "control" / (filled.name + "-journal")).unlink()
    with closing(sqlite3.connect(tmp_path / "control" / filled.name)) as control:  # the damage is real
        assert control.execute("PRAGMA integrity_check").fetchone() != ("ok",)
    return copy / filled.name


@pytest.mark.parametrize("mode", [{}, {"create": True}, {"read_only": True}])
def test_a_commit_cut_short_is_undone_by_whoever_comes_first(cut_short, mode, measurement):
    with Store.open(cut_short, **mode) as store:
        assert list(store.measurements().values()) == [measurement(number) for number in range(40)]
    assert [file.name for file in cut_short.parent.iterdir()] == [cut_short.name]


def fill_up(store, measurement):
    """Add until the disk is full; returns how many batches were reported written."""
    for batch in range(10_000):
        try:
            store.add([measurement(100 + 4 * batch + i, made_with="x" * 1000) for i in range(4)])
        except StateFull:
            return batch
    raise AssertionError("never full")


def check_full(path, written):
    with Store.open(path) as store:
        assert len(store.measurements()) == 40 + 4 * written
        assert len(store.measurements(selected=True)) == 20
        assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_no_more_pages(filled, measurement):
    with Store.open(filled) as store:
        store._connection.execute("PRAGMA max_page_count = 50")
        written = fill_up(store, measurement)
        store._connection.execute("PRAGMA max_page_count = 1000000")  # room again: the same store goes on
        store.select([measurement(number).key for number in range(20)])
        store.add([measurement(number) for number in range(40)])
    check_full(filled, written)


FILL_UP = """
import resource
from conftest import make_measurement
from test_state_crash import fill_up
from state import Store
with Store.open(sys.argv[1]) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    print(fill_up(store, make_measurement))
"""


@pytest.mark.skipif(os.name == "nt", reason="no resource limits")
def test_a_limit_on_file_sizes(filled, programs):
    check_full(filled, int(programs.run(FILL_UP, filled)))


@pytest.fixture
def mounted(tmp_path):
    """A disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if not sys.platform.startswith("linux") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(filled, mounted, measurement):
    path = Path(shutil.copy(filled, mounted))
    with Store.open(path) as store:
        written = fill_up(store, measurement)
        with pytest.raises(StateFull) as caught:
            Store.open(mounted / "another.planner", create=True)
    assert "goes on with everything" in caught.value.remedy
    check_full(path, written)
    with Store.open(path, read_only=True) as store:
        assert len(store.measurements()) == 40 + 4 * written


def test_a_read_only_disk(filled, mounted, measurement):
    path = Path(shutil.copy(filled, mounted))
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    with Store.open(path, read_only=True) as store:
        assert store.summary().measurements == 40
    for name in (path.name, "new.planner"):
        with pytest.raises(StateReadOnly) as caught:
            Store.open(path.with_name(name), create=True)
        assert "Copy it" in caught.value.remedy
    assert [file.name for file in mounted.iterdir()] == [path.name]


# The superuser may write anywhere, so the program becomes somebody else first.
AS_SOMEBODY = """
import os, encodings.idna
from conftest import make_measurement
from state import Store, StateError
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
for mode in ({"read_only": True}, {}, {"create": True}):
    try:
        with Store.open(sys.argv[1], **mode) as store:
            print(len(store.measurements()))
    except StateError as error:
        print(type(error).__name__, error.remedy)
"""


@pytest.fixture
def public(tmp_path_factory):
    """A folder that everybody can reach, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="other permissions")
@pytest.mark.parametrize("folder_mode", [0o777, 0o555])
def test_a_read_only_file(filled, public, programs, folder_mode):
    path = Path(shutil.copy(filled, public))
    path.chmod(0o444)
    public.chmod(folder_mode)
    read, write, create = programs.run(AS_SOMEBODY, path).splitlines()
    assert read == "40"
    assert write == create
    assert write.startswith("StateReadOnly Copy it")
    assert [file.name for file in public.iterdir()] == [path.name]


@pytest.mark.skipif(os.name == "nt", reason="other permissions")
def test_a_commit_cut_short_in_a_read_only_folder(cut_short, public, programs):
    for file in list(cut_short.parent.iterdir()):
        Path(shutil.copy(file, public)).chmod(0o444)
    public.chmod(0o555)
    read = programs.run(AS_SOMEBODY, public / cut_short.name).splitlines()[0]
    assert read.startswith(f"StateReadOnly Copy it, together with {cut_short.name}-journal")


@pytest.mark.skipif(os.name == "nt", reason="other permissions")
def test_a_file_that_may_not_be_read(filled, public, programs):
    path = Path(shutil.copy(filled, public))
    path.chmod(0)
    read = programs.run(AS_SOMEBODY, path).splitlines()[0]
    assert read == "StateError Check its permissions."


def test_a_file_replaced_under_the_writer(filled, measurement):
    with Store.open(filled) as store:
        filled.rename(filled.with_name("moved"))
        with pytest.raises(StateError, match="moved or replaced"):
            store.add([measurement(100)])
