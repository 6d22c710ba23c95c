"""The command line. The only code that prints or exits; every error becomes a message and an exit status here."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence

import click

from planner.cli.child import VARIABLE, needs_watch
from planner.cli.terminal import finish, never_fail
from planner.errors import options_spelt
from planner.version import __version__

__all__ = ["cli", "main", "run", "spelt"]

_OBJECTS = 400_000  # new ones before garbage is looked for: loading modules makes many, and none of them is any
_COMMANDS = {
    "imatrix": "let a model read text, and write its importance matrix",
    "inspect": "show a model, an imatrix, a state file or a recipe",
    "measure": "measure every tensor's error in every format, into a state file",
    "sensitivity": "measure how much predictions suffer from every tensor's error",
    "solve": "pick a format for every tensor under a budget; writes recipe.json",
    "frontier": "show what every size of a model loses, and which are worth publishing",
    "quantize": "write the GGUF that a recipe describes",
    "export": "turn a recipe into another quantizer's input",
    "import": "make a recipe of a GGUF's types, of rules or of tables",
    "report": "write a page on which every size of a model can be explored",
    "diff": "show how two mixes differ, by role and layer",
    "evaluate": "compare quantized models with the original, on a text and tasks",
    "compare": "rank many files of one model by size and divergence, and keep results",
    "card": "write the README of a repository of quantized files, and name them",
    "bench": "measure how fast models read and write, in tokens per second",
}
_SHORT = {"output": "-o", "gpu_layers": "-ngl"}  # options that messages call by their short names
_ELSEWHERE = {"import": ("importing", "import_command")}  # a word of Python's own names no module


class _LazyGroup(click.Group):
    """Commands are imported when they run: `--help` and `--version` must not wait for numpy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _ELSEWHERE.get(cmd_name, (cmd_name, cmd_name))
        command = getattr(importlib.import_module(f"planner.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="planner")
def cli() -> None:
    """Pick a quantization type for every tensor of a GGUF model, so that the file fits a budget and loses as little as
    possible; then write it.

    \b
    planner solve model-f16.gguf --imatrix imatrix.gguf --budget 23.85GB
    planner quantize model-f16.gguf recipe.json model.gguf
    """


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns its exit status. Messages go to stderr."""
    with options_spelt(spelt):
        return _run(arguments)


def spelt(option: str, value: object) -> str:
    """Return an option as it is given on the command line, with its value if there is one."""
    flag = _SHORT.get(option) or f"--{option.replace('_', '-')}"
    return flag if value is None else f"{flag} {value}"


def _run(arguments: Sequence[str]) -> int:
    try:
        if VARIABLE in os.environ:
            from planner.cli.watch import start_watched

            start_watched()
        cli.main(list(arguments), prog_name="planner", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped.", err=True)
        return 130
    except BrokenPipeError:
        # the reader has gone (`| head`); Python would complain once more when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from planner.cli.messages import explain, wrapped

        status, text = explain(error)
        click.echo(wrapped(text), err=True)
        return status
    return 0


def main() -> None:
    """Entry point of the command `planner`."""
    # numpy's BLAS would start a thread a core, which only get in the way of ours
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Whatever is installed beside us may have plugins of pydantic, which would be searched for before every command
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.set_threshold(_OBJECTS)
    never_fail()
    arguments = sys.argv[1:]
    if needs_watch(arguments):
        from planner.cli.watch import watch

        status = watch(arguments)
    else:
        status = run(arguments)
    finish()
    # Threads inside a kernel cannot be interrupted; nothing that they do is wanted any more
    os._exit(status)
