"""Load llama.cpp from llama-cpp-python, and declare the functions of its ggml as in the headers."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
from pathlib import Path
from typing import Any

from planner.errors import InferenceError
from planner.lastwords import is_watched

__all__ = ["Ggml", "GgmlTensor", "ggml", "has_amx", "last_complaint", "llama", "llama_version"]

_INSTALL = "Install it, which compiles llama.cpp (some minutes): pip install 'gguf-planner[llama]'"
_ERROR_LEVEL = 4  # enum ggml_log_level
_OBJECT_BYTES = 32  # sizeof(struct ggml_object) in ggml.c
_complaints: list[str] = []


class GgmlTensor(ctypes.Structure):
    """struct ggml_tensor in ggml.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class Ggml:
    """The functions of llama.cpp's own libggml-base that we call."""

    def __init__(self, dll: ctypes.CDLL) -> None:
        dll.ggml_tensor_overhead.restype = ctypes.c_size_t
        if dll.ggml_tensor_overhead() != ctypes.sizeof(GgmlTensor) + _OBJECT_BYTES:
            raise InferenceError(
                "This llama-cpp-python has another layout of tensors than we know.",
                "Install a version that we were tested with: pip install 'gguf-planner[llama]'",
            )
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        # const char * ggml_op_name(enum ggml_op op)
        self.op_name = dll.ggml_op_name
        self.op_name.restype, self.op_name.argtypes = ctypes.c_char_p, (ctypes.c_int,)
        # size_t ggml_nbytes(const struct ggml_tensor * tensor)
        self.nbytes = dll.ggml_nbytes
        self.nbytes.restype, self.nbytes.argtypes = size, (pointer,)
        # bool ggml_backend_buffer_is_host(ggml_backend_buffer_t buffer)
        self.is_host = dll.ggml_backend_buffer_is_host
        self.is_host.restype, self.is_host.argtypes = ctypes.c_bool, (pointer,)
        # void ggml_backend_tensor_get(const struct ggml_tensor * tensor, void * data, size_t offset, size_t size)
        self.get = dll.ggml_backend_tensor_get
        self.get.restype, self.get.argtypes = None, (pointer, pointer, size, size)
        # void ggml_backend_tensor_set(struct ggml_tensor * tensor, const void * data, size_t offset, size_t size)
        self.set = dll.ggml_backend_tensor_set
        self.set.restype, self.set.argtypes = None, (pointer, pointer, size, size)


@functools.cache
def llama() -> Any:
    """Return the functions and structures of `llama.h`: the module `llama_cpp.llama_cpp`, ready for use and silent.

    Raises InferenceError where it is not installed or does not load.
    """
    # Threads of libgomp would spin at every barrier, hundreds of times a batch. On a machine with anything else to do
    # that makes them five times as slow as sleeping does; on an idle one it saves a sixth of a tiny model's time
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from llama_cpp import llama_cpp as api
    except ImportError as error:
        raise InferenceError(f"llama-cpp-python is needed for this ({error}).", _INSTALL) from error
    except (OSError, RuntimeError, AttributeError) as error:
        raise InferenceError(f"llama-cpp-python does not load: {error}", _INSTALL) from error
    api.llama_log_set(_listener(), ctypes.c_void_p(0))
    api.llama_backend_init()
    return api


@functools.cache
def ggml() -> Ggml:
    """Return the ggml that llama.cpp uses, which need not be the one whose kernels we measure with.

    Raises InferenceError where llama-cpp-python does not load, or its tensors have another layout.
    """
    from llama_cpp import _ctypes_extensions, _ggml

    llama()
    return Ggml(_ctypes_extensions.load_shared_library("ggml-base", Path(_ggml.libggml_base_path)))


def llama_version() -> str:
    """Return the version of llama-cpp-python, such as `0.3.36`. Raises InferenceError without it."""
    llama()
    return importlib.metadata.version("llama-cpp-python")


def has_amx() -> bool:
    """Return whether this llama.cpp was compiled for AMX, as it is by default on a processor that has it."""
    said: bytes = llama().llama_print_system_info()
    return b"AMX_INT8 = 1" in said


def last_complaint() -> str:
    """Return and forget the last errors that llama.cpp logged; empty if there are none."""
    said = " ".join(_complaints[-2:])
    _complaints.clear()
    return said


@functools.cache
def _listener() -> Any:
    """Return a log callback that keeps errors for our own messages and drops the rest. Kept alive by the cache."""
    from llama_cpp import llama_cpp as api

    def listen(level: int, text: bytes, _user_data: object) -> None:
        if level == _ERROR_LEVEL and text.strip():
            if is_watched():  # perhaps the reason for what is about to end the process
                os.write(2, text.strip() + b"\n")
            _complaints.append(text.decode("utf-8", "replace").strip())
            del _complaints[:-8]

    return api.llama_log_callback(listen)
