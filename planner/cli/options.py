"""Options that several commands share, and what they mean."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from planner.errors import StateFileError, UsageError

if TYPE_CHECKING:
    from planner.gguf import Imatrix, Model
    from state import Store

__all__ = [
    "Measuring",
    "Sources",
    "family_option",
    "find_state",
    "gpu_option",
    "measuring_options",
    "open_sources",
    "threads_option",
]

F = TypeVar("F", bound=Callable[..., Any])

threads_option = click.option(
    "-t", "--threads", type=click.IntRange(min=1), default=lambda: os.cpu_count() or 1, show_default="all cores",
    help="Threads that run kernels.",
)  # fmt: skip
gpu_option = click.option(
    "-ngl", "--gpu-layers", type=int, default=0, show_default=True, help="Layers on the GPU; -1: all."
)
# As in planner.formats.registry, which would be slow to import for --help; a test compares
family_option = click.option(
    "--family", type=click.Choice(["gguf", "mlx"]), default="gguf", show_default=True,
    help="Whose types: ggml's, or those of MLX (mlx_q4_g64 ..., and the sets all, g32, g64, g128).",
)  # fmt: skip


class Measuring(TypedDict):
    """What `measuring_options` add to a command's arguments."""

    imatrix: Path | None
    no_imatrix: bool
    state: Path | None
    types: str | None
    seed: int
    tolerance: float
    allow_requantize: bool
    threads: int


def measuring_options(command: F) -> F:
    """Everything that `measure` takes besides the model, for `solve` too."""
    for option in reversed(
        (
            click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix, GGUF or legacy .dat."),
            click.option("--no-imatrix", is_flag=True, help="Do without one, although the state was made with one."),
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
        )
    ):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True)
class Sources:
    """An open model, its imatrix and the state file that belongs to it."""

    model: Model
    imatrix: Imatrix | None
    store: Store
    state: Path  # as the user would name it


def find_state(state: Path | None, model: Path | None = None) -> Path:
    """The state file meant: as given; or named after the model; or the only one in this directory."""
    if state is not None:
        return state
    if model is not None:
        return Path(f"{model.name.removesuffix('.gguf')}.planner")
    found = sorted(Path().glob("*.planner"))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"There are {len(found)} state files here: {', '.join(str(path) for path in found[:5])}.",
            "Say which with --state, or give the model.",
        )
    raise StateFileError(
        "There is no state file (*.planner) in this directory.",
        "Give the model to measure: planner solve MODEL --imatrix FILE --budget SIZE, or the state with --state.",
    )


@contextlib.contextmanager
def open_sources(model: Path, measuring: Measuring) -> Iterator[Sources]:
    """Open model, imatrix and state. Without --imatrix, the one that the state was made with is taken again."""
    from planner.api.state import imatrix_for
    from planner.gguf import open_model
    from state import Store

    imatrix, no_imatrix = measuring["imatrix"], measuring["no_imatrix"]
    if imatrix is not None and no_imatrix:
        raise UsageError("--imatrix and --no-imatrix exclude each other.", "Give one of them.")
    path = find_state(measuring["state"], model)
    with open_model(model) as opened, Store.open(path, create=True) as store:
        chosen = imatrix_for(store, imatrix, no_imatrix=no_imatrix)
        yield Sources(opened, chosen, store, path)
