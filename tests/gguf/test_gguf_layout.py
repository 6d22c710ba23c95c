from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.errors import OutputError, UsageError
from planner.formats.ggml import formats
from planner.gguf import Imatrix, header_bytes, imatrix_pairs, open_model, predicted_size
from planner.gguf.layout import Shard, arrange
from planner.gguf.reader import read_gguf
from planner.sizes import align

FAST = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def model(make, tools):
    pairs = [
        tools.pair("general.file_type", 4, struct.pack("<I", 1)),
        tools.pair("general.name", 8, tools.text("m")),
        tools.pair("split.count", 2, struct.pack("<H", 1)),
        tools.pair("odd", 7, b"\7"),
    ]
    tensors = [
        tools.info("blk.1.ffn_up.weight", (64, 5), 1),
        tools.info("output_norm.weight", (3,)),
        tools.info("blk.0.ffn_up_exps.weight", (32, 3, 2), 1),
        tools.info("token_embd.weight", (64, 7), 30),
    ]
    return open_model(make(pairs=pairs, tensors=tensors))


CHOICES = {
    "blk.1.ffn_up.weight": ["f16", "q8_0", "q4_0", "f32"],
    "blk.0.ffn_up_exps.weight": ["f16", "q5_1", "q4_1", "bf16"],
    "token_embd.weight": ["bf16", "q8_0", "f32"],
}
recipes = st.fixed_dictionaries({name: st.sampled_from(choice) for name, choice in CHOICES.items()})
extras = st.dictionaries(
    st.sampled_from(["planner.a", "planner.b", "general.name", "quantize.imatrix.file"]),
    st.one_of(st.text(max_size=40), st.integers(0, 2**40), st.booleans(), st.lists(st.text(max_size=5), max_size=3)),
)


def imatrix(given_="dir/x.imatrix", datasets=("d",), chunks=3):
    return Imatrix(Path(given_), given_, datasets, chunks, 256, {"a": None, "b": None}, legacy=False)


@FAST
@given(recipe=recipes, extra=extras, file_type=st.integers(0, 40), with_imatrix=st.booleans())
def test_the_header_is_read_back_as_promised(model, tmp_path, recipe, extra, file_type, with_imatrix):
    chosen = {name: formats()[wanted] for name, wanted in recipe.items()}
    source = imatrix() if with_imatrix else None
    added = [*imatrix_pairs(source), *extra.items()]
    (shard,) = arrange(model, chosen, added, file_type)
    header = b"".join(shard.header())
    assert len(header) == shard.header_bytes == header_bytes(model, source, list(extra.items()), file_type)
    size = len(header) + sum(align(placed.nbytes, 32) for placed in shard.tensors)
    assert size == shard.nbytes == predicted_size(model, chosen, source, list(extra.items()))

    path = tmp_path / "out.gguf"
    path.write_bytes(header + bytes(size - len(header)))
    file = read_gguf(path)
    assert [(tensor.name, tensor.format) for tensor in file.tensors] == [
        ("output_norm.weight", "f32"),
        ("token_embd.weight", recipe["token_embd.weight"]),
        ("blk.0.ffn_up_exps.weight", recipe["blk.0.ffn_up_exps.weight"]),
        ("blk.1.ffn_up.weight", recipe["blk.1.ffn_up.weight"]),
    ]
    assert all(tensor.shape == model[tensor.name].shape for tensor in file.tensors)
    kept = [key for key in ("general.architecture", "general.name", "odd") if key not in extra]
    tail = ["general.quantization_version", "general.file_type"]
    tail += [key for key, _ in imatrix_pairs(source) if key not in extra] + list(extra)
    assert list(file.metadata) == kept + tail
    for key in kept:
        assert file.metadata.raw(key) == model.metadata.raw(key)
    assert file.metadata["general.file_type"] == file_type
    assert file.metadata["general.quantization_version"] == 2
    for key, value in extra.items():
        assert file.metadata[key] == value


@FAST
@given(recipe=recipes, limit=st.integers(300, 3000), extra=extras)
def test_shards_stay_below_their_limit(model, tmp_path, recipe, limit, extra):
    chosen = {name: formats()[wanted] for name, wanted in recipe.items()}
    added = list(extra.items())
    (whole,) = arrange(model, chosen, added, 7)
    split = 22 + 25 + 35  # bytes of the three split.* pairs

    def alone(index):
        placed = whole.tensors[index]
        pairs = 0 if index else whole.pairs.nbytes
        return align(24 + pairs + split + placed.info_bytes, 32) + align(placed.nbytes, 32)

    if whole.nbytes > limit and max(map(alone, range(len(whole.tensors)))) > limit:
        with pytest.raises(OutputError, match="more than the"):
            arrange(model, chosen, added, 7, max_shard_size=limit)
        return
    shards = arrange(model, chosen, added, 7, max_shard_size=limit)
    assert [placed for shard in shards for placed in shard.tensors] == list(whole.tensors)
    assert max(shard.nbytes for shard in shards) <= limit
    assert (len(shards) == 1) == (whole.nbytes <= limit)
    assert sum(shard.nbytes for shard in shards) == predicted_size(model, chosen, None, added, max_shard_size=limit)
    if len(shards) == 1:
        assert b"".join(shards[0].header()) == b"".join(whole.header())
        return
    for shard, following in pairwise(shards):  # no shard has room for what follows it
        more = Shard(shard.pairs, shard.split, (*shard.tensors, following.tensors[0]), shard.alignment)
        assert more.nbytes > limit
    paths = []
    for index, shard in enumerate(shards):
        paths.append(tmp_path / f"s-{index + 1:05d}-of-{len(shards):05d}.gguf")
        paths[-1].write_bytes(b"".join(shard.header()) + bytes(shard.nbytes - shard.header_bytes))
        assert shard.tensors
    with open_model(paths[0]) as again:  # which checks split.no, split.count and split.tensors.count
        assert len(again.parts) == len(shards)
        assert [tensor.name for tensor in again.tensors] == [placed.tensor.name for placed in whole.tensors]


def test_the_alignment_of_the_source_is_kept(make, tools):
    pairs = [tools.pair("general.alignment", 4, struct.pack("<I", 128))]
    tensors = [tools.info("a.weight", (32, 3), 1), tools.info("b.weight", (32, 3), 1)]
    model = open_model(make(pairs=pairs, alignment=128, tensors=tensors))
    (shard,) = arrange(model, {"a.weight": formats()["q8_0"]}, [], 7)
    assert shard.header_bytes % 128 == 0
    assert shard.nbytes == shard.header_bytes + 128 + 256


def test_imatrix_pairs_are_llama_quantizes():
    assert imatrix_pairs(None) == []
    pairs = dict(imatrix_pairs(imatrix("x" * 126 + "é" + "y", ("a", "b"), chunks=0)))
    assert list(pairs) == ["quantize.imatrix.file", "quantize.imatrix.dataset", "quantize.imatrix.entries_count"]
    cut = pairs["quantize.imatrix.file"].encode("utf-8", "surrogateescape")
    assert cut == (b"x" * 126 + "é".encode())[:127]
    assert pairs["quantize.imatrix.dataset"] == "a"
    assert pairs["quantize.imatrix.entries_count"] == np.uint32(2)
    assert "quantize.imatrix.dataset" not in dict(imatrix_pairs(imatrix(datasets=())))
    assert dict(imatrix_pairs(imatrix()))["quantize.imatrix.chunks_count"] == np.uint32(3)


def test_what_follows_from_the_layout_cannot_be_set(model):
    for key in ("general.alignment", "split.no"):
        with pytest.raises(ValueError, match=key):
            arrange(model, {}, [(key, 1)], 7)
    with pytest.raises(UsageError):
        arrange(model, {}, [], 7, keep_split=True, max_shard_size=1000)
