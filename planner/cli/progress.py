"""Progress bars on stderr if it is a terminal; none in pipes and tests."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["duration", "progress_bar"]

Advance = Callable[[str, float, float], None]


@contextlib.contextmanager
def progress_bar(unit: str) -> Iterator[Advance]:
    """Yield a function of (what, done, total) that draws a bar with rate and time left."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    from planner.text import plain

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "")

    columns = (TextColumn("{task.description:28.28}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), Rate())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def advance(what: str, done: float, total: float) -> None:
            progress.update(task, completed=done, total=total, description=escape(plain(what)))

        yield advance


def duration(seconds: float) -> str:
    """Format a time that is only roughly known.

    >>> duration(75), duration(600), duration(9000)
    ('75 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
