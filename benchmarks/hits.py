"""The cost of a cache hit, beside a plain dictionary and other caches.

All contestants are asked for the same users in the same random order, over and over: by the keyword
arguments of ``create_chat_token``, by a request object, or by a ready key. Ratios are to async-lru
in the same round.

``growth`` is the cost relative to the contestant's own with the fewest entries. If all entries are
asked for, it shows mostly the processor, whose caches are too small for many entries: a plain
dictionary grows most. If only a few are asked for (``growth, few asked``), it shows the contestant.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

from aiobotocore.session import AioSession
from async_lru import alru_cache
from cachetools import TTLCache

import harness
from aioivschat import AsyncTokenService, CachePolicy, Clock, Quota, TokenRequest
from aioivschat.planning._virtual_time import CreateChatToken, in_process_session

CAPABILITIES = ("SEND_MESSAGE",)
BY_REQUEST, BY_KEYWORDS = "async-lru, request", "async-lru, keywords"
ISSUE, CREATE = "issue, request", "create_chat_token, keywords"

OF_KEYWORDS, OF_REQUEST = "of async-lru", "of async-lru by request"
GROWTH, GROWTH_OF_FEW = "growth", "growth, few asked"
FLAT = harness.Limit(GROWTH_OF_FEW, at_most=1.5)
LIMITS = {
    ISSUE: (harness.Limit(OF_KEYWORDS, at_most=0.4), harness.Limit(OF_REQUEST, at_most=1.0), FLAT),
    CREATE: (harness.Limit(OF_KEYWORDS, at_most=0.9), FLAT),
}

_HOUR_SECONDS = 3600.0
_UNLIMITED = 1_000_000
_FILLED_AT_ONCE = 1000
_FEW_USERS = 100

Keywords = dict[str, Any]


def make_local_session(clock: Clock) -> AioSession:
    """Return a session whose clients mint in this process, without a server.

    Args:
        clock: gives the tokens' times.
    """

    async def create_chat_token(**_: object) -> Mapping[str, object]:
        return harness.make_token(clock.wall()).reply()

    async def open_client(_: str) -> CreateChatToken:
        return create_chat_token

    return in_process_session(open_client)


@contextmanager
def an_hour_ahead(clock: Clock) -> Iterator[None]:
    """Let a clock run an hour ahead: tokens cached in the block outlive the benchmark.

    Afterwards it is the host's clock again, at no extra cost.
    """
    with mock.patch.multiple(
        clock,
        monotonic=lambda: time.monotonic() + _HOUR_SECONDS,
        wall=lambda: time.time() + _HOUR_SECONDS,
    ):
        yield


@asynccontextmanager
async def open_filled_service(requests: Sequence[TokenRequest]) -> AsyncIterator[AsyncTokenService]:
    """Open a service with a cached token for every request."""
    clock = Clock()
    async with AsyncTokenService(
        session=make_local_session(clock),
        endpoint_url="http://127.0.0.1",
        quota=Quota(rate=_UNLIMITED, burst=_UNLIMITED),
        cache=CachePolicy(max_tokens=2 * len(requests)),
        clock=clock,
    ) as service:
        with an_hour_ahead(clock):
            await _fill(service.issue, requests)
        yield service


async def _fill(call: Callable[[Any], Awaitable[object]], users: Sequence[object]) -> None:
    for start in range(0, len(users), _FILLED_AT_ONCE):
        await asyncio.gather(*map(call, users[start : start + _FILLED_AT_ONCE]))


class Origin:
    """Mints tokens to fill the caches, and counts them."""

    def __init__(self) -> None:
        self.calls = 0

    async def issue(self, request: TokenRequest) -> object:
        """Mint for a request."""
        self.calls += 1
        return harness.make_token(time.time())

    def create_chat_token(self) -> Callable[..., Awaitable[object]]:
        """Return a new function that mints: some caches set attributes on it."""

        async def create_chat_token(
            *,
            roomIdentifier: str,  # noqa: N803 (boto3's)
            userId: str,  # noqa: N803 (boto3's)
            capabilities: Sequence[str],
        ) -> object:
            self.calls += 1
            return harness.make_token(time.time())

        return create_chat_token


# Each of these wraps a function in the way that the library documents first, for an hour and a
# number of entries.

Wrapper = Callable[[Callable[..., Any], int], Callable[..., Any]]


def _by_async_lru(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    return alru_cache(maxsize=size, ttl=_HOUR_SECONDS)(function)


def _by_cachetools_async(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    wrapped: Callable[..., Any] = harness.import_peer("cachetools_async").cached(
        TTLCache(size, _HOUR_SECONDS)
    )(function)
    return wrapped


def _by_aiocache(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    # aiocache has no limit of entries.
    wrapped: Callable[..., Any] = harness.import_peer("aiocache").cached(ttl=int(_HOUR_SECONDS))(
        function
    )
    return wrapped


def _by_cashews(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    cache = harness.import_peer("cashews").Cache()
    cache.setup(f"mem://?size={size}")
    key = "{roomIdentifier}:{userId}:{capabilities}"
    wrapped: Callable[..., Any] = cache(ttl=int(_HOUR_SECONDS), key=key)(function)
    return wrapped


def _by_theine(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    memoize = harness.import_peer("theine").Memoize(size, timedelta(seconds=_HOUR_SECONDS))
    wrapped: Callable[..., Any] = memoize(function)
    return wrapped


PEERS: Mapping[str, tuple[str, Wrapper]] = {
    BY_KEYWORDS: ("async_lru", _by_async_lru),
    "cachetools-async, keywords": ("cachetools_async", _by_cachetools_async),
    "theine, keywords": ("theine", _by_theine),
    "aiocache, keywords": ("aiocache", _by_aiocache),
    "cashews, keywords": ("cashews", _by_cashews),
}
"""The module and the wrapper of each."""


Ask = Callable[[], Awaitable[None]]
"""Asks once for each of many users."""


@asynccontextmanager
async def open_contestants(size: int) -> AsyncIterator[dict[str, tuple[Ask, Ask]]]:
    """Open the contestants, each with a token for every user.

    Args:
        size: the number of users.

    Yields:
        By contestant, a function that asks for all users and one that asks for a few of them.
    """
    requests = [TokenRequest(harness.ROOM, f"user-{n}", CAPABILITIES) for n in range(size)]
    origin = Origin()
    table = {each.identity: harness.make_token(time.time()) for each in requests}
    timed: TTLCache[Any, object] = TTLCache(2 * size, _HOUR_SECONDS)
    timed.update(table)
    by_request = _by_async_lru(origin.issue, 2 * size)
    by_keywords = {
        name: wrap(origin.create_chat_token(), 2 * size)
        for name, (module, wrap) in PEERS.items()
        if harness.import_peer(module)
    }
    async with open_filled_service(requests) as service:
        await _fill(by_request, requests)
        for call in by_keywords.values():
            await _fill(partial(_call_by_keywords, call), requests)
        filled = origin.calls
        # Shuffled: users who are neighbours in memory must not be asked for one after the other.
        random.shuffle(requests)

        def asks_for(users: Sequence[TokenRequest]) -> dict[str, Ask]:
            keys = [each.identity for each in users]
            keywords = [_make_keywords(each) for each in users]
            return {
                "dict, ready key": partial(_look_up, table, keys),
                "cachetools TTLCache, ready key": partial(_look_up, timed, keys),
                BY_REQUEST: partial(_ask, by_request, users),
                ISSUE: partial(_ask, service.issue, users),
                CREATE: partial(_ask_by_keywords, service.create_chat_token, keywords),
                **{
                    name: partial(_ask_by_keywords, call, keywords)
                    for name, call in by_keywords.items()
                },
            }

        everybody, few = asks_for(requests), asks_for(requests[:_FEW_USERS])
        yield {name: (everybody[name], few[name]) for name in everybody}
        misses = (service.stats().requests - size, origin.calls - filled)
        if any(misses):
            raise RuntimeError(f"not only hits were measured: {misses} misses")


def _call_by_keywords(call: Callable[..., Any], request: TokenRequest) -> Any:
    return call(**_make_keywords(request))


def _make_keywords(request: TokenRequest) -> Keywords:
    return {
        "roomIdentifier": request.room,
        "userId": request.user,
        "capabilities": CAPABILITIES,
    }


# Three loops of their own: a common loop would add the cost of a call.


async def _look_up(table: Mapping[Any, object], keys: Sequence[Any]) -> None:
    for key in keys:
        table[key]


async def _ask(call: Callable[[Any], Awaitable[object]], requests: Sequence[Any]) -> None:
    for request in requests:
        await call(request)


async def _ask_by_keywords(
    call: Callable[..., Awaitable[object]], users: Sequence[Keywords]
) -> None:
    for keywords in users:
        await call(**keywords)


async def measure_microseconds(ask: Ask, users: int, hits: int) -> float:
    """Return the time of one hit.

    Args:
        ask: asks once for every user.
        users: the number of users.
        hits: the least number of hits to time.
    """
    times = max(1, hits // users)
    started = time.perf_counter()
    for _ in range(times):
        await ask()
    return 1e6 * (time.perf_counter() - started) / (times * users)


Case = tuple[int, str]
"""A number of entries, and a contestant."""
Cost = tuple[float, float]
"""Microseconds of a hit if all users are asked for, and if a few are."""


async def measure(options: argparse.Namespace) -> dict[Case, list[Cost]]:
    """Measure all contestants with each number of entries, in turns."""
    async with AsyncExitStack() as stack:
        ways: dict[Case, tuple[Ask, Ask]] = {}
        for size in options.entries:
            opened = await stack.enter_async_context(open_contestants(size))
            ways.update({(size, name): asks for name, asks in opened.items()})
        runs: dict[Case, list[Cost]] = {case: [] for case in ways}
        with harness.collector_off():
            for size, name in harness.take_turns(ways, options.repeats):
                everybody, few = ways[size, name]
                cost = (
                    await measure_microseconds(everybody, size, options.hits),
                    await measure_microseconds(few, min(size, _FEW_USERS), options.hits),
                )
                runs[size, name].append(cost)
    return runs


def row_of(runs: Mapping[Case, Sequence[Cost]], case: Case) -> harness.Row:
    """Return the row of a case, with ratios to other open_contestants in the same round."""
    size, name = case
    least = min(size for size, _ in runs)
    figures = [
        {
            "µs": own,
            OF_KEYWORDS: own / by_keywords,
            OF_REQUEST: own / by_request,
            GROWTH: own / own_least,
            GROWTH_OF_FEW: few / few_least,
        }
        for (own, few), (own_least, few_least), (by_keywords, _), (by_request, _) in zip(
            runs[case],
            runs[least, name],
            runs[size, BY_KEYWORDS],
            runs[size, BY_REQUEST],
            strict=True,
        )
    ]
    labels = {"contestant": name, "entries": str(size)}
    return harness.Row.of(labels, figures, LIMITS.get(name, ()))


def main() -> int:
    """Run the benchmark as the command line says."""
    parser = harness.make_parser(__doc__, repeats=9)
    parser.add_argument(
        "--entries",
        nargs="+",
        type=int,
        default=[100, 10_000, 100_000],
        metavar="N",
        help="tokens cached (default: 100, 10,000 and 100,000)",
    )
    parser.add_argument(
        "--hits", type=int, default=20_000, help="in one run at least (default: %(default)s)"
    )
    options = harness.parse_options(parser, entries=[10, 100], hits=100)
    runs = asyncio.run(measure(options))
    rows = [row_of(runs, case) for case in runs]
    left_out = [name for name, (module, _) in PEERS.items() if not harness.import_peer(module)]
    return harness.report(options, rows, left_out)


if __name__ == "__main__":
    sys.exit(main())
