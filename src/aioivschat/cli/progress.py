"""What a command for many shows while it runs: a tally, and a bar where there is a terminal."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aioivschat.onboarding import Outcome


@dataclass(slots=True)
class Tally:
    """What has come so far.

    Args:
        rate: tokens a second that the quota allows.
        started: when, on the monotonic clock.
        tokens: attendees who have one.
        failed: attendees who get none.
        end: when the last one came; ``None``: they still come.
    """

    rate: float
    started: float
    tokens: int = 0
    failed: int = 0
    end: float | None = None

    @property
    def total(self) -> int:
        """Attendees who are done."""
        return self.tokens + self.failed

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return (self.end or time.monotonic()) - self.started

    @property
    def pace(self) -> float:
        """Tokens a second."""
        return self.tokens / max(self.seconds, 0.001)

    def add(self, outcome: Outcome) -> None:
        """Count an attendee."""
        if outcome.token is None:
            self.failed += 1
        else:
            self.tokens += 1

    def ended(self) -> Tally:
        """Stop the time."""
        self.end = time.monotonic()
        return self

    def __str__(self) -> str:
        return (
            f"{self.total:,} attendees: {self.tokens:,} tokens, {self.failed:,} failed in "
            f"{self.seconds:.1f} s ({self.pace:.0f} a second of {self.rate:g})"
        )


@contextmanager
def progress(options: argparse.Namespace, tally: Tally) -> Iterator[Callable[[], None]]:
    """Draw a bar on standard error, if that is a terminal and rich is there.

    Yields:
        What shows the tally as it is.
    """
    # On one terminal the bar and the tokens would overwrite each other.
    tokens_shown = not options.output and sys.stdout.isatty()
    if options.quiet or sys.stderr is None or not sys.stderr.isatty() or tokens_shown:
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda: None
        return
    bar = Progress(
        TextColumn("{task.completed:,} of {task.fields[expected]}"),
        BarColumn(),
        TextColumn("{task.fields[failed]:,} failed"),
        TextColumn(f"{{task.fields[pace]:.0f}}/{tally.rate:g} a second"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
    )
    total = _count_rows(options.attendees)
    expected = "?" if total is None else f"{total:,}"
    task = bar.add_task("", total=total, expected=expected, failed=0, pace=0.0)
    with bar:
        yield lambda: bar.update(task, completed=tally.total, failed=tally.failed, pace=tally.pace)


def _count_rows(path: str) -> int | None:
    """Count the lines of a regular file, about as many as it has rows."""
    if path == "-" or not Path(path).is_file():
        return None
    with Path(path).open("rb") as file:
        lines = sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))
    return max(lines - (Path(path).suffix == ".csv"), 0)
