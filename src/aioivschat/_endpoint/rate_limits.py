"""How many new tokens one user and one room may have."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cachetools import LRUCache

from aioivschat._clock import Clock
from aioivschat._endpoint.problems import RATE_LIMITED, Refusal
from aioivschat._models import TokenRequest
from aioivschat._secrets import Unpickled
from aioivschat.errors import require_number

KNOWN_CALLERS = 100_000
"""Users, rooms and served attempts that are remembered; a forgotten user has a full share."""


@dataclass(frozen=True, slots=True)
class Share:
    """How many new tokens one user, or one room, may have.

    Args:
        tokens: so many at once, at least 1.
        seconds: and so many again in this time, above 0.

    Raises:
        InvalidConfiguration: a number is out of its range.
    """

    tokens: int
    seconds: float

    def __post_init__(self) -> None:
        require_number("Share.tokens", self.tokens, least=1, whole=True)
        require_number("Share.seconds", self.seconds, above=0, unit=" s")


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """How the endpoint treats its callers.

    Args:
        patience: seconds, above 0, that a request waits for its token; below the time after which
            clients and proxies give up. A request may shorten it: ``Prefer: wait=3`` (RFC 7240).
        per_user: how many new tokens each user may have. Repeating an attempt that got its token
            is free. ``None``: no limit.
        per_room: the same for each room.
        raw_expiration: whether ``tokenExpirationTime`` is AWS's own, a minute ahead, and not the
            end of the session. The chat SDK then takes a new token every 30 seconds.

    Raises:
        InvalidConfiguration: a number is out of its range.
    """

    patience: float = 8.0
    per_user: Share | None = Share(tokens=5, seconds=10.0)
    per_room: Share | None = None
    raw_expiration: bool = False

    def __post_init__(self) -> None:
        require_number("EndpointPolicy.patience", self.patience, above=0, unit=" s")


class RateLimits:
    """The rate limits of all users and rooms."""

    def __init__(self, policy: EndpointPolicy, clock: Clock) -> None:
        self._users = policy.per_user and _Buckets(policy.per_user, clock)
        self._rooms = policy.per_room and _Buckets(policy.per_room, clock)

    def charge(self, wanted: TokenRequest) -> None:
        """Take a token from the shares of user and room; refuse, taking none, if one is used up."""
        wait = max(
            self._users.wait(wanted.user) if self._users else 0.0,
            self._rooms.wait(wanted.room) if self._rooms else 0.0,
        )
        if wait > 0:
            raise Refusal(RATE_LIMITED, retry_after=wait)
        if self._users:
            self._users.take(wanted.user)
        if self._rooms:
            self._rooms.take(wanted.room)

    def refund(self, wanted: TokenRequest) -> None:
        """Give back what was charged for a request that was not sent to AWS."""
        if self._users:
            self._users.put_back(wanted.user)
        if self._rooms:
            self._rooms.put_back(wanted.room)


class _Buckets(Unpickled):
    """Token buckets by name, each held as the one moment when it is full again (GCRA)."""

    def __init__(self, share: Share, clock: Clock) -> None:
        self._interval = share.seconds / share.tokens
        self._depth = share.seconds - self._interval
        self._clock = clock
        self._full_at: LRUCache[str, float] = LRUCache(KNOWN_CALLERS)

    def wait(self, name: str) -> float:
        """Return the seconds until the bucket has a token; at most 0 if it has one."""
        return self._full_at.get(name, -math.inf) - self._depth - self._clock.monotonic()

    def take(self, name: str) -> None:
        full_at = max(self._full_at.get(name, -math.inf), self._clock.monotonic())
        self._full_at[name] = full_at + self._interval

    def put_back(self, name: str) -> None:
        full_at = self._full_at.get(name)
        if full_at is not None:
            self._full_at[name] = full_at - self._interval
