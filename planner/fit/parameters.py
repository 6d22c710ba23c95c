"""A model's own metadata, as far as memory depends on it: which keys, and reading them whatever they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.errors import ModelError

__all__ = ["KEYS", "Metadata", "Parameters", "as_text"]

KEYS = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "expert_count", "expert_used_count",
    "expert_feed_forward_length", "leading_dense_block_count", "nextn_predict_layers", "num_loops",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.key_length_swa", "attention.value_length_swa", "attention.key_length_mla", "attention.value_length_mla",
    "attention.sliding_window", "attention.sliding_window_pattern", "attention.shared_kv_layers",
    "attention.recurrent_layers", "attention.indexer.key_length", "attention.indexer.kpool",
    "attention.indexer.top_k", "attention.indexer.types", "full_attention_interval", "ssm.conv_kernel",
    "ssm.inner_size", "ssm.state_size", "ssm.group_count", "kda.head_dim", "wkv.head_size", "token_shift_count",
    "shortconv.l_cache", "hyper_connection.count", "ple.layers", "ple.ngram_size", "ple.conv_kernel",
)  # fmt: skip
"""Keys that are looked at, without the architecture's name, which stands before them in a GGUF."""

Metadata = Mapping[str, bool | int | float | str]
"""Key → value; lists of numbers as text (`as_text`), since a state keeps no lists."""

_MOST_BLOCKS = 512  # LLAMA_MAX_LAYERS in llama-hparams.h
_MOST = 2**40  # no dimension of a model is as large, and products of a few still are whole numbers of SQLite's


def as_text(values: Sequence[int]) -> str:
    """Return a list of numbers as one text.

    >>> as_text([8, 0, 8])
    '8,0,8'
    """
    return ",".join(str(int(value)) for value in values)


@dataclass(frozen=True)
class Parameters:
    """The numbers in a model's metadata. What is missing, or is no number that may be, counts as its default."""

    metadata: Metadata

    def __contains__(self, key: str) -> bool:
        return bool(self.numbers(key))

    def number(self, key: str, default: int = 0) -> int:
        """Return one number; of a list, the first."""
        return (self.numbers(key) or [default])[0]

    def most(self, key: str, default: int = 0) -> int:
        """Return one number; of a list, the largest."""
        return max(self.numbers(key), default=default)

    def flags(self, key: str) -> list[bool] | None:
        """Return a list, one a block; None where there is none. Blocks beyond its end are as its last."""
        if not isinstance(self.metadata.get(key), str):
            return None
        found = [number > 0 for number in self.numbers(key)]
        return (found + found[-1:] * self.blocks)[: self.blocks] if found else None

    def each(self, key: str, default: Sequence[int]) -> list[int]:
        """Return one number a block. Blocks beyond the end of a list are as its largest: more is safer than less."""
        found = self.numbers(key)
        if not found:
            return list(default)
        return (found + [max(found)] * self.blocks)[: self.blocks]

    @property
    def blocks(self) -> int:
        """How many blocks there are, those that predict further tokens (nextn) included. Raises ModelError for more
        than llama.cpp takes."""
        count = self.number("block_count")
        if count > _MOST_BLOCKS:
            raise ModelError(
                f"The model has {count:,} blocks by its metadata, and llama.cpp takes {_MOST_BLOCKS}.",
                "Give the size of the file instead, or of the tensors on a device.",
            )
        return count

    def numbers(self, key: str) -> list[int]:
        """Return all numbers of a key: none where it is missing, one of a scalar."""
        value = self.metadata.get(key)
        if isinstance(value, str):
            parts = value.split(",")
            value = -1 if not all(part.isascii() and part.isdigit() for part in parts) else value
            return [min(int(part[:20]), _MOST) for part in parts] if isinstance(value, str) else []
        whole = isinstance(value, int | float) and value == value and 0 <= value <= _MOST
        return [int(value)] if whole and value is not None else []
