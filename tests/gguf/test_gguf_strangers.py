"""Files that cannot be read as models: each is told for what it is, and what to do with it."""

from __future__ import annotations

import gzip
import struct
import zipfile

import gguf
import numpy as np
import pytest

from planner.errors import ImatrixError, ModelError
from planner.gguf import open_model, read_imatrix
from planner.gguf.reader import read_gguf

LONG = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_out.0.weight"


def refused(path, error=ModelError):
    with pytest.raises(error) as caught:
        open_model(path) if error is ModelError else read_imatrix(path)
    assert path.name in caught.value.problem
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("length", [64, 81, 200])
def test_long_names_are_no_damage(make, tools, length):
    name = LONG.ljust(length, "x")[:length]
    found = refused(make(tensors=[tools.info(name, (256, 64))]))
    assert f"has {length} bytes: longer than the 63 bytes that ggml allows" in found.problem
    assert "image and video models" in found.remedy
    assert "damaged" not in str(found)
    assert read_gguf(make(tensors=[tools.info(name[:63], (256, 64))])).tensors[0].name == name[:63]


def test_five_dimensions_are_no_damage_and_a_thousand_are(make, tools):
    five = refused(make(tensors=[tools.info("patch_embedding.weight", (2, 2, 2, 4, 64))]))
    assert "5 dimensions, and ggml allows 4" in five.problem
    assert "image and video models" in five.remedy
    assert "damaged" in refused(make(tensors=[tools.info("a.weight", (1,) * 1000)])).remedy


@pytest.mark.parametrize("name", ["joined.gguf", "m-00001-of-00003.gguf", "m-00002-of-00003.gguf"])
@pytest.mark.parametrize("padding", [True, False])
def test_parts_joined_end_to_end(make, tools, tmp_path, name, padding):
    parts = []
    for number in range(3):
        split = [tools.pair("split.no", 2, struct.pack("<H", number)), tools.pair("split.count", 2, b"\3\0")]
        whole = tools.spec(split, [tools.info(f"{number}.weight", (5, 2))]).encode()
        parts.append(whole if padding else whole[: -(-40 % 32)])
    first = 1 if "00002" in name else 0
    path = tmp_path / name
    path.write_bytes(b"".join(parts[first:] + parts[:first]))
    found = refused(path)
    assert f"joined end to end: the second begins at byte {len(parts[first]):,}" in found.problem
    assert "llama-gguf-split --merge" in found.remedy
    path.write_bytes(parts[0] + b"no other file")  # what llama.cpp does not look at either
    assert len(read_gguf(path).tensors) == 1


def test_a_first_part_without_tensors_is_seen_to_be_joined(tools, tmp_path):
    first = tools.spec([tools.pair("split.count", 2, b"\2\0")], []).encode()
    (tmp_path / "x.gguf").write_bytes(first + tools.spec().encode())
    assert "joined end to end" in refused(tmp_path / "x.gguf").problem


@pytest.mark.parametrize("name", ["m.gguf-split-a", "m.gguf.part1of2", "m.gguf.part-a", "m.gguf.001", "m.gguf.aa"])
def test_pieces_of_a_file_are_to_be_joined_with_cat(tools, tmp_path, name):
    whole = tools.spec().encode()
    for piece in (whole[: len(whole) // 2], b"\x11" * 5000):
        (tmp_path / name).write_bytes(piece)
        assert "join all pieces" in refused(tmp_path / name).remedy


@pytest.mark.parametrize("name", ["m.gguf", "m-Q4_K_M.gguf", "part1.gguf"])
def test_what_is_no_piece_by_its_name(tools, tmp_path, name):
    (tmp_path / name).write_bytes(tools.spec().encode()[:-200])
    assert "cat" not in refused(tmp_path / name).remedy


def contents(tmp_path):
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("data.pkl", "x")
    safetensors = b'{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'
    np.save(tmp_path / "n.npy", np.zeros(3))
    legacy = struct.pack("<ii", 1, 21) + b"blk.0.ffn_down.weight" + struct.pack("<iiff", 1, 2, 1, 1)
    return {  # what is said: (the file, a word of what to do)
        "zip archive": ((tmp_path / "z").read_bytes(), "convert_hf_to_gguf.py"),
        "Python pickle": (b"\x80\x02\x8a\nl\xfc\x9cF", "convert_hf_to_gguf.py"),
        "GGML file from before": (b"lmgg" + bytes(99), "convert_llama_ggml_to_gguf.py"),
        "(GGMF)": (b"fmgg" + bytes(99), "convert_llama_ggml_to_gguf.py"),
        "(GGJT)": (b"tjgg" + bytes(99), "convert_llama_ggml_to_gguf.py"),
        "safetensors": (struct.pack("<Q", len(safetensors)) + safetensors + bytes(2), "convert_hf_to_gguf.py"),
        "NumPy": ((tmp_path / "n.npy").read_bytes(), "convert_hf_to_gguf.py"),
        "llamafile": (b"MZqFpD='\n", "unzip"),
        "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        "web page": (b"\n<!doctype HTML><html><title>Login</title>", "hf download"),
        "web page, ": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "hf download"),
        "'Entry not found'": (b"Entry not found", "hf download"),
        "Access to model x": (b"Access to model x is restricted and you are not in the list.", "hf download"),
        "Repository not found": (b'{"error":"Repository not found"}', "hf download"),
        "gzip": (gzip.compress(b"GGUF"), "Unpack"),
        "zstd": (b"\x28\xb5\x2f\xfd" + bytes(9), "Unpack"),
        "tar archive": (b"m.gguf".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"), "Unpack"),
        "zeros": (bytes(10_000), "Download it again"),
        "database": (b"SQLite format 3\0" + bytes(99), "--state"),
        "JSON": (b'{"format_version": 1}', "model itself"),
        "older kind": (legacy, "--imatrix"),
    }  # fmt: skip


def test_what_other_files_are(tmp_path):
    for what, (data, remedy) in contents(tmp_path).items():
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        found = refused(path)
        assert what in found.problem
        assert remedy in found.remedy
        if what == "older kind":
            continue
        found = refused(path, ImatrixError)
        assert what in found.problem
        assert "convert" not in found.remedy.lower()  # that would make a model of it


def written(path, architecture, tensors=("blk.0.attn_q.weight",), **texts):
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in texts.items():
        writer.add_string(key.replace("__", "."), value)
    for name in tensors:
        writer.add_tensor(name, np.zeros((2, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_else_a_gguf_may_hold(tmp_path):
    lora = written(tmp_path / "lora.gguf", "llama", general__type="adapter", adapter__type="lora")
    assert "a LoRA adapter, not a model" in refused(lora).problem
    assert "llama-export-lora" in refused(lora).remedy
    assert "a LoRA adapter, not an importance matrix" in refused(lora, ImatrixError).problem
    steering = written(tmp_path / "steer.gguf", "controlvector", ("direction.1",))
    assert "a control vector, not a model" in refused(steering).problem
    words = written(tmp_path / "vocab.gguf", "llama", ())
    assert "only a vocabulary" in refused(words).problem
    assert "a model, not an importance matrix" in refused(words, ImatrixError).problem
    encoder = written(tmp_path / "mmproj.gguf", "clip", general__type="mmproj")
    assert "encoder of a multimodal model, not an importance matrix" in refused(encoder, ImatrixError).problem
    with open_model(encoder) as model:  # llama-quantize quantizes these too
        assert model.architecture == "clip"


def test_types_of_others_are_named(make, tools):
    def of_type(number):
        return make("x y.gguf", tensors=[tools.info("a.weight", (256,), number, bytes(144))])

    assert "type 144 (iq4_ks), which only ik_llama.cpp has" in refused(of_type(144)).problem
    assert "import 'x y.gguf' --nearest" in refused(of_type(144)).remedy
    assert "q4_0, which llama.cpp rearranges" in refused(of_type(31)).remedy
    assert "fork" in refused(of_type(77)).remedy
    assert "damaged" in refused(of_type(2**31)).remedy


@pytest.mark.parametrize("rows", [1, 7])
def test_types_of_others_can_be_read_as_the_nearest(make, tools, rows):
    size = 4 + 136  # iq4_ks: a scale for the row, and 256 weights
    tensors = [
        tools.info("a.weight", (256, rows), 144, bytes(size * rows)),
        tools.info("b.weight", (256, 2), 12, bytes(288)),
        tools.info("c.weight", (288, rows), 133, bytes(9 * 26 * rows)),
    ]
    with open_model(make(tensors=tensors), nearest=True) as model:
        assert [tensor.format for tensor in model.tensors] == ["iq4_xs", "q4_K", "q5_1"]
        assert model.replaced == {"a.weight": "iq4_ks", "c.weight": "q6_0"}
    with pytest.raises(ModelError, match="ik_llama"):
        open_model(make(tensors=tensors))
    tensors[1] = tools.info("b.weight", (256, 2), 12, bytes(288), offset=2**40)
    with pytest.raises(ModelError, match="beyond the end"):
        open_model(make(tensors=tensors), nearest=True)


def test_directories(tmp_path, tools):
    assert "convert_hf_to_gguf.py" in refused(tmp_path).remedy
    (tmp_path / "m.gguf").write_bytes(tools.spec().encode())
    found = refused(tmp_path)
    assert "a directory" in found.problem
    assert "m.gguf" in found.remedy
