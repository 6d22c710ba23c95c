"""ik_llama.cpp's types: what is said of them without its library, and with it, what its kernels make of rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planner.errors import KernelError, UsageError
from planner.formats.ggml import (
    FOREIGN,
    FORMAT_SETS,
    IK_SETS,
    IK_TYPES,
    TYPES,
    dequantize_rows,
    file_types,
    format_by_id,
    formats,
    ik_formats,
    load_ik,
    native_formats,
    quantize_rows,
    rows_are_valid,
    types_of_dialect,
)
from planner.formats.ggml.foreign import _BITS
from planner.formats.ggml.library import load
from planner.formats.registry import FAMILIES, all_formats, family_named, family_of, kernel_of, round_trip
from planner.gguf import fallback, requires_imatrix
from tests.conftest import forget_types

FAMILY = family_named("ik_llama")
QUICK = ("iq2_kl", "iq3_ks", "iq4_ks", "iq4_k", "iq5_ks", "iq5_k", "q6_0")  # half a second for 30,000 weights
FAST = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def at(monkeypatch):
    """Set where the library is to be looked for."""

    def look(where):
        monkeypatch.setenv("PLANNER_GGML_IK", str(where))
        forget_types()

    yield look
    monkeypatch.undo()
    forget_types()


def test_rows_of_the_table_are_of_types_that_files_have():
    numbers = {foreign.name: number for number, foreign in FOREIGN.items()}
    assert set(IK_TYPES) <= set(numbers)
    assert not set(IK_TYPES) & set(TYPES)
    for row in IK_TYPES.values():
        assert row.weights
        assert row.fallback is None or row.fallback in TYPES or row.fallback in IK_TYPES
        assert set(row.sets) <= set(IK_SETS)
        assert file_types()[row.file_type] == row.name.upper()
        assert row.name in types_of_dialect("ik_llama") & types_of_dialect("gguf-tool-suite")
    assert len({row.file_type for row in IK_TYPES.values()}) == len(IK_TYPES)


def test_sets_are_those_of_ggml_and_its_own():
    assert set(IK_SETS) == {*FORMAT_SETS, "ik", "kt"}
    for name, types in FORMAT_SETS.items():
        assert IK_SETS[name] == types or name == "all"
    assert IK_SETS["all"] == (*FORMAT_SETS["all"], *IK_SETS["ik"])
    assert {*IK_SETS["ik"], *IK_SETS["kt"]} == set(IK_TYPES)


def test_without_the_library_there_are_no_types_and_messages_say_what_to_set():
    assert load_ik() is None
    assert not ik_formats()
    assert formats().keys() == native_formats().keys()
    assert family_of(["q4_K", "IQ4_KS"]) == "ik_llama"  # by name
    for ask in (lambda: FAMILY.choose("all"), lambda: FAMILY.named("iq4_ks"), lambda: FAMILY.formats):
        with pytest.raises(UsageError, match="PLANNER_GGML_IK names none") as caught:
            ask()
        assert "docs/formats.md" in caught.value.remedy
    with pytest.raises(UsageError, match=r"iq4_ks is a format of ik_llama\.cpp") as caught:
        family_named("gguf").named("IQ4_KS")
    assert "--family ik_llama" in caught.value.remedy


def test_the_page_has_a_row_for_each_type():
    page = (Path(__file__).parents[3] / "docs/formats.md").read_text(encoding="utf-8")
    for row in IK_TYPES.values():
        assert f"| `{row.name}` | {_BITS[row.name]:g} |" in page
        assert f"| {', '.join(row.sets)} |\n" in page.partition(f"| `{row.name}` |")[2][:40]


def test_a_command_says_so_too(run, example):
    done = run("measure", example.model, "--no-imatrix", "--family", "ik_llama", "--state", "never.planner")
    assert done.status == 2
    assert "PLANNER_GGML_IK names none" in " ".join(done.err.split())
    assert not Path("never.planner").exists()


def test_what_is_no_library_of_ik_llama_cpp_is_refused(at, tmp_path):
    at(tmp_path / "none.so")
    with pytest.raises(KernelError, match="which is not a file"):
        load_ik()
    text = tmp_path / "libggml.so"
    text.write_text("no library")
    at(text)
    with pytest.raises(KernelError, match=r"not a ggml library of ik_llama\.cpp") as caught:
        formats()
    assert "PLANNER_GGML_IK" in caught.value.remedy
    at(load().path)  # llama.cpp's
    with pytest.raises(KernelError, match="ggml_internal_get_type_traits"):
        load_ik()


# from here on with the library


def normal(seed, *shape, scale=0.05):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def there_and_back(name, rows, weights=None):
    return dequantize_rows(formats()[name], quantize_rows(formats()[name], rows, weights), rows.shape[1])


def test_the_library_has_what_the_tables_say(ik_library):
    assert set(IK_TYPES) <= set(ik_formats())
    assert formats().keys() == {*native_formats(), *ik_formats()}
    for fmt in ik_formats().values():
        assert FOREIGN[fmt.id].name == fmt.name
        assert format_by_id(fmt.id) is all_formats()[fmt.name] is fmt
        assert fmt.bpw == _BITS[fmt.name.lower()]
        assert fmt.for_weights == (fmt.name in IK_TYPES)
        assert fmt.row_bytes(512) == fmt.row_header + 512 * fmt.block_bytes // fmt.block
    headers = {name: fmt.row_header for name, fmt in ik_formats().items() if fmt.row_header and fmt.for_weights}
    assert headers == {
        **dict.fromkeys(("iq2_ks", "iq3_ks", "iq2_kl"), 2),
        **dict.fromkeys(("iq4_ks", "iq4_kss", "iq5_ks", "iq1_kt", "iq2_kt", "iq3_kt", "iq4_kt"), 4),
    }


def test_the_family_has_ggml_s_types_and_its_own(ik_library):
    assert {name for name, fmt in FAMILY.formats.items() if fmt.for_weights} == types_of_dialect("ik_llama")
    names = [fmt.name for fmt in FAMILY.choose("all")]
    assert set(names) == set(IK_SETS["all"])
    assert {fmt.name for fmt in FAMILY.choose("kt,iq4_k,q8_0")} == {*IK_SETS["kt"], "iq4_k", "q8_0"}
    assert FAMILY.formats["q4_K"] is family_named("gguf").formats["q4_K"]  # measured once for both
    assert kernel_of(formats()["q4_K"]) != kernel_of(formats()["iq4_k"]) == ("ik_llama.cpp", load_ik().digest)
    with pytest.raises(UsageError, match="nvfp4"):
        FAMILY.named("nvfp4")
    assert "iq4_k" not in family_named("gguf").formats
    assert list(FAMILIES) == ["gguf", "ik_llama", "mlx"]


def test_rows_that_blocks_do_not_fill(ik_library):
    assert {name: fallback(formats()[name], 32).name for name in ("iq4_ks", "iq4_k", "iq5_k", "iq6_k")} == {
        "iq4_ks": "iq4_nl", "iq4_k": "q5_0", "iq5_k": "q6_0", "iq6_k": "q8_0",
    }  # fmt: skip
    assert [name for name in IK_TYPES if requires_imatrix("blk.0.ffn_up.weight", formats()[name])] == [
        "iq1_kt", "iq2_kt",
    ]  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_are_independent_and_near(name, weighted, ik_library):
    fmt, rows = formats()[name], normal(1, 8, 512)
    weights = np.random.default_rng(2).lognormal(0, 1, 512).astype(np.float32) if weighted else None
    whole = quantize_rows(fmt, rows, weights)
    assert whole.shape == (8, fmt.row_bytes(512))
    assert rows_are_valid(fmt, whole)
    assert np.array_equal(quantize_rows(fmt, rows[3:5].copy(), weights), whole[3:5])
    back = dequantize_rows(fmt, whole, 512)
    assert np.array_equal(dequantize_rows(fmt, whole[::2], 512), back[::2])
    assert np.array_equal(round_trip(fmt, rows, weights), back)
    lost = np.square(back - rows).sum() / np.square(rows).sum()
    assert lost < 4 * 0.25**fmt.bpw * (2 if weighted else 1)  # 6 dB a bit


def test_its_types_lose_less_than_ggml_s_of_their_size(ik_library):
    rows = normal(4, 16, 512)
    for name, other in (("iq4_ks", "iq4_xs"), ("iq4_k", "q4_K"), ("iq5_k", "q5_K"), ("iq3_k", "q3_K")):
        assert formats()[name].bpw <= formats()[other].bpw
        lost, others = (np.square(there_and_back(kind, rows) - rows).sum() for kind in (name, other))
        assert lost < others


def test_no_rows_and_zeros(ik_library):
    for name in QUICK:
        fmt = formats()[name]
        nothing = quantize_rows(fmt, np.zeros((0, 256), np.float32))
        assert dequantize_rows(fmt, nothing, 256).shape == (0, 256)
        assert not there_and_back(name, np.zeros((2, 256), np.float32)).any()


@pytest.mark.parametrize("name", [*QUICK, "iq2_k", "iq3_k", "iq6_k"])
def test_no_stretch_of_zeros_makes_weights_vanish(name, ik_library):
    rows = normal(5, 4, 768)
    for here in (slice(0, 16), slice(32, 64), slice(256, 512), slice(500, 768), slice(0, 768)):
        weights = np.random.default_rng(6).lognormal(0, 1, 768).astype(np.float32)
        weights[here] = 0
        lost = np.square(there_and_back(name, rows, weights) - rows)[:, here].sum() / np.square(rows[:, here]).sum()
        assert lost < 0.3, here


@pytest.mark.parametrize("name", QUICK)
@FAST
@given(
    rows=arrays(np.float32, (2, 256), elements=st.floats(-1e6, 1e6, width=32)),
    weights=arrays(np.float32, 256, elements=st.floats(0, 1e6, width=32)),
)
def test_whatever_is_let_through_comes_back(name, ik_library, rows, weights):
    data = quantize_rows(formats()[name], rows, weights)
    assert not np.isnan(dequantize_rows(formats()[name], data, 256)).any()


@pytest.mark.parametrize(("name", "sound"), [("q6_0", False), ("iq2_k", False), ("iq4_ks", True), ("iq5_ks", True)])
def test_scales_that_half_floats_cannot_hold_are_noticed(name, sound, ik_library):
    """The library itself takes any bytes of its types for sound. Scales of whole rows are floats."""
    fmt, rows = formats()[name], normal(8, 2, 512)
    assert rows_are_valid(fmt, quantize_rows(fmt, rows[:0]))
    assert rows_are_valid(fmt, quantize_rows(fmt, rows))
    assert rows_are_valid(fmt, quantize_rows(fmt, rows * np.float32(3e8))) == sound


def test_products_that_overflow_do_not_reach_the_kernels(ik_library):
    """That of iq4_kss ends the process when it finds no best code."""
    for scale in (1e10, 1e18):
        with pytest.raises(KernelError, match="overflow"):
            quantize_rows(formats()["iq4_kss"], normal(8, 2, 512, scale=scale))


def test_types_that_the_kernels_cannot_make_do_not_reach_them(ik_library):
    for name in ("q8_KV", "iq2_bn"):
        with pytest.raises(ValueError, match="not a format"):
            quantize_rows(formats()[name], np.zeros((1, 256), np.float32))
    assert not [name for name in formats() if name.endswith(("_r4", "_r8", "_r16"))]


def test_llama_cpp_keeps_its_own_library_beside_it(ik_library, example):
    """Both have functions of the same names."""
    pytest.importorskip("llama_cpp")
    script = f"""
from pathlib import Path
import numpy as np
from planner.formats.ggml import formats, quantize_rows
from planner.llama.engine import Engine
rows = np.ones((1, 256), np.float32)
before = quantize_rows(formats()["iq4_k"], rows)
with Engine(Path({str(example.model)!r}), context=8, threads=1) as engine:
    for _ in engine.windows(np.zeros((1, 8), np.int32), first=7):
        pass
assert (quantize_rows(formats()["iq4_k"], rows) == before).all()
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=False,
                          env={"PLANNER_GGML_IK": str(ik_library), "PYTHONPATH": str(root)})  # fmt: skip
    assert done.returncode == 0, done.stderr
