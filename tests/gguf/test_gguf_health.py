from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.gguf import Health, open_model, tensor_health
from planner.gguf import health as health_module
from planner.gguf.health import all_finite

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = {"f32": (0, 32), "f16": (1, 16), "bf16": (30, 16)}

# where the counts change, from both sides
EDGES = [
    0, 1, 2**-24, 2**-14, 2**-14 - 2**-24, 2**-15, 6.0e-5, 2**-126, 2**-127, 2**-149, 65503, 65504, 65505, 65280,
    65536, 65519.99, 1e30, np.inf, np.nan,
]  # fmt: skip


def numbers(bits, kind):
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one, of which numpy warns
        if kind == "bf16":
            return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return bits.view(np.float16 if kind == "f16" else np.float32).astype(np.float64)


def expected(values, kind):
    size = np.abs(values)
    smallest = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126}[kind]
    return Health(
        elements=values.size,
        nan=int(np.isnan(values).sum()),
        inf=int(np.isinf(values).sum()),
        clipped=int((np.isfinite(values) & (size >= 65504)).sum()),
        subnormal=int(((size > 0) & (size < smallest)).sum()),
        below_f16=int(((size > 0) & (size < 2.0**-14)).sum()),
    )


@pytest.mark.parametrize("kind", KINDS)
@FAST
@given(data=st.data(), width=st.integers(1, 5))
def test_counts_are_those_of_the_numbers(make, tools, monkeypatch, kind, data, width):
    monkeypatch.setattr(health_module, "_CHUNK", 7)
    number, size = KINDS[kind]
    bits = data.draw(st.lists(st.integers(0, 2**size - 1), min_size=width, max_size=40))
    bits = np.array(bits[: len(bits) // width * width], f"<u{size // 8}")
    path = make(tensors=[tools.info("x", (width, bits.size // width), number, bits.tobytes())])
    seen = []
    with open_model(path) as model:
        tensor = model["x"]
        values = numbers(bits, kind)
        assert tensor_health(model, tensor, seen.append) == expected(values, kind)
        assert all_finite(model.raw_rows(tensor), kind) == np.isfinite(values).all()
        assert sum(seen) == tensor.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_edges(make, tools, kind):
    values = np.array(EDGES + [-edge for edge in EDGES])
    if kind == "f16":
        with np.errstate(over="ignore"):
            bits = values.astype(np.float16).view("<u2")
    else:
        bits = values.astype(np.float32).view("<u4")
        if kind == "bf16":
            bits = (bits >> 16).astype("<u2")
    path = make(tensors=[tools.info("x", (bits.size,), KINDS[kind][0], bits.tobytes())])
    model = open_model(path)
    found = tensor_health(model, model["x"])
    assert found == expected(numbers(bits, kind), kind)
    assert found.clipped
    assert found.nan
    assert found.inf
    assert found.subnormal
    assert not found.is_sound


def test_sound_and_not_looked_at(make, tools):
    model = open_model(make(tensors=[tools.info("x", (4, 2)), tools.info("q", (32, 2), 8, bytes(68))]))
    assert tensor_health(model, model["x"]) == Health(8, 0, 0, 0, 0, 0)
    assert tensor_health(model, model["x"]).is_sound
    assert tensor_health(model, model["q"]) is None
