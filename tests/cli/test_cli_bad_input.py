"""Everything that can be wrong with what a command is given: one message with what to do, nothing half-written."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from planner.recipe import load_recipe
from state import Store
from tests.models import FEW, dense, experts, write_imatrix

SOLVE = ("--bpw", 5, "--types", FEW, "-t", 1)


def refused(result, *words, status=1):
    """The command failed as it should: its message says `words`, and what to do next."""
    assert result.status == status, result.text
    assert "Traceback" not in result.text
    assert "Internal error" not in result.text
    assert "bug" not in result.text
    flat = " ".join(result.err.split())  # lines are broken at 80 columns
    for word in words:
        assert word in flat, result.err
    message = re.split(r"(?m)^(?:Error|Usage):?", result.err)[-1].strip()
    assert message.count("\n") >= 1, f"nothing says what to do next: {message}"
    assert "\n\n" not in message


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def model(here):
    return dense(width=256, inner=256, vocabulary=64, blocks=1).write(here / "model.gguf")


@pytest.fixture
def matrix(model, here):
    return write_imatrix(model, here / "x.imatrix")


@pytest.fixture
def recipe(model, matrix, here, run):
    solved = run("solve", model, "--imatrix", matrix, *SOLVE)
    assert solved.status == 0, solved.text
    return here / "recipe.json"


# Models


def header(path):
    """Offsets in a model's file: of its tensor count, pair count, first tensor's dimensions."""
    data = path.read_bytes()
    name = data.index(b"token_embd.weight") + len(b"token_embd.weight")
    return data, name


def damaged(model, kind):
    data, at = header(model)
    change = {
        "half": lambda: data[: len(data) // 2],
        "in the header": lambda: data[:300],
        "empty": lambda: b"",
        "four bytes": lambda: b"GGUF",
        "other": lambda: b"PK\x03\x04" + data[4:],
        "text": lambda: b"not a model at all\n" * 20,
        "version": lambda: data[:4] + struct.pack("<I", 77) + data[8:],
        "tensors": lambda: data[:8] + struct.pack("<Q", 2**63) + data[16:],
        "pairs": lambda: data[:16] + struct.pack("<Q", 2**60) + data[24:],
        "key length": lambda: data[:24] + struct.pack("<Q", 2**62) + data[32:],
        "dimensions": lambda: data[:at] + struct.pack("<I", 2**31) + data[at + 4 :],
        "zero width": lambda: data[: at + 4] + struct.pack("<Q", 0) + data[at + 12 :],
        "huge width": lambda: data[: at + 4] + struct.pack("<Q", 2**62) + data[at + 12 :],
        "type": lambda: data[: at + 20] + struct.pack("<I", 12345) + data[at + 24 :],
        "offset": lambda: data[: at + 24] + struct.pack("<Q", 2**40) + data[at + 32 :],
        "big endian": lambda: data[:4] + struct.pack(">I", 3) + data[8:],
    }
    model.write_bytes(change[kind]())


@pytest.mark.parametrize(
    "kind",
    ["half", "in the header", "empty", "four bytes", "other", "text", "version", "tensors", "pairs", "key length",
     "dimensions", "zero width", "huge width", "type", "offset", "big endian"],
)  # fmt: skip
def test_damaged_models(kind, model, matrix, recipe, here, run):
    damaged(model, kind)
    before = files(here)
    for command in (
        ("measure", model, "--imatrix", matrix, "--state", "new.planner"),
        ("solve", model, "--imatrix", matrix, "--state", "new.planner", "-o", "new.json", *SOLVE),
        ("quantize", model, recipe, "out.gguf"),
    ):
        refused(run(*command), "model.gguf")
    assert files(here) == before


@pytest.mark.parametrize("path", ["nowhere.gguf", ".", "/dev/null"])
def test_models_that_are_no_files(path, recipe, here, run):
    before = files(here)
    refused(run("solve", path, "--no-imatrix", "--state", "new.planner", "-o", "new.json", *SOLVE), path)
    refused(run("quantize", path, recipe, "out.gguf"))
    assert files(here) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_no_model_and_nobody_waits_for_it(here, run):
    os.mkfifo(here / "pipe.gguf")
    refused(run("measure", "pipe.gguf"), "pipe.gguf")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["blk.0.ffn_up.weight", "token_embd.weight"])
def test_weights_that_are_no_numbers(bad, where, here, run):
    maker = dense(width=256, inner=256, vocabulary=64, blocks=1)
    maker.arrays[where][3, 7] = bad
    model = maker.write(here / "model.gguf")
    refused(run("solve", model, *SOLVE), where, "NaN")
    assert not (here / "recipe.json").exists()


def test_weights_too_large_to_square(here, run):
    maker = dense(width=256, inner=256, vocabulary=64, blocks=1)
    name = "blk.0.ffn_up.weight"
    maker.arrays[name] = maker.arrays[name].astype(np.float32)
    maker.arrays[name][3, 7] = 1e30
    refused(run("solve", maker.write(here / "model.gguf"), *SOLVE), name)
    assert not (here / "recipe.json").exists()


def test_rows_that_no_block_divides(here, run):
    maker = dense(width=256, inner=256, vocabulary=64, blocks=1)
    maker.matrix("blk.0.odd", 64, 72)
    model = maker.write(here / "model.gguf")
    solved = run("solve", model, *SOLVE)
    assert solved.status == 0, solved.text
    assert '"name": "blk.0.odd.weight", "format": "f16"' in (here / "recipe.json").read_text()
    refused(run("solve", model, *SOLVE, "--pin", "odd=q8_0"), "blk.0.odd.weight", "72", status=2)


def test_a_model_without_weights(here, run):
    maker = dense(width=256, inner=256, vocabulary=64, blocks=1)
    maker.arrays = {name: array for name, array in maker.arrays.items() if "norm" in name}
    refused(run("solve", maker.write(here / "model.gguf"), *SOLVE), "no tensors")


def test_types_that_no_tensor_can_take(here, run):
    narrow = dense(width=288, inner=160, vocabulary=64, blocks=1).write(here / "narrow.gguf")
    refused(run("solve", narrow, "--bpw", 8, "--types", "k"), "q4_K", "narrow.gguf", status=2)
    wide = dense(width=256, inner=256, vocabulary=64, blocks=1).write(here / "wide.gguf")
    refused(run("measure", wide, "--types", "iq2_xs"), "iq2_xs", "--imatrix", status=2)


def test_a_quantized_source(model, recipe, here, run):
    assert run("quantize", model, recipe, "small.gguf").status == 0
    refused(run("solve", "small.gguf", "--bpw", 3, "--types", FEW), "quantized already", "--allow-requantize")
    again = run("solve", "small.gguf", "--bpw", "4.6", "--types", FEW, "--allow-requantize", "-o", "again.json")
    assert again.status == 0, again.text
    refused(run("quantize", "small.gguf", "again.json", "smaller.gguf"), "quantized already")
    assert run("quantize", "small.gguf", "again.json", "smaller.gguf", "--allow-requantize").status == 0


# Importance matrices


def names_of(model):
    return [tensor.name for tensor in gguf.GGUFReader(model).tensors]


def test_an_imatrix_of_another_model(model, here, run):
    other = dense(width=512, inner=256, vocabulary=64, blocks=1).write(here / "other.gguf")
    wrong = write_imatrix(other, here / "wrong.imatrix")
    refused(run("solve", model, "--imatrix", wrong, *SOLVE), "wrong.imatrix", "another model")
    assert not (here / "recipe.json").exists()


def test_an_imatrix_of_a_model_with_names_of(model, here, run):
    other = experts().write(here / "other.gguf")
    same = [name for name in names_of(model) if name in names_of(other)]
    wrong = write_imatrix(other, here / "wrong.imatrix", skip=same)
    refused(run("solve", model, "--imatrix", wrong, *SOLVE), "wrong.imatrix")
    assert not (here / "recipe.json").exists()


def test_an_imatrix_that_lacks_tensors(model, here, run):
    lacking = write_imatrix(model, here / "x.imatrix", skip=["blk.0.ffn_down.weight", "output.weight"])
    solved = run("solve", model, "--imatrix", lacking, "--bpw", 6, "--types", f"{FEW},iq3_xxs", "--tolerance", 0.3)
    assert solved.status == 0, solved.text
    assert "ffn_down" in solved.out.split("By role")[1]
    refused(
        run("solve", model, "--imatrix", lacking, "--bpw", 6, "--types", FEW, "--pin", "ffn_down=iq3_xxs"),
        "blk.0.ffn_down.weight",
        status=2,
    )


def test_an_imatrix_with_no_counts(model, here, run):
    def idle(counts):
        return write_imatrix(model, here / "x.imatrix", counts={name: [0] for name in counts})

    every = names_of(model)
    solved = run("solve", model, "--imatrix", idle(["blk.0.attn_q.weight"]), *SOLVE)
    assert solved.status == 0, solved.text
    solved = run("solve", model, "--imatrix", idle(every), *SOLVE, "--state", "idle.planner")
    assert solved.status == 0, solved.text


def test_an_imatrix_with_zeros(model, here, run):
    """They are named where they matter, and no weights vanish for them."""

    def change(name, second, means):
        if name == "blk.0.attn_q.weight":
            second[:] = 0
        if name == "blk.0.ffn_down.weight":
            second[0, :128] = 0

    path = write_imatrix(model, here / "x.imatrix", change=change)
    words = (r"blk\.0\.attn_q\.weight +all 256\n", r"blk\.0\.ffn_down\.weight +128 of 256\n")
    arguments = ("--imatrix", path, "--bpw", 4, "--types", "q3_K,q4_K,q6_K,q4_0", "-t", 1, "--sensitivity", "structure")
    solved = run("solve", model, *arguments)
    written = run("quantize", model, "recipe.json", "out.gguf")
    for result, text in ((run("inspect", path), "out"), (solved, "err"), (written, "err")):
        assert result.status == 0, result.text
        for word in words:
            assert len(re.findall(word, getattr(result, text))) == 1, result.text
    assert "share a scale" in written.err
    assert "By role    1 tensors" in solved.out
    losses = {choice.name: choice.loss for choice in load_recipe(here / "recipe.json").tensors}
    assert all(loss > 0 for name, loss in losses.items() if "norm" not in name)
    whole, back = (
        {
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            for tensor in gguf.GGUFReader(file).tensors
        }
        for file in (model, here / "out.gguf")
    )
    for name, weights in whole.items():
        for part in (slice(0, 128), slice(128, None)):
            lost = np.square(back[name] - weights.astype(float))[..., part].sum()
            assert lost < 0.05 * np.square(weights.astype(float))[..., part].sum()
    ordinary = run("solve", model, "--imatrix", write_imatrix(model, here / "x.imatrix"), *SOLVE)
    assert "holds zeros" not in ordinary.text


@pytest.mark.parametrize("kind", ["half", "other", "model", "nan", "negative", "missing"])
def test_damaged_imatrices(kind, model, here, run):
    def spoil(name, second, means):
        if name == "blk.0.attn_q.weight":
            second[0, 0] = {"nan": np.nan, "negative": -1.0}.get(kind, 1.0)

    path = write_imatrix(model, here / "x.imatrix", change=spoil)
    if kind in ("half", "other"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if kind == "half" else b"hello")
    elif kind == "model":
        path = model
    elif kind == "missing":
        path.unlink()
    refused(run("solve", model, "--imatrix", path, *SOLVE), path.name)
    assert not (here / "recipe.json").exists()


def test_an_imatrix_that_is_gone(model, matrix, recipe, here, run):
    matrix.rename(here / "moved")
    refused(run("solve", model, *SOLVE), "x.imatrix", "--no-imatrix")
    refused(run("quantize", model, recipe, "out.gguf"), "x.imatrix", "--imatrix")
    assert run("quantize", model, recipe, "out.gguf", "--imatrix", "moved").status == 0
    assert run("solve", model, *SOLVE, "--no-imatrix").status == 0
    refused(run("solve", model, *SOLVE, "--no-imatrix", "--imatrix", "moved"), "exclude", status=2)


# Sizes, pins


@pytest.mark.parametrize(
    "arguments",
    [("--budget", "much"), ("--budget", "12XB"), ("--budget", "-5GB"), ("--budget", ""), ("--budget", "1e9"),
     ("--bpw", "nan"), ("--bpw", "0"), ("--bpw", "-4"), ("--bpw", "65"), ("--bpw", "4,5"), ("--bpw", "1/0"), (),
     ("--bpw", "4", "--budget", "1GB")],
)  # fmt: skip
def test_sizes_that_nobody_can_read(arguments, recipe, run, here):
    before = files(here)
    refused(run("solve", *arguments), status=2)
    assert files(here) == before


@pytest.mark.parametrize("arguments", [("--budget", "1KB"), ("--bpw", "0.1")])
def test_a_budget_below_the_minimum(arguments, recipe, here, run):
    before = files(here)
    result = run("solve", *arguments, "--pin", "attn_q=q8_0")
    refused(result, "below the minimum", "pins take", "leaves alone", "Raise --")
    # and the minimum that it names is one
    words = " ".join(result.err.split()).split("minimum of ")[1]
    least = words.split("(")[1].split(" ")[0] if arguments[0] == "--budget" else words.split(" ")[0]
    assert files(here) == before
    for value, status in ((least, 0), (str(int(least) - 1) if least.isdigit() else str(float(least) - 0.001), 1)):
        if not least.isdigit() and status == 0:
            value = str(float(least) + 0.0001)  # it is rounded
        assert run("solve", arguments[0], value, "--pin", "attn_q=q8_0", "-o", "new.json").status == status


@pytest.mark.parametrize("arguments", [("--budget", "1TB"), ("--bpw", "60")])
def test_a_budget_above_the_maximum(arguments, recipe, here, run):
    solved = run("solve", *arguments, "--pin", "=q4_K", "-o", "most.json")
    assert solved.status == 0, solved.text
    assert "It does not bind: nothing that may be chosen takes more." in solved.out
    assert set(load_recipe(here / "most.json").formats.values()) == {"q4_K", "f32"}
    bits = re.search(r"([\d.]+) bpw", solved.out)[1]
    assert run("solve", "--bpw", bits, "--pin", "=q4_K", "-o", "same.json").status == 0


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        (["ffn_dwon=q8_0"], ["no tensor", "Near names", "ffn_down"]),
        (["zzz=q8_0"], ["no tensor"]),
        (["ffn_down=q9_K"], ["q9_K", "Near names", "q6_K"]),
        (["ffn_down=Q4_K_M"], ["Q4_K_M"]),
        (["ffn_down"], ["REGEX=TYPE"]),
        (["ffn_(down=q8_0"], ["regular expression"]),
        (["ffn_down=q8_0", "blk.0.ffn=q4_K"], ["contradict", "blk.0.ffn_down.weight"]),
        (["attn_norm=q8_0"], ["blk.0.attn_norm.weight", "leaves"]),
        (["output=q6_K", "=q4_K"], ["contradict"]),
        (["ffn_down="], ["not a tensor type"]),
        (["ffn_down=q8_K"], ["q8_K"]),
    ],
)
def test_pins_that_cannot_be(pins, words, recipe, here, run):
    before = files(here)
    refused(run("solve", "--bpw", 6, *(word for pin in pins for word in ("--pin", pin))), *words, status=2)
    assert files(here) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--min", "q8_0", "--max", "q4_K"), ["No format", "q8_0", "q4_K"]),
        (("--min", "zzz=q4_K"), ["no tensor"]),
        (("--max", "q9"), ["q9"]),
        (("--types", "q4_K,nonsense"), ["nonsense"]),
        (("--types", ","), ["types"]),
        (("--types", "iq2_xs"), ["iq2_xs"]),
        (("--sensitivity", "structur"), []),
        (("--method", "magic"), ["magic"]),
        (("--frobnicate",), []),
        (("--imatrix", "x.imatrix"), ["model"]),
    ],
)
def test_options_that_cannot_be(arguments, words, recipe, here, run):
    before = files(here)
    result = run("solve", "--bpw", 6, *arguments)
    assert result.status == 2, result.text
    assert all(word in " ".join(result.err.split()) for word in words), result.err
    assert "Traceback" not in result.text
    assert "Internal" not in result.text
    assert files(here) == before


# State files


def test_no_state_or_several(here, run):
    refused(run("solve", "--bpw", 5), "no state file")
    (here / "a.planner").touch()
    (here / "b.planner").touch()
    refused(run("solve", "--bpw", 5), "a.planner", "b.planner", status=2)
    refused(run("solve", "--bpw", 5, "--state", "c.planner"), "c.planner")


def test_the_state_of_another_model(recipe, here, run):
    other = dense(width=256, inner=256, vocabulary=64, blocks=2).write(here / "other.gguf")
    before = (here / "model.planner").read_bytes()
    refused(run("solve", other, "--no-imatrix", "--state", "model.planner", *SOLVE), "another model")
    assert (here / "model.planner").read_bytes() == before


def test_a_state_of_a_newer_version(recipe, here, run):
    with sqlite3.connect(here / "model.planner") as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    before = files(here)
    refused(run("solve", "--bpw", 5, "-o", "new.json"), "newer")
    refused(run("solve", here / "model.gguf", *SOLVE, "-o", "new.json"), "newer")
    assert files(here) == before


@pytest.mark.parametrize("kind", ["text", "half", "zeros", "empty"])
def test_a_corrupt_state(kind, recipe, here, run):
    path = here / "model.planner"
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {"text": b"what?" * 99, "half": data[:middle], "zeros": data[:4096] + bytes(len(data) - 4096), "empty": b""}[
            kind
        ]
    )
    recipe.unlink()
    refused(run("solve", "--bpw", 5), "model.planner")
    assert not recipe.exists()


def test_a_locked_state(recipe, model, here, run):
    with Store.open(here / "model.planner", create=True):
        refused(run("solve", model, *SOLVE, "-o", "new.json"), "model.planner")
        assert not (here / "new.json").exists()
        assert run("solve", "--bpw", 5, "-o", "new.json").status == 0  # who only reads need not wait


def test_an_unfinished_state(model, matrix, here, run, monkeypatch):
    with Store.open(here / "model.planner", create=True):
        pass
    refused(run("solve", "--bpw", 5), "planner measure")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, where not even root can write")
def test_places_that_cannot_be_written(recipe, model, here, run):
    for command in (
        ("solve", "--bpw", 5, "-o", "nowhere/recipe.json"),
        ("solve", "--bpw", 5, "-o", "/proc/recipe.json"),
        ("quantize", model, recipe, "nowhere/out.gguf"),
        ("quantize", model, recipe, "/proc/out.gguf"),
        ("export", recipe, "--to", "llama-quantize", "-o", "nowhere/types.txt"),
        ("measure", model, "--state", "nowhere/x.planner"),
        ("measure", model, "--state", "/proc/x.planner"),
    ):
        refused(run(*command))


def test_directories_in_the_way(recipe, model, here, run):
    (here / "folder").mkdir()
    refused(run("solve", "--bpw", 5, "-o", "folder"), "folder")
    refused(run("quantize", model, recipe, "folder"), "folder")
    refused(run("quantize", model, recipe, "folder", "--force"), "folder")
    refused(run("measure", model, "--state", "folder"), "folder")
    refused(run("quantize", model, "folder", "out.gguf"), "folder")
    assert list((here / "folder").iterdir()) == []


# Recipes and outputs


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: "", []),
        (lambda text: text[:500], []),
        (lambda text: "[1, 2]", []),
        (lambda text: text.replace('"format_version": 1', '"format_version": 2'), ["format_version"]),
        (lambda text: text.replace('"seed"', '"sead"'), ["seed"]),
        (lambda text: text.replace("token_embd", "output"), ["twice"]),
        (lambda text: text.replace("token_embd", "token_emb"), ["token_emb.weight", "Did you mean token_embd.weight"]),
        (lambda text: text.replace('attn_q.weight", "format": "', 'attn_q.weight", "format": "x'), ["attn_q.weight"]),
        (lambda text: text.replace('attn_norm.weight", "format": "f32', 'attn_norm.weight", "format": "q8_0'),
         ["blk.0.attn_norm.weight"]),
        (lambda text: "[" * 100_000, []),
        (lambda text: "\0", []),
    ],
)  # fmt: skip
def test_recipes_that_are_none(edit, words, recipe, model, here, run):
    recipe.write_text(edit(recipe.read_text()))
    before = files(here)
    refused(run("quantize", model, recipe, "out.gguf"), *words)
    assert files(here) == before


def test_a_recipe_that_is_not_text(recipe, model, here, run):
    recipe.write_bytes(b"\xff\xfe\x00binary")
    refused(run("quantize", model, recipe, "out.gguf"), "recipe.json")
    refused(run("export", recipe, "--to", "llama-quantize"), "recipe.json")
    recipe.unlink()
    refused(run("quantize", model, recipe, "out.gguf"), "recipe.json")


def test_the_recipe_of_another_model_or_imatrix(recipe, model, here, run):
    other = dense(width=256, inner=256, vocabulary=64, blocks=2).write(here / "other.gguf")
    refused(run("quantize", other, recipe, "out.gguf"), "another model")
    wrong = write_imatrix(model, here / "wrong.imatrix", seed=1)
    refused(run("quantize", model, recipe, "out.gguf", "--imatrix", wrong), "wrong.imatrix", "not the imatrix")
    assert not (here / "out.gguf").exists()


def test_outputs_that_exist(recipe, model, matrix, here, run):
    out = here / "out.gguf"
    out.write_bytes(b"precious")
    before = files(here)
    refused(run("quantize", model, recipe, out), "out.gguf", "--force")
    for own in (model, matrix):
        refused(run("quantize", model, recipe, own, "--force"), "input")
    os.link(model, here / "link.gguf")
    refused(run("quantize", model, recipe, "link.gguf", "--force"), "input")
    (here / "link.gguf").unlink()
    assert files(here) == before
    assert run("quantize", model, recipe, out, "--force").status == 0
    assert out.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("size", ["0", "lots", "10"])
def test_shard_sizes(size, recipe, model, here, run):
    result = run("quantize", model, recipe, "out.gguf", "--max-shard-size", size)
    refused(result, status=result.status)
    assert result.status in (1, 2)
    assert not list(here.glob("out*"))


def test_a_disk_that_fills_up(recipe, model, here, run):
    resource = pytest.importorskip("resource")
    before = files(here)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # Python ignores SIGXFSZ: an error as of a full disk
    try:
        refused(run("quantize", model, recipe, "out.gguf"), "out.gguf", "--max-shard-size")
        refused(run("quantize", model, recipe, "recipe.json", "--force"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        refused(run("solve", "--bpw", 6), "recipe.json")
        refused(run("export", recipe, "--to", "llama-quantize", "-o", "types.txt"), "types.txt")
        refused(run("measure", model, "--types", "q5_K"), "model.planner")
        refused(run("measure", model, "--types", "q5_K", "--state", "new.planner"), "new.planner")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = files(here)
    assert {name: after[name] for name in before if name != "model.planner"} == {
        name: data for name, data in before.items() if name != "model.planner"
    }
    assert not [name for name in after if name.startswith(("out", ".out", ".recipe", "types", ".types"))]
    assert run("measure", model, "--types", "q5_K").status == 0
    assert run("solve", "--bpw", 6, "--state", "model.planner").status == 0


def test_a_disk_too_small_is_noticed_first(recipe, model, here, run, monkeypatch):
    usage = shutil.disk_usage(here)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    before = files(here)
    refused(run("quantize", model, recipe, "out.gguf"), "bytes are needed")
    assert files(here) == before


def test_names_that_would_drive_the_terminal(here, run):
    maker = dense(width=256, inner=256, vocabulary=64, blocks=1)
    maker.arrays["blk.0.\x1b[2Jevil.weight"] = np.full((4, 256), np.nan, np.float32)
    result = run("solve", maker.write(here / "model.gguf"), *SOLVE)
    refused(result, "evil")
    assert "\x1b" not in result.text
