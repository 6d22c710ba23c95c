"""Run a model's draft head beside it, on the same tokens, as llama.cpp does before it drafts.

A head predicts from a token and from what the model made of the one before. So the tokens of every batch run a second
time, in a context of the head's, with the hidden states of the first run moved on by one (`process` of
`common_speculative_impl_draft_mtp` in llama.cpp's `common/speculative.cpp`).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.errors import InferenceError
from planner.gguf import Model
from planner.llama.library import last_complaint, llama

__all__ = ["DraftHead", "has_head"]

_MTP = 1  # LLAMA_CONTEXT_TYPE_MTP
# Architectures whose head was run here; llama.cpp may end the process for others. One head each
_RUN = frozenset(("qwen35", "qwen35moe", "qwen3next", "glm-dsa", "deepseek2", "deepseek32", "nemotron_h_moe"))
# In llama-ext.h, which is not part of the interface, nor declared as C
_KEEP, _READ = "_Z26llama_set_embeddings_nextnP13llama_contextbb", "_Z26llama_get_embeddings_nextnP13llama_context"


def has_head(model: Model) -> bool:
    """Return whether a model has a draft head that this llama.cpp is known to run."""
    count = model.metadata.integer(f"{model.architecture}.nextn_predict_layers")
    return count == 1 and model.architecture in _RUN and _functions() is not None


class DraftHead(Closing):
    """The context of a model's draft head. `parameters` are those of the model's own `context`; with another observer.

    Raises InferenceError where llama.cpp makes none.
    """

    def __init__(self, model: Any, context: Any, parameters: Any) -> None:
        api, functions = llama(), _functions()
        assert functions is not None
        self._of, (self._keep, self._read) = context, functions
        self._width: int = api.llama_model_n_embd_out(model)
        self._last: dict[int, NDArray[np.float32]] = {}  # of each sequence, by its number
        parameters.ctx_type = _MTP
        self._context = api.llama_init_from_model(model, parameters)
        if not self._context:
            raise InferenceError(f"llama.cpp cannot run the draft head: {last_complaint()}")
        self._batch = api.llama_batch_init(parameters.n_batch, self._width, 1)
        self._tokens = np.empty(parameters.n_batch, np.int32)  # llama.cpp gives a batch either tokens or embeddings
        self._keep(context, True, False)

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self._context:
            llama().llama_batch_free(self._batch)
            llama().llama_free(self._context)
            self._context = None

    def forget(self) -> None:
        """Empty the memory of all sequences."""
        self._last.clear()
        llama().llama_memory_clear(llama().llama_get_memory(self._context), True)

    def follow(self, tokens: NDArray[np.int32], positions: NDArray[np.int32], sequences: NDArray[np.int32]) -> int:
        """Run the tokens that the model has just run; of each sequence they are in order. Return llama.cpp's status."""
        count, batch = len(tokens), self._batch
        read = self._read(self._of)
        if not read:
            return -1
        hidden = np.ctypeslib.as_array(read, (count, self._width))
        moved = np.zeros((count, self._width), np.float32)
        for sequence in np.unique(sequences).tolist():
            own = np.flatnonzero(sequences == sequence)
            moved[own[1:]] = hidden[own[:-1]]
            moved[own[0]] = self._last.get(sequence, moved[own[0]])
            self._last[sequence] = hidden[own[-1]].copy()
        self._tokens[:count] = tokens
        batch.n_tokens = count
        batch.token = self._tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        np.ctypeslib.as_array(batch.embd, (count * self._width,))[:] = moved.reshape(-1)
        for field, values in ((batch.pos, positions), (batch.n_seq_id, 1), (batch.logits, 1)):
            np.ctypeslib.as_array(field, (count,))[:] = values
        for number, sequence in enumerate(sequences.tolist()):
            batch.seq_id[number][0] = sequence
        status: int = llama().llama_decode(self._context, batch)
        batch.token = None  # ours, and not to be freed with the batch
        return status


def _functions() -> tuple[Any, Any] | None:
    """Return what makes a context keep its hidden states, and what reads them; None where llama.cpp has neither."""
    library = llama()._lib
    try:
        keep, read = getattr(library, _KEEP), getattr(library, _READ)
    except AttributeError:
        return None
    keep.restype, keep.argtypes = None, (ctypes.c_void_p, ctypes.c_bool, ctypes.c_bool)
    read.restype, read.argtypes = ctypes.POINTER(ctypes.c_float), (ctypes.c_void_p,)
    return keep, read
