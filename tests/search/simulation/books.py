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
from aioivschat._service.pace import Sent as SpentPermit
from search.simulation.programs import Issue, Ready
from search.simulation.upstream import Fate, Sent, Who

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

    def _spend_permit(self) -> SpentPermit:
        self.spent += 1
        return super()._spend_permit()


class CountingTier(OneProcess):
    """Shares nothing with anybody, and uses limiters that count."""

    def __init__(self, limiters: Mapping[tuple[str, str], CountedLimiter]) -> None:
        self._limiters = limiters

    def limiter(self, account: str, region: str, *_: object) -> Limiter:
        """Return the limiter of an account and region."""
        return self._limiters[account, region]


class Window:
    """A quota of ``rate`` in any sliding second; below 1, of one in ``1 / rate`` seconds.

    A request counts until its answer says that it was throttled.
    """

    def __init__(self, rate: float) -> None:
        self._recent: deque[Sent] = deque()
        self._most = max(1, math.floor(rate))
        self._span = max(1.0, 1 / rate)

    def admits(self, sent: Sent) -> bool:
        """Take one more, and tell whether it is within the quota."""
        recent = self._recent
        while recent and sent.at - recent[0].at > self._span:
            recent.popleft()
        recent.append(sent)
        return sum(each.fate is not Fate.THROTTLED for each in recent) <= self._most


class Bucket:
    """A quota by a bucket that fills at a rate up to its size."""

    def __init__(self, rate: float, size: int) -> None:
        self._rate = rate
        self._size = self._level = float(size)
        self._read = 0.0

    def admits(self, sent: Sent) -> bool:
        """Take one more, and tell whether it is within the quota."""
        now = sent.at
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
