"""The cache's memory, and its longest pause.

``dict``: the memory of a cached token, beside a dictionary with the same keys and tokens. ``flat``:
how much memory grows while many more keys than fit pass through. ``pause``: the longest single
operation after many tokens have expired together.
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

_LIFE_SECONDS = 60.0

DICT_LIMITS = (harness.Limit("of a dict", at_most=1.21),)
GROWTH_LIMITS = (harness.Limit("growth %", at_most=1.0),)
PAUSE_LIMITS = (harness.Limit("longest ms", at_most=1.0),)

Operations = Iterable[Callable[[], object]]
"""Calls of a cache, made one after the other."""


class SteppedClock(Clock):
    """A clock that stands still until its time is set."""

    now = 1_000_000.0

    def wall(self) -> float:
        """Return the time that was set."""
        return self.now

    def monotonic(self) -> float:
        """Return the time that was set."""
        return self.now


def make_identity(number: int) -> Identity:
    """Return the identity of one of many users."""
    return TokenRequest(harness.ROOM, f"user-{number}", ("SEND_MESSAGE",)).identity


def make_entry(owner: Identity, clock: Clock) -> Entry:
    """Return a token's cache entry."""
    token, end, wall_end = (
        harness.make_token(clock.wall()),
        clock.monotonic() + _LIFE_SECONDS,
        clock.wall() + _LIFE_SECONDS,
    )
    return Entry(owner, token, end, wall_end, generation=0)


# The memory of a token.


def measure_bytes(fill: Callable[[], object]) -> int:
    """Return the memory that a function's result takes."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = fill()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        del kept


def fill_cache(tokens: int) -> TokenCache:
    """Return a full cache of delivered tokens."""
    clock = Clock()
    cache = TokenCache(CachePolicy(max_tokens=tokens), clock, Fences())
    for number in range(tokens):
        key = make_identity(number)
        made = make_entry(key, clock)
        cache.put(key, made)
        made.hand_out()
    return cache


def fill_dict(tokens: int) -> dict[Identity, ChatToken]:
    """Return as many tokens in a plain dictionary."""
    return {make_identity(number): harness.make_token(time.time()) for number in range(tokens)}


def compare_with_dict(tokens: int) -> dict[str, float]:
    """Compare the cache with a dictionary."""
    ours, theirs = (
        measure_bytes(lambda: fill_cache(tokens)),
        measure_bytes(lambda: fill_dict(tokens)),
    )
    return {
        "bytes per token": ours / tokens,
        "in a dict": theirs / tokens,
        "of a dict": ours / theirs,
    }


# The growth of memory.


def measure_growth(keys: int, capacity: int) -> dict[str, float]:
    """Pass keys through a small cache and a small stock, and measure the memory.

    Args:
        keys: the number of distinct keys.
        capacity: the tokens that each of the two holds.
    """
    clock = Clock()
    policy = CachePolicy(max_tokens=capacity, max_stock=capacity)
    cache = TokenCache(policy, clock, Fences())
    stock = TokenStock(policy, cache)
    levels = []
    tracemalloc.start()
    try:
        for number in range(keys):
            key = make_identity(number)
            cache.put(key, make_entry(key, clock))
            stock.add(make_entry(key, clock))
            if (number + 1) % (keys // 20) == 0:
                gc.collect()
                levels.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # The cache was full long before the first measurement.
    return {
        "MB after warm-up": levels[0] / 1e6,
        "MB at most": max(levels) / 1e6,
        "growth %": 100 * (max(levels) / levels[0] - 1),
    }


# The longest pause.


class Collections:
    """Measures the garbage collector's pauses, which are not the cache's."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        self._started = 0.0

    def __call__(self, phase: str, _: dict[str, int]) -> None:
        """Record the start or the end of a collection; one of :data:`gc.callbacks`."""
        if phase == "start":
            self._started = time.perf_counter()
        else:
            self.count += 1
            self.longest = max(self.longest, time.perf_counter() - self._started)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure while the block runs."""
        gc.callbacks.append(self)
        try:
            yield
        finally:
            gc.callbacks.remove(self)


def find_longest_pause(operations: Operations) -> dict[str, float]:
    """Return the longest operation, without those that the garbage collector interrupted.

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
        cache: of the delivered tokens; it can hold twice as many.
        stock: of the stocked tokens, as large.
        clock: the cache's clock.
        owners: the identity of each token.
        newcomers: as many identities without a token.
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
        identities = [make_identity(number) for number in range(2 * tokens)]
        owners = [identities[number % users] for number in range(tokens)]
        for owner in owners:
            cache.put(owner, make_entry(owner, clock))
            stock.add(make_entry(owner, clock))
        clock.now += _LIFE_SECONDS
        return cls(cache, stock, clock, owners, identities[tokens:])


def gets(expiry: MassExpiry) -> Operations:
    """Get expired tokens."""
    return [partial(expiry.cache.get, owner) for owner in expiry.owners]


def takes(expiry: MassExpiry) -> Operations:
    """Take expired tokens from the stock."""
    return [partial(expiry.stock.take, owner) for owner in expiry.owners]


def puts(expiry: MassExpiry) -> Operations:
    """Cache tokens of newcomers."""
    cache, clock = expiry.cache, expiry.clock
    return [
        partial(cache.put, newcomer, make_entry(newcomer, clock)) for newcomer in expiry.newcomers
    ]


def stocks(expiry: MassExpiry) -> Operations:
    """Stock tokens for newcomers."""
    stock, clock = expiry.stock, expiry.clock
    return [partial(stock.add, make_entry(newcomer, clock)) for newcomer in expiry.newcomers]


def replacements(expiry: MassExpiry) -> Operations:
    """Replace owners by newcomers in a plain dictionary, the least that any cache does.

    The longest pause of a dictionary is when it resizes.
    """
    table = {owner: make_entry(owner, expiry.clock) for owner in expiry.owners}

    def replace(owner: Identity, newcomer: Identity) -> None:
        table[newcomer] = table.pop(owner)

    pairs = zip(expiry.owners, expiry.newcomers, strict=True)
    return [partial(replace, owner, newcomer) for owner, newcomer in pairs]


@dataclass(frozen=True, slots=True)
class Pause:
    """A kind of operation.

    Args:
        operations: makes the calls to time.
        users: the number of users; ``None`` for as many as tokens.
        limits: those of its figures.
    """

    operations: Callable[[MassExpiry], Operations]
    users: int | None = None
    limits: Sequence[harness.Limit] = PAUSE_LIMITS

    def measure(self, tokens: int) -> dict[str, float]:
        """Return the longest operation after so many tokens have expired."""
        return find_longest_pause(self.operations(MassExpiry.of(tokens, self.users or tokens)))


PAUSES = {
    "plain dict": Pause(replacements, limits=()),
    "get": Pause(gets),
    "put": Pause(puts),
    "stock": Pause(stocks),
    "take": Pause(takes),
    "take, all of one user": Pause(takes, users=1),
}


def main() -> int:
    """Run the benchmark as the command line says."""
    options = _options()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in PAUSES}
    for name in harness.take_turns(PAUSES, options.repeats):
        runs[name].append(PAUSES[name].measure(options.expired))
    rows = [
        harness.Row.of(
            {"part": "dict", "case": "delivered"}, [compare_with_dict(options.tokens)], DICT_LIMITS
        ),
        harness.Row.of(
            {"part": "flat", "case": "delivered and stock"},
            [measure_growth(options.keys, options.capacity)],
            GROWTH_LIMITS,
        ),
        *(
            harness.Row.of({"part": "pause", "case": name}, runs[name], pause.limits)
            for name, pause in PAUSES.items()
        ),
    ]
    return harness.report(options, rows)


def _options() -> argparse.Namespace:
    parser = harness.make_parser(__doc__, repeats=7)
    add = parser.add_argument
    add("--tokens", type=int, default=100_000, help="in the cache and the dictionary")
    add("--keys", type=int, default=1_000_000, help="that pass through")
    add("--capacity", type=int, default=10_000, help="of the cache they pass through")
    add("--expired", type=int, default=12_000, help="tokens that expire together")
    return harness.parse_options(parser, tokens=1000, keys=2000, capacity=100, expired=500)


if __name__ == "__main__":
    sys.exit(main())
