from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from planner import files
from planner.errors import OutputError
from planner.files import Output, atomic_file, check_destinations, write_atomically


def write(paths, contents, *, force=False, promised=None):
    with Output(paths, force=force) as output:
        for content in contents:
            output.begin()
            output.write(content)
            output.end(len(content) if promised is None else promised)
        output.commit()


def test_files_appear_whole(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    write(paths, [b"one", b"two"])
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]
    assert sorted(tmp_path.iterdir()) == paths
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(paths[0].stat().st_mode) == 0o666 & ~umask


def test_the_first_shard_appears_last(tmp_path, monkeypatch):
    paths = [tmp_path / "1", tmp_path / "2", tmp_path / "3"]
    replace, order = Path.replace, []

    def fail_on_first(self, target):
        order.append(target)
        if target == paths[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_first)
    with pytest.raises(OutputError, match="cannot be written"):
        write(paths, [b"a", b"b", b"c"])
    assert order == paths[::-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "replace", [lambda path: write([path], [b"new"], force=True), lambda path: write_atomically(path, b"new")]
)
def test_a_replaced_file_keeps_its_permissions(tmp_path, replace):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o600)
    replace(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "broken"), OutputError("stop")])
def test_one_file_appears_whole_or_not_at_all(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(OutputError if isinstance(error, Exception) else error), atomic_file(path) as file:  # noqa: PT012
        file.write(b"half")
        assert len(list(tmp_path.iterdir())) == 2
        raise error
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_a_name_that_is_too_long_is_refused_before_there_is_anything_to_write(tmp_path):
    with pytest.raises(OutputError, match="name is too long"), atomic_file(tmp_path / ("x" * 300)):
        pytest.fail("its contents were computed")
    write_atomically(tmp_path / ("x" * 250), b"")  # the temporary file's name is shorter


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OutputError])
@pytest.mark.parametrize("finished", [0, 1])
def test_an_interruption_leaves_what_was_there(tmp_path, error, finished):
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_bytes(b"old")
    with pytest.raises(error), Output(paths, force=True) as output:  # noqa: PT012
        for _ in range(finished):
            output.begin()
            output.end(0)
        output.begin()
        output.write(b"half")
        raise error("stop")
    assert list(tmp_path.iterdir()) == [paths[0]]
    assert paths[0].read_bytes() == b"old"


def test_a_full_disk(tmp_path, monkeypatch):
    class Full:
        """A file that takes a kilobyte."""

        def __init__(self, descriptor, *_):
            self.file = os.fdopen(descriptor, "wb", 0)
            self.left = 1000

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(data)

        def close(self):
            self.file.close()
            raise OSError(errno.ENOSPC, "and once more")

    class FullOs:
        fdopen = Full

        def __getattr__(self, name):
            return getattr(os, name)

    monkeypatch.setattr(files, "os", FullOs())
    with pytest.raises(OutputError, match=r"a cannot be written: the disk is full\.\nMake room"):
        write([tmp_path / "a"], [b"x" * 2000])
    assert not list(tmp_path.iterdir())


def test_a_promise_that_is_not_kept_is_a_bug(tmp_path):
    with pytest.raises(AssertionError, match="3 bytes written where 4"):
        write([tmp_path / "a"], [b"one"], promised=4)
    assert not list(tmp_path.iterdir())


def test_a_file_that_appeared_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(OutputError, match="somebody else"), Output([tmp_path / "a"], force=False) as output:  # noqa: PT012
        output.begin()
        output.end(0)
        (tmp_path / "a").write_bytes(b"theirs")
        output.commit()
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_destinations(tmp_path, monkeypatch):
    def check(path, nbytes=10, *, force=True):
        check_destinations([path], nbytes, [source, tmp_path / "absent"], force=force)

    source, other = tmp_path / "in", tmp_path / "other"
    source.write_bytes(b"x")
    other.write_bytes(b"y")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    check(tmp_path / "new", force=False)
    check(other)
    for same in (source, tmp_path / "link", tmp_path / "hard", tmp_path / "x" / ".." / "in"):
        if same.exists():
            with pytest.raises(OutputError, match="own input"):
                check(same)
    with pytest.raises(OutputError, match=r"exists already.*\n.*--force"):
        check(other, force=False)
    with pytest.raises(OutputError, match="a directory"):
        check(tmp_path)
    with pytest.raises(OutputError, match=r"does not exist.*\nCreate"):
        check(tmp_path / "no" / "x")
    with pytest.raises(OutputError, match="not a regular file"):
        check(tmp_path / ".." / ".." / ".." / ".." / ".." / ".." / ".." / "dev" / "null")
    with pytest.raises(OutputError, match="File name too long"):
        check(tmp_path / ("x" * 300))
    with pytest.raises(OutputError, match=r"bytes are needed and [\d,]+ are free"):
        check(tmp_path / "new", 2**62)


def test_interrupted_as_the_file_is_created(tmp_path, monkeypatch):
    """It is there before anything else knows of it, and goes all the same."""
    create = os.open

    def interrupted(path, flags, *arguments, **more):
        os.close(create(path, flags, *arguments, **more))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x", b"data")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda _: b"\0")
    (tmp_path / ".x.00.part").write_bytes(b"somebody else's")
    with pytest.raises(OutputError):
        write_atomically(tmp_path / "x", b"data")
    assert [path.name for path in tmp_path.iterdir()] == [".x.00.part"]


def test_what_is_kept_is_on_the_disk(tmp_path, monkeypatch):
    """However it was written: all but what may have come after the last time that it was seen to the disk."""
    monkeypatch.setattr(files, "_SYNCED", 1 << 12)
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (sync(file), synced.append(os.fstat(file).st_size)))
    path, rows = tmp_path / "x", np.arange(40_000, dtype=np.uint32).view(np.uint8).reshape(-1, 500)

    def write_rows(first, last, key="0123456789abcdef", stop=True):
        with Output([path], force=False, key=key) as output:
            output.begin()
            kept = output.kept
            output.cut(kept if first else 0)
            for at in range(kept if first else 0, rows.nbytes, 50_000):
                some = rows.reshape(-1)[at : at + 50_000]
                output.write(some.reshape(-1, 4 if len(some) % 500 else 500).data)
                if stop and at >= last:
                    raise KeyboardInterrupt
            output.end(rows.nbytes)
            output.commit()
            return kept

    with pytest.raises(KeyboardInterrupt) as stopped:
        write_rows(0, 100_000)
    (progress,) = tmp_path.iterdir()
    assert stopped.value.__notes__ == [str(progress)]
    size = progress.stat().st_size
    assert size == 150_000
    assert max(synced) >= size - 2 * (1 << 12)
    with pytest.raises(KeyboardInterrupt):
        write_rows(0, 0, key="f" * 16)
    assert len(list(tmp_path.iterdir())) == 1, "what was kept for another key is gone"
    with pytest.raises(KeyboardInterrupt):
        write_rows(0, 100_000)
    assert write_rows(1, 0, stop=False) == size - 2 * (1 << 12)
    assert path.read_bytes() == rows.tobytes()
    assert list(tmp_path.iterdir()) == [path]
