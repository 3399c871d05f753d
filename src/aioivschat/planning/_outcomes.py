"""How a crowd got in: waits, counts and a timeline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds from a viewer's arrival to the viewer's token; percentiles by nearest rank.

    Args:
        p50: of a half, at most.
        p95: of 95 in 100, at most.
        p99: of 99 in 100, at most.
        last: of the viewer who got in last.
        longest: of the viewer who waited longest.
    """

    p50: float
    p95: float
    p99: float
    last: float
    longest: float

    @classmethod
    def of(cls, waits: Sequence[float]) -> Self | None:
        """Summarize waits in the order in which viewers got in; ``None`` if there are none."""
        if not waits:
            return None
        ordered = sorted(waits)
        p50, p95, p99 = (percentile(ordered, percent) for percent in (50, 95, 99))
        return cls(p50, p95, p99, last=waits[-1], longest=ordered[-1])


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened in each second of an event.

    Args:
        start: the first second, counted from the doors; below 0 with prewarming.
        arrived: viewers who came, by second.
        admitted: viewers who got a token, by second.
        waiting: viewers who waited at the end of each second.
        tokens: tokens minted for any purpose, by second.
    """

    start: int
    arrived: tuple[int, ...]
    admitted: tuple[int, ...]
    waiting: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CrowdOutcome:
    """How a crowd got in, until all were in or the run was stopped.

    Args:
        arrived: viewers who came.
        admitted: viewers who have a token.
        failed: viewers who got no token, by the name of the error's class.
        waits: how long admitted viewers waited; ``None`` if nobody was admitted.
        late: viewers who waited, or still wait, longer than the event's patience.
        first_second: viewers admitted within a second of the doors.
        finished: seconds from the doors to the last token.
        prewarmed: tokens minted before the doors.
        unused: tokens minted ahead that no viewer got.
        returned: tokens for reconnects and renewals while others still came.
        throttled: requests that AWS throttled.
        timeline: what happened in each second.
    """

    arrived: int
    admitted: int
    failed: Mapping[str, int]
    waits: Waits | None
    late: int
    first_second: int
    finished: float
    prewarmed: int
    unused: int
    returned: int
    throttled: int
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class CrowdProgress:
    """How a run stands now, in viewers unless a comment says otherwise."""

    seconds: float  # since the doors; below 0 before them
    arrived: int
    admitted: int
    waiting: int
    failed: int
    rate: int  # tokens minted in the last whole second
    throttled: int  # requests, so far
    p95: float  # seconds that 95 in 100 waited at most so far; 0 while nobody is admitted


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile, 1 to 100, of one or more ascending values by nearest rank."""
    return ordered[math.ceil(percent / 100 * len(ordered)) - 1]
