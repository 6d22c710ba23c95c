"""Sensitivities from weights and imatrix alone: what share of the residual stream an error becomes.

    loss = (energy that the error adds to the stream) / (energy of the stream there)

Normalization makes every later write proportional to the stream, so what is lost at one depth is lost to the same
degree at the end. The energies are facts in the state (`planner.measure.energies`); `stream_shares` sets them against
the stream. docs/design.md has the formulas and the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.names.gguf import role_of

__all__ = ["STRUCTURE_VERSION", "Facts", "are_sound", "stream_shares"]

STRUCTURE_VERSION = 4  # part of the key under which facts are kept: raise it when a number would change

Facts = dict[str, float]
"""Energies per token of one tensor: `var` and `mean` per unit of err_var and err_mean, `massive` of its massive
channels, `write` what it adds to the stream itself; `stage` orders writes within a block. Without `var`: not
placed. Beside them `fine` and `coarse` are what rounded activations add to its relative error (`rounding`)."""

# Fitted on the sensitivities measured in benchmarks/data/measured_sensitivity, as the constants of
# planner.measure.energies
MASSIVE = 4.0


def are_sound(facts: Facts) -> bool:
    """Whether a tensor's facts are such as are worked out here: none is missing, and no energy is negative."""
    complete = "var" not in facts or all(key in facts for key in ("mean", "massive", "write", "stage"))
    return complete and all(value >= 0 for key, value in facts.items() if key != "stage")


def stream_shares(facts: Mapping[str, Facts]) -> dict[str, tuple[float, float, float]]:
    """Sensitivities of all tensors that have been placed: for err_var, err_mean and err_massive.

    `facts` are by tensor name, of the whole model. The stream's energy is the embedding's plus that of every
    write so far.
    """
    embedding = facts.get("token_embd.weight", {})
    if not embedding.get("write"):
        return {}
    stream, massive = embedding["write"], 0.0
    shares: dict[str, tuple[float, float, float]] = {}
    steps: dict[tuple[int, float], list[str]] = {}
    for name, fact in facts.items():
        block, _ = role_of(name)
        if block is not None and "var" in fact:
            steps.setdefault((block, fact["stage"]), []).append(name)
        elif "var" in fact or "output" in fact:
            own = 1.0 if fact.get("write") else 0.0
            shares[name] = (own + fact.get("output", 0.0), own + fact.get("output", 0.0), 0.0)
    for _, names in sorted(steps.items()):
        stream += sum(facts[name]["write"] for name in names)
        massive += sum(facts[name]["massive"] for name in names)
        for name in names:
            fact = facts[name]
            # A massive channel rules the stream's norm once it exceeds the bulk; before, it is a channel like others
            against = max(massive / MASSIVE, stream)
            shares[name] = (fact["var"] / stream, fact["mean"] / stream, fact["massive"] / against)
    return shares
