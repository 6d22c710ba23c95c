"""Module paths of a model's tensors in Hugging Face's transformers, from tables by architecture.

The gguf package maps the names of all implementations to the GGUF's, so a tensor has many there; the tables here say
which of them a model of an architecture has, and a test holds them against that map.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from planner.errors import RecipeError
from planner.names.gguf import parse_name, role_of

__all__ = ["ARCHITECTURES", "Module", "bare", "module_of", "other_modules", "spellings"]

# Role → module of a decoder layer in transformers, for models after Llama's plan
_DENSE = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_EXPERTS = {f"ffn_{part}_exps": f"mlp.experts.*.{part}_proj" for part in ("gate", "up", "down")}
_SHARED = {f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}
_SHARED_MANY = {role: path.replace("shared_expert.", "shared_experts.") for role, path in _SHARED.items()}
_FUSED_FFN = {"ffn_gate": "", "ffn_up": "mlp.gate_up_proj"}
_LINEAR = {"ssm_out": "linear_attn.out_proj"}
_JAMBA = {
    **{f"ffn_{part}": f"feed_forward.{part}_proj" for part in ("gate", "up", "down")},
    **{f"ffn_{part}_exps": f"feed_forward.experts.*.{part}_proj" for part in ("gate", "up", "down")},
    **{f"ssm_{part}": f"mamba.{part}_proj" for part in ("in", "x", "dt", "out")},
}
_LATENT = {
    "attn_q_a": "self_attn.q_a_proj", "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa", "attn_kv_b": "self_attn.kv_b_proj",
}  # fmt: skip
_MIXTRAL = {f"ffn_{part}_exps": f"block_sparse_moe.experts.*.{name}"
            for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2"))}  # fmt: skip
_QWEN35 = {
    **_LINEAR, "attn_qkv": "linear_attn.in_proj_qkv", "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a", "ssm_beta": "linear_attn.in_proj_b",
}  # fmt: skip

# Architecture of the GGUF → what differs from `_DENSE`
ARCHITECTURES: Mapping[str, Mapping[str, str]] = {
    "llama": _MIXTRAL, "qwen2": {}, "qwen3": {}, "gemma": {}, "gemma2": {}, "gemma3": {}, "granite": {}, "olmo2": {},
    "smollm3": {}, "ernie4_5": {}, "seed_oss": {},
    "phi3": {"attn_qkv": "self_attn.qkv_proj", **_FUSED_FFN},
    "glm4": _FUSED_FFN,
    "qwen2moe": {**_EXPERTS, **_SHARED},
    "qwen3moe": _EXPERTS,
    "deepseek2": {**_EXPERTS, **_SHARED_MANY, **_LATENT},
    "glm4moe": {**_EXPERTS, **_SHARED_MANY},
    "qwen3next": {
        **_EXPERTS, **_SHARED, **_LINEAR, "ssm_in": "linear_attn.in_proj_qkvz", "ssm_ba": "linear_attn.in_proj_ba"
    },
    "qwen35": _QWEN35,
    "qwen35moe": {**_QWEN35, **_EXPERTS, **_SHARED},
    "jamba": _JAMBA,
}  # fmt: skip
_TOP = {"token_embd": "model.embed_tokens", "output": "lm_head"}
_OUTER = re.compile(r"(?:(?:model|language_model|text_model|thinker)\.)*")
_OUTERS = ("model.language_model.", "language_model.model.", "model.text_model.", "thinker.model.")
_MOST_BLOCKS = 1000  # gguf's map is made of as many as the names say


@dataclass(frozen=True, slots=True)
class Module:
    """Where a tensor is: `block` (None outside), the tensor's role, the path within `prefix`. `experts`: one module of
    each expert, at `*`."""

    block: int | None
    role: str
    within: str

    @property
    def path(self) -> str:
        """Full path of the module, with `*` for the number of the expert."""
        return self.within if self.block is None else f"model.layers.{self.block}.{self.within}"

    @property
    def experts(self) -> bool:
        """True if the tensor is a stack of modules."""
        return ".*." in self.within


def module_of(name: str, architecture: str) -> Module:
    """Return the module of a matrix. Raises RecipeError for architectures and tensors whose place is not known."""
    roles = ARCHITECTURES.get(architecture)
    if roles is None:
        raise RecipeError(
            f"The modules of {architecture} models are not known.",
            f"Known are those of {', '.join(sorted(ARCHITECTURES))}. Export to a dialect of GGUF tensors instead.",
        )
    parsed = parse_name(name)
    role, _, kind = parsed.rest.rpartition(".")
    if kind == "weight":
        within = _TOP.get(role) if parsed.number is None else {**_DENSE, **roles}.get(role)
        if within and (parsed.number is None or parsed.prefix == f"blk.{parsed.block}"):
            return Module(parsed.block, role, within)
    raise RecipeError(
        f"The tensor {name!r} of {architecture} models has no module of its own in transformers.",
        "Export to a dialect of GGUF tensors instead.",
    )


def bare(path: str) -> str:
    """Return a path without what stands before it in models that see or hear as well.

    >>> bare("model.language_model.layers.0.mlp.up_proj"), bare("language_model.lm_head")
    ('layers.0.mlp.up_proj', 'lm_head')
    """
    return path[len(_OUTER.match(path)[0]) :]  # type: ignore[index]  # which finds nothing at least


def spellings(path: str) -> list[str]:
    """Return the names of a path in models that see or hear as well."""
    return [f"{outer}{bare(path)}" for outer in (("language_model.",) if path == "lm_head" else _OUTERS)]


def other_modules(names: Collection[str], architecture: str) -> set[str]:
    """Return bare paths of tensors that need not be matrices, such as norms and routers: all that gguf's map has."""
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in kinds:
        return set()
    known = set(names)
    numbered = (block for block, _ in map(role_of, names) if block is not None and block < _MOST_BLOCKS)
    blocks = 1 + max(numbered, default=0)
    places = gguf.get_tensor_name_map(kinds[architecture], blocks).mapping.items()
    return {bare(path) for path, (_, name) in places if not known.isdisjoint((f"{name}.weight", f"{name}.bias"))}
