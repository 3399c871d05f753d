"""One line on standard error that shows how a command gets on: text, a bar, text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aioivschat.cli.process import say


@contextmanager
def show_progress(
    describe: Callable[[], tuple[int, str, str]],
    *,
    total: int | None,
    bar_width: int,
    quiet: bool,
    shows_time_left: bool = False,
    without_rich: str = "",
) -> Iterator[Callable[[], None]]:
    """Show the line while the block runs, if standard error is a terminal and rich is there.

    ``describe`` returns how much of the total is done, and the texts before and after the bar.
    ``without_rich`` is said instead if rich is missing. Yields what brings the line up to date.
    """
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        if without_rich:
            say(without_rich)
        yield lambda: None
        return
    line = Progress(
        TextColumn("{task.fields[before]}"),
        BarColumn(bar_width),
        TextColumn("{task.fields[after]}"),
        *[TimeRemainingColumn()] * shows_time_left,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
    )
    task = line.add_task("", total=total, before="", after="")

    def update() -> None:
        completed, before, after = describe()
        line.update(task, completed=completed, before=before, after=after)

    update()
    with line:
        yield update
