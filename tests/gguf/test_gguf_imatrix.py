from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.errors import ImatrixError, PlannerError
from planner.gguf import open_model, read_imatrix

FAST = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
positive = st.floats(0, 2.0**90, width=32)


def encode(tools, entries, leave_out=(), **replace):
    """A GGUF imatrix; `entries`: name → (sums of squares [experts, n], counts, sums or None)."""
    pairs = {
        "general.type": tools.pair("general.type", 8, tools.text("imatrix")),
        "datasets": tools.pair("imatrix.datasets", 9, struct.pack("<IQ", 8, 1) + tools.text("data.txt")),
        "chunk_count": tools.pair("imatrix.chunk_count", 4, struct.pack("<I", 5)),
        "chunk_size": tools.pair("imatrix.chunk_size", 4, struct.pack("<I", 256)),
    }
    pairs = {key: value for key, value in pairs.items() if key not in leave_out}
    tensors = []
    for name, (sum2, counts, sums) in entries.items():
        for suffix, array in ((".in_sum2", sum2), (".in_sum", sums), (".counts", counts)):
            if array is not None:
                array = np.asarray(array, "<f4")
                tensors.append(tools.info(name + suffix, array.shape[::-1] or (1,), data=array.tobytes()))
    fields = {"architecture": None, "pairs": list(pairs.values()), "tensors": tensors} | replace
    return tools.spec(**fields).encode()


def legacy(entries, trailer=b""):
    """A legacy imatrix; `entries`: [(name, calls, values)]."""
    out = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data = np.asarray(values, "<f4")
        out += struct.pack("<i", len(name.encode())) + name.encode() + struct.pack("<ii", calls, data.size)
        out += data.tobytes()
    return out + trailer


@FAST
@given(data=st.data(), experts=st.integers(1, 4), width=st.integers(1, 6))
def test_values_are_what_llama_quantize_computes(tmp_path, tools, data, experts, width):
    def floats(element):
        flat = data.draw(st.lists(element, min_size=experts * width, max_size=experts * width))
        return np.array(flat, np.float32).reshape(experts, width)

    sum2, sums = floats(positive), floats(st.floats(-(2.0**90), 2.0**90, width=32))
    counts = np.array(
        data.draw(st.lists(st.floats(0, 2.0**20, width=32), min_size=experts, max_size=experts)), np.float32
    )
    path = tmp_path / "x.imatrix"
    path.write_bytes(encode(tools, {"t": (sum2, counts, sums)}))
    entry = read_imatrix(path).entries["t"]
    for expert in range(experts):
        whole = int(counts[expert]) + (counts[expert] - int(counts[expert]) >= 0.5)  # std::lround
        assert entry.counts[expert] == whole
        for channel in range(width):
            if whole > 0:
                expected = sum2[expert, channel] / np.float32(whole)
                mean = sums[expert, channel] / np.float32(whole)
            else:
                expected, mean = np.float32(1), np.float32(0)
            assert entry.values[expert, channel].tobytes() == np.float32(expected).tobytes()
            assert entry.means[expert, channel] == mean
    assert entry.values.dtype == entry.means.dtype == np.float32


@FAST
@given(
    entries=st.lists(
        st.tuples(st.text("ab.é", min_size=1, max_size=9), st.integers(0, 2**31 - 1), st.lists(positive, min_size=1)),
        min_size=1,
    ),
    chunks=st.integers(0, 2**31 - 1),
    dataset=st.text("xyz", max_size=5),
)
def test_legacy_values(tmp_path, entries, chunks, dataset):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy(entries, struct.pack("<ii", chunks, len(dataset)) + dataset.encode()))
    imatrix = read_imatrix(path)
    assert imatrix.legacy
    assert not imatrix.has_means
    assert imatrix.chunk_count == chunks
    assert imatrix.datasets == ((dataset,) if dataset else ())
    last = {name: (calls, values) for name, calls, values in entries}
    assert set(imatrix.entries) == set(last)
    for name, (calls, values) in last.items():
        expected = np.array(values, np.float32) / np.float32(calls if calls > 0 else 1)
        assert imatrix.entries[name].values.tobytes() == expected.tobytes()


def test_a_legacy_file_may_end_early_but_only_after_its_entries(tmp_path):
    path = tmp_path / "imatrix.dat"
    whole = legacy([("a", 2, [1, 2]), ("b", 3, [4.0])])
    for trailer in (b"", b"\1\2", struct.pack("<i", 9), struct.pack("<ii", 9, 5) + b"xy", struct.pack("<ii", 9, -1)):
        path.write_bytes(whole + trailer)
        imatrix = read_imatrix(path)
        assert len(imatrix.entries) == 2
        assert imatrix.chunk_count == (9 if len(trailer) >= 4 else 0)
        assert imatrix.datasets == ()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ImatrixError):
            read_imatrix(path)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<i", 2**31 - 1) + bytes(100),
        struct.pack("<i", -1),
        struct.pack("<iiii", 1, -5, 1, 1) + bytes(20),
        struct.pack("<ii", 1, 2**30) + bytes(20),
        struct.pack("<ii1sii", 1, 1, b"a", 1, 2**30),
        struct.pack("<ii1siif", 1, 1, b"a", 1, 1, float("nan")),
        struct.pack("<ii1siif", 1, 1, b"a", 1, 1, -1.0),
        struct.pack("<ii1siif", 1, 1, b"a", -1, 1, 1.0),
        b"{}",
    ],
)
def test_hostile_legacy_files(tmp_path, content):
    (tmp_path / "imatrix.dat").write_bytes(content)
    with pytest.raises(ImatrixError):
        read_imatrix(tmp_path / "imatrix.dat")


ONE = {"t": ([[1.0, 2.0]], [3.0], None)}
NAN = float("nan")


@pytest.mark.parametrize(
    ("message", "entries", "changes"),
    [
        ("imatrix.chunk_size missing", ONE, {"leave_out": ("chunk_size",)}),
        ("imatrix.datasets missing", ONE, {"leave_out": ("datasets",)}),
        ("a model, not an imp", ONE, {"leave_out": ("chunk_count",), "architecture": "llama"}),
        ("no entries", {}, {}),
        ("t has only .counts", {"t": (None, [3.0], None)}, {}),
        ("t has only .in_sum2", {"t": ([[1.0]], None, None)}, {}),
        ("sizes of t do not agree", {"t": ([[1.0, 2.0, 3.0]], [1.0, 1.0], None)}, {}),
        ("sizes of t do not agree", {"t": ([[1.0, 2.0]], [1.0], [[1.0]])}, {}),
        ("NaN or infinite", {"t": ([[1.0, NAN]], [1.0], None)}, {}),
        ("NaN or infinite", {"t": ([[1.0, np.inf]], [1.0], None)}, {}),
        ("NaN or infinite", {"t": ([[1.0, 1.0]], [1.0], [[1.0, -np.inf]])}, {}),
        ("NaN or infinite", {"t": ([[1.0, 1.0]], [1.0], [[np.inf, -np.inf]])}, {}),
        ("below zero", {"t": ([[1.0, -1.0]], [1.0], None)}, {}),
        ("no count", {"t": ([[1.0]], [NAN], None)}, {}),
        ("no count", {"t": ([[1.0]], [-1.0], None)}, {}),
        ("no count", {"t": ([[1.0]], [1e19], None)}, {}),  # nor of what an int64 holds
    ],
)
def test_bad_imatrices(tmp_path, tools, message, entries, changes):
    path = tmp_path / "x.gguf"
    path.write_bytes(encode(tools, entries, **changes))
    with pytest.raises(ImatrixError, match=message) as caught:
        read_imatrix(path)
    assert str(path) in caught.value.problem
    assert caught.value.remedy


def test_sums_must_be_f32(tmp_path, tools):
    tensors = [tools.info("t.in_sum2", (2,), 1), tools.info("t.counts", (1,))]
    (tmp_path / "x").write_bytes(encode(tools, {}, tensors=tensors))
    with pytest.raises(ImatrixError, match=r"t.in_sum2 is f16, not f32"):
        read_imatrix(tmp_path / "x")


@FAST
@given(position=st.integers(0, 500), value=st.integers(0, 255))
def test_damage_never_crashes(tmp_path, tools, position, value):
    path = tmp_path / "x"
    damaged = bytearray(encode(tools, {"t": ([[1.0, 2.0]], [3.0], [[1.0, 1.0]]), "u": ([[1.0]], [0.0], None)}))
    damaged[position % len(damaged)] = value
    path.write_bytes(damaged)
    try:
        imatrix = read_imatrix(path)
    except PlannerError:
        return
    for entry in imatrix.entries.values():
        assert np.isfinite(entry.values).all()


def test_absent_and_irregular_files(tmp_path):
    with pytest.raises(ImatrixError, match="No such file"):
        read_imatrix(tmp_path / "absent")
    with pytest.raises(ImatrixError):
        read_imatrix(tmp_path)


@pytest.fixture
def moe(make, tools):
    return open_model(
        make(
            tensors=[
                tools.info("token_embd.weight", (4, 6)),
                tools.info("blk.0.attn_q.weight", (4, 2)),
                tools.info("blk.0.attn_norm.weight", (4,)),
                tools.info("blk.0.ffn_up_exps.weight", (4, 3, 2)),
            ]
        )
    )


def test_coverage(tmp_path, tools, moe):
    path = tmp_path / "x"
    experts = ([[1.0] * 4, [8.0] * 4], [0.0, 2.0], None)
    path.write_bytes(encode(tools, {"blk.0.ffn_up_exps.weight": experts, "blk.9.x.weight": ([[1.0]], [1.0], None)}))
    imatrix = read_imatrix(path)
    coverage = imatrix.require(moe)
    assert coverage.covered == ("blk.0.ffn_up_exps.weight",)
    assert coverage.missing == ("token_embd.weight", "blk.0.attn_q.weight")
    assert coverage.unused == ("blk.9.x.weight",)
    assert coverage.never_activated == {"blk.0.ffn_up_exps.weight": (0,)}
    match = imatrix.match(moe["blk.0.ffn_up_exps.weight"])
    assert np.array_equal(match.values, [[1] * 4, [4] * 4])
    assert np.array_equal(match.counts, [0, 2])
    assert match.means is None
    assert imatrix.match(moe["blk.0.attn_q.weight"]) is None


def test_the_imatrix_of_another_model(tmp_path, tools, moe):
    path = tmp_path / "x"
    for entry, message in (
        ({"blk.0.attn_q.weight": ([[1.0] * 5], [1.0], None)}, "has 5 values and needs 4"),
        ({"blk.0.ffn_up_exps.weight": ([[1.0] * 4] * 3, [1.0] * 3, None)}, "4 values for 3 experts and needs 4 for 2"),
        ({"elsewhere": ([[1.0]], [1.0], None)}, "none of its 1 entries"),
    ):
        path.write_bytes(encode(tools, entry))
        imatrix = read_imatrix(path)
        with pytest.raises(ImatrixError, match=f"another model.*{message}"):
            imatrix.require(moe)
        for name in set(entry) & set(moe.by_name):
            with pytest.raises(ImatrixError, match="another model"):
                imatrix.weights(moe[name])


def test_token_embeddings_may_mismatch_and_legacy_experts_are_flat(tmp_path, tools, moe):
    path = tmp_path / "x"
    path.write_bytes(legacy([("token_embd.weight", 1, [1.0] * 3), ("blk.0.ffn_up_exps.weight", 2, range(8))]))
    imatrix = read_imatrix(path)
    coverage = imatrix.require(moe)
    assert list(coverage.mismatched) == ["token_embd.weight"]
    assert imatrix.weights(moe["token_embd.weight"]) is None
    match = imatrix.match(moe["blk.0.ffn_up_exps.weight"])
    assert np.array_equal(match.values, np.arange(8).reshape(2, 4) / 2)
    assert np.array_equal(match.counts, [2, 2])


def test_digests_change_with_the_values_and_only_with_them(tmp_path, tools):
    def digests(entry, name="x"):
        (tmp_path / name).write_bytes(encode(tools, {"t": entry, "u": ([[1.0]], [1.0], None)}))
        imatrix = read_imatrix(tmp_path / name)
        return imatrix.entries["t"].digest, imatrix.entries["u"].digest, imatrix.digest

    first = digests(([[2.0, 4.0]], [2.0], None))
    assert digests(([[2.0, 4.0]], [2.0], None), "elsewhere") == first
    for change in (([[2.0, 5.0]], [2.0], None), ([[4.0, 8.0]], [4.0], None), ([[2.0, 4.0]], [2.0], [[1.0, 1.0]]),
                   ([[2.0], [4.0]], [2.0, 2.0], None)):  # fmt: skip
        other = digests(change)
        assert other[0] != first[0]
        assert other[1] == first[1]
        assert other[2] != first[2]


def test_the_examples(tools):
    plain = read_imatrix(tools.examples / "prose-8m.imatrix.gguf")
    sums = read_imatrix(tools.examples / "prose-8m-sums.imatrix.gguf")
    with open_model(tools.examples / "prose-8m-f16.gguf") as model:
        for imatrix in (plain, sums):
            coverage = imatrix.require(model)
            assert coverage.missing == ("token_embd.weight", "output.weight")
            assert not coverage.unused
            assert not coverage.never_activated
        for tensor in model.tensors:
            match = sums.match(tensor)
            if match is not None:  # a mean square is never below the square of the mean
                assert (match.values * (1 + 1e-5) >= match.means.astype(np.float64) ** 2).all()
    assert (plain.has_means, sums.has_means) == (False, True)
    assert (sums.chunk_count, sums.chunk_size, sums.datasets) == (452, 256, ("calibration.txt",))


def test_zeros_are_gaps_unless_a_count_explains_them(tmp_path, tools):
    entries = {
        "whole": ([[1.0, 2.0]], [3.0], [[0.0, 1.0]]),
        "idle": ([[1.0, 2.0], [0.0, 0.0]], [3.0, 0.0], None),
        "hole": ([[1.0, 0.0, 1e-44]], [3.0], [[1.0, 1.0, 0.0]]),
        "expert": ([[1.0, 2.0], [0.0, 0.0]], [3.0, 4.0], None),
        "both": ([[1.0, 0.0], [0.0, 0.0]], [3.0, 0.0], None),
        "nothing": ([[0.0, 0.0]], [3.0], None),
        "never": ([[0.0, 0.0]], [0.0], None),
        "minus": ([[-0.0, 1.0]], [2.0], None),
    }
    path = tmp_path / "x"
    path.write_bytes(encode(tools, entries))
    found = read_imatrix(path).entries
    gaps = {name: entry.gaps for name, entry in found.items()}
    assert gaps == {
        "whole": 0, "idle": 0, "hole": 2, "expert": 2, "both": 1, "nothing": 2, "never": 2, "minus": 1,
    }  # fmt: skip
    assert {name for name, entry in found.items() if entry.key == entry.digest} == {"whole", "idle"}
    path.write_bytes(legacy([("whole", 0, [1.0, 2.0]), ("hole", 2, [1.0, 0.0]), ("nothing", 0, [0.0, 0.0])]))
    assert {name: entry.gaps for name, entry in read_imatrix(path).entries.items()} == {
        "whole": 0, "hole": 1, "nothing": 2,
    }  # fmt: skip
