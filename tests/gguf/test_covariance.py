"""Files of covariances: what is written is read, added up as the activations would be, and refused where it is none."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import CovarianceError, OutputError, PlannerError
from planner.gguf import Tensor, read_imatrix
from planner.gguf.covariance import Covariances, Input, triangle
from planner.gguf.covariance_writer import CovarianceFile, merge_covariances
from planner.gguf.products import Part, Products, correlations
from planner.gguf.sums import Sums, TensorSums, merge_imatrices

F16 = 2.0**-11  # of a correlation, the most that rounding to f16 changes


def tensor(name: str, width: int, matrices: int = 1) -> Tensor:
    return Tensor(name, (width, 5, matrices) if matrices > 1 else (width, 5), "f16", 0, 0, 10 * width * matrices)


def products(rows: np.ndarray) -> Products:
    """The sums of products of rows, which come in batches."""
    made = Products(rows.shape[1])
    for batch in np.array_split(rows, 3):
        for add in made.additions(np.ascontiguousarray(batch, np.float32)):
            add()
    return made


def rows_of(rng: np.random.Generator, tokens: int, width: int) -> np.ndarray:
    """Activations that hang together, and a channel that is never reached."""
    rows = rng.normal(size=(tokens, width)) @ rng.normal(size=(width, width)) * rng.lognormal(0, 2, width)
    rows[:, rng.integers(width)] *= rng.integers(2)
    return rows.astype(np.float32)


def sums_of(rows: dict[str, list[np.ndarray]], experts: dict[str, int]) -> Sums:
    """The importance matrix of rows: tensor → those of each matrix."""
    sums = Sums(16, datasets=["x"])
    for name, own in rows.items():
        count = experts.get(name, 1)
        counts = [len(each) for each in own] if count > 1 else [len(own[0])]
        square = np.concatenate([np.square(each, dtype=np.float32).sum(0) for each in own])
        sums.tensors[name] = TensorSums(square, np.concatenate([each.sum(0) for each in own]), np.array(counts))
    return sums


class Made:
    """A file of one plain input that two tensors read, and one of three experts, each with rows of its own; `rows`:
    input → those of each matrix."""

    def __init__(self, path: Path, rng: np.random.Generator, width: int = 5, narrow: int = 4) -> None:
        plain, own = rows_of(rng, int(rng.integers(3, 40)), width), [int(rng.integers(0, 9)) for _ in range(3)]
        own[0] += 1
        self.rows = {"a": [plain], "down": [rows_of(rng, tokens, narrow) for tokens in own]}
        self.path, self.width, self.narrow = path, width, narrow
        self.sums = sums_of({"a": [plain], "b": [plain], "down": self.rows["down"]}, {"down": 3})
        self.inputs = [Input("a", ("a", "b"), width, 1), Input("down", ("down",), narrow, 3)]
        with CovarianceFile(path.with_suffix(".part"), self.sums, self.inputs) as file:
            for one in self.inputs:
                own_rows = self.rows[one.name]
                parts = [products(each).part() for each in own_rows]
                file.put(one, [[part] for part in parts], parts, [len(each) for each in own_rows])
            file.finish(self.sums, path)
            self.nbytes = file.nbytes


def close_to(found: np.ndarray, rows: np.ndarray, diagonal: np.ndarray, factor: np.ndarray | float = 1.0) -> None:
    """`found` is the covariance of `rows`, off-diagonals times `factor`, to the precision of f16 correlations."""
    rows = rows.astype(np.float64)
    expected = rows.T @ rows / max(1, len(rows))
    roots = np.sqrt(np.outer(diagonal, diagonal).astype(np.float64))
    off = ~np.eye(len(diagonal), dtype=bool)
    assert np.abs(found - expected * factor)[off].max(initial=0) <= (2 * F16 * roots)[off].max(initial=0) + 1e-30


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 300))
def test_products_are_those_of_a_matrix_product(seed, width):
    rng = np.random.default_rng(seed)
    rows = rows_of(rng, 50, width)
    part = products(rows).part()
    exact = rows.T.astype(np.float64) @ rows
    roots = np.sqrt(np.diag(exact))
    np.testing.assert_allclose(part.diagonal, np.diag(exact), rtol=1e-5, atol=1e-30)
    for row, (right, found) in enumerate(zip(part.rows(), correlations([part]), strict=False)):
        expected = exact[row, row + 1 :]
        scale = roots[row] * roots[row + 1 :]
        np.testing.assert_array_less(np.abs(right - expected), 1e-5 * scale + 1e-20)
        reached = scale > 0
        np.testing.assert_array_less(
            np.abs(found[reached] - (expected / np.where(reached, scale, 1))[reached]), 2 * F16
        )
        assert not found[~reached].any()


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_what_is_written_is_read(tmp_path_factory, seed):
    made = Made(tmp_path_factory.mktemp("made") / "c.gguf", np.random.default_rng(seed), width=1 + seed % 7)
    assert made.path.stat().st_size == made.nbytes
    imatrix = read_imatrix(made.path)
    with Covariances.open(made.path) as file:
        assert file.imatrix.digest == imatrix.digest
        for name in "ab":
            plain = tensor(name, made.width)
            found = file.matrix(plain)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, found.T)
            np.testing.assert_array_equal(np.diag(found), imatrix.weights(plain)[0])
            close_to(found, made.rows["a"][0], np.diag(found))
            assert file.tokens(plain) == len(made.rows["a"][0])
        down = tensor("down", made.narrow, 3)
        pooled = np.concatenate(made.rows["down"])
        for matrix, own in enumerate(made.rows["down"]):
            found = file.matrix(down, matrix)
            assert file.tokens(down, matrix) == len(own)
            if len(own):
                np.testing.assert_array_equal(np.diag(found), imatrix.weights(down)[matrix])
            else:
                close_to(found, pooled, np.diag(found))
                np.testing.assert_allclose(np.diag(found), np.square(pooled).mean(0), rtol=1e-5)
        assert file.matrix(tensor("unknown", 4)) is None
        assert file.tokens(tensor("unknown", 4)) == 0
        with pytest.raises(IndexError):
            file.matrix(down, 3)


def test_experts_lean_on_all_by_how_little_they_saw(tmp_path):
    made = Made(tmp_path / "c.gguf", np.random.default_rng(3))
    pooled = correlation_of(made.rows["down"])
    with Covariances.open(made.path) as file:
        for matrix, own in enumerate(made.rows["down"]):
            found = file.matrix(tensor("down", made.narrow, 3), matrix)
            weight = len(own) / (len(own) + made.narrow)
            alone = correlation_of([own]) if len(own) else pooled
            roots = np.sqrt(np.diag(found))
            expected = (weight * alone + (1 - weight) * pooled) * np.outer(roots, roots)
            np.testing.assert_allclose(found, expected, atol=3 * F16 * float(roots.max()) ** 2)


def correlation_of(parts: list[np.ndarray]) -> np.ndarray:
    rows = np.concatenate(parts).astype(np.float64)
    total = rows.T @ rows
    roots = np.sqrt(np.diag(total))
    inverse = np.divide(1, roots, out=np.zeros_like(roots), where=roots > 0)
    return total * np.outer(inverse, inverse)


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_sums_of_files_are_those_of_all_their_rows(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("merge")
    rng = np.random.default_rng(seed)
    made = [Made(folder / f"{number}.gguf", rng) for number in range(2)]
    with Covariances.open(made[0].path) as first, Covariances.open(made[1].path) as second:
        files = [first, second]
        merge_covariances(files, merge_imatrices([file.imatrix for file in files]), folder / "both.gguf")
        merge_covariances([first], merge_imatrices([first.imatrix]), folder / "one.gguf")
    assert (folder / "one.gguf").read_bytes() == made[0].path.read_bytes()
    with Covariances.open(folder / "both.gguf") as both:
        found = both.matrix(tensor("a", 5))
        assert both.tokens(tensor("a", 5)) == sum(len(each.rows["a"][0]) for each in made)
        close_to(found, np.concatenate([each.rows["a"][0] for each in made]), np.diag(found))
        everything = [np.concatenate([each.rows["down"][matrix] for each in made]) for matrix in range(3)]
        for matrix, own in enumerate(everything):
            weight = len(own) / (len(own) + 4)
            expected = weight * correlation_of([own]) + (1 - weight) * correlation_of(everything)
            found = both.matrix(tensor("down", 4, 3), matrix)
            roots = np.sqrt(np.diag(found))
            np.testing.assert_allclose(found, expected * np.outer(roots, roots), atol=4 * F16 * float(roots.max()) ** 2)
    assert sorted(path.name for path in folder.iterdir()) == ["0.gguf", "1.gguf", "both.gguf", "one.gguf"]


def test_files_of_other_models_are_not_added(tmp_path):
    rng = np.random.default_rng(0)
    one, other = Made(tmp_path / "1.gguf", rng), Made(tmp_path / "2.gguf", rng, width=6)
    with Covariances.open(one.path) as first, Covariances.open(other.path) as second:
        with pytest.raises(CovarianceError, match="another model: a has 6 channels"):
            merge_covariances([first, second], one.sums, tmp_path / "x.gguf")
        with pytest.raises(CovarianceError, match=r"another model: a has 5 channels and 1 matrices there"):
            first.covers(tensor("a", 6))
        with pytest.raises(CovarianceError, match="another model: down"):
            first.matrix(tensor("down", 4, 2))
    assert not (tmp_path / "x.gguf").exists()


def other_metadata(path: Path, change: dict[str, object], drop: str = "", values: dict[str, np.ndarray] | None = None):
    """The file written again with other pairs and without one of its tensors."""
    reader, copy = gguf.GGUFReader(path), path.with_name("changed.gguf")
    writer = gguf.GGUFWriter(copy, "x")
    writer.kv_data[0].clear()
    for name, entry in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        value = change.get(name, entry.contents())
        if value is not None:
            writer.add_key_value(name, value, entry.types[0], entry.types[1] if len(entry.types) > 1 else None)
    for each in reader.tensors:
        if each.name != drop:
            writer.add_tensor(each.name, (values or {}).get(each.name, each.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy


@pytest.mark.parametrize(
    ("change", "drop", "words"),
    [
        ({"general.type": "imatrix"}, "", "an importance matrix without covariances"),
        ({"covariance.version": 2}, "", "covariance.version is 2"),
        ({"covariance.inputs": ["a", "a"]}, "", "not lists of the same length"),
        ({"covariance.tensors": ["a", "a", "down"]}, "", "names a tensor twice"),
        ({"covariance.inputs": ["a", "c", "down"]}, "", r"c\.corr_tokens is missing"),
        ({"covariance.inputs": ["a", "down", "down"]}, "", "b has 5 mean squares, and its input down 4"),
        ({"covariance.tensors": ["a", "c", "down"]}, "", "c has 0 mean squares"),
        ({"covariance.tensors": None}, "", "not lists"),
        ({}, "a.corr_tokens", r"a\.corr_tokens is missing"),
        ({}, "down.corr_all", "the correlations of down are not"),
        ({}, "down.corr", "down has 12 mean squares|correlations of down"),
        ({}, "b.counts", "b has only"),
    ],
)
def test_what_does_not_agree_is_refused(tmp_path, change, drop, words):
    made = Made(tmp_path / "c.gguf", np.random.default_rng(1))
    with pytest.raises(PlannerError, match=words):
        Covariances.open(other_metadata(made.path, change, drop))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.001, -2])
def test_what_is_no_correlation_is_refused(tmp_path, value):
    made = Made(tmp_path / "c.gguf", np.random.default_rng(1))
    values = np.zeros((3, triangle(4)), np.float16)
    values[1, 2] = value
    with Covariances.open(other_metadata(made.path, {}, values={"down.corr": values})) as file:
        file.matrix(tensor("down", 4, 3), 0)
        with pytest.raises(CovarianceError, match="no correlations"):
            file.matrix(tensor("down", 4, 3), 1)
    tokens = np.array([[np.nan]], np.float32)
    with pytest.raises(CovarianceError, match="no count"):
        Covariances.open(other_metadata(made.path, {}, values={"a.corr_tokens": tokens}))


def test_a_file_that_was_cut_is_refused(tmp_path):
    made = Made(tmp_path / "c.gguf", np.random.default_rng(1))
    whole = made.path.read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 40):
        made.path.write_bytes(whole[:length])
        with pytest.raises(PlannerError):
            Covariances.open(made.path)
    made.path.write_bytes(whole[:8] + struct.pack("<Q", 1 << 60) + whole[16:])
    with pytest.raises(CovarianceError, match="header claims"):
        Covariances.open(made.path)


def test_other_files_are_named(tmp_path, example):
    with pytest.raises(CovarianceError, match="an importance matrix without covariances"):
        Covariances.open(example.sums)
    with pytest.raises(CovarianceError, match="a model, not covariances"):
        Covariances.open(example.model)
    (tmp_path / "x").write_text("text")
    with pytest.raises(CovarianceError, match="not a GGUF file"):
        Covariances.open(tmp_path / "x")


def test_a_disk_without_room_is_told_before(tmp_path):
    """A file beyond what the system allows takes no room, and leaves nothing."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        sums = sums_of({"a": [np.ones((2, 400), np.float32)]}, {})
        with pytest.raises(OutputError, match="cannot be written"):
            CovarianceFile(tmp_path / "c.part", sums, [Input("a", ("a",), 400, 1)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.iterdir())


def test_parts_keep_their_weights():
    """Correlations of sums, not sums of correlations."""
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(5, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(500, 6))
    parts = [products(few).part(), products(many).part()]
    stored = np.concatenate(list(correlations(parts[:1])))
    again = Part.of_correlations(parts[0].diagonal, stored)
    found = np.concatenate(list(correlations([again, parts[1]])))
    expected = correlation_of([few, many])[np.triu_indices(6, 1)]
    np.testing.assert_allclose(found, expected, atol=2 * F16)
