"""What strangers' headers may claim, and what that may cost."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc

import pytest

from planner.errors import ModelError
from planner.formats.ggml import formats
from planner.gguf import open_model, reader
from planner.gguf.layout import arrange
from planner.gguf.metadata import encode_pair
from planner.gguf.quantize import quantize_model
from planner.gguf.reader import read_gguf

U64 = struct.Struct("<Q").pack
GIB = 1 << 30


def sparse(path, head, size=GIB):
    """A file that claims much and takes no room on the disk."""
    path.write_bytes(head)
    os.truncate(path, size)
    return path


def start(tensors, pairs):
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs)


@pytest.mark.parametrize(
    "head",
    [
        start(GIB // 24 - 4, 0),
        start(0, GIB // 13 - 4),
        start(1, 1) + U64(1) + b"w" + struct.pack("<IIQ", 9, 8, GIB // 8 - 99),
    ],
    ids=["tensors", "pairs", "strings"],
)
def test_counts_that_the_file_has_room_for_and_no_model_has(tmp_path, head):
    path = sparse(tmp_path / "x.gguf", head)
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ModelError):
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 10


def test_strings_are_counted_over_all_arrays(make, tools, monkeypatch):
    words = struct.pack("<IQ", 8, 60) + tools.text("x") * 60
    path = make(pairs=[tools.pair("v", 9, words), tools.pair("w", 9, words)])
    assert len(read_gguf(path).metadata["w"]) == 60
    monkeypatch.setattr(reader, "_MOST_STRINGS", 119)
    with pytest.raises(ModelError, match="'w' claims 60 strings"):
        read_gguf(path)


def test_texts_of_gigabytes_are_not_read(tmp_path):
    claims = U64(20) + b"general.architecture" + struct.pack("<IQ", 8, GIB - 99)
    path = sparse(tmp_path / "x.gguf", start(0, 1) + claims)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="architecture is missing"):
            open_model(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_an_alignment_that_is_a_list_is_not_read(make, tools):
    words = struct.pack("<IQ", 8, 3) + b"".join(map(tools.text, ("a" * 5000,) * 3))
    with pytest.raises(ModelError, match="in a u32, and is an array"):
        open_model(make(pairs=[tools.pair("general.alignment", 9, words)]))


@pytest.mark.parametrize("power", [10, 24, 28])
def test_large_alignments_take_disk_and_no_memory(tmp_path, tools, power):
    alignment = 1 << power
    info = tools.info("a.weight", (64, 2))
    pair = tools.pair("general.alignment", 4, struct.pack("<I", alignment))
    head = tools.spec([pair], [info], alignment=1).encode()[: -4 * 128]
    path = sparse(tmp_path / "x.gguf", head, alignment + 4 * 128)
    with open_model(path) as model:
        assert model.alignment == alignment
        (shard,) = arrange(model, {"a.weight": formats()["q8_0"]}, [("x", "y")], 7)
        tracemalloc.start()
        assert sum(map(len, shard.header())) == shard.header_bytes == alignment
        assert shard.nbytes == 2 * alignment
        if power < 25:  # more would wear the disk
            written = quantize_model(model, {"a.weight": "q8_0"}, None, tmp_path / "out.gguf", file_type=7, threads=1)
            assert written.bytes == (tmp_path / "out.gguf").stat().st_size == 2 * alignment
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()


def test_long_values_are_copied_whole_and_in_pieces(make, tools, tmp_path):
    long = bytes(range(256)) * 20_000
    path = make(pairs=[tools.pair("k", 9, struct.pack("<IQ", 0, len(long)) + long), encode_pair("z", 1)])
    with open_model(path) as model:
        assert b"".join(model.metadata.raw_pieces("k")) == model.metadata.raw("k")
        quantize_model(model, {}, None, tmp_path / "out.gguf", file_type=0)
        with open_model(tmp_path / "out.gguf") as copy:
            assert copy.metadata.raw("k") == model.metadata.raw("k")
