"""Run `planner imatrix`: texts to tokens, the model over them, and progress kept on the way."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.digests import digest, stamp
from planner.errors import UsageError, option
from planner.gguf import Imatrix, Model
from planner.gguf.covariance import Covariances
from planner.gguf.drafts import draft_heads
from planner.gguf.sums import merge_imatrices
from planner.llama.collect.chat import chat_tokens
from planner.llama.collect.checkpoint import Checkpoint, Progress
from planner.llama.collect.collector import Collector, Text, collect
from planner.llama.collect.ending import shortened
from planner.llama.collect.multiplier import Together
from planner.llama.collect.passes import Passes
from planner.llama.collect.trial import Expected, Trial, try_out
from planner.llama.engine import Engine, cut
from planner.llama.library import llama_version
from planner.llama.text import read_text

__all__ = ["CollectRequest", "Gathering", "unfinished"]

_SAVE_EVERY = 10.0  # seconds
_SAVE_SHARE = 20  # saving takes at most one part in so many of the time


@dataclass(frozen=True)
class CollectRequest:
    """The request: `context` tokens are a chunk; at most `chunks` are read of each text; `earlier` matrices are added;
    `output`: for what makes the logits too. The file will be `destination`.

    With `covariance`, covariances will be in that file, those `correlated` earlier added; sums for them may take
    `memory` bytes (None: most of what is free).
    """

    model: Model
    texts: tuple[Path, ...]
    chats: tuple[Path, ...]
    earlier: tuple[Imatrix, ...]
    destination: Path
    context: int = 512
    chunks: int | None = None
    output: bool = False
    parse_special: bool = False
    gpu_layers: int = 0
    threads: int | None = None
    force: bool = False
    covariance: Path | None = None
    correlated: tuple[Covariances, ...] = ()
    memory: int | None = None


class Gathering(Closing):
    """A run, from where an earlier one stopped; a context manager.

    `done` of `total` chunks are read (each once a pass), `saved` of them in the file `progress`. `trial` and `passes`
    are of covariances, None without; `keeps`: progress is kept within a pass, for which the disk has room.

    Raises UsageError for a text that is too short, a bad line, or progress of another run; CovarianceError for those of
    another model; OutputError; InferenceError and ModelError as Engine.
    """

    def __init__(self, request: CollectRequest) -> None:
        self._covariance = request.covariance
        self._past = self._done = self.saved = 0
        self.keeps = True
        self.progress = unfinished(request.destination)
        self.sums = merge_imatrices(request.earlier, request.context)
        self._collector = Collector(self.sums, output=request.output)
        self._engine = Engine(
            request.model.path,
            context=request.context,
            threads=request.threads,
            gpu_layers=request.gpu_layers,
            observer=self._collector,
            predicts=False,
            heads=Collector(self.sums, only=draft_heads(request.model)),
            logits=False,
        )
        self.passes: Passes | None = None
        try:
            self._texts = _read_all(self._engine, request)
            self._windows = sum(len(text.windows) for text in self._texts)
            self.sums.datasets += [text.name for text in self._texts]
            self.trial = None if request.covariance is None else self._try_out(request)
            self._engine.observer = shortened(self._engine, self._collector)
            self._checkpoint = Checkpoint(self.progress, _identity(request, self._texts, self._engine, self.trial))
            self._begin(self._checkpoint.load(force=request.force))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the model; progress stays."""
        if self.passes is not None:
            self.passes.close()
        self._engine.close()

    @property
    def done(self) -> int:
        """Chunks read so far, in all passes."""
        return self._past * self._windows + self._done

    @property
    def total(self) -> int:
        """Chunks to be read, in all passes."""
        return (self._past + (1 if self.passes is None else len(self.passes.left))) * self._windows

    def expected(self) -> Expected | None:
        """Return what the covariances will take; None without any."""
        if self.trial is None or self.passes is None:
            return None
        return self.trial.expected(self.passes, sum(text.windows.size for text in self._texts))

    def run(self, save_every: float = _SAVE_EVERY) -> Iterator[int]:
        """Read what is left; yields how many chunks are done. Progress is kept every `save_every` seconds."""
        last, cost = time.monotonic(), 0.0
        while self.passes is None or self.passes.left:
            for done in collect(self._engine, self._texts, self._done):
                self._done = done
                now = time.monotonic()
                if self.keeps and now - last >= max(save_every, _SAVE_SHARE * cost):
                    self._save()
                    last = time.monotonic()
                    cost = last - now
                yield self.done
            if self.passes is None:
                return
            self.passes.end()
            self._past, self._done = self._past + 1, 0
            self._observe(None)
            self._save()

    @property
    def windows(self) -> NDArray[np.int32]:
        """All windows of all texts, i32[n, context]."""
        return np.concatenate([text.windows for text in self._texts])

    def free_model(self) -> None:
        """Make room for another engine. What was collected stays, and is kept, as more is to come."""
        if self.passes is None and self.saved < self.done:
            self._save()
        self._engine.close()

    def finish_covariances(self) -> None:
        """Give the file of covariances its name. Raises OutputError."""
        assert self.passes is not None
        assert self._covariance is not None
        self.passes.file.finish(self.sums, self._covariance)

    def forget(self) -> None:
        """Remove the progress of a run whose result is written."""
        self._checkpoint.remove()

    def _begin(self, found: Progress | None) -> None:
        """Go on from what an earlier process has kept, or begin."""
        if self.trial is None or self._covariance is None:
            if found is not None:
                self._done = self.saved = found.done
                self.sums.tensors.update(found.sums.tensors)
            return
        tokens = (found.tokens if found else None) or {}
        self.passes = self.trial.passes(
            unfinished(self._covariance), self._engine.workers, found.finished if found else (), tuple(tokens)
        )
        if found is not None and found.past:
            self._past = found.past
            self.sums.tensors.update(found.sums.tensors)
        self._observe(found)
        self.keeps = self.trial.has_room(self.passes, self.progress)
        self.saved = self.done

    def _try_out(self, request: CollectRequest) -> Trial:
        return try_out(
            self._engine, request.model, copy.deepcopy(self.sums), self._texts, output=request.output,
            memory=request.memory, earlier=request.correlated,
        )  # fmt: skip

    def _observe(self, found: Progress | None) -> None:
        """Have the engine watched for the next pass, which goes on where another process has left it."""
        if self.passes is None or not self.passes.left:
            return
        multiplier = self.passes.begin(later=self._past > 0)
        observer = multiplier if self._past else Together(self._collector, multiplier)
        self._engine.observer = shortened(self._engine, observer)
        if found is not None and found.tokens is not None and self.passes.goes_on(found.tokens):
            self._checkpoint.load_products(found, self.passes.arrays)
            self._done = found.done
            self.sums.tensors.update(found.sums.tensors)

    def _save(self) -> None:
        texts, left = {}, self._done
        for text in self._texts:
            part = min(left, len(text.windows))
            texts[text.name] = part, len(text.windows)
            left -= part
        progress, products = Progress(self._done, self.sums, self._past), []
        if self.passes is not None:
            progress = replace(progress, finished=tuple(self.passes.finished))
            if self._done:
                progress, products = replace(progress, tokens=self.passes.tokens), self.passes.arrays
        self._checkpoint.save(progress, texts, products)
        self.saved = self.done


def unfinished(path: Path) -> Path:
    """Return the name of what is kept of a file until it is complete."""
    return path.with_name(f"{path.name}.progress")


def _read_all(engine: Engine, request: CollectRequest) -> list[Text]:
    plain = (
        _text(path, engine.tokenize(read_text(path), parse_special=request.parse_special), request)
        for path in request.texts
    )
    return [*plain, *(_text(path, chat_tokens(engine, path), request) for path in request.chats)]


def _text(path: Path, tokens: NDArray[np.int32], request: CollectRequest) -> Text:
    windows = cut(tokens, request.context, request.chunks)
    if not len(windows):
        raise UsageError(
            f"{path} is too short: {len(tokens):,} tokens, and a chunk is {request.context:,}.",
            f"Give a longer text, or shorter chunks with {option('ctx')}.",
        )
    return Text(str(path), windows)


def _identity(request: CollectRequest, texts: list[Text], engine: Engine, trial: Trial | None) -> dict[str, str]:
    """Return all that the result depends on: the sums of two runs may be added if it is the same."""
    files = [(part.name, *stamp(part)) for part in request.model.parts]
    model = hashlib.sha256(f"{request.model.digest}{files}".encode()).hexdigest()
    words = hashlib.sha256()
    for text in texts:
        words.update(f"{text.name}\0{text.windows.shape}\n".encode("utf-8", "surrogateescape"))
        words.update(text.windows.astype("<i4").tobytes())
    correlated = [(str(file.path), *stamp(file.path)) for file in request.correlated]
    return {
        "the model": model,
        "the text": words.hexdigest(),
        "--ctx": f"{request.context}, {engine.windows_at_a_time} at a time",
        "--process-output": str(request.output),
        "--merge": " ".join(file.digest for file in request.earlier),
        "--covariance": "" if trial is None else digest(str(request.covariance), f"{trial.inputs}{correlated}"),
        "the version of llama-cpp-python": llama_version(),
    }
