from __future__ import annotations

import os
import platform
import random
import signal

import pytest

from state import StateLocked, Store, lock

HOLD = """
from state import Store
with Store.open(sys.argv[1], create=True):
    print("held", flush=True)
    sys.stdin.readline()
"""

# Each holder makes a file that must not be there yet, so that two at a time fail.
TAKE_TURNS = """
import os, random, time
from state import StateLocked, Store
path, marker, turns = sys.argv[1], sys.argv[2], int(sys.argv[3])
while turns:
    try:
        with Store.open(path, create=True):
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            time.sleep(random.random() / 1000)
            os.unlink(marker)
        turns -= 1
    except StateLocked:
        time.sleep(random.random() / 1000)
print("done")
"""

WRITE = """
from conftest import make_energies, make_measurement
from state import Store
with Store.open(sys.argv[1], create=True) as store:
    for batch in range(int(sys.argv[2])):
        store.add([make_measurement(4 * batch + i) for i in range(4)], [make_energies(batch)])
        print(batch, flush=True)
"""


def test_the_second_writer_is_told_who_the_first_is(path, programs, measurement):
    holder = programs.start(HOLD, path)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StateLocked, match=f"process {holder.pid} on {platform.node()}") as caught:
        Store.open(path)
    assert "nothing that it has measured is lost" in caught.value.remedy
    with Store.open(path, read_only=True) as store:
        assert store.measurements() == {}
    holder.communicate("\n")
    with Store.open(path) as store:
        store.add([measurement()])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9")
def test_a_killed_writer_leaves_no_lock(path, programs):
    holder = programs.start(HOLD, path)
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    assert path.with_name(path.name + ".lock").exists()
    with Store.open(path):
        pass
    assert not path.with_name(path.name + ".lock").exists()


def test_one_writer_in_one_process_too(filled):
    with Store.open(filled):
        with pytest.raises(StateLocked, match=f"process {os.getpid()}"):
            Store.open(filled)
        with pytest.raises(StateLocked):  # the refused one took nothing away
            Store.open(filled)
    with Store.open(filled):
        pass


def test_a_link_is_the_same_file(filled, tmp_path):
    link = tmp_path / "link.planner"
    link.symlink_to(filled)
    with Store.open(link), pytest.raises(StateLocked):
        Store.open(filled)


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be deleted there")
def test_a_lock_file_deleted_between_opening_and_locking_it(filled, monkeypatch):
    """What its holder does when it finishes just then: a lock on a deleted file would keep nobody out."""

    def too_late(file):
        filled.with_name(filled.name + ".lock").unlink()
        monkeypatch.undo()
        return lock._try_lock(file)

    monkeypatch.setattr(lock, "_try_lock", too_late)
    with Store.open(filled), pytest.raises(StateLocked):
        Store.open(filled)


def test_whatever_the_lock_file_says(filled):
    file = filled.with_name(filled.name + ".lock")
    file.write_bytes(b"process \xff\n\x1b[31m" + bytes(10_000))
    with Store.open(filled):
        file.write_bytes(b"process \x1b[31m")
        with pytest.raises(StateLocked, match="another run\\."):
            Store.open(filled)


def test_writers_never_overlap(path, tmp_path, programs):
    crowd = [programs.start(TAKE_TURNS, path, tmp_path / "marker", 25) for _ in range(3)]
    assert [program.communicate(timeout=120) for program in crowd] == [("done\n", "")] * 3


def test_readers_see_whole_transactions_while_a_writer_runs(path, programs, measurement, energies):
    writer = programs.start(WRITE, path, 60)
    reported, seen = int(writer.stdout.readline()), 0
    while reported < 59:
        with Store.open(path, read_only=True) as store:
            for _ in range(random.randint(1, 3)):
                found = store.measurements()
                assert len(found) % 4 == 0
                assert len(found) >= max(seen, 4 * (reported + 1))
                seen = len(found)
        reported = int(writer.stdout.readline())
    assert writer.communicate() == ("", "")
    with Store.open(path, read_only=True) as store:
        assert store.measurements() == {measurement(n).key: measurement(n) for n in range(240)}
        assert store.energies() == {energies(n).key: energies(n) for n in range(60)}
