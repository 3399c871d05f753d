"""The cost of a cache hit, beside a plain dictionary and the caches that people use.

All contestants are asked for the same users in the same random order, over and over: by the keyword
arguments of ``create_chat_token``, by a request that is kept, or by a key that is ready. Ratios are
to the same round of async-lru.

``growth`` is to the contestant's own cost with the fewest entries. Asked for all of them, it is
mostly the processor's: what is many does not fit its caches, and a plain dictionary grows most.
Asked for the same few, it is the cache's own.
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
from aioivschat.planning._virtual_time import CreateChatToken, session_here

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

_HOUR = 3600.0
_UNLIMITED = 1_000_000
_FILLED_AT_ONCE = 1000
_FEW = 100

Keywords = dict[str, Any]


def local_session(clock: Clock) -> AioSession:
    """Return a session whose clients mint in this process: the server is not what is measured.

    Args:
        clock: where the tokens' times come from.
    """

    async def create_chat_token(**_: object) -> Mapping[str, object]:
        return harness.token(clock.wall()).reply()

    async def open_client(_: str) -> CreateChatToken:
        return create_chat_token

    return session_here(open_client)


@contextmanager
def an_hour_ahead(clock: Clock) -> Iterator[None]:
    """Let a clock run an hour ahead: what is cached meanwhile outlives every measurement.

    Afterwards it is the host's clock again, and as fast.
    """
    with mock.patch.multiple(
        clock, monotonic=lambda: time.monotonic() + _HOUR, wall=lambda: time.time() + _HOUR
    ):
        yield


@asynccontextmanager
async def filled_service(requests: Sequence[TokenRequest]) -> AsyncIterator[AsyncTokenService]:
    """Open a service that has a token for every request."""
    clock = Clock()
    async with AsyncTokenService(
        session=local_session(clock),
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
    """What the caches are filled from; it counts."""

    def __init__(self) -> None:
        self.calls = 0

    async def issue(self, request: TokenRequest) -> object:
        """Mint for a request."""
        self.calls += 1
        return harness.token(time.time())

    def create_chat_token(self) -> Callable[..., Awaitable[object]]:
        """Return a function that mints for keyword arguments; a new one, as some get marks."""

        async def create_chat_token(
            *,
            roomIdentifier: str,  # noqa: N803 (boto3's)
            userId: str,  # noqa: N803 (boto3's)
            capabilities: Sequence[str],
        ) -> object:
            self.calls += 1
            return harness.token(time.time())

        return create_chat_token


# Each of these wraps a function by the means that its documentation gives first, for an hour and so
# many entries.

Wrapper = Callable[[Callable[..., Any], int], Callable[..., Any]]


def _by_async_lru(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    return alru_cache(maxsize=size, ttl=_HOUR)(function)


def _by_cachetools_async(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    wrapped: Callable[..., Any] = harness.peer("cachetools_async").cached(TTLCache(size, _HOUR))(
        function
    )
    return wrapped


def _by_aiocache(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    # It has no bound.
    wrapped: Callable[..., Any] = harness.peer("aiocache").cached(ttl=int(_HOUR))(function)
    return wrapped


def _by_cashews(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    cache = harness.peer("cashews").Cache()
    cache.setup(f"mem://?size={size}")
    key = "{roomIdentifier}:{userId}:{capabilities}"
    wrapped: Callable[..., Any] = cache(ttl=int(_HOUR), key=key)(function)
    return wrapped


def _by_theine(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    memoize = harness.peer("theine").Memoize(size, timedelta(seconds=_HOUR))
    wrapped: Callable[..., Any] = memoize(function)
    return wrapped


PEERS: Mapping[str, tuple[str, Wrapper]] = {
    BY_KEYWORDS: ("async_lru", _by_async_lru),
    "cachetools-async, keywords": ("cachetools_async", _by_cachetools_async),
    "theine, keywords": ("theine", _by_theine),
    "aiocache, keywords": ("aiocache", _by_aiocache),
    "cashews, keywords": ("cashews", _by_cashews),
}
"""Module and wrapper of each."""


Ask = Callable[[], Awaitable[None]]
"""Asks once for each of many users."""


@asynccontextmanager
async def contestants(size: int) -> AsyncIterator[dict[str, tuple[Ask, Ask]]]:
    """Open the contestants, each with a token for every user.

    Args:
        size: how many users.

    Yields:
        For each a way to ask for all, and one to ask for a few of them.
    """
    requests = [TokenRequest(harness.ROOM, f"user-{n}", CAPABILITIES) for n in range(size)]
    origin = Origin()
    table = {each.identity: harness.token(time.time()) for each in requests}
    timed: TTLCache[Any, object] = TTLCache(2 * size, _HOUR)
    timed.update(table)
    by_request = _by_async_lru(origin.issue, 2 * size)
    by_keywords = {
        name: wrap(origin.create_chat_token(), 2 * size)
        for name, (module, wrap) in PEERS.items()
        if harness.peer(module)
    }
    async with filled_service(requests) as service:
        await _fill(by_request, requests)
        for call in by_keywords.values():
            await _fill(partial(_call_by_keywords, call), requests)
        filled = origin.calls
        # From here on in another order: neighbours in memory must not be neighbours in time.
        random.shuffle(requests)

        def asking(users: Sequence[TokenRequest]) -> dict[str, Ask]:
            keys = [each.identity for each in users]
            keywords = [_keywords(each) for each in users]
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

        everybody, few = asking(requests), asking(requests[:_FEW])
        yield {name: (everybody[name], few[name]) for name in everybody}
        misses = (service.stats().requests - size, origin.calls - filled)
        if any(misses):
            raise RuntimeError(f"not only hits were measured: {misses} misses")


def _call_by_keywords(call: Callable[..., Any], request: TokenRequest) -> Any:
    return call(**_keywords(request))


def _keywords(request: TokenRequest) -> Keywords:
    return {
        "roomIdentifier": request.room,
        "userId": request.user,
        "capabilities": CAPABILITIES,
    }


# A loop for each: a common one would measure the call that tells them apart.


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


async def microseconds(ask: Ask, users: int, hits: int) -> float:
    """Return what one hit takes.

    Args:
        ask: asks once for every user.
        users: how many that are.
        hits: how many to time at least.
    """
    times = max(1, hits // users)
    started = time.perf_counter()
    for _ in range(times):
        await ask()
    return 1e6 * (time.perf_counter() - started) / (times * users)


Case = tuple[int, str]
"""So many entries, and a contestant."""
Cost = tuple[float, float]
"""Of a hit among all, and among few, in microseconds."""


async def measure(options: argparse.Namespace) -> dict[Case, list[Cost]]:
    """Measure all contestants with so many users, in turns."""
    async with AsyncExitStack() as stack:
        ways: dict[Case, tuple[Ask, Ask]] = {}
        for size in options.entries:
            opened = await stack.enter_async_context(contestants(size))
            ways.update({(size, name): asks for name, asks in opened.items()})
        runs: dict[Case, list[Cost]] = {case: [] for case in ways}
        with harness.collector_off():
            for size, name in harness.rounds(ways, options.repeats):
                everybody, few = ways[size, name]
                cost = (
                    await microseconds(everybody, size, options.hits),
                    await microseconds(few, min(size, _FEW), options.hits),
                )
                runs[size, name].append(cost)
    return runs


def row_of(runs: Mapping[Case, Sequence[Cost]], case: Case) -> harness.Row:
    """Return the line of a case, with its ratios to others in the same round."""
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
    """Run what the command line asks for."""
    parser = harness.arguments(__doc__, repeats=9)
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
    options = harness.parsed(parser, entries=[10, 100], hits=100)
    runs = asyncio.run(measure(options))
    rows = [row_of(runs, case) for case in runs]
    left_out = [name for name, (module, _) in PEERS.items() if not harness.peer(module)]
    return harness.report(options, rows, left_out)


if __name__ == "__main__":
    sys.exit(main())
