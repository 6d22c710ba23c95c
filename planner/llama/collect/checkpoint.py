"""Keep the sums of an unfinished run of `planner imatrix` beside its output, so that the next run goes on.

    magic | header length u64 | header, JSON | arrays, in the header's order | sums of products

Written whole or not at all. The header says of which run it is, part by part, and a run goes on only from its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from planner.errors import InferenceError, UsageError, option
from planner.files import Output
from planner.gguf.entry import StreamSums
from planner.gguf.sums import Sums, TensorSums
from planner.inputs.reading import open_regular

__all__ = ["Checkpoint", "Progress"]

Floats = NDArray[np.float32]

_MAGIC = b"planner imatrix progress 2\n"
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Progress:
    """An unfinished run: `done` windows of a pass over the texts, before which `past` passes were complete: `sums` are
    of the first.

    Of covariances: the inputs that are `finished`; and those of this pass, name → rows that each of its matrices has
    (None if their sums of products were not kept), whose sums begin at byte `products_at`.
    """

    done: int
    sums: Sums
    past: int = 0
    finished: tuple[str, ...] = ()
    tokens: Mapping[str, Sequence[int]] | None = None
    products_at: int = 0


class Checkpoint:
    """The file at `path`, for a run described by `run`: part ("the model", "the text") → what identifies it."""

    def __init__(self, path: Path, run: Mapping[str, str]) -> None:
        self.path, self._run = path, dict(run)

    def load(self, *, force: bool) -> Progress | None:
        """Return what was kept, the sums of products aside; None if there is no such file.

        Raises UsageError for the progress of another run, unless `force` says to begin anew; InferenceError if damaged.
        """
        if not self.path.exists():
            return None
        with open_regular(self.path, InferenceError) as file, self._reading():
            header = _header(file)
            run = header["run"]
            changed = [part for part in self._run if run.get(part) != self._run[part]]
            if changed and force:
                return None
            if not changed:
                sums = _sums(header, file)
                finished = tuple(str(name) for name in header["finished"])
                tokens = header["tokens"]
                if tokens is not None:
                    tokens = {str(name): [int(count) for count in own] for name, own in tokens.items()}
                elif file.read(1):
                    raise ValueError("it is longer than it says")
                return Progress(int(header["done"]), sums, int(header["past"]), finished, tokens, file.tell())
        raise UsageError(
            f"{self.path} is the progress of another run, which differs in {' and '.join(map(_called, changed))}.",
            f"Remove it or give {option('force')} to begin anew, or give another name with {option('output')}.",
        )

    def load_products(self, progress: Progress, arrays: Sequence[Floats]) -> None:
        """Read the sums of products into `arrays`, which are those that were saved. Raises InferenceError."""
        with open_regular(self.path, InferenceError) as file, self._reading():
            file.seek(progress.products_at)
            for array in arrays:
                if file.readinto(array.data.cast("B")) != array.nbytes:  # type: ignore[attr-defined]
                    raise ValueError("it ends early")
            if file.read(1):
                raise ValueError("it is longer than it says")

    def save(self, progress: Progress, texts: Mapping[str, tuple[int, int]], products: Sequence[Floats] = ()) -> None:
        """Save progress; `texts`: name → windows done, and in all. Raises OutputError."""
        sums, tokens = progress.sums, progress.tokens
        entries = [
            {
                "name": name,
                "values": len(entry.sum2),
                "experts": len(entry.counts),
                "sums": entry.sums is not None,
                "stream": None if entry.stream is None else [len(array) for array in entry.stream.arrays],
            }
            for name, entry in sums.tensors.items()
        ]
        header = {
            "run": self._run, "done": progress.done, "past": progress.past, "texts": texts,
            "chunk_size": sums.chunk_size, "datasets": sums.datasets, "entries": entries,
            "finished": progress.finished,
            "tokens": None if tokens is None else {name: list(map(int, own)) for name, own in tokens.items()},
        }  # fmt: skip
        text = json.dumps(header).encode()
        start = _MAGIC + _U64.pack(len(text)) + text
        with Output([self.path], force=True) as output:
            output.begin()
            output.write(start)
            total = len(start)
            for array in (*_arrays(sums), *products):
                output.write(array.data)  # no copy: sums of products take gigabytes
                total += array.nbytes
            output.end(total)
            output.commit()

    def remove(self) -> None:
        """Remove the file: the run is complete."""
        self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error,
                OverflowError, RecursionError) as error:  # fmt: skip
            raise InferenceError(
                f"{self.path} is no progress of `planner imatrix`, or damaged ({error}).",
                "Remove it to begin anew.",
            ) from error


def _called(part: str) -> str:
    """Return a part of a run in the user's terms: the file spells options as on the command line."""
    return option(part[2:].replace("-", "_")) if part.startswith("--") else part


def _arrays(sums: Sums) -> Iterator[NDArray[np.generic]]:
    for entry in sums.tensors.values():
        yield entry.sum2
        if entry.sums is not None:
            yield entry.sums
        yield entry.counts
        if entry.stream is not None:
            yield from entry.stream.arrays


def _header(file: BinaryIO) -> dict[str, Any]:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it begins otherwise")
    (length,) = _U64.unpack(file.read(_U64.size))
    found: dict[str, Any] = json.loads(file.read(min(length, _left(file))))
    return found


def _left(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size - file.tell()


def _sums(header: dict[str, Any], file: BinaryIO) -> Sums:
    sums = Sums(int(header["chunk_size"]), datasets=[str(name) for name in header["datasets"]])

    def take(count: int, dtype: str) -> NDArray[Any]:
        size = count * np.dtype(dtype).itemsize
        if not 0 <= size <= _left(file):
            raise ValueError("it is of another length than it says")
        return np.frombuffer(file.read(size), dtype).copy()

    for entry in header["entries"]:
        values, experts = int(entry["values"]), int(entry["experts"])
        sum2 = take(values, "<f4")
        activations = take(values, "<f4") if entry["sums"] else None
        counts, stream = take(experts, "<i8"), None
        if entry["stream"] is not None:
            sizes = [int(size) for size in entry["stream"]]
            stream = StreamSums(*(take(size, "<f4") for size in sizes))
        sums.tensors[str(entry["name"])] = TensorSums(sum2, activations, counts, stream)
    return sums
