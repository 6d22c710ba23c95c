"""Energies that errors add to the residual stream, from the surveys of a model's tensors.

`block_facts` finds, from the surveys of one block, the energies that each tensor's error adds, per unit of relative
error; `planner.sensitivity` sets them against the stream. docs/design.md has the formulas and the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.measure.activation_moments import activation_moments, logit_variance, normed_moments
from planner.measure.anatomy import Anatomy, BlockAnatomy
from planner.measure.experts import Part, stack_experts
from planner.measure.survey import Survey
from planner.names.gguf import ATTENTION_WRITERS, FFN_WRITER, role_of
from planner.sensitivity import ErrorParts, Facts
from planner.sensitivity.prior import role_value

__all__ = ["block_facts", "global_facts"]

Doubles = NDArray[np.float64]

# Fitted on the sensitivities measured in benchmarks/data/measured_sensitivity by benchmarks/fit_structure.py
ATTENTION_VALUE = 0.5
FEED_FORWARD = 1.5
ATTENTION_LOGITS = 3.4
LOGITS_HALF = 3.0
OUTPUT = 12.0
OUTPUT_BLIND = 5.0  # its error is then taken without an imatrix, and comes out larger

_ATTENTION, _FFN = 0, 1
_WRITERS = {**dict.fromkeys(ATTENTION_WRITERS, _ATTENTION), FFN_WRITER: _FFN}


def global_facts(survey: Survey, anatomy: Anatomy, *, tied: bool) -> Facts:
    """Return the facts of a tensor outside the blocks: token_embd (the energy of a mean row, scaled as the model scales
    it), and what computes the logits (`output`: in energies of the final stream)."""
    facts = Facts()
    name = survey.tensor.name
    if name == "token_embd.weight":
        energy = survey.energy / max(survey.tensor.rows, 1) * anatomy.embedding_scale**2
        facts = Facts(ErrorParts(energy, energy, 0.0), write=energy, stage=-1)
    if name == "output.weight" or (tied and facts.added is not None):
        facts = replace(facts, output=OUTPUT if survey.moments.known else OUTPUT_BLIND)
    return facts


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
    _attention(known, facts, block, anatomy)
    for suffix in ("", "_exps", "_shexp", "_chexps"):
        _feed_forward(known, facts, suffix, anatomy)
    _anchored(known, facts)
    names = {role: survey.tensor.name for role, survey in known.items()}
    found = {names[role]: own for role, own in facts.items() if own.is_finite()}
    for stack, members in parts.items():
        whole = found.pop(stack, None)
        found |= {part.name: _part_of(whole, part) for part in members if whole is not None}
    return found


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
    share = _share(survey, anatomy) * anatomy.residual_scale**2
    energy, massive = survey.energy * share, survey.energy_massive * share
    norm = block.norm_after("attention" if stage == _ATTENTION else "ffn")
    if norm is not None and energy + massive > 0:
        # The norm sets the energy of the output, and scales errors with it
        scale = float((norm**2).sum()) * anatomy.residual_scale**2 / (energy + massive)
        energy, massive = energy * scale, massive * scale
    return Facts(ErrorParts(energy, energy, massive), write=energy, stage=stage, stream=survey.moments.stream)


def _evenly(energy: float, stage: int) -> Facts:
    """Return the facts of an inner tensor whose error adds as much in its varying as in its mean part."""
    return Facts(ErrorParts(energy, energy, 0.0), stage=stage)


def _gain(survey: Survey, facts: Facts) -> float:
    """Return the ratio of the energy that reaches the stream to the writer's own (scales and norms are behind it)."""
    return facts.write / survey.energy if survey.energy > 0 else 0.0


def _attention(known: Mapping[str, Survey], facts: dict[str, Facts], block: BlockAnatomy, anatomy: Anatomy) -> None:
    output = known.get("attn_output")
    if output is None:
        return
    gain = _gain(output, facts["attn_output"])
    columns = output.columns[0] * gain
    varying = columns * output.moments.variance[0]  # energy of each channel of the attention's output
    facts["attn_output"] = replace(facts["attn_output"], varying=float(varying.sum()))
    parts = _projections(known, block)
    if parts is None or len(columns) != block.heads * block.value_length:
        return
    for part, role, mean, var in parts:
        if part == "v":
            # the channel of `value` that each channel of the output averages
            head = np.arange(block.heads) // (block.heads // block.kv_heads)
            source = (head[:, None] * block.value_length + np.arange(block.value_length)).reshape(-1)
            spread = float((columns * var[source]).sum())
            rho = min(1.0, float(varying.sum()) / spread) if spread > 0 else 1.0
            energy = ATTENTION_VALUE * float((columns * (var + mean**2)[source]).sum())
            added = ErrorParts(rho * energy, energy, 0.0)
        else:
            energy = ATTENTION_LOGITS * _sharp_energy(parts, block, anatomy, varying)
            added = ErrorParts(energy, energy, 0.0)
        if role in facts and (so_far := facts[role].added) is not None:  # a fused attn_qkv collects its three parts
            added = ErrorParts(so_far.variance + added.variance, so_far.mean + added.mean, so_far.massive)
        facts[role] = replace(facts.get(role, Facts(stage=_ATTENTION)), added=added)


_Part = tuple[Literal["q", "k", "v"], str, Doubles, Doubles]


def _projections(known: Mapping[str, Survey], block: BlockAnatomy) -> list[_Part] | None:
    """Return means and variances of queries, keys and values, each with the role of the tensor that makes it."""
    widths = {
        "q": block.heads * block.key_length,
        "k": block.kv_heads * block.key_length,
        "v": block.kv_heads * block.value_length,
    }
    if block.heads % block.kv_heads:
        return None
    parts: list[_Part] = []
    each: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")
    fused = known.get("attn_qkv")
    if fused is not None and fused.tensor.rows == sum(widths.values()):
        start = 0
        for part in each:
            here = slice(start, start + widths[part])
            parts.append((part, "attn_qkv", fused.out_mean[0, here], fused.out_var[0, here]))
            start += widths[part]
        return parts
    for part in each:
        survey = known.get(f"attn_{part}")
        if survey is None:
            continue
        mean, var = survey.out_mean.reshape(-1), survey.out_var.reshape(-1)
        if part == "q" and len(mean) == 2 * widths["q"]:
            # Qwen3-Next puts a gate behind each head's query
            mean, var = (x.reshape(block.heads, 2, -1)[:, 0].reshape(-1) for x in (mean, var))
        if len(mean) != widths[part]:
            return None
        parts.append((part, f"attn_{part}", mean, var))
    return parts


def _sharp_energy(parts: list[_Part], block: BlockAnatomy, anatomy: Anatomy, varying: Doubles) -> float:
    """Return the energy of the attention's varying part, each head's weighted by l / (l + 3), l its logits' variance
    over keys."""
    by_part = {part: (mean, var) for part, _, mean, var in parts}
    per_head = varying.reshape(block.heads, -1).sum(axis=1)
    if "q" not in by_part or "k" not in by_part:
        return float(per_head.sum())
    length = block.key_length
    q_mean, q_var = normed_moments(*by_part["q"], block.vectors.get("attn_q_norm"), length)
    _, k_var = normed_moments(*by_part["k"], block.vectors.get("attn_k_norm"), length)
    logits = logit_variance(
        q_mean**2 + q_var, k_var, heads=block.heads, kv_heads=block.kv_heads,
        rotary=min(anatomy.rotary or length, length), neighbours=anatomy.neighbour_rope,
    )  # fmt: skip
    return float((per_head * logits / (logits + LOGITS_HALF)).sum())


def _feed_forward(known: Mapping[str, Survey], facts: dict[str, Facts], suffix: str, anatomy: Anatomy) -> None:
    down, up, gate = (known.get(f"ffn_{part}{suffix}") for part in ("down", "up", "gate"))
    up = up or known.get(f"ffn_gate_up{suffix}")
    if down is None or up is None:
        return
    scale = FEED_FORWARD * _gain(down, facts[f"ffn_down{suffix}"])
    columns = np.where(down.massive, 0.0, down.columns)
    up_energy = gate_energy = 0.0
    for matrix in range(down.tensor.matrices):
        u = up.out_mean[matrix], up.out_var[matrix]
        if gate is not None:
            g = gate.out_mean[matrix], gate.out_var[matrix]
        elif len(u[0]) == 2 * columns.shape[1]:  # gate and up in one tensor, the gate first
            half = columns.shape[1]
            g, u = (u[0][:half], u[1][:half]), (u[0][half:], u[1][half:])
        else:
            g = None
        weight = columns[matrix] * down.moments.usage[matrix]
        if len(u[0]) != len(weight) or (g is not None and len(g[0]) != len(weight)):
            return
        u_second = u[0] ** 2 + u[1]
        if g is None:
            _, slope = activation_moments(*u, anatomy.activation)
            up_energy += float((weight * slope * u_second).sum())
        else:
            value, slope = activation_moments(*g, anatomy.activation)
            up_energy += float((weight * value * u_second).sum())
            gate_energy += float((weight * slope * (g[0] ** 2 + g[1]) * u_second).sum())
    fused = gate is None and gate_energy > 0
    role = role_of(up.tensor.name)[1]
    total = scale * (up_energy + (gate_energy if fused else 0.0))
    facts[role] = _evenly(total, _FFN)
    if gate is not None:
        facts[f"ffn_gate{suffix}"] = _evenly(scale * gate_energy, _FFN)


# Inner tensors of latent attention and of state-space layers, whose path to the writer is not worked out: the
# writer's own energy, times what published measurements say of the role beside it (prior.json)
_ANCHORED = ("attn_q", "attn_k", "attn_v", "attn_gate", "ssm_")


def _anchored(known: Mapping[str, Survey], facts: dict[str, Facts]) -> None:
    anchors = [role for role in ("attn_output", "ssm_out") if role in facts]
    if not anchors:
        return
    for role in known:
        if role in facts or not role.startswith(_ANCHORED):
            continue
        anchor = anchors[-1] if role.startswith("ssm_") else anchors[0]
        energy = facts[anchor].write * role_value(role) / role_value(anchor)
        facts[role] = _evenly(energy, _ATTENTION)
