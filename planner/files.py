"""Files that appear whole or not at all.

Everything goes to temporary files beside the destinations, which are synced and renamed when they are complete. Where
an output has several files, all are complete before the first is renamed, and the first shard comes last: whoever finds
it, finds all others. On any error or interruption they are removed; but those of an output that takes long, and of
which it is known what it will be, stay when it is interrupted, and are gone on with. Devices and pipes are written to
as they are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from planner.errors import OutputError, option
from planner.lastwords import note

__all__ = [
    "Output",
    "atomic_file",
    "begun",
    "check_destinations",
    "give_name",
    "is_stream",
    "refusal",
    "refused",
    "temporary_beside",
    "write_atomically",
]

_BUFFER = 1 << 20
_SYNCED = 1 << 21  # bytes after which what is to last is seen to the disk
_LONGEST = 200  # of a file's name, in that of its progress

_TOO_LARGE = 223  # ERROR_FILE_TOO_LARGE of Windows, for which Python has no errno
_ROOM = "Make room, or write to another disk."
_REFUSALS = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    getattr(errno, "EDQUOT", errno.ENOSPC): ("the quota of its disk is used up", _ROOM),
    errno.EFBIG: (
        "its disk (FAT32: 4 GiB a file) or a limit of the system (ulimit -f) takes no file so large",
        "Write to another disk, or a model in parts: `planner quantize --max-shard-size 4GB`.",
    ),
    errno.EROFS: ("the disk is read-only", "Write to another disk."),
    errno.EACCES: ("permission denied", "Check the permissions of its directory, or choose another place."),
    errno.EPERM: ("that is not permitted", "Check the permissions of its directory, or choose another place."),
    errno.ENOENT: ("its directory does not exist", "Create that first, or choose another place."),
    errno.ENAMETOOLONG: ("its name is too long", "Choose a shorter one."),
}


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` as a whole or not at all. Raises OutputError."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that becomes `path` at the end of the `with`, in place of what is there.

    On any exception `path` stays as it was. A device or a pipe, such as /dev/stdout, is written to as it is. Raises
    OutputError for what the system refuses.
    """
    try:
        with Output([path], force=True) as output:
            yield output.begin()
            output.end()
            output.commit()
    except OSError as error:
        raise refused(path, error) from error


class Output:
    """The files of one output, written one after another; a context manager that removes what was not committed.

    A `key` says what the files will be, down to the last byte. Then Ctrl-C and kill -9 leave what is written in files
    NAME.KEY.progress, of which the exception has a note, and the next output with that key begins with it: with `kept`
    bytes. A machine that fails may lose what was written last, which is not counted on. The first files of another key
    are removed.

    `begin`, `write`, `end` and `commit` raise OutputError for what the system refuses.
    """

    def __init__(self, paths: Sequence[Path], *, force: bool, key: str | None = None) -> None:
        self.paths = tuple(paths)
        self.force = force
        self.kept = 0
        self._key = key
        self._unsynced = 0
        self._finished: list[Path | None] = []  # temporary files, complete; None for a stream
        self._current: tuple[Path | None, BinaryIO] | None = None
        self._temporary: set[Path] = set()  # names of those that may be there
        self._locks: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._current is not None:
            with contextlib.suppress(OSError):  # the last buffer of a full disk
                self._current[1].close()
        if self._key is not None and isinstance(error, KeyboardInterrupt):
            for path in sorted(self._temporary):
                error.add_note(str(path))
        else:
            for path in self._temporary:
                with contextlib.suppress(OSError):
                    path.unlink()
        for descriptor in self._locks:
            os.close(descriptor)

    def begin(self) -> BinaryIO:
        """Open the next file: a temporary one beside its destination, or a device or pipe itself."""
        target = self.paths[len(self._finished)]
        with self._explaining():
            self.kept = self._unsynced = 0
            if is_stream(target):
                self._current = None, target.open("wb")
            elif self._key is not None:
                self._current = self._go_on(target, self._key)
            else:
                path = temporary_beside(target)
                self._current = path, os.fdopen(self._create(path), "wb", _BUFFER)
        return self._current[1]

    def _create(self, path: Path) -> int:
        """Create a temporary file, the owner's alone; return its descriptor."""
        self._temporary.add(path)  # before it is there: Ctrl-C may come at any moment
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        except FileExistsError:
            self._temporary.discard(path)  # somebody else's
            raise

    def _go_on(self, target: Path, key: str) -> tuple[Path, BinaryIO]:
        """Open what there is of a file, locked, and remove what there is of others that were to have its name."""
        from state.lock import open_locked

        path = _progress(target, key)
        ours = re.compile(re.escape(target.name[:_LONGEST]) + r"\.[0-9a-f]{16}\.progress")
        for other in target.parent.iterdir():
            if other == path or not ours.fullmatch(other.name):
                continue
            with contextlib.suppress(OSError):  # it is in nobody's way
                if (unused := open_locked(other)) is not None:
                    os.close(unused)
                    other.unlink()
        descriptor = open_locked(path, os.O_CREAT)
        if descriptor is None:
            raise OutputError(f"{target}: is being written by another run.", "Wait for it, or stop it.")
        self._temporary.add(path)
        file = os.fdopen(descriptor, "r+b", _BUFFER)
        self.kept = max(file.seek(0, os.SEEK_END) - 2 * _SYNCED, 0)
        return path, file

    def cut(self, place: int) -> None:
        """Go on with the current file at a place within what was kept, or its beginning; what is beyond goes, and
        nothing more is kept."""
        assert self._current is not None
        self.kept = 0
        if self._key is None or self._current[0] is None:
            return  # empty, or a stream
        with self._explaining():
            self._current[1].seek(place)
            self._current[1].truncate()

    def write(self, data: bytes | memoryview) -> None:
        """Append to the current file."""
        assert self._current is not None
        (path, file), view = self._current, memoryview(data).cast("B")
        with self._explaining():
            if self._key is None or path is None:
                file.write(view)
                return
            for begin in range(0, len(view), _SYNCED):
                some = view[begin : begin + _SYNCED]
                if self._unsynced + len(some) > _SYNCED:
                    file.flush()
                    os.fsync(file.fileno())
                    self._unsynced = 0
                file.write(some)
                self._unsynced += len(some)

    def end(self, nbytes: int | None = None) -> None:
        """Complete the current file, which must have `nbytes` by now if that is given, and see it to the disk."""
        assert self._current is not None
        path, file = self._current
        with self._explaining():
            if path is not None:
                file.flush()
                if nbytes is not None and file.tell() != nbytes:
                    raise AssertionError(f"{path}: {file.tell()} bytes written where {nbytes} were promised")
                if hasattr(os, "fchmod"):
                    os.fchmod(file.fileno(), self._mode())
                os.fsync(file.fileno())
                if self._key is not None and os.name == "posix":  # elsewhere an open file cannot be renamed
                    self._locks.append(os.dup(file.fileno()))  # until all files have their names
            file.close()
        self._finished.append(path)
        self._current = None

    def commit(self) -> None:
        """Give all files their names, the first shard last. Raises OutputError also where somebody else has taken one
        meanwhile, unless the output is to replace what is there."""
        if not self.force:
            for path in self.paths:
                if path.exists():
                    raise OutputError(f"{path}: was created by somebody else meanwhile.", "Give another name.")
        pairs = list(zip(self._finished, self.paths, strict=True))
        fresh: list[Path] = []
        try:
            with self._explaining():
                for temporary, path in reversed(pairs):
                    if temporary is None:
                        continue
                    existed = path.exists()
                    temporary.replace(path)
                    self._temporary.discard(temporary)
                    if not existed:
                        fresh.append(path)
        except BaseException:
            for path in fresh:
                path.unlink(missing_ok=True)
            raise
        for directory in {path.parent for temporary, path in pairs if temporary is not None}:
            _sync_directory(directory)

    def _mode(self) -> int:
        """Return a replaced file's permissions, or those of any new file: temporary files are the owner's alone."""
        target = self.paths[len(self._finished)]
        if target.exists():
            return stat.S_IMODE(target.stat().st_mode)
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        target = self.paths[min(len(self._finished), len(self.paths) - 1)]
        try:
            yield
        except OSError as problem:
            raise refused(target, problem) from problem


def begun(paths: Iterable[Path], key: str) -> int:
    """Return the bytes that an output of this key has already."""
    return sum(path.stat().st_size for path in (_progress(target, key) for target in paths) if path.is_file())


def _progress(target: Path, key: str) -> Path:
    return target.with_name(f"{target.name[:_LONGEST]}.{key}.progress")


def is_stream(path: Path) -> bool:
    """Return whether no file can replace it: a device, a pipe, or the name of an open file (as in /dev/fd)."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or path.parent in (Path("/dev"), Path("/dev/fd"))


def _sync_directory(directory: Path) -> None:
    # Not every system can open a directory; the names are then as safe as it makes them.
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """Return a name that nobody has for a file that is to become `path`; if the process is killed, it is removed."""
    temporary = path.parent / f".{path.name[:40]}.{os.urandom(8).hex()}.part"
    note("temporary", temporary)
    return temporary


def give_name(temporary: Path, path: Path) -> None:
    """Give a file that is complete, and seen to the disk, its name, in place of what is there. Raises OutputError."""
    try:
        temporary.replace(path)
    except OSError as problem:
        raise refused(path, problem) from problem
    _sync_directory(path.parent)


def refusal(problem: OSError) -> tuple[str, str]:
    """Return why a system does not write, and what would help (empty where nothing is known to)."""
    code = errno.EFBIG if getattr(problem, "winerror", None) == _TOO_LARGE else problem.errno
    return _REFUSALS.get(code or 0, (problem.strerror or str(problem), ""))


def refused(path: Path, problem: OSError) -> OutputError:
    """Return the error for a file that could not be written."""
    what, remedy = refusal(problem)
    return OutputError(f"{path} cannot be written: {what}.", remedy or "Choose another place.")


def check_destinations(paths: Sequence[Path], nbytes: int, inputs: Iterable[Path], *, force: bool) -> None:
    """Raise OutputError if `nbytes` in files of these names cannot be written: a name that an input has (also
    through links), that exists (unless `force`) or is no file; a directory that is missing; a disk too full."""
    try:
        _check_names(paths, [path for path in inputs if path.exists()], force=force)
        # What a replaced file gives back comes only after the new one is complete.
        free = shutil.disk_usage(paths[0].parent).free
    except OSError as problem:
        raise OutputError(f"{paths[0]}: {problem.strerror or problem}.", "Check the path.") from problem
    if free < nbytes:
        raise OutputError(
            f"{paths[0].parent}: {nbytes:,} bytes are needed and {free:,} are free.",
            "Make room, or write to another disk.",
        )


def _check_names(paths: Sequence[Path], sources: Sequence[Path], *, force: bool) -> None:
    for path in paths:
        if path.is_dir():
            raise OutputError(f"{path}: a directory.", "Give the name of a file.")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: the directory {path.parent} does not exist.", "Create it first.")
        if not path.exists():
            continue
        for source in sources:
            if path.samefile(source):
                raise OutputError(f"{path}: the output would replace its own input {source}.", "Give another name.")
        if not path.is_file():
            raise OutputError(f"{path}: not a regular file.", "Give the name of a file.")
        if not force:
            raise OutputError(f"{path}: exists already.", f"Give another name, or {option('force')} to replace it.")
