"""The context in bytes: keys and values of the tokens, and states of the sequences, as llama.cpp allocates them.

Sources: src/llama-context.cpp (cells), src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp (windows) and
src/llama-memory-recurrent.cpp of llama.cpp (as of ggml 0.25.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from planner.errors import UsageError, option
from planner.fit.layers import Layer
from planner.sizes import align

__all__ = ["CACHE_TYPES", "Context", "fits_in"]

CACHE_TYPES: Mapping[str, tuple[int, int]] = MappingProxyType({
    "f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q8_0": (32, 34), "q5_1": (32, 24), "q5_0": (32, 22),
    "q4_1": (32, 20), "iq4_nl": (32, 18), "q4_0": (32, 18),
})  # fmt: skip
"""Types that llama.cpp keeps keys and values in (kv_cache_types in common/arg.cpp): numbers a block, bytes a block."""

_PAD = 256  # cells come in so many (llama_context; llama_kv_cache_iswa)
_MOST_TOKENS = 2**31  # a position is an int32_t
_MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ in llama-cparams.h
_STATE_BYTES = 4  # float32


@dataclass(frozen=True, slots=True)
class Context:
    """A context as llama.cpp's options ask for it: `tokens` in all (`-c`), types of keys and of values (`-ctk`,
    `-ctv`), `sequences` that share the tokens evenly (`-np`), and the largest batch that is computed at once (`-ub`).

    Raises UsageError for what llama.cpp refuses.
    """

    tokens: int
    kv: tuple[str, str] = ("f16", "f16")
    sequences: int = 1
    batch: int = 512

    def __post_init__(self) -> None:
        for name, value, most in (
            ("ctx", self.tokens, _MOST_TOKENS),
            ("parallel", self.sequences, _MOST_SEQUENCES),
            ("ubatch_size", self.batch, _MOST_TOKENS),
        ):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise UsageError(f"{option(name, value)} is out of range.", f"Give a number from 1 to {most:,}.")

    @classmethod
    def parse(cls, tokens: int, kv: str = "f16", sequences: int = 1, batch: int = 512) -> Self:
        """Make one of what users write: `kv` is a type, or one for keys and one for values with a comma between them.
        Raises UsageError."""
        types = [name.strip() for name in kv.lower().split(",")]
        if len(types) > 2 or any(name not in CACHE_TYPES for name in types):
            raise UsageError(
                f"{option('kv', kv)}: no such type of keys and values.",
                f"Give one of {', '.join(CACHE_TYPES)}; or two, for keys and for values: q8_0,q4_0.",
            )
        return cls(tokens, (types[0], types[-1]), sequences, batch)

    @property
    def cells(self) -> int:
        """Tokens that there is room for, a sequence."""
        return align(align(self.tokens, _PAD) // self.sequences, _PAD)

    def kv_bytes(self, layers: Iterable[Layer]) -> int:
        """Return the bytes of keys and values. Raises UsageError for a type whose blocks do not divide the heads, and
        for two where latent attention has one."""
        return sum(self.sequences * self._held(layer) * self._token_bytes(layer) for layer in layers)

    def state_bytes(self, layers: Iterable[Layer]) -> int:
        """Return the bytes of recurrent states."""
        return _STATE_BYTES * self.sequences * sum(layer.state for layer in layers)

    def bytes_per_token(self, layers: Iterable[Layer]) -> int:
        """Return what one token more takes, beyond all windows. Raises UsageError as `kv_bytes` does."""
        return sum(self._token_bytes(layer) for layer in layers if layer.window is None)

    def _held(self, layer: Layer) -> int:
        if layer.window is None:
            return self.cells
        batch = min(self.batch, align(self.tokens, _PAD))
        return align(min(self.cells, layer.window + batch), _PAD)

    def _token_bytes(self, layer: Layer) -> int:
        if layer.keys and not layer.values and self.kv[0] != self.kv[1]:
            raise UsageError(
                f"{option('kv', ','.join(self.kv))}: latent attention keeps keys and values as one, in one type.",
                f"Give one: {option('kv', self.kv[0])}.",
            )
        return sum(
            _row_bytes(name, count, head, layer.block)
            for name, count, head in zip(self.kv, (layer.keys, layer.values), layer.head, strict=True)
        )


def _row_bytes(name: str, count: int, head: int, layer: int) -> int:
    block, size = CACHE_TYPES[name]
    if count and (head % block or count % block):
        fitting = ", ".join(other for other, (length, _) in CACHE_TYPES.items() if head % length == count % length == 0)
        raise UsageError(
            f"{option('kv', name)}: heads of {head} in block {layer} are no multiple of {block}, as llama.cpp needs.",
            f"Give one of {fitting}.",
        )
    return count // block * size


def fits_in(layers: Sequence[Layer], context: Context) -> bool:
    """Return whether llama.cpp can keep these layers in the context's types."""
    try:
        context.kv_bytes(layers)
    except UsageError:
        return False
    return True
