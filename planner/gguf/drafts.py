"""A model without its draft heads: which tensors go, and what its metadata then says of blocks."""

from __future__ import annotations

from collections.abc import Collection

from planner.errors import ModelError, option
from planner.gguf.metadata import STRING
from planner.gguf.model import Model
from planner.names.gguf import ahead, parse_name

__all__ = ["draft_heads", "pairs_without"]

_REMEDY = "Keep the heads: {}, or convert the original again without them (convert_hf_to_gguf.py --no-mtp)."
# As many numbers in every model (LLM_KV_ROPE_DIMENSION_SECTIONS in llama.cpp), and not one a block
_NOT_BY_BLOCK = frozenset(("rope.dimension_sections",))


def draft_heads(model: Model) -> set[str]:
    """Return the tensors of a model's draft heads."""
    return ahead(model.by_name)


def pairs_without(model: Model, dropped: Collection[str]) -> dict[str, bytes]:
    """Return the pairs of metadata that differ, as bytes, in a file without these draft heads, by key.

    It is what a conversion without heads writes: blocks are counted without theirs, no block predicts further tokens,
    and lists with a number a block end where the blocks do, as llama.cpp refuses others. Raises ModelError where heads
    are not the last blocks, or are all that there is.
    """
    if not dropped:
        return {}
    metadata, own = model.metadata, f"{model.architecture}."
    count, blocks = metadata.integer(f"{own}block_count"), {parse_name(name).block for name in dropped}
    left = (count or 0) - len(blocks)
    if blocks != set(range(left, left + len(blocks))):
        raise ModelError(
            f"{model.path}: its draft heads are not its last blocks, and no others can be left out.",
            _REMEDY.format(option("draft", "auto")),
        )
    if all(parse_name(name).block is None for name in model.by_name if name not in dropped):
        raise ModelError(f"{model.path} is a draft head alone: nothing is left without it.", "Give the model itself.")
    changed = {f"{own}block_count": metadata.with_number(f"{own}block_count", left)}
    if metadata.integer(f"{own}nextn_predict_layers") is not None:
        changed[f"{own}nextn_predict_layers"] = metadata.with_number(f"{own}nextn_predict_layers", 0)
    for key in metadata:
        pair = metadata.pair(key)
        by_block = key.startswith(own) and key.removeprefix(own) not in _NOT_BY_BLOCK
        if by_block and pair.is_array and pair.kind != STRING and pair.count == count:
            changed[key] = metadata.first_of(key, left)
    return changed
