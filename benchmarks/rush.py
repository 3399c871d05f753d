"""A rush: thousands of distinct users at once against the quota of 200 tokens a second.

How AWS shapes its quota is not published, so every contestant meets several shapes of it. With
``--processes`` the users come through as many processes, which know nothing of each other or,
with the contestant ``aioivschat-shared``, share a Valkey or Redis on this host; with ``--outage``
that one is killed on the way and comes back empty.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Barrier
from statistics import correlation, fmean

from aiobotocore.config import AioConfig

import harness
from aioivschat import AsyncTokenService, AttemptFailed, Event, Minted, Quota, TokenRequest

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
AS_A_FLEET = (
    harness.Limit("failed", at_most=0, always=True),
    harness.Limit("of ideal", at_most=1.05),
    harness.Limit("throttled %", at_most=1.0),
    harness.Limit("least share", at_least=0.8),
    harness.Limit("largest share", at_most=1.2),
)
THROUGH_AN_OUTAGE = (
    harness.Limit("failed", at_most=0, always=True),
    harness.Limit("of ideal", at_most=1.25),
    harness.Limit("busiest second", at_most=1.1 * RATE),
)

Issue = Callable[[str, str], Awaitable[object]]
"""Gets a token for a user of a room."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where the servers are.

    Args:
        url: the emulator's.
        engine: the URL of what the processes share.
    """

    url: str
    engine: str


class Requests:
    """An observer that notes when requests were sent."""

    def __init__(self) -> None:
        self.sent: list[float] = []

    def __call__(self, event: Event, /) -> None:
        """Note it once the request has ended, which tells how long it took."""
        if isinstance(event, Minted | AttemptFailed):
            self.sent.append(time.monotonic() - event.seconds)


@asynccontextmanager
async def with_service(
    where: Where, requests: Requests, quota: Quota, shared: bool = False
) -> AsyncIterator[Issue]:
    """Issue through the library, with its defaults but for the quota."""
    tier = (
        harness.peer("aioivschat.redis").RedisTier(where.engine, keys=[bytes(32)])
        if shared
        else None
    )
    async with AsyncTokenService(
        session=harness.session(),
        endpoint_url=where.url,
        quota=quota,
        shared=tier,
        observers=(requests,),
    ) as service:
        yield lambda room, user: service.issue(TokenRequest(room, user))


@asynccontextmanager
async def with_client(where: Where, requests: Requests, attempts: int = 3) -> AsyncIterator[Issue]:
    """Issue through a bare client and its own retries, as most backends do today."""
    config = AioConfig(retries={"mode": "standard", "total_max_attempts": attempts})
    async with harness.session().create_client(
        "ivschat", region_name=harness.REGION, endpoint_url=where.url, config=config
    ) as client:
        yield lambda room, user: client.create_chat_token(roomIdentifier=room, userId=user)


Permit = Callable[[], Awaitable[object]]
"""Waits for a permit to send a request."""


@asynccontextmanager
async def paced(
    where: Where, requests: Requests, pacer: Callable[[], Permit]
) -> AsyncIterator[Issue]:
    """Issue through a bare client that a library paces, which makes retries superfluous.

    Args:
        where: the servers.
        requests: is told nothing.
        pacer: makes what to wait for; within the loop.
    """
    permit = pacer()
    async with with_client(where, requests, attempts=1) as bare:

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
        open: opens it.
        known_burst: how much of the quota it knows to be there at once.
        shapes: the shapes of the quota that it is made for.
        promising: whether the limits are meant for it.
        needs: the package it takes, if that is optional.
        shared: whether its processes share the quota.
    """

    open: Callable[[Where, Requests], AbstractAsyncContextManager[Issue]]
    known_burst: int = 0
    shapes: Sequence[str] = SHAPES
    promising: bool = True
    needs: str | None = None
    shared: bool = False

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
    "aioivschat-shared": Contestant(
        partial(with_service, quota=Quota(), shared=True), needs="redis", shared=True
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


@dataclass(frozen=True, slots=True)
class Crowd:
    """What happened in one process.

    Args:
        visits: in the order of arrival.
        sent: when its requests were sent, as far as it can tell.
    """

    visits: Sequence[Visit]
    sent: Sequence[float]


async def visit(issue: Issue, user: int) -> Visit:
    """Get one user a token."""
    came = time.monotonic()
    try:
        await issue(harness.ROOM, f"user-{user}")
    except Exception:
        return Visit(came, time.monotonic(), failed=True)
    return Visit(came, time.monotonic(), failed=False)


async def rush(
    contestant: str, where: Where, users: Sequence[int], doors: Callable[[], object]
) -> Crowd:
    """Let all users in at once.

    Args:
        contestant: the name of the way.
        where: the servers.
        users: their numbers.
        doors: returns when they open, after the warm-up.
    """
    requests = Requests()
    async with CONTESTANTS[contestant].open(where, requests) as issue:
        await issue(harness.WARM_UP_ROOM, f"first-{users[0]}")
        requests.sent.clear()
        doors()
        visits = await asyncio.gather(*(visit(issue, user) for user in users))
    return Crowd(visits, requests.sent)


def rush_of_one(
    contestant: str, where: Where, users: int, opened: Callable[[], object]
) -> list[Crowd]:
    """Rush from this process alone; ``opened`` is called when the doors open."""
    return [asyncio.run(rush(contestant, where, range(users), opened))]


_barrier: Barrier


def _share_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _rush_of_worker(contestant: str, where: Where, users: Sequence[int]) -> Crowd:
    # A minute is for a worker that died: the others must not wait for it for ever.
    return asyncio.run(rush(contestant, where, users, doors=lambda: _barrier.wait(60)))


def rush_of_many(
    contestant: str, where: Where, users: int, processes: int, opened: Callable[[], object]
) -> list[Crowd]:
    """Rush from several processes, started together; ``opened`` is called when they start."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes + 1)
    parts = [range(number, users, processes) for number in range(processes)]
    with ProcessPoolExecutor(
        processes, context, initializer=_share_barrier, initargs=(barrier,)
    ) as executor:
        rushing = [executor.submit(_rush_of_worker, contestant, where, part) for part in parts]
        # If it breaks, the results tell why.
        with suppress(threading.BrokenBarrierError):
            barrier.wait(60)
            opened()
        return [worker.result() for worker in rushing]


def figures(
    crowds: Sequence[Crowd], ideal: float, counts: Mapping[str, int], script_calls: int
) -> dict[str, float]:
    """Return what one rush came to.

    Args:
        crowds: what happened in each process.
        ideal: the seconds that it would take at best.
        counts: what the server saw.
        script_calls: how many the engine saw; 0 if it was not used.
    """
    visits = [visit for crowd in crowds for visit in crowd.visits]
    seconds = max(visit.left for visit in visits) - min(visit.came for visit in visits)
    result = {
        "failed": float(sum(visit.failed for visit in visits)),
        "seconds": seconds,
        "of ideal": seconds / ideal,
        "throttled %": 100 * counts["throttled"] / counts["requests"],
    }
    sent = sorted(moment for crowd in crowds for moment in crowd.sent)
    if sent:
        result["busiest second"] = _busiest_second(sent)
    if script_calls:
        result["script calls/s"] = script_calls / seconds
    if len(crowds) == 1:
        return {**result, "rank": _rank_correlation(crowds[0].visits)}
    shares = _shares([crowd.visits for crowd in crowds])
    return {**result, "least share": min(shares), "largest share": max(shares)}


def _busiest_second(sent: Sequence[float]) -> float:
    """Return the largest number of requests in any second, of moments in order."""
    return float(max(bisect_left(sent, moment + 1) - at for at, moment in enumerate(sent)))


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
    server: harness.Server, engine: harness.Engine, options: argparse.Namespace, case: Case
) -> dict[str, float]:
    """Rush once with one contestant against one shape."""
    contestant, where = CONTESTANTS[case.name], Where(server.url, engine.url)
    server.prepare(case.shape, options.latency)
    if contestant.shared:
        engine.restart()

    def opened() -> None:
        if contestant.shared and options.outage:
            gone, back = options.outage
            threading.Timer(gone, engine.kill).start()
            threading.Timer(back, engine.start).start()

    if case.processes == 1:
        crowds = rush_of_one(case.name, where, options.users, opened)
    else:
        crowds = rush_of_many(case.name, where, options.users, case.processes, opened)
    # One that was killed has forgotten what it saw.
    calls = engine.script_calls() if contestant.shared and not options.outage else 0
    return figures(crowds, contestant.ideal(options.users), server.counts(), calls)


@dataclass(frozen=True, slots=True)
class Case:
    """What is run.

    Args:
        name: the contestant's.
        shape: the shape of the quota.
        processes: how many the users come through.
    """

    name: str
    shape: str
    processes: int

    def limits(self, outage: bool) -> Sequence[harness.Limit]:
        """Return what is promised."""
        contestant = CONTESTANTS[self.name]
        if not contestant.promising:
            return ()
        if contestant.shared:
            fleet = THROUGH_AN_OUTAGE if outage else AS_A_FLEET
            # A process alone has no shares.
            return [each for each in fleet if self.processes > 1 or "share" not in each.figure]
        return ALONE if self.processes == 1 else TOGETHER


def main() -> int:
    """Run what the command line asks for."""
    options = _options()
    cases = [
        Case(name, shape, processes)
        for processes in options.processes
        for shape in options.shapes
        for name in options.contestants
        if CONTESTANTS[name].is_there and shape in CONTESTANTS[name].shapes
    ]
    runs: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    with harness.server() as server, harness.engine() as engine:
        for case in harness.rounds(cases, options.repeats):
            runs[case].append(run_once(server, engine, options, case))
    rows = [
        harness.Row.of(
            {"contestant": case.name, "processes": str(case.processes), "shape": case.shape},
            results,
            case.limits(bool(options.outage)),
        )
        for case, results in runs.items()
    ]
    left_out = [name for name in options.contestants if not CONTESTANTS[name].is_there]
    return harness.report(options, rows, left_out)


def _options() -> argparse.Namespace:
    parser = harness.arguments(__doc__, repeats=3)
    add = parser.add_argument
    add("--users", type=int, default=2000, help="how many come (default: %(default)s)")
    add(
        "--processes",
        type=int,
        nargs="+",
        default=[1],
        metavar="COUNT",
        help="through how many; several are run after one another (default: 1)",
    )
    add("--latency", type=float, default=0.02, metavar="SECONDS", help="default: %(default)s")
    add(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        default=["aioivschat"],
        metavar="NAME",
        help=f"any of {', '.join(CONTESTANTS)} (default: aioivschat)",
    )
    add(
        "--shared",
        action="store_const",
        dest="contestants",
        const=["aioivschat", "aioivschat-shared"],
        help="what shares an engine against what does not",
    )
    add("--shapes", nargs="+", default=SHAPES, metavar="SHAPE", help="of the quota (default: all)")
    add(
        "--outage",
        type=float,
        nargs=2,
        metavar=("GONE", "BACK"),
        help="seconds after which the engine is killed, and started again",
    )
    return harness.parsed(parser, users=20)


if __name__ == "__main__":
    sys.exit(main())
