"""Sensitivities from weights and imatrix alone: the share of the residual stream's energy that an error adds.

    loss = (energy that the error adds to the stream) / (energy of the stream there)

Normalization makes every later write proportional to the stream, so a loss at one depth is the same loss at the end.
The energies are facts in the state (`planner.measure.energies`); `stream_shares` divides them by the stream's.
docs/design.md has the formulas and the evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from planner.names.gguf import PER_LAYER_EMBEDDING, role_of
from planner.sensitivity.facts import Facts
from planner.sensitivity.parts import ErrorParts

__all__ = ["STRUCTURE_VERSION", "in_nats", "stream_shares"]

STRUCTURE_VERSION = 10  # part of the key under which facts are kept: raise it when a number would change

# Fitted on the sensitivities measured in benchmarks/data/measured_sensitivity, as the constants of
# planner.measure.energies
MASSIVE = 4.0
# What an embedding counts where the stream was seen, as a share of what it counts otherwise: best in recipes of
# prose-8m, SmolLM2-135M and Qwen2.5-Coder-1.5B (docs/quality.md)
SEEN_EMBEDDING = 0.5


def in_nats(facts: Mapping[str, Facts]) -> bool:
    """Return whether `stream_shares` are in nats, and not up to scale: by reach."""
    return facts.get("token_embd.weight", Facts()).reach is not None


def stream_shares(facts: Mapping[str, Facts]) -> dict[str, ErrorParts]:
    """Return the sensitivities, per unit of each part of the error, of all tensors that have a place in the model.

    `facts` are by tensor name, of the whole model. The stream's energy is the geometric mean of the one
    that was seen and the embedding's plus that of every write so far; the latter, if none was seen.

    Where the reach of noise is known, it is what a share of the stream that was seen is worth, and sensitivities are in
    nats. Behind a write of which it is not known, a share is worth what it was before.
    """
    embedding = facts.get("token_embd.weight", Facts())
    if not embedding.write:
        return {}
    written, massive, gathers = embedding.write, 0.0, 0.0
    seen, nats = any(fact.stream for fact in facts.values()), in_nats(facts)
    shares: dict[str, ErrorParts] = {}
    steps: dict[tuple[int, int], list[tuple[str, Facts, ErrorParts]]] = {}
    for name, fact in facts.items():
        block, _ = role_of(name)
        if block is not None and fact.added is not None:
            steps.setdefault((block, fact.stage), []).append((name, fact, fact.added))
        elif fact.added is not None or fact.output is not None:
            embeds, predicts = SEEN_EMBEDDING if seen else 1.0, fact.output or 0.0
            if nats:
                embeds, predicts = embedding.reach or 0.0, fact.logits or 0.0
            variance, mean, rows = fact.added or (0.0, 0.0, 0.0)
            each = embeds / fact.write if fact.write else 0.0
            shares[name] = ErrorParts(variance * each + predicts, mean * each + predicts, rows * each)
    worth = 1.0  # of a share of the stream
    for _, step in sorted(steps.items(), key=lambda item: item[0]):
        written += sum(fact.write for _, fact, _ in step)
        massive += sum(added.massive for _, _, added in step)
        # Writes agree in part: what is seen is more than their sum, but not that much more can be lost in it
        stream = math.sqrt(next((fact.stream for _, fact, _ in step if fact.stream), written) * written)
        # A massive channel rules the stream's norm once it exceeds the bulk; before, it is a channel like others
        against = max(massive / MASSIVE, stream)
        for _, fact, _ in step:
            if nats and fact.reach is not None and fact.seen:
                worth = fact.reach * stream / fact.seen
        own, heavy = worth / stream, worth / against
        for name, fact, added in step:
            shares[name] = ErrorParts(added.variance * own, added.mean * own, added.massive * heavy)
            gathers += (fact.gathers or 0.0) * own
    if nats:
        shares |= {
            name: ErrorParts(fact.inside, fact.steady, 0.0)
            for name, fact in facts.items()
            if fact.inside is not None and fact.steady is not None
        }
    table = facts.get(PER_LAYER_EMBEDDING, Facts()).gathered
    if table is not None and gathers > 0:
        shares[PER_LAYER_EMBEDDING] = ErrorParts(table * gathers, table * gathers, 0.0)
    return shares
