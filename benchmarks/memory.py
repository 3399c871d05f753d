"""The cache's memory, and its longest pause.

``dict``: what a token in the cache takes, against the same tokens in a dictionary with the same
keys. ``flat``: whether memory stays where it is while many more keys than fit pass through.
``pause``: the longest single operation while many tokens have expired together.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import harness
from aioivschat import CachePolicy, ChatToken, Clock, TokenRequest
from aioivschat._models import Identity
from aioivschat._service.cache import Entry, TokenCache
from aioivschat._service.fences import Fences
from aioivschat._service.stock import TokenStock

_LIFE = 60.0

RATIO = (harness.Limit("of a dict", at_most=1.21),)
FLAT = (harness.Limit("growth %", at_most=1.0),)
PAUSE = (harness.Limit("longest ms", at_most=1.0),)

Operations = Iterable[Callable[[], object]]
"""Calls of a cache, to be made one after the other."""


class SteppedClock(Clock):
    """A clock that stands until it is told to go on."""

    now = 1_000_000.0

    def wall(self) -> float:
        """Return the seconds it was set to."""
        return self.now

    def monotonic(self) -> float:
        """Return the seconds it was set to."""
        return self.now


def identity(number: int) -> Identity:
    """Return the key of one of many users."""
    return TokenRequest(harness.ROOM, f"user-{number}", ("SEND_MESSAGE",)).identity


def entry(owner: Identity, clock: Clock) -> Entry:
    """Return a token as the service keeps it."""
    token, end, wall_end = (
        harness.token(clock.wall()),
        clock.monotonic() + _LIFE,
        clock.wall() + _LIFE,
    )
    return Entry(owner, token, end, wall_end, generation=0)


# What a token takes.


def bytes_of(fill: Callable[[], object]) -> int:
    """Return the memory of what a function returns."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = fill()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        del kept


def cache_of(tokens: int) -> TokenCache:
    """Return a full cache of delivered tokens."""
    clock = Clock()
    cache = TokenCache(CachePolicy(max_tokens=tokens), clock, Fences())
    for number in range(tokens):
        key = identity(number)
        made = entry(key, clock)
        cache.put(key, made)
        made.hand_out()
    return cache


def dict_of(tokens: int) -> dict[Identity, ChatToken]:
    """Return the same tokens, kept without any care."""
    return {identity(number): harness.token(time.time()) for number in range(tokens)}


def against_a_dict(tokens: int) -> dict[str, float]:
    """Compare the two."""
    ours, theirs = bytes_of(lambda: cache_of(tokens)), bytes_of(lambda: dict_of(tokens))
    return {
        "bytes per token": ours / tokens,
        "in a dict": theirs / tokens,
        "of a dict": ours / theirs,
    }


# Whether it stays flat.


def growth(keys: int, capacity: int) -> dict[str, float]:
    """Let keys through a small cache and a small stock and watch the memory.

    Args:
        keys: how many distinct ones.
        capacity: how many each of the two holds.
    """
    clock = Clock()
    policy = CachePolicy(max_tokens=capacity, max_stock=capacity)
    cache = TokenCache(policy, clock, Fences())
    stock = TokenStock(policy, cache)
    levels = []
    tracemalloc.start()
    try:
        for number in range(keys):
            key = identity(number)
            cache.put(key, entry(key, clock))
            stock.add(entry(key, clock))
            if (number + 1) % (keys // 20) == 0:
                gc.collect()
                levels.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # The first mark is well past the point where the cache is full.
    return {
        "MB after warm-up": levels[0] / 1e6,
        "MB at most": max(levels) / 1e6,
        "growth %": 100 * (max(levels) / levels[0] - 1),
    }


# The longest pause.


class Collections:
    """Watches the collector of cycles: its pauses are not the cache's."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        self._started = 0.0

    def __call__(self, phase: str, _: dict[str, int]) -> None:
        """Take note of a phase, as :data:`gc.callbacks` are told of it."""
        if phase == "start":
            self._started = time.perf_counter()
        else:
            self.count += 1
            self.longest = max(self.longest, time.perf_counter() - self._started)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs."""
        gc.callbacks.append(self)
        try:
            yield
        finally:
            gc.callbacks.remove(self)


def longest_pause(operations: Operations) -> dict[str, float]:
    """Time each operation; one that the collector interrupted is not counted.

    Args:
        operations: calls of the cache.
    """
    collections = Collections()
    longest = 0.0
    gc.collect()
    with collections.watching():
        for operation in operations:
            before = collections.count
            started = time.perf_counter()
            operation()
            took = time.perf_counter() - started
            if collections.count == before:
                longest = max(longest, took)
    return {
        "longest ms": 1e3 * longest,
        "collections": collections.count,
        "longest collection ms": 1e3 * collections.longest,
    }


@dataclass(frozen=True, slots=True)
class MassExpiry:
    """Delivered and stocked tokens that have all expired just now.

    Args:
        cache: of the delivered ones; it holds twice as many.
        stock: of the others, as large.
        clock: its clock.
        owners: whose the tokens are, one for each.
        newcomers: as many who have none.
    """

    cache: TokenCache
    stock: TokenStock
    clock: Clock
    owners: Sequence[Identity]
    newcomers: Sequence[Identity]

    @classmethod
    def of(cls, tokens: int, users: int) -> MassExpiry:
        """Let so many tokens of so many users expire."""
        clock = SteppedClock()
        policy = CachePolicy(max_tokens=2 * tokens, max_stock=2 * tokens)
        cache = TokenCache(policy, clock, Fences())
        stock = TokenStock(policy, cache)
        identities = [identity(number) for number in range(2 * tokens)]
        owners = [identities[number % users] for number in range(tokens)]
        for owner in owners:
            cache.put(owner, entry(owner, clock))
            stock.add(entry(owner, clock))
        clock.now += _LIFE
        return cls(cache, stock, clock, owners, identities[tokens:])


def gets(expiry: MassExpiry) -> Operations:
    """Ask for what has expired."""
    return [partial(expiry.cache.get, owner) for owner in expiry.owners]


def takes(expiry: MassExpiry) -> Operations:
    """Ask the stock for what has expired."""
    return [partial(expiry.stock.take, owner) for owner in expiry.owners]


def puts(expiry: MassExpiry) -> Operations:
    """Deliver to newcomers."""
    cache, clock = expiry.cache, expiry.clock
    return [partial(cache.put, newcomer, entry(newcomer, clock)) for newcomer in expiry.newcomers]


def stocks(expiry: MassExpiry) -> Operations:
    """Stock for newcomers."""
    stock, clock = expiry.stock, expiry.clock
    return [partial(stock.add, entry(newcomer, clock)) for newcomer in expiry.newcomers]


def replacements(expiry: MassExpiry) -> Operations:
    """Let newcomers take the places of owners in a plain dictionary: the least that any cache does.

    A dictionary lays itself out anew now and then, which is the longest pause of its own.
    """
    table = {owner: entry(owner, expiry.clock) for owner in expiry.owners}

    def replace(owner: Identity, newcomer: Identity) -> None:
        table[newcomer] = table.pop(owner)

    pairs = zip(expiry.owners, expiry.newcomers, strict=True)
    return [partial(replace, owner, newcomer) for owner, newcomer in pairs]


@dataclass(frozen=True, slots=True)
class Pause:
    """A kind of operation.

    Args:
        operations: the calls to time.
        users: how many the tokens belong to; ``None``: each to another.
        limits: what is promised.
    """

    operations: Callable[[MassExpiry], Operations]
    users: int | None = None
    limits: Sequence[harness.Limit] = PAUSE

    def measure(self, tokens: int) -> dict[str, float]:
        """Find the longest operation after so many tokens have expired."""
        return longest_pause(self.operations(MassExpiry.of(tokens, self.users or tokens)))


PAUSES = {
    "plain dict": Pause(replacements, limits=()),
    "get": Pause(gets),
    "put": Pause(puts),
    "stock": Pause(stocks),
    "take": Pause(takes),
    "take, all of one user": Pause(takes, users=1),
}


def main() -> int:
    """Run what the command line asks for."""
    options = _options()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in PAUSES}
    for name in harness.rounds(PAUSES, options.repeats):
        runs[name].append(PAUSES[name].measure(options.expired))
    rows = [
        harness.Row.of(
            {"part": "dict", "case": "delivered"}, [against_a_dict(options.tokens)], RATIO
        ),
        harness.Row.of(
            {"part": "flat", "case": "delivered and stock"},
            [growth(options.keys, options.capacity)],
            FLAT,
        ),
        *(
            harness.Row.of({"part": "pause", "case": name}, runs[name], pause.limits)
            for name, pause in PAUSES.items()
        ),
    ]
    return harness.report(options, rows)


def _options() -> argparse.Namespace:
    parser = harness.arguments(__doc__, repeats=7)
    add = parser.add_argument
    add("--tokens", type=int, default=100_000, help="in the cache and the dictionary")
    add("--keys", type=int, default=1_000_000, help="that pass through")
    add("--capacity", type=int, default=10_000, help="of the cache they pass through")
    add("--expired", type=int, default=12_000, help="tokens that expire together")
    return harness.parsed(parser, tokens=1000, keys=2000, capacity=100, expired=500)


if __name__ == "__main__":
    sys.exit(main())
