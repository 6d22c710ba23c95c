"""`planner inspect`."""

from __future__ import annotations

import dataclasses
import json
import math
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from planner.cli.progress import progress_bar
from planner.errors import UsageError

if TYPE_CHECKING:
    from planner.gguf import Health, Model

__all__ = ["inspect"]

Kind = Literal["a model", "an imatrix", "a state file", "a recipe"]

_HEAD = 4096  # bytes that tell one kind of file from another
_CONVERT = "Convert the original model with llama.cpp's convert_hf_to_gguf.py."
# What else people have: the first bytes, what it is, what to do
_STRANGERS = (
    (b"PK\x03\x04", "a zip archive, perhaps of PyTorch", _CONVERT),
    (b"lmgg", "a GGML file from before GGUF", _CONVERT),
    (b"tjgg", "a GGML file from before GGUF", _CONVERT),
    (b"version https://git-lfs.", "a Git LFS pointer, not the file itself", "Fetch the file with `git lfs pull`."),
    (b"\x1f\x8b", "compressed with gzip", "Unpack it first."),
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="For an imatrix: the model that it should cover.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--no-scan", is_flag=True, help="For a model: do not read its values.")
@click.option("--json", "as_json", is_flag=True, help="Print the same facts, and every tensor, as JSON.")
def inspect(file: Path, model: Path | None, tensors: bool, no_scan: bool, as_json: bool) -> None:
    """Show what is in FILE: a GGUF model (of a split one the first part), an imatrix, a state file or a recipe.

    Reads all values of a model, and warns where its conversion to F16 clipped or flushed weights.
    """
    kind = _kind_of(file)
    if model is not None and kind != "an imatrix":
        raise UsageError(f"--model goes with an imatrix, and {file} is {kind}.", "Leave it out.")
    if no_scan and kind != "a model":
        raise UsageError(f"--no-scan goes with a model, and {file} is {kind}.", "Leave it out.")
    if kind == "a model":
        facts, text = _model(file, tensors, scan=not no_scan)
    elif kind == "an imatrix":
        facts, text = _imatrix(file, model, tensors)
    elif kind == "a state file":
        facts, text = _state(file, tensors)
    else:
        facts, text = _recipe(file, tensors)
    # JSON in ASCII: nothing in a name reaches the terminal unescaped
    click.echo(json.dumps(_plain_data(facts), indent=2, allow_nan=False) if as_json else text)


def _model(file: Path, tensors: bool, *, scan: bool) -> tuple[object, str]:
    from planner.gguf import open_model
    from planner.report.inspection import model_facts, model_text

    with open_model(file) as model:
        facts = model_facts(model, _scan(model) if scan else None)
    return facts, model_text(facts, every_tensor=tensors)


def _scan(model: Model) -> dict[str, Health | None]:
    from planner.gguf import tensor_health

    total = sum(tensor.nbytes for tensor in model.tensors) / 1e6
    done = 0.0
    healths = {}
    with progress_bar("MB") as advance:
        for tensor in model.tensors:

            def seen(count: int, name: str = tensor.name) -> None:
                nonlocal done
                done += count / 1e6
                advance(name, done, total)

            healths[tensor.name] = tensor_health(model, tensor, seen)
            if healths[tensor.name] is None:  # quantized: there is nothing to read
                seen(tensor.nbytes)
    return healths


def _imatrix(file: Path, model: Path | None, tensors: bool) -> tuple[object, str]:
    from planner.gguf import open_model, read_imatrix
    from planner.report.inspection import imatrix_facts, imatrix_text

    imatrix = read_imatrix(file)
    if model is None:
        facts = imatrix_facts(imatrix)
    else:
        with open_model(model) as opened:
            facts = imatrix_facts(imatrix, opened)
    return facts, imatrix_text(facts, every_tensor=tensors)


def _state(file: Path, tensors: bool) -> tuple[object, str]:
    from planner.report.inspection import state_facts, state_text
    from state import Store

    with Store.open(file, read_only=True) as store:
        facts = state_facts(store, str(file))
    return facts, state_text(facts, every_tensor=tensors)


def _recipe(file: Path, tensors: bool) -> tuple[object, str]:
    from planner.recipes import load_recipe
    from planner.report.inspection import recipe_facts, recipe_text

    recipe = load_recipe(file)
    facts = recipe_facts(recipe, str(file))
    return facts, recipe_text(recipe, facts, every_tensor=tensors)


def _kind_of(file: Path) -> Kind:
    """Find out by content. Raises UsageError for what is none of the four, and the reader's error for a bad GGUF."""
    head, size = _read_head(file)
    if head.startswith(b"GGUF"):
        return _kind_of_gguf(file)
    if head.startswith(b"SQLite format 3\0"):
        return "a state file"
    for magic, what, remedy in _STRANGERS:
        if head.startswith(magic):
            raise UsageError(f"{file} is {what}.", remedy)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" and b"\0" not in head:
        return "a recipe"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        raise UsageError(f"{file} is a safetensors file.", _CONVERT)
    if _may_be_legacy_imatrix(head):
        return "an imatrix"
    raise UsageError(
        f"{file} is nothing that planner knows: it begins with {head[:8]!r}.",
        "Give a GGUF model, an importance matrix (GGUF or legacy .dat), a state file of `planner measure` or a recipe "
        "of `planner solve`.",
    )


def _read_head(file: Path) -> tuple[bytes, int]:
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            found = sorted(path.name for path in file.glob("*.gguf"))
            listed = f" such as {file / found[0]}" if found else ""
            raise UsageError(f"{file} is a directory.", f"Give one of the files in it{listed}.")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could wait for ever
            raise UsageError(f"{file} is not a regular file.", "Give a file on disk.")
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}.", "Check the path.") from error
    if not head:
        raise UsageError(f"{file} is empty.", "Make it again: whatever wrote it did not get far.")
    return head, status.st_size


def _kind_of_gguf(file: Path) -> Kind:
    from planner.gguf.reader import read_gguf

    opened = read_gguf(file)
    try:
        metadata = opened.metadata
        is_imatrix = metadata.text("general.type") == "imatrix" or "imatrix.chunk_count" in metadata
        return "an imatrix" if is_imatrix else "a model"
    finally:
        opened.data.close()


def _may_be_legacy_imatrix(head: bytes) -> bool:
    """Whether a file without a magic begins as one: how many entries, and a first one with a name that is text."""
    if len(head) < 8:
        return False
    entries, length = struct.unpack_from("<ii", head)
    name = head[8 : 8 + min(length, 64)] if length > 0 else b""
    return 0 < entries < 1 << 24 and 0 < length < 1024 and len(name) > 0 and all(32 < byte < 127 for byte in name)


def _plain_data(value: Any) -> Any:
    """Facts as JSON has them; numbers that it does not have as text."""
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return _plain_data(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain_data(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain_data(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
