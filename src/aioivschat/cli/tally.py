"""How many attendees of a job have a token, how many get none, and how fast it goes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from aioivschat.cli.checkpoint import Checkpoint
from aioivschat.onboarding import Outcome


@dataclass(slots=True)
class Tally:
    """The counts of a job, over all its runs, and the pace of this run."""

    rate: float  # tokens a second that the quota allows
    tokens: int = 0
    failed: int = 0
    tokens_before: int = 0  # written by earlier runs
    again: int = 0  # tokens perhaps minted twice, as a run ended before they were written
    undone: int = 0  # of the failed of this run, those who stay undone
    refusal: str = ""  # what they were refused for
    unread: str = ""  # the first row that could not be read, and why
    job_started: float = field(default_factory=time.time)  # the first run
    _started: float = field(default_factory=time.monotonic)  # this run
    _ended: float | None = None  # when its last outcome had been written

    @property
    def total(self) -> int:
        """Attendees who are done."""
        return self.tokens + self.failed

    @property
    def seconds(self) -> float:
        """How long this run has taken."""
        return (self._ended or time.monotonic()) - self._started

    @property
    def pace(self) -> float:
        """Tokens a second, in this run."""
        return (self.tokens - self.tokens_before) / max(self.seconds, 0.001)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Begin with the counts of earlier runs."""
        self.tokens, self.failed = checkpoint.tokens, checkpoint.failed
        self.tokens_before, self.job_started = self.tokens, checkpoint.job_started

    def begin(self) -> None:
        """Count the seconds of this run from now on."""
        self._started = time.monotonic()

    def end(self) -> None:
        """Count no more seconds of this run."""
        self._ended = time.monotonic()

    def note_minted_again(self, most: int) -> None:
        """Take note of how many tokens were minted twice at most."""
        self.again = most

    def note_undone(self, undone: int, refusal: str) -> None:
        """Take note of who stays undone, and why."""
        self.undone, self.refusal = undone, refusal

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Count outcomes."""
        for outcome in outcomes:
            if outcome.token is None:
                self.failed += 1
                if outcome.request is None and not self.unread:
                    self.unread = f"line {outcome.attendee.line}: {outcome.error}"
            else:
                self.tokens += 1

    def __str__(self) -> str:
        return (
            f"{self.total:,} attendees: {self.tokens:,} tokens, {self.failed:,} failed in "
            f"{self.seconds:.1f} s ({self.pace:.0f} a second of {self.rate:g})"
            + (f"; at most {self.again:,} tokens were minted twice" if self.again else "")
        )
