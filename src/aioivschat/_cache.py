"""Tokens that were handed out, and the stock of tokens that nobody has been given yet.

Synchronous, bounded, without I/O and without a timer. All tokens live equally long, so the order
of insertion is the order of expiry: each insertion sweeps a little at the old end, and no single
call ever clears up after a mass of entries.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass

from aioivschat._clock import Clock
from aioivschat._models import TOKEN_LIFE, ChatToken, Identity
from aioivschat.errors import InvalidConfiguration

_SWEEP = 2
"""Old entries looked at per insertion: more than come in, so that the sweep always catches up."""

_MAX_FENCES = 65_536
"""Invalidations remembered one by one; beyond that, everything older is forgotten at once."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How many tokens are kept, and how fresh a token must be to be handed out.

    Args:
        max_tokens: tokens kept after they were handed out, for repeated calls. More than 12,000
            (200 a second for 60 s) cannot be alive per account and region.
        max_stock: tokens kept that nobody has been given yet; at least 1.
        min_remaining: seconds of life that every token has left when it is handed out; 0 or
            more, less than the 60 s that a token lives.

    Raises:
        InvalidConfiguration: if a number is out of its range.
    """

    max_tokens: int = 12_000
    max_stock: int = 12_000
    min_remaining: float = 5.0

    def __post_init__(self) -> None:
        for option in ("max_tokens", "max_stock"):
            if getattr(self, option) < 1:
                raise InvalidConfiguration(
                    f"CachePolicy.{option}", "at least 1", getattr(self, option)
                )
        if not 0 <= self.min_remaining < TOKEN_LIFE:
            raise InvalidConfiguration(
                "CachePolicy.min_remaining",
                f"from 0 s to less than the {TOKEN_LIFE:g} s that a token lives",
                self.min_remaining,
            )


class Entry:
    """A token with its two deadlines: the earlier one ends its life."""

    __slots__ = ("generation", "key", "monotonic_end", "token", "wall_end")

    key: Hashable  # under which it was delivered

    def __init__(
        self, token: ChatToken, monotonic_end: float, wall_end: float, generation: int
    ) -> None:
        self.token = token
        self.monotonic_end = monotonic_end
        self.wall_end = wall_end
        self.generation = generation

    @property
    def handed_out(self) -> bool:
        """Whether somebody was given this token."""
        return self.token.reused

    def hand_out(self) -> ChatToken:
        """Give the token to a caller; every later caller sees it as reused."""
        token = self.token
        if not token.reused:
            self.token = token.as_reused()
        return token


class TokenCache:
    """Delivered tokens by key and undelivered ones by identity.

    A key is an identity, or an attempt: an identity with the caller's idempotency key.

    Args:
        policy: the bounds.
        clock: where the time comes from.
    """

    def __init__(self, policy: CachePolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        # An entry that was replaced or removed keeps its place in the queue, and is skipped there.
        self._delivered: dict[Hashable, Entry] = {}
        self._delivered_order: deque[Entry] = deque()
        # Serial numbers give the stock one order over all identities, and constant-time removal.
        self._stock: OrderedDict[int, tuple[Identity, Entry]] = OrderedDict()
        self._serials: dict[Identity, deque[int]] = {}
        self._next_serial = 0
        self.expired_unused = 0
        self._generation = 0
        self._oldest_valid = 0
        # Without an expiry: a flight may queue for longer than a token lives.
        self._fences: dict[tuple[str | None, str | None], int] = {}

    @property
    def generation(self) -> int:
        """The number of invalidations so far; a token carries the one of its request's start."""
        return self._generation

    @property
    def delivered(self) -> int:
        """Delivered tokens held, expired ones that await their sweep included."""
        return len(self._delivered)

    @property
    def stocked(self) -> int:
        """Undelivered tokens held, expired ones that await their sweep included."""
        return len(self._stock)

    def get(self, key: Hashable, identity: Identity) -> Entry | None:
        """Return the delivered token of a key, if it may still be handed out."""
        entry = self._delivered.get(key)
        if entry is None or self.usable(entry, identity):
            return entry
        del self._delivered[key]
        return None

    def put(self, key: Hashable, entry: Entry) -> None:
        """Keep a token that is being handed out; the oldest one makes room."""
        self._sweep_delivered()
        entry.key = key
        self._delivered[key] = entry
        self._delivered_order.append(entry)
        if len(self._delivered_order) > self._policy.max_tokens:
            self._drop_oldest_delivered()

    def stock(self, identity: Identity, entry: Entry) -> None:
        """Keep a token that nobody has been given; the oldest one makes room."""
        self._sweep_stock()
        if len(self._stock) >= self._policy.max_stock:
            self._drop_oldest_stock()
        self._stock[self._next_serial] = identity, entry
        self._serials.setdefault(identity, deque()).append(self._next_serial)
        self._next_serial += 1

    def take(self, identity: Identity) -> Entry | None:
        """Remove and return a token that nobody has been given, the oldest if it is usable."""
        serials = self._serials.get(identity)
        if serials is None:
            return None
        # If the oldest are dead, most are: the newest is the one to try then, and the rest is
        # cleared up a little at a time.
        for next_serial in (*[serials.popleft] * _SWEEP, serials.pop):
            _, entry = self._stock.pop(next_serial())
            if not serials:
                del self._serials[identity]
            if self.usable(entry, identity):
                return entry
            self.expired_unused += 1
            if not serials:
                break
        return None

    def restock(self, key: Hashable, identity: Identity, entry: Entry) -> None:
        """Keep a token whose callers left without it as stock, and as stock only."""
        if entry.handed_out:
            return
        if self._delivered.get(key) is entry:
            del self._delivered[key]
        if self.usable(entry, identity):
            self.stock(identity, entry)

    def invalidate(self, room: str | None, user: str | None) -> None:
        """Forget the tokens of a room, of a user, or of a user in a room.

        It takes no time whatever is held: a fence is remembered, and tokens whose request began
        before it are dead.
        """
        self._generation += 1
        if len(self._fences) >= _MAX_FENCES:
            self._fences.clear()
            self._oldest_valid = self._generation
        self._fences[room, user] = self._generation

    def fenced(self, generation: int, identity: Identity) -> bool:
        """Tell whether a request that began at a generation was invalidated since."""
        if generation < self._oldest_valid:
            return True
        if not self._fences or generation == self._generation:
            return False
        room, user = identity[0], identity[1]
        return any(
            self._fences.get(fence, 0) > generation
            for fence in ((room, user), (room, None), (None, user))
        )

    def usable(self, entry: Entry, identity: Identity) -> bool:
        """Tell whether a token has the least remaining life and was not invalidated."""
        return self.alive(entry) and not self.fenced(entry.generation, identity)

    def alive(self, entry: Entry) -> bool:
        """Tell whether a token has the least remaining life by both clocks."""
        margin = self._policy.min_remaining
        return (
            entry.monotonic_end - self._clock.monotonic() >= margin
            and entry.wall_end - self._clock.wall() >= margin
        )

    def clear(self) -> None:
        """Forget everything."""
        self._delivered.clear()
        self._delivered_order.clear()
        self._stock.clear()
        self._serials.clear()

    def _sweep_delivered(self) -> None:
        order = self._delivered_order
        for _ in range(min(_SWEEP, len(order))):
            if self._is_delivered(order[0]) and self.alive(order[0]):
                return
            self._drop_oldest_delivered()

    def _drop_oldest_delivered(self) -> None:
        entry = self._delivered_order.popleft()
        if self._is_delivered(entry):
            del self._delivered[entry.key]

    def _is_delivered(self, entry: Entry) -> bool:
        return self._delivered.get(entry.key) is entry

    def _sweep_stock(self) -> None:
        for _ in range(min(_SWEEP, len(self._stock))):
            _, entry = next(iter(self._stock.values()))
            if self.alive(entry):
                return
            self._drop_oldest_stock()

    def _drop_oldest_stock(self) -> None:
        _, (identity, _) = self._stock.popitem(last=False)
        serials = self._serials[identity]
        serials.popleft()
        if not serials:
            del self._serials[identity]
        self.expired_unused += 1
