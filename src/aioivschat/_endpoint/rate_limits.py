"""How many new tokens one user and one room may have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache, TTLCache

from aioivschat._clock import Clock
from aioivschat._endpoint.problems import RATE_LIMITED, Refusal
from aioivschat._models import TOKEN_LIFE_SECONDS, Attempt, TokenRequest
from aioivschat._secrets import Hidden, Unpickled
from aioivschat._service.minting import TokenFlight
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
        per_user: how many new tokens each user may have. All tries of an attempt are charged once,
            and those for which AWS was sent nothing are not charged. ``None``: no limit.
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


class Charge:
    """One token of the shares of a user and a room, for all tries of one attempt.

    Attributes:
        tries: under way.
        flight: which one of them has waited for last.
        is_earned: whether one of them brought a token.
    """

    __slots__ = ("flight", "is_earned", "tries")

    def __init__(self) -> None:
        self.tries = 0
        self.flight: TokenFlight | None = None
        self.is_earned = False

    @property
    def is_sent(self) -> bool:
        """Whether AWS was sent a request for the attempt."""
        return self.flight is not None and self.flight.sent > 0

    @property
    def is_spent(self) -> bool:
        """Whether a request was sent and failed, so that another one is another charge."""
        return self.is_sent and self.flight is not None and self.flight.failed

    def note_flight(self, flight: TokenFlight) -> None:
        """Take note of the flight that a try waits for."""
        self.flight = flight


class Charges:
    """What attempts without a token were charged: once each, however often they are tried."""

    def __init__(self, policy: EndpointPolicy, clock: Clock) -> None:
        self._limits = RateLimits(policy, clock)
        self._tried: dict[Attempt, Charge] = {}
        # Charges with a request sent and no try left, for as long as a token may live: held apart,
        # as a TTLCache costs more than a dict.
        self._left: TTLCache[Attempt, Charge] = TTLCache(
            KNOWN_CALLERS, TOKEN_LIFE_SECONDS, timer=clock.monotonic
        )

    def begin_try(self, wanted: TokenRequest, attempt: Attempt | None) -> Charge:
        """Charge an attempt, unless it was charged before; without one there is one try only.

        Raises:
            Refusal: a share is used up.
        """
        charge = None
        if attempt is not None:
            charge = self._tried.get(attempt) or self._left.pop(attempt, None)
        if charge is None or charge.is_spent:
            self._limits.charge(wanted)
            charge = Charge()
        charge.tries += 1
        if attempt is not None:
            self._tried[attempt] = charge
        return charge

    def end_try(
        self, charge: Charge, wanted: TokenRequest, attempt: Attempt | None, *, has_token: bool
    ) -> None:
        """Give back what was charged, if this was the last try and AWS was sent nothing."""
        charge.tries -= 1
        charge.is_earned |= has_token
        if charge.tries:
            return
        if attempt is not None and self._tried.get(attempt) is charge:
            del self._tried[attempt]
            if charge.is_sent and not charge.is_earned:
                self._left[attempt] = charge
        if charge.is_earned:
            charge.flight = None  # a cycle: the flight's context holds the charge
        elif not charge.is_sent:
            self._limits.refund(wanted)


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
        self._full_at: LRUCache[tuple[Any, ...], float] = LRUCache(KNOWN_CALLERS)

    def wait(self, name: str) -> float:
        """Return the seconds until the bucket has a token; at most 0 if it has one."""
        return self._full_at.get((name,), -math.inf) - self._depth - self._clock.monotonic()

    def take(self, name: str) -> None:
        full_at = max(self._full_at.get((name,), -math.inf), self._clock.monotonic())
        self._full_at[Hidden((name,))] = full_at + self._interval

    def put_back(self, name: str) -> None:
        full_at = self._full_at.get((name,))
        if full_at is not None:
            self._full_at[Hidden((name,))] = full_at - self._interval
