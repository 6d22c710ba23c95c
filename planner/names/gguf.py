"""Tensors of a GGUF by name: block, role, and which go together."""

from __future__ import annotations

import re

__all__ = ["FUSED", "block_prefix", "is_expert", "role_of"]

_NAME = re.compile(r"(?:blk\.(\d+)\.)?(.+?)(?:\.(?:weight|bias))?")
_EXPERT = re.compile(r"(ffn_(?:gate|down|up))\.\d+")  # one of those that some files do not stack
_ELSEWHERE = re.compile(r".*?\.blk\.\d+\.")  # a vision tower's or an encoder's block

_BLOCK = re.compile(r"(?:.*?\.)?blk\.\d+(?=\.)")

# Tensors that fused kernels (ik_llama.cpp and others) read together
FUSED = (
    r"\.attn_[qkv]\.weight$",
    *(rf"\.ffn_(gate|up){kind}\.weight$" for kind in ("", "_exps", "_shexp", "_chexps")),
)


def role_of(name: str) -> tuple[int | None, str]:
    """Block (None outside the main stack) and role of a tensor.

    >>> role_of("blk.3.ffn_down_exps.weight"), role_of("output.weight"), role_of("v.blk.0.attn_q.bias")
    ((3, 'ffn_down_exps'), (None, 'output'), (None, 'attn_q'))

    Experts that are stored one by one have the role of those that are stacked.

    >>> role_of("blk.3.ffn_down.5.weight")
    (3, 'ffn_down_exps')
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None, name
    block, role = match.groups()
    if block is not None and (expert := _EXPERT.fullmatch(role)):
        role = f"{expert[1]}_exps"
    if block is not None:
        return (int(block) if len(block) < 10 else None), role
    return None, _ELSEWHERE.sub("", role, count=1)


def is_expert(name: str) -> bool:
    """Whether a tensor is one expert of those that a file stores one by one."""
    match = _NAME.fullmatch(name)
    return match is not None and match[1] is not None and _EXPERT.fullmatch(match[2]) is not None


def block_prefix(name: str) -> str | None:
    """`blk.3`, `enc.blk.3`, or None."""
    match = _BLOCK.match(name)
    return match[0] if match else None
