"""A rush: thousands of distinct users at once against the quota of 200 tokens a second.

The shape of the quota at AWS is not published, so every contestant runs against several shapes.
With ``--processes`` the users come through as many processes, which know nothing of each other or,
with the contestant ``aioivschat-shared``, share a Valkey or Redis on this host. With ``--outage``
that engine is killed during the rush and starts again empty.
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

ALONE_LIMITS = (
    harness.Limit("failed", at_most=0, always=True),
    harness.Limit("of ideal", at_most=1.03),
    harness.Limit("throttled %", at_most=0.5),
    harness.Limit("rank", at_least=0.99),
)
TOGETHER_LIMITS = (
    harness.Limit("failed", at_most=0, always=True),
    harness.Limit("of ideal", at_most=1.15),
    harness.Limit("least share", at_least=0.5),
)
FLEET_LIMITS = (
    harness.Limit("failed", at_most=0, always=True),
    harness.Limit("of ideal", at_most=1.05),
    harness.Limit("throttled %", at_most=1.0),
    harness.Limit("least share", at_least=0.8),
    harness.Limit("largest share", at_most=1.2),
)
OUTAGE_LIMITS = (
    harness.Limit("failed", at_most=0, always=True),
    harness.Limit("of ideal", at_most=1.25),
    harness.Limit("busiest second", at_most=1.1 * RATE),
)

Issue = Callable[[str, str], Awaitable[object]]
"""Gets a token for a user of a room."""


@dataclass(frozen=True, slots=True)
class Servers:
    """The URLs of the servers.

    Args:
        url: the emulator's.
        engine: that of the Valkey or Redis that processes share.
    """

    url: str
    engine: str


class SendTimes:
    """An observer that records when requests were sent."""

    def __init__(self) -> None:
        self.sent: list[float] = []

    def __call__(self, event: Event, /) -> None:
        """Record when a request was sent, once it has ended: its event says how long it took."""
        if isinstance(event, Minted | AttemptFailed):
            self.sent.append(time.monotonic() - event.seconds)


@asynccontextmanager
async def with_service(
    servers: Servers, send_times: SendTimes, quota: Quota, shared: bool = False
) -> AsyncIterator[Issue]:
    """Issue through the library, with defaults for all but the quota."""
    tier = (
        harness.import_peer("aioivschat.redis").RedisTier(servers.engine, keys=[bytes(32)])
        if shared
        else None
    )
    async with AsyncTokenService(
        session=harness.make_session(),
        endpoint_url=servers.url,
        quota=quota,
        shared=tier,
        observers=(send_times,),
    ) as service:
        yield lambda room, user: service.issue(TokenRequest(room, user))


@asynccontextmanager
async def with_client(
    servers: Servers, send_times: SendTimes, max_requests: int = 3
) -> AsyncIterator[Issue]:
    """Issue through a bare client with its own retries."""
    config = AioConfig(retries={"mode": "standard", "total_max_attempts": max_requests})
    async with harness.make_session().create_client(
        "ivschat", region_name=harness.REGION, endpoint_url=servers.url, config=config
    ) as client:
        yield lambda room, user: client.create_chat_token(roomIdentifier=room, userId=user)


Permit = Callable[[], Awaitable[object]]
"""Waits for a permit to send a request."""


@asynccontextmanager
async def with_paced_client(
    servers: Servers, send_times: SendTimes, pacer: Callable[[], Permit]
) -> AsyncIterator[Issue]:
    """Issue through a bare client without retries, paced by a library.

    Args:
        servers: the servers.
        send_times: stays empty.
        pacer: makes the function that waits for a permit; called on the running loop.
    """
    permit = pacer()
    async with with_client(servers, send_times, max_requests=1) as bare:

        async def issue(room: str, user: str) -> object:
            # The account of the warm-up's room has a quota of its own.
            if room != harness.WARM_UP_ROOM:
                await permit()
            return await bare(room, user)

        yield issue


def _by_aiolimiter() -> Permit:
    acquire: Permit = harness.import_peer("aiolimiter").AsyncLimiter(RATE, 1).acquire
    return acquire


def _by_pyrate_limiter() -> Permit:
    pyrate_limiter = harness.import_peer("pyrate_limiter")
    rate = pyrate_limiter.Rate(RATE, pyrate_limiter.Duration.SECOND)
    acquire: Permit = partial(pyrate_limiter.Limiter(rate).try_acquire_async, "ivschat")
    return acquire


def _by_throttled() -> Permit:
    throttled = harness.import_peer("throttled.asyncio")
    # A timeout after which the last user has got a permit.
    pacer = throttled.Throttled(key="ivschat", quota=f"{RATE}/s burst {RATE}", timeout=60)
    limit: Permit = pacer.limit
    return limit


@dataclass(frozen=True, slots=True)
class Contestant:
    """A client that gets tokens.

    Args:
        open: opens the client.
        known_burst: the requests at once that it is configured to send.
        shapes: the shapes of the quota that it is configured for.
        has_limits: whether the project promises limits for it.
        needs: the optional package that it needs, if any.
        shared: whether its processes share the quota.
    """

    open: Callable[[Servers, SendTimes], AbstractAsyncContextManager[Issue]]
    known_burst: int = 0
    shapes: Sequence[str] = SHAPES
    has_limits: bool = True
    needs: str | None = None
    shared: bool = False

    @property
    def is_installed(self) -> bool:
        """Whether the client can be run."""
        return self.needs is None or harness.import_peer(self.needs) is not None

    def ideal(self, users: int) -> float:
        """Return the least seconds that the configured quota allows."""
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
    "aiobotocore-standard": Contestant(with_client, has_limits=False),
    "aiolimiter": Contestant(
        partial(with_paced_client, pacer=_by_aiolimiter), has_limits=False, needs="aiolimiter"
    ),
    "pyrate-limiter": Contestant(
        partial(with_paced_client, pacer=_by_pyrate_limiter),
        has_limits=False,
        needs="pyrate_limiter",
    ),
    "throttled-py": Contestant(
        partial(with_paced_client, pacer=_by_throttled), has_limits=False, needs="throttled"
    ),
}


@dataclass(frozen=True, slots=True)
class Visit:
    """When one user asked and was answered, on the monotonic clock that all processes share."""

    asked: float
    answered: float
    failed: bool

    @property
    def wait(self) -> float:
        """The seconds that the user waited."""
        return self.answered - self.asked


@dataclass(frozen=True, slots=True)
class Crowd:
    """What happened in one process.

    Args:
        visits: those of its users, in the order in which they asked.
        sent: when its requests were sent; empty if the contestant does not say.
    """

    visits: Sequence[Visit]
    sent: Sequence[float]


async def visit(issue: Issue, user: int) -> Visit:
    """Get one user a token."""
    asked = time.monotonic()
    try:
        await issue(harness.ROOM, f"user-{user}")
    except Exception:
        return Visit(asked, time.monotonic(), failed=True)
    return Visit(asked, time.monotonic(), failed=False)


async def rush(
    contestant: str, servers: Servers, users: Sequence[int], wait_for_doors: Callable[[], object]
) -> Crowd:
    """Let all users ask at once.

    Args:
        contestant: its name.
        servers: the servers.
        users: their numbers.
        wait_for_doors: returns when the rush begins; called after the warm-up.
    """
    send_times = SendTimes()
    async with CONTESTANTS[contestant].open(servers, send_times) as issue:
        await issue(harness.WARM_UP_ROOM, f"first-{users[0]}")
        send_times.sent.clear()
        wait_for_doors()
        visits = await asyncio.gather(*(visit(issue, user) for user in users))
    return Crowd(visits, send_times.sent)


def rush_from_here(
    contestant: str, servers: Servers, users: int, opened: Callable[[], object]
) -> list[Crowd]:
    """Rush from this process alone; ``opened`` is called when the rush begins."""
    return [asyncio.run(rush(contestant, servers, range(users), opened))]


_barrier: Barrier


def _share_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _rush_from_worker(contestant: str, servers: Servers, users: Sequence[int]) -> Crowd:
    # A timeout, as a worker that died never comes to the barrier.
    return asyncio.run(rush(contestant, servers, users, wait_for_doors=lambda: _barrier.wait(60)))


def rush_from_processes(
    contestant: str, servers: Servers, users: int, processes: int, opened: Callable[[], object]
) -> list[Crowd]:
    """Rush from several processes, started together; ``opened`` is called when they start."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes + 1)
    parts = [range(number, users, processes) for number in range(processes)]
    with ProcessPoolExecutor(
        processes, context, initializer=_share_barrier, initargs=(barrier,)
    ) as executor:
        rushing = [executor.submit(_rush_from_worker, contestant, servers, part) for part in parts]
        # If the barrier breaks, result() raises the reason.
        with suppress(threading.BrokenBarrierError):
            barrier.wait(60)
            opened()
        return [worker.result() for worker in rushing]


def make_figures(
    crowds: Sequence[Crowd], ideal: float, counts: Mapping[str, int], script_calls: int
) -> dict[str, float]:
    """Return the figures of one rush.

    Args:
        crowds: what happened in each process.
        ideal: the least seconds that the quota allows.
        counts: those of the server.
        script_calls: how many scripts the engine ran; 0 if it was not used.
    """
    visits = [visit for crowd in crowds for visit in crowd.visits]
    seconds = max(visit.answered for visit in visits) - min(visit.asked for visit in visits)
    result = {
        "failed": float(sum(visit.failed for visit in visits)),
        "seconds": seconds,
        "of ideal": seconds / ideal,
        "throttled %": 100 * counts["throttled"] / counts["requests"],
    }
    sent = sorted(moment for crowd in crowds for moment in crowd.sent)
    if sent:
        result["busiest second"] = _find_busiest_second(sent)
    if script_calls:
        result["script calls/s"] = script_calls / seconds
    if len(crowds) == 1:
        return {**result, "rank": _correlate_ranks(crowds[0].visits)}
    shares = _compute_shares([crowd.visits for crowd in crowds])
    return {**result, "least share": min(shares), "largest share": max(shares)}


def _find_busiest_second(sent: Sequence[float]) -> float:
    """Return the largest number of requests in any second; ``sent`` is in order."""
    return float(max(bisect_left(sent, moment + 1) - at for at, moment in enumerate(sent)))


def _correlate_ranks(visits: Sequence[Visit]) -> float:
    """Correlate the order of asking with the order of waits (Spearman): 1 if nobody overtakes."""
    served = [visit for visit in visits if not visit.failed]
    arrivals = range(len(served))
    by_wait = sorted(arrivals, key=lambda arrival: served[arrival].wait)
    # Ranks are the inverse permutation, which has the same correlation; there are no ties.
    return correlation(by_wait, arrivals) if len(served) > 1 else 0.0


def _compute_shares(crowds: Sequence[Sequence[Visit]]) -> list[float]:
    """Return each process's share of the tokens while all processes wait; 1 is a fair share."""
    first_end = min(max(visit.answered for visit in crowd) for crowd in crowds)
    served = [
        sum(visit.answered <= first_end and not visit.failed for visit in crowd) for crowd in crowds
    ]
    fair = fmean(served)
    return [count / fair for count in served]


def run_once(
    server: harness.Server, engine: harness.Engine, options: argparse.Namespace, case: Case
) -> dict[str, float]:
    """Rush once with one contestant against one shape."""
    contestant, servers = CONTESTANTS[case.name], Servers(server.url, engine.url)
    server.prepare(case.shape, options.latency)
    if contestant.shared:
        engine.restart()

    def opened() -> None:
        if contestant.shared and options.outage:
            gone, back = options.outage
            threading.Timer(gone, engine.kill).start()
            threading.Timer(back, engine.start).start()

    if case.processes == 1:
        crowds = rush_from_here(case.name, servers, options.users, opened)
    else:
        crowds = rush_from_processes(case.name, servers, options.users, case.processes, opened)
    # An engine that was killed has lost its counts.
    calls = engine.script_calls() if contestant.shared and not options.outage else 0
    return make_figures(crowds, contestant.ideal(options.users), server.counts(), calls)


@dataclass(frozen=True, slots=True)
class Case:
    """One rush.

    Args:
        name: the contestant's.
        shape: the shape of the quota.
        processes: how many the users come through.
    """

    name: str
    shape: str
    processes: int

    def limits(self, outage: bool) -> Sequence[harness.Limit]:
        """Return the limits of the contestant in this case."""
        contestant = CONTESTANTS[self.name]
        if not contestant.has_limits:
            return ()
        if contestant.shared:
            fleet = OUTAGE_LIMITS if outage else FLEET_LIMITS
            # A single process has no shares.
            return [each for each in fleet if self.processes > 1 or "share" not in each.figure]
        return ALONE_LIMITS if self.processes == 1 else TOGETHER_LIMITS


def main() -> int:
    """Run the benchmark as the command line says."""
    options = _options()
    cases = [
        Case(name, shape, processes)
        for processes in options.processes
        for shape in options.shapes
        for name in options.contestants
        if CONTESTANTS[name].is_installed and shape in CONTESTANTS[name].shapes
    ]
    runs: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    with harness.run_server() as server, harness.open_engine() as engine:
        for case in harness.take_turns(cases, options.repeats):
            runs[case].append(run_once(server, engine, options, case))
    rows = [
        harness.Row.of(
            {"contestant": case.name, "processes": str(case.processes), "shape": case.shape},
            results,
            case.limits(bool(options.outage)),
        )
        for case, results in runs.items()
    ]
    left_out = [name for name in options.contestants if not CONTESTANTS[name].is_installed]
    return harness.report(options, rows, left_out)


def _options() -> argparse.Namespace:
    parser = harness.make_parser(__doc__, repeats=3)
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
    return harness.parse_options(parser, users=20)


if __name__ == "__main__":
    sys.exit(main())
