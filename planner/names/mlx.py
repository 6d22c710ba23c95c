"""Modules of a model's tensors in mlx-lm, and which of them it can have quantized.

Paths are those of mlx-lm's own models, which stack experts where transformers has one module each.
"""

from __future__ import annotations

from planner.errors import RecipeError, UsageError, option
from planner.names.gguf import role_of
from planner.names.transformers import ARCHITECTURES, module_of

__all__ = ["MODULE_PREFIXES", "can_quantize", "check_architecture", "module_paths"]

_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
# Vision models, whose language model mlx-lm calls so even where it is alone
MODULE_PREFIXES = {"qwen35": "language_model.", "qwen35moe": "language_model."}
# Modules that mlx-lm has in place of transformers' (models/mla.py, models/qwen3_next.py)
_OWN = {
    ("deepseek2", "attn_k_b"): ("self_attn.embed_q",),
    ("deepseek2", "attn_v_b"): ("self_attn.unembed_out",),
    ("deepseek2", "attn_kv_b"): ("self_attn.embed_q", "self_attn.unembed_out"),
    ("qwen3next", "attn_qkv"): ("linear_attn.in_proj_qkvz",),
    ("qwen3next", "attn_gate"): ("linear_attn.in_proj_qkvz",),
}


def module_paths(name: str, architecture: str) -> list[str]:
    """Return the paths of a tensor's modules in mlx-lm. Raises RecipeError where these are not known."""
    prefix = MODULE_PREFIXES.get(architecture, "")
    block, role = role_of(name)
    own = _OWN.get((architecture, role)) if block is not None else None
    if own:
        return [f"{prefix}model.layers.{block}.{path}" for path in own]
    path = module_of(name, architecture).path
    head, stacked, part = path.partition(".experts.*.")
    return [f"{prefix}{head}.switch_mlp.{_PARTS.get(part, part)}" if stacked else prefix + path]


def check_architecture(architecture: str) -> None:
    """Raise UsageError for a model that mlx-lm has, as far as is known, no modules for."""
    if architecture not in ARCHITECTURES:
        raise UsageError(
            f"MLX recipes are not possible for {architecture} models: where mlx-lm has their tensors is not known.",
            f"Known are {', '.join(sorted(ARCHITECTURES))}. Leave {option('family')} out to plan for GGUF.",
        )


def can_quantize(name: str, architecture: str) -> bool:
    """Return whether mlx-lm can have this tensor quantized, given that llama.cpp can.

    It has to be the weight of one module, or a part of one. A tensor that mlx-lm splits has other rows there.
    """
    try:
        return len(module_paths(name, architecture)) == 1
    except RecipeError:
        return False
