"""What a command for many shows while it runs: a tally, and a bar where there is a terminal."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aioivschat.cli.checkpoint import Checkpoint
from aioivschat.onboarding import Outcome


@dataclass(slots=True)
class Tally:
    """What has come so far.

    Args:
        rate: tokens a second that the quota allows.
        started: when, on the monotonic clock.
        tokens: attendees who have one.
        failed: attendees who get none.
        before: tokens of earlier runs among them.
        again: tokens that may have been minted twice, as a run ended before they were written.
        first: when the first run began, in seconds since the epoch.
        end: when the last one came; ``None``: they still come.
    """

    rate: float
    started: float
    tokens: int = 0
    failed: int = 0
    before: int = 0
    again: int = 0
    first: float = field(default_factory=time.time)
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
        return (self.tokens - self.before) / max(self.seconds, 0.001)

    @property
    def since_first(self) -> float:
        """How long ago the first run of the job began, in seconds."""
        return time.time() - self.first

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from what earlier runs did."""
        self.tokens, self.failed = checkpoint.tokens, checkpoint.failed
        self.before, self.first = self.tokens, checkpoint.started

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Count attendees."""
        for outcome in outcomes:
            if outcome.token is None:
                self.failed += 1
            else:
                self.tokens += 1

    def ended(self) -> None:
        """Stop the time."""
        self.end = time.monotonic()

    def __str__(self) -> str:
        return (
            f"{self.total:,} attendees: {self.tokens:,} tokens, {self.failed:,} failed in "
            f"{self.seconds:.1f} s ({self.pace:.0f} a second of {self.rate:g})"
            + (f"; at most {self.again:,} tokens were minted twice" if self.again else "")
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
