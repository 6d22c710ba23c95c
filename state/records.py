"""Records of a state file, one a row. All are frozen, and none holds NaN or infinities."""

from __future__ import annotations

from math import prod
from typing import Annotated, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "COVARIANCE",
    "HEADLESS",
    "LONGEST_NAME",
    "Energies",
    "Inventory",
    "Measurement",
    "Pass",
    "Summary",
    "TensorRecord",
]

LONGEST_NAME = 4096
COVARIANCE = "rounding.covariance", "rounding.digest", "rounding.shrinkage"
"""Metadata of an inventory: path and digest of the covariances that errors were taken by, and their shrinkage."""


HEADLESS = "drafts.header_bytes"
"""Metadata of an inventory: bytes of the header of a file without the model's draft heads."""


def _printable(value: object) -> object:
    """Replace what is not UTF-8 (lone surrogates, from file names), which no database text can hold, and cut the rest:
    a model may be called anything."""
    return value.encode("utf-8", "replace").decode()[:LONGEST_NAME] if isinstance(value, str) else value


def _unsigned_zero(value: float) -> float:
    return value + 0.0  # SQLite stores -0.0 as 0.0; so what is read equals what was written, to the last bit


Key = Annotated[str, Field(pattern="^[0-9a-f]{8,128}$")]  # a hex digest
Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Label = Annotated[Name, BeforeValidator(_printable)]  # for people; nothing is looked up by it
Count = Annotated[int, Field(ge=0, lt=2**63)]  # what an SQLite integer holds
Positive = Annotated[Count, Field(gt=0)]
Real = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_unsigned_zero)]
Spread = Annotated[Real, Field(ge=0)]
Scalar = bool | Annotated[int, Field(ge=-(2**63), lt=2**64)] | Real | Name


class _Record(BaseModel):
    # defer_build: a validator is built when first used, not while a command starts.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class TensorRecord(_Record):
    """One tensor of the model, as it is stored there. `left_alone` says why it is never quantized, else None."""

    name: Name
    shape: tuple[Positive, ...]
    source_format: Name
    elements: Positive
    nbytes: Count
    row_length: Positive
    left_alone: Name | None

    @model_validator(mode="after")
    def _as_shaped(self) -> Self:
        if not self.shape or self.row_length != self.shape[0] or self.elements != prod(self.shape):
            raise ValueError("a tensor's elements are not those of its shape")
        return self


class Inventory(_Record):
    """The model that the measurements are of, with all that a plan needs of it when the model is not at hand.

    `model_digest` is its identity; `model_path` is only where it was last seen.
    """

    model_name: Label
    architecture: Name
    model_digest: Key
    model_path: Label
    header_bytes: Count
    alignment: Annotated[Positive, Field(lt=2**32)]
    imatrix_name: Label | None
    imatrix_digest: Key | None
    has_means: bool
    metadata: dict[Name, Scalar]
    tensors: Annotated[tuple[TensorRecord, ...], Field(min_length=1)]

    @property
    def covariance(self) -> tuple[str, str, float] | None:
        """Path and digest of the covariances that codes were refined against and errors taken by, and their shrinkage;
        None where there were none."""
        path, digest, shrinkage = map(self.metadata.get, COVARIANCE)
        if not isinstance(path, str) or not isinstance(digest, str) or not isinstance(shrinkage, int | float):
            return None
        return path, digest, float(shrinkage)

    @field_validator("tensors")
    @classmethod
    def _each_once(cls, tensors: tuple[TensorRecord, ...]) -> tuple[TensorRecord, ...]:
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise ValueError("two tensors have the same name")
        return tensors

    @model_validator(mode="after")
    def _storable(self) -> Self:
        """Refuse sizes whose sum no file can have."""
        if self.header_bytes + sum(tensor.nbytes + self.alignment for tensor in self.tensors) >= 2**63:
            raise ValueError("the tensors are larger than any file")
        return self


class Measurement(NamedTuple):
    """The error of one tensor in one format. The store checks it, when it is added and when it is read.

    `key` is a digest of everything that the errors depend on, the tensor's name included. The errors are relative
    to the tensor's energy (dimensionless); `stderr` is the standard error of `err_var + err_mean`, `stderr_massive`
    that of `err_massive`. None of these is negative. `rows` rows were sampled. `kernel_seconds` and `made_with` say
    how the measurement came about; they are no part of its value.
    """

    key: str
    tensor: str
    format: str
    err_var: float
    err_mean: float
    err_massive: float
    stderr: float
    stderr_massive: float
    rows: int
    kernel_seconds: float
    made_with: str


class Energies(_Record):
    """The structure facts of one tensor: named numbers that sensitivities are worked out from.

    `content_digest` is that of the tensor's content. `gaps_version` is the version of the rule that filled the zeros of
    its imatrix entry, None where it has none. Passes of the model depend on both.
    """

    key: Key
    tensor: Name
    content_digest: Key
    gaps_version: Count | None = None
    values: dict[Name, Real]


class Pass(_Record):
    """One run of the model over a text with some tensors changed, and how far its predictions moved.

    `subject` is a digest of the weights and the imatrix that it is about, `key` one of all that the value depends on.
    `formats` names the formats that the changed tensors went through and `errors` their relative errors (variance,
    mean, massive channels) over all rows; these are empty for a whole file. `kld` is the mean KL divergence (nats per
    token) over `tokens` tokens and may be slightly negative; `stderr` its standard error. `label` is for people.
    """

    key: Key
    subject: Key
    label: Label
    formats: dict[Name, Name]
    errors: dict[Name, tuple[Real, Real, Real]]
    kld: Real
    stderr: Spread
    tokens: Count
    seconds: Spread

    @field_validator("errors", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        """Turn lists into tuples, which JSON does not have."""
        if not isinstance(value, dict):
            return value
        return {name: tuple(errors) if isinstance(errors, list) else errors for name, errors in value.items()}


class Summary(_Record):
    """Counts of what a state file holds."""

    schema_version: int
    file_bytes: int
    tensors: int
    measurements: int
    selected: int
    energies: int
    passes: int
    by_tensor: dict[str, dict[str, int]]  # tensor -> format -> measurements
    made_with: dict[str, int]  # measurements
    kernel_seconds: float
