"""What a family of formats makes of a model: which tensors it quantizes, how it stores the others, which go together.

State files describe models as GGUFs, and measurements of all families lie in them side by side. For MLX that
description is translated when a recipe is made, so that plans and sums need not know families.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from planner.formats.registry import Family
from planner.names.gguf import role_of
from planner.names.mlx import can_quantize, check_architecture, module_paths
from planner.names.transformers import ahead
from planner.plan.rules import Tie
from state import Inventory, TensorRecord

__all__ = ["fused_ties", "in_family", "left_out"]

_GGUF_ONLY = re.compile(r"rope_(freqs|factors_long|factors_short)\.weight")  # MLX works them out from config.json
_FLOATS = ("f32", "f16", "bf16")
_HALF = 2  # bytes


def in_family(inventory: Inventory, family: Family) -> Inventory:
    """The model as the family's engine stores it. GGUF: as it is.

    MLX: 16 bits a weight for what is not quantized (the type that most of the model has; F32 becomes bf16), no
    alignment, and no header: a safetensors file's is not ours to promise. Without what mlx-lm leaves out.
    """
    if family == "gguf":
        return inventory
    check_architecture(inventory.architecture, family)
    sizes: Counter[str] = Counter()
    for tensor in inventory.tensors:
        sizes[tensor.source_format] += tensor.elements
    half = "f16" if sizes["f16"] > sizes["bf16"] else "bf16"
    gone = left_out((tensor.name for tensor in inventory.tensors), family)
    tensors = tuple(
        _in_mlx(tensor, inventory.architecture, half)
        for tensor in inventory.tensors
        if not (_GGUF_ONLY.fullmatch(tensor.name) or tensor.name in gone)
    )
    return inventory.model_copy(update={"tensors": tensors, "header_bytes": 0, "alignment": 1})


def left_out(names: Iterable[str], family: Family) -> set[str]:
    """Tensors of a model that the family's engine does not load: in mlx-lm, layers that predict several tokens."""
    return set() if family == "gguf" else ahead(names)


def _in_mlx(tensor: TensorRecord, architecture: str, half: str) -> TensorRecord:
    reason = tensor.left_alone
    if reason is not None and tensor.source_format not in _FLOATS:
        return tensor
    if reason is None and not can_quantize(tensor.name, architecture, "mlx"):
        reason = "no module of mlx-lm"
    kind = tensor.source_format if tensor.source_format in ("f16", "bf16") else half
    return tensor.model_copy(update={"source_format": kind, "nbytes": _HALF * tensor.elements, "left_alone": reason})


def fused_ties(inventory: Inventory, family: Family) -> tuple[Tie, ...]:
    """Ties between tensors that are one module in the family's engine, which has one format."""
    if family == "gguf":
        return ()
    together: dict[str, list[str]] = {}
    for tensor in inventory.tensors:
        if tensor.left_alone is None:
            for path in module_paths(tensor.name, inventory.architecture):
                together.setdefault(path, []).append(tensor.name)
    roles = {tuple(sorted({role_of(name)[1] for name in names})) for names in together.values() if len(names) > 1}
    return tuple(_tie(group) for group in sorted(roles))


def _tie(roles: Iterable[str]) -> Tie:
    names = "|".join(map(re.escape, roles))
    return Tie(re.compile(rf"\.({names})\.weight$"), f"modules of mlx-lm: {names}")
