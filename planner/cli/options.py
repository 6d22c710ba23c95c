"""Options that several commands share, and the files that they name."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import click

from planner.errors import StateFileError, UsageError
from planner.terms import FamilyName

if TYPE_CHECKING:
    from planner.gguf import Imatrix, Model
    from planner.gguf.refinement import Refinement
    from state import Store

    _Choice = click.Choice[str]
else:
    _Choice = click.Choice  # not generic before click 8.2

__all__ = [
    "Calibrated",
    "LiteralChoice",
    "Measuring",
    "Sources",
    "calibration_options",
    "family_option",
    "find_state",
    "gpu_option",
    "grouped",
    "measuring_options",
    "only_state",
    "open_sources",
    "scheduler_option",
    "shrinkage_option",
    "threads_option",
]

Command = Callable[..., Any]

threads_option = click.option(
    "-t", "--threads", type=click.IntRange(min=1), default=lambda: os.cpu_count() or 1, show_default="all cores",
    help="Threads that run kernels.",
)  # fmt: skip
scheduler_option = click.option(
    "--scheduler", metavar="ADDRESS",
    help="Let the workers of this Dask scheduler run kernels, such as tcp://192.168.1.5:8786.",
)  # fmt: skip
gpu_option = click.option(
    "-ngl", "--gpu-layers", type=int, default=0, show_default=True, help="Layers on the GPU; -1: all."
)


shrinkage_option = click.option(
    "--shrinkage", type=click.FloatRange(0), metavar="X", help="Pairs of channels count 1 / (1 + X).  [default: 1]"
)


class LiteralChoice(_Choice):
    """One of the values of a `Literal`: parameters can be declared as of that type."""

    def __init__(self, literal: object) -> None:
        super().__init__(get_args(literal))


family_option = click.option(
    "--family", type=LiteralChoice(FamilyName), default="gguf", show_default=True,
    help="Whose types: ggml's; these and ik_llama.cpp's own (iq4_k ..., and the sets ik, kt); or those of MLX "
    "(mlx_q4_g64 ..., and the sets all, g32, g64, g128).",
)  # fmt: skip


def grouped(name: str, kind: type[NamedTuple], *options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds options to a command; it gets their values as one argument called `name`: a
    `NamedTuple`, `kind`, with a field for each of them."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collected(**arguments: Any) -> Any:
            values = kind._make(map(arguments.pop, kind._fields))
            return command(**arguments, **{name: values})

        wrapped: Command = collected
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


class Measuring(NamedTuple):
    """Values of `measuring_options`."""

    imatrix: Path | None
    no_imatrix: bool
    covariance: Path | None
    shrinkage: float | None
    state: Path | None
    types: str | None
    seed: int
    tolerance: float
    allow_requantize: bool
    threads: int
    scheduler: str | None


# All that `measure` takes besides the model; other commands that measure take it too
measuring_options = grouped(
    "measuring",
    Measuring,
    click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix, GGUF or legacy .dat."),
    click.option("--no-imatrix", is_flag=True, help="Do without one, although the state was made with one."),
    click.option(
        "--covariance", type=click.Path(path_type=Path), metavar="FILE",
        help="Refine codes against these covariances and measure errors by them; the imatrix is theirs.",
    ),
    shrinkage_option,
    click.option(
        "--state", type=click.Path(path_type=Path), help="State file.  [default: MODEL's name, .planner, here]"
    ),
    click.option(
        "--types",
        help="Types to choose from: names, and the sets all, k, iq, legacy, cpu-repack; -NAME takes one out.  "
        "[default: all]",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the row sample."),
    click.option(
        "--tolerance", type=click.FloatRange(0, 1, min_open=True), default=0.05, show_default=True,
        help="Sample rows until the standard error is this share of the error.",
    ),
    click.option("--allow-requantize", is_flag=True, help="Accept a model that is quantized already."),
    threads_option,
    scheduler_option,
)  # fmt: skip


class Calibrated(NamedTuple):
    """Values of `calibration_options`."""

    imatrix: Path | None
    covariance: Path | None
    shrinkage: float | None


# What a recipe may need to be followed in memory
calibration_options = grouped(
    "calibrated",
    Calibrated,
    click.option(
        "--imatrix", type=click.Path(path_type=Path), help="Where recipes' imatrix is now.  [default: where it was]"
    ),
    click.option(
        "--covariance", type=click.Path(path_type=Path), metavar="FILE",
        help="Refine codes of recipes against these covariances, as planner quantize does.",
    ),
    shrinkage_option,
)  # fmt: skip


class Sources(NamedTuple):
    """An open model, its imatrix, what codes are refined against, and the state file that belongs to it."""

    model: Model
    imatrix: Imatrix | None
    refinement: Refinement | None
    store: Store
    state: Path  # as the user would name it


def find_state(state: Path | None, model: Path | None = None) -> Path:
    """Return the state file that is meant: as given; or named after the model; or the only one in this directory.

    Raises UsageError if there are several, StateFileError if there is none.
    """
    if state is not None:
        return state
    if model is not None:
        return Path(f"{model.name.removesuffix('.gguf')}.planner")
    here = _states_here()
    if len(here) == 1:
        return here[0]
    if here:
        raise UsageError(
            f"There are {len(here)} state files here: {', '.join(str(path) for path in here[:5])}.",
            "Say which with --state, or give the model.",
        )
    raise StateFileError(
        "There is no state file (*.planner) in this directory.",
        "Give the model to measure: planner solve MODEL --imatrix FILE --budget SIZE, or the state with --state.",
    )


def only_state() -> Path | None:
    """Return the only state file in this directory; None where there are none or several."""
    here = _states_here()
    return here[0] if len(here) == 1 else None


def _states_here() -> list[Path]:
    return sorted(Path().glob("*.planner"))


@contextlib.contextmanager
def open_sources(model: Path, measuring: Measuring) -> Iterator[Sources]:
    """Open model, imatrix, covariances and state. Without --imatrix and --covariance, what the state was made with is
    used again.

    Raises UsageError, ImatrixError, CovarianceError, ModelError, and StateError for files that cannot be used.
    """
    from planner.api.refining import inputs_of
    from planner.gguf import open_model
    from state import Store

    path = find_state(measuring.state, model)
    with (
        open_model(model) as opened, Store.open(path, create=True) as store,
        inputs_of(
            store, measuring.imatrix, no_imatrix=measuring.no_imatrix, covariance=measuring.covariance,
            shrinkage=measuring.shrinkage,
        ) as (imatrix, refinement),
    ):  # fmt: skip
        yield Sources(opened, imatrix, refinement, store, path)
