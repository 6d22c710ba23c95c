"""Cache log-probabilities between runs: they are used again while all that they depend on is the same.

Beside the file (which has no room for it) lies a note, `FILE.json`, of what it was made from and of the file's own size
and time. A file without a note that fits is somebody else's, and is not written over.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.digests import digest, stamp
from planner.errors import BaselineError, OutputError, option
from planner.files import write_atomically
from planner.gguf import open_model
from planner.llama.collect.chat import time_of
from planner.llama.engine import Engine, cut
from planner.llama.evaluate import logprobs
from planner.llama.evaluate.answers import open_baseline, record_answers
from planner.llama.evaluate.baseline import Baseline, record
from planner.llama.evaluate.chats import answer_passages
from planner.llama.evaluate.compare import Progress
from planner.llama.library import llama_version
from planner.text import command

__all__ = [
    "BaselineRequest",
    "ChatRequest",
    "check_room",
    "keep_trajectories",
    "kept",
    "kept_trajectories",
    "obtain",
    "record_kept",
]


@dataclass(frozen=True)
class BaselineRequest:
    """Log-probabilities of a model on a text: in windows of `context` tokens, at most `chunks` of them."""

    model: Path
    text: str
    context: int
    chunks: int | None

    @functools.cached_property
    def key(self) -> str:
        """The SHA-256 (hex) of all that they depend on. Weights count by their files' sizes and times of change."""
        parts = [*self._own(), self.text, str(self.context), str(self.chunks), llama_version()]
        with open_model(self.model) as model:
            parts.append(model.digest)
            for part in model.parts:
                parts += map(str, stamp(part))
        return digest(*parts)

    def _own(self) -> list[str]:
        return []

    def check(self) -> None:
        """Refuse a text that cannot fill a window, as a token is a byte at least, before there is memory for one.

        Raises BaselineError.
        """
        if len(self.text.encode()) + 1 < self.context:
            with Engine(self.model, context=1, windows_at_a_time=1) as engine:
                raise _too_short(engine.tokenize(self.text), self.context)

    def record(self, engine: Engine, path: Path, progress: Progress | None = None) -> Baseline:
        """Compute the log-probabilities, in a file at `path`. Raises BaselineError for a text that is too short,
        OutputError where there is no room."""
        tokens = engine.tokenize(self.text)
        windows = cut(tokens, self.context, self.chunks)
        if not len(windows):
            raise _too_short(tokens, self.context)
        scored = logprobs.scored(self.context)
        check_room(path, len(windows) * (scored.stop - scored.start), engine.vocabulary_size)
        return record(engine, windows, path, progress)


@dataclass(frozen=True)
class ChatRequest(BaselineRequest):
    """Log-probabilities of a model on the answers in conversations, of which `text` is the file `chat`; a conversation
    is cut after `context` tokens, and at most `chunks` of them are read.

    `tell` is told what was cut.
    """

    chat: Path
    tell: Callable[[str], None]

    def _own(self) -> list[str]:
        return ["chat", time_of(self.chat)]

    def check(self) -> None:
        """Refuse nothing: how long conversations are is known when they are rendered."""

    def record(self, engine: Engine, path: Path, progress: Progress | None = None) -> Baseline:
        """Compute the log-probabilities, in a file at `path`. Raises what `answer_passages` raises, and OutputError
        where there is no room."""
        passages, longer = answer_passages(engine, self.chat, self.text, self.chunks)
        if longer:
            self.tell(
                f"{self.chat}: what is beyond {self.context:,} tokens is left out, in {longer} of {len(passages)} "
                f"conversations. They have four times as much as {option('ctx')} says."
            )
        check_room(path, sum(len(each.positions) for each in passages), engine.vocabulary_size)
        return record_answers(engine, passages, path, progress)


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
    return open_baseline(path) if note.get("key") == request.key else None


def record_kept(request: BaselineRequest, engine: Engine, path: Path, progress: Progress | None = None) -> Baseline:
    """Compute the log-probabilities and keep them at `path`. Raises what `record` of the request raises."""
    baseline = request.record(engine, path, progress)
    note = {"key": request.key, "file": stamp(path), "model": str(request.model)}
    write_atomically(_beside(path), (json.dumps(note, indent=2) + "\n").encode())
    return baseline


def check_room(path: Path, rows: int, vocabulary: int) -> None:
    """Raise OutputError where the disk has no room for a file of so many rows."""
    needed = 2 * rows * logprobs.row_width(vocabulary)
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise OutputError(
                f"{path.parent}: the log-probabilities need {needed:,} bytes, and {free:,} are free.",
                f"Take less text with {option('chunks')}, or name a file elsewhere with "
                f"{option('kl_divergence_base')}.",
            )


def obtain(
    request: BaselineRequest,
    path: Path,
    open_engine: Callable[[Path], AbstractContextManager[Engine]],
    progress: Progress | None = None,
) -> tuple[Baseline, bool]:
    """Return what is kept at `path` for this request, or else compute and keep it; and whether it had to be computed.

    Raises what `kept`, and `check` and `record` of the request raise.
    """
    found = kept(request, path)
    if found is not None:
        return found, False
    request.check()
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


def kept_trajectories(path: Path, prompts: int) -> list[list[int]] | None:
    """Return the original's trajectories after so many prompts, if the note beside its log-probabilities has them."""
    note = _note(path)
    found = note.get("trajectories")
    if note.get("file") != [*stamp(path)] or not isinstance(found, list) or len(found) != prompts:
        return None
    whole = all(isinstance(each, list) and each and all(isinstance(token, int) for token in each) for each in found)
    return found if whole else None


def keep_trajectories(path: Path, trajectories: Sequence[Sequence[int]]) -> None:
    """Add the original's trajectories to the note beside its log-probabilities."""
    note = {**_note(path), "trajectories": trajectories}
    write_atomically(_beside(path), (json.dumps(note) + "\n").encode())
