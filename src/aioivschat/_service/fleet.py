"""What the service asks of a fleet: one quota, one stock and one token for each attempt.

Only protocols: the engine behind them is an extra. A fleet that cannot be reached raises nothing
here; each process then goes on by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aioivschat._clock import Clock
from aioivschat._events import Observers
from aioivschat._models import ChatToken, Identity, SharingKey
from aioivschat._service.fair_queue import Connections
from aioivschat._service.limiter import Limiter, LocalLimiter
from aioivschat._service.pace import Quota


@dataclass(frozen=True, slots=True)
class Held:
    """A token that the fleet had.

    Args:
        token: the attempt's own if it is ``reused``; otherwise one from the stock, which is now
            the caller's alone.
        life: seconds that it lives, counted from the start of the question.
    """

    token: ChatToken
    life: float


class Busy:
    """Another process mints for the key: wait for :meth:`SharedFlight.landed`, then ask again."""


class Fenced:
    """The token was invalidated since its flight began: only those who wait already get it."""


class SharedFlight(Protocol):
    """One flight as the fleet sees it, which lets one process at a time mint for a key."""

    async def claim(self, lease: float) -> Held | Busy | None:
        """Ask for the attempt's token, for one from the stock, or else for the right to mint.

        Args:
            lease: seconds that nobody else may mint for the same key.

        Returns:
            ``None``: this process is to mint; also if the fleet cannot be reached.
        """

    async def landed(self) -> None:
        """Wait until the flight of the other process has landed, or it is time to ask again."""

    async def publish(
        self, token: ChatToken, life: float, age: float
    ) -> Held | Busy | Fenced | None:
        """Make a token the attempt's, for every process.

        Args:
            token: what was minted.
            life: seconds that it still lives.
            age: seconds since its flight began: what was invalidated since is not kept.

        Returns:
            ``None``: it is the attempt's token, or the fleet cannot be reached. ``Held`` and
            ``Busy``: another process was faster, and this token is not the attempt's.
        """

    def close(self) -> None:
        """End the flight, giving back a lease that was not used."""


class SharedTokens(Protocol):
    """The tokens of a fleet."""

    @property
    def rejected(self) -> int:
        """How many values were found that could not be opened."""

    def flight(self, identity: Identity, key: SharingKey | None) -> SharedFlight:
        """Begin a flight.

        Args:
            identity: what is asked for.
            key: what callers agree on when they share the token; ``None``: nobody does.
        """

    def stock(
        self,
        identity: Identity,
        token: ChatToken,
        life: float,
        age: float,
        refused: Callable[[], object],
    ) -> None:
        """Let any process claim a token that nobody was given.

        Args:
            identity: what was asked for.
            token: the token.
            life: seconds that it still lives.
            age: seconds since its flight began.
            refused: called if the fleet certainly did not get the token.
        """

    def invalidate(self, room: str | None, user: str | None) -> None:
        """Let every process forget the tokens of a room, of a user, or of a user in a room."""

    async def settled(self) -> None:
        """Wait until all that was sent to the fleet has arrived there, or failed to."""


class SharedTier(Protocol):
    """What a fleet shares."""

    def bind(
        self,
        clock: Clock,
        min_remaining: float,
        invalidated: Callable[[str | None, str | None], None],
        observers: Observers,
    ) -> SharedTokens | None:
        """Serve one service; called when it is made.

        Args:
            clock: where the time comes from.
            min_remaining: seconds that a token must have left to be of use.
            invalidated: called with room and user when another process invalidated.
            observers: told what the fleet shares, when that changes.

        Returns:
            The fleet's tokens; ``None``: the fleet shares its quota only.

        Raises:
            InvalidConfiguration: it serves another service already.
        """

    def open(self) -> None:
        """Begin to listen, on the running event loop; called when the service is first used."""

    def limiter(
        self,
        account: str,
        region: str,
        quota: Quota,
        on_learnt: Callable[[float, int], None],
        connections: Connections,
    ) -> Limiter:
        """Return a limiter that shares the quota of an account and region with the fleet."""

    async def aclose(self) -> None:
        """Leave the fleet, giving back what was not used."""


class OneProcess:
    """The tier of a service that shares nothing.

    Args:
        clock: where the time comes from.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def bind(self, *_: object) -> None:
        """Share no tokens."""

    def open(self) -> None:
        """Listen to nobody."""

    def limiter(
        self,
        account: str,
        region: str,
        quota: Quota,
        on_learnt: Callable[[float, int], None],
        connections: Connections,
    ) -> Limiter:
        """Return a limiter of this process."""
        return LocalLimiter(quota, self._clock, on_learnt, connections)

    async def aclose(self) -> None:
        """Nothing to end."""
