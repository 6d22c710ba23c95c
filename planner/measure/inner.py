"""Energies that errors add where a block is more than the usual attention and feed-forward: per-layer embeddings, gated
queries, short convolutions, experts in a narrower space, and tensors whose path to the stream is not worked out.

All take the surveys of a block by role, and the facts found so far, to which they add. docs/design.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from planner.measure.activation_moments import activation_moments
from planner.measure.anatomy import Activation, Anatomy, BlockAnatomy
from planner.measure.survey import Survey
from planner.names.gguf import ATTENTION_WRITERS, LAYER_WRITER, NGRAM_WRITER
from planner.sensitivity import ErrorParts, Facts
from planner.sensitivity.prior import role_value

__all__ = ["anchored", "convolution", "evenly", "gain", "latent_experts", "per_layer_inputs", "query_gates"]

Doubles = NDArray[np.float64]
_LEAST = 1e-30  # of an energy that is divided by


def evenly(energy: float, stage: int) -> Facts:
    """Return the facts of an inner tensor whose error adds as much in its varying as in its mean part."""
    return Facts(ErrorParts(energy, energy, 0.0), stage=stage)


def gain(survey: Survey, facts: Facts) -> float:
    """Return the ratio of the energy that reaches the stream to the writer's own (scales and norms are behind it)."""
    if facts.added is None or survey.energy <= 0:
        return 0.0
    return facts.added.variance / survey.energy


def _worth(writer: Facts) -> float:
    """Return the energy that a relative error of 1 in what a writer makes adds to the stream."""
    return 0.0 if writer.added is None else writer.added.variance


def per_layer_inputs(known: Mapping[str, Survey], facts: dict[str, Facts], anatomy: Anatomy) -> None:
    """Per-layer embeddings: the writer reads act(g_i) u_i, with g from `inp_gate` and u gathered by token.

    It is linear in u: an error of u adds as much as the writer's own error. One of g adds act'(g)² g² for act(g)². The
    n-gram table of Qwen 4 goes through `ple_value` alone.
    """
    for writer in (LAYER_WRITER, NGRAM_WRITER):
        if writer in facts:
            facts[writer] = replace(facts[writer], gathers=_worth(facts[writer]))
    gate, output = known.get("inp_gate"), known.get(LAYER_WRITER)
    if gate is None or output is None or len(gate.out_mean[0]) != output.tensor.row_length:
        return
    share = _share_of_gate(output, gate.out_mean[0], gate.out_var[0], anatomy.activation)
    facts["inp_gate"] = evenly(share * _worth(facts[LAYER_WRITER]), facts[LAYER_WRITER].stage)


def query_gates(known: Mapping[str, Survey], facts: dict[str, Facts], block: BlockAnatomy) -> None:
    """Qwen3-Next: half of what `attn_q` makes are gates behind its heads' queries, whose sigmoids multiply what
    `attn_output` reads. What their error adds comes on top of that of the queries."""
    query, output = known.get("attn_q"), known.get("attn_output")
    width = block.heads * block.key_length
    if query is None or output is None or query.tensor.rows != 2 * width or output.tensor.row_length != width:
        return
    mean, var = (x.reshape(block.heads, 2, -1)[:, 1].reshape(-1) for x in (query.out_mean, query.out_var))
    energy = _share_of_gate(output, mean, var, "sigmoid") * _worth(facts["attn_output"])
    if "attn_q" in facts and (so_far := facts["attn_q"].added) is not None:
        added = ErrorParts(so_far.variance + energy, so_far.mean + energy, so_far.massive)
        facts["attn_q"] = replace(facts["attn_q"], added=added)


def _share_of_gate(writer: Survey, mean: Doubles, var: Doubles, activation: Activation) -> float:
    """Return what a relative error of 1 in gates adds, over the writer's own energy: the writer reads act(g_i) u_i, and
    E[u_i²] is what it read over E[act(g_i)²]. Gates are Gaussian with these means and variances, f64[n]."""
    value, slope = activation_moments(mean, var, activation)
    read = writer.columns[0] * (writer.moments.variance + writer.moments.mean**2)[0]
    ratio = slope * (mean**2 + var) / np.maximum(value, _LEAST)
    return float(read @ ratio) / max(float(read.sum()), _LEAST)


def convolution(known: Mapping[str, Survey], facts: dict[str, Facts]) -> None:
    """LFM2: `shortconv.in_proj` makes three factors of what `shortconv.out_proj` reads, which is linear in each."""
    writer = facts.get("shortconv.out_proj")
    if writer is not None and "shortconv.in_proj" in known:
        facts["shortconv.in_proj"] = evenly(3 * _worth(writer), writer.stage)


def latent_experts(known: Mapping[str, Survey], facts: dict[str, Facts]) -> None:
    """Nemotron: experts work between `ffn_latent_down` and `ffn_latent_up`, which writes to the stream what they make,
    and is linear in it. An error of what they read reaches all that they make."""
    writer, inner = facts.get("ffn_latent_up"), facts.get("ffn_down_exps")
    if writer is None or inner is None or inner.added is None:
        return
    whole = max(inner.added.variance, _LEAST)
    added = ErrorParts(*(_worth(writer) * energy / whole for energy in inner.added))
    facts["ffn_down_exps"] = replace(inner, added=added, write=0.0, stream=None)
    if "ffn_latent_down" in known:
        facts["ffn_latent_down"] = evenly(_worth(writer), writer.stage)


_ATTENTION_PARTS = ("attn_q", "attn_k", "attn_v", "attn_gate", "attn_output_a", "attn_compressor", "indexer")
# Tensors whose path to the writer is not worked out, by the beginnings of their roles, and the writers of each, the
# first of which is there: the writer's own energy, times what published measurements say of the role beside it
# (prior.json)
_ANCHORED = {
    "ssm_": ("ssm_out", "attn_output"),
    "time_mix_": ("time_mix_output",),
    "channel_mix_": ("channel_mix_value",),
    "ple_": (NGRAM_WRITER,),
    **dict.fromkeys(_ATTENTION_PARTS, ATTENTION_WRITERS),
}


def anchored(known: Mapping[str, Survey], facts: dict[str, Facts]) -> None:
    """Inner tensors of latent attention, of state spaces and delta nets, of RWKV, and of indexers."""
    for role in known:
        writers = next((own for start, own in _ANCHORED.items() if role.startswith(start)), ())
        anchor = next((writer for writer in writers if writer in facts), None)
        if role not in facts and anchor is not None:
            energy = _worth(facts[anchor]) * role_value(role) / role_value(anchor)
            facts[role] = evenly(energy, facts[anchor].stage)
