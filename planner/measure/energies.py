"""Energies that errors add to the residual stream, from the surveys of a model's tensors.

`block_facts` finds, from the surveys of one block, the energies that each tensor's error adds, per unit of relative
error; `planner.sensitivity` sets them against the stream. docs/design.md has the formulas and the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.measure.activation_moments import activation_moments, logit_variance, norm_scales
from planner.measure.anatomy import Anatomy, BlockAnatomy
from planner.measure.experts import Part, stack_experts
from planner.measure.inner import (
    anchored,
    convolution,
    evenly,
    gain,
    latent_experts,
    per_layer_inputs,
    query_gates,
)
from planner.measure.survey import Survey
from planner.names.gguf import ATTENTION_WRITERS, FFN_WRITERS, LAYER_WRITER, NGRAM_WRITER, PER_LAYER_EMBEDDING, role_of
from planner.sensitivity import ErrorParts, Facts

__all__ = ["block_facts", "global_facts"]

Doubles = NDArray[np.float64]

# Fitted on the sensitivities measured in benchmarks/data/measured_sensitivity by benchmarks/fit_structure.py
ATTENTION_VALUE = 0.5
FEED_FORWARD = 1.5
ATTENTION_LOGITS = 3.4
LOGITS_HALF = 3.0
OUTPUT = 12.0
OUTPUT_BLIND = 5.0  # its error is then taken without an imatrix, and comes out larger

_BEFORE, _ATTENTION, _FFN, _LAYER = -1, 0, 1, 2
_WRITERS = {
    **dict.fromkeys(ATTENTION_WRITERS, _ATTENTION), **dict.fromkeys(FFN_WRITERS, _FFN), LAYER_WRITER: _LAYER,
    NGRAM_WRITER: _BEFORE,
}  # fmt: skip


def global_facts(survey: Survey, anatomy: Anatomy, *, tied: bool) -> Facts:
    """Return the facts of a tensor outside the blocks: token_embd (the energy of a mean row, scaled as the model scales
    it), and what computes the logits (`output`: in energies of the final stream)."""
    facts = Facts()
    name = survey.tensor.name
    if name == "token_embd.weight":
        # of the weights alone: what the imatrix may say of it is what goes into the logits
        energy = float(survey.columns.sum()) / max(survey.tensor.rows, 1) * anatomy.embedding_scale**2
        # where errors are of the logits, those of rows as they are stand apart
        added = ErrorParts(0.0, 0.0, energy) if survey.looked_up else ErrorParts(energy, energy, 0.0)
        facts = Facts(added, write=energy, stage=-1, reach=survey.moments.reach)
    if name == PER_LAYER_EMBEDDING:
        facts = Facts(gathered=_gathered(survey, anatomy.per_layer_norm))
    if name == "output.weight" or (tied and facts.added is not None):
        output, logits = OUTPUT if survey.moments.known else OUTPUT_BLIND, survey.moments.logits
        facts = replace(facts, output=output, logits=None if logits is None else logits * output / OUTPUT)
    return facts


def _gathered(survey: Survey, norm: Doubles | None) -> float:
    """Return the share of the table of per-layer embeddings in the energy of what a block gets: rows alone, or, in
    Gemma 3n and 4, the block's part of a row, scaled by the root of its length, plus a projection of the embedding
    behind a norm of these weights."""
    if norm is None:
        return 1.0
    per_layer = survey.energy / max(survey.tensor.rows, 1) * len(norm) ** 2 / survey.tensor.row_length
    return per_layer / (per_layer + float((norm**2).sum())) if per_layer > 0 else 0.0


def block_facts(
    surveys: Sequence[Survey], anatomy: Anatomy, number: int, tokens: Mapping[str, float] | None = None
) -> dict[str, Facts]:
    """Return the facts of one block's tensors, by name; tensors that the formulas cannot place are missing. `tokens`:
    the number that each tensor saw, by the imatrix."""
    block = anatomy.blocks.get(number)
    if block is None:
        return {}
    surveys, parts = stack_experts(surveys, tokens)
    known = {role_of(survey.tensor.name)[1]: survey for survey in surveys if survey.moments.known}
    facts: dict[str, Facts] = {}
    for role, survey in known.items():
        base, _, kind = role.partition("_exps") if role.endswith("_exps") else role.partition("_shexp")
        stage = _WRITERS.get(base if kind == "" else role)
        if stage is not None:
            facts[role] = _writer(survey, block, anatomy, stage)
    latent_experts(known, facts)
    _attention(known, facts, block, anatomy)
    query_gates(known, facts, block)
    for suffix in ("", "_exps", "_shexp", "_chexps"):
        _feed_forward(known, facts, suffix, block, anatomy)
    convolution(known, facts)
    per_layer_inputs(known, facts, anatomy)
    anchored(known, facts)
    _found_inside(known, facts, block)
    names = {role: survey.tensor.name for role, survey in known.items()}
    found = {names[role]: own.scaled(1 / block.scale) for role, own in facts.items()}
    found = {name: own for name, own in found.items() if own.is_finite()}
    for stack, members in parts.items():
        whole = found.pop(stack, None)
        found |= {part.name: _part_of(whole, part) for part in members if whole is not None}
    return found


def _found_inside(known: Mapping[str, Survey], facts: dict[str, Facts], block: BlockAnatomy) -> None:
    """Note of tensors that do not write to the stream what errors in them were found to cost, where that is known: in
    one block, of keys and values that others use too."""
    for role, survey in known.items():
        if survey.moments.inside is not None:
            times = block.readers if role in ("attn_k", "attn_v") else 1.0
            varying, steady = (times * cost for cost in survey.moments.inside)
            facts[role] = replace(facts.get(role, Facts()), inside=varying, steady=steady)


def _part_of(facts: Facts, part: Part) -> Facts:
    """Return the share of one expert in the facts of the whole stack."""
    whole = facts.added
    assert whole is not None, "all that has a place in a block adds something"
    added = ErrorParts(whole.variance * part.share, whole.mean * part.share, whole.massive * part.massive)
    return replace(facts, added=added, write=facts.write * part.share)


def _share(survey: Survey, anatomy: Anatomy) -> float:
    """Return the factor from sums over experts, weighted by usage (mean 1), to energy per token: with k of n experts
    used, each serves usage k/n of the tokens, with a gate of about 1/k."""
    experts = survey.tensor.matrices
    return 1.0 if experts == 1 else 1.0 / (experts * anatomy.experts_used)


def _writer(survey: Survey, block: BlockAnatomy, anatomy: Anatomy, stage: int) -> Facts:
    moments = survey.moments
    scale = _share(survey, anatomy) * anatomy.residual_scale**2
    written = made = float(moments.usage @ survey.made) * scale
    norm = block.norm_behind(role_of(survey.tensor.name)[1])
    if norm is not None and made > 0:
        # The norm sets the energy of the output, and scales errors with it
        written = float(norm.sum()) * anatomy.residual_scale**2
        scale *= (written if moments.outputs is None else len(norm) * anatomy.residual_scale**2) / made
    energy, massive = survey.energy * scale, survey.energy_massive * scale
    write = energy if moments.outputs is None else written
    return Facts(
        ErrorParts(energy, energy, massive),
        write,
        stage,
        stream=moments.stream,
        seen=moments.seen,
        reach=moments.reach,
    )


def _attention(known: Mapping[str, Survey], facts: dict[str, Facts], block: BlockAnatomy, anatomy: Anatomy) -> None:
    output = known.get("attn_output")
    if output is None:
        return
    columns = output.columns[0] * gain(output, facts["attn_output"])
    varying = columns * output.moments.variance[0]  # energy of each channel of the attention's output
    facts["attn_output"] = replace(facts["attn_output"], varying=float(varying.sum()))
    parts = _projections(known, block, value_norm=anatomy.value_norm)
    if parts is None or len(columns) != block.heads * block.value_length:
        return
    logits = _logit_energies(parts, block, anatomy, varying)
    for part, made in parts.items():
        if part == "v":
            # the channel of `value` that each channel of the output averages
            head = np.arange(block.heads) // (block.heads // block.kv_heads)
            source = (head[:, None] * block.value_length + np.arange(block.value_length)).reshape(-1)
            spread = float((columns * made.var[source]).sum())
            rho = min(1.0, float(varying.sum()) / spread) if spread > 0 else 1.0
            energy = ATTENTION_VALUE * block.readers * float((columns * made.error[source]).sum())
            added = ErrorParts(rho * energy, energy, 0.0)
        else:
            energy = logits[part] * (block.readers if part == "k" else 1.0)
            added = ErrorParts(energy, energy, 0.0)
        if made.role in facts and (so_far := facts[made.role].added) is not None:  # a fused attn_qkv has three parts
            added = ErrorParts(so_far.variance + added.variance, so_far.mean + added.mean, so_far.massive)
        facts[made.role] = replace(facts.get(made.role, Facts(stage=_ATTENTION)), added=added)


_Part = Literal["q", "k", "v"]


@dataclass(frozen=True)
class _Made:
    """What a tensor makes, and its role: mean and variance of each channel, and the energy of its error where the
    tensor's relative error is 1, all float64 [n]."""

    role: str
    mean: Doubles
    var: Doubles
    error: Doubles

    def at(self, where: slice | NDArray[np.int64]) -> _Made:
        """Return some of the channels."""
        return _Made(self.role, self.mean[where], self.var[where], self.error[where])

    def matrix(self, number: int, count: int) -> _Made:
        """Return the channels that one of `count` matrices makes."""
        width = len(self.mean) // count
        return self.at(slice(number * width, (number + 1) * width))

    def normed(self, norm: Doubles | None, length: int) -> _Made:
        """Return them behind a norm (`norm_scales`)."""
        scales = norm_scales(self.mean, self.var, norm, length)
        return _Made(self.role, self.mean * scales, self.var * scales**2, self.error * scales**2)


def _projections(known: Mapping[str, Survey], block: BlockAnatomy, *, value_norm: bool) -> dict[_Part, _Made] | None:
    """Return what makes queries, keys and values. Where nothing makes values, with `value_norm`, they are keys
    (Gemma 4). All without biases, as the tensors' errors are relative to that."""
    widths: dict[_Part, int] = {
        "q": block.heads * block.key_length,
        "k": block.kv_heads * block.key_length,
        "v": block.kv_heads * block.value_length,
    }
    if block.heads % block.kv_heads:
        return None
    parts: dict[_Part, _Made] = {}
    fused = known.get("attn_qkv")
    if fused is not None and fused.tensor.rows == sum(widths.values()):
        whole, start = _made("attn_qkv", fused), 0
        for part, width in widths.items():
            parts[part] = whole.at(slice(start, start + width))
            start += width
        return parts
    for part, width in widths.items():
        role = "attn_k" if part == "v" and value_norm and "attn_v" not in known else f"attn_{part}"
        if role not in known:
            continue
        made = _made(role, known[role])
        if part == "q" and len(made.mean) == 2 * width:
            # Qwen3-Next puts a gate behind each head's query, which `query_gates` looks at
            made = made.at(np.arange(2 * width).reshape(block.heads, 2, -1)[:, 0].reshape(-1))
        if len(made.mean) != width:
            return None
        if part == "v" and value_norm:
            made = made.normed(np.ones(block.value_length), block.value_length)
        parts[part] = made
    return parts


def _made(role: str, survey: Survey) -> _Made:
    """Return what all matrices of a tensor make, one after the other."""
    error = survey.errors_of_outputs()
    return _Made(role, survey.out_mean.reshape(-1), survey.out_var.reshape(-1), error.reshape(-1))


def _logit_energies(
    parts: Mapping[_Part, _Made], block: BlockAnatomy, anatomy: Anatomy, varying: Doubles
) -> dict[_Part, float]:
    """Return the energies that relative errors of 1 in queries and keys add: of each head the energy of the attention's
    varying part times δ / (l + 3), l its logits' variance over keys and δ as much of it as is relative to the error. A
    bias of queries makes logits of keys, and of their errors; one of keys is the same for all."""
    per_head = varying.reshape(block.heads, -1).sum(axis=1)
    if "q" not in parts or "k" not in parts:
        return dict.fromkeys(("q", "k"), ATTENTION_LOGITS * float(per_head.sum()))
    length = block.key_length
    q = parts["q"].normed(block.vectors.get("attn_q_norm"), length)
    k = parts["k"].normed(block.vectors.get("attn_k_norm"), length)
    bias = block.vectors.get("attn_q.bias", np.zeros(1))
    biased = q.mean + bias if len(bias) == len(q.mean) else q.mean
    own, logits = (
        logit_variance(
            mean**2 + q.var, k.var, heads=block.heads, kv_heads=block.kv_heads,
            rotary=min(anatomy.rotary or length, length), neighbours=anatomy.neighbour_rope,
        )
        for mean in (q.mean, biased)
    )  # fmt: skip
    if anatomy.attention_scale is not None:
        own, logits = own * anatomy.attention_scale**2 * length, logits * anatomy.attention_scale**2 * length
    heads = ATTENTION_LOGITS * per_head / (logits + LOGITS_HALF)
    return {"q": float((heads * own).sum()), "k": float((heads * logits).sum())}


def _feed_forward(
    known: Mapping[str, Survey], facts: dict[str, Facts], suffix: str, block: BlockAnatomy, anatomy: Anatomy
) -> None:
    down, up, gate = (known.get(f"ffn_{part}{suffix}") for part in ("down", "up", "gate"))
    up = up or known.get(f"ffn_gate_up{suffix}")
    if down is None or up is None:
        return
    scale = FEED_FORWARD * gain(down, facts[f"ffn_down{suffix}"])
    columns = np.where(down.massive, 0.0, down.columns)
    up_bias, gate_bias = (
        bias if bias is not None and len(bias) == columns.shape[1] else 0.0
        for bias in (block.vectors.get(f"ffn_{part}{suffix}.bias") for part in ("up", "gate"))
    )
    inner, matrices = columns.shape[1], down.tensor.matrices
    made_up, made_gate = _made("up", up), None if gate is None else _made("gate", gate)
    up_energy = gate_energy = 0.0
    for matrix in range(matrices):
        u = made_up.matrix(matrix, matrices)
        g = None if made_gate is None else made_gate.matrix(matrix, matrices)
        if g is None and len(u.mean) == 2 * inner:  # gate and up in one tensor, the gate first
            g, u = u.at(slice(inner)), u.at(slice(inner, None))
        weight = columns[matrix] * down.moments.usage[matrix]
        if len(u.mean) != inner or (g is not None and len(g.mean) != inner):
            return
        if g is None:
            _, slope = activation_moments(u.mean + up_bias, u.var, anatomy.activation)
            up_energy += float((weight * slope * u.error).sum())
        else:
            value, slope = activation_moments(g.mean + gate_bias, g.var, anatomy.activation)
            up_energy += float((weight * value * u.error).sum())
            gate_energy += float((weight * slope * g.error * ((u.mean + up_bias) ** 2 + u.var)).sum())
    fused = gate is None and gate_energy > 0
    role = role_of(up.tensor.name)[1]
    total = scale * (up_energy + (gate_energy if fused else 0.0))
    facts[role] = evenly(total, _FFN)
    if gate is not None:
        facts[f"ffn_gate{suffix}"] = evenly(scale * gate_energy, _FFN)
