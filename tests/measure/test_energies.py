"""Structure sensitivities against simulation, hand-made sums and what must not change them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.gguf import open_model, read_imatrix
from planner.gguf.reach import Reach
from planner.measure import energies, moments, survey_in_place
from planner.measure.activation_moments import ACTIVATIONS, logit_variance
from planner.measure.anatomy import read_anatomy
from planner.measure.energies import block_facts, global_facts
from planner.names.gguf import role_of
from planner.sensitivity import ErrorParts, Facts, structure
from planner.sensitivity.structure import stream_shares
from tests.models import MODELS, dense, experts, fused, post_norm, tied, write_imatrix


def anatomy_of(maker, folder):
    with open_model(maker.write(folder / "model.gguf")) as model:
        return read_anatomy(model)


def facts_of(maker, folder, **imatrix):
    """Facts of all tensors of a model that can be placed."""
    path = maker.write(folder / "model.gguf")
    matrix = read_imatrix(write_imatrix(path, folder / "x.imatrix", **imatrix))
    with open_model(path) as model:
        anatomy = read_anatomy(model)
        blocks, facts = {}, {}
        for tensor in model.tensors:
            number, role = role_of(tensor.name)
            if tensor.rows == 1 or "ffn_gate_inp" in role:
                continue
            survey = survey_in_place(model, tensor, moments(tensor, matrix))
            if number is None:
                found = global_facts(survey, anatomy, tied="output.weight" not in model.by_name)
                facts |= {tensor.name: found} if found != Facts() else {}
            else:
                blocks.setdefault(number, []).append(survey)
        for number, surveys in blocks.items():
            facts |= block_facts(surveys, anatomy, number)
    return facts


def shares_of(maker, folder, **imatrix):
    return stream_shares(facts_of(maker, folder, **imatrix))


# Attention


def test_queries_and_keys_count_by_the_variance_of_their_logits(tmp_path):
    """What the error of attn_q adds beside the block's writer, by hand."""

    def change(name, second, means):
        second[:], means[:] = 2.0, 0.5
        if "attn_output" in name:
            second[:] = np.linspace(1, 2, second.shape[1])

    maker = dense(blocks=1)
    shares = shares_of(maker, tmp_path, change=change)
    q, k, output = (maker.arrays[f"blk.0.attn_{role}.weight"].astype(np.float64) for role in ("q", "k", "output"))
    second = 1.75 * np.square(q).sum(axis=1) + (0.5 * q.sum(axis=1)) ** 2
    anatomy = anatomy_of(maker, tmp_path)
    logits = logit_variance(
        second, 1.75 * np.square(k).sum(axis=1), heads=4, kv_heads=2, rotary=anatomy.rotary or 64,
        neighbours=anatomy.neighbour_rope,
    )  # fmt: skip
    entry = read_imatrix(tmp_path / "x.imatrix").entries["blk.0.attn_output.weight"]
    means, squares = (values[0].astype(np.float64) for values in (entry.means, entry.values))
    varying = (np.square(output).sum(axis=0) * (squares - means**2)).reshape(4, 64).sum(axis=1)
    energy = energies.ATTENTION_LOGITS * (varying * logits / (logits + energies.LOGITS_HALF)).sum()
    writer = energy_by_hand(output, squares, means)
    for role in ("attn_q", "attn_k"):
        ratio = shares[f"blk.0.{role}.weight"][0] / shares["blk.0.attn_output.weight"][0]
        assert ratio == pytest.approx(energy / writer, rel=1e-4)


@pytest.mark.parametrize("averaging", [0.1, 3000.0])
def test_values_are_averaged_by_attention(averaging, tmp_path):
    """The varying part of attn_v's error shrinks as the varying part of its values does; never does it grow."""

    def change(name, second, means):
        second[:], means[:] = 2.0, 0.5
        if "attn_output" in name:  # channels that vary less, or more, than values do
            second[:] = averaging * np.linspace(0.01, 0.02, second.shape[1]) + 0.01
            means[:] = 0.1

    maker = dense(blocks=1)
    facts = facts_of(maker, tmp_path, change=change)["blk.0.attn_v.weight"]
    value, output = (maker.arrays[f"blk.0.attn_{role}.weight"].astype(np.float64) for role in ("v", "output"))
    matrix = read_imatrix(tmp_path / "x.imatrix").entries["blk.0.attn_output.weight"]
    varies = matrix.values[0].astype(np.float64) - matrix.means[0].astype(np.float64) ** 2
    shared = np.repeat(np.arange(128).reshape(2, 64), 2, axis=0).reshape(-1)  # two heads use one
    var, errors = (np.square(value).sum(axis=1) * 1.75)[shared], errors_by_hand(value, np.full(256, 2.0), 0.5)[shared]
    columns = np.square(output).sum(axis=0)
    energy = energies.ATTENTION_VALUE * (columns * errors).sum()
    rho = min(1.0, (columns * varies).sum() / (columns * var).sum())
    assert bool(rho < 1) is (averaging < 1)
    assert facts.added.mean == pytest.approx(energy, rel=1e-4)
    assert facts.added.variance == pytest.approx(rho * energy, rel=1e-4)


def test_heads_that_share_keys_and_values(tmp_path):
    """Written out, each with its own copy, they are worth the same."""
    maker = dense(blocks=1)
    grouped = facts_of(maker, tmp_path)
    maker.pairs["attention.head_count_kv"] = 4
    for role in ("attn_k", "attn_v"):
        rows = maker.arrays[f"blk.0.{role}.weight"].reshape(2, 64, 256)
        maker.arrays[f"blk.0.{role}.weight"] = np.repeat(rows, 2, axis=0).reshape(256, 256)
    written_out = facts_of(maker, tmp_path)
    for role in ("attn_q", "attn_k", "attn_v", "attn_output"):
        name = f"blk.0.{role}.weight"
        assert written_out[name].values() == pytest.approx(grouped[name].values(), rel=1e-4)


def test_a_bias_of_queries_makes_logits_of_keys(tmp_path):
    """And of their errors, which then count more, where queries' own count less beside it. One of a norm is no norm."""

    def change(name, second, means):
        second[:], means[:] = 0.02, 0.01

    maker = dense(blocks=1)
    plain = facts_of(maker, tmp_path, change=change)
    maker.arrays["blk.0.attn_norm.bias"] = np.full(256, 7.0, np.float32)
    maker.arrays["blk.0.attn_q.bias"] = np.zeros(256, np.float32)
    assert facts_of(maker, tmp_path, change=change) == plain
    assert (anatomy_of(maker, tmp_path).blocks[0].vectors["attn_norm"] == 1).all()
    maker.arrays["blk.0.attn_q.bias"] = np.full(256, 2.0, np.float32)
    biased = facts_of(maker, tmp_path, change=change)
    q, k = (f"blk.0.attn_{part}.weight" for part in "qk")
    assert biased[k].added.variance > 2 * plain[k].added.variance
    assert biased[q].added.variance < plain[q].added.variance
    assert {name: fact for name, fact in biased.items() if name not in (q, k)} == {
        name: fact for name, fact in plain.items() if name not in (q, k)
    }


def test_fused_tensors_collect_their_parts(tmp_path):
    """phi3's attn_qkv and ffn_up against the same weights in tensors of their own."""
    one = fused()
    parts = fused()
    qkv, both = (parts.arrays.pop(f"blk.0.{role}.weight") for role in ("attn_qkv", "ffn_up"))
    parts.arrays |= {
        "blk.0.attn_q.weight": qkv[:256], "blk.0.attn_k.weight": qkv[256:384], "blk.0.attn_v.weight": qkv[384:],
        "blk.0.ffn_gate.weight": both[:512], "blk.0.ffn_up.weight": both[512:],
    }  # fmt: skip

    def same(name, second, means):
        second[:] = np.linspace(0.5, 2, second.shape[1])
        means[:] = 0.3

    whole, apart = (facts_of(maker, tmp_path, change=same) for maker in (one, parts))
    second = np.linspace(0.5, 2, 256)
    values = np.split(errors_by_hand(qkv, second, 0.3), [256, 384])
    up = np.split(errors_by_hand(both, second, 0.3), 2)
    for component in (0, 1):
        # an error of 1 in the whole lies in its parts as it is expected of their rows; but queries and keys count by
        # how large it is beside themselves, whichever rows that is in
        total = apart["blk.0.attn_v.weight"].added[component] * values[2].sum() / energy_by_hand(qkv[384:], second, 0.3)
        total += sum(apart[f"blk.0.attn_{part}.weight"].added[component] for part in "qk")
        assert whole["blk.0.attn_qkv.weight"].added[component] == pytest.approx(total, rel=1e-3)
        total = sum(
            apart[f"blk.0.ffn_{part}.weight"].added[component] * error.sum() / energy_by_hand(rows, second, 0.3)
            for part, error, rows in zip(("gate", "up"), up, np.split(both, 2), strict=True)
        )
        assert whole["blk.0.ffn_up.weight"].added[component] == pytest.approx(total, rel=1e-3)


# Writers


def energy_by_hand(rows, second, mean):
    rows = rows.astype(np.float64)
    var, mean = np.maximum(second - mean**2, 0), np.broadcast_to(mean, rows.shape[1:])
    return float((rows**2 @ var + (rows @ mean) ** 2).sum())


def errors_by_hand(rows, second, mean):
    """The energy of each row's error, f64[r]: as all outputs', and where blocks of 32 are of large energy or peaks."""
    blocks = np.square(rows.astype(np.float64)).reshape(len(rows), -1, 32)
    weight = second.reshape(-1, 32).mean(axis=1)
    kinds = [sizes @ weight for sizes in (blocks.sum(axis=2), blocks.max(axis=2))]
    return energy_by_hand(rows, second, mean) * np.mean([kind / kind.sum() for kind in kinds], axis=0)


def test_writers_add_their_own_energy(tmp_path):
    def mild(name, second, means):
        second[:] = np.linspace(1, 3, second.shape[1])
        means[:] = np.linspace(-0.5, 0.9, second.shape[1])

    maker = dense(blocks=1)
    facts = facts_of(maker, tmp_path, change=mild)
    matrix = read_imatrix(tmp_path / "x.imatrix")
    for role in ("attn_output", "ffn_down"):
        name = f"blk.0.{role}.weight"
        entry = matrix.entries[name]
        rows = maker.arrays[name].astype(np.float64)
        expected = energy_by_hand(rows, entry.values[0].astype(np.float64), entry.means[0].astype(np.float64))
        assert facts[name].write == facts[name].added.variance == pytest.approx(expected, rel=1e-4)
    rows = maker.arrays["token_embd.weight"].astype(np.float64)
    assert facts["token_embd.weight"].write == pytest.approx(np.square(rows).sum() / len(rows), rel=1e-4)


def test_feed_forward_against_simulation(tmp_path):
    """What a relative error of 1 in up, or in gate, adds to the output: by drawing activations."""
    maker = dense(blocks=1, width=64, inner=96)
    facts = facts_of(maker, tmp_path)
    matrix = read_imatrix(tmp_path / "x.imatrix")
    rng = np.random.default_rng(3)
    entry = {role: matrix.entries[f"blk.0.ffn_{role}.weight"] for role in ("up", "gate", "down")}
    rows = {role: maker.arrays[f"blk.0.ffn_{role}.weight"].astype(np.float64) for role in entry}
    out = {}
    for role in ("up", "gate"):
        m, v = entry[role].means[0].astype(np.float64), entry[role].values[0].astype(np.float64)
        a = m + np.sqrt(np.maximum(v - m**2, 0)) * rng.standard_normal((20_000, 64))
        out[role] = a @ rows[role].T
    columns = np.square(rows["down"]).sum(axis=0)
    act, slope = ACTIVATIONS["silu"](out["gate"])
    up_error, gate_error = (
        errors_by_hand(rows[role], entry[role].values[0].astype(np.float64), entry[role].means[0].astype(np.float64))
        for role in ("up", "gate")
    )
    value, slope = np.square(act).mean(axis=0), np.square(slope).mean(axis=0)
    up = energies.FEED_FORWARD * (columns * value * up_error).sum()
    gate = energies.FEED_FORWARD * (columns * slope * gate_error * np.square(out["up"]).mean(axis=0)).sum()
    assert facts["blk.0.ffn_up.weight"].added.variance == pytest.approx(up, rel=0.05)
    assert facts["blk.0.ffn_gate.weight"].added.variance == pytest.approx(gate, rel=0.05)


def test_a_norm_behind_a_block_sets_its_energy(tmp_path):
    maker = post_norm()
    facts = facts_of(maker, tmp_path)
    assert facts["blk.0.attn_output.weight"].write == pytest.approx(256 * 0.5**2)
    assert facts["blk.1.ffn_down.weight"].write == pytest.approx(256 * 0.25**2)
    for role in ("attn_output", "ffn_down"):
        name = f"blk.0.{role}.weight"
        maker.arrays[name] = (maker.arrays[name] * np.float16(4)).astype(np.float16)
    louder = facts_of(maker, tmp_path)
    for name, values in facts.items():
        assert louder[name].values() == pytest.approx(values.values(), rel=1e-3), name
    assert facts["token_embd.weight"].write == pytest.approx(
        256 * np.square(maker.arrays["token_embd.weight"].astype(np.float64)).sum() / 96, rel=1e-4
    )  # Gemma scales embeddings by √width


def test_behind_a_norm_outputs_add_their_energy_over_the_mean_of_all(tmp_path):
    """Where the imatrix says what each is worth, the norm's weights included."""
    path, name = post_norm().write(tmp_path / "model.gguf"), "blk.0.ffn_down.weight"
    matrix = read_imatrix(write_imatrix(path, tmp_path / "x.imatrix"))
    worth = np.random.default_rng(0).lognormal(0, 1, 256).astype(np.float32)
    with open_model(path) as model:
        anatomy, facts = read_anatomy(model), []
        for known in (matrix, replace(matrix, reach={name: Reach(2.0, 100, worth)})):
            surveys = [
                survey_in_place(model, tensor, moments(tensor, known))
                for tensor in model.tensors
                if role_of(tensor.name)[0] == 0 and tensor.rows > 1
            ]
            facts.append(block_facts(surveys, anatomy, 0))
            plain = next(survey for survey in surveys if survey.tensor.name == name)
    outputs = (plain.out_var + plain.out_mean**2)[0]  # times what they are worth, without massive channels
    expected = outputs.sum() / ((outputs / worth).sum() + (plain.massive_energy / worth).sum()) * 256
    assert facts[1][name].added.variance == pytest.approx(expected)
    assert facts[1][name].write == pytest.approx(256 * 0.25**2)
    for role in ("ffn_up", "ffn_gate"):
        inner = [each[f"blk.0.{role}.weight"].added.variance for each in facts]
        assert inner[1] != pytest.approx(inner[0], rel=0.01)
    assert facts[1]["blk.0.attn_q.weight"] == facts[0]["blk.0.attn_q.weight"]


def test_what_errors_inside_of_blocks_were_found_to_cost_is_their_sensitivity(tmp_path):
    """Of a tensor whose way to the stream nobody has worked out, too; but not where the stream is in no nats."""
    facts = facts_of(dense(), tmp_path)
    found = Facts(inside=3.0, steady=0.5)
    facts |= {"blk.0.attn_v.weight": replace(facts["blk.0.attn_v.weight"], inside=3.0, steady=0.5), "blk.1.new": found}
    before = stream_shares(facts)
    assert "blk.1.new" not in before
    facts["token_embd.weight"] = replace(facts["token_embd.weight"], reach=1.0)
    after = stream_shares(facts)
    assert after["blk.0.attn_v.weight"] == after["blk.1.new"] == ErrorParts(3.0, 0.5, 0.0)
    assert after["blk.1.attn_v.weight"] != after["blk.0.attn_v.weight"]


def test_experts_share_what_one_matrix_would_do(tmp_path):
    """k of n identical experts, each with a gate of 1/k, do 1/k of the energy of one that is always there."""
    maker, single = experts(count=4), experts(count=4)
    for block in range(2):
        for part in ("gate", "up", "down"):
            name = f"blk.{block}.ffn_{part}_exps.weight"
            maker.arrays[name][:] = maker.arrays[name][0]
            single.arrays[f"blk.{block}.ffn_{part}.weight"] = maker.arrays[name][0]
            del single.arrays[name]

    def same(name, second, means):
        second[:] = np.linspace(0.5, 2, second.shape[1])
        means[:] = 0.3

    many, one = (facts_of(model, tmp_path, change=same) for model in (maker, single))
    for part in ("gate", "up", "down"):
        shared, alone = many[f"blk.0.ffn_{part}_exps.weight"].values(), one[f"blk.0.ffn_{part}.weight"].values()
        for kind in ("var", "mean", "write"):
            assert shared[kind] == pytest.approx(alone[kind] / 2, rel=1e-4)


def test_experts_count_by_use(tmp_path):
    maker = experts(count=4)
    name = "blk.0.ffn_down_exps.weight"
    maker.arrays[name][:] = maker.arrays[name][0]
    maker.arrays[name][3] *= 2

    def same(name, second, means):
        second[:], means[:] = 1.0, 0.3

    def energy(counts):
        return facts_of(maker, tmp_path, change=same, counts={name: counts})[name].write

    assert energy([0, 0, 0, 5]) == pytest.approx(4 * energy([1, 7, 9, 0]), rel=1e-3)
    assert energy([1, 1, 1, 1]) == pytest.approx(energy([5, 0, 0, 0]) * 7 / 4, rel=1e-3)


def test_massive_channels_leave_the_energy_alone(tmp_path):
    def strong(name, second, means):
        second[:], means[:] = 1.0, 0.1
        if name == "blk.0.ffn_down.weight":
            second[:, 9], means[:, 9] = 1e6, 900

    def usual(name, second, means):
        second[:], means[:] = 1.0, 0.1

    with_massive, without = (facts_of(dense(), tmp_path, change=change) for change in (strong, usual))
    name = "blk.0.ffn_down.weight"
    assert with_massive[name].added.massive > 100 * with_massive[name].write
    assert without[name].added.massive == 0
    assert with_massive[name].write == pytest.approx(without[name].write, rel=0.02)
    shares = stream_shares(with_massive)
    assert shares[name][2] == pytest.approx(structure.MASSIVE, rel=1e-6)  # all of the massive energy so far
    assert shares["blk.1.ffn_down.weight"][2] == 0


# The stream


def test_shares_of_the_stream_by_hand():
    def fact(var, write, stage, massive=0.0):
        return Facts(ErrorParts(var, 2 * var, massive), write=write, stage=stage)

    facts = {
        "token_embd.weight": Facts(ErrorParts(10.0, 10.0, 0.0), write=10.0, stage=-1),
        "blk.0.attn_v.weight": fact(3.0, 0.0, 0),
        "blk.0.attn_output.weight": fact(5.0, 5.0, 0),
        "blk.0.ffn_up.weight": fact(1.0, 0.0, 1),
        "blk.0.ffn_down.weight": fact(5.0, 5.0, 1, massive=800.0),
        "blk.10.ffn_down.weight": fact(20.0, 20.0, 1, massive=800.0),
        "blk.2.ffn_down.weight": fact(20.0, 20.0, 1),
        "output.weight": Facts(output=12.0),
        "blk.3.attn_q.weight": Facts(),
    }
    assert stream_shares(facts) == {
        "token_embd.weight": (1.0, 1.0, 0.0),
        "blk.0.attn_v.weight": (3 / 15, 6 / 15, 0.0),
        "blk.0.attn_output.weight": (5 / 15, 10 / 15, 0.0),
        "blk.0.ffn_up.weight": (1 / 20, 2 / 20, 0.0),
        "blk.0.ffn_down.weight": (5 / 20, 10 / 20, 800 / 200),
        "blk.2.ffn_down.weight": (20 / 40, 40 / 40, 0.0),
        "blk.10.ffn_down.weight": (20 / 60, 40 / 60, 800 / 400),
        "output.weight": (12.0, 12.0, 0.0),
    }
    # an embedding that makes the logits too, where errors are of these: those of its rows are the third part
    tied = {"token_embd.weight": Facts(ErrorParts(0.0, 0.0, 10.0), write=10.0, stage=-1, output=12.0)}
    assert stream_shares(tied) == {"token_embd.weight": (12.0, 12.0, 1.0)}
    del facts["token_embd.weight"]
    assert stream_shares(facts) == {}


def test_shares_are_worth_their_reach():
    """In nats: of the embedding and the logits as they are, of a write over the stream that was seen behind it."""

    def fact(var, stage, **known):
        return Facts(ErrorParts(var, var, 0.0), write=0.0 if known.pop("inner", False) else var, stage=stage, **known)

    facts = {
        "token_embd.weight": fact(10.0, -1, reach=0.25),
        "blk.0.attn_v.weight": fact(3.0, 0, inner=True),
        "blk.0.attn_output.weight": fact(5.0, 0, stream=7.0, seen=8.0, reach=2.0),
        "blk.1.ffn_down.weight": fact(5.0, 1, stream=60.0, seen=50.0, reach=0.5),
        "blk.2.ssm_out.weight": fact(4.0, 0),
        "output.weight": Facts(output=12.0, logits=6.0),
    }
    shares = stream_shares(facts)
    expected = {
        "token_embd.weight": 0.25,
        "blk.0.attn_v.weight": 2.0 * 3 / 8,
        "blk.0.attn_output.weight": 2.0 * 5 / 8,
        "blk.1.ffn_down.weight": 0.5 * 5 / 50,
        "output.weight": 6.0,
    }
    assert {name: shares[name].variance for name in expected} == pytest.approx(expected)
    # behind a write of which nothing is known, a share of the stream is worth what it was before, as it is counted
    before = shares["blk.1.ffn_down.weight"].variance / (5 / np.sqrt(60.0 * 20))
    assert shares["blk.2.ssm_out.weight"].variance == pytest.approx(before * 4 / 24)


def test_a_tied_embedding_counts_twice(tmp_path):
    own, shared = shares_of(dense(), tmp_path), shares_of(tied(), tmp_path)
    assert own["token_embd.weight"] == pytest.approx((1, 1, 0))
    assert own["output.weight"][0] == energies.OUTPUT
    both = 1 + energies.OUTPUT_BLIND  # of the output, which the imatrix says nothing about
    assert shared["token_embd.weight"] == pytest.approx((both, both, 0))
    seen = shares_of(tied(), tmp_path, embedding=True)
    assert seen["token_embd.weight"] == pytest.approx((energies.OUTPUT, energies.OUTPUT, 1))


def test_what_goes_into_the_logits_is_not_in_the_stream(tmp_path):
    """An imatrix's entry for a tied embedding is of its work as the output: rows that are looked up have no weights."""
    (blind, seen) = (facts_of(tied(), tmp_path, embedding=known) for known in (False, True))
    assert seen["token_embd.weight"].write == pytest.approx(blind["token_embd.weight"].write, rel=1e-6)
    assert seen["blk.0.ffn_down.weight"] == blind["blk.0.ffn_down.weight"]


def test_a_louder_stream_is_the_same_model(tmp_path):
    """Twice the embedding and twice all that is added to it: normalization hides it."""
    maker = dense()
    quiet = shares_of(maker, tmp_path)
    for name, array in maker.arrays.items():
        if name.startswith("token_embd") or "attn_output" in name or "ffn_down" in name:
            maker.arrays[name] = (array * np.float16(2)).astype(np.float16)
    loud = shares_of(maker, tmp_path)
    for name, share in quiet.items():
        assert loud[name] == pytest.approx(share, rel=1e-3), name


def test_a_louder_writer_matters_more(tmp_path):
    maker = dense()
    before = shares_of(maker, tmp_path)
    name = "blk.0.ffn_down.weight"
    maker.arrays[name] = (maker.arrays[name] * np.float16(2)).astype(np.float16)
    after = shares_of(maker, tmp_path)
    assert after[name][0] > before[name][0]
    assert after["blk.1.ffn_down.weight"][0] < before["blk.1.ffn_down.weight"][0]
    assert after["blk.0.attn_output.weight"] == before["blk.0.attn_output.weight"]


UNPLACED = {
    "odd": {"blk.1.odd.weight", "blk.1.odder.weight"},
    "state_space": {"blk.0.frobnicator.weight"},
    "delta_net": {f"blk.2.nextn.{role}.weight" for role in ("eh_proj", "embed_tokens", "shared_head_head")},
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("sums", [True, False])
def test_every_kind_of_model_has_sensible_shares(kind, sums, tmp_path):
    maker = MODELS[kind]()
    shares = shares_of(maker, tmp_path, sums=sums)
    for share in shares.values():
        assert np.isfinite(share).all()
        assert min(share) >= 0
    assert max(share[0] for share in shares.values()) < 100
    placed = {name for name, share in shares.items() if share[0] > 0}
    small = ("norm", "ffn_gate_inp", "conv1d", "shortconv.conv", "model_proj", "output_scale")
    wanted = {name for name in maker.arrays if not any(part in name for part in small)}
    assert wanted - placed == UNPLACED.get(kind, set())


@pytest.mark.parametrize("zero", ["token_embd", "blk.0.attn_output", "blk.0.ffn_down", "blk.1.attn_v", "blk.0.ffn_up"])
def test_zeros_break_nothing(zero, tmp_path):
    for maker in (dense(), post_norm()):
        maker.arrays[f"{zero}.weight"][:] = 0
        for share in shares_of(maker, tmp_path).values():
            assert np.isfinite(share).all()
            assert min(share) >= 0


def test_nonsense_in_the_metadata_breaks_nothing(tmp_path):
    for pairs in (
        {"attention.head_count": 0},
        {"attention.head_count": 3},
        {"attention.head_count_kv": 3},
        {"attention.head_count": 1 << 31},
        {"attention.head_count_kv": [7]},
        {"block_count": 1 << 31},
        {"block_count": 0},
        {"rope.dimension_count": 1 << 20},
        {"expert_used_count": 0},
        {"embedding_length": 0},
        {"embedding_scale": float("nan")},
        {"attention.key_length": 1 << 31},
    ):
        maker = dense()
        maker.pairs |= pairs
        for share in shares_of(maker, tmp_path).values():
            assert np.isfinite(share).all(), pairs
            assert min(share) >= 0, pairs
