"""The engine of a fleet away and back, again and again, in every way, while three services mint.

The same callers come twice: once with the engine away throughout, and once while it goes and comes.
The quota is of the sliding second, so a request above it is throttled, and counted by the server.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable
from statistics import quantiles

import harness
from aioivschat import AsyncTokenService, TokenRequest
from aioivschat.errors import ChatTokenError

RATE, SERVICES = 200, 3
LIMITS = (
    harness.Limit("failed", at_most=0, always=True),
    harness.Limit("throttled", at_most=0),
)
KEPT, OTHER = "the-password", "another"
"""Passwords of an engine that is on this host for the length of a run."""


def faults(engine: harness.Engine) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return what ends and what mends an engine, by the name of the fault."""

    def command(*words: object) -> Callable[[], object]:
        return lambda: engine.client().execute_command(*words)

    def lock() -> None:
        command("ACL", "SETUSER", "fleet", "resetpass", f">{OTHER}")()
        command("CLIENT", "KILL", "USER", "fleet")()

    return {
        "killed": (engine.kill, lambda: start(engine)),
        "stopped": (
            lambda: engine.signal(signal.SIGSTOP),
            lambda: engine.signal(signal.SIGCONT),
        ),
        "restarted": (lambda: start(engine, again=True), lambda: None),
        "emptied": (command("FLUSHALL"), lambda: None),
        "full": (
            command("CONFIG", "SET", "maxmemory", 1),
            command("CONFIG", "SET", "maxmemory", 0),
        ),
        "paused": (command("CLIENT", "PAUSE", 100, "ALL"), lambda: None),
        "locked": (lock, command("ACL", "SETUSER", "fleet", "resetpass", f">{KEPT}")),
    }


def start(engine: harness.Engine, *, again: bool = False) -> None:
    """Start the engine, or an empty one in its place, with the fleet's user."""
    if again:
        engine.kill()
    engine.start()
    engine.client().execute_command(
        "ACL", "SETUSER", "fleet", "on", f">{KEPT}", "~*", "&*", "+@all"
    )


async def serve(url: str, engine_url: str, options: argparse.Namespace) -> list[float]:
    """Let callers come to three services; return how long each waited, -1 for one that failed."""
    tier = harness.import_peer("aioivschat.redis").RedisTier
    crowd = random.Random(options.seed)
    services = [
        AsyncTokenService(
            session=harness.make_session(),
            endpoint_url=url,
            shared=tier(engine_url, keys=[bytes(32)], members=SERVICES),
        )
        for _ in range(SERVICES)
    ]
    for number, service in enumerate(services):
        await service.issue(TokenRequest(harness.ROOM, f"first-{number}"))

    async def call(number: int) -> float:
        began = time.perf_counter()
        try:
            request = TokenRequest(harness.ROOM, f"user-{number}")
            await crowd.choice(services).issue(request, fresh=True)
        except ChatTokenError:
            return -1.0
        return time.perf_counter() - began

    calls: list[asyncio.Task[float]] = []
    due = began = time.perf_counter()
    while due < began + options.seconds:
        due += crowd.expovariate(options.load)
        await asyncio.sleep(due - time.perf_counter())
        calls.append(asyncio.create_task(call(len(calls))))
    waits = await asyncio.gather(*calls)
    for service in services:
        await service.aclose()
    return list(waits)


async def break_engine(engine: harness.Engine, options: argparse.Namespace) -> None:
    """Let the engine be away and come back so many times, evenly in the time."""
    chance, every = random.Random(options.seed), options.seconds / options.times
    ways = list(faults(engine).values())
    for number in range(options.times):
        began = time.perf_counter()
        end, mend = ways[number % len(ways)]
        await asyncio.to_thread(end)
        await asyncio.sleep(every * chance.uniform(0.05, 0.6))
        await asyncio.to_thread(mend)
        await asyncio.sleep(max(0.0, began + every - time.perf_counter()))


async def run_once(
    name: str, server: harness.Server, engine: harness.Engine, options: argparse.Namespace
) -> dict[str, float]:
    """Run with the engine away throughout, or up and down."""
    server.prepare(f"sliding:{RATE}", 0.02)
    start(engine)
    url = engine.url.replace("//", f"//fleet:{KEPT}@")
    breaking = None
    if name == "up and down":
        breaking = asyncio.create_task(break_engine(engine, options))
    else:
        engine.kill()
    waits = await serve(server.url, url, options)
    if breaking is not None:
        await breaking
    engine.kill()
    served = [wait for wait in waits if wait >= 0]
    parts = quantiles(served, n=100)
    return {
        "calls": float(len(waits)),
        "failed": float(len(waits) - len(served)),
        "throttled": float(server.counts()["throttled"]),
        "median ms": parts[49] * 1000,
        "99 % ms": parts[98] * 1000,
        "longest ms": max(served) * 1000,
    }


def main() -> int:
    """Run the benchmark as the command line says."""
    parser = harness.make_parser(__doc__, repeats=1)
    add = parser.add_argument
    add("--seconds", type=float, default=120.0, help="how long each run takes (default: 120)")
    add("--times", type=int, default=200, help="how often the engine is away (default: 200)")
    add("--load", type=float, default=120.0, help="calls a second (default: 120)")
    add("--seed", type=int, default=1, help="of callers and pauses (default: 1)")
    options = harness.parse_options(parser, seconds=3.0, times=5)
    names = ("no engine", "up and down")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with harness.run_server() as server, harness.open_engine() as engine:
        for name in harness.take_turns(names, options.repeats):
            runs[name].append(asyncio.run(run_once(name, server, engine, options)))
    rows = [harness.Row.of({"engine": name}, results, LIMITS) for name, results in runs.items()]
    return harness.report(options, rows, [])


if __name__ == "__main__":
    sys.exit(main())
