"""Log-probabilities that are kept between runs: used again while all that they depend on is the same.

Beside the file (which has no room for it) lies a note, `FILE.json`, of what it was made from and of the file's own size
and time. A file without a note that fits is somebody else's, and is not written over.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.digests import digest
from planner.errors import BaselineError, OutputError, option
from planner.files import write_atomically
from planner.gguf import open_model
from planner.llama.engine import Engine, cut
from planner.llama.evaluate import logprobs
from planner.llama.evaluate.baseline import Baseline, record
from planner.llama.evaluate.compare import Progress
from planner.llama.library import llama_version
from planner.text import command

__all__ = ["Request", "check_length", "kept", "obtain", "record_kept"]


@dataclass(frozen=True, slots=True)
class Request:
    """Log-probabilities of a model on a text: in windows of `context` tokens, at most `chunks` of them."""

    model: Path
    text: str
    context: int
    chunks: int | None

    def key(self) -> str:
        """SHA-256 (hex) over all that they depend on. Weights count by their files' sizes and times of change."""
        parts = [self.text, str(self.context), str(self.chunks), llama_version()]
        with open_model(self.model) as model:
            parts.append(model.digest)
            for part in model.parts:
                status = part.stat()
                parts += [str(status.st_size), str(status.st_mtime_ns)]
        return digest(*parts)


def check_length(request: Request) -> None:
    """Refuse a text that cannot fill a window, as a token is a byte at least, before there is memory for one.

    Raises BaselineError.
    """
    if len(request.text.encode()) + 1 < request.context:
        with Engine(request.model, context=1, windows_at_a_time=1) as engine:
            raise _too_short(engine.tokenize(request.text), request.context)


def kept(request: Request, path: Path) -> Baseline | None:
    """What is at `path`, if it was made for this request; None where something else of ours is there, or nothing.

    Raises OutputError for a file that was not kept by us, or has been changed since.
    """
    if not path.exists():
        return None
    note = _note(path)
    if note.get("file") != _stamp(path):
        raise OutputError(
            f"{path} was not written by planner, or has changed since.",
            "To compare with what it holds, give it in place of the model: "
            f"`{command('planner', 'evaluate', path, 'QUANT')}`. Else name another file with "
            f"{option('kl_divergence_base')}.",
        )
    return Baseline.open(path) if note.get("key") == request.key() else None


def record_kept(request: Request, engine: Engine, path: Path, progress: Progress | None = None) -> Baseline:
    """Compute them, and keep them at `path`. Raises BaselineError for a text that is too short, OutputError where
    there is no room."""
    tokens = engine.tokenize(request.text)
    windows = cut(tokens, request.context, request.chunks)
    if not len(windows):
        raise _too_short(tokens, request.context)
    scored = logprobs.scored(request.context)
    needed = 2 * len(windows) * (scored.stop - scored.start) * logprobs.row_width(engine.vocabulary_size)
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise OutputError(
                f"{path.parent}: the log-probabilities need {needed:,} bytes, and {free:,} are free.",
                f"Take less text with {option('chunks')}, or name a file elsewhere with "
                f"{option('kl_divergence_base')}.",
            )
    key = request.key()
    baseline = record(engine, windows, path, progress)
    note = {"key": key, "file": _stamp(path), "model": str(request.model)}
    write_atomically(_beside(path), (json.dumps(note, indent=2) + "\n").encode())
    return baseline


def obtain(
    request: Request, path: Path, open_engine: Callable[[Path], Engine], progress: Progress | None = None
) -> tuple[Baseline, bool]:
    """Return what is kept at `path` for this request, or else compute and keep it; and whether it had to be computed.

    Raises what `kept`, `check_length` and `record_kept` raise.
    """
    found = kept(request, path)
    if found is not None:
        return found, False
    check_length(request)
    with open_engine(request.model) as engine:
        return record_kept(request, engine, path, progress), True


def _too_short(tokens: NDArray[np.int32], context: int) -> BaselineError:
    return BaselineError(
        f"The text has {len(tokens):,} tokens, and one window needs {context:,}.",
        f"Give a longer text, or a shorter {option('ctx')}.",
    )


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _note(path: Path) -> dict[str, object]:
    """The note beside a file; empty where there is none that can be read."""
    try:
        note = json.loads(_beside(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}
