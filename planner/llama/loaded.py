"""A model loaded by llama.cpp: text to tokens, tokens to logits, and an observer of every operation."""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.errors import InferenceError, ModelError, option
from planner.gguf import alphabet, open_model
from planner.lastwords import note
from planner.llama.drafts import DraftHead, has_head
from planner.llama.fitness import check_ends, check_model, check_text, learned_positions, runs_backwards
from planner.llama.graph import Enough, Node, Observer
from planner.llama.library import has_amx, last_complaint, llama
from planner.llama.workers import Workers

__all__ = ["BATCH", "GRAPH", "MOST_SEQUENCES", "LoadedModel", "Memory"]

BATCH = 2048  # tokens in a call of llama_decode, the default of llama.cpp's tools
GRAPH = 512  # of them in a graph, and seen by an observer at a time (n_ubatch), likewise
MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ
_LOAD_MODE_NONE = 0  # enum llama_load_mode: into memory of the process, which may be written to


@dataclass(frozen=True, slots=True)
class Memory:
    """Room for `tokens` in at most so many `sequences`: each has an equal part or, if `shared`, what it needs. At most
    `batch` tokens are run in one call."""

    tokens: int
    sequences: int
    shared: bool = False
    batch: int = BATCH


class LoadedModel(Closing):
    """A model with one context; a context manager. `Engine` and `BranchedEngine` say what its memory is for.

    `memory` gives the context's memory by the number of words in the vocabulary. `positions` is how many the texts
    have (0: not known yet). `writable` loads the weights into memory of the process, as they are in the file (not
    packed again for speed), so that they can be changed. `heads` observes the model's draft head, which then runs
    beside it, where this llama.cpp is known to be able to (`runs_head`). `gpu_layers` is llama.cpp's -ngl. An encoder,
    whose logits mean nothing, is refused unless `predicts` is false.

    The attribute `workers` has as many threads as llama.cpp, idle while that runs, for work on logits and weights. The
    attributes `observer` and `heads` may be set to others or to None later, if one was given at first; without `heads`
    the draft head does not run.

    Raises InferenceError without llama-cpp-python, ModelError for a file that llama.cpp does not load or cannot run,
    UsageError for more positions than the model has.
    """

    def __init__(
        self,
        path: Path,
        memory: Callable[[int], Memory],
        *,
        positions: int,
        threads: int | None,
        gpu_layers: int,
        observer: Observer | None,
        writable: bool,
        predicts: bool,
        heads: Observer | None = None,
    ) -> None:
        llama()
        self.path = path
        self.threads: int = threads or os.cpu_count() or 1
        self.observer, self.heads = observer, heads
        self._stop = threading.Event()
        self._head: DraftHead | None = None
        self._ended = False  # the last batch, by an observer that had seen enough
        self._failure: BaseException | None = None
        self._context: Any = None
        self._batch: Any = None
        self._model: Any = None
        self._caller = Workers(1, "llama")  # calls llama.cpp
        self.workers = Workers(self.threads, "logits")  # for what is done with logits and weights
        try:
            with open_model(path) as model:
                check_model(model, context=positions, predicts=predicts)
                self._in_one_piece, self._positions = runs_backwards(model), learned_positions(model)
                self._letters = alphabet(model)
                self.runs_head = heads is not None and has_head(model)
                self._open_model(gpu_layers, writable)
                check_ends(model, adds_bos=self.adds_bos, bos=self.bos, adds_eos=self.adds_eos, eos=self.eos)
            self.memory = memory(self.vocabulary_size)
            self._open_context()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free model and context; a second call does nothing."""
        self._caller.close()
        self.workers.close()
        self._close_context()
        if self._model:
            llama().llama_model_free(self._model)
            self._model = None
            note("running", "")

    def _close_context(self) -> None:
        api = llama()
        if self._batch is not None:
            api.llama_batch_free(self._batch)
            self._batch = None
        if self._head is not None:
            self._head.close()
            self._head = None
        if self._context:
            api.llama_free(self._context)
            self._context = None

    def tokenize(self, text: str, *, special: bool = True, parse_special: bool = False) -> NDArray[np.int32]:
        """Return the tokens of a text, i32[n], as llama.cpp's tools make them.

        `special` adds what the model wants at the beginning (BOS); `parse_special` takes `<|im_start|>` and its like
        in the text for the tokens of that name. Raises ModelError for characters that the model cannot spell,
        InferenceError where llama.cpp fails.
        """
        check_text(self.path, text, self._letters)
        data = text.encode("utf-8")
        room = len(data) + 16
        while True:
            tokens = np.empty(room, np.int32)
            pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            count = llama().llama_tokenize(
                self._vocabulary, data, len(data), pointer, room, special, parse_special
            )  # fmt: skip
            if count >= 0:
                return tokens[:count]
            if -count <= room:
                raise InferenceError(f"llama.cpp cannot tokenize a text of {len(data)} bytes with {self.path}.")
            room = -count

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja template, or None."""
        found = llama().llama_model_chat_template(self._model, None)
        return found.decode("utf-8", "replace") if found else None

    def token_text(self, token: int) -> str:
        """Return a token's own spelling in the vocabulary, such as `</s>`."""
        found: bytes = llama().llama_vocab_get_text(self._vocabulary, token)
        return found.decode("utf-8", "replace")

    def ends(self, token: int) -> bool:
        """Return whether a model that says this token has finished: EOS, or the end of a turn or message."""
        return bool(llama().llama_vocab_is_eog(self._vocabulary, token))

    @property
    def eos(self) -> int:
        """The token that ends a text; -1 where the vocabulary has none."""
        return int(llama().llama_vocab_eos(self._vocabulary))

    def decode(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        outputs: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Run at most `batch_tokens` tokens; arrays of one length. Returns the logits of those with `outputs` set,
        f32[outputs, vocabulary], valid until the next call.

        Raises InferenceError where llama.cpp fails or positions are beyond those that were learned, and what the
        observer raises.
        """
        return self._decode(tokens, positions, sequences, outputs, np.ones(len(tokens), np.int32))

    def _decode(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        outputs: NDArray[np.bool_],
        widths: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        """Run tokens as `decode` does, where each may belong to several sequences: `widths` says to how many, counted
        from its number in `sequences`."""
        api, count = llama(), len(tokens)
        if self._positions is not None and positions.max(initial=0) >= self._positions:
            raise InferenceError(
                f"{self.path} has learned {self._positions:,} positions, and {positions.max() + 1:,} are needed.",
                "Leave longer texts out.",
            )
        batch = self._batch
        batch.n_tokens = count
        for field, values in ((batch.token, tokens), (batch.pos, positions), (batch.logits, outputs.astype(np.int8))):
            np.ctypeslib.as_array(field, (count,))[:] = values
        np.ctypeslib.as_array(batch.n_seq_id, (count,))[:] = widths
        for number, (sequence, width) in enumerate(zip(sequences.tolist(), widths.tolist(), strict=True)):
            for offset in range(width):
                batch.seq_id[number][offset] = sequence + offset
        self._ended = False
        status = self._interruptible(lambda: api.llama_decode(self._context, batch))
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if status:
            raise InferenceError(
                f"llama.cpp could not run {self.path} (status {status}): {last_complaint()}",
                f"It may have run out of memory: try a shorter {option('ctx')}.",
            )
        if self._head is not None and self.heads is not None and not self._ended:
            self._follow(self._head, tokens, positions, sequences)
        rows = int(outputs.sum())
        if not rows:
            return np.empty((0, self.vocabulary_size), np.float32)
        pointer = api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (rows, self.vocabulary_size))

    def forget(self) -> None:
        """Empty the memory of all sequences."""
        llama().llama_memory_clear(llama().llama_get_memory(self._context), True)
        if self._head is not None:
            self._head.forget()

    def _follow(
        self, head: DraftHead, tokens: NDArray[np.int32], positions: NDArray[np.int32], sequences: NDArray[np.int32]
    ) -> None:
        """Let the draft head run what the model has run."""
        status = self._interruptible(lambda: head.follow(tokens, positions, sequences))
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if status:
            raise InferenceError(f"llama.cpp could not run the draft head of {self.path} (status {status}).")

    def _open_model(self, gpu_layers: int, writable: bool) -> None:
        api = llama()
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        parameters.load_mtp = self.runs_head
        if writable:
            parameters.load_mode = _LOAD_MODE_NONE
        # Packed for speed, weights are no longer as in the file; and llama.cpp crashes on what it packs for AMX
        # (ggml-org/llama.cpp#20824)
        parameters.use_extra_bufts = not writable and not has_amx()
        go_on = api.llama_progress_callback(lambda _done, _user_data: not self._stop.is_set())
        parameters.progress_callback = go_on
        note("running", self.path)
        load = functools.partial(api.llama_model_load_from_file, os.fsencode(self.path), parameters)
        self._model = self._interruptible(load)
        if not self._model:
            said = last_complaint()
            raise ModelError(
                f"llama.cpp cannot load {self.path}{f': {said}' if said else '.'}",
                "It may need a newer llama-cpp-python, or more memory.",
            )
        self._vocabulary = api.llama_model_get_vocab(self._model)
        self.vocabulary_size: int = api.llama_vocab_n_tokens(self._vocabulary)
        self.adds_bos: bool = api.llama_vocab_get_add_bos(self._vocabulary)
        self.bos: int = api.llama_vocab_bos(self._vocabulary)
        self.adds_eos: bool = api.llama_vocab_get_add_eos(self._vocabulary)

    def _open_context(self) -> None:
        api, memory = llama(), self.memory
        parameters = api.llama_context_default_params()
        parameters.n_ctx = memory.tokens
        self.batch_tokens: int = memory.tokens if self._in_one_piece else min(memory.batch, memory.tokens)
        parameters.n_batch = self.batch_tokens
        if self._in_one_piece:
            parameters.n_ubatch = self.batch_tokens
        self.graph_tokens: int = min(self.batch_tokens, parameters.n_ubatch)
        # A layer with a sliding window need not remember what is behind it, where no sequence goes back
        parameters.swa_full = memory.shared
        parameters.n_seq_max = memory.sequences
        parameters.kv_unified = memory.shared
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.no_perf = True
        # callbacks have to live as long as the context
        self._abort = api.ggml_abort_callback(lambda _user_data: self._stop.is_set())
        parameters.abort_callback = self._abort
        if self.observer is not None:
            self._eval = api.ggml_backend_sched_eval_callback(functools.partial(self._observe, "observer"))
            parameters.cb_eval = self._eval
        self._context = api.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise InferenceError(
                f"llama.cpp cannot make a context of {parameters.n_ctx} tokens for {self.path}: {last_complaint()}",
                f"It may need more memory: try a shorter {option('ctx')}.",
            )
        self._batch = api.llama_batch_init(self.batch_tokens, 0, memory.sequences if memory.shared else 1)
        if self.runs_head:
            self._eval_head = api.ggml_backend_sched_eval_callback(functools.partial(self._observe, "heads"))
            parameters.cb_eval = self._eval_head
            self._head = DraftHead(self._model, self._context, parameters)

    def _observe(self, which: str, address: int, asks: bool, _user_data: object) -> bool:
        """Answer llama.cpp, which first `asks` whether an operation is of interest and, if so, calls again when it is
        done. Returning False then ends the computation."""
        observer: Observer | None = getattr(self, which)
        if observer is None:
            return False
        if self._failure is not None:  # the rest of the graph does not matter any more
            return False
        try:
            node = Node(address)
            if asks:
                return observer.wants(node)
            observer.see(node)
        except Enough:
            self._ended = True
            return False
        except BaseException as error:  # C cannot pass it on: it is raised again when llama_decode returns
            self._failure = error
            self._stop.set()
            return False
        return True

    def _interruptible(self, call: Callable[[], Any]) -> Any:
        """Run C code in a thread of its own, so that Ctrl-C can stop it."""
        self._stop.clear()
        future = None
        try:
            future = self._caller.submit(call)
            while not concurrent.futures.wait([future], timeout=0.5).done:
                pass  # short waits, as Python sees Ctrl-C between them
            return future.result()
        except KeyboardInterrupt:
            self._stop.set()
            if future is not None:
                concurrent.futures.wait([future])
            raise
