from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from planner.errors import ModelError
from planner.gguf import open_model
from planner.gguf.model import split_path


def split_pairs(tools, index, count, tensors):
    return [
        tools.pair("split.no", 2, struct.pack("<H", index)),
        tools.pair("split.count", 2, struct.pack("<H", count)),
        tools.pair("split.tensors.count", 5, struct.pack("<i", tensors)),
    ]


@pytest.fixture
def write_split(make, tools):
    """Three parts with one tensor each; `change[index]` replaces fields of a part."""

    def write(change=None, names=("a.weight", "b.weight", "c.weight"), total=3):
        paths = []
        for index, name in enumerate(names):
            fields = {
                "pairs": split_pairs(tools, index, 3, total),
                "tensors": [tools.info(name, (4,), data=np.full(4, index, "<f4").tobytes())],
                "architecture": None if index else "llama",
            }
            paths.append(make(f"m-{index + 1:05d}-of-00003.gguf", **(fields | (change or {}).get(index, {}))))
        return paths

    return write


def test_a_split_is_opened_by_its_first_part(write_split, make, tools):
    paths = write_split()
    with open_model(str(paths[0])) as model:
        assert model.parts == tuple(paths)
        assert [(tensor.name, tensor.part) for tensor in model.tensors] == [
            ("a.weight", 0),
            ("b.weight", 1),
            ("c.weight", 2),
        ]
        assert [model.rows(tensor)[0, 0] for tensor in model.tensors] == [0, 1, 2]
        assert model.size == sum(path.stat().st_size for path in paths)
        digest = model.digest
    # the identity does not depend on how the model is split
    merged = make("whole.gguf", tensors=[tools.info(f"{name}.weight", (4,)) for name in "cba"])
    assert open_model(merged).digest == digest
    other = make("other.gguf", tensors=[tools.info(f"{name}.weight", (5,)) for name in "cba"])
    assert open_model(other).digest != digest


def test_a_wrong_split_is_refused(write_split, tools):
    paths = write_split()
    with pytest.raises(ModelError, match=r"part 2 of a split.*\n.*m-00001-of-00003.gguf"):
        open_model(paths[1])
    paths[2].rename(paths[2].with_name("elsewhere"))
    with pytest.raises(ModelError, match=r"1 of its 3 parts are missing: m-00003-of-00003.gguf"):
        open_model(paths[0])
    write_split({2: {"pairs": split_pairs(tools, 1, 3, 3)}})
    with pytest.raises(ModelError, match=r"m-00003-of-00003.gguf: says that it is part 1 of 3"):
        open_model(paths[0])
    write_split({1: {"pairs": []}})
    with pytest.raises(ModelError, match="part None of None"):
        open_model(paths[0])
    write_split(names=("a.weight", "b.weight", "a.weight"))
    with pytest.raises(ModelError, match=r"a.weight is in m-00001-of-00003.gguf too"):
        open_model(paths[0])
    write_split(total=4)
    with pytest.raises(ModelError, match=r"hold 3 tensors, and split.tensors.count is 4"):
        open_model(paths[0])
    write_split()
    renamed = paths[0].rename(paths[0].with_name("model.gguf"))
    with pytest.raises(ModelError, match="but not by its name"):
        open_model(renamed)


def test_what_is_no_model_is_refused(make, tools):
    with pytest.raises(ModelError, match=r"general.architecture is missing"):
        open_model(make(architecture=None))
    with pytest.raises(ModelError, match="an importance matrix"):
        open_model(make(pairs=[tools.pair("general.type", 8, tools.text("imatrix"))]))
    with pytest.raises(ModelError, match="an importance matrix"):
        open_model(tools.examples / "prose-8m.imatrix.gguf")
    with pytest.raises(ModelError, match="holds no tensors"):
        open_model(make(tensors=[]))


def test_rows_are_views_of_the_file_and_numbers(make, tools):
    values = np.arange(2 * 3 * 4, dtype="<f2").reshape(2, 3, 4)
    model = open_model(make(tensors=[tools.info("x", (4, 3, 2), 1, values.tobytes())]))
    tensor = model["x"]
    raw = model.raw_rows(tensor, 1, 5)
    assert raw.shape == (4, 8)
    assert not raw.flags.writeable
    assert raw.tobytes() == values.reshape(6, 4)[1:5].tobytes()
    assert np.array_equal(model.rows(tensor), values.reshape(6, 4).astype(np.float32))
    assert np.array_equal(model.chosen_rows(tensor, np.array([5, 0, 3])), values.reshape(6, 4)[[5, 0, 3]])
    assert model.raw_rows(tensor, 2, 2).shape == (0, 8)
    for start, stop in ((-1, 2), (0, 7), (3, 2)):
        with pytest.raises(IndexError):
            model.raw_rows(tensor, start, stop)
    model.release(tensor, 0, 6)
    model.close()
    assert raw.tobytes() == values.reshape(6, 4)[1:5].tobytes()  # the view outlives the model


def test_floats_that_no_word_boundary_holds(make, tools):
    pairs = [tools.pair("general.alignment", 4, struct.pack("<I", 1))]
    values = np.array([1.5, -2], "<f4")
    for pad in range(4):
        name = "n" * (pad + 1)
        model = open_model(make(pairs=pairs, alignment=1, tensors=[tools.info(name, (2,), data=values.tobytes())]))
        assert np.array_equal(model.rows(model[name])[0], values)


def test_the_example_model(tools):
    with open_model(tools.examples / "prose-8m-f16.gguf") as model:
        assert model.architecture == "llama"
        assert model.parameter("block_count") == 8
        assert model.parameter("no_such_key") is None
        assert model["blk.3.ffn_down.weight"].shape == (768, 256)
        assert len(model.metadata["tokenizer.ggml.tokens"]) == 4096


def test_split_names_are_llama_cpps():
    assert split_path(Path("d/m.v1"), 1, 12) == Path("d/m.v1-00002-of-00012.gguf")
