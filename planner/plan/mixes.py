"""llama.cpp's own mixes, Q4_K_M and its like, worked out for a model from names and shapes, without its file.

Source of every rule: `llama_tensor_get_type_impl` and what calls it in `src/llama-quant.cpp` of llama.cpp, and the
layers at which `src/models/{llama,qwen2,deci}.cpp` call a model 70B. Tests ask the library itself, by a dry run, and
expect the same types.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from planner.errors import UsageError
from planner.formats.ggml import formats
from planner.gguf import fallback, tensor_order
from planner.names.gguf import parse_name
from state import Inventory, TensorRecord

__all__ = ["MIXES", "mix_formats", "mix_named"]

MIXES: Mapping[str, str] = MappingProxyType(
    {
        "IQ1_S": "iq1_s", "IQ1_M": "iq1_m", "IQ2_XXS": "iq2_xxs", "IQ2_XS": "iq2_xs", "IQ2_S": "iq2_xs",
        "IQ2_M": "iq2_s", "Q2_K_S": "q2_K", "Q2_K": "q2_K", "IQ3_XXS": "iq3_xxs", "IQ3_XS": "iq3_s", "IQ3_S": "iq3_s",
        "IQ3_M": "iq3_s", "Q3_K_S": "q3_K", "Q3_K_M": "q3_K", "Q3_K_L": "q3_K", "IQ4_XS": "iq4_xs",
        "IQ4_NL": "iq4_nl", "Q4_0": "q4_0", "Q4_1": "q4_1", "Q4_K_S": "q4_K", "Q4_K_M": "q4_K", "Q5_0": "q5_0",
        "Q5_1": "q5_1", "Q5_K_S": "q5_K", "Q5_K_M": "q5_K", "Q6_K": "q6_K", "Q8_0": "q8_0",
    }
)  # fmt: skip
"""Mixes as llama-quantize calls them → the type that a tensor gets where no rule says otherwise."""

_SMALL = frozenset(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"))
_IQ1, _IQ2_SM, _IQ4 = frozenset(("IQ1_S", "IQ1_M")), frozenset(("IQ2_S", "IQ2_M")), frozenset(("IQ4_NL", "IQ4_XS"))
_EMBEDDING = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"), "q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "iq3_s"),
}
_WRITER = {"Q2_K": "q3_K", "IQ3_XXS": "iq3_s", "Q3_K_M": "q4_K", "Q3_K_L": "q5_K", "IQ3_M": "q4_K"}
_WRITER_BY_8_EXPERTS = frozenset(
    ("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS")
)
# The first that a name contains; `output` and the embeddings are told by their whole names
_KINDS = {
    "attn_qkv.weight": "v", "attn_kv_b.weight": "v", "attn_v.weight": "v", "attn_k.weight": "k", "attn_q.weight": "q",
    "attn_output.weight": "writer", "ffn_up": "up", "ffn_gate": "gate", "ffn_down": "down",
}  # fmt: skip
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")


def mix_named(text: str) -> str | None:
    """Return the mix that a text names, in any case; None if it names none."""
    return text.upper() if text.upper() in MIXES else None


def mix_formats(inventory: Inventory, mix: str) -> dict[str, str]:
    """Return the type of every tensor that llama-quantize would convert to make `mix` (one of `MIXES`), with the
    imatrix of the inventory, if it has one. Raises UsageError for another name, RecipeError for a row that no type of
    llama.cpp fits."""
    if mix not in MIXES:
        raise UsageError(f"{mix!r} is not a mix of llama.cpp.", f"Give one of: {', '.join(MIXES)}.")
    by_name = {tensor.name: tensor for tensor in inventory.tensors if tensor.left_alone is None}
    rules = _Rules(inventory, mix)
    chosen = {name: rules.type_of(by_name[name]) for name in tensor_order(by_name)}
    table = formats()
    return {name: fallback(table[fmt], by_name[name].row_length).name for name, fmt in chosen.items()}


class _Rules:
    """The rules of one mix. They count tensors as they come, in llama-quantize's order."""

    def __init__(self, inventory: Inventory, mix: str) -> None:
        self.mix, self.base = mix, MIXES[mix]
        self.falcon = inventory.architecture == "falcon"
        self.has_imatrix = inventory.imatrix_digest is not None
        self.layers, self.experts = (_count(inventory, key) for key in ("block_count", "expert_count"))
        self.groups = _head_groups(inventory)
        self.is_70b = self.layers == 80 and (
            inventory.architecture in ("qwen2", "deci") or (inventory.architecture == "llama" and self.groups != 1)
        )
        names = [tensor.name for tensor in inventory.tensors]
        self.tied = "output.weight" not in names
        self.values = sum(_kind(name) == "v" for name in names)
        self.seen = dict.fromkeys(("v", "down", "gate", "up"), 0)

    def type_of(self, tensor: TensorRecord) -> str:
        """Return the next tensor's type, before any fallback."""
        kind = _kind(tensor.name)
        if tensor.name == "output.weight" or (self.tied and tensor.name in _EMBEDDINGS):
            return self._output(tensor)
        if tensor.name in _EMBEDDINGS:
            return _EMBEDDING.get(self.mix, self.base)
        number = self.seen.get(kind, 0)
        if kind in self.seen:
            self.seen[kind] += 1
        if self.mix in _SMALL:
            return self._small(kind, number)
        if kind in ("down", "gate", "up") and self.experts > 1:  # experts come in any order: the name says where
            number = parse_name(tensor.name).block or 0
        match kind:
            case "v":
                return self._value(number)
            case "k" | "q":
                return self._key_or_query(kind)
            case "down":
                return self._down(number)
            case "writer":
                return self._writer()
            case "gate" | "up":
                middle = self.layers // 8 <= number < 7 * self.layers // 8
                return "iq3_xxs" if self.mix == "IQ3_XS" and middle else self.base
        return self.base

    def _output(self, tensor: TensorRecord) -> str:
        if self.falcon or not formats()[self.base].fits(tensor.row_length):
            return "q8_0"
        if self.mix in _SMALL or self.mix == "IQ3_XXS":
            return "q5_K"
        return self.base if self.base == "q8_0" else "q6_K"

    def _small(self, kind: str, number: int) -> str:
        better = "iq3_s" if self.mix in _IQ2_SM else "q2_K"
        if kind == "v":
            return "q4_K" if self.groups >= 4 or self.experts >= 4 else better
        if kind == "k" and self.experts == 8:
            return "q4_K"
        if kind == "down" and number < self.layers // 8:
            return better
        if kind == "writer":
            if self.experts == 8:
                return "q5_K"
            return "iq2_xxs" if self.mix in _IQ1 else "iq3_s" if self.mix in _IQ2_SM else self.base
        return self.base

    def _value(self, number: int) -> str:
        if self.experts == 8:
            return "q8_0"
        fmt = self._value_of_mix(number)
        return "q5_K" if self.is_70b and fmt in ("q3_K", "q4_K") else fmt

    def _value_of_mix(self, number: int) -> str:
        grouped = self.groups >= 4
        match self.mix:
            case "Q2_K":
                return "q4_K" if grouped else "q3_K"
            case "IQ3_XXS":
                return "q4_K" if grouped else "iq3_xxs" if self.has_imatrix else "iq3_s"
            case "Q2_K_S" | "IQ3_XS" | "IQ3_S" if grouped:
                return "q4_K"
            case "IQ3_M":
                return "q4_K"
            case "Q3_K_M":
                return "q5_K" if number < 2 else "q4_K"
            case "Q3_K_L":
                return "q5_K"
            case "IQ4_NL" | "IQ4_XS" if grouped:
                return "q5_K"
            case "Q4_K_M" | "Q5_K_M" if _takes_more(number, self.values):
                return "q6_K"
            case "Q4_K_S" if number < 4:
                return "q5_K"
        return self.base

    def _key_or_query(self, kind: str) -> str:
        if kind == "k" and self.experts == 8:
            return "q8_0"
        return {"IQ3_XS": "iq3_xxs", "IQ3_XXS": "iq2_s"}.get(self.mix, self.base)

    def _down(self, number: int) -> str:
        first, more = number < self.layers // 8, _takes_more(number, self.layers)
        match self.mix:
            case "Q2_K":
                return "q3_K"
            case "Q2_K_S" if first:
                return "q4_K"
            case "IQ3_XXS" if not self.has_imatrix:
                return "q4_K" if first else "q3_K"
            case "Q3_K_M":
                if number < self.layers // 16:
                    return "q5_K"
                return "q4_K" if more or not self.falcon else "q3_K"
            case "IQ3_M" if first or (self.experts == 8 and more):
                return "q4_K"
            case "Q3_K_L":
                return "q4_K" if self.falcon else "q5_K"
            case "Q4_K_M" if self.falcon:
                return "q6_K" if number < self.layers // 16 else "q5_K" if more else "q4_K"
            case "Q4_K_M" | "Q5_K_M" if more:
                return "q6_K"
            case "IQ4_NL" | "IQ4_XS" if first and not self.has_imatrix:
                return "q5_K"
            case "Q4_K_S" if first and not self.falcon:
                return "q5_K"
            case "Q4_0" | "Q5_0" if first and self.has_imatrix:
                return "q4_1" if self.mix == "Q4_0" else "q5_1"
        return self.base

    def _writer(self) -> str:
        if self.falcon:
            return "q4_K" if self.mix == "Q3_K_L" else self.base
        if self.experts == 8:
            return "q5_K" if self.mix in _WRITER_BY_8_EXPERTS else self.base
        return _WRITER.get(self.mix, self.base)


def _takes_more(number: int, count: int) -> bool:
    """Return whether a layer is of the eighths at both ends or one of every three between."""
    return number < count // 8 or number >= 7 * count // 8 or (number - count // 8) % 3 == 2


def _kind(name: str) -> str:
    return next((kind for part, kind in _KINDS.items() if part in name), "")


def _count(inventory: Inventory, key: str) -> int:
    value = inventory.metadata.get(key, 0)
    return value if isinstance(value, int) else 0


def _head_groups(inventory: Inventory) -> int:
    """Return how many query heads share a key head in the first block. States of before that was kept tell by the
    first attention there is: rows of values to columns of what writes them."""
    if "head_groups" in inventory.metadata:
        return _count(inventory, "head_groups")
    by_name = {tensor.name: tensor for tensor in inventory.tensors}
    for name, values in by_name.items():
        writer = by_name.get(name.replace("attn_v.", "attn_output."))
        if name.endswith("attn_v.weight") and writer is not None:
            return writer.row_length // values.shape[1]
        writer = by_name.get(name.replace("attn_qkv.", "attn_output."))
        if name.endswith("attn_qkv.weight") and writer is not None:
            return writer.row_length // max((values.shape[1] - writer.row_length) // 2, 1)
    return 1
