"""The doors of a live event: who comes when, what they ask for, and how long they wait.

:class:`Doors` lets a crowd in through any service. Through one in virtual time that is a plan,
through a real one a rehearsal: the same crowd, and the same way of counting.
"""

from __future__ import annotations

import asyncio
import math
import random
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from heapq import heappop, heappush
from itertools import accumulate, count
from typing import Any, Literal, Self

from aioivschat._clock import Clock
from aioivschat._models import (
    SESSION_MAX_MINUTES,
    TOKEN_LIFE_SECONDS,
    ChatToken,
    RoomArn,
    TokenRequest,
)
from aioivschat._service.limiter import Quota
from aioivschat._service.service import AsyncTokenService
from aioivschat.errors import InvalidConfiguration, require

REGIONS = (
    "us-east-1",
    "us-west-2",
    "ap-south-1",
    "ap-northeast-1",
    "ap-northeast-2",
    "eu-central-1",
    "eu-west-1",
)
"""Where there is IVS Chat (IVS Chat endpoints and quotas)."""

_ACCOUNT = "123456789012"
_DAY = 86_400
_MAX_ATTENDEES = 10_000_000
_HOUR = 3_600.0
_LOOK = 0.25
"""Seconds between two looks at whose renewal is due: clients are not more punctual than that."""

_ROUNDING = 1e-6

Shape = Literal["at-once", "uniform", "ramp", "curve"]


class Renewal(StrEnum):
    """What the chat SDK is told to renew its connection by, in ``tokenExpirationTime``.

    With 60 s or less left it opens a new connection, with a new token, 30 s before that time;
    otherwise 60 s before (amazon-ivs-chat-messaging 1.1.1, read and measured).
    """

    SESSION = "session"  # the session's end: one token for each session
    TOKEN = "token"  # noqa: S105 (AWS's own value, a minute ahead: one about every 30 s)

    def due(self, left: float) -> float:
        """Return after how many seconds a client renews that has so many left; at least 0."""
        return max(0.0, left - (30.0 if left <= TOKEN_LIFE_SECONDS else 60.0))


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When attendees come, counted from the opening of the doors.

    Args:
        shape: ``at-once``; ``uniform``, evenly over ``seconds``; ``ramp``, more and more over
            ``seconds``, the last second seeing twice the mean; ``curve``, as ``counts`` say.
        seconds: for ``uniform`` and ``ramp``, above 0 and at most a day.
        counts: for ``curve``, arrivals in each second from the doors on, not all 0. They are
            scaled to the number of attendees.

    Raises:
        InvalidConfiguration: if something is out of its range.
    """

    shape: Shape = "at-once"
    seconds: float = 0.0
    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.shape in ("uniform", "ramp"):
            limit = "over more than 0 s, at most a day"
            require(0 < self.seconds <= _DAY, "arrivals", limit, self.seconds)
        if self.shape == "curve":
            limit = "0 or more in each second of at most a day"
            fits = 0 < len(self.counts) <= _DAY and min(self.counts) >= 0
            require(fits, "arrivals", limit, len(self.counts))
            attendees = sum(self.counts)
            # Python refuses to print thousands of digits.
            found = f"{attendees:,}" if attendees < 10**12 else "far more"
            limit = f"1 to {_MAX_ATTENDEES:,} in all"
            require(1 <= attendees <= _MAX_ATTENDEES, "arrivals", limit, found)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``at-once``, ``uniform:SECONDS`` or ``ramp:SECONDS``.

        Raises:
            InvalidConfiguration: if it is none of these.
        """
        shape, colon, seconds = text.partition(":")
        try:
            if shape == "at-once" and not colon:
                return cls()
            if shape == "uniform":
                return cls("uniform", float(seconds))
            if shape == "ramp":
                return cls("ramp", float(seconds))
        except ValueError as error:
            if isinstance(error, InvalidConfiguration):
                raise
        raise InvalidConfiguration("arrivals", "at-once, uniform:SECONDS or ramp:SECONDS", text)

    @classmethod
    def read(cls, lines: Iterable[str]) -> Self:
        """Read a CSV of arrivals per second.

        Args:
            lines: a header or none; then rows of a second, counted from the doors on, and the
                arrivals in it; or of arrivals only, one row a second.

        Raises:
            InvalidConfiguration: a row cannot be read, or the whole makes no curve.
        """
        counts: dict[int, int] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                *second, arrivals = map(int, line.split(","))
            except ValueError:
                if number == 1:
                    continue  # the header
                second, arrivals = [], -1
            at = second[0] if second else len(counts)
            fits = len(second) <= 1 and 0 <= at < _DAY and arrivals >= 0
            limit = "a second of at most a day and its arrivals, or arrivals only"
            require(fits, f"arrivals, line {number}", limit, "something else")
            counts[at] = counts.get(at, 0) + arrivals
        seconds = max(counts, default=-1) + 1
        return cls("curve", counts=tuple(counts.get(at, 0) for at in range(seconds)))

    def times(self, attendees: int) -> Sequence[float]:
        """Return when each of so many comes, in seconds from the doors on, in order."""
        if self.shape == "at-once":
            return array("d", [0.0]) * attendees
        if self.shape == "uniform":
            return array("d", (each * self.seconds / attendees for each in range(attendees)))
        if self.shape == "ramp":
            # As many have come as the square of the share of the time that has passed.
            shares = (math.sqrt((each + 0.5) / attendees) for each in range(attendees))
            return array("d", (share * self.seconds for share in shares))
        return array("d", self._along_curve(attendees))

    def _along_curve(self, attendees: int) -> Iterator[float]:
        before = [0, *accumulate(self.counts)]
        for each in range(attendees):
            place = each * before[-1] / attendees
            second = bisect_right(before, place) - 1
            yield second + (place - before[second]) / self.counts[second]


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """A live event, as far as its tokens go.

    Args:
        attendees: how many come, 1 to 10 million.
        arrivals: when they come.
        quota: what AWS allows an account in each region.
        prewarm: seconds before the doors that may be used to mint ahead; 0 for none, at most 55,
            as a token lives for 60 and is handed out with 5 left. It begins as late as it can.
        rooms: rooms that attendees are spread over in turn, at least one for each region.
        regions: regions that rooms are spread over in turn, 1 to 7.
        session_minutes: how long a session lasts, 1 to 180 minutes.
        reconnects: how often an hour a viewer loses the connection and comes back with a new
            token, 0 or more.
        renewal: what clients renew by.
        patience: seconds that a viewer waits gladly, above 0. Nobody leaves for waiting longer;
            they are counted.
        latency: seconds from a request to its token, 0 or more.

    Raises:
        InvalidConfiguration: if something is out of its range.
    """

    attendees: int
    arrivals: Arrivals = Arrivals()
    quota: Quota = Quota()  # noqa: RUF009 (frozen)
    prewarm: float = 0.0
    rooms: int = 1
    regions: int = 1
    session_minutes: int = 60
    reconnects: float = 1.0
    renewal: Renewal = Renewal.SESSION
    patience: float = 10.0
    latency: float = 0.02

    def __post_init__(self) -> None:
        def check(option: str, within: bool, limit: str) -> None:
            require(within, option, limit, getattr(self, option))

        check("attendees", 1 <= self.attendees <= _MAX_ATTENDEES, f"1 to {_MAX_ATTENDEES:,}")
        check("prewarm", 0 <= self.prewarm <= 55, "0 to 55 s")
        check("regions", 1 <= self.regions <= len(REGIONS), f"1 to {len(REGIONS)}")
        check("rooms", self.regions <= self.rooms <= 1_000, "one for each region, at most 1,000")
        check("session_minutes", 1 <= self.session_minutes <= SESSION_MAX_MINUTES, "1 to 180")
        check("reconnects", 0 <= self.reconnects <= _HOUR, "0 to 3,600 an hour")
        check("patience", 0 < self.patience < math.inf, "above 0 s")
        check("latency", 0 <= self.latency <= 5, "0 to 5 s")

    def arns(self) -> tuple[str, ...]:
        """Return made-up ARNs for the event's rooms."""
        return tuple(
            str(RoomArn(REGIONS[room % self.regions], _ACCOUNT, f"Room{room + 1}"))
            for room in range(self.rooms)
        )


@dataclass(frozen=True, slots=True)
class Waits:
    """How long viewers waited, in seconds, from when they came to their token.

    Args:
        p50: half of them at most so long; as all here by nearest rank.
        p95: 95 of 100 at most so long.
        p99: 99 of 100 at most so long.
        last: the one who got in last.
        longest: the one who waited longest.
    """

    p50: float
    p95: float
    p99: float
    last: float
    longest: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened in each second.

    Args:
        start: the first second, counted from the doors; below 0 with prewarming.
        arrived: viewers who came in it.
        admitted: viewers who got a token in it.
        waiting: viewers who waited at its end.
        tokens: tokens minted in it for whatever purpose.
    """

    start: int
    arrived: tuple[int, ...]
    admitted: tuple[int, ...]
    waiting: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Course:
    """How the doors fared, until all were in or until somebody stopped it.

    Args:
        arrived: viewers who came.
        admitted: viewers who have a token.
        failed: viewers who got none, by the name of the error's class.
        waits: how long those who were admitted waited; ``None`` if nobody was.
        late: viewers who waited longer than the event's patience, or still do.
        first_second: viewers admitted within a second of the doors.
        finished: seconds from the doors to the last token.
        prewarmed: tokens minted before the doors.
        unused: tokens minted ahead that nobody was given.
        returned: tokens given to reconnects and renewals while others still came.
        throttled: requests that AWS throttled.
        timeline: each second of it.
    """

    arrived: int
    admitted: int
    failed: Mapping[str, int]
    waits: Waits | None
    late: int
    first_second: int
    finished: float
    prewarmed: int
    unused: int
    returned: int
    throttled: int
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class Moment:
    """How the doors fare now.

    Args:
        seconds: since the doors; below 0 before them.
        arrived: viewers who have come.
        admitted: viewers who have a token.
        waiting: viewers who wait.
        failed: viewers who get none.
        rate: tokens minted in the last whole second.
        throttled: requests that were throttled so far.
        p95: of the waits so far, in seconds; 0 as long as nobody was admitted.
    """

    seconds: float
    arrived: int
    admitted: int
    waiting: int
    failed: int
    rate: int
    throttled: int
    p95: float


class Doors:
    """Lets the crowd of an event in through a service, once.

    Args:
        event: the event.
        service: a service in which nothing else happens meanwhile.
        rooms: the rooms' ARNs; attendees are spread over them in turn.
        clock: where the time comes from; the service's.
    """

    def __init__(
        self,
        event: LiveEvent,
        service: AsyncTokenService,
        rooms: Sequence[str],
        clock: Clock | None = None,
    ) -> None:
        self._event = event
        self._service = service
        self._clock = clock or Clock()
        self._rooms = rooms
        self._times = event.arrivals.times(event.attendees)
        # No secret, and the same crowd each time.
        self._rng = random.Random(event.attendees)  # noqa: S311
        self._opening = math.inf  # by the monotonic clock
        self._arrived = 0
        self._settled = array("d", [math.nan]) * event.attendees  # by the time since the doors
        self._failures: dict[int, str] = {}
        self._inside: list[int] = []
        self._returned = 0
        self._next_arrival: asyncio.TimerHandle | None = None
        self._all_settled = asyncio.Event()
        self._calls: list[asyncio.Task[None]] = []
        # When each client renews, and the clients by that; one who reconnected renews later.
        self._due = array("d", [math.inf]) * event.attendees
        self._renewals: list[tuple[float, int]] = []
        self._start = -math.ceil(event.prewarm)
        self._before = service.stats()
        self._minted: list[int] = []  # since then, by the end of each second

    async def hold(self) -> None:
        """Open the doors and return when all have their token, or will get none.

        Raises:
            ChatTokenError: not even a first token could be had, before the doors.
            BotoCoreError: as much, for lack of credentials say.
        """
        # Whoever comes first shall not wait for clients to be opened.
        for room in {RoomArn.parse(room).region: room for room in self._rooms}.values():
            await self._service.issue(TokenRequest(room, "warm-up"), fresh=True)
        self._before = self._service.stats()
        self._opening = self._clock.monotonic() + self._event.prewarm
        work: list[asyncio.Task[Any]] = [
            asyncio.create_task(each)
            for each in (self._take_notes(), self._lose_connections(), self._renew())
        ]
        if self._event.prewarm:
            ahead = (self._request(attendee) for attendee in self._worth_prewarming())
            minting = self._service.prewarm(ahead, doors=self._event.prewarm)
            work.append(asyncio.create_task(minting))
        try:
            self._arrive()
            await self._all_settled.wait()
        finally:
            if self._next_arrival is not None:
                self._next_arrival.cancel()
            left = [task for task in (*work, *self._calls) if not task.done()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            # What was cancelled is garbage in cycles, and need not hold everybody else's calls.
            self._calls.clear()

    def moment(self) -> Moment:
        """Tell how the doors fare now."""
        waits = sorted(self._waits())
        failed = len(self._failures)
        minted = [0, 0, *self._minted[-2:]]
        return Moment(
            seconds=self._now(),
            arrived=self._arrived,
            admitted=len(self._inside),
            waiting=self._arrived - len(self._inside) - failed,
            failed=failed,
            rate=minted[-1] - minted[-2],
            throttled=self._service.stats().throttled - self._before.throttled,
            p95=percentile(waits, 95) if waits else 0.0,
        )

    def course(self) -> Course:
        """Tell how the doors fared so far."""
        stats = self._service.stats()
        now = self._now()
        in_order, inside = list(self._waits()), self._inside
        waits = sorted(in_order)
        patience = self._event.patience
        settled = self._settled
        still = sum(
            now - self._times[each] > patience
            for each in range(self._arrived)
            if math.isnan(settled[each])
        )
        failures = list(self._failures.values())
        return Course(
            arrived=self._arrived,
            admitted=len(inside),
            failed={name: failures.count(name) for name in sorted(set(failures))},
            waits=_summary(waits, in_order[-1]) if waits else None,
            late=len(waits) - bisect_right(waits, patience) + still,
            first_second=sum(settled[each] < 1 for each in inside),
            finished=settled[inside[-1]] if inside else 0.0,
            prewarmed=max(self._minted[: -self._start], default=0),
            unused=stats.expired_unused + stats.stock_held,
            returned=self._returned,
            throttled=stats.throttled - self._before.throttled,
            timeline=self._timeline(now, stats.minted - self._before.minted),
        )

    # The crowd.

    def _arrive(self) -> None:
        """Let in all who have come, and see to it that the next ones are."""
        loop, times, calls = asyncio.get_running_loop(), self._times, self._calls
        now = self._now()
        while self._arrived < len(times) and times[self._arrived] <= now + _ROUNDING:
            calls.append(loop.create_task(self._enter(self._arrived)))
            self._arrived += 1
        if self._arrived < len(times):
            # No task that sleeps: in virtual time, that would be a tenth of all the work.
            self._next_arrival = loop.call_later(times[self._arrived] - now, self._arrive)

    async def _enter(self, attendee: int) -> None:
        try:
            token = await self._service.issue(self._request(attendee), fresh=True)
        except Exception as error:
            self._failures[attendee] = type(error).__name__
        else:
            self._inside.append(attendee)
            self._connected(attendee, token)
        # By rounding, the time may seem to be a moment before they came.
        self._settled[attendee] = max(self._now(), self._times[attendee])
        if len(self._inside) + len(self._failures) == len(self._times):
            self._all_settled.set()

    def _connected(self, attendee: int, token: ChatToken) -> None:
        by_session = self._event.renewal is Renewal.SESSION
        end = token.session_expires if by_session else token.token_expires
        left = end.timestamp() - self._clock.wall()
        due = self._due[attendee] = self._clock.monotonic() + self._event.renewal.due(left)
        heappush(self._renewals, (due, attendee))

    async def _lose_connections(self) -> None:
        # Each viewer at random and independently of the others: as many viewers as there will be
        # lose theirs, and those do not count who are not inside.
        rate = self._event.reconnects / _HOUR * self._event.attendees
        while rate:
            await self._clock.sleep(self._rng.expovariate(rate))
            viewer = self._rng.randrange(self._event.attendees)
            if viewer < len(self._inside) and self._due[self._inside[viewer]] < math.inf:
                self._come_back(self._inside[viewer])

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(_LOOK)
            now = self._clock.monotonic()
            while self._renewals and self._renewals[0][0] <= now:
                due, attendee = heappop(self._renewals)
                if self._due[attendee] == due:
                    self._come_back(attendee)

    def _come_back(self, attendee: int) -> None:
        self._due[attendee] = math.inf  # on its way already
        self._calls.append(asyncio.create_task(self._enter_again(attendee)))

    async def _enter_again(self, attendee: int) -> None:
        try:
            token = await self._service.issue(self._request(attendee), fresh=True)
        except Exception:
            return  # the service's own counters tell what failed
        self._returned += 1
        self._connected(attendee, token)

    def _request(self, attendee: int) -> TokenRequest:
        return TokenRequest(
            self._rooms[attendee % len(self._rooms)],
            f"viewer-{attendee}",
            session_minutes=self._event.session_minutes,
        )

    def _worth_prewarming(self) -> Iterator[int]:
        """Yield those for whom a token minted ahead is there, and alive, when they come."""
        event = self._event
        regions = {RoomArn.parse(room).region for room in self._rooms}
        rate = event.quota.rate * len(regions)
        many = min(event.attendees, int(rate * event.prewarm))
        for attendee in range(many):
            minted = (attendee - many) / rate
            if self._times[attendee] - minted <= 55:
                yield attendee

    # The books.

    def _now(self) -> float:
        if self._opening == math.inf:
            return float(self._start)
        return self._clock.monotonic() - self._opening

    def _waits(self) -> Iterator[float]:
        settled, times = self._settled, self._times
        return (settled[each] - times[each] for each in self._inside)

    async def _take_notes(self) -> None:
        for second in count(self._start):
            await self._clock.sleep(second + 1 - self._now())
            stats = self._service.stats()
            self._minted.append(stats.minted - self._before.minted)

    def _timeline(self, now: float, minted: int) -> Timeline:
        seconds = max(1, math.ceil(now) - self._start)

        def per_second(times: Iterable[float]) -> tuple[int, ...]:
            found = [0] * seconds
            for each in times:
                found[min(math.floor(each) - self._start, seconds - 1)] += 1
            return tuple(found)

        arrived = per_second(self._times[: self._arrived])
        admitted = per_second(self._settled[each] for each in self._inside)
        failed = per_second(self._settled[each] for each in self._failures)
        totals = [*self._minted[: seconds - 1], minted]
        totals += [minted] * (seconds - len(totals))
        return Timeline(
            start=self._start,
            arrived=arrived,
            admitted=admitted,
            waiting=tuple(
                accumulate(a - b - c for a, b, c in zip(arrived, admitted, failed, strict=True))
            ),
            tokens=tuple(b - a for a, b in zip([0, *totals], totals, strict=False)),
        )


def _summary(ordered: Sequence[float], last: float) -> Waits:
    p50, p95, p99 = (percentile(ordered, percent) for percent in (50, 95, 99))
    return Waits(p50, p95, p99, last, longest=ordered[-1])


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return a percentile by nearest rank.

    Args:
        ordered: values from the least to the greatest, at least one.
        percent: 1 to 100.
    """
    return ordered[math.ceil(percent / 100 * len(ordered)) - 1]
