"""Run `planner imatrix`: texts to tokens, the model over them, and progress kept on the way."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.digests import stamp
from planner.errors import UsageError, option
from planner.gguf import Imatrix, Model
from planner.gguf.sums import merge_imatrices
from planner.llama.collect.chat import chat_tokens
from planner.llama.collect.checkpoint import Checkpoint
from planner.llama.collect.collector import Collector, Text, collect
from planner.llama.engine import Engine, cut
from planner.llama.library import llama_version
from planner.llama.text import read_text

__all__ = ["CollectRequest", "Gathering"]

_SAVE_EVERY = 10.0  # seconds
_SAVE_SHARE = 20  # saving takes at most one part in so many of the time


@dataclass(frozen=True)
class CollectRequest:
    """The request: `context` tokens are a chunk; at most `chunks` are read of each text; `earlier` matrices are added;
    `output`: for output.weight too. The file will be `destination`."""

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


class Gathering(Closing):
    """A run, from where an earlier one stopped; a context manager.

    `done` of `total` chunks are in `sums`, `saved` of them in the file `progress`. Raises UsageError for a text that
    is too short, a bad line, or progress of another run; InferenceError and ModelError as Engine.
    """

    def __init__(self, request: CollectRequest) -> None:
        self.progress = request.destination.with_name(f"{request.destination.name}.progress")
        self.sums = merge_imatrices(request.earlier, request.context)
        collector = Collector(self.sums, output=request.output)
        self._engine = Engine(
            request.model.path,
            context=request.context,
            threads=request.threads,
            gpu_layers=request.gpu_layers,
            observer=collector,
            predicts=False,
        )
        try:
            self._texts = _read_all(self._engine, request)
            self.total = sum(len(text.windows) for text in self._texts)
            self.sums.datasets += [text.name for text in self._texts]
            self._checkpoint = Checkpoint(self.progress, _identity(request, self._texts, self._engine))
            found = self._checkpoint.load(force=request.force)
        except BaseException:
            self._engine.close()
            raise
        self.done = self.saved = 0
        if found is not None:
            self.done = self.saved = found[0]
            self.sums.tensors.update(found[1].tensors)

    def close(self) -> None:
        """Free the model; progress stays."""
        self._engine.close()

    def run(self, save_every: float = _SAVE_EVERY) -> Iterator[int]:
        """Read what is left; yields how many chunks are done. Progress is kept every `save_every` seconds."""
        last, cost = time.monotonic(), 0.0
        for done in collect(self._engine, self._texts, self.done):
            self.done = done
            now = time.monotonic()
            if now - last >= max(save_every, _SAVE_SHARE * cost):
                self._save()
                last = time.monotonic()
                cost = last - now
            yield done

    def forget(self) -> None:
        """Remove the progress of a run whose result is written."""
        self._checkpoint.remove()

    def _save(self) -> None:
        texts, left = {}, self.done
        for text in self._texts:
            part = min(left, len(text.windows))
            texts[text.name] = part, len(text.windows)
            left -= part
        self._checkpoint.save(self.done, texts, self.sums)
        self.saved = self.done


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


def _identity(request: CollectRequest, texts: list[Text], engine: Engine) -> dict[str, str]:
    """Return all that the result depends on: the sums of two runs may be added if it is the same."""
    files = [(part.name, *stamp(part)) for part in request.model.parts]
    model = hashlib.sha256(f"{request.model.digest}{files}".encode()).hexdigest()
    words = hashlib.sha256()
    for text in texts:
        words.update(f"{text.name}\0{text.windows.shape}\n".encode("utf-8", "surrogateescape"))
        words.update(text.windows.astype("<i4").tobytes())
    return {
        "the model": model,
        "the text": words.hexdigest(),
        "--ctx": f"{request.context}, {engine.windows_at_a_time} at a time",
        "--process-output": str(request.output),
        "--merge": " ".join(file.digest for file in request.earlier),
        "the version of llama-cpp-python": llama_version(),
    }
