"""Sensitivity of a tensor by its role alone: a table fitted to published single-tensor KL divergences.

`prior.json` is written by `python benchmarks/fit_prior.py --write`, which says how; it is never edited by hand.
A value is what one *tensor* (all experts of a stacked one together, not one weight) adds to the KL divergence per
unit of relative error, as a multiple of an ordinary block's tensor: the geometric mean over the seven matrices of
a dense block is 1. Depth does not enter, with one exception that every published model shows: the last block's
feed-forward is several times as sensitive as the others.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

from planner.names.gguf import ahead, is_expert, is_tied, role_of

__all__ = [
    "BLOCK_MEAN",
    "TIED",
    "Prior",
    "Table",
    "ffn_family",
    "last_block",
    "load_table",
    "nearest",
    "prior",
    "role_value",
]

BLOCK_MEAN = "block mean"
TIED = "token_embd (tied)"

# The relative that lends its value to a role without one of its own: the first rule that matches, then the relative's
# own relative, and so on. Norms, routers and what nobody has measured count as an ordinary block tensor.
_RELATIVES = (
    (r"_norm|^norm|ffn_gate_inp", BLOCK_MEAN),
    (r"nextn\.(?:eh_proj|embed_tokens)", "token_embd"),  # all that a draft head starts from
    (r"nextn\.shared_head_head", "output"),
    (r"indexer", "attn_k"),  # which choose the keys
    (r"^token_embd \(tied\)$|^cls", "output"),
    (r"token_embd", "token_embd"),  # Gemma's per_layer_token_embd
    (r"ffn_gate_up_exps|ffn_gate_up", "ffn_up_exps"),
    (r"ffn_gate_.*shexp", "ffn_gate_shexp"),
    (r"ffn_gate|channel_mix_receptance", "ffn_gate"),
    (r"ffn_down|channel_mix_value", "ffn_down"),
    (r"ffn_up|channel_mix_key", "ffn_up"),
    (r"attn_qkv|ssm_in|in_proj", "attn_qkv"),
    (r"attn_output|attn_out|ssm_out|out_proj|time_mix_output", "attn_output"),
    (r"ssm_(?:x|dt|ba)|ssm_beta", "ssm_alpha"),
    (r"attn_kv_b|attn_v|time_mix_value", "attn_v"),
    (r"attn_k|time_mix_key", "attn_k"),
    (r"attn_q|time_mix_receptance", "attn_q"),
)


class Prior(NamedTuple):
    """A tensor's sensitivity (relative, block tensors' mean 1), the row of the table it came from, and whether the
    row is the tensor's own role (`exact`) or a relative's."""

    value: float
    role: str
    exact: bool


class Table(NamedTuple):
    """The fitted table. `values`: role -> sensitivity. `last_block`: kind of feed-forward -> factor in the last
    block."""

    values: Mapping[str, float]
    last_block: Mapping[str, float]


@cache
def load_table() -> Table:
    """Read the fitted table, once."""
    text = resources.files("planner.sensitivity").joinpath("prior.json").read_text(encoding="utf-8")
    data = json.loads(text)
    values = {role: float(row["value"]) for role, row in data["roles"].items()}
    return Table(values, {kind: float(row["value"]) for kind, row in data["last_block"].items()})


def nearest(role: str) -> str:
    """Return the relative whose value stands in for `role`'s; the chain ends at `BLOCK_MEAN`.

    >>> nearest("attn_q_b"), nearest("ffn_norm")
    ('attn_q', 'block mean')
    """
    for pattern, relative in _RELATIVES:
        if relative != role and re.search(pattern, role):
            return relative
    return BLOCK_MEAN


def role_value(role: str) -> float:
    """Return the value of a role, or of the nearest relative that has one, ignoring ties and depth."""
    values = load_table().values
    while role not in values and role != BLOCK_MEAN:
        role = nearest(role)
    return values.get(role, 1.0)


def ffn_family(role: str) -> str | None:
    """Return the kind of feed-forward that a role belongs to: "ffn", "ffn_exps", "ffn_shexp", or None."""
    if not role.startswith(("ffn_down", "ffn_gate", "ffn_up")) or role.startswith("ffn_gate_inp"):
        return None
    return "ffn_shexp" if role.endswith("shexp") else "ffn_exps" if role.endswith("exps") else "ffn"


def last_block(names: Sequence[str], blocks: int) -> int:
    """Return the index of the last block used in inference; those of draft heads (`nextn`) come after it."""
    draft = {role_of(name)[0] for name in ahead(names)}
    last = blocks - 1
    while last in draft:
        last -= 1
    return last


def prior(names: Sequence[str], *, blocks: int) -> dict[str, Prior]:
    """Return the sensitivity of every tensor by its role.

    `names` are all tensors of the model (a model without `output.weight` counts as tied); `blocks` is its block count.
    Draft heads count as the last block does: what they make is the next prediction.
    """
    table = load_table()
    drafted = ahead(names)
    last = last_block(names, blocks)
    experts = Counter(role_of(name) for name in names if is_expert(name))
    found = {
        name: _look_up(name, table, is_tied(name, names), role_of(name)[0] if name in drafted else last)
        for name in names
    }
    # values are of all experts together
    return {
        name: entry._replace(value=entry.value / experts[role_of(name)]) if is_expert(name) else entry
        for name, entry in found.items()
    }


def _look_up(name: str, table: Table, tied: bool, last: int | None) -> Prior:
    block, role = role_of(name)
    wanted = found = TIED if tied else role
    while found not in table.values and found != BLOCK_MEAN:
        found = nearest(found)
    value = table.values.get(found, 1.0)
    kind = ffn_family(role)
    if block is not None and block == last and kind is not None and kind in table.last_block:
        value *= table.last_block[kind]
        return Prior(value, f"{found} (last block)", found == wanted)
    return Prior(value, found, found == wanted)
