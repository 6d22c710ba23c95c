"""ggml's formats and kernels on numpy arrays: the only package that calls C."""

from __future__ import annotations

from planner.formats.ggml.file_types import GUESSED, file_type_of, file_types
from planner.formats.ggml.foreign import FOREIGN, nearest_known, unknown_type
from planner.formats.ggml.formats import (
    CANDIDATES,
    FORMAT_SETS,
    IK_SETS,
    Format,
    format_by_id,
    format_named,
    formats,
    ik_formats,
    native_formats,
    select_formats,
)
from planner.formats.ggml.ik_library import VARIABLE as IK_VARIABLE
from planner.formats.ggml.ik_library import load_ik
from planner.formats.ggml.kernels import (
    FAINTEST_WEIGHT,
    dequantize_rows,
    prepare_tables,
    quantize_rows,
    rows_are_valid,
    tables_ready,
)
from planner.formats.ggml.library import load
from planner.formats.ggml.reference import has_tables, quantize_by_ggml
from planner.formats.ggml.types import IK_TYPES, TYPES, Type, type_of, types_of_dialect

__all__ = [
    "CANDIDATES",
    "FAINTEST_WEIGHT",
    "FOREIGN",
    "FORMAT_SETS",
    "GUESSED",
    "IK_SETS",
    "IK_TYPES",
    "IK_VARIABLE",
    "TYPES",
    "Format",
    "Type",
    "dequantize_rows",
    "file_type_of",
    "file_types",
    "format_by_id",
    "format_named",
    "formats",
    "has_tables",
    "ik_formats",
    "library_digest",
    "library_version",
    "load_ik",
    "native_formats",
    "nearest_known",
    "prepare_tables",
    "quantize_by_ggml",
    "quantize_rows",
    "rows_are_valid",
    "select_formats",
    "tables_ready",
    "type_of",
    "types_of_dialect",
    "unknown_type",
]


def library_version() -> str:
    """Return the ggml version of the loaded library, such as `0.20.2`."""
    return load().version


def library_digest() -> str:
    """Return the SHA-256 of the loaded library file."""
    return load().digest
