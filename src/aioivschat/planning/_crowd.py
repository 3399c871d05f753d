"""A crowd that comes to an event: who comes when, and what each viewer asks for.

Through a service in virtual time a run is a plan, through a real one it is a rehearsal: the same
crowd, counted in the same way.
"""

from __future__ import annotations

import asyncio
import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import accumulate, chain, count
from typing import Any

from aioivschat._clock import Clock
from aioivschat._models import ChatToken, RoomArn, TokenRequest
from aioivschat._service.refusals import Refusals
from aioivschat._service.service import AsyncTokenService
from aioivschat.planning._event import MAX_PREWARM_SECONDS, LiveEvent, Renewal
from aioivschat.planning._outcomes import CrowdOutcome, CrowdProgress, Timeline, Waits, percentile

_RENEWAL_CHECK_SECONDS = 0.25
"""Poll interval for renewals that are due: clients are not more punctual than that."""

_ROUNDING_SECONDS = 1e-6


class CrowdRun:
    """Issues tokens to the crowd of an event, once, through a service that nobody else uses."""

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
        self._arrival_times = event.arrivals.times(event.attendees)
        # Not for secrets; the seed makes each run of an event the same.
        self._rng = random.Random(event.attendees)  # noqa: S311
        self._doors_at = math.inf  # on the monotonic clock
        self._arrived = 0
        self._settled_at = array("d", [math.nan]) * event.attendees  # seconds since the doors
        self._errors: dict[int, str] = {}
        self._admitted: list[int] = []
        self._returned = 0
        self._next_arrival: asyncio.TimerHandle | None = None
        self._all_settled = asyncio.Event()
        self._refusals = Refusals()
        self._admissions: list[asyncio.Task[None]] = []  # by attendee
        self._returns: list[asyncio.Task[None]] = []
        # By attendee: the time of the renewal. By time: the attendees; a pair of the heap is stale
        # if the attendee's time has changed since, by a reconnect.
        self._renewal_times = array("d", [math.inf]) * event.attendees
        self._renewals: list[tuple[float, int]] = []
        self._first_second = -math.ceil(event.prewarm)
        self._stats_before = service.stats()
        self._minted_by_second: list[int] = []  # up to the end of each second

    async def run(self) -> None:
        """Return when every viewer has a token or an error.

        Raises:
            ChatTokenError: the first request failed, or all others would.
        """
        # Opens the clients, so that the first viewers do not wait for that.
        for room in {RoomArn.parse(room).region: room for room in self._rooms}.values():
            await self._service.issue(TokenRequest(room, "warm-up"), fresh=True)
        self._stats_before = self._service.stats()
        self._doors_at = self._clock.monotonic() + self._event.prewarm
        work: list[asyncio.Task[Any]] = [
            asyncio.create_task(each)
            for each in (self._count_minted(), self._lose_connections(), self._renew_connections())
        ]
        if self._event.prewarm:
            ahead = self._make_prewarmed_requests()
            minting = self._service.prewarm(ahead, doors=self._event.prewarm)
            work.append(asyncio.create_task(minting))
        try:
            self._admit_arrivals()
            await self._all_settled.wait()
            if self._refusals.of_all is not None:
                raise self._refusals.of_all
        finally:
            if self._next_arrival is not None:
                self._next_arrival.cancel()
            calls = (*self._admissions, *self._returns)
            left = [task for task in (*work, *calls) if not task.done()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            # Cancelled tasks stay alive in reference cycles, which would keep this list, too.
            self._admissions.clear()
            self._returns.clear()

    def progress(self) -> CrowdProgress:
        waits = sorted(self._compute_waits())
        failed = len(self._errors)
        minted = [0, 0, *self._minted_by_second[-2:]]
        return CrowdProgress(
            seconds=self._seconds_since_doors(),
            arrived=self._arrived,
            admitted=len(self._admitted),
            waiting=self._arrived - len(self._admitted) - failed,
            failed=failed,
            rate=minted[-1] - minted[-2],
            throttled=self._service.stats().throttled - self._stats_before.throttled,
            p95=percentile(waits, 95) if waits else 0.0,
        )

    def outcome(self) -> CrowdOutcome:
        stats = self._service.stats()
        now = self._seconds_since_doors()
        waits, inside = list(self._compute_waits()), self._admitted
        settled = self._settled_at
        waiting = (
            now - self._arrival_times[each]
            for each in range(self._arrived)
            if math.isnan(settled[each])
        )
        failures = list(self._errors.values())
        return CrowdOutcome(
            arrived=self._arrived,
            admitted=len(inside),
            failed={name: failures.count(name) for name in sorted(set(failures))},
            waits=Waits.of(waits),
            late=sum(wait > self._event.patience for wait in chain(waits, waiting)),
            first_second=sum(settled[each] < 1 for each in inside),
            finished=settled[inside[-1]] if inside else 0.0,
            prewarmed=max(self._minted_by_second[: -self._first_second], default=0),
            unused=stats.expired_unused + stats.stock_held,
            returned=self._returned,
            throttled=stats.throttled - self._stats_before.throttled,
            timeline=self._make_timeline(now, stats.minted - self._stats_before.minted),
        )

    def _admit_arrivals(self) -> None:
        """Start a call for each viewer who has come, and a timer for the next one."""
        loop, times, calls = asyncio.get_running_loop(), self._arrival_times, self._admissions
        now = self._seconds_since_doors()
        while self._arrived < len(times) and times[self._arrived] <= now + _ROUNDING_SECONDS:
            calls.append(loop.create_task(self._admit_viewer(self._arrived)))
            self._arrived += 1
        if self._arrived < len(times):
            # A task that sleeps instead would be a tenth of a plan's processor time.
            self._next_arrival = loop.call_later(times[self._arrived] - now, self._admit_arrivals)

    async def _admit_viewer(self, attendee: int) -> None:
        request = self._make_request(attendee)
        try:
            refusal = self._refusals.find(request.room)
            if refusal is not None:
                raise refusal
            token = await self._service.issue(request, fresh=True)
        except Exception as error:
            self._errors[attendee] = type(error).__name__
            if self._refusals.note_failed(request.room, error):
                self._turn_away_refused()
        else:
            self._refusals.note_served(request.room)
            self._admitted.append(attendee)
            self._schedule_renewal(attendee, token)
        self._note_settled(attendee)

    def _note_settled(self, attendee: int) -> None:
        # Rounding may put the time just before the arrival.
        self._settled_at[attendee] = max(self._seconds_since_doors(), self._arrival_times[attendee])
        if len(self._admitted) + len(self._errors) == len(self._arrival_times):
            self._all_settled.set()

    def _turn_away_refused(self) -> None:
        """Let nobody wait for what would be refused."""
        if self._refusals.of_all is not None:
            self._all_settled.set()
        for attendee, task in enumerate(self._admissions):
            room = self._rooms[attendee % len(self._rooms)]
            if self._refusals.is_refused(room) and task is not asyncio.current_task():
                # The task may not have begun to run, and would say nothing of its end.
                task.add_done_callback(partial(self._note_turned_away, attendee, room))
                task.cancel()

    def _note_turned_away(self, attendee: int, room: str, task: asyncio.Task[None]) -> None:
        if task.cancelled() and math.isnan(self._settled_at[attendee]):
            self._errors[attendee] = type(self._refusals.find(room)).__name__
            self._note_settled(attendee)

    def _schedule_renewal(self, attendee: int, token: ChatToken) -> None:
        by_session = self._event.renewal is Renewal.SESSION
        end = token.session_expires if by_session else token.token_expires
        left = end.timestamp() - self._clock.wall()
        due = self._clock.monotonic() + self._event.renewal.due(left)
        self._renewal_times[attendee] = due
        heappush(self._renewals, (due, attendee))

    async def _lose_connections(self) -> None:
        # A Poisson process over all attendees. A hit on one who is not inside yet is ignored, so
        # that the rate for each viewer is right.
        rate = self._event.reconnects / 3_600 * self._event.attendees
        while rate:
            await self._clock.sleep(self._rng.expovariate(rate))
            viewer = self._rng.randrange(self._event.attendees)
            if viewer < len(self._admitted):
                self._start_reconnect(self._admitted[viewer])

    async def _renew_connections(self) -> None:
        while True:
            await self._clock.sleep(_RENEWAL_CHECK_SECONDS)
            now = self._clock.monotonic()
            while self._renewals and self._renewals[0][0] <= now:
                due, attendee = heappop(self._renewals)
                if self._renewal_times[attendee] == due:
                    self._start_reconnect(attendee)

    def _start_reconnect(self, attendee: int) -> None:
        if self._renewal_times[attendee] < math.inf:  # otherwise a call is under way already
            self._renewal_times[attendee] = math.inf
            self._returns.append(asyncio.create_task(self._issue_again(attendee)))

    async def _issue_again(self, attendee: int) -> None:
        try:
            token = await self._service.issue(self._make_request(attendee), fresh=True)
        except Exception:
            return  # the service's counters have it
        self._returned += 1
        self._schedule_renewal(attendee, token)

    def _make_request(self, attendee: int) -> TokenRequest:
        return TokenRequest(
            self._rooms[attendee % len(self._rooms)],
            f"viewer-{attendee}",
            session_minutes=self._event.session_minutes,
        )

    def _make_prewarmed_requests(self) -> Iterator[TokenRequest]:
        """Yield requests whose token, made ahead, is there and usable when the viewer comes."""
        event = self._event
        rate = event.quota.rate * len({RoomArn.parse(room).region for room in self._rooms})
        many = min(event.attendees, int(rate * event.prewarm))
        for attendee in range(many):
            minted = (attendee - many) / rate
            if self._arrival_times[attendee] - minted <= MAX_PREWARM_SECONDS:
                yield self._make_request(attendee)

    def _seconds_since_doors(self) -> float:
        if self._doors_at == math.inf:
            return float(self._first_second)
        return self._clock.monotonic() - self._doors_at

    def _compute_waits(self) -> Iterator[float]:
        settled, times = self._settled_at, self._arrival_times
        return (settled[each] - times[each] for each in self._admitted)

    async def _count_minted(self) -> None:
        for second in count(self._first_second):
            await self._clock.sleep(second + 1 - self._seconds_since_doors())
            stats = self._service.stats()
            self._minted_by_second.append(stats.minted - self._stats_before.minted)

    def _make_timeline(self, now: float, minted: int) -> Timeline:
        seconds = max(1, math.ceil(now) - self._first_second)

        def per_second(times: Iterable[float]) -> tuple[int, ...]:
            found = [0] * seconds
            for each in times:
                found[min(math.floor(each) - self._first_second, seconds - 1)] += 1
            return tuple(found)

        arrived = per_second(self._arrival_times[: self._arrived])
        admitted = per_second(self._settled_at[each] for each in self._admitted)
        failed = per_second(self._settled_at[each] for each in self._errors)
        changes = zip(arrived, admitted, failed, strict=True)
        totals = [*self._minted_by_second[: seconds - 1], minted]
        totals += [minted] * (seconds - len(totals))
        return Timeline(
            start=self._first_second,
            arrived=arrived,
            admitted=admitted,
            waiting=tuple(accumulate(a - b - c for a, b, c in changes)),
            tokens=tuple(b - a for a, b in zip([0, *totals], totals, strict=False)),
        )
