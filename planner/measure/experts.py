"""Experts that files store one by one (`blk.3.ffn_down.5.weight`, as in early Mixtral files), treated as the matrices
of one tensor.

The structural loss of the stack is divided among them by the energy of their outputs, so that the losses of all add up
to that of the stacked tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.measure.survey import Survey
from planner.names.gguf import is_expert, role_of

__all__ = ["EXPERTS_VERSION", "Part", "stack_experts"]

Doubles = NDArray[np.float64]

EXPERTS_VERSION = "experts 1"  # part of the key under which their facts are kept, as STRUCTURE_VERSION is


@dataclass(frozen=True, slots=True)
class Part:
    """An expert's share of the energy of its stack, and of that of massive channels."""

    name: str
    share: float
    massive: float


def stack_experts(
    surveys: Sequence[Survey], tokens: Mapping[str, float] | None
) -> tuple[list[Survey], dict[str, tuple[Part, ...]]]:
    """Stack the experts of each role of a block: return its surveys, and the parts of each stack by the stack's name.

    `tokens`: the number that each tensor saw, by the imatrix; experts that are not in it count as unused. If no expert
    was used, or if shapes differ, they stay apart.
    """
    result = [survey for survey in surveys if not is_expert(survey.tensor.name)]
    roles: dict[str, list[Survey]] = {}
    for survey in surveys:
        if is_expert(survey.tensor.name):
            roles.setdefault(role_of(survey.tensor.name)[1], []).append(survey)
    parts: dict[str, tuple[Part, ...]] = {}
    for members in roles.values():
        seen = np.array([(tokens or {}).get(member.tensor.name, 0.0) for member in members])
        if len({member.tensor.shape for member in members}) == 1 and seen.sum() > 0:
            stacked = _stacked(members, seen * (len(members) / seen.sum()), members[int(seen.argmax())])
            parts[stacked.tensor.name] = _parts(members, stacked)
            result.append(stacked)
        else:
            result += members
    return result, parts


def _stacked(members: Sequence[Survey], usage: Doubles, like: Survey) -> Survey:
    moments = replace(
        like.moments,
        second=np.concatenate([member.moments.second for member in members]),
        mean=np.concatenate([member.moments.mean for member in members]),
        usage=usage,
        massive_second=None,
        massive_mean=None,
    )
    return replace(
        like,
        tensor=replace(like.tensor, shape=(like.tensor.row_length, like.tensor.rows, len(members))),
        moments=moments,
        out_mean=np.concatenate([member.out_mean for member in members]),
        out_var=np.concatenate([member.out_var for member in members]),
        columns=np.concatenate([member.columns for member in members]),
        massive=np.concatenate([member.massive for member in members]),
        massive_energy=np.concatenate([member.massive_energy for member in members]),
        expected_error=np.concatenate([member.expected_error for member in members], axis=1),
        expected_massive_error=np.concatenate([member.expected_massive_error for member in members]),
        made=np.concatenate([member.made for member in members]),
    )


def _parts(members: Sequence[Survey], stacked: Survey) -> tuple[Part, ...]:
    usage = stacked.moments.usage
    energy = usage * (stacked.out_var + stacked.out_mean**2).sum(axis=1)
    massive = usage * stacked.massive_energy.sum(axis=1)
    shares, massive_shares = (values / values.sum() if values.sum() > 0 else values for values in (energy, massive))
    return tuple(
        Part(member.tensor.name, float(share), float(own))
        for member, share, own in zip(members, shares, massive_shares, strict=True)
    )
