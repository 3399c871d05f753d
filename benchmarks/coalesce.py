"""A thousand identical calls at once: one request, and what sharing it costs each caller.

Processor time is counted, and not the seconds on the wall: those are the server's.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from async_lru import alru_cache

import harness
from aioivschat import AsyncTokenService, TokenRequest

LIKE = "async-lru"
LIMITS = (harness.Limit("requests", at_most=1, at_least=1, always=True),)

Call = Callable[[TokenRequest], Awaitable[object]]
"""Gets a token for a request."""


@asynccontextmanager
async def contestants(url: str) -> AsyncIterator[Mapping[str, Call]]:
    """Open the contestants: the library, and async-lru around a bare client."""
    session = harness.session()
    async with (
        AsyncTokenService(session=session, endpoint_url=url) as service,
        session.create_client("ivschat", region_name=harness.REGION, endpoint_url=url) as client,
    ):

        @alru_cache(maxsize=None, ttl=50)
        async def cached(request: TokenRequest) -> Any:
            return await client.create_chat_token(**request.as_members())

        yield {"issue": service.issue, LIKE: cached}


async def together(
    server: harness.Server, call: Call, request: TokenRequest, callers: int
) -> dict[str, float]:
    """Let all callers ask for the same at once."""
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
    """Measure both in turns, each round with a user of its own."""
    async with contestants(server.url) as calls:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
        for call in calls.values():
            await together(server, call, TokenRequest(harness.ROOM, "warm-up"), callers)
        for name in harness.rounds(calls, repeats):
            request = TokenRequest(harness.ROOM, f"user-{len(runs[name])}")
            runs[name].append(await together(server, calls[name], request, callers))
    return runs


def main() -> int:
    """Run what the command line asks for."""
    parser = harness.arguments(__doc__, repeats=15)
    add = parser.add_argument
    add("--callers", type=int, default=1000, help="how many ask at once (default: %(default)s)")
    add("--latency", type=float, default=0.02, metavar="SECONDS", help="default: %(default)s")
    options = parser.parse_args()
    with harness.server() as server:
        server.prepare("unlimited", options.latency)
        runs = asyncio.run(measure(server, options.callers, options.repeats))
    base = [run["µs per caller"] for run in runs[LIKE]]
    rows = [
        harness.Row.of(
            {"contestant": name},
            [
                {**run, "of async-lru": run["µs per caller"] / of}
                for run, of in zip(results, base, strict=True)
            ],
            LIMITS,
        )
        for name, results in runs.items()
    ]
    return harness.report(options, rows)


if __name__ == "__main__":
    sys.exit(main())
