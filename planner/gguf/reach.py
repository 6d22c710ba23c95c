"""How far noise reaches the predictions of a model, and what errors inside of its blocks cost, as an imatrix has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.errors import ImatrixError
from planner.gguf.reader import GgufFile, Tensor

__all__ = ["LOGITS_REACH", "Reach", "reach_arrays", "read_reach", "together"]

Floats = NDArray[np.float32]

# After a tensor's name in a file: nats, tokens, and what energy in each channel of the outputs is worth, if not alike;
# and the nats of errors in means
_REACH, _STEADY = ".reach", ".reach_steady"
LOGITS_REACH = "logits"  # what it says of noise in the logits is called


class Reach(NamedTuple):
    """The KL divergence, in nats per share of noise in the stream, that it makes where it enters, and on how many
    tokens that was found. `channels`: what energy in each of a weight's outputs is worth, f32[outputs], where they are
    not alike; behind norms, over the outputs' mean energy.

    Of a weight inside of a block, `nats` is what a relative error of 1 costs in what varies between tokens of what the
    weight reads, and `steady` likewise in its mean.
    """

    nats: float
    tokens: int
    channels: Floats | None = None
    steady: float | None = None


def read_reach(file: GgufFile) -> dict[str, Reach]:
    """Return what an imatrix knows of it, by a weight's name. Raises ImatrixError for what cannot be."""
    by_name = {tensor.name: tensor for tensor in file.tensors}
    names = [name.removesuffix(_REACH) for name in by_name if name.endswith(_REACH)]
    return {name: _read(file, by_name[name + _REACH], by_name.get(name + _STEADY)) for name in names}


def _read(file: GgufFile, tensor: Tensor, steady: Tensor | None) -> Reach:
    values = _floats(file, tensor)
    own, channels = values[:2], values[2:]
    if len(own) < 2 or not np.isfinite(values).all() or own.min() <= 0 or (channels.size and channels.min() < 0):
        raise _cannot_be(file, tensor, "two numbers above zero, and more of channels")
    mean = None
    if steady is not None:
        found = _floats(file, steady)
        if found.size != 1 or not 0 <= found[0] < np.inf:
            raise _cannot_be(file, steady, "one number that is not below zero")
        mean = float(found[0])
    return Reach(float(own[0]), round(float(own[1])), channels if channels.any() else None, mean)


def _floats(file: GgufFile, tensor: Tensor) -> Floats:
    return np.frombuffer(file.data, "<f4", tensor.elements if tensor.format == "f32" else 0, tensor.offset)


def _cannot_be(file: GgufFile, tensor: Tensor, what: str) -> ImatrixError:
    return ImatrixError(f"{file.path}: {tensor.name} is not {what}.", "Make it again with planner imatrix.")


def reach_arrays(name: str, found: Reach) -> Iterator[tuple[str, Floats]]:
    """Yield what a file holds of it, f32[n], by name."""
    channels = np.zeros(0) if found.channels is None else found.channels
    yield name + _REACH, np.concatenate([[found.nats, found.tokens], channels]).astype(np.float32)
    if found.steady is not None:
        yield name + _STEADY, np.array([found.steady], np.float32)


def together(one: Reach, other: Reach) -> Reach:
    """Return the mean of what was found of how far noise reaches, by tokens; of channels and means, if either knows of
    any. Raises ValueError where channels are not as many."""
    if (one.channels is None, one.steady is None) != (other.channels is None, other.steady is None):
        return one if other.channels is None and other.steady is None else other  # shares of another energy
    tokens = one.tokens + other.tokens
    share = one.tokens / tokens
    channels = steady = None
    if one.steady is not None and other.steady is not None:
        steady = share * one.steady + (1 - share) * other.steady
    if one.channels is not None and other.channels is not None:
        if len(one.channels) != len(other.channels):
            raise ValueError(f"writes to {len(other.channels):,} channels, not {len(one.channels):,}")
        channels = (share * one.channels + (1 - share) * other.channels).astype(np.float32)
    return Reach((one.nats * one.tokens + other.nats * other.tokens) / tokens, tokens, channels, steady)
