"""The law of the pace: what the quota allows, as far as AWS's answers have shown it.

AWS allows 200 requests a second and does not say how it counts them. Every way that is known of
such services passes two gates. The *window*: never more than the quota in any sliding second. The
*burst*: a bucket of so many permits, which fills at the quota's rate.

The burst is learnt. It begins at what the smallest known bucket takes. What was served at once is
served again, so each success at a new height moves it up, while a few more than that may be under
way: it grows with each round trip, until the window is the limit or a request is throttled. Then
it is what was served until then, and one more is tried only after 2,000 requests or half a
minute.

A request that is throttled within the known burst says that others use the quota too. The rate then
goes down by a tenth, but not below what was served in the last second, and comes back with each
success, faster the longer nothing is throttled; so processes that know nothing of each other even
out. What was throttled counts in no window, as AWS does not count it.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from aioivschat.errors import require, require_number

HEADROOM = 0.01
"""Share by which the window is longer than AWS's: a request that was delayed on its way arrives
closer to those behind it, and the server's window sees one more."""

BURST_HELD_BACK = 0.1
"""Share of a bucket that the user knows left unused: by the server's clock it fills later."""

_FIRST_BURST_SECONDS = 0.05
"""Seconds of the quota that are sent at once before anything is known: at 200 a second 10 permits,
half of the smallest bucket that is known of such services."""

_REACH_SECONDS = 0.14
"""Seconds of the quota that may be under way beyond what was served at once before. So many
requests are throttled at most when the bucket turns out to be smaller: 28 at 200 a second."""

_MARGIN = 1.0
"""Permits that a bucket is taken to be smaller than what it was seen to take: requests that come
5 ms closer than they were sent then still find room."""

_SERVED_TO_TRY_AGAIN, _SECONDS_TO_TRY_AGAIN = 2000, 30.0
"""After so many requests, or so long, without a throttled one, a burst of one more is tried and the
rate is whole again: two or three are throttled for it."""

_WINDOW_SHARE = 0.9
"""Share of a second's quota that, served at once, shows a window: the first answers come before
the last requests leave, so the whole is not seen."""

_SLOWEST = 0.01
"""Share of the quota at which requests go on, however many are throttled."""

_SLOWER, _FASTER = 0.1, 0.3
"""Share of the rate lost by a throttled request; and of the quota won a second, for each second
since the last one. Simulated with four processes that know nothing of each other, at 20 ms: 2,000
are through in 1.03 to 1.17 of the time that the shapes allow, and 250 to 550 are throttled."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What AWS allows per account and region.

    Args:
        rate: requests a second, more than 0. ``CreateChatToken`` has 200, not adjustable (IVS
            Chat service quotas). Without ``burst``, a fraction above a whole number is not used.
        burst: size of the server's token bucket, where it is known to be one; at least 1. The
            limiter then uses nine tenths of it at once, and no sliding second limits it. ``None``:
            unknown, so never more than ``rate`` in any sliding second, and the burst is learnt.
        max_waiting: calls that may wait for a permit; one more is refused as overloaded.
        learnt: what a former run has learnt of the burst (:attr:`Learnt.burst`): begin with it and
            go on learning; at least 1, not together with ``burst``. A fleet does not use it.

    Raises:
        InvalidConfiguration: if a number is out of its range.
    """

    rate: float = 200.0
    burst: int | None = None
    max_waiting: int = 100_000
    learnt: int | None = None

    def __post_init__(self) -> None:
        require_number("Quota.rate", self.rate, above=0)
        if self.burst is not None:
            require_number("Quota.burst", self.burst, least=1, whole=True)
        if self.learnt is not None:
            require_number("Quota.learnt", self.learnt, least=1, whole=True)
            require(self.burst is None, "Quota.learnt", "a quota whose burst is not given", "both")
        require_number("Quota.max_waiting", self.max_waiting, least=0, whole=True)


Shape = Literal["unknown", "window", "bucket"]
"""What a quota has shown of its shape."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What was learnt of the quota of an account and region.

    Args:
        account: the AWS account's id.
        region: the AWS region.
        rate: requests a second aimed at now.
        burst: requests that are known to be served at once; for ``Quota(learnt=…)``.
        shape: ``"window"``: a second's quota was served at once, or nine tenths of it, so it is a
            window, or a bucket that is as large; ``"bucket"``: a burst was throttled, or the
            bucket is given; ``"unknown"``: neither yet.
    """

    account: str
    region: str
    rate: float
    burst: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that has left.

    Args:
        at: when, by the monotonic clock.
        height: how many permits of the burst were in use then, its own included.
        tried: whether that was more than was known to be served.
    """

    at: float
    height: float = 0.0
    tried: bool = False


class Pace:
    """When permits are due.

    Args:
        quota: what is allowed.
        now: by the monotonic clock, as everywhere here.
        tries: whether more is tried at once than is known to be served.
        headroom: see :data:`HEADROOM`.

    Attributes:
        rate: requests a second at which the burst fills now.
        ceiling: the highest rate.
        burst: permits that are known to be served at once.
        shape: as in :class:`Learnt`.
    """

    def __init__(
        self, quota: Quota, now: float, *, tries: bool = True, headroom: float = HEADROOM
    ) -> None:
        self._quota = quota
        tries = tries and quota.learnt is None
        if quota.burst is None:
            self.ceiling = quota.rate * (1 - headroom / 2)
            # Below one a second, the window is as long as one permit takes.
            self._per_window = max(1, math.floor(quota.rate))
            self._window = max(1.0, self._per_window / quota.rate) / (1 - headroom)
            self.burst = float(quota.learnt or quota.rate * _FIRST_BURST_SECONDS)
            self.burst = min(max(1.0, self.burst), self._per_window)
            self._longest_reach = quota.rate * _REACH_SECONDS
            self._reach = min(self.burst, self._longest_reach) if tries else 0.0
        else:
            self.ceiling = quota.rate
            # A bucket has no window: the pace alone keeps within it.
            self._per_window, self._window = sys.maxsize, 1.0
            self.burst = max(1.0, quota.burst * (1 - BURST_HELD_BACK))
            self._longest_reach = self._reach = 0.0
        self.rate = self.ceiling
        self.shape: Shape = "unknown" if quota.burst is None else "bucket"
        self._look_for_window()
        # When the next permit may be granted, and spent, if the burst is in use.
        self._next_granted = self._next_spent = -math.inf
        self._unspent = 0  # permits granted to requests that have not left since
        self._recent = deque[float]()  # when permits were spent that count, within the window
        self._bounded = not tries  # whether a request was throttled in a burst
        self._calm_since = now  # nothing was throttled, or it was forgotten
        self._served_since = 0
        # Requests that left before then are part of what the burst was learnt from.
        self._burst_known_from = -math.inf

    @property
    def lasting_rate(self) -> float:
        """Requests a second that the window lets go on for longer than itself."""
        return min(self.rate, self._per_window / self._window)

    @property
    def _allowed(self) -> float:
        """How many may be under way at once, what is tried included."""
        return min(self.burst + self._reach, self._per_window)

    # What is due.

    def due(self, now: float) -> float:
        """Return when the next permit may be granted."""
        paced = max(self._next_granted, now) + (1 - self._allowed) / self.rate
        over = len(self._recent) + self._unspent - self._per_window
        return paced if over < 0 else max(paced, self._spent_at(now, over) + self._window)

    def expected(self, now: float, ahead: int) -> float:
        """Return when a permit is due that so many others go before, if the burst grows no more."""
        paced = self._paced(now, ahead)
        over = len(self._recent) + self._unspent + ahead - self._per_window
        if over < 0:
            return max(self.due(now), paced)
        windows, index = divmod(over, self._per_window)
        return max(self.due(now), paced, self._spent_at(now, index) + (windows + 1) * self._window)

    def _paced(self, now: float, ahead: int) -> float:
        return max(self._next_granted, now) + (ahead + 1 - self.burst) / self.rate

    def _spent_at(self, now: float, index: int) -> float:
        """Return when a permit was spent, or is: first the recent ones, then those to come."""
        if index < len(self._recent):
            return self._recent[index]
        ahead = index - len(self._recent) - self._unspent
        # Permits that are granted and not spent yet will count from now at the earliest.
        return now if ahead < 0 else max(now, self._paced(now, ahead))

    def leaving(self) -> float:
        """Return when the next request may leave, which has its permit."""
        return self._next_spent + (1 - self._allowed) / self.rate

    # What happens to permits.

    def grant(self, now: float) -> None:
        """Grant a permit."""
        self._next_granted = max(self._next_granted, now) + 1 / self.rate
        self._unspent += 1

    def refund(self) -> None:
        """Take back a permit that was granted and not spent."""
        self._next_granted -= 1 / self.rate
        self._unspent -= 1

    def spend(self, now: float) -> Sent:
        """Count a permit from now, not from when it was granted: to AWS, a request counts when it
        arrives."""
        self._next_spent = max(self._next_spent, now) + 1 / self.rate
        self._unspent -= 1
        recent = self._recent
        while recent and recent[0] <= now - self._window:
            recent.popleft()
        recent.append(now)
        height = (self._next_spent - now) * self.rate
        return Sent(now, height, self._reach > 0 and height > self.burst)

    # What answers teach.

    def learn(self, sent: Sent, now: float, *, throttled: bool) -> None:
        """Learn from a request that was throttled, or that the quota let through."""
        if throttled:
            self._learn_from_throttled(sent, now)
        else:
            self._learn_from_served(sent, now)

    def _learn_from_served(self, sent: Sent, now: float) -> None:
        self._served_since += 1
        if self.rate < self.ceiling:
            a_second = _FASTER * self._quota.rate * (now - self._calm_since)
            self._set_rate(self.rate + a_second / self.rate, now)
        if self._served_since >= _SERVED_TO_TRY_AGAIN:
            self._try_again()
        if self._reach and sent.height > self.burst:
            self.burst = min(sent.height, self._per_window)
            growth = 0.5 if self._bounded else 1.0
            self._reach = min(self._reach + growth, self._longest_reach)
            self._look_for_window()

    def _learn_from_throttled(self, sent: Sent, now: float) -> None:
        self._served_since, self._calm_since = 0, now
        with suppress(ValueError):  # it left longer ago
            self._recent.remove(sent.at)
        if self._quota.burst is not None:
            self._slow_down(now)
            return
        in_vain = self._bounded and sent.tried and sent.at > self._burst_known_from
        if not in_vain:
            took = max(1.0, self._height_served() - _MARGIN)
            if (self._reach and not self._bounded) or took < self.burst - 1:
                # One stray request halves what was known; a crowd's show the truth.
                self.burst = max(took, self.burst / 2)
                self._bounded, self._burst_known_from = True, now
                self.shape = "bucket"
            elif sent.at > self._burst_known_from:
                self.burst = max(1.0, self.burst - _MARGIN / 2)
                self._slow_down(now)
        self._reach = 0.0
        if in_vain or sent.at <= self._burst_known_from:
            # It has not emptied the bucket.
            self._next_granted -= 1 / self.rate
            self._next_spent -= 1 / self.rate

    def forget_old_throttles(self, now: float) -> None:
        """Try the whole rate, and more at once, after half a minute without a throttled request."""
        if now > self._calm_since + _SECONDS_TO_TRY_AGAIN:
            self._calm_since = now
            self._set_rate(self.ceiling, now)
            self._try_again()

    def _try_again(self) -> None:
        if self._quota.burst is None:
            self._served_since, self._reach = 0, max(1.0, self._reach)

    def _look_for_window(self) -> None:
        if self.burst >= _WINDOW_SHARE * self._per_window:
            self.shape = "window"

    def _height_served(self) -> float:
        """Return how many permits of the burst were in use at most, by what was not throttled."""
        height = highest = 0.0
        before = -math.inf
        for at in self._recent:
            height = max(0.0, height - (at - before) * self._quota.rate) + 1
            highest, before = max(highest, height), at
        return highest

    def _slow_down(self, now: float) -> None:
        lately = sum(at > now - self._window for at in self._recent) / self._window
        self._set_rate(max(self.rate * (1 - _SLOWER), min(self.rate, lately)), now)

    def _set_rate(self, rate: float, now: float) -> None:
        before = self.rate
        self.rate = min(self.ceiling, max(_SLOWEST * self.ceiling, rate))
        # Rescale the debt, so that a slower rate does not start with a new burst.
        stretch = before / self.rate
        self._next_granted = now + max(0.0, self._next_granted - now) * stretch
        self._next_spent = now + max(0.0, self._next_spent - now) * stretch
