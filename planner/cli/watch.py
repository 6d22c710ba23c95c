"""Run commands that use llama.cpp in a child process: where C code crashes, the parent says so in one message.

The child shares the terminal, standard input and output, and does all the work. The parent passes signals on to it and
waits. If the parent dies first, the child does not outlive it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from planner.cli.child import VARIABLE

if TYPE_CHECKING:
    import subprocess

    from planner.lastwords import LastWords

__all__ = ["obituary", "start_watched", "watch"]

_CHILD = "import sys; sys.path[:] = {path!r}; from planner.cli import main; main()"
_STATUSES = frozenset({0, 1, 2, 130})  # those that a command ends with by itself
_SAME_KEY = 0.5  # seconds: Ctrl-C reaches the child from the terminal and from the parent
_SOON = 0.02  # seconds until a Ctrl-C that could not be raised comes again
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGUSR1")
_DEADLY = ("SIGTERM", "SIGHUP", "SIGQUIT")  # of those, what is sent to end a process and says nothing of llama.cpp
_SHOW_CURSOR = "\r\x1b[2K\x1b[?25h"  # a progress bar hides it


# The parent


def watch(arguments: Sequence[str]) -> int:
    """Run a command line in a child process; returns its exit status, 1 where C code ended it."""
    import json
    import subprocess

    with _notes_file() as notes, _signals() as pass_on_to:
        read_end, write_end = os.pipe()
        try:
            os.set_inheritable(read_end, True)
            child = subprocess.Popen(
                [sys.executable, "-c", _CHILD.format(path=sys.path), *arguments],
                env={**os.environ, "GGML_NO_BACKTRACE": "1", VARIABLE: json.dumps([notes, _inherited(read_end)])},
                close_fds=False,  # some may be pipes that a shell made: --text <(...)
            )
        finally:
            os.close(read_end)
        pass_on_to(child)
        status = child.wait()
        os.close(write_end)  # not before: the child ends when this end is closed
        if status in _STATUSES:
            return status
        return _bury(arguments, status, notes)


def _inherited(descriptor: int) -> int | None:
    """Return the number that a descriptor has in the child; None where children inherit none."""
    return descriptor if os.name == "posix" else None


@contextlib.contextmanager
def _notes_file() -> Iterator[str | None]:
    """Yield a file for the child's last words; None where no temporary file can be made."""
    import tempfile

    try:
        descriptor, name = tempfile.mkstemp(prefix="planner-", suffix=".words")
        os.close(descriptor)
    except OSError:
        yield None
        return
    try:
        yield name
    finally:
        _remove(name)


def _remove(name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name)  # noqa: PTH108  (pathlib would have to be imported)


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Pass signals on to a child. Yields a function to call with it once it runs; what comes before is kept for it."""
    child: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        if child:
            child[0].send_signal(number)
        else:
            early.append(number)

    def start(process: subprocess.Popen[bytes]) -> None:
        _block(signal.SIG_UNBLOCK)
        child.append(process)
        for number in early:
            process.send_signal(number)

    before: dict[int, Any] = {}
    for name in _PASSED_ON:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, pass_on)
    _block(signal.SIG_BLOCK)  # which the child inherits: it has no handler yet
    try:
        yield start
    finally:
        _block(signal.SIG_UNBLOCK)
        for number, handler in before.items():
            if handler is not None:  # one that C code installed cannot be put back
                signal.signal(number, handler)


def _block(how: int) -> None:
    """Hold Ctrl-C back in this thread, or let it through again; `how` as for `signal.pthread_sigmask`."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(how, {signal.SIGINT})


def _bury(arguments: Sequence[str], status: int, notes: str | None) -> int:
    """Clean up after a child that died, and say why it did; returns the exit status."""
    words = _clear_up(notes)
    if sys.stderr.isatty():
        sys.stderr.write(_SHOW_CURSOR)
        sys.stderr.flush()
    name = _signal_name(status)
    if name in _DEADLY:  # as if there had been no child
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    import click

    if name == "SIGINT":
        click.echo("Stopped.", err=True)
        return 130
    from planner.cli.messages import wrapped

    if words.result:
        click.echo(words.result)
    click.echo(wrapped(obituary(arguments, status, words)), err=True)
    return 1


def _clear_up(notes: str | None) -> LastWords:
    """Remove the temporary files that a dead child had noted, and its notes; returns its last words."""
    import shutil

    from planner.lastwords import read_last_words

    data = b""
    if notes is not None:
        with contextlib.suppress(OSError), open(notes, "rb") as file:  # noqa: PTH123
            data = file.read()
        _remove(notes)
    words = read_last_words(data)
    for path in words.temporary:
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return words


def obituary(arguments: Sequence[str], status: int, words: LastWords) -> str:
    """Describe a dead child: its command and file, how it died, its last words, and what to do next."""
    from pathlib import Path

    from planner.text import command as pasted
    from planner.text import plain

    name, command = _signal_name(status), next(word for word in arguments if not word.startswith("-"))
    cause, remedy = _CAUSES.get(name, (name or f"exit status {status}", _DAMAGED))
    running = words.running
    what = f"llama.cpp crashed while running {running}" if running else f"planner {command} crashed"
    if name == "SIGKILL":
        what = f"planner {command} was killed" + (f" while llama.cpp ran {running}" if running else "")
    lines = [f"Error: {what}: {cause}."]
    if words.said:
        lines.append("Its last words: " + "\n".join(words.said))
    lines.append(_KEPT.get(command, _KEPT["solve"]))
    inspect = pasted("planner", "inspect", *([Path(running)] if running else []))
    lines.append(remedy.format(inspect=f"`{inspect}`"))
    return plain("\n".join(lines), keep="\n")


def _signal_name(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:  # Windows has exit codes instead
        return {0xC0000005: "SIGSEGV", 0xC000001D: "SIGILL", 3: "SIGABRT"}.get(status & 0xFFFFFFFF, "")


_KEPT = {
    "evaluate": "Results of files that were finished are shown, and log-probabilities that were complete are kept.",
    "compare": "Results of files that were finished are shown and kept: the same command goes on with the others.",
    "bench": "Results of files that were finished are shown.",
    "imatrix": "Chunks that were saved are kept: the same command goes on from there.",
    "sensitivity": "Passes that were finished are kept in the state file: the same command goes on from there.",
    "solve": "The recipe is the best that was found until then; measurements are kept in the state file.",
}
_DAMAGED = (
    "The file may be damaged, or of a kind that this llama.cpp does not run: look at it with {inspect}, or try a newer "
    "llama-cpp-python."
)
_CAUSES = {
    "SIGSEGV": ("segmentation fault", _DAMAGED),
    "SIGABRT": ("it gave up (SIGABRT)", _DAMAGED),
    "SIGFPE": ("arithmetic error (SIGFPE)", _DAMAGED),
    "SIGBUS": ("bus error", "A file that it reads was shortened, or its disk fails."),
    "SIGILL": (
        "illegal instruction",
        "llama-cpp-python was compiled for another processor. Compile it here: "
        "`pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python`.",
    ),
    "SIGKILL": (
        "the system did that, most likely because memory ran out (SIGKILL)",
        "Try a shorter --ctx or fewer threads (-t), or a machine with more memory.",
    ),
}


# The child


def start_watched() -> None:
    """In a child, which has its instructions in the environment: leave last words, listen to Ctrl-C, and end with the
    parent."""
    import json

    notes, lifeline = json.loads(os.environ.pop(VARIABLE))
    if notes is not None:
        _leave_notes(notes)
    if lifeline is not None:
        _end_with(lifeline, notes)
    _hear_once()


def _leave_notes(path: str) -> None:
    """Keep the terminal for Python's standard error; C code's goes to the file."""
    from planner.lastwords import start_notes

    terminal = os.dup(sys.stderr.fileno())
    with contextlib.suppress(OSError):
        start_notes(path)
        sys.stderr = os.fdopen(terminal, "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors, buffering=1)


def _end_with(lifeline: int, notes: str | None) -> None:
    """End this process when the parent, which alone has the other end of a pipe, is gone, and leave nothing behind."""
    import threading

    def wait() -> None:
        os.read(lifeline, 1)
        _clear_up(notes)
        os._exit(1)

    os.set_inheritable(lifeline, False)
    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def _hear_once() -> None:
    """Take a Ctrl-C for one, although it comes twice: from the terminal and from the parent; and do not lose one that
    comes while C code is calling Python, such as for a line of llama.cpp's log, where nothing can be raised."""
    import _thread
    import threading
    import time

    last = -_SAME_KEY

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SAME_KEY:
            last = now
            raise KeyboardInterrupt

    def lost(what: sys.UnraisableHookArgs) -> None:
        nonlocal last
        if not issubclass(what.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(what)
            return
        last = -_SAME_KEY
        threading.Timer(_SOON, _thread.interrupt_main).start()

    sys.unraisablehook = lost
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    _block(signal.SIG_UNBLOCK)
