"""Tensors of a GGUF by name: block, role, and which go together."""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Iterable
from typing import NamedTuple

__all__ = [
    "ATTENTION_WRITERS", "ENCODER", "FFN_WRITERS", "FUSED", "LAYER_WRITER", "NGRAM_WRITER", "PER_LAYER_EMBEDDING",
    "Name", "ahead", "block_prefix", "has_massive_channels", "is_expert", "is_tied", "parse_name", "role_of",
]  # fmt: skip

_NAME = re.compile(r"(?:(?P<tower>(?:.*?\.)??)blk\.(?P<number>[0-9]+)\.)?(?P<rest>.+)", re.DOTALL)
_EXPERT = re.compile(r"(ffn_(?:gate|down|up))\.[0-9]+")  # one of those that some files do not stack
_LONGEST_NUMBER = 9  # digits; no model has so many blocks

ENCODER = "clip"
"""Architecture of the part of a multimodal model that reads images or sound (`mmproj`), whatever that is built like."""

# Roles of what writes to the residual stream: mixers of tokens, feed-forwards, per-layer embeddings (Gemma 3n and 4),
# and the n-gram table of Qwen 4
ATTENTION_WRITERS = ("attn_output", "attn_out", "attn_output_b", "ssm_out", "shortconv.out_proj", "time_mix_output")
FFN_WRITERS = ("ffn_down", "channel_mix_value", "ffn_latent_up")
LAYER_WRITER, NGRAM_WRITER = "proj", "ple_value"
PER_LAYER_EMBEDDING = "per_layer_token_embd.weight"

# Tensors that fused kernels (ik_llama.cpp and others) read together
FUSED = (
    r"\.attn_[qkv]\.weight$",
    *(rf"\.ffn_(gate|up){kind}\.weight$" for kind in ("", "_exps", "_shexp", "_chexps")),
)


class Name(NamedTuple):
    """A tensor's name taken apart: `tower`, `blk.`, `number`, `.`, `rest`.

    `tower` is what stands before the block, with its dot: empty in the main stack, `v.` in a vision tower. `number` are
    the digits of the block, None outside of blocks; the name is then all `rest`.
    """

    tower: str
    number: str | None
    rest: str

    @property
    def block(self) -> int | None:
        """Index of the block in the main stack; None outside of it."""
        if self.tower or self.number is None or len(self.number) > _LONGEST_NUMBER:
            return None
        return int(self.number)

    @property
    def prefix(self) -> str | None:
        """Beginning of the names of the block's tensors, without the dot: `blk.3`, `enc.blk.3`, or None."""
        return None if self.number is None else f"{self.tower}blk.{self.number}"

    @property
    def plain(self) -> str:
        """`rest` without `.weight` or `.bias`."""
        stem, _, kind = self.rest.rpartition(".")
        return stem if stem and kind in ("weight", "bias") else self.rest

    @property
    def expert(self) -> str | None:
        """Role of the stack that one expert of those that a file stores one by one would be in; None for all else."""
        match = _EXPERT.fullmatch(self.plain) if self.number is not None and not self.tower else None
        return f"{match[1]}_exps" if match else None

    @property
    def role(self) -> str:
        """Name without block and kind; experts that are stored one by one have the role of those that are stacked."""
        return self.expert or self.plain


@functools.lru_cache(maxsize=2**16)
def parse_name(name: str) -> Name:
    """Take a tensor's name apart.

    >>> parse_name("v.blk.3.attn_q.weight")
    Name(tower='v.', number='3', rest='attn_q.weight')
    >>> parse_name("output.weight")
    Name(tower='', number=None, rest='output.weight')
    """
    match = _NAME.fullmatch(name)
    return Name(match["tower"] or "", match["number"], match["rest"]) if match else Name("", None, name)


def role_of(name: str) -> tuple[int | None, str]:
    """Return block (None outside the main stack) and role of a tensor.

    >>> role_of("blk.3.ffn_down_exps.weight"), role_of("output.weight"), role_of("v.blk.0.attn_q.bias")
    ((3, 'ffn_down_exps'), (None, 'output'), (None, 'attn_q'))

    Experts that are stored one by one have the role of those that are stacked.

    >>> role_of("blk.3.ffn_down.5.weight")
    (3, 'ffn_down_exps')
    """
    parsed = parse_name(name)
    return parsed.block, parsed.role


def is_expert(name: str) -> bool:
    """Return whether a tensor is one expert of those that a file stores one by one."""
    return parse_name(name).expert is not None


def block_prefix(name: str) -> str | None:
    """Return `blk.3`, `enc.blk.3`, or None."""
    return parse_name(name).prefix


def is_tied(name: str, names: Container[str]) -> bool:
    """Return whether a tensor of a model that has these names is its embedding, and makes its logits too.

    >>> is_tied("token_embd.weight", ("token_embd.weight", "output.weight"))
    False
    """
    return name == "token_embd.weight" and "output.weight" not in names


def has_massive_channels(name: str) -> bool:
    """Return whether a tensor may have massive input channels: where feed-forwards write (docs/design.md).

    >>> has_massive_channels("blk.3.ffn_down_exps.weight"), has_massive_channels("blk.3.ffn_up.weight")
    (True, False)
    """
    return parse_name(name).role.startswith("ffn_down")


def ahead(names: Iterable[str]) -> set[str]:
    """Return the tensors of draft heads: of blocks that predict several tokens ahead (`nextn`, MTP), which nothing
    runs through when the model reads a text.

    >>> sorted(ahead(["blk.7.attn_q.weight", "blk.8.attn_q.weight", "blk.8.nextn.eh_proj.weight"]))
    ['blk.8.attn_q.weight', 'blk.8.nextn.eh_proj.weight']
    """
    parsed = {name: parse_name(name) for name in names}
    blocks = {entry.prefix for entry in parsed.values() if entry.block is not None and entry.rest.startswith("nextn.")}
    return {name for name, entry in parsed.items() if entry.prefix in blocks}
