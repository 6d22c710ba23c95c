"""What errors add inside of per-layer embeddings, gated queries, convolutions and narrow experts: by drawing
activations, by models that are the same written otherwise, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from planner.measure.activation_moments import ACTIVATIONS
from planner.sensitivity.structure import stream_shares
from tests.measure.test_energies import facts_of, shares_of
from tests.models import Maker, convolution, delta_net, per_layer

TOKENS = 20_000


def drawn(rows, mean, var, rng):
    """Outputs of a matrix for Gaussian inputs, [tokens, rows]."""
    inputs = mean + np.sqrt(var) * rng.standard_normal((TOKENS, rows.shape[1]))
    return inputs @ rows.astype(np.float64).T


def mild(name, second, means):
    second[:], means[:] = np.linspace(0.5, 1.5, second.shape[1]), 0.2


def disturbed(act, outputs, rng):
    """Mean squares of gates act(g), and of how they change by noise that is as large as g, for its size."""
    noise = 1e-4 * rng.standard_normal(outputs.shape) * np.sqrt(np.square(outputs).mean(axis=0))
    value = ACTIVATIONS[act](outputs)[0]
    change = (ACTIVATIONS[act](outputs + noise)[0] - value) / 1e-4
    return np.square(value).mean(axis=0), np.square(change).mean(axis=0)


def test_per_layer_gates_against_simulation(tmp_path):
    """What noise in gates does to their products with what does not depend on them."""
    maker, rng = per_layer(), np.random.default_rng(0)
    gate, proj = (maker.arrays[f"blk.0.{role}.weight"] for role in ("inp_gate", "proj"))
    outputs = drawn(gate, 0.2, np.linspace(0.5, 1.5, 256) - 0.04, rng)
    value, moved = disturbed("gelu", outputs, rng)

    def change(name, second, means):
        mild(name, second, means)
        if name == "blk.0.proj.weight":
            second[:], means[:] = value, 0

    facts = facts_of(maker, tmp_path, change=change)
    columns = np.square(proj.astype(np.float64)).sum(axis=0)
    ratio = (columns @ moved) / (columns @ value)
    writer = facts["blk.0.proj.weight"]
    assert writer.write == pytest.approx(256 * 0.5**2)  # by the norm behind it
    assert facts["blk.0.inp_gate.weight"].added.variance == pytest.approx(ratio * writer.write, rel=0.03)


def test_the_table_counts_by_its_share_of_every_block(tmp_path):
    maker = per_layer()
    gathered = ("per_layer_token_embd.weight",)  # which no imatrix has
    facts = facts_of(maker, tmp_path, skip=gathered)
    shares = stream_shares(facts)
    table = maker.arrays["per_layer_token_embd.weight"].astype(np.float64)
    rows = 64 * np.square(table).sum() / len(table) / 3  # of one block, scaled by 8
    share = rows / (rows + 64)
    writes = sum(shares[f"blk.{block}.proj.weight"].variance for block in range(3))
    assert shares["per_layer_token_embd.weight"].variance == pytest.approx(share * writes, rel=1e-4)
    maker.arrays["per_layer_token_embd.weight"] = np.zeros_like(table, np.float16)
    assert stream_shares(facts_of(maker, tmp_path, skip=gathered))["per_layer_token_embd.weight"].variance == 0


def test_what_scales_the_stream_behind_a_block_is_no_change_of_the_model(tmp_path):
    """Blocks that leave half of the stream, against the same blocks that write twice as much each time."""
    scaled = shares_of(per_layer(), tmp_path)
    maker = per_layer()
    for block in range(3):
        maker.norm(f"blk.{block}.layer_output_scale", 1, 1.0)
        for role in ("post_attention_norm", "post_ffw_norm", "post_norm"):
            maker.arrays[f"blk.{block}.{role}.weight"] *= 2**block
    for name, share in shares_of(maker, tmp_path).items():
        if ".attn_k" not in name and ".attn_v" not in name:  # whose readers are compared within their own blocks
            assert scaled[name] == pytest.approx(share, rel=1e-4), name


def test_keys_that_later_blocks_use_count_for_these_too(tmp_path):
    """The last block takes keys and values from the last that attends to a window, which is the first."""
    maker = per_layer()
    shared = facts_of(maker, tmp_path)
    maker.pairs["attention.shared_kv_layers"] = 0
    alone = facts_of(maker, tmp_path)
    for role, times in (("attn_k", 2), ("attn_v", 2), ("attn_q", 1), ("attn_output", 1)):
        ratio = shared[f"blk.0.{role}.weight"].added.mean / alone[f"blk.0.{role}.weight"].added.mean
        assert ratio == pytest.approx(times), role
    assert shared["blk.1.attn_k.weight"] == alone["blk.1.attn_k.weight"]


def test_keys_that_are_values_too_count_as_both(tmp_path):
    one, two = per_layer(), per_layer()
    two.arrays["blk.1.attn_v.weight"] = two.arrays["blk.1.attn_k.weight"]
    both, apart = (facts_of(maker, tmp_path, change=mild) for maker in (one, two))
    parts = [apart[f"blk.1.{role}.weight"].added.mean for role in ("attn_k", "attn_v")]
    assert both["blk.1.attn_k.weight"].added.mean == pytest.approx(sum(parts), rel=1e-4)


def test_gated_queries_against_simulation(tmp_path):
    """Gates are the second half of each head's rows; their error comes on top of that of the queries."""
    maker, rng = delta_net(), np.random.default_rng(1)
    rows = maker.arrays["blk.1.attn_q.weight"].reshape(4, 2, 64, 256)
    gates = drawn(rows[:, 1].reshape(256, 256), 0.2, np.linspace(0.5, 1.5, 256) - 0.04, rng)
    value, moved = disturbed("sigmoid", gates, rng)
    columns = np.square(maker.arrays["blk.1.attn_output.weight"].astype(np.float64)).sum(axis=0)
    read = columns * np.linspace(0.5, 1.5, 256)
    share = (read * moved / value).sum() / read.sum()
    gated = facts_of(maker, tmp_path, change=mild)
    maker.arrays["blk.1.attn_q.weight"] = np.ascontiguousarray(rows[:, 0].reshape(256, 256))
    plain = facts_of(maker, tmp_path, change=mild)
    more = gated["blk.1.attn_q.weight"].added.mean - plain["blk.1.attn_q.weight"].added.mean
    assert more == pytest.approx(share * plain["blk.1.attn_output.weight"].write, rel=0.03)


def test_a_convolution_is_a_product_of_three(tmp_path):
    facts = facts_of(convolution(), tmp_path)
    made, read = (facts[f"blk.0.shortconv.{role}.weight"] for role in ("in_proj", "out_proj"))
    assert read.write > 0
    assert made.added.variance == pytest.approx(3 * read.write)


def test_experts_in_a_narrower_space_count_by_what_leaves_it(tmp_path):
    """Nemotron: however small experts write in there, what matters is what is written to the stream."""
    maker = Maker("nemotron_h_moe")
    maker.pairs |= {"block_count": 1, "embedding_length": 256, "expert_count": 4, "expert_used_count": 2}
    maker.matrix("token_embd", 96, 256)
    maker.matrix("blk.0.ffn_latent_down", 64, 256)
    maker.matrix("blk.0.ffn_up_exps", 4, 128, 64)
    maker.matrix("blk.0.ffn_down_exps", 4, 64, 128)
    maker.matrix("blk.0.ffn_latent_up", 256, 64)
    before = facts_of(maker, tmp_path)
    down, up = (before[f"blk.0.{role}.weight"] for role in ("ffn_down_exps", "ffn_latent_up"))
    assert up.write > 0
    assert down.added.variance == pytest.approx(up.write)
    assert down.write == 0
    maker.arrays["blk.0.ffn_down_exps.weight"] /= np.float16(8)
    for name, own in facts_of(maker, tmp_path).items():
        assert own.values() == pytest.approx(before[name].values(), rel=1e-2), name
