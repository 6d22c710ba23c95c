from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.errors import ImatrixError, ModelError, OutputError, RecipeError
from planner.formats.ggml import dequantize_rows, formats, quantize_rows
from planner.gguf import conversion, open_model, predicted_size, read_imatrix, requires_imatrix
from planner.gguf.quantize import Progress, quantize_model

HERE = Path(__file__).parents[1]
EXAMPLES = HERE.parent / "examples"
FAST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

EXPERTS, ROWS, WIDTH = 3, 5, 256


@pytest.mark.parametrize("golden", ["prose-8m-1.json", "prose-8m-2.json"])
def test_every_tensor_has_the_bytes_that_llama_quantize_wrote(tmp_path, golden):
    expected = json.loads((HERE / "golden" / golden).read_text())
    pins = {name: entry["type"] for name, entry in expected["tensors"].items() if entry["pin"]}
    imatrix = read_imatrix(EXAMPLES / expected["imatrix"])
    with open_model(EXAMPLES / expected["model"]) as model:
        written = quantize_model(model, pins, imatrix, tmp_path / "out.gguf", file_type=15)
    with open_model(tmp_path / "out.gguf") as out:
        assert set(out.by_name) == set(expected["tensors"])
        for name, entry in expected["tensors"].items():
            tensor = out[name]
            digest = hashlib.sha256(out.raw_rows(tensor)).hexdigest()
            assert (tensor.format.upper(), tensor.nbytes, digest) == (entry["type"], entry["bytes"], entry["sha256"])
    assert written.bytes == (tmp_path / "out.gguf").stat().st_size


def write_model(path, arrays, raw=None, **options):
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_name("a test")
    writer.add_file_type(1)
    for name, array in arrays.items():
        writer.add_tensor(name, array, raw_dtype=(raw or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_imatrix(path, values):
    """`values`: name → mean squares [experts, n]."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_array("imatrix.datasets", ["some text"])
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, array in values.items():
        writer.add_tensor(f"{name}.in_sum2", array * np.float32(4))
        writer.add_tensor(f"{name}.counts", np.full((len(array), 1), 4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(seed, *shape):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.05).astype(np.float32)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A mixture of experts of F16, F32 and BF16 tensors, and its imatrix (nothing for the output)."""
    folder = tmp_path_factory.mktemp("small")
    arrays = {
        "token_embd.weight": weights(1, 6, WIDTH).astype(np.float16),
        "output.weight": weights(2, 6, WIDTH),
        "output_norm.weight": weights(3, WIDTH),
        "blk.0.ffn_up_exps.weight": weights(4, EXPERTS, ROWS, WIDTH).astype(np.float16),
        "blk.10.attn_q.weight": weights(5, 7, WIDTH).view(np.uint16)[:, 1::2].copy().view(np.uint8),
        "blk.2.attn_q.weight": weights(6, 7, 96).astype(np.float16),
    }
    raw = {"blk.10.attn_q.weight": gguf.GGMLQuantizationType.BF16}
    rng = np.random.default_rng(7)
    values = {
        "blk.0.ffn_up_exps.weight": rng.random((EXPERTS, WIDTH), np.float32) + 0.01,
        "blk.10.attn_q.weight": rng.random((1, WIDTH), np.float32) + 0.01,
        "blk.2.attn_q.weight": rng.random((1, 96), np.float32) + 0.01,
    }
    return write_model(folder / "model.gguf", arrays, raw), write_imatrix(folder / "x.imatrix", values)


# no lookup tables that take seconds to build, except the cheapest
CHEAP = ("f16", "bf16", "f32", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl",
         "iq4_xs", "iq3_xxs")  # fmt: skip
QUANTIZABLE = ("token_embd.weight", "output.weight", "blk.0.ffn_up_exps.weight", "blk.10.attn_q.weight",
               "blk.2.attn_q.weight")  # fmt: skip


@FAST
@given(
    picks=st.lists(st.sampled_from(CHEAP), min_size=len(QUANTIZABLE), max_size=len(QUANTIZABLE)),
    with_imatrix=st.booleans(),
    threads=st.sampled_from([1, 2, 5]),
    chunk=st.sampled_from([1, WIDTH * 2, 1 << 18]),
)
def test_each_tensor_is_its_rows_through_the_kernel(small, tmp_path, monkeypatch, picks, with_imatrix, threads, chunk):
    monkeypatch.setattr(conversion, "_CHUNK", chunk)
    model = open_model(small[0])
    imatrix = read_imatrix(small[1]) if with_imatrix else None
    recipe, expected = {}, {}
    for tensor in model.tensors:
        expected[tensor.name] = tensor.format, model.raw_rows(tensor).tobytes()
    for name, pick in zip(QUANTIZABLE, picks, strict=True):
        tensor, fmt = model[name], formats()[pick]
        values = imatrix.weights(tensor) if imatrix else None
        if not fmt.fits(tensor.row_length) or (requires_imatrix(name, fmt) and values is None):
            continue
        recipe[name] = pick
        if pick != tensor.format:
            rows = model.rows(tensor).reshape(tensor.matrices, -1, tensor.row_length)
            parts = [
                quantize_rows(fmt, np.ascontiguousarray(rows[expert]), None if values is None else values[expert])
                for expert in range(tensor.matrices)
            ]
            expected[name] = pick, b"".join(part.tobytes() for part in parts)

    out = tmp_path / "out.gguf"
    seen: list[Progress] = []
    extra = [("planner.recipe", "a recipe")]
    written = quantize_model(
        model, recipe, imatrix, out, file_type=7, threads=threads, force=True, extra=extra, progress=seen.append
    )
    assert written.paths == (out,)
    chosen = {name: formats()[pick] for name, pick in recipe.items()}
    assert written.bytes == out.stat().st_size == predicted_size(model, chosen, imatrix, extra)
    with open_model(out) as result:
        found = {tensor.name: (tensor.format, result.raw_rows(tensor).tobytes()) for tensor in result.tensors}
        assert found == expected
        assert result.metadata["planner.recipe"] == "a recipe"
        assert ("quantize.imatrix.file" in result.metadata) == with_imatrix
    total = sum(tensor.nbytes for tensor in model.tensors)
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1].done == total == seen[-1].total
    assert {path.name for path in tmp_path.iterdir()} == {"out.gguf"}


def test_the_gguf_package_reads_what_we_write(small, tmp_path):
    with open_model(small[0]) as model:
        quantize_model(model, {"output.weight": "q8_0"}, None, tmp_path / "out.gguf", file_type=7)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.fields["general.name"].contents() == "a test"
    assert reader.fields["general.file_type"].contents() == 7
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "output.weight")
    restored = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    assert np.abs(restored - weights(2, 6, WIDTH)).max() < 0.002


def test_what_cannot_be_done_exactly_is_refused(small, tmp_path):
    model, imatrix = open_model(small[0]), read_imatrix(small[1])
    for recipe, used, message in (
        (
            {"blk.10.attn_k.weight": "q8_0"},
            None,
            r"no tensor blk.10.attn_k.weight.*\nDid you mean blk.10.attn_q.weight",
        ),
        ({"zzz": "q8_0"}, None, r"no tensor zzz.*\n.*another model"),
        ({"output.weight": "q4_k_m"}, None, r"output.weight: 'q4_k_m' is not a tensor type"),
        ({"output_norm.weight": "f16"}, None, "llama.cpp leaves it as it is"),
        ({"blk.2.attn_q.weight": "q4_K"}, None, "rows of 96 weights are no multiple of 256"),
        ({"blk.10.attn_q.weight": "iq3_xxs"}, None, "there is no imatrix"),
        ({"token_embd.weight": "iq2_xxs"}, imatrix, "the imatrix has no entry for it"),
    ):
        with pytest.raises(RecipeError, match=message) as caught:
            quantize_model(model, recipe, used, tmp_path / "out.gguf", file_type=7)
        assert caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_quantized_sources_need_consent(small, tmp_path):
    with open_model(small[0]) as model:
        quantize_model(model, {"output.weight": "q8_0"}, None, tmp_path / "q8.gguf", file_type=7)
    with open_model(tmp_path / "q8.gguf") as model:
        with pytest.raises(RecipeError, match=r"quantized already \(q8_0\)"):
            quantize_model(model, {"output.weight": "q4_0"}, None, tmp_path / "q4.gguf", file_type=2)
        quantize_model(model, {"output.weight": "q8_0"}, None, tmp_path / "same.gguf", file_type=7)
        quantize_model(model, {"output.weight": "q4_0"}, None, tmp_path / "q4.gguf", file_type=2, allow_requantize=True)
        rows = dequantize_rows(formats()["q8_0"], model.raw_rows(model["output.weight"]), WIDTH)
    with open_model(tmp_path / "q4.gguf") as model:
        expected = quantize_rows(formats()["q4_0"], rows, None)
        assert np.array_equal(model.raw_rows(model["output.weight"]), expected)
    assert (tmp_path / "same.gguf").read_bytes() == (tmp_path / "q8.gguf").read_bytes()


def test_the_imatrix_of_another_model(small, tmp_path):
    wrong = write_imatrix(tmp_path / "x", {"blk.10.attn_q.weight": np.ones((1, 128), np.float32)})
    with open_model(small[0]) as model, pytest.raises(ImatrixError, match="another model"):
        quantize_model(model, {"blk.10.attn_q.weight": "q8_0"}, read_imatrix(wrong), tmp_path / "out", file_type=7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("recipe", [{"a.weight": "q4_0"}, {}])
def test_weights_that_are_no_numbers(tmp_path, bad, kind, recipe):
    array = weights(1, 9, 64).astype(kind)
    array[7, 3] = bad
    path = write_model(tmp_path / "model.gguf", {"a.weight": array})
    with open_model(path) as model, pytest.raises(ModelError, match=r"model.gguf: a.weight holds NaN or infinite"):
        quantize_model(model, recipe, None, tmp_path / "out.gguf", file_type=2)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("wanted", ["f16", "q8_0", "q4_0"])
def test_weights_that_the_format_cannot_hold(tmp_path, wanted):
    array = weights(1, 3, 64)
    array[1, 3] = 3e7
    path = write_model(tmp_path / "model.gguf", {"a.weight": array})
    with open_model(path) as model, pytest.raises(ModelError, match=r"a.weight: weights too large"):
        quantize_model(model, {"a.weight": wanted}, None, tmp_path / "out.gguf", file_type=2)
    with open_model(path) as model:
        quantize_model(model, {"a.weight": "bf16"}, None, tmp_path / "out.gguf", file_type=32)


def test_outputs_that_cannot_be(small, tmp_path, monkeypatch):
    path, imatrix_path = small
    model, imatrix = open_model(path), read_imatrix(imatrix_path)
    out = tmp_path / "out.gguf"
    recipe = {"output.weight": "q8_0"}
    for destination in (path, imatrix_path):
        before = destination.read_bytes()
        with pytest.raises(OutputError, match="own input"):
            quantize_model(model, recipe, imatrix, destination, file_type=7, force=True)
        assert destination.read_bytes() == before
    out.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists already"):
        quantize_model(model, recipe, None, out, file_type=7)
    for error in (KeyboardInterrupt, RuntimeError):

        def stop(step, error=error):
            if step.done * 2 > step.total:
                raise error

        with pytest.raises(error):
            quantize_model(model, recipe, None, out, file_type=7, force=True, progress=stop)
        assert out.read_bytes() == b"precious"
        assert len(list(tmp_path.iterdir())) == 1
    quantize_model(model, recipe, None, out, file_type=7, force=True)
    assert out.read_bytes()[:4] == b"GGUF"


def test_shards_and_kept_splits(small, tmp_path):
    model = open_model(small[0])
    recipe = {"output.weight": "q8_0", "blk.0.ffn_up_exps.weight": "q4_K"}
    whole = quantize_model(model, recipe, None, tmp_path / "whole.gguf", file_type=7)
    shards = quantize_model(model, recipe, None, tmp_path / "cut.gguf", file_type=7, max_shard_size=6000)
    assert len(shards.paths) > 2
    assert [path.name for path in shards.paths] == [
        f"cut-{number + 1:05d}-of-{len(shards.paths):05d}.gguf" for number in range(len(shards.paths))
    ]
    assert max(path.stat().st_size for path in shards.paths) <= 6000
    assert shards.bytes == sum(path.stat().st_size for path in shards.paths)
    same = quantize_model(model, recipe, None, tmp_path / "fits.gguf", file_type=7, max_shard_size=whole.bytes)
    assert same.paths[0].read_bytes() == whole.paths[0].read_bytes()

    with open_model(whole.paths[0]) as one, open_model(shards.paths[0]) as cut:
        one_digest = one.digest
        assert cut.digest == one_digest
        for tensor in cut.tensors:
            assert np.array_equal(cut.raw_rows(tensor), one.raw_rows(one[tensor.name]))
        # Quantizing the split model again, to what it is: its parts, as they are but for the order of the keys
        kept = quantize_model(cut, {}, None, tmp_path / "kept.gguf", file_type=7, keep_split=True)
        assert kept.bytes == shards.bytes
        with open_model(kept.paths[0]) as again:
            assert [(t.name, t.part, t.offset) for t in again.tensors] == [
                (t.name, t.part, t.offset) for t in cut.tensors
            ]
        merged = quantize_model(cut, {}, None, tmp_path / "merged.gguf", file_type=7)
        assert merged.paths[0].read_bytes() == whole.paths[0].read_bytes()
        with pytest.raises(OutputError, match="own input"):
            quantize_model(cut, {}, None, shards.paths[1], file_type=7, force=True)
    (single,) = quantize_model(model, recipe, None, tmp_path / "one.gguf", file_type=7, keep_split=True).paths
    assert single.name == "one-00001-of-00001.gguf"
    with open_model(single) as numbered:  # and in the order of the source
        assert list(numbered.by_name) == list(model.by_name)
        assert numbered.digest == one_digest
