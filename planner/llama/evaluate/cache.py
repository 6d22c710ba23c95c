"""Cache log-probabilities between runs: they are used again while all that they depend on is the same.

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

from planner.digests import digest, stamp
from planner.errors import BaselineError, OutputError, option
from planner.files import write_atomically
from planner.gguf import open_model
from planner.llama.engine import Engine, cut
from planner.llama.evaluate import logprobs
from planner.llama.evaluate.baseline import Baseline, record
from planner.llama.evaluate.compare import Progress
from planner.llama.library import llama_version
from planner.text import command

__all__ = ["BaselineRequest", "check_length", "kept", "obtain", "record_kept"]


@dataclass(frozen=True, slots=True)
class BaselineRequest:
    """Log-probabilities of a model on a text: in windows of `context` tokens, at most `chunks` of them."""

    model: Path
    text: str
    context: int
    chunks: int | None

    def key(self) -> str:
        """Return the SHA-256 (hex) of all that they depend on. Weights count by their files' sizes and times of
        change."""
        parts = [self.text, str(self.context), str(self.chunks), llama_version()]
        with open_model(self.model) as model:
            parts.append(model.digest)
            for part in model.parts:
                parts += map(str, stamp(part))
        return digest(*parts)


def check_length(request: BaselineRequest) -> None:
    """Refuse a text that cannot fill a window, as a token is a byte at least, before there is memory for one.

    Raises BaselineError.
    """
    if len(request.text.encode()) + 1 < request.context:
        with Engine(request.model, context=1, windows_at_a_time=1) as engine:
            raise _too_short(engine.tokenize(request.text), request.context)


def kept(request: BaselineRequest, path: Path) -> Baseline | None:
    """Return the cached log-probabilities if they are this request's; None where others are, or nothing.

    Raises OutputError for a file that was not kept by us, or has been changed since.
    """
    if not path.exists():
        return None
    note = _note(path)
    if note.get("file") != [*stamp(path)]:
        raise OutputError(
            f"{path} was not written by planner, or has changed since.",
            "To compare with what it holds, give it in place of the model: "
            f"`{command('planner', 'evaluate', path, 'QUANT')}`. Else name another file with "
            f"{option('kl_divergence_base')}.",
        )
    return Baseline.open(path) if note.get("key") == request.key() else None


def record_kept(request: BaselineRequest, engine: Engine, path: Path, progress: Progress | None = None) -> Baseline:
    """Compute the log-probabilities and keep them at `path`. Raises BaselineError for a text that is too short,
    OutputError where there is no room."""
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
    note = {"key": key, "file": stamp(path), "model": str(request.model)}
    write_atomically(_beside(path), (json.dumps(note, indent=2) + "\n").encode())
    return baseline


def obtain(
    request: BaselineRequest, path: Path, open_engine: Callable[[Path], Engine], progress: Progress | None = None
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


def _note(path: Path) -> dict[str, object]:
    """Read the note beside a file; empty where there is none that can be read."""
    try:
        note = json.loads(_beside(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}
