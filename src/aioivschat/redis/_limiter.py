"""The limiter of a fleet: its processes share the quota of one account and region.

The engine hands out *slots*: moments of its own clock, evenly apart, each good for one request of
one process. A process takes some slots ahead, its share of what the whole fleet waits for. When the
moment of a slot comes, the process grants it to the reservation whose turn it is. Requests so
spaced pass a quota of any shape, and as slots are taken ahead, none is lost while somebody waits. A
request whose connection took so long that the moment of its slot has passed takes the next one.

While the engine is away, every process paces itself at its part of the quota, for the same
reservations in the same order. When the engine is back, each process changes over to slots as soon
as it knows; as long as others may still take their parts, the engine hands out what is left.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

from aioivschat._clock import Clock
from aioivschat._contexts import call_later, start_task, time_limit
from aioivschat._models import Priority
from aioivschat._service.fair_queue import Connections, QueuedLimiter, QueuedReservation
from aioivschat._service.pace import BURST_HELD_BACK, Pace, Quota, Sent, Shape
from aioivschat.redis._engine import Engine, EngineAway, EngineState
from aioivschat.redis._limiter_script import SYNC

_ASK_AHEAD_SECONDS = 0.05
"""Seconds before its last slot that a process asks for more: as long as the engine may take."""

_CONNECTING_SECONDS = 0.8
"""Seconds that the first calls wait for an engine that takes connections and says nothing."""

_SLOT_VOID_AFTER_SECONDS = 0.1
"""Seconds after which an unused slot is void. A process that was busy sends at once what is late;
this limit keeps even a process that has all slots within a tenth above the quota."""

_GATHER_RETURNS_SECONDS = 0.1
"""Seconds for which slots that nobody needs any more are gathered before they are given back."""

_LOCAL_PAUSE_SECONDS = 0.02
"""Seconds before a process goes by itself: others may still hold slots that it has not heard of."""

_HEARTBEAT_SECONDS = 10.0
"""Seconds after which a process without demand shows that it still is a member: the script forgets
one after 25."""

_NO_SLOT = 0
"""In place of the engine's moment, for a permit that cannot go back to the engine."""

_HEADROOM = 0.01
"""Share of the rate held back: slots have no window beside them."""


class SharedLimiter(QueuedLimiter):
    """The limiter of a fleet, as one of its processes sees it.

    Args:
        engine: where the slots come from.
        name: of what is shared; equal for all processes that share it.
        quota: what is allowed to the fleet as a whole.
        clock: where the time comes from.
        on_learnt: called with the fleet's rate and burst when what was learnt changes the rate.
        connections: those of this process to the region; ``None``: as many as it takes.
        members: how many processes share the quota, until the engine has said so.
        rng: where the jitter comes from.

    Attributes:
        shared: whether the fleet's slots are granted; else it is this process's part of the quota.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        quota: Quota,
        clock: Clock,
        on_learnt: Callable[[float, int], None] | None = None,
        *,
        connections: Connections | None = None,
        members: int = 1,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(clock, quota.max_waiting, connections)
        self._engine = engine
        self._keys = [f"{{{name}}}:{part}" for part in ("pace", "members", "returned", "clock")]
        self._quota = quota
        self._on_learnt = on_learnt
        self._rng = rng or random.SystemRandom()  # a fork shares no state of it
        if quota.burst is None:
            self._ceiling, self._fleet_burst = quota.rate * (1 - _HEADROOM), 1.0
        else:
            self._ceiling = quota.rate
            self._fleet_burst = max(1.0, quota.burst * (1 - BURST_HELD_BACK))
        # Unused slots: when each is due by our clock, and its moment on the engine's.
        self._slots: list[tuple[float, int]] = []
        self._late: deque[asyncio.Future[None]] = deque()  # with a connection and no slot any more
        self._grant_timer: asyncio.TimerHandle | None = None
        # What the engine said at the last sync.
        self._synced_at = -math.inf
        self._clock_offset: float | None = None  # of our clock from the engine's, in seconds
        self._rate = self._ceiling
        self._members = members
        self._missing = 0  # of those, who may go by themselves
        self._connecting_until: float | None = None  # from then on, calls wait for it no more
        self._sync_pause = 0.0  # seconds until the next sync
        self._next_slot_at = -math.inf  # when the first slot is due that nobody has taken
        self._ahead_until = -math.inf  # when its part alone would have been as much as it took
        self._reported_waiting = 0  # reservations here without a slot
        self._waiting_elsewhere = 0  # those of other members
        self._served = self._throttled = 0  # that the engine does not know of yet
        self.shared = True  # else the engine is away, and permits are the process's own
        self._own_pace = Pace(quota, clock.monotonic())
        self._own_permits_from = -math.inf
        self._shaken = 0  # 1: the engine was away since it was last asked; 2: its clock was set
        self._closed = False
        self._wake = asyncio.Event()  # set to have the work task look again
        self._working = False
        self._work_task: asyncio.Task[None] | None = None
        self._heartbeat_task: asyncio.Task[None] | None = None
        self._return_task: asyncio.Task[None] | None = None
        engine.add_state_callback(self._follow_engine)
        if engine.state is EngineState.AWAY:
            self._go_local()

    @cached_property
    def _member(self) -> str:
        # At its first use, as the service may have been made before a fork.
        return secrets.token_hex(8)

    @property
    def members(self) -> int:
        """How many processes share the quota, as far as is known."""
        return self._members

    @property
    def rate(self) -> float:
        """Requests a second aimed at now: the fleet's, or this process's part."""
        return self._rate if self.shared else self._own_pace.lasting_rate

    @property
    def burst(self) -> int:
        """How many requests are served at once: by the fleet, or by this process alone."""
        return int(self._fleet_burst if self.shared else self._own_pace.burst)

    @property
    def shape(self) -> Shape:
        """What the quota has shown of its shape, to this process while it was alone."""
        return self._own_pace.shape

    def predicted_wait(self, priority: Priority = Priority.NORMAL, room: str = "") -> float:
        """Return the seconds that a new reservation for a room would wait.

        It assumes that the other members go on to want as much as they reported last.
        """
        ahead = self._count_before(priority, room)
        permit_wait = self._permit_wait(ahead + len(self._late))
        return max(0.0, permit_wait, self._connections.predicted_wait(self, ahead))

    def _permit_wait(self, ahead: int) -> float:
        now = self._clock.monotonic()
        if not self.shared:
            return self._find_rest(now) + ahead / self.rate
        if ahead < len(self._slots):
            return self._slots[ahead][0] - now
        # While slots come here, other members get theirs.
        parts = 1 + self._waiting_elsewhere / max(1, self._reported_waiting)
        slots = (ahead - len(self._slots)) * parts
        return max(0.0, self._next_slot_at - now) + slots / self._rate

    def reserve(
        self, priority: Priority = Priority.NORMAL, *, room: str = "", again: bool = False
    ) -> QueuedReservation:
        """Queue for a permit."""
        expected = self._clock.monotonic() + self.predicted_wait(priority, room)
        reservation = QueuedReservation(self, priority, room, expected)
        self._enqueue(reservation, again)
        if self._grant_timer is None:
            self._grant_due_slots()
        return reservation

    def _spend_permit(self) -> Sent:
        return Sent(self._clock.monotonic())  # its slot has been counted

    def _learn(self, sent: Sent, *, throttled: bool) -> None:
        if self.shared:
            self._throttled += throttled
            self._served += not throttled
        else:
            self._own_pace.learn(sent, self._clock.monotonic(), throttled=throttled)

    async def aclose(self) -> None:
        """Give unused slots back and leave the fleet; nothing is granted any more."""
        self._closed = True
        tasks = [self._work_task, self._return_task, self._heartbeat_task]
        for task in (running := [task for task in tasks if task is not None]):
            task.cancel()
        if running:
            await asyncio.wait(running)
        if self._grant_timer is not None:
            self._grant_timer.cancel()
        if self.shared and self._heartbeat_task is not None:  # else the engine never heard of it
            with suppress(EngineAway):
                await self._sync_with_engine(0, self._take_surplus(keep=0), "leave")

    # Granting slots to reservations.

    def _grant_due_slots(self) -> None:
        self._grant_timer = None
        now = self._clock.monotonic()
        while self._slots and self._servable:
            due = self._slots[0][0]
            if due > now:
                self._grant_timer = call_later(due - now, self._grant_due_slots)
                break
            del self._slots[0]
            if due > now - _SLOT_VOID_AFTER_SECONDS:
                if self._late:
                    if not (late := self._late.popleft()).done():
                        late.set_result(None)
                else:
                    self._pop_next().grant(now)
        if self.waiting and self._connections.free <= 0:
            self._connections.wait(self)
        self._start_work_if_needed()

    def _serve_next(self) -> None:
        """Grant what is due by slots and connections that have changed; set the timer anew."""
        if self._grant_timer is not None:
            self._grant_timer.cancel()
        self._grant_due_slots()

    @property
    def _servable(self) -> int:
        """How many can use a slot: who waits and finds a connection, and who is late with one."""
        return int(min(self.waiting, self._connections.free)) + len(self._late)

    async def _wait_to_leave(self, granted_at: float) -> bool:
        # So much closer to later ones, no more come in a second, or in the time that one slot of a
        # slower quota takes, than the headroom has.
        tolerable = _HEADROOM * max(1.0, 1 / self._quota.rate)
        if self._clock.monotonic() - granted_at <= tolerable:
            return False
        # It has a connection now, so it is the next to use a slot.
        late = asyncio.get_running_loop().create_future()
        self._late.append(late)
        self._serve_next()
        try:
            await late
        except asyncio.CancelledError:
            if late in self._late:
                self._late.remove(late)
            else:
                self._refund_permit(self._clock.monotonic())
            raise
        return True

    def _refund_permit(self, granted_at: float) -> None:
        # The slot's moment has come: the engine cannot hand it out again, but this process can.
        insort(self._slots, (granted_at, _NO_SLOT))

    def _withdraw(self, reservation: QueuedReservation) -> None:
        super()._withdraw(reservation)
        if len(self._slots) > self._servable:
            self._wake.set()  # a slot can be given back

    # Getting slots, and giving back those that nobody needs.

    def _start_work_if_needed(self) -> None:
        if self._closed:
            return
        if self._heartbeat_task is None:
            self._heartbeat_task = start_task(self._send_heartbeats())
        needed = self._servable > len(self._slots) or self._reported_waiting > 0
        if needed and not self._working:
            # Before the task is made: it may run at once, and come here again when it grants.
            self._working = True
            self._work_task = start_task(self._work())

    async def _work(self) -> None:
        try:
            await self._work_while_needed()
        finally:
            self._working = False

    async def _work_while_needed(self) -> None:
        while True:
            now = self._clock.monotonic()
            lacking = self._servable - len(self._slots)
            if not self.shared:
                if lacking <= 0:
                    return
                due = now + self._find_rest(now)
                if due <= now:
                    self._own_pace.grant(now)
                    self._own_pace.spend(now)
                    insort(self._slots, (now, _NO_SLOT))
                    self._grant_due_slots()
                    continue
            elif lacking > 0:
                due = self._synced_at + self._sync_pause
                if self._slots:
                    due = max(due, self._slots[-1][0] - _ASK_AHEAD_SECONDS)
                if due <= now:
                    with suppress(EngineAway):
                        await self._sync_with_engine(lacking)
                    if self._engine.state is not EngineState.CONNECTING:
                        continue
                    # Not LOCAL yet: how many share the quota may become known in a moment.
                    if self._connecting_until is None:
                        self._connecting_until = now + _CONNECTING_SECONDS
                    elif now > self._connecting_until:
                        self._go_local()
                        continue
                    due = now + _ASK_AHEAD_SECONDS
            elif self._reported_waiting or self._find_surplus(keep=self._servable):
                due = self._synced_at + max(_GATHER_RETURNS_SECONDS, self._sync_pause)
                if due <= now:
                    with suppress(EngineAway):
                        await self._sync_with_engine(0, self._take_surplus(keep=self._servable))
                    continue
            else:
                return
            self._wake.clear()
            with suppress(TimeoutError):
                async with time_limit(due - now):
                    await self._wake.wait()

    def _find_surplus(self, keep: int) -> list[int]:
        """Return the slots beyond those to keep that others can still use."""
        soon = self._clock.monotonic() + _ASK_AHEAD_SECONDS
        return [slot for due, slot in self._slots[keep:] if due > soon]

    def _take_surplus(self, keep: int) -> list[int]:
        if surplus := self._find_surplus(keep):
            del self._slots[-len(surplus) :]
        return surplus

    async def _sync_with_engine(
        self, wanted: int, returned: Sequence[int] = (), purpose: str = "work"
    ) -> bool:
        """Ask for slots, give some back, report and learn; return whether that was in time."""
        started = self._clock.monotonic()
        served, throttled = self._served, self._throttled
        burst = round((self._fleet_burst - 1) / self._quota.rate * 1e6)
        arguments: list[str | int] = [self._member, round(self._ceiling * 1000), burst, purpose]
        arguments += wanted, self.waiting + len(self._late), served, throttled
        if (offset := self._clock_offset) is None:
            arguments += (self._members if purpose == "join" else 0), 0, 0, 0
        else:
            moments = started - offset, self._engine.timeout, self._next_slot_at - offset
            arguments += self._members, *(math.ceil(moment * 1e6) for moment in moments)
        resting = 0 if self.shared else math.ceil(self._find_rest(started) * 1e6)
        arguments += self._shaken, resting, *returned
        try:
            answer = await self._engine.run_script(SYNC, self._keys, arguments, urgent=True)
        except EngineAway:
            self._shaken = 1
            raise
        self._served -= served
        self._throttled -= throttled
        now, rate, members, waiting, pause, late, missing, next_slot, slots, dropped = answer
        self._engine.rejected += dropped
        self._synced_at = ended = self._clock.monotonic()
        # The engine read its clock between `started` and `ended`: the offset known so far is kept
        # within these bounds, so that a slow answer does not delay the slots.
        latest = ended - now / 1e6
        offset = min(max(latest if offset is None else offset, started - now / 1e6), latest)
        self._clock_offset = offset
        self._members, self._missing, self._sync_pause = members, missing, pause / 1e6
        self._reported_waiting = wanted - len(slots)
        self._waiting_elsewhere = max(0, waiting - self._reported_waiting)
        if late:  # the engine's clock was set; what is known of slots is on ours
            self._sync_pause, self._shaken = 0.0, 2
            return False
        self._shaken = 0
        self._next_slot_at = offset + next_slot / 1e6
        before, self._rate = self._rate, rate / 1000
        if self._on_learnt is not None and before != self._rate:
            self._on_learnt(self._rate, self.burst)
        if self.shared and slots:
            self._ahead_until = offset + slots[0] / 1e6 + len(slots) * members / self._quota.rate
            for slot in slots:
                # Slots of a burst lie in the past: they are not void, but due now.
                insort(self._slots, (max(ended, offset + slot / 1e6), slot))
        if self.shared:
            self._serve_next()
        return True

    async def _send_heartbeats(self) -> None:
        while True:
            await self._clock.sleep(self._rng.uniform(0.8, 1.0))
            silent = self._clock.monotonic() - self._synced_at
            # After an outage all are to call, so that the whole quota can be handed out again.
            due = silent > (0.5 if self._missing else _HEARTBEAT_SECONDS - 1.0)
            if due and not self._working and self.shared:
                with suppress(EngineAway):
                    await self._sync_with_engine(0)

    # From the fleet's slots to a limiter of its own, and back.

    def _follow_engine(self, state: EngineState, _reason: str) -> None:
        if self._return_task is not None:
            self._return_task.cancel()
            self._return_task = None
        if state is EngineState.AWAY and self.shared:
            self._go_local()
        elif state is EngineState.SHARED and not self.shared:
            self._return_task = start_task(self._return_to_fleet())

    def _go_local(self) -> None:
        self.shared = False
        parts, quota = self._members, self._quota
        burst = None if quota.burst is None else max(1, quota.burst // parts)
        part = replace(quota, rate=quota.rate / parts, burst=burst, learnt=None)
        # Nobody tries more than is known; twice the headroom, as the parts of all meet the slots.
        self._own_pace = Pace(part, self._clock.monotonic(), tries=False, headroom=2 * _HEADROOM)
        # Slots that the fleet has taken ahead are used up first; jitter keeps its members apart.
        jitter = self._rng.uniform(0, parts / quota.rate)
        now, ahead = self._clock.monotonic(), max(self._next_slot_at, self._ahead_until)
        self._own_permits_from = max(now, ahead + _LOCAL_PAUSE_SECONDS) + jitter
        self._shaken = 1
        self._reported_waiting = 0
        self._serve_by_state()

    def _find_rest(self, now: float) -> float:
        """Return the seconds until this process's next own permit."""
        return max(0.0, max(self._own_permits_from, self._own_pace.due(now)) - now)

    async def _return_to_fleet(self) -> None:
        while self._engine.state is EngineState.SHARED:
            with suppress(EngineAway):
                if await self._sync_with_engine(0, purpose="join"):
                    self.shared = True
                    self._slots.clear()  # the engine may have lost its data, and may hand them out
                    self._serve_by_state()
                    return

    def _serve_by_state(self) -> None:
        """Have those who wait served by the limiter of the new state."""
        self._wake.set()
        if self._grant_timer is not None or self._servable:
            self._serve_next()
