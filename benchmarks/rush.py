"""A rush: thousands of distinct users at once against the quota of 200 tokens a second.

How AWS shapes its quota is not published, so every contestant meets several shapes of it. With
``--processes`` the users come through as many processes that know nothing of each other.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Barrier
from statistics import correlation, fmean

from aiobotocore.config import AioConfig

import harness
from aioivschat import AsyncTokenService, Quota, TokenRequest

RATE = 200
BURST = 200
SHAPES = (f"bucket:{RATE}:{BURST}", f"bucket:{RATE}:20", f"fixed:{RATE}", f"sliding:{RATE}")

ALONE = (
    harness.Limit("failed", at_most=0, always=True),
    harness.Limit("of ideal", at_most=1.03),
    harness.Limit("throttled %", at_most=0.5),
    harness.Limit("rank", at_least=0.99),
)
TOGETHER = (
    harness.Limit("failed", at_most=0, always=True),
    harness.Limit("of ideal", at_most=1.15),
    harness.Limit("least share", at_least=0.5),
)

Issue = Callable[[str, str], Awaitable[object]]
"""Gets a token for a user of a room."""


@asynccontextmanager
async def with_service(url: str, quota: Quota) -> AsyncIterator[Issue]:
    """Issue through the library, with its defaults but for the quota."""
    async with AsyncTokenService(
        session=harness.session(), endpoint_url=url, quota=quota
    ) as service:
        yield lambda room, user: service.issue(TokenRequest(room, user))


@asynccontextmanager
async def with_client(url: str, attempts: int = 3) -> AsyncIterator[Issue]:
    """Issue through a bare client and its own retries, as most backends do today."""
    config = AioConfig(retries={"mode": "standard", "total_max_attempts": attempts})
    async with harness.session().create_client(
        "ivschat", region_name=harness.REGION, endpoint_url=url, config=config
    ) as client:
        yield lambda room, user: client.create_chat_token(roomIdentifier=room, userId=user)


Permit = Callable[[], Awaitable[object]]
"""Waits for a permit to send a request."""


@asynccontextmanager
async def paced(url: str, pacer: Callable[[], Permit]) -> AsyncIterator[Issue]:
    """Issue through a bare client that a library paces, which makes retries superfluous.

    Args:
        url: the emulator's.
        pacer: makes what to wait for; within the loop.
    """
    permit = pacer()
    async with with_client(url, attempts=1) as bare:

        async def issue(room: str, user: str) -> object:
            # The warm-up's room has a quota of its own.
            if room != harness.WARM_UP_ROOM:
                await permit()
            return await bare(room, user)

        yield issue


def _by_aiolimiter() -> Permit:
    acquire: Permit = harness.peer("aiolimiter").AsyncLimiter(RATE, 1).acquire
    return acquire


def _by_pyrate_limiter() -> Permit:
    pyrate_limiter = harness.peer("pyrate_limiter")
    rate = pyrate_limiter.Rate(RATE, pyrate_limiter.Duration.SECOND)
    acquire: Permit = partial(pyrate_limiter.Limiter(rate).try_acquire_async, "ivschat")
    return acquire


def _by_throttled() -> Permit:
    throttled = harness.peer("throttled.asyncio")
    # It gives up after its timeout, which is to be no sooner than the last one's turn.
    pacer = throttled.Throttled(key="ivschat", quota=f"{RATE}/s burst {RATE}", timeout=60)
    limit: Permit = pacer.limit
    return limit


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way to get tokens.

    Args:
        open: opens it for an endpoint.
        known_burst: how much of the quota it knows to be there at once.
        shapes: the shapes of the quota that it is made for.
        promising: whether the limits are meant for it.
        needs: the package it takes, if that is optional.
    """

    open: Callable[[str], AbstractAsyncContextManager[Issue]]
    known_burst: int = 0
    shapes: Sequence[str] = SHAPES
    promising: bool = True
    needs: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether it can be run."""
        return self.needs is None or harness.peer(self.needs) is not None

    def ideal(self, users: int) -> float:
        """Return the seconds that the quota alone would take, for all it is told of it."""
        return (users - self.known_burst) / RATE


CONTESTANTS = {
    "aioivschat": Contestant(partial(with_service, quota=Quota())),
    "aioivschat-burst": Contestant(
        partial(with_service, quota=Quota(burst=BURST)),
        known_burst=BURST,
        shapes=(f"bucket:{RATE}:{BURST}",),
    ),
    "aiobotocore-standard": Contestant(with_client, promising=False),
    "aiolimiter": Contestant(
        partial(paced, pacer=_by_aiolimiter), promising=False, needs="aiolimiter"
    ),
    "pyrate-limiter": Contestant(
        partial(paced, pacer=_by_pyrate_limiter), promising=False, needs="pyrate_limiter"
    ),
    "throttled-py": Contestant(
        partial(paced, pacer=_by_throttled), promising=False, needs="throttled"
    ),
}


@dataclass(frozen=True, slots=True)
class Visit:
    """One user's experience, in seconds of the clock that all processes of a host share."""

    came: float
    left: float
    failed: bool

    @property
    def wait(self) -> float:
        """The seconds it took."""
        return self.left - self.came


async def visit(issue: Issue, user: int) -> Visit:
    """Get one user a token."""
    came = time.monotonic()
    try:
        await issue(harness.ROOM, f"user-{user}")
    except Exception:
        return Visit(came, time.monotonic(), failed=True)
    return Visit(came, time.monotonic(), failed=False)


async def rush(
    contestant: str, url: str, users: Sequence[int], doors: Callable[[], object]
) -> list[Visit]:
    """Let all users in at once.

    Args:
        contestant: the name of the way.
        url: the emulator's.
        users: their numbers.
        doors: returns when they open, after the warm-up.

    Returns:
        The visits, in the order of arrival.
    """
    async with CONTESTANTS[contestant].open(url) as issue:
        await issue(harness.WARM_UP_ROOM, "first")
        doors()
        return await asyncio.gather(*(visit(issue, user) for user in users))


def rush_of_one(contestant: str, url: str, users: int) -> list[list[Visit]]:
    """Rush from this process alone."""
    return [asyncio.run(rush(contestant, url, range(users), doors=lambda: None))]


_barrier: Barrier


def _share_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _rush_of_worker(contestant: str, url: str, users: Sequence[int]) -> list[Visit]:
    # A minute is for a worker that died: the others must not wait for it for ever.
    return asyncio.run(rush(contestant, url, users, doors=lambda: _barrier.wait(60)))


def rush_of_many(contestant: str, url: str, users: int, processes: int) -> list[list[Visit]]:
    """Rush from several processes that know nothing of each other, started together."""
    context = multiprocessing.get_context("spawn")
    parts = [range(number, users, processes) for number in range(processes)]
    with ProcessPoolExecutor(
        processes, context, initializer=_share_barrier, initargs=(context.Barrier(processes),)
    ) as executor:
        return list(executor.map(partial(_rush_of_worker, contestant, url), parts))


def figures(
    crowds: Sequence[Sequence[Visit]], ideal: float, counts: Mapping[str, int]
) -> dict[str, float]:
    """Return what one rush came to.

    Args:
        crowds: the visits of each process.
        ideal: the seconds that it would take at best.
        counts: what the server saw.
    """
    visits = [visit for crowd in crowds for visit in crowd]
    seconds = max(visit.left for visit in visits) - min(visit.came for visit in visits)
    result = {
        "failed": float(sum(visit.failed for visit in visits)),
        "seconds": seconds,
        "of ideal": seconds / ideal,
        "throttled %": 100 * counts["throttled"] / counts["requests"],
    }
    if len(crowds) == 1:
        return {**result, "rank": _rank_correlation(crowds[0])}
    shares = _shares(crowds)
    return {**result, "least share": min(shares), "largest share": max(shares)}


def _rank_correlation(visits: Sequence[Visit]) -> float:
    """Correlate the order of arrival with the order of waits (Spearman): 1 if nobody overtakes."""
    served = [visit for visit in visits if not visit.failed]
    arrivals = range(len(served))
    by_wait = sorted(arrivals, key=lambda arrival: served[arrival].wait)
    # The place of the n-th in the order is the inverse of the order itself; ties do not occur.
    return correlation(by_wait, arrivals) if len(served) > 1 else 0.0


def _shares(crowds: Sequence[Sequence[Visit]]) -> list[float]:
    """Return what each process got while all still wanted something; 1 is its fair share."""
    first_end = min(max(visit.left for visit in crowd) for crowd in crowds)
    served = [
        sum(visit.left <= first_end and not visit.failed for visit in crowd) for crowd in crowds
    ]
    fair = fmean(served)
    return [count / fair for count in served]


def run_once(
    server: harness.Server, options: argparse.Namespace, name: str, shape: str
) -> dict[str, float]:
    """Rush once with one contestant against one shape."""
    server.prepare(shape, options.latency)
    if options.processes == 1:
        crowds = rush_of_one(name, server.url, options.users)
    else:
        crowds = rush_of_many(name, server.url, options.users, options.processes)
    return figures(crowds, CONTESTANTS[name].ideal(options.users), server.counts())


def main() -> int:
    """Run what the command line asks for."""
    options = _options()
    limits = ALONE if options.processes == 1 else TOGETHER
    cases = [
        (name, shape)
        for shape in SHAPES
        for name in options.contestants
        if CONTESTANTS[name].is_there and shape in CONTESTANTS[name].shapes
    ]
    runs: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in cases}
    with harness.server() as server:
        for case in harness.rounds(cases, options.repeats):
            runs[case].append(run_once(server, options, *case))
    rows = [
        harness.Row.of(
            {"contestant": name, "shape": shape},
            results,
            limits if CONTESTANTS[name].promising else (),
        )
        for (name, shape), results in runs.items()
    ]
    left_out = [name for name in options.contestants if not CONTESTANTS[name].is_there]
    return harness.report(options, rows, left_out)


def _options() -> argparse.Namespace:
    parser = harness.arguments(__doc__, repeats=3)
    add = parser.add_argument
    add("--users", type=int, default=2000, help="how many come (default: %(default)s)")
    add("--processes", type=int, default=1, help="through how many (default: %(default)s)")
    add("--latency", type=float, default=0.02, metavar="SECONDS", help="default: %(default)s")
    add(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        default=["aioivschat"],
        metavar="NAME",
        help=f"any of {', '.join(CONTESTANTS)} (default: aioivschat)",
    )
    return harness.parsed(parser, users=20)


if __name__ == "__main__":
    sys.exit(main())
