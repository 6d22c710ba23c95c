"""Keep the sums of an unfinished run of `planner imatrix` beside its output, so that the next run goes on.

    magic | header length u64 | header, JSON | arrays, in the header's order

Written whole or not at all. The header says of which run it is, part by part, and a run goes on only from its own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import InferenceError, UsageError, option
from planner.files import Output
from planner.gguf.sums import Sums, TensorSums
from planner.inputs.reading import open_regular

__all__ = ["Checkpoint"]

_MAGIC = b"planner imatrix progress 1\n"
_U64 = struct.Struct("<Q")


class Checkpoint:
    """The file at `path`, for a run described by `run`: part ("the model", "the text") → what identifies it."""

    def __init__(self, path: Path, run: Mapping[str, str]) -> None:
        self.path, self._run = path, dict(run)

    def load(self, *, force: bool) -> tuple[int, Sums] | None:
        """Return how many windows were done, and their sums; None if there is no such file.

        Raises UsageError for the progress of another run, unless `force` says to begin anew; InferenceError if damaged.
        """
        if not self.path.exists():
            return None
        with open_regular(self.path, InferenceError) as file:
            data = file.read()
        try:
            header, rest = _header(data)
            run = header["run"]
            changed = [part for part in self._run if run.get(part) != self._run[part]]
            if changed and force:
                return None
            if not changed:
                return int(header["done"]), _sums(header, rest)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error,
                OverflowError, RecursionError) as error:  # fmt: skip
            raise InferenceError(
                f"{self.path} is no progress of `planner imatrix`, or damaged ({error}).",
                "Remove it to begin anew.",
            ) from error
        raise UsageError(
            f"{self.path} is the progress of another run, which differs in {' and '.join(map(_called, changed))}.",
            f"Remove it or give {option('force')} to begin anew, or give another name with {option('output')}.",
        )

    def save(self, done: int, texts: Mapping[str, tuple[int, int]], sums: Sums) -> None:
        """Save the sums of `done` windows. `texts`: name → windows done, and in all. Raises OutputError."""
        entries = [
            {"name": name, "values": len(entry.sum2), "experts": len(entry.counts), "sums": entry.sums is not None}
            for name, entry in sums.tensors.items()
        ]
        header = {
            "run": self._run, "done": done, "texts": texts, "chunk_size": sums.chunk_size,
            "datasets": sums.datasets, "entries": entries,
        }  # fmt: skip
        text = json.dumps(header).encode()
        start = _MAGIC + _U64.pack(len(text)) + text
        with Output([self.path], force=True) as output:
            output.begin()
            output.write(start)
            total = len(start)
            for array in _arrays(sums):
                output.write(array.tobytes())
                total += array.nbytes
            output.end(total)
            output.commit()

    def remove(self) -> None:
        """Remove the file: the run is complete."""
        self.path.unlink(missing_ok=True)


def _called(part: str) -> str:
    """Return a part of a run in the user's terms: the file spells options as on the command line."""
    return option(part[2:].replace("-", "_")) if part.startswith("--") else part


def _arrays(sums: Sums) -> Iterator[NDArray[np.generic]]:
    for entry in sums.tensors.values():
        yield entry.sum2
        if entry.sums is not None:
            yield entry.sums
        yield entry.counts


def _header(data: bytes) -> tuple[dict[str, Any], memoryview]:
    if not data.startswith(_MAGIC):
        raise ValueError("it begins otherwise")
    (length,) = _U64.unpack_from(data, len(_MAGIC))
    begin = len(_MAGIC) + _U64.size
    header = json.loads(data[begin : begin + length])
    return header, memoryview(data)[begin + length :]


def _sums(header: dict[str, Any], rest: memoryview) -> Sums:
    sums = Sums(int(header["chunk_size"]), datasets=[str(name) for name in header["datasets"]])
    at = 0

    def take(count: int, dtype: str) -> NDArray[Any]:
        nonlocal at
        array = np.frombuffer(rest, dtype, count, at).copy()
        at += array.nbytes
        return array

    for entry in header["entries"]:
        values, experts = int(entry["values"]), int(entry["experts"])
        sum2 = take(values, "<f4")
        activations = take(values, "<f4") if entry["sums"] else None
        sums.tensors[str(entry["name"])] = TensorSums(sum2, activations, take(experts, "<i8"))
    if at != len(rest):
        raise ValueError("it is of another length than it says")
    return sums
