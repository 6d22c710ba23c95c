"""Records to fill a state with, and Python programs to run beside the tests."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from state import Energies, Inventory, Measurement, Pass, Store, TensorRecord

ROOT = Path(__file__).parents[2]


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def make_measurement(number: int = 0, **changes: object) -> Measurement:
    values: dict[str, object] = {
        "key": digest("measurement", number),
        "tensor": f"blk.{number // 4}.ffn_down.weight",
        "format": ("q4_K", "q6_K", "iq2_xs", "q8_0")[number % 4],
        "err_var": 0.1 / (number + 1),
        "err_mean": 1e-3 / (number + 3),
        "err_massive": 0.0,
        "stderr": 1e-5 * number,
        "stderr_massive": 0.0,
        "rows": 16,
        "kernel_seconds": 0.25,
        "made_with": "planner 0.1, ggml 0.20.2",
    }
    return Measurement(**(values | changes))  # type: ignore[arg-type]


def make_energies(number: int = 0, **changes: object) -> Energies:
    values: dict[str, object] = {
        "key": digest("energies", number),
        "tensor": f"blk.{number}.ffn_down.weight",
        "content_digest": digest("content", number),
        "gaps_version": 1 if number == 2 else None,
        "values": {"own": 1.0 / (number + 3), "massive": 0.0},
    }
    return Energies(**(values | changes))  # type: ignore[arg-type]


def one_pass(number: int = 0, **changes: object) -> Pass:
    tensor = f"blk.{number}.ffn_down.weight"
    values: dict[str, object] = {
        "key": digest("pass", number),
        "subject": digest("subject"),
        "label": tensor,
        "formats": {tensor: "q3_K"},
        "errors": {tensor: (0.01, 0.002 / (number + 3), 0.0)},
        "kld": 0.1 / (number + 7),
        "stderr": 1e-4,
        "tokens": 4096,
        "seconds": 1.5,
    }
    return Pass(**(values | changes))  # type: ignore[arg-type]


def make_inventory(**changes: object) -> Inventory:
    tensors = (
        TensorRecord(
            name="token_embd.weight",
            shape=(64, 512),
            source_format="f16",
            elements=32768,
            nbytes=65536,
            row_length=64,
            left_alone=None,
        ),
        TensorRecord(
            name="output_norm.weight",
            shape=(64,),
            source_format="f32",
            elements=64,
            nbytes=256,
            row_length=64,
            left_alone="one-dimensional",
        ),
    )
    values: dict[str, object] = {
        "model_name": "Prose 8M",
        "architecture": "llama",
        "model_digest": digest("model"),
        "model_path": "/models/prose-8m-f16.gguf",
        "header_bytes": 4096,
        "alignment": 32,
        "imatrix_name": "prose-8m.imatrix.gguf",
        "imatrix_digest": digest("imatrix"),
        "has_means": True,
        "metadata": {"block_count": 8, "rope.freq_base": 1e4, "scaled": False, "file_type": "F16", "big": 2**64 - 1},
        "tensors": tensors,
    }
    return Inventory(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def measurement() -> Callable[..., Measurement]:
    return make_measurement


@pytest.fixture
def energies() -> Callable[..., Energies]:
    return make_energies


@pytest.fixture
def make_pass() -> Callable[..., Pass]:
    return one_pass


@pytest.fixture
def inventory() -> Callable[..., Inventory]:
    return make_inventory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prose.planner"


@pytest.fixture
def filled(path: Path) -> Path:
    """A closed state with something of everything."""
    with Store.open(path, create=True) as store:
        store.set_inventory(make_inventory())
        store.add(map(make_measurement, range(40)), map(make_energies, range(10)))
        store.add_passes(map(one_pass, range(5)))
        store.select([make_measurement(number).key for number in range(20)] + [make_energies().key])
    return path


class Programs:
    """Starts Python programs that see the project, and the helpers of this file as `conftest`."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def start(self, source: str, *arguments: object) -> subprocess.Popen[str]:
        paths = [str(ROOT), str(Path(__file__).parent)]
        program = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{source}", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(program)
        return program

    def run(self, source: str, *arguments: object) -> str:
        """What the program prints; its errors fail the test."""
        out, err = self.start(source, *arguments).communicate(timeout=120)
        assert not err, err
        return out


@pytest.fixture
def programs() -> Iterator[Programs]:
    programs = Programs()
    yield programs
    for program in programs.running:
        program.kill()
        program.communicate()
