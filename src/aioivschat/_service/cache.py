"""Tokens that were handed out, and the stock of tokens that nobody has been given yet.

Synchronous, bounded, without I/O and without a timer. All tokens live equally long, so the order
of insertion is the order of expiry: each insertion sweeps a little at the old end, and no single
call ever clears up after a mass of entries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from aioivschat._clock import Clock
from aioivschat._models import TOKEN_LIFE, ChatToken, Identity, Reply
from aioivschat.errors import require

_SWEEP = 2
"""Old entries looked at per insertion: more than come in, so that the sweep always catches up."""

_SHARDS = 16
"""Dictionaries that share the keys by hash. One that is full is laid out anew at once, which for
50,000 entries would stop the loop for more than a millisecond."""

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
        least = self.min_remaining
        limit = f"from 0 s to less than the {TOKEN_LIFE:g} s that a token lives"
        require(self.max_tokens >= 1, "CachePolicy.max_tokens", "at least 1", self.max_tokens)
        require(self.max_stock >= 1, "CachePolicy.max_stock", "at least 1", self.max_stock)
        require(0 <= least < TOKEN_LIFE, "CachePolicy.min_remaining", limit, least)


class Entry:
    """A token with its two deadlines: the earlier one ends its life.

    Args:
        token: the token.
        monotonic_end: when it ends by the monotonic clock, in seconds.
        wall_end: when it ends by the wall clock, in seconds.
        generation: of the cache, at the start of the token's request.

    Attributes:
        handed_out: whether somebody was given this token.
    """

    __slots__ = ("_reply", "generation", "handed_out", "key", "monotonic_end", "token", "wall_end")

    key: Hashable  # under which it was delivered
    _reply: dict[str, Any] | None

    def __init__(
        self, token: ChatToken, monotonic_end: float, wall_end: float, generation: int
    ) -> None:
        self.token = token
        self.monotonic_end = monotonic_end
        self.wall_end = wall_end
        self.generation = generation
        self.handed_out = token.reused
        self._reply = None

    def hand_out(self) -> ChatToken:
        """Give the token to a caller; every later caller sees it as reused."""
        # Most are never asked for again, so the copy that says so waits for the second caller.
        if self.handed_out and not self.token.reused:
            self.token = self.token.as_reused()
        self.handed_out = True
        return self.token

    def reply(self) -> Reply:
        """Give the token once more, as boto3's reply; the dict is the caller's own."""
        # To copy one costs half of making one.
        if self._reply is None:
            self._reply = dict(self.hand_out().reply())
        return Reply(self._reply)


class _Stocked:
    """A place in the stock, which may outlast its taking in one of the queues."""

    __slots__ = ("entry", "identity", "taken")

    def __init__(self, identity: Identity, entry: Entry) -> None:
        self.identity = identity
        self.entry = entry
        self.taken = False


class TokenCache:
    """Delivered tokens by key and undelivered ones by identity.

    A key is an identity, or an attempt: an identity with the caller's idempotency key.

    Args:
        policy: the bounds.
        clock: where the time comes from.

    Attributes:
        hits: how often a delivered token was given again.
        expired_unused: stocked tokens that were dropped before anybody was given them.
    """

    def __init__(self, policy: CachePolicy, clock: Clock) -> None:
        self._policy = policy
        self._margin = policy.min_remaining
        self._monotonic = clock.monotonic
        self._wall = clock.wall
        # An entry that was replaced or removed keeps its place in the queue, and is skipped there.
        self._delivered: tuple[dict[Hashable, Entry], ...] = tuple({} for _ in range(_SHARDS))
        self._delivered_order: deque[Entry] = deque()
        # The same for the stock, whose places stand in two queues.
        self._stock: tuple[dict[Identity, deque[_Stocked]], ...]
        self._stock = tuple({} for _ in range(_SHARDS))
        self._stock_order: deque[_Stocked] = deque()
        self._stocked = 0
        self.hits = 0
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
    def max_stock(self) -> int:
        """Undelivered tokens held at most."""
        return self._policy.max_stock

    @property
    def delivered(self) -> int:
        """Delivered tokens held, expired ones that await their sweep included."""
        return sum(map(len, self._delivered))

    @property
    def stocked(self) -> int:
        """Undelivered tokens held, expired ones that await their sweep included."""
        return self._stocked

    def get(self, key: Hashable, identity: Identity) -> Entry | None:
        """Return the delivered token of a key, if it may still be handed out."""
        shard = self._delivered[hash(key) % _SHARDS]
        entry = shard.get(key)
        if entry is None:
            return None
        if not self.usable(entry, identity):
            del shard[key]
            return None
        self.hits += 1
        return entry

    def again(self, identity: tuple[Any, ...]) -> Entry | None:
        """Return the delivered token of an identity, which need not be one that was checked.

        It is what :meth:`get` is, for the call that is made most often: one look-up, and the
        clocks.
        """
        entry = self._delivered[hash(identity) % _SHARDS].get(identity)
        if (
            entry is not None
            and entry.monotonic_end - self._monotonic() >= self._margin
            and entry.wall_end - self._wall() >= self._margin
            and not (self._fences and self.fenced(entry.generation, identity))
        ):
            self.hits += 1
            return entry
        return None

    def put(self, key: Hashable, entry: Entry) -> None:
        """Keep a token that is being handed out; the oldest one makes room."""
        self._sweep_delivered()
        entry.key = key
        self._delivered[hash(key) % _SHARDS][key] = entry
        self._delivered_order.append(entry)
        if len(self._delivered_order) > self._policy.max_tokens:
            self._drop_oldest_delivered()

    def stock(self, identity: Identity, entry: Entry) -> None:
        """Keep a token that nobody has been given; the oldest one makes room."""
        self.sweep_stock()
        while self._stocked >= self._policy.max_stock:
            self._drop_oldest_stock()
        place = _Stocked(identity, entry)
        self._stock_order.append(place)
        self._stock[hash(identity) % _SHARDS].setdefault(identity, deque()).append(place)
        self._stocked += 1

    def take(self, identity: Identity) -> Entry | None:
        """Remove and return a token that nobody has been given, the oldest if it is usable."""
        if not self._stocked:
            return None
        places = self._stock[hash(identity) % _SHARDS].get(identity)
        if places is None:
            return None
        # If the oldest are dead, most are: the newest is the one to try then, and the rest is
        # cleared up a little at a time.
        for next_place in (*[places.popleft] * _SWEEP, places.pop):
            place = next_place()
            self._vacate(place, places)
            if self.usable(place.entry, identity):
                return place.entry
            self.expired_unused += 1
            if not places:
                break
        return None

    def stock_room(self) -> int:
        """Return how many more tokens can be stocked before the oldest makes room."""
        self.sweep_stock()
        return max(0, self._policy.max_stock - self._stocked)

    def stock_end(self) -> float | None:
        """Return when the oldest stocked token is too old, by the monotonic clock, if any is."""
        order = self._stock_order
        return order[0].entry.monotonic_end - self._margin if order else None

    def sweep_stock(self, most: int = _SWEEP) -> bool:
        """Drop what is dead at the old end of the stock; return whether there may be more."""
        order = self._stock_order
        for _ in range(min(most, len(order))):
            if not order[0].taken and self.alive(order[0].entry):
                return False
            self._drop_oldest_stock()
        return bool(order)

    def restock(self, key: Hashable, identity: Identity, entry: Entry) -> bool:
        """Keep a token whose callers left without it as stock, and as stock only.

        Returns:
            Whether it was: not if it was handed out, is too old, or was invalidated.
        """
        if entry.handed_out:
            return False
        shard = self._delivered[hash(key) % _SHARDS]
        if shard.get(key) is entry:
            del shard[key]
        if not self.usable(entry, identity):
            return False
        self.stock(identity, entry)
        return True

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

    def fenced(self, generation: int, identity: tuple[Any, ...]) -> bool:
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
        return (
            entry.monotonic_end - self._monotonic() >= self._margin
            and entry.wall_end - self._wall() >= self._margin
        )

    def clear(self) -> None:
        """Forget everything."""
        for delivered in self._delivered:
            delivered.clear()
        for stock in self._stock:
            stock.clear()
        self._delivered_order.clear()
        self._stock_order.clear()
        self._stocked = 0

    def _sweep_delivered(self) -> None:
        order = self._delivered_order
        for _ in range(min(_SWEEP, len(order))):
            if self._is_delivered(order[0]) and self.alive(order[0]):
                return
            self._drop_oldest_delivered()

    def _drop_oldest_delivered(self) -> None:
        entry = self._delivered_order.popleft()
        if self._is_delivered(entry):
            del self._delivered[hash(entry.key) % _SHARDS][entry.key]

    def _is_delivered(self, entry: Entry) -> bool:
        return self._delivered[hash(entry.key) % _SHARDS].get(entry.key) is entry

    def _drop_oldest_stock(self) -> None:
        place = self._stock_order.popleft()
        if not place.taken:
            places = self._stock[hash(place.identity) % _SHARDS][place.identity]
            # First in both queues: what is taken leaves the identity's.
            places.popleft()
            self._vacate(place, places)
            self.expired_unused += 1

    def _vacate(self, place: _Stocked, places: deque[_Stocked]) -> None:
        place.taken = True
        self._stocked -= 1
        if not places:
            del self._stock[hash(place.identity) % _SHARDS][place.identity]
