"""What is logged while a program runs, to check later events against."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from aioivschat import TokenRequest
from aioivschat._service.fleet import OneProcess
from aioivschat._service.limiter import Limiter, LocalLimiter
from search.simulation.programs import Issue, Ready
from search.simulation.upstream import Who

ROUNDING = 1e-6


@dataclass(eq=False, slots=True)
class Call:
    """A caller of the service.

    Args:
        number: how many calls came before.
        step: how it asks.
        request: what for.
        began: when, by the loop.
        busy: seconds for which the loop had been held up until then.
        invalidations: how many there had been until then.

    Attributes:
        task: of the call, if it has one.
        cancelled: whether the task was cancelled.
        outcome: what came of it.
    """

    number: int
    step: Issue | Ready
    request: TokenRequest
    began: float
    busy: float
    invalidations: int
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    outcome: str | None = None

    @property
    def attempt(self) -> object:
        """What callers must agree on to be given the same token."""
        if self.step.how == "fresh":
            return self
        return self.step.how, self.request.identity


@dataclass(slots=True)
class Token:
    """What became of a token that was handed out.

    Args:
        attempt: what it was handed out for.
        times: how often.
    """

    attempt: object
    times: int = 0


class CountedLimiter(LocalLimiter):
    """The library's limiter, which counts the permits that were used."""

    spent = 0

    def _spend_permit(self) -> None:
        super()._spend_permit()
        self.spent += 1


class CountingTier(OneProcess):
    """Shares nothing with anybody, and uses limiters that count."""

    def __init__(self, limiters: Mapping[tuple[str, str], CountedLimiter]) -> None:
        self._limiters = limiters

    def limiter(self, account: str, region: str, *_: object) -> Limiter:
        """Return the limiter of an account and region."""
        return self._limiters[account, region]


class Window:
    """A quota of ``rate`` in any sliding second; below 1, of one in ``1 / rate`` seconds."""

    def __init__(self, rate: float) -> None:
        self._recent: deque[float] = deque(maxlen=max(1, math.floor(rate)))
        self._span = max(1.0, 1 / rate)

    def admits(self, now: float) -> bool:
        """Take one more, and tell whether it is within the quota."""
        full = len(self._recent) == self._recent.maxlen
        admitted = not full or now - self._recent[0] > self._span
        self._recent.append(now)
        return admitted


class Bucket:
    """A quota by a bucket that fills at a rate up to its size."""

    def __init__(self, rate: float, size: int) -> None:
        self._rate = rate
        self._size = self._level = float(size)
        self._read = 0.0

    def admits(self, now: float) -> bool:
        """Take one more, and tell whether it is within the quota."""
        self._level = min(self._size, self._level + (now - self._read) * self._rate) - 1
        self._read = now
        return self._level >= -ROUNDING


def who(request: TokenRequest) -> Who:
    """Return the identity of a request as the wire has it."""
    return (
        request.room,
        request.user,
        frozenset(map(str, request.capabilities)),
        tuple(sorted(request.attributes.items())),
        request.session_minutes,
    )
