"""llama.cpp's own answer: a model made of metadata alone, without weights, and what is reserved for its contexts.

`llama_model_init_from_user` makes tensors by the architecture's rules; with `no_alloc` neither they nor caches take
memory (a recurrent state does), but all are logged with their sizes, and compute graphs are laid out.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.fit import as_text
from planner.llama import library

Value = str | bool | int | float | Sequence[int]
# What loading asks for, whatever the architecture, and no size depends on
_COMMON: Mapping[str, Value] = {
    "attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": 1e-5, "context_length": 1 << 19,
    "rope.freq_base": 10000.0,
}  # fmt: skip
_U32, _U64 = 4, 10  # gguf_type
_WIDE = ("ple.layer_multipliers", "ple.head_offsets", "ple.head_vocab_sizes")  # lists of uint64
_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
_SIZE = re.compile(r"(llama_kv_cache|llama_memory_recurrent): size =.*?\((.*)")
_PART = re.compile(r"[KVRSP] \(\w+\): +([\d.]+) MiB")
_COMPUTE = re.compile(r"compute buffer size = +([\d.]+) MiB")


def as_kept(pairs: Mapping[str, Value]) -> dict[str, bool | int | float | str]:
    """Metadata as an inventory keeps them: lists as text."""
    return {key: value if isinstance(value, str | int | float) else as_text(value) for key, value in pairs.items()}


@dataclass(frozen=True)
class Reserved:
    """Bytes, as exact as logs are: to a hundredth of a MiB."""

    kv: float
    state: float
    compute: float


@contextlib.contextmanager
def made_up(architecture: str, pairs: Mapping[str, Value], *, vocabulary: int = 128) -> Iterator[Any]:
    """A model of this architecture, without weights."""
    api, gguf = library.llama(), _gguf()
    header = gguf.gguf_init_empty()
    model = None
    try:
        gguf.gguf_set_val_str(header, b"general.architecture", architecture.encode())
        gguf.gguf_set_val_str(header, b"tokenizer.ggml.model", b"no_vocab")
        _set(gguf, header, f"{architecture}.vocab_size", vocabulary)
        for key, value in {**_COMMON, **pairs}.items():
            _set(gguf, header, f"{architecture}.{key}", value)
        parameters = api.llama_model_default_params()
        parameters.no_alloc, parameters.use_extra_bufts, parameters.load_mode = True, False, 0
        parameters.load_mtp = True  # what is skipped is no tensor here
        nothing = api.llama_model_set_tensor_data_t(lambda _tensor, _data: None)
        with _logged() as said:
            model = api.llama_model_init_from_user(header, nothing, None, parameters)
        assert model, "".join(said[-5:])
        yield model
    finally:
        if model:
            api.llama_model_free(model)
        gguf.gguf_free(header)


@contextlib.contextmanager
def from_file(path: Path) -> Iterator[Any]:
    """A model of a file."""
    api = library.llama()
    parameters = api.llama_model_default_params()
    parameters.use_extra_bufts = False
    model = api.llama_model_load_from_file(str(path).encode(), parameters)
    assert model
    try:
        yield model
    finally:
        api.llama_model_free(model)


def reserved(
    model: Any, ctx: int, *, kv: tuple[str, str] = ("f16", "f16"), parallel: int = 1, unified: bool = False,
    ubatch: int = 512,
) -> Reserved:  # fmt: skip
    """What llama.cpp reserves for a context."""
    api = library.llama()
    parameters = api.llama_context_default_params()
    parameters.n_ctx, parameters.n_ubatch, parameters.n_seq_max = ctx, ubatch, parallel
    parameters.kv_unified, parameters.flash_attn_type, parameters.swa_full = unified, 1, False
    parameters.type_k, parameters.type_v = (_TYPES[name] for name in kv)
    with _logged() as said:
        context = api.llama_init_from_model(model, parameters)
    text = "".join(said)
    assert context, text
    api.llama_free(context)
    sizes = {"llama_kv_cache": 0.0, "llama_memory_recurrent": 0.0}
    for who, line in _SIZE.findall(text):
        sizes[who] += sum(map(float, _PART.findall(line)))
    compute = sum(map(float, _COMPUTE.findall(text)))
    return Reserved(*(1024 * 1024 * size for size in (*sizes.values(), compute)))


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What llama.cpp logs meanwhile."""
    api, said = library.llama(), []

    @api.llama_log_callback
    def listen(_level: int, text: bytes, _data: object) -> None:
        said.append(text.decode("utf-8", "replace"))

    api.llama_log_set(listen, ctypes.c_void_p(0))
    try:
        yield said
    finally:
        api.llama_log_set(library._listener(), ctypes.c_void_p(0))


def _gguf() -> ctypes.CDLL:
    """The functions of gguf.h."""
    from llama_cpp import _ctypes_extensions, _ggml

    library.llama()
    dll: ctypes.CDLL = _ctypes_extensions.load_shared_library("ggml-base", Path(_ggml.libggml_base_path))
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    dll.gguf_init_empty.restype = pointer
    dll.gguf_free.argtypes = (pointer,)
    for name, kind in (("str", text), ("u32", ctypes.c_uint32), ("f32", ctypes.c_float), ("bool", ctypes.c_bool)):
        getattr(dll, f"gguf_set_val_{name}").argtypes = (pointer, text, kind)
    # void gguf_set_arr_data(struct gguf_context *, const char * key, enum gguf_type, const void * data, size_t n)
    dll.gguf_set_arr_data.argtypes = (pointer, text, ctypes.c_int, pointer, ctypes.c_size_t)
    return dll


def _set(gguf: ctypes.CDLL, header: int, key: str, value: Value) -> None:
    name = key.encode()
    if isinstance(value, str):
        gguf.gguf_set_val_str(header, name, value.encode())
    elif isinstance(value, bool):
        gguf.gguf_set_val_bool(header, name, value)
    elif isinstance(value, int):
        gguf.gguf_set_val_u32(header, name, value)
    elif isinstance(value, float):
        gguf.gguf_set_val_f32(header, name, value)
    else:
        wide = key.endswith(_WIDE)
        array = ((ctypes.c_uint64 if wide else ctypes.c_uint32) * len(value))(*value)
        gguf.gguf_set_arr_data(header, name, _U64 if wide else _U32, array, len(value))
