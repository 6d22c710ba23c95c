"""What a model needs on a card beside its weights, and which weights lie there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from planner.fit.compute import RESERVE, compute_bytes
from planner.fit.context import Context, fits_in
from planner.fit.layers import INDEXED, Layer, is_known, layers_of
from planner.fit.parameters import Metadata, Parameters
from planner.names.gguf import is_tied
from planner.sizes import align

__all__ = ["ALIGNMENT", "Beside", "Needs", "longest", "stays_in_ram", "weights_on_card"]

ALIGNMENT = 128
"""Bytes that tensors in a buffer on a card are aligned to (ggml_backend_cuda_buffer_type_get_alignment in
ggml-cuda.cu)."""

# Which llama.cpp looks rows up in, and keeps in main memory whatever -ngl says (LLM_TENSOR_LAYER_INPUT in
# llama-arch.cpp)
_LOOKED_UP = frozenset(
    f"{role}.weight" for role in ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
)
_STEP = 256  # tokens; llama.cpp rounds contexts up to a multiple


def stays_in_ram(name: str, names: Collection[str]) -> bool:
    """Return whether a tensor stays off the card when all layers are on it. A `token_embd` that is the output too, as
    no other is among `names`, does not: a copy of it is made there.

    >>> stays_in_ram("token_embd.weight", ["token_embd.weight", "output.weight"])
    True
    >>> stays_in_ram("token_embd.weight", ["token_embd.weight"])
    False
    """
    return name in _LOOKED_UP and not is_tied(name, names)


def weights_on_card(sizes: Mapping[str, int]) -> int:
    """Return what a model's tensors (name → bytes) take on a card that has all layers.

    >>> weights_on_card({"token_embd.weight": 1000, "output.weight": 1000})
    1024
    """
    return sum(align(size, ALIGNMENT) for name, size in sizes.items() if not stays_in_ram(name, sizes))


@dataclass(frozen=True, slots=True)
class Beside:
    """Bytes beside the weights: keys and values, recurrent states, buffers to compute in, what is left for the driver
    and others, and the encoder of images or sound. `per_token` is what a token more would take of `kv`, beyond
    windows."""

    kv: int
    state: int
    compute: int
    reserve: int
    mmproj: int
    per_token: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.kv + self.state + self.compute + self.reserve + self.mmproj


@dataclass(frozen=True)
class Needs:
    """What a model needs beside its weights, for any context. `layers` are those that keep something of it."""

    architecture: str
    parameters: Parameters
    vocabulary: int
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, architecture: str, metadata: Metadata, shapes: Mapping[str, Sequence[int]]) -> Self:
        """Make it of the model's own metadata (`KEYS`, without the architecture's name) and the shapes of its tensors,
        in ggml's order. Raises ModelError for more blocks than llama.cpp takes."""
        parameters = Parameters(metadata)
        shape = shapes.get("output.weight", shapes.get("token_embd.weight", ()))
        return cls(architecture, parameters, shape[1] if len(shape) > 1 else 0, layers_of(architecture, parameters))

    def beside(
        self, context: Context, *, mmproj: int = 0, margin: int | None = None, blocks: Collection[int] | None = None
    ) -> Beside:
        """Return what a card needs that has all layers, or the attention of `blocks`; `margin` takes the place of what
        is estimated for computing and for others. Raises UsageError for types of keys and values that llama.cpp
        refuses."""
        layers = [layer for layer in self.layers if blocks is None or layer.block in blocks]
        compute, reserve = margin or 0, 0
        if margin is None:
            compute = compute_bytes(self.architecture, self.parameters, self.vocabulary, layers, context)
            reserve = RESERVE
        return Beside(
            context.kv_bytes(layers), context.state_bytes(layers), compute, reserve, mmproj,
            context.bytes_per_token(layers),
        )  # fmt: skip

    def can_keep(self, context: Context) -> bool:
        """Return whether llama.cpp keeps keys and values of this model in the context's types."""
        return fits_in(self.layers, context)

    def notes(self, context: Context) -> list[str]:
        """Return what to know of the figures."""
        found = []
        if not is_known(self.architecture):
            found.append(
                f"How llama.cpp keeps the context of {self.architecture} is not known here: every layer counts as "
                "attending to all of it, which is rarely too little."
            )
        if self.architecture in INDEXED:
            found.append("Scores of its indexer are not among the compute buffers, and may be large.")
        trained = self.parameters.number("context_length")
        each = -(-context.tokens // context.sequences)
        if trained and each > trained:
            whose = " a sequence" if context.sequences > 1 else ""
            found.append(
                f"The model was trained on {trained:,} tokens at most: a context of {each:,}{whose} is beyond."
            )
        return found


def longest(context: Context, fits: Callable[[Context], bool]) -> int | None:
    """Return the most tokens, at most the context's and in steps of 256, of which a context `fits`; None if none do."""
    low, high = 0, context.tokens // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(replace(context, tokens=middle * _STEP)) else (low, middle - 1)
    return low * _STEP or None
