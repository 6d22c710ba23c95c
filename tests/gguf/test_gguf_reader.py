from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.errors import ImatrixError, ModelError, PlannerError
from planner.gguf.metadata import encode_pair
from planner.gguf.reader import read_gguf

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

names = st.text("abcdefghij._0123456789", min_size=1, max_size=40)
numbers = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda v: (v, gguf.GGUFValueType.UINT32)),
    st.integers(-(2**63), 2**63 - 1).map(lambda v: (v, gguf.GGUFValueType.INT64)),
    st.integers(-128, 127).map(lambda v: (v, gguf.GGUFValueType.INT8)),
    st.booleans().map(lambda v: (v, gguf.GGUFValueType.BOOL)),
    st.floats(width=32, allow_nan=False).map(lambda v: (v, gguf.GGUFValueType.FLOAT32)),
    st.floats(allow_nan=False).map(lambda v: (v, gguf.GGUFValueType.FLOAT64)),
)
scalars = st.one_of(numbers, st.text(max_size=20).map(lambda v: (v, gguf.GGUFValueType.STRING)))
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@FAST
@given(
    metadata=st.dictionaries(names, scalars, max_size=6),
    words=st.lists(st.text(max_size=9), max_size=9),
    flags=st.lists(st.booleans(), min_size=1, max_size=5),
    tensors=st.dictionaries(names, st.tuples(shapes, st.sampled_from(["<f4", "<f2", "<i4"])), min_size=1, max_size=5),
    alignment=st.sampled_from([None, 1, 16, 64]),
)
def test_reads_what_the_gguf_package_writes(tmp_path, metadata, words, flags, tensors, alignment):
    path = tmp_path / "oracle.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, (value, kind) in metadata.items():
        writer.add_key_value("k." + key, value, kind)
    if words:
        writer.add_array("words", words)
    writer.add_array("flags", flags)
    arrays = {}
    for seed, (name, (shape, dtype)) in enumerate(tensors.items()):
        arrays[name] = np.random.default_rng(seed).integers(0, 99, shape).astype(dtype)
        writer.add_tensor(name, arrays[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = read_gguf(path)
    assert file.alignment == (alignment or 32)
    for key, (value, _) in metadata.items():
        assert file.metadata["k." + key] == value
        assert type(file.metadata["k." + key]) is type(value)
    assert not words or file.metadata["words"] == words
    assert np.array_equal(file.metadata["flags"], flags)
    assert [tensor.name for tensor in file.tensors] == list(arrays)
    for tensor in file.tensors:
        array = arrays[tensor.name]
        shape = array.shape[::-1]
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        assert tensor.shape == shape
        assert tensor.elements == array.size == tensor.rows * tensor.row_length
        assert tensor.rows == tensor.rows_per_matrix * tensor.matrices
        assert file.data[tensor.offset : tensor.offset + tensor.nbytes] == array.tobytes()
    # all pairs together are the bytes between the counts and the tensor infos
    raw = b"".join(file.metadata.raw(key) for key in file.metadata)
    assert file.data[24 : 24 + len(raw)] == raw
    assert sum(map(file.metadata.raw_size, file.metadata)) == len(raw)


@given(value=scalars)
def test_encode_pair_writes_what_is_read(tmp_path_factory, tools, value):
    wanted, kind = value
    dtypes = {gguf.GGUFValueType.INT64: np.int64, gguf.GGUFValueType.INT8: np.int8,
              gguf.GGUFValueType.FLOAT64: np.float64}  # fmt: skip
    exact = dtypes[kind](wanted) if kind in dtypes else wanted
    path = tmp_path_factory.mktemp("pair") / "x.gguf"
    encoded = encode_pair("some.key", exact)
    path.write_bytes(tools.spec([encoded]).encode())
    metadata = read_gguf(path).metadata
    assert metadata["some.key"] == wanted
    assert metadata.pair("some.key").kind == kind
    assert metadata.raw("some.key") == encoded


def test_version_2_is_read_and_1_is_not(make):
    assert read_gguf(make(version=2)).version == 2
    with pytest.raises(ModelError, match="version 1"):
        read_gguf(make(version=1))
    with pytest.raises(ModelError, match=r"version 4.*\n.*Update"):
        read_gguf(make(version=4))
    with pytest.raises(ModelError, match="big-endian"):
        read_gguf(make(version=3 << 24))


def hostile(tools):
    info, pair, text = tools.info, tools.pair, tools.text
    u64 = struct.Struct("<Q").pack
    big = struct.pack("<IQ", 6, 2**62)
    return {  # message: what makes it
        "not a GGUF file": {"magic": b"GGML"},
        "claims 1,152,921,504,606,846,976 tensors": {"n_tensors": 2**60},
        "claims 2 tensors and 9,223,372,036,854,775,807": {"n_pairs": 2**63 - 1},
        "the key of metadata pair 0 needs 72,340,172,838,076,673 bytes": {
            "pairs": [b"\1" * 13],
            "architecture": None,
            "tensors": [],
        },
        "needs 9,223,372,036,854,775,808 bytes": {"pairs": [u64(2**63) + b"x" * 40]},
        "which no name has": {"pairs": [pair("", 8, text("x"))]},
        "key 'k' occurs twice": {"pairs": [pair("k", 8, text("x"))] * 2},
        "unknown type 13": {"pairs": [pair("k", 13, b"\0" * 8)]},
        "array of arrays": {"pairs": [pair("k", 9, struct.pack("<IQ", 9, 1) + b"\0" * 20)]},
        "needs 18,446,744,073,709,551,616 bytes": {"pairs": [pair("k", 9, big)]},
        "claims 4,611,686,018,427,387,904 strings": {"pairs": [pair("k", 9, struct.pack("<IQ", 8, 2**62))]},
        "string 1 of 2 goes beyond": {"pairs": [pair("k", 9, struct.pack("<IQ", 8, 2) + text("x") + u64(2**64 - 8))]},
        "general.alignment must be a power of two": {"pairs": [pair("general.alignment", 4, struct.pack("<I", 24))]},
        "u32, and is '-32": {"pairs": [pair("general.alignment", 5, struct.pack("<i", -32))]},
        "general.alignment must be a power": {"pairs": [pair("general.alignment", 4, struct.pack("<I", 0))]},
        "is not text": {"tensors": [info(b"\xff\xfe", (4,))]},
        "unprintable": {"tensors": [info("a\x1b[2J", (4,))]},
        "longer than the 63 bytes": {"tensors": [info("n" * 64, (4,))]},
        "tensor 'a' occurs twice": {"tensors": [info("a", (4,)), info("a", (4,))]},
        "has 5 dimensions": {"tensors": [info("a", (1, 1, 1, 1, 1))]},
        r"no elements: its shape is \[0, 4\]": {"tensors": [info("a", (0, 4))]},
        r"no elements: its shape is \[4, 0\]": {"tensors": [info("a", (4, 0))]},
        "impossible shape": {"tensors": [info("a", (2**32, 2**32), data=b"")]},
        "impossible shape, ": {"tensors": [info("a", (2**64 - 1,), data=b"")]},
        "type 999": {"tensors": [info("a", (4,), 999, bytes(16))]},
        "type 31": {"tensors": [info("a", (32,), 31, bytes(18))]},
        "no multiple of q4_K's 256": {"tensors": [info("a", (64,), 12, bytes(36))]},
        "beyond the end": {"tensors": [info("a", (2**40,), data=bytes(64))]},
        "beyond the end of the file: its 16 bytes": {"tensors": [info("a", (4,), offset=2**64 - 32)]},
        "not aligned": {"tensors": [info("a", (4,)), info("b", (1,), offset=20)]},
        "overlapping": {"tensors": [info("a", (4,)), info("b", (4,), offset=0)]},
        "leaving a gap": {"tensors": [info("a", (4,)), info("b", (4,), offset=64), info("c", (64,))]},
    }


CASES = 32


@pytest.mark.parametrize("case", range(CASES))
def test_hostile_headers_get_an_error_that_says_what_and_where(make, tools, case):
    cases = hostile(tools)
    assert len(cases) == CASES
    message, fields = list(cases.items())[case]
    path = make(**fields)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=message) as caught:
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in caught.value.problem
    assert caught.value.remedy


def test_every_truncation_is_an_error(tmp_path, tools):
    pairs = [tools.pair("words", 9, struct.pack("<IQ", 8, 2) + tools.text("one") + tools.text("two"))]
    whole = tools.spec(pairs).encode()
    path = tmp_path / "cut.gguf"
    last = 3 * 4  # the last tensor; its padding may be missing
    padding = 32 - last
    for size in range(len(whole) - padding):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError):
            read_gguf(path)
    path.write_bytes(whole[: len(whole) - padding])
    assert len(read_gguf(path).tensors) == 2


@FAST
@given(position=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 40))
def test_damage_is_an_error_or_harmless(tmp_path, tools, position, value, cut):
    pairs = [
        tools.pair("words", 9, struct.pack("<IQ", 8, 2) + tools.text("one") + tools.text("two")),
        tools.pair("x", 6, bytes(4)),
    ]
    damaged = bytearray(tools.spec(pairs).encode())
    damaged[position % len(damaged)] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged[: len(damaged) - cut])
    try:
        file = read_gguf(path)
    except PlannerError:
        return
    for key in file.metadata:
        _ = file.metadata[key]
    for tensor in file.tensors:
        assert tensor.offset + tensor.nbytes <= len(file.data)


def test_no_regular_file(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(ModelError, match=str(tmp_path)):
        read_gguf(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(ImatrixError, match="empty"):
        read_gguf(tmp_path / "empty", error=ImatrixError)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        read_gguf(tmp_path / "pipe")
    (tmp_path / "lfs").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelError, match="LFS pointer"):
        read_gguf(tmp_path / "lfs")
    with pytest.raises(ModelError, match="null"):
        read_gguf(Path("a\0b"))


def test_a_vocabulary_is_decoded_only_when_read(make, tools):
    words = [f"word{index}" for index in range(20_000)]
    payload = struct.pack("<IQ", 8, len(words)) + b"".join(map(tools.text, words))
    path = make(pairs=[tools.pair("words", 9, payload)])
    tracemalloc.start()
    file = read_gguf(path)
    opened = tracemalloc.get_traced_memory()[1]
    assert file.metadata["words"] == words
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened < 100_000 < 1_000_000 < read


def test_values_that_are_not_text_are_shown_and_kept(make, tools):
    path = make(pairs=[tools.pair("k", 8, tools.text(b"\xff!")), tools.pair("b", 7, b"\2")])
    metadata = read_gguf(path).metadata
    assert metadata["k"] == "\ufffd!"
    assert metadata.raw("k").endswith(b"\xff!")
    assert metadata["b"] is True
    assert metadata.text("b") is None
    assert metadata.integer("b") is None
