"""`planner inspect`: what it says of real files, of damaged ones, and of files that nobody honest made."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from rich.cells import cell_len

from planner.cli import run
from state import Energies, Inventory, Measurement, Store, TensorRecord

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "prose-8m-f16.gguf"
IMATRIX = EXAMPLES / "prose-8m.imatrix.gguf"
SUMS = EXAMPLES / "prose-8m-sums.imatrix.gguf"
HOSTILE = "\x1b[2J\x1b]0;owned\x07 \x9b31m \u202egnp.exe\nError: fake\ttab"

Inspect = Callable[..., str]


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Inspect:
    """What the command prints; it must succeed, say nothing on stderr, and keep to 80 printable columns."""

    def call(*arguments: object, wide: bool = False) -> str:
        assert run(["inspect", *map(str, arguments)]) == 0, capsys.readouterr().err
        printed = capsys.readouterr()
        assert printed.err == ""
        for line in printed.out.splitlines():
            assert line.isprintable(), line
            assert wide or cell_len(line) <= 80 or line.startswith("Next: "), line  # commands are for copying
        return printed.out

    return call


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Exit status and message (on one line) of a command that must fail, with nothing on stdout."""

    def call(*arguments: object) -> tuple[int, str]:
        status = run(["inspect", *map(str, arguments)])
        printed = capsys.readouterr()
        assert status != 0
        assert printed.out == ""
        assert "bug in planner" not in printed.err
        assert all(line.isprintable() for line in printed.err.splitlines())
        return status, " ".join(printed.err.split())

    return call


def facts(text: str) -> Any:
    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=no_constant)


def write_model(
    path: Path, tensors: dict[str, np.ndarray[Any, Any]], pairs: Callable[[gguf.GGUFWriter], None] | None = None
) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if pairs is not None:
        pairs(writer)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ordinary(rows: int = 8, width: int = 64, kind: type = np.float16) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(0, 0.02, (rows, width)).astype(kind)


def write_legacy(
    path: Path, entries: list[tuple[bytes, int, int]], trailer: bytes = b"", zeros: int | None = None
) -> Path:
    """Of zeros alone, or of so many and then ones."""
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        numbers = np.ones(values, "<f4")
        numbers[:zeros] = 0
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, values) + numbers.tobytes()
    path.write_bytes(data + trailer)
    return path


def write_imatrix(path: Path, counts: np.ndarray[Any, Any], dataset: str = "text.txt") -> Path:
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for block in range(2):
        name = f"blk.{block}.ffn_down_exps.weight"
        writer.add_tensor(f"{name}.in_sum2", np.ones((len(counts), 64), np.float32))
        writer.add_tensor(f"{name}.counts", counts.astype(np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_recipe(path: Path, **changes: Any) -> Path:
    recipe: dict[str, Any] = {
        "planner": "0.1.0", "ggml": "0.20.2", "sensitivity": "structure", "seed": 0, "tolerance": 0.05,
        "model": {"name": "Prose", "architecture": "llama", "digest": "ab" * 32, "path": "prose.gguf"},
        "imatrix": None, "budget": "4.5 bpw", "size": 4_853_376, "bpw": 4.5, "loss": 0.03, "bound": 0.029,
        "status": "optimal", "file_type": 30,
        "tensors": [
            {"name": "blk.0.attn_q.weight", "format": "q4_K", "bytes": 800, "err": 0.01, "loss": 0.03, "why": "solved"},
            {"name": "blk.0.attn_norm.weight", "format": "f32", "bytes": 64, "err": 0, "loss": 0,
             "why": "left alone: a vector"},
        ],
    }  # fmt: skip
    path.write_text(json.dumps(recipe | changes))
    return path


def make_state(path: Path, *, name: str = "Prose", finished: bool = True) -> Path:
    names = [f"blk.{block}.attn_q.weight" for block in range(3)]
    tensors = [TensorRecord(name=tensor, shape=(256, 64), source_format="f16", elements=16384, nbytes=32768,
                            row_length=256, left_alone=None) for tensor in names]  # fmt: skip
    narrow = TensorRecord(name="blk.0.ssm_in.weight", shape=(96, 64), source_format="f16", elements=6144, nbytes=12288,
                          row_length=96, left_alone=None)  # fmt: skip
    records = [
        Measurement(key=f"{number:08x}", tensor=tensor, format=fmt, err_var=0.004 * (1 + block), err_mean=0.0,
                    err_massive=0.0, stderr=0.0, stderr_massive=0.0, rows=8, kernel_seconds=1.25,
                    made_with="ggml 0.20.2")
        for number, (block, tensor, fmt) in enumerate((b, t, f) for b, t in enumerate(names) for f in ("q4_K", "q8_0"))
    ]  # fmt: skip
    with Store.open(path, create=True) as store:
        store.set_inventory(
            Inventory(model_name=name, architecture="llama", model_digest="ab" * 32, model_path=f"{name}.gguf",
                      header_bytes=4096, alignment=32, imatrix_name=None, imatrix_digest=None, has_means=False,
                      metadata={"sampling.seed": 7}, tensors=(*tensors, narrow))
        )  # fmt: skip
        store.add(records[:5], [Energies(key="ab" * 8, tensor=names[0], content_digest="cd" * 32, values={})])
        if finished:
            store.select([record.key for record in records[:4]])
    return path


# Models


def test_the_bundled_model(inspect: Inspect) -> None:
    text = inspect(MODEL)
    assert re.search(r"^Kind +llama, 8 blocks", text, re.M)
    assert re.search(rf"^Size +{MODEL.stat().st_size:,} bytes", text, re.M)
    assert re.search(r"^attn_k +8 +256×128 +524\.29 kB +16\.00 +3\.1 % +f16$", text, re.M)
    assert re.search(r"^all +75 .*f16\*58 f32\*17$", text, re.M)
    assert re.search(r"^ +general\.file_type += 1 \(F16\)$", text, re.M)
    assert re.search(r'^ +tokenizer\.ggml\.tokens += 4,096 strings: "<\|endoftext\|>", ("[^"]*", )*…$', text, re.M)
    roles = re.findall(r"^(\S+) .*(?:f16|f32)$", text, re.M)
    assert roles[-1] == "output_norm"  # the smallest
    assert roles.index("ffn_up") < roles.index("output") < roles.index("attn_q")
    assert "Warning" not in text
    assert "blk.0" not in text


def test_roles_add_up_to_the_file(inspect: Inspect) -> None:
    found = facts(inspect("--json", MODEL, wide=True))
    assert sum(role["bytes"] for role in found["roles"]) == sum(tensor["bytes"] for tensor in found["tensors"])
    assert sum(role["tensors"] for role in found["roles"]) == len(found["tensors"]) == 75
    assert sum(role["share"] for role in found["roles"]) == pytest.approx(1)
    assert found["bytes"] == MODEL.stat().st_size


def test_every_tensor_is_listed_when_asked(inspect: Inspect) -> None:
    text = inspect("--tensors", MODEL)
    assert re.search(r"^blk\.3\.ffn_down\.weight +768×256 +f16 +393,216 +\d+ subnormal$", text, re.M)
    assert re.search(r"^output_norm\.weight +256 +f32 +1,024 +left alone: a vector$", text, re.M)


def test_no_scan_reads_no_values(inspect: Inspect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.gguf.tensor_health", lambda *_: pytest.fail("values were read"))
    assert "not read" in inspect("--no-scan", MODEL)
    found = facts(inspect("--no-scan", "--json", MODEL, wide=True))
    assert not found["scanned"]
    assert found["tensors"][0]["values"] is None


def test_parts_of_a_split_model_are_one_model(inspect: Inspect, refuse: Callable[..., tuple[int, str]],
                                              tmp_path: Path) -> None:  # fmt: skip
    paths = [tmp_path / f"m-{number:05d}-of-00002.gguf" for number in (1, 2)]
    for number, path in enumerate(paths):

        def pairs(writer: gguf.GGUFWriter, number: int = number) -> None:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 2)
            writer.add_int32("split.tensors.count", 2)

        write_model(path, {f"blk.{number}.ffn_up.weight": ordinary()}, pairs)
    found = facts(inspect("--json", paths[0], wide=True))
    assert found["files"] == [path.name for path in paths]
    assert found["bytes"] == sum(path.stat().st_size for path in paths)
    assert "1 more part" in " ".join(inspect(paths[0]).split())
    status, message = refuse(paths[1])
    assert status == 1
    assert paths[0].name in message


def damaged(kind: type, value: float) -> np.ndarray[Any, Any]:
    data = ordinary(kind=kind)
    data[1, 2] = value
    return data


@pytest.mark.parametrize(
    ("data", "name", "warning"),
    [
        (damaged(np.float16, np.nan), "ffn_up.weight", "NaN or infinite"),
        (damaged(np.float16, -np.inf), "ffn_up.weight", "NaN or infinite"),
        (damaged(np.float16, 65504), "ffn_up.weight", "what it clipped"),
        (damaged(np.float16, -65504), "ffn_up.weight", "what it clipped"),
        (damaged(np.float16, 65472), "ffn_up.weight", None),
        (damaged(np.float32, 1e6), "ffn_up.weight", "Keep them as F32"),
        (damaged(np.float32, 1e30)[0], "rope_freqs.weight", None),
        (damaged(np.float32, 1e30)[1], "rope_freqs.weight", None),  # stays F32, whatever is done with the model
        (damaged(np.float32, np.inf)[1], "rope_freqs.weight", "NaN or infinite"),
        ((ordinary(kind=np.float32) * 1e-4).astype(np.float16), "ffn_up.weight", "More than half of the values"),
        (ordinary(kind=np.float32) * np.float32(1e-4), "ffn_up.weight", "below F16's normal range"),
        ((ordinary(kind=np.float32) * 1e-1).astype(np.float16), "ffn_up.weight", None),
        (np.zeros((8, 64), np.float16), "ffn_up.weight", None),
    ],
)  # fmt: skip
def test_what_conversion_to_f16_did_is_warned_of(
    inspect: Inspect, tmp_path: Path, data: np.ndarray[Any, Any], name: str, warning: str | None
) -> None:
    path = write_model(tmp_path / "m.gguf", {"blk.0.attn_q.weight": ordinary(), f"blk.1.{name}": data})
    text = inspect(path)
    found = facts(inspect("--json", path, wide=True))["warnings"]
    if warning is None:
        assert "Warning" not in text
        assert found == []
    else:
        assert warning in " ".join(text.split())
        assert len(found) == 1
        assert f"1 tensor (blk.1.{name})" in found[0]


def test_damaged_values_are_counted_by_tensor(inspect: Inspect, tmp_path: Path) -> None:
    data = ordinary()
    data[0, :5], data[1, :3], data[2, :2], data[3, 0] = 65504, np.inf, np.nan, 1e-6
    text = inspect(write_model(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": data, "blk.1.ffn_up.weight": ordinary()}))
    counted = re.search(r"^blk\.0\.ffn_up\.weight +f16 +2 +3 +5 +(\d+) ", text, re.M)
    assert counted
    assert int(counted[1]) == np.count_nonzero((data != 0) & (np.abs(data) < 2**-14))
    assert not re.search(r"^blk\.1", text, re.M)


def test_quantized_tensors_are_not_looked_at(inspect: Inspect, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((4, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text = inspect(tmp_path / "q.gguf")
    assert re.search(r"^ffn_up +1 +32×4 +136 bytes +8\.50 +100\.0 % +q8_0$", text, re.M)
    assert "not looked at" in text


def test_metadata_that_attacks_the_terminal(inspect: Inspect, tmp_path: Path) -> None:
    def pairs(writer: gguf.GGUFWriter) -> None:
        writer.add_name(HOSTILE)
        writer.add_string("evil.text", HOSTILE * 50)
        writer.add_array("evil.words", [HOSTILE, "", "\u0301" * 5000, "漢字" * 200])
        writer.add_array("evil.none", [])
        writer.add_float32("evil.nan", float("nan"))
        writer.add_string("a" * 300, "漢字" * 200)

    path = write_model(tmp_path / "m.gguf", {"blk.0.漢字漢字漢字漢字漢字.weight": ordinary()}, pairs)
    text = inspect(path, "--tensors")
    assert r"\x1b[2J" in text
    assert "evil.nan" in text
    assert facts(inspect(path, "--json", wide=True))["metadata"]["evil.nan"]["value"] == "nan"


# Importance matrices


def test_the_bundled_imatrix_files(inspect: Inspect) -> None:
    text = inspect(IMATRIX)
    assert re.search(r"^Chunks +452 of 256 tokens: 115,712$", text, re.M)
    assert re.search(r"^Sums +no", text, re.M)
    assert re.search(r"^Sums +yes", inspect(SUMS), re.M)
    assert re.search(r"^ffn_down +8 +768 +115,712$", text, re.M)


def test_coverage_of_its_own_model(inspect: Inspect) -> None:
    text = inspect(IMATRIX, "--model", MODEL)
    assert re.search(r"^Coverage +56 of the 58 tensors", text, re.M)
    assert re.search(r"^Missing +token_embd, output$", text, re.M)
    assert "Warning" not in text
    found = facts(inspect("--json", IMATRIX, "--model", MODEL, wide=True))["coverage"]
    assert found["missing"] == ["token_embd.weight", "output.weight"]
    assert found["belongs"]


def test_coverage_of_another_model(inspect: Inspect, tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "m.gguf", {"blk.0.ffn_up.weight": ordinary(width=32), "blk.9.ffn_up.weight": ordinary()}
    )
    text = " ".join(inspect(IMATRIX, "--model", path).split())
    assert "Warning this is the imatrix of another model" in text
    assert "Coverage 0 of the 2 tensors" in text
    assert "Mismatched ffn_up: has 256 values and needs 32" in text
    assert "Unused attn_k*8," in text


def test_experts_that_nothing_activated(inspect: Inspect, tmp_path: Path) -> None:
    path = write_imatrix(tmp_path / "i.gguf", np.array([100, 0, 7, 0]))
    text = inspect(path, "--tensors")
    assert re.search(r"^ffn_down_exps +2 +64 +0–100 +4 +4 of 8 \(50 %\)$", text, re.M)
    assert re.search(r"^ +blk\.1\.ffn_down_exps\.weight +2 of 4 +1, 3$", text, re.M)
    model = write_model(tmp_path / "m.gguf", {"blk.0.ffn_down_exps.weight": np.ones((4, 8, 64), np.float16)})
    found = facts(inspect("--json", path, "--model", model, wide=True))["coverage"]
    assert found["never_activated"] == {"blk.0.ffn_down_exps.weight": [1, 3]}
    assert found["unused"] == ["blk.1.ffn_down_exps.weight"]


def test_channels_that_nothing_reached(inspect: Inspect, tmp_path: Path) -> None:
    path = write_imatrix(tmp_path / "i.gguf", np.array([100, 1, 7, 9]))
    assert "holds zeros" not in inspect(path)
    path = write_legacy(
        tmp_path / "i.dat", [(b"blk.%d.attn_q.weight" % number, 1, 64) for number in range(20)], zeros=3
    )
    text = inspect(path)
    assert len(re.findall(r"^  blk\.\d+\.attn_q\.weight +3 of 64$", text, re.M)) == 12
    assert "  and 8 more tensors: attn_q*8" in text
    found = facts(inspect("--json", path, wide=True))["entries"]
    assert {entry["unseen"] for entry in found} == {3}


def test_a_legacy_imatrix_is_known_by_its_layout(inspect: Inspect, tmp_path: Path) -> None:
    trailer = struct.pack("<ii", 40, 8) + b"wiki.txt"
    path = write_legacy(tmp_path / "model.gguf", [(b"blk.0.attn_q.weight", 40, 64)], trailer)
    text = inspect(path)
    assert "legacy" in text
    assert "wiki.txt" in text
    assert re.search(r"^attn_q +1 +64 +40$", text, re.M)


def test_a_legacy_imatrix_of_123_entries_is_no_recipe(inspect: Inspect, tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "i.dat", [(b"blk.%d.attn_q.weight" % number, 1, 4) for number in range(123)])
    assert path.read_bytes()[:1] == b"{"
    assert re.search(r"^Entries +123$", inspect(path), re.M)


def test_names_in_an_imatrix_that_attack_the_terminal(inspect: Inspect, tmp_path: Path) -> None:
    legacy = write_legacy(tmp_path / "i.dat", [(b"first", 1, 4), (HOSTILE.encode(), 0, 4), (b"\xff\x1b[m", 0, 4)])
    assert r"\x1b[2J" in inspect(legacy, "--tensors")
    assert r"\x1b[2J" in inspect(write_imatrix(tmp_path / "i.gguf", np.array([1, 0]), HOSTILE), "--tensors")
    assert facts(inspect("--json", legacy, wide=True))["entries"][1]["name"] == HOSTILE


# State files and recipes


def test_a_finished_state(inspect: Inspect, tmp_path: Path) -> None:
    text = inspect(make_state(tmp_path / "model.gguf"), "--tensors")
    assert re.search(r"^Measured +5 measurements, 6 s of kernels, with ggml 0\.20\.2$", text, re.M)
    assert re.search(r"^Finished +yes: 4 measurements to solve from, 1 more of other", text, re.M)
    # rows of 96 hold no q4_K
    assert re.search(r"^q4_K +4\.5 +2 of 3 +0\.6 % +0\.8 % +2\.5 s$", text, re.M)
    assert re.search(r"^q8_0 +8\.5 +2 of 4 ", text, re.M)
    assert re.search(r"^blk\.0\.attn_q\.weight +all 2 formats$", text, re.M)
    assert re.search(r"^blk\.2\.attn_q\.weight +nothing yet$", text, re.M)
    assert "Next: planner solve --state" in text


def test_an_unfinished_state_says_how_to_go_on(inspect: Inspect, tmp_path: Path) -> None:
    path = make_state(tmp_path / "s.planner", finished=False)
    text = inspect(path)
    assert re.search(r"^Finished +no", text, re.M)
    assert re.search(r"^q4_K +4\.5 +3 of 3 ", text, re.M)
    assert "Next: planner measure Prose.gguf --state" in text
    assert not facts(inspect(path, "--json", wide=True))["finished"]


def test_a_state_that_is_being_written_can_be_inspected(inspect: Inspect, tmp_path: Path) -> None:
    path = make_state(tmp_path / "s.planner")
    with Store.open(path):
        assert "Finished" in inspect(path)


def test_a_state_without_a_model(inspect: Inspect, tmp_path: Path) -> None:
    Store.open(tmp_path / "s.planner", create=True).close()
    assert "none yet" in inspect(tmp_path / "s.planner")


def test_a_damaged_state(refuse: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    path = make_state(tmp_path / "s.planner")
    data = bytearray(path.read_bytes())
    data[4096 : len(data) // 2] = bytes(len(data) // 2 - 4096)
    path.write_bytes(data)
    status, message = refuse(path)
    assert status == 1
    assert "damaged" in message


def test_a_database_of_another_program(refuse: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    assert "another program" in refuse(tmp_path / "other.db")[1]


def test_a_recipe(inspect: Inspect, tmp_path: Path) -> None:
    text = inspect(make_recipe(tmp_path / "recipe.json"), "--tensors")
    assert re.search(r"^Budget +4\.5 bpw$", text, re.M)
    assert re.search(r"^attn_q +1 +800 bytes +100\.0 % +q4_K$", text, re.M)
    assert re.search(r"^Tensors +1 solved\n +1 left alone: a vector$", text, re.M)
    assert "4,853,376 bytes" in text


def test_names_in_state_and_recipe_that_attack_the_terminal(inspect: Inspect, tmp_path: Path) -> None:
    state = make_state(tmp_path / "s.planner", name=HOSTILE)
    assert r"\x1b[2J" in inspect(state, "--tensors", wide=True)
    choice = {"name": HOSTILE, "format": HOSTILE, "bytes": 1, "err": 1e300, "loss": 1, "why": HOSTILE * 9}
    model = {"name": HOSTILE, "architecture": HOSTILE, "digest": HOSTILE, "path": HOSTILE}
    same = dict.fromkeys(("planner", "ggml", "sensitivity", "budget", "status"), HOSTILE)
    recipe = make_recipe(tmp_path / "r.json", model=model, tensors=[choice], loss=1e308, **same)
    assert r"\x1b[2J" in inspect(recipe, "--tensors", wide=True)
    assert facts(inspect(recipe, "--json", wide=True))["loss"] == 1e308


# What is none of these


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(50), "zip archive"),
        (struct.pack("<Q", 2) + b"{}" + bytes(20), "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"# Readme\n", "nothing that planner knows"),
        (b"\0" * 100, "nothing but zeros"),
        (b"\1\0" * 50, "nothing that planner knows"),
        (b"\x05\0\0\0", "nothing that planner knows"),
        (b"\x1b[2J\x1b[31mboo", "nothing that planner knows"),
        (b"GGUF", "the version needs 4 bytes"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1), "claims"),
        (b"SQLite format 3\0" + bytes(500), ""),
        (b'{"format_version": 1}', "is not a recipe"),
        (b"\xef\xbb\xbf  {nonsense", "is not a recipe"),
        (b"[1, 2]", "nothing that planner knows"),
        (struct.pack("<ii", 3, 11) + b"blk.0.x.wei" + struct.pack("<ii", 1, 10**9), "cut short"),
    ],
)
def test_other_files_are_refused(
    refuse: Callable[..., tuple[int, str]], tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    assert said in refuse(path)[1]


def test_what_cannot_be_opened(refuse: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    assert refuse(tmp_path / "none")[0] == 2
    assert "No such file" in refuse(tmp_path / "none")[1]
    shutil.copy(IMATRIX, tmp_path / "a.gguf")
    status, message = refuse(tmp_path)
    assert status == 2
    assert "is a directory" in message
    assert str(tmp_path / "a.gguf") in message
    assert "not a regular file" in refuse(Path(os.devnull))[1]


def test_options_that_do_not_go_with_the_file(refuse: Callable[..., tuple[int, str]]) -> None:
    assert refuse(MODEL, "--model", MODEL)[0] == 2
    status, message = refuse(IMATRIX, "--no-scan")
    assert status == 2
    assert "is an imatrix" in message
    assert refuse(IMATRIX, "--model", IMATRIX)[0] == 1


def test_a_truncated_model(refuse: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    data = MODEL.read_bytes()
    for size in (5, 100, 60_000, len(data) - 100):
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        assert refuse(tmp_path / "cut.gguf")[0] == 1
