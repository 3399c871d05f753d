"""How many attendees of a job have a token, how many get none, and how fast it goes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

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
