"""The pace of a whole fleet towards one account and region.

The engine hands out *slots*: moments of its own clock, evenly apart, each good for one request of
one process. A process takes a few ahead, as many as are its share of what the fleet waits for, and
gives each to whoever waits longest when its moment comes. Even spacing alone passes every shape
the quota may have, and as slots are taken ahead, none goes unused while somebody waits.

While the engine is away every process paces itself at its part of the quota, for the same callers
in the same order. When it is back, all processes change over at one moment that the engine names:
were the first to come back to take what is shared while the others still take their parts, the
quota would be exceeded.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from bisect import insort
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from aioivschat._clock import Clock
from aioivschat._models import Priority
from aioivschat._service.fair_queue import QueuedLimiter, QueuedReservation
from aioivschat._service.limiter import BURST_HELD_BACK, HEADROOM, LocalLimiter, Quota
from aioivschat.redis._engine import Engine, EngineAway, EngineState
from aioivschat.redis._limiter_script import TRIP

_AHEAD = 0.05
"""Seconds before its last slot that a process asks for more: as long as the engine may take."""

_STALE = 0.1
"""Seconds after which an unused slot is void. A process that was busy uses what it is late with at
once; this keeps even a process that has all slots within a tenth of the quota."""

_GIVE_BACK_AFTER = 0.1
"""Seconds in which callers that leave are gathered before their slots go back."""

_BEAT = 10.0
"""Seconds after which a process without demand shows that it still is a member."""

_MEMBER_FOR = 25.0
"""Seconds for which a process that says nothing stays a member: two beats, and some."""


class SharedLimiter(QueuedLimiter):
    """The limiter of a fleet, as one of its processes sees it.

    Args:
        engine: where the slots come from.
        name: of what is shared; equal for all processes that share it.
        quota: what is allowed to the fleet as a whole.
        clock: where the time comes from.
        on_rate: called with the fleet's new rate when what was learnt changes it.
        members: how many processes share the quota, for as long as the engine has not told.
        rng: where the jitter comes from.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        quota: Quota,
        clock: Clock,
        on_rate: Callable[[float], None] | None = None,
        *,
        members: int = 1,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(quota.max_waiting)
        self._engine = engine
        self._keys = [f"{{{name}}}:{part}" for part in ("pace", "members", "returned")]
        self._quota = quota
        self._clock = clock
        self._on_rate = on_rate
        self._members = members
        self._rng = rng or random.Random()  # noqa: S311 (no secret)
        self._member = secrets.token_hex(8)
        if quota.burst is None:
            self._ceiling, self._burst = quota.rate * (1 - HEADROOM), 0.0
        else:
            self._ceiling = quota.rate
            self._burst = max(0.0, quota.burst * (1 - BURST_HELD_BACK) - 1) / quota.rate
        self._rate = self._ceiling
        # Each is when it is due here, and its name on the engine's clock.
        self._slots: list[tuple[float, int]] = []
        self._offset: float | None = None  # of our clock from the engine's, in seconds
        self._trip_at = -_BEAT  # the last one's end
        self._pause_for = 0.0  # between trips, as the engine asks
        self._told = 0  # how many the engine believes to wait here
        self._others = 0  # how many wait elsewhere without a slot
        self._free_from = 0.0  # when the first slot is due that nobody has taken
        self._served = self._throttled = 0
        self._fewer_from = 0.0  # before that, members may be missing in what the engine says
        self._alone: LocalLimiter | None = None
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._at_work = False
        self._returning: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        engine.add_state_callback(self._engine_became)
        if engine.state is EngineState.AWAY:
            self._go_alone()

    @property
    def shared(self) -> bool:
        """Whether the pace is the fleet's; else it is this process's part of it."""
        return self._alone is None

    @property
    def members(self) -> int:
        """How many processes share the quota, as far as is known."""
        return self._members

    @property
    def rate(self) -> float:
        """The pace aimed at now, in requests a second: the fleet's, or this process's part."""
        return self._rate if self._alone is None else self._alone.rate

    def predicted_wait(self, priority: Priority = Priority.NORMAL, room: str = "") -> float:
        """Return the seconds that a new reservation for a room would wait.

        It assumes that the others of the fleet go on to want as much as they said last.
        """
        now = self._clock.monotonic()
        ahead = self._count_before(priority, room)
        if self._alone is not None:
            start = max(self._alone_from - now, self._alone.predicted_wait())
            return max(0.0, start) + ahead / self._alone.rate
        if ahead < len(self._slots):
            return max(0.0, self._slots[ahead][0] - now)
        turns = (ahead - len(self._slots)) * (1 + self._others / max(1, self._told))
        return max(0.0, self._free_from - now) + turns / self._rate

    def reserve(
        self, priority: Priority = Priority.NORMAL, *, room: str = "", again: bool = False
    ) -> QueuedReservation:
        """Take a place in the queue."""
        expected = self._clock.monotonic() + self.predicted_wait(priority, room)
        reservation = QueuedReservation(self, priority, room, expected)
        self._enqueue(reservation, again)
        if self._timer is None:
            self._grant_due()
        return reservation

    def served(self) -> None:
        """Take note that a request got through the quota."""
        if self._alone is not None:
            self._alone.served()
        else:
            self._served += 1

    def throttled(self) -> None:
        """Take note that a request was throttled."""
        if self._alone is not None:
            self._alone.throttled()
        else:
            self._throttled += 1

    async def aclose(self) -> None:
        """Give unused slots back and cease to be a member; who still waits here waits in vain."""
        self._closed = True
        tasks = [t for t in (self._working, self._returning, self._beating) if t is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._timer is not None:
            self._timer.cancel()
        if self._alone is None and self._beating is not None:
            with suppress(EngineAway):
                await self._trip(0, self._surplus(0), "leave")

    # Giving slots to those who wait.

    def _grant_due(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        while self._slots and self.waiting:
            due = self._slots[0][0]
            if due > now:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(due - now, self._grant_due)
                break
            del self._slots[0]
            if due > now - _STALE:
                self._pop_next().grant()
        self._see_to_it()

    def _spend_permit(self) -> None:
        """Nothing to do: the slot was paid for."""

    def _refund_permit(self) -> None:
        # Its moment has come: too late to give it back to the engine.
        insort(self._slots, (self._clock.monotonic(), 0))
        if self._timer is not None:
            self._timer.cancel()
        self._grant_due()

    def _withdraw(self, reservation: QueuedReservation) -> None:
        super()._withdraw(reservation)
        if len(self._slots) > self.waiting:
            self._wake.set()

    # Getting slots for them.

    def _see_to_it(self) -> None:
        """Have the work done if there is any and nobody is at it."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        if self._beating is None:
            self._beating = loop.create_task(self._beat())
        wanted = self.waiting > len(self._slots) or self._told > 0
        if wanted and not self._at_work:
            # Before the task is made: it may run at once, and asks here again when it grants.
            self._at_work = True
            self._working = loop.create_task(self._work())

    async def _work(self) -> None:
        try:
            await self._work_while_wanted()
        finally:
            self._at_work = False

    async def _work_while_wanted(self) -> None:
        while True:
            wanted = self.waiting - len(self._slots)
            now = self._clock.monotonic()
            if self._alone is not None:
                if wanted <= 0:
                    return
                due = max(self._alone_from, now + self._alone.predicted_wait())
                if due <= now:
                    await self._alone.reserve().granted()
                    insort(self._slots, (now, 0))
                    self._grant_due()
                    continue
            elif wanted > 0:
                due = self._trip_at + self._pause_for
                if self._slots:
                    due = max(due, self._slots[-1][0] - _AHEAD)
                if due <= now:
                    with suppress(EngineAway):
                        await self._trip(wanted)
                    if self._engine.state is not EngineState.CONNECTING:
                        continue
                    # Setting out alone, it would not know how many share the quota.
                    due = now + _AHEAD
            elif self._told or self._surplus(self.waiting, take=False):
                due = self._trip_at + max(_GIVE_BACK_AFTER, self._pause_for)
                if due <= now:
                    with suppress(EngineAway):
                        await self._trip(0, self._surplus(self.waiting))
                    continue
            else:
                return
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(due - now):
                    await self._wake.wait()

    def _surplus(self, needed: int, *, take: bool = True) -> list[int]:
        """Return the slots beyond those needed that are worth giving back."""
        soon = self._clock.monotonic() + _AHEAD
        surplus = [slot for due, slot in self._slots[needed:] if due > soon]
        if take and surplus:
            del self._slots[-len(surplus) :]
        return surplus

    async def _trip(
        self, wanted: int, returned: Sequence[int] = (), purpose: str = "work"
    ) -> float:
        """Ask the engine for slots and take what it says; return when all change over."""
        started = self._clock.monotonic()
        served, throttled = self._served, self._throttled
        self._served = self._throttled = 0
        ceiling, burst = round(self._ceiling * 1000), round(self._burst * 1e6)
        counts = (wanted, self.waiting, served, throttled)
        try:
            (
                now,
                rate,
                members,
                waiting,
                pause,
                handover,
                free,
                slots,
            ) = await self._engine.run_script(
                TRIP,
                self._keys,
                (self._member, ceiling, burst, purpose, *counts, *returned),
                urgent=True,
            )
        except EngineAway:
            self._served += served
            self._throttled += throttled
            raise
        self._trip_at = ended = self._clock.monotonic()
        # The engine looked at its clock at some moment of the trip; what was known of the offset
        # before is kept as far as that allows, so that a slow answer delays no slot.
        latest = ended - now / 1e6
        offset = latest if self._offset is None else self._offset
        self._offset = offset = min(max(offset, started - now / 1e6), latest)
        complete = purpose == "work" and ended >= self._fewer_from
        self._members = members if complete else max(members, self._members)
        self._pause_for = pause / 1e6
        self._told = wanted - len(slots)
        self._others = max(0, waiting - self._told)
        self._free_from = offset + free / 1e6
        if rate / 1000 != self._rate:
            self._rate = rate / 1000
            if self._on_rate is not None:
                self._on_rate(self._rate)
        if self._alone is None:
            for slot in slots:
                # Those of a burst lie in the past, and are not late for it.
                insort(self._slots, (max(ended, offset + slot / 1e6), slot))
            if self._timer is not None:
                self._timer.cancel()
            self._grant_due()
        return float(offset + handover / 1e6)

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(_BEAT * self._rng.uniform(0.8, 1.0))
            if not self._at_work and self._alone is None:
                with suppress(EngineAway):
                    await self._trip(0)

    # Alone and back.

    def _engine_became(self, state: EngineState, reason: str) -> None:
        if self._returning is not None:
            self._returning.cancel()
            self._returning = None
        if state is EngineState.AWAY:
            if self._alone is None:
                self._go_alone()
        elif self._alone is not None:
            self._returning = asyncio.get_running_loop().create_task(self._go_back())

    def _go_alone(self) -> None:
        parts, quota = self._members, self._quota
        burst = None if quota.burst is None else max(1, quota.burst // parts)
        part = replace(quota, rate=quota.rate / parts, burst=burst)
        self._alone = LocalLimiter(part, self._clock)
        # Until then the fleet uses up the slots that were taken ahead, as this process does; and
        # not all begin in the same moment.
        ahead = max(0.0, self._free_from - self._trip_at)
        self._alone_from = self._clock.monotonic() + ahead
        self._alone_from += self._rng.uniform(0, parts / quota.rate)
        self._told = 0
        self._change_over()

    async def _go_back(self) -> None:
        while self._engine.state is EngineState.SHARED:
            with suppress(EngineAway):
                at = await self._trip(0, purpose="join")
                self._fewer_from = self._clock.monotonic() + _MEMBER_FOR
                await self._clock.sleep(max(0.0, at - self._clock.monotonic()))
                self._alone = None
                self._slots.clear()  # the engine may have forgotten that they are taken
                self._change_over()
                return

    def _change_over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake.set()
        if self.waiting:
            self._grant_due()
