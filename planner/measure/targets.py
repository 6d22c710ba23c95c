"""Tensors to measure in a model: blocks of tensors that are surveyed together, and the formats that each may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from planner.errors import ModelError, UsageError, option
from planner.formats.ggml import Format, formats
from planner.formats.registry import Family
from planner.gguf import Coverage, Imatrix, Model, Tensor, requires_imatrix, why_left_alone
from planner.names.gguf import ENCODER, role_of
from planner.text import some

__all__ = ["Block", "Target", "batches", "find_blocks", "notes_on"]

# Rows whose energies are held in memory at a time (four float64 each); whole blocks are surveyed, then measured
_ROWS_AT_A_TIME = 1 << 21


@dataclass
class Target:
    """A tensor to measure, and its known facts. `digest` is that of its content, once known. A `kept` tensor is
    quantized already and stays as it is."""

    tensor: Tensor
    formats: tuple[Format, ...]
    kept: bool
    facts_key: str = ""
    digest: str = ""
    missing: tuple[Format, ...] = ()


@dataclass
class Block:
    """Tensors that are surveyed together, since each explains the others, and whether their facts are known."""

    number: int | None
    targets: list[Target] = field(default_factory=list)
    known: bool = False

    @property
    def to_survey(self) -> list[Target]:
        """Targets still to survey: all if facts are missing, else those with missing measurements."""
        return [target for target in self.targets if target.missing or not self.known]


def find_blocks(
    model: Model,
    imatrix: Imatrix | None,
    candidates: Sequence[Format],
    pinned: Mapping[str, Sequence[Format]],
    *,
    family: Family,
    allow_requantize: bool,
) -> list[Block]:
    """Return all tensors that llama.cpp would quantize, by block, with what can be measured of each.

    In a model that is quantized in part (gpt-oss: experts in mxfp4), the part that is stays as it is, unless
    `allow_requantize`. Raises ModelError where that is everything, UsageError where no format is possible.
    """
    blocks: dict[object, Block] = {}
    gone = family.left_out(tensor.name for tensor in model.tensors)
    for tensor in model.tensors:
        if why_left_alone(tensor.name, tensor.shape, model.architecture, tensor.format) is not None:
            continue
        kept = model.format(tensor).quantized and not allow_requantize
        others = [fmt for fmt in pinned.get(tensor.name, ()) if fmt.name != tensor.format]
        if kept and (others or not family.keeps_quantized):
            raise _quantized(tensor)
        number, _ = role_of(tensor.name)
        # outside the stack, every tensor stands for itself
        block = blocks.setdefault(tensor.name if number is None else number, Block(number))
        # llama.cpp's own resort for rows that no block divides, and the step between F32 and q8_0
        halves = [formats()[name] for name in family.halves] if tensor.format == "f32" else []
        wanted = () if kept or tensor.name in gone else dict.fromkeys((*candidates, *halves, *others))
        block.targets.append(Target(tensor, _usable(model, imatrix, tensor, wanted, family), kept))
    every = [target for block in blocks.values() for target in block.targets]
    if not every:
        raise ModelError(
            f"{model.path} has no tensors that llama.cpp would quantize.", "Give a model with its weights."
        )
    if not any(target.formats for target in every):
        for target in every:
            if target.kept:
                raise _quantized(target.tensor)
        raise UsageError(
            f"No tensor of {model.path} can be stored as {', '.join(fmt.name for fmt in candidates)}.",
            f"Allow more {option('types')}: blocks of some do not fill the rows, and some need an imatrix "
            f"({option('imatrix')}).",
        )
    return list(blocks.values())


def _quantized(tensor: Tensor) -> ModelError:
    return ModelError(
        f"{tensor.name} is {tensor.format}, quantized already: quantizing again loses more than it must.",
        f"Start from the F16, BF16 or F32 model, or insist with {option('allow_requantize')}.",
    )


def _usable(
    model: Model, imatrix: Imatrix | None, tensor: Tensor, candidates: Iterable[Format], family: Family
) -> tuple[Format, ...]:
    if not family.can_quantize(tensor.name, model.architecture):
        return ()
    covered = imatrix is not None and imatrix.covers(tensor)
    return tuple(
        fmt
        for fmt in candidates
        if fmt.fits(tensor.row_length)
        and fmt.name != tensor.format
        and (covered or not requires_imatrix(tensor.name, fmt))
    )


def notes_on(blocks: Iterable[Block], coverage: Coverage | None, architecture: str) -> list[str]:
    """Return notes for before the measuring: on encoders, tensors that stay as they are, and tensors without an imatrix
    entry."""
    notes = []
    if architecture == ENCODER:
        notes.append(
            "An encoder of images or sound (mmproj): what its errors cost is not measured, but taken from the same "
            "roles in language models. See docs/architectures.md."
        )
    kept = Counter(target.tensor.format for block in blocks for target in block.targets if target.kept)
    if kept:
        kinds = ", ".join(f"{count} in {kind}" for kind, count in kept.items())
        notes.append(
            f"Tensors that are quantized already stay as they are ({kinds}). With {option('allow_requantize')} they "
            "can become other types too, which loses more than quantizing them once."
        )
    if coverage is not None and coverage.without:
        notes.append(
            f"The imatrix has nothing for {some(coverage.without)}: such tensors go without, and cannot have types "
            "that need one."
        )
    return notes


def batches(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """Yield batches of blocks to survey together, so small that memory is bounded."""
    batch: list[Block] = []
    rows = 0
    for block in blocks:
        size = sum(target.tensor.rows for target in block.to_survey)
        if batch and rows + size > _ROWS_AT_A_TIME:
            yield batch
            batch, rows = [], 0
        batch.append(block)
        rows += size
    if batch:
        yield batch
