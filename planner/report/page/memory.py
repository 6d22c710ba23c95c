"""What a context takes beside the weights, for the contexts that a page offers."""

from __future__ import annotations

from planner.errors import ModelError, StateFileError
from planner.fit import Context
from planner.formats.registry import family_named
from planner.plan.candidates import MOST_UNLIMITED
from planner.plan.cards import in_ram, needs_of
from planner.plan.curve import MEMORIES
from planner.terms import FamilyName
from state import Inventory

__all__ = ["memory_data"]

_KINDS = ("f16", "q8_0", "q4_0")
_SHORTEST, _LONGEST = 4096, 2**20  # tokens


def memory_data(inventory: Inventory, family: FamilyName) -> dict[str, object] | None:
    """Return contexts with the bytes that llama.cpp allocates for them, and the tensors that stay off a card. None
    where they are not known: a state of an older planner, an architecture of no context, another engine."""
    if not family_named(family).in_llama_cpp:
        return None
    try:
        needs = needs_of(inventory)
    except (ModelError, StateFileError):
        return None
    if not needs.layers:
        return None
    trained = needs.parameters.number("context_length")
    lengths, tokens = [], _SHORTEST
    while tokens <= min(max(trained, _SHORTEST), _LONGEST):
        lengths.append(tokens)
        tokens *= 2
    contexts = [Context.parse(tokens, kind) for kind in _KINDS for tokens in lengths]
    aside = frozenset(in_ram(inventory))
    return {
        "cards": [size // 2**30 for size in MEMORIES],
        "contexts": [
            {
                "tokens": context.tokens, "kv": context.kv[0], "cache": beside.kv, "state": beside.state,
                "compute": beside.compute, "reserve": beside.reserve,
            }
            for context in contexts if needs.can_keep(context)
            for beside in (needs.beside(context),)
        ],
        "inRam": [index for index, tensor in enumerate(inventory.tensors) if tensor.name in aside],
        "mostInRam": MOST_UNLIMITED,
        "notes": needs.notes(contexts[0]),
    }  # fmt: skip
