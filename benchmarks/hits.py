"""The cost of a cache hit, beside a plain dictionary and async-lru.

All contestants are asked for the same users in the same random order, over and over. Ratios are to
async-lru called the same way: with a request that is kept, or by keyword.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

from aiobotocore.session import AioSession
from async_lru import alru_cache

import harness
from aioivschat import AsyncTokenService, CachePolicy, Clock, Quota, TokenRequest

CAPABILITIES = ("SEND_MESSAGE",)
BY_REQUEST = "async-lru, request"
BY_KEYWORDS = "async-lru, keywords"

LIMITS = {"issue, request": (harness.Limit("of async-lru", at_most=1.0),)}

_HOUR = 3600.0
_UNLIMITED = 1_000_000
_FILLED_AT_ONCE = 1000
_LEAST_HITS = 20_000
"""Hits in one run: enough for a run to last long against the clock's grain."""

Keywords = dict[str, Any]


def local_session(clock: Clock) -> AioSession:
    """Return a session whose clients mint in this process: the server is not what is measured.

    Args:
        clock: where the tokens' times come from.
    """

    async def create_chat_token(**_: object) -> Mapping[str, object]:
        return harness.token(clock.wall()).reply()

    @asynccontextmanager
    async def create_client(*_: object, **options: Any) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(
            meta=SimpleNamespace(endpoint_url=options["endpoint_url"]),
            create_chat_token=create_chat_token,
        )

    session = harness.session()
    # Not a subclass: the signature has an overload for every service of AWS.
    vars(session)["create_client"] = create_client
    return session


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


async def _mint(*_: object, **__: object) -> object:
    return harness.token(time.time())


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way to hit.

    Args:
        ask_all: asks once for every user.
        like: the name of the contestant that it is compared with.
    """

    ask_all: Callable[[], Awaitable[None]]
    like: str


@asynccontextmanager
async def contestants(size: int) -> AsyncIterator[dict[str, Contestant]]:
    """Open the contestants, each with a token for every user.

    Args:
        size: how many users.
    """
    requests = [TokenRequest(harness.ROOM, f"user-{n}", CAPABILITIES) for n in range(size)]
    table = {each.identity: harness.token(time.time()) for each in requests}
    async with filled_service(requests) as service:
        # Last: their entries live for less than a minute.
        by_request = alru_cache(maxsize=2 * size, ttl=50)(_mint)
        by_keywords = alru_cache(maxsize=2 * size, ttl=50)(_mint)
        await _fill(by_request, requests)
        await _fill(lambda request: by_keywords(**_keywords(request)), requests)
        # From here on in another order: neighbours in memory must not be neighbours in time.
        random.shuffle(requests)
        keys = [each.identity for each in requests]
        keywords = [_keywords(each) for each in requests]
        issue, create = service.issue, service.create_chat_token
        yield {
            "dict, ready key": Contestant(partial(_look_up, table, keys), BY_REQUEST),
            BY_REQUEST: Contestant(partial(_ask, by_request, requests), BY_REQUEST),
            "issue, request": Contestant(partial(_ask, issue, requests), BY_REQUEST),
            BY_KEYWORDS: Contestant(partial(_ask_by_keywords, by_keywords, keywords), BY_KEYWORDS),
            "create_chat_token, keywords": Contestant(
                partial(_ask_by_keywords, create, keywords), BY_KEYWORDS
            ),
        }
        misses = (
            service.stats().requests,
            by_request.cache_info().misses,
            by_keywords.cache_info().misses,
        )
        if set(misses) != {size}:
            raise RuntimeError(f"not only hits were measured: {misses} misses of {size} expected")


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


async def microseconds(ask_all: Callable[[], Awaitable[None]], size: int) -> float:
    """Return what one hit takes.

    Args:
        ask_all: asks once for every user.
        size: how many users.
    """
    times = max(1, _LEAST_HITS // size)
    started = time.perf_counter()
    for _ in range(times):
        await ask_all()
    return 1e6 * (time.perf_counter() - started) / (times * size)


async def measure(size: int, repeats: int) -> list[harness.Row]:
    """Measure all contestants with so many users."""
    async with contestants(size) as ways:
        runs: dict[str, list[float]] = {name: [] for name in ways}
        with harness.collector_off():
            for name in harness.rounds(ways, repeats):
                runs[name].append(await microseconds(ways[name].ask_all, size))
    return [
        harness.Row.of(
            {"contestant": name, "entries": str(size)},
            [
                {"µs": hit, "of async-lru": hit / base}
                for hit, base in zip(runs[name], runs[way.like], strict=True)
            ],
            LIMITS.get(name, ()),
        )
        for name, way in ways.items()
    ]


def main() -> int:
    """Run what the command line asks for."""
    parser = harness.arguments(__doc__, repeats=9)
    parser.add_argument(
        "--entries",
        nargs="+",
        type=int,
        default=[100, 100_000],
        metavar="N",
        help="tokens cached (default: 100 and 100,000)",
    )
    options = parser.parse_args()
    rows = [row for size in options.entries for row in asyncio.run(measure(size, options.repeats))]
    return harness.report(options, rows)


if __name__ == "__main__":
    sys.exit(main())
