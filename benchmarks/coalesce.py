"""A thousand equal calls at once: how many requests they become, and what sharing costs a caller.

The cost is processor time of the client; the elapsed time depends on the server.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from async_lru import alru_cache
from cachetools import TTLCache

import harness
from aioivschat import AsyncTokenService, TokenRequest

BASE = "async-lru"
LIMITS = {
    "issue": (
        harness.Limit("requests", at_most=1, at_least=1, always=True),
        harness.Limit("of async-lru", at_most=1.2),
    )
}

_LIFE_SECONDS = 50.0

Call = Callable[[TokenRequest], Coroutine[Any, Any, object]]
"""Gets a token for a request."""


def _by_async_lru(call: Call) -> Any:
    return alru_cache(maxsize=None, ttl=_LIFE_SECONDS)(call)


def _by_cachetools_async(call: Call) -> Any:
    return harness.import_peer("cachetools_async").cached(TTLCache(10_000, _LIFE_SECONDS))(call)


def _by_theine(call: Call) -> Any:
    return harness.import_peer("theine").Memoize(10_000, timedelta(seconds=_LIFE_SECONDS))(call)


def _by_aiocache(call: Call) -> Any:
    # The default key is the request's representation, which does not show the user.
    return harness.import_peer("aiocache").cached_stampede(
        ttl=int(_LIFE_SECONDS),
        lease=2,
        key_builder=lambda _, request: f"{request.room}:{request.user}",
    )(call)


def _by_cashews(call: Call) -> Any:
    cache = harness.import_peer("cashews").Cache()
    cache.setup("mem://")
    return cache(ttl=int(_LIFE_SECONDS), key="{request.room}:{request.user}", protected=True)(call)


PEERS: Mapping[str, tuple[str, Callable[[Call], Any]]] = {
    BASE: ("async_lru", _by_async_lru),
    "cachetools-async": ("cachetools_async", _by_cachetools_async),
    "theine": ("theine", _by_theine),
    "aiocache, stampede": ("aiocache", _by_aiocache),
    "cashews, protected": ("cashews", _by_cashews),
}
"""The module of each, and what wraps a bare client's call with it."""


@asynccontextmanager
async def open_contestants(url: str) -> AsyncIterator[Mapping[str, Call]]:
    """Open the contestants: the library, and the caches around a bare client."""
    session = harness.make_session()
    async with (
        AsyncTokenService(session=session, endpoint_url=url) as service,
        session.create_client("ivschat", region_name=harness.REGION, endpoint_url=url) as client,
    ):

        def bare() -> Call:
            async def create(request: TokenRequest) -> Any:
                return await client.create_chat_token(**request.as_members())

            return create

        calls: dict[str, Call] = {
            name: wrap(bare())
            for name, (module, wrap) in PEERS.items()
            if harness.import_peer(module)
        }
        yield {"issue": service.issue} | calls


async def call_together(
    server: harness.Server, call: Call, request: TokenRequest, callers: int
) -> dict[str, float]:
    """Let all callers ask for the same token at once."""
    before = server.counts()["requests"]
    with harness.collector_off():
        started, processor_started = time.perf_counter(), time.process_time()
        await asyncio.gather(*(call(request) for _ in range(callers)))
        processor, seconds = time.process_time() - processor_started, time.perf_counter() - started
    return {
        "requests": server.counts()["requests"] - before,
        "ms in all": 1e3 * seconds,
        "µs per caller": 1e6 * processor / callers,
    }


async def measure(
    server: harness.Server, callers: int, repeats: int
) -> dict[str, list[dict[str, float]]]:
    """Measure all contestants in turns, each round with a user of its own."""
    async with open_contestants(server.url) as calls:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
        for call in calls.values():
            await call_together(server, call, TokenRequest(harness.ROOM, "warm-up"), callers)
        for name in harness.take_turns(calls, repeats):
            request = TokenRequest(harness.ROOM, f"user-{len(runs[name])}")
            runs[name].append(await call_together(server, calls[name], request, callers))
    return runs


def main() -> int:
    """Run the benchmark as the command line says."""
    parser = harness.make_parser(__doc__, repeats=15)
    add = parser.add_argument
    add("--callers", type=int, default=1000, help="how many ask at once (default: %(default)s)")
    add("--latency", type=float, default=0.02, metavar="SECONDS", help="default: %(default)s")
    options = harness.parse_options(parser, callers=20)
    with harness.run_server() as server:
        server.prepare("unlimited", options.latency)
        runs = asyncio.run(measure(server, options.callers, options.repeats))
    base = [run["µs per caller"] for run in runs[BASE]]
    rows = [
        harness.Row.of(
            {"contestant": name},
            [
                {**run, "of async-lru": run["µs per caller"] / of}
                for run, of in zip(results, base, strict=True)
            ],
            LIMITS.get(name, ()),
        )
        for name, results in runs.items()
    ]
    left_out = [name for name, (module, _) in PEERS.items() if not harness.import_peer(module)]
    return harness.report(options, rows, left_out)


if __name__ == "__main__":
    sys.exit(main())
