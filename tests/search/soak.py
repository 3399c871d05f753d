"""A soak: minutes of load and faults on the real service; no token lost, doubled or leaked.

::

    cd tests && python -X dev -W error -m search.soak --seconds 600

Calls and tokens are logged to files and checked at the end, so that logging does not look like a
leak. Every few seconds the load pauses until all calls have ended; what the process holds then must
not grow. A seed repeats the load and the faults, but not how they coincide in real time.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import pkgutil
import random
import statistics
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from aiobotocore.session import AioSession

from aioivschat import (
    AsyncTokenService,
    AttemptFailed,
    CachePolicy,
    ChatTokenError,
    Event,
    PoolPolicy,
    Quota,
    RetryPolicy,
    TokenRequest,
)
from search.soak_upstream import digest
from support.paths import TESTS

ROOMS = tuple(f"arn:aws:ivschat:us-east-1:123456789012:room/Soak{number}" for number in range(4))

_GRACE = 0.1
"""Seconds after its deadline by which a call has ended, if the loop was not held up."""

_TURNS = 5
"""Turns of the loop that ending takes: the timer, the cancellation, the flight, the caller. On a
busy machine each takes as long as the loop is held up."""

_TIMEOUTS = (None, None, 0.05, 0.5, 2.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process holds while no call runs.

    Args:
        calls: calls so far.
        rss: resident memory, in KiB.
        blocks: blocks of memory that Python holds.
        objects: objects that the garbage collector knows, without those from before the load.
        files: open files.
        tasks: tasks.
    """

    calls: int
    rss: int
    blocks: int
    objects: int
    files: int
    tasks: int

    @classmethod
    def take(cls, calls: int) -> Sample:
        """Measure this process."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            calls=calls,
            rss=pages * os.sysconf("SC_PAGE_SIZE") // 1024,
            blocks=sys.getallocatedblocks(),
            objects=len(gc.get_objects()),
            files=len(list(Path("/proc/self/fd").iterdir())),
            tasks=len(asyncio.all_tasks()),
        )


# Growth that is no leak, and growth for each call. One object or block for every fiftieth call is
# less than what any kind of call, fault or cancellation would leave if it left anything: each of
# them is more frequent. Beside it, what is at rest differs by what the caches hold, and by up to a
# hundred cancelled timers that an event loop keeps until they are due. Memory comes in arenas of a
# megabyte.
_ALLOWED = {
    "rss": (6_000.0, 0.02),
    "blocks": (2_500.0, 0.02),
    "objects": (1_200.0, 0.02),
    "files": (0.0, 0.0),
    "tasks": (0.0, 0.0),
}


def grown(samples: Sequence[Sample]) -> list[str]:
    """Tell what grew, by the medians of the first and the last third."""
    third = max(1, len(samples) // 3)
    found = []
    calls = _median(samples[-third:], "calls") - _median(samples[:third], "calls")
    for name, (once, each) in _ALLOWED.items():
        growth = _median(samples[-third:], name) - _median(samples[:third], name)
        if growth > once + each * calls:
            found.append(f"{name} grew by {growth:g} in {calls:g} calls")
    return found


def _median(samples: Iterable[Sample], name: str) -> float:
    values: list[float] = [getattr(sample, name) for sample in samples]
    return statistics.median(values)


@dataclass(frozen=True, slots=True)
class Called:
    """One call, as it ended.

    Args:
        number: its own.
        owner: who may be handed its token: only calls of one owner may share one.
        user: for whom the token must be.
        ended: ``token``, ``done``, ``cancelled``, or the name of an error's class.
        token: what stands for the token.
        reused: whether it was said to have been handed out before; ``None``: it was not said.
        late: seconds after the deadline at which it ended, if that is beyond the grace.
    """

    number: int
    owner: str
    user: str
    ended: str
    token: str | None = None
    reused: bool | None = None
    late: float = 0.0


@dataclass
class Account:
    """What the service says it did, for :func:`judge`.

    Args:
        stats: of the service, when it was at rest.
        failed: failed requests by the name of the error.
        fenced: flights under way at invalidations: so many tokens may have been thrown away.
        requests: that reached the emulator.
        minted: tokens that the emulator made.
    """

    stats: dict[str, int]
    failed: Counter[str]
    fenced: int
    requests: int
    minted: int


def judge(
    started: int, calls: Iterable[Called], delivered: dict[str, str], account: Account
) -> list[str]:
    """Return what is wrong with the logged calls and tokens.

    Args:
        started: how many calls there were.
        calls: those that ended.
        delivered: the user of each token that the emulator sent.
        account: what the service and the emulator counted.
    """
    wrong: Counter[str] = Counter()
    owners: dict[str, str] = {}
    firsts: set[str] = set()
    ended = 0
    for call in calls:
        ended += 1
        if call.late:
            wrong[f"late, {call.ended}"] += 1
        if call.ended not in _DOCUMENTED:
            wrong[f"ended by {call.ended}"] += 1
        if call.token is None:
            continue
        if delivered.get(call.token) != call.user:
            wrong["token of somebody else, or of nobody"] += 1
        if owners.setdefault(call.token, call.owner) != call.owner:
            wrong["token doubled"] += 1
        if call.reused is False and call.token in firsts:
            wrong["token twice called new"] += 1
        if call.reused is False:
            firsts.add(call.token)
    found = [f"{what}: {count}" for what, count in sorted(wrong.items())]
    if ended != started:
        found.append(f"lost: {started - ended} calls never ended")
    stats, failed = account.stats, account.failed
    # Every minted token was handed out, is or was in the stock, or was invalidated in flight.
    from_flights = len(owners) - stats["stock"]
    wasted = stats["minted"] - from_flights - stats["stocked"]
    if not 0 <= wasted <= account.fenced:
        found.append(f"{wasted} tokens came and went nowhere; {account.fenced} may have")
    left = stats["stocked"] - stats["stock"] - stats["expired_unused"] - stats["stock_held"]
    if left:
        found.append(f"{left} tokens left the stock without a trace")
    if stats["requests"] != stats["minted"] + stats["throttled"] + stats["failed"]:
        found.append("requests without an outcome")
    # A token that was made and not received belongs to a request whose connection failed.
    missing = account.minted - stats["minted"] - failed["MalformedResponse"]
    if not 0 <= missing <= failed["ConnectionFailed"]:
        found.append(f"{missing} tokens missing, {failed['ConnectionFailed']} connections failed")
    if account.requests > stats["requests"]:
        found.append("more requests came than were sent")
    return found


def _names(kind: type[BaseException]) -> set[str]:
    return {kind.__name__}.union(*map(_names, kind.__subclasses__()))


_DOCUMENTED = {"token", "done", "cancelled", *_names(ChatTokenError)}


class Soak:
    """Sends the load, and logs how its calls ended.

    Args:
        options: as :func:`parser` gives them.
        book: the log of calls.
    """

    def __init__(self, options: argparse.Namespace, book: TextIO) -> None:
        self.options = options
        self.book = book
        self.rng = random.Random(options.seed)
        self.samples: list[Sample] = []
        self.started = 0
        self.failed: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.fenced = 0
        self.worst_late = self.worst_lag = self.loaded = self.rested = 0.0
        self.untold: list[str] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._attempts: deque[tuple[str, str]] = deque(maxlen=50)
        self._lag = 0.0
        self._tick = 0.0

    async def run(self, url: str, command: Any) -> dict[str, int]:
        """Run the load for as long as the options say.

        Args:
            url: where requests go.
            command: sends a command to the upstream.

        Returns:
            The service's last stats.
        """
        options, loop = self.options, asyncio.get_running_loop()
        loop.slow_callback_duration = 5.0  # a busy machine is no fault
        loop.set_exception_handler(lambda _, context: self.untold.append(context["message"]))
        sys.unraisablehook = lambda told: self.untold.append(repr(told.exc_value))
        session = AioSession()
        session.set_credentials("testing", "testing")
        make: type[AsyncTokenService] = pkgutil.resolve_name(options.service)
        ticking = asyncio.create_task(self._watch_lag())
        async with make(
            session=session,
            endpoint_url=url,
            quota=Quota(rate=200.0),
            retry=RetryPolicy(max_attempts=6, base_delay=0.05, max_delay=0.5),
            # Full after a few seconds, so that what they hold stays the same.
            cache=CachePolicy(max_tokens=300, max_stock=100, min_remaining=options.life / 3),
            pool=PoolPolicy(max_connections=60, connect_timeout=1.0, read_timeout=1.0),
            observers=[self._observe],
        ) as self.service:
            token = await self.service.issue(TokenRequest(ROOMS[0], "first"), fresh=True)
            self._note(Called(0, "first", "first", "token", digest(token.token)))
            gc.collect()
            gc.freeze()
            for _ in range(round(options.seconds / options.period)):
                await command("storm")
                begun = loop.time()
                await self._load(begun + options.period)
                self.loaded += loop.time() - begun
                await command("calm")
                begun = loop.time()
                await self._rest()
                self.rested += loop.time() - begun
                await command("cut")
                await asyncio.sleep(0.05)
                self.samples.append(Sample.take(self.started))
                self.worst_lag, self._lag = max(self.worst_lag, self._lag), 0.0
            stats = asdict(self.service.stats())
            gc.unfreeze()
        ticking.cancel()
        return stats

    async def _load(self, end: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while due < end:
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._start()
            due += self.rng.expovariate(self.options.rate)

    async def _rest(self) -> None:
        """Wait until all calls and flights have ended; report those that do not in time."""
        loop = asyncio.get_running_loop()
        limit = loop.time() + self.options.patience
        while self._calls and loop.time() < limit:
            await asyncio.wait(self._calls, timeout=limit - loop.time())
        stats = self.service.stats()
        while (stats.flights or stats.waiting) and loop.time() < limit:
            await asyncio.sleep(0.01)
            stats = self.service.stats()
        if stats.flights or stats.waiting:
            self.untold.append(f"{stats.flights} flights and {stats.waiting} places stay for ever")
        self._calls.clear()

    def _start(self) -> None:
        self.started += 1
        rng, number = self.rng, self.started
        kinds = ("fresh", "keyed", "plain", "boto", "prewarm", "invalidate")
        (kind,) = rng.choices(kinds, weights=(40, 25, 22, 6, 4, 3))
        user = f"{rng.randrange(300)}"
        timeout = None if kind == "prewarm" else rng.choice(_TIMEOUTS)
        key = None
        if kind == "keyed":
            if self._attempts and rng.random() < 0.3:
                user, key = rng.choice(self._attempts)  # a retry, or a second click
            else:
                key = f"attempt-{number}"
                self._attempts.append((user, key))
        request = TokenRequest(ROOMS[int(user) % len(ROOMS)], user, {"SEND_MESSAGE"})
        owner = {"fresh": f"{number}", "keyed": f"{user} {key}"}.get(kind, user)
        task = asyncio.create_task(self._call(number, kind, request, key, timeout, owner))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        if rng.random() < self.options.cancel:
            # At any moment of the call: before it begins, in the queue, in flight.
            asyncio.get_running_loop().call_later(rng.choice((0, 0.3)) * rng.random(), task.cancel)

    async def _call(
        self,
        number: int,
        kind: str,
        request: TokenRequest,
        key: str | None,
        timeout: float | None,
        owner: str,
    ) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (timeout or 1e9)
        service, user = self.service, request.user
        called = Called(number, owner, user, "done")
        try:
            if kind == "prewarm":
                await service.prewarm([request] * self.rng.randint(1, 3))
            elif kind == "invalidate":
                self.fenced += service.stats().flights
                service.invalidate(user=user)
            elif kind == "boto":
                reply = await service.create_chat_token(
                    roomIdentifier=request.room,
                    userId=user,
                    capabilities=["SEND_MESSAGE"],
                    timeout=timeout,
                )
                called = Called(number, owner, user, "token", digest(reply["token"]))
            else:
                token = await service.issue(
                    request, idempotency_key=key, fresh=kind == "fresh", timeout=timeout
                )
                shown = digest(token.token)
                called = Called(number, owner, user, "token", shown, token.reused)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            wanted = task is not None and task.cancelling() > 0
            called = Called(number, owner, user, "cancelled" if wanted else "CancelledError")
        except Exception as error:
            called = Called(number, owner, user, type(error).__name__)
        late = loop.time() - deadline
        if late > _GRACE + _TURNS * max(self._lag, loop.time() - self._tick):
            called = replace(called, late=late)
        self.worst_late = max(self.worst_late, late)
        self._note(called)

    def _note(self, called: Called) -> None:
        self.ends[called.ended] += 1
        self.book.write(json.dumps(asdict(called)) + "\n")

    def _observe(self, event: Event) -> None:
        if isinstance(event, AttemptFailed):
            self.failed[event.error] += 1

    async def _watch_lag(self) -> None:
        """Measure how long the loop is held up, to allow calls that much more time."""
        loop = asyncio.get_running_loop()
        while True:
            self._tick = loop.time() + 0.02
            await asyncio.sleep(0.02)
            self._lag = max(self._lag, loop.time() - self._tick)


@dataclass
class Report:
    """What came of a soak."""

    soak: Soak
    stats: dict[str, int]
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ends = self.soak.ends
        others = sum(ends.values()) - ends["token"] - ends["cancelled"] - ends["done"]
        stats = self.stats
        lines = [
            f"calls       {self.soak.started:>8,}  in {self.soak.loaded:.0f} s: "
            f"{self.soak.started / self.soak.loaded:.0f} a second; seed {self.soak.options.seed}",
            f"  tokens    {ends['token']:>8,}",
            f"  cancelled {ends['cancelled']:>8,}",
            f"  others    {ends['done']:>8,}  prewarmed or invalidated",
            f"  errors    {others:>8,}  documented ones",
            f"requests    {stats['requests']:>8,}  {stats['minted']:,} minted, "
            f"{stats['throttled']:,} throttled, {stats['failed']:,} failed",
            f"worst late  {self.soak.worst_late:>8.3f}  s after the deadline; the loop was held up "
            f"for {self.soak.worst_lag:.3f} s",
            f"rested      {self.soak.rested:>8.0f}  s beside that, until all had come to its end",
            "",
            f"{'at rest':<11} {'first':>9} {'last':>9}  medians of thirds, "
            f"{len(self.soak.samples)} samples after warm-up",
        ]
        third = max(1, len(self.soak.samples) // 3)
        for name in _ALLOWED:
            first, last = (
                _median(part, name)
                for part in (self.soak.samples[:third], self.soak.samples[-third:])
            )
            lines.append(f"{name:<11} {first:>9,.0f} {last:>9,.0f}")
        lines += ["", *(f"WRONG: {each}" for each in self.wrong)]
        lines.append("soak: " + (f"{len(self.wrong)} faults" if self.wrong else "nothing wrong"))
        return "\n".join(lines)


async def soak(options: argparse.Namespace, folder: Path) -> Report:
    """Run a soak and judge it."""
    upstream = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "search.soak_upstream"),
        *(str(folder / "minted"), str(options.seed), str(options.life)),
        cwd=TESTS,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert upstream.stdin is not None
    assert upstream.stdout is not None
    sending, receiving = upstream.stdin, upstream.stdout

    async def command(text: str) -> Any:
        sending.write(f"{text}\n".encode())
        await sending.drain()
        return json.loads(await receiving.readline())

    url = json.loads(await receiving.readline())
    with (folder / "calls").open("w") as book:
        load = Soak(options, book)
        stats = await load.run(url, command)
    counts = await command("count")
    sending.close()
    await upstream.wait()
    delivered = {}
    with (folder / "minted").open() as minted:
        for line in map(json.loads, minted):
            delivered[line["token"]] = line["user"]
    account = Account(stats, load.failed, load.fenced, **counts)
    with (folder / "calls").open() as calls:
        told = (Called(**json.loads(line)) for line in calls)
        wrong = judge(load.started + 1, told, delivered, account)
    load.samples = load.samples[len(load.samples) // 5 + 1 :]  # warm by then
    wrong += grown(load.samples)
    wrong += [f"told to nobody: {each}" for each in sorted(set(load.untold))]
    return Report(load, stats, wrong)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=600.0, help="of load, pauses apart (default: 600)")
    add("--rate", type=float, default=150.0, help="calls a second (default: 150)")
    add("--cancel", type=float, default=0.05, help="share of them that is cancelled")
    add("--seed", type=int, default=None, help="of all that is random (default: a new one)")
    add("--patience", type=float, default=30.0, help="seconds after which a call is lost")
    add("--service", default="aioivschat:AsyncTokenService", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a soak, print its table, and return the exit status."""
    options = parser().parse_args(arguments)
    if options.seed is None:
        options.seed = random.randrange(1_000_000)
    # So short that tokens expire, and everything is at rest, often enough for a short soak too.
    options.life = min(15.0, max(3.0, options.seconds / 8))
    options.period = min(15.0, max(0.4, options.seconds / 40))
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(soak(options, Path(folder)))
    print(report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
