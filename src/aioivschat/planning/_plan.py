"""Whether an event fits, known beforehand.

::

    event = LiveEvent(50_000, Arrivals("ramp", 120), prewarm=50)
    print(plan(event).course.waits)

The plan lets the event's crowd in through :class:`~aioivschat.AsyncTokenService` itself, in virtual
time and with an upstream in this process that mints after the event's latency: whatever the service
does about pace, order, stock and priorities, the plan does too. What the crowd keeps up afterwards
is arithmetic.
"""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from aiobotocore.session import AioSession

from aioivschat._aws.clients import PoolPolicy
from aioivschat._clock import Clock
from aioivschat._models import TOKEN_LIFE_SECONDS, RoomArn
from aioivschat._service.cache import CachePolicy
from aioivschat._service.service import AsyncTokenService
from aioivschat.planning._crowd import (
    REGIONS,
    Course,
    Doors,
    LiveEvent,
    Renewal,
    Waits,
)
from aioivschat.planning._virtual_time import CreateChatToken, LoopClock, VirtualLoop, session_here

CONNECTIONS = 50_000
"""Chat connections at once for an account and region (IVS Chat service quotas; adjustable)."""

_EARLIER = 50.0
"""Seconds of prewarming that a plan without it compares with: what is minted first has then 5 s
more to live than it needs, should the doors open late."""

_THIN_ATTENDEES = 2_500
_THIN_RATE = 10.0
"""A change is tried on a crowd as thin as this, at a quota as much smaller: everybody's wait is the
same to within the time between two permits, and nobody waits for the answer."""


@dataclass(frozen=True, slots=True)
class Afterwards:
    """What the crowd asks for once it is in.

    Args:
        reconnects: tokens a second for lost connections.
        renewals: tokens a second for renewals, on average. Who reconnects starts anew, so with
            reconnects at random, ``r`` a second, and a renewal after ``R`` s each viewer asks for
            ``r / (exp(r R) - 1)``.
        peak: the most tokens a second, reconnects included: the doors come again as a wave of
            renewals, ``renewed_after`` after them, less those who reconnected meanwhile.
        quota: tokens a second that all regions allow.
        renewed_after: seconds from a token to its viewer's renewal.
        carried: viewers that the quota carries for good.
    """

    reconnects: float
    renewals: float
    peak: float
    quota: float
    renewed_after: float
    carried: int

    @property
    def fits(self) -> bool:
        """Whether the quota carries everybody, on average."""
        return self.reconnects + self.renewals <= self.quota


@dataclass(frozen=True, slots=True)
class Gain:
    """What a change would bring.

    Args:
        change: what is done differently, in words.
        event: the event with it.
        waits: how long viewers would wait; ``None`` if nobody got in.
        finished: seconds from the doors to the last token.
        late: viewers who would wait longer than their patience, about.
    """

    change: str
    event: LiveEvent
    waits: Waits | None
    finished: float
    late: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be expected of an event.

    Args:
        event: the event.
        course: how its doors fare.
        earliest: seconds from the doors to the last token, were the quota used up to the last
            permit from the start of prewarming on. Nothing is faster.
        afterwards: what the crowd asks for once it is in.
        gains: what changes would bring.
    """

    event: LiveEvent
    course: Course
    earliest: float
    afterwards: Afterwards
    gains: tuple[Gain, ...]


def plan(event: LiveEvent) -> Plan:
    """Plan an event.

    It runs an event loop of its own: in a coroutine, use :func:`asyncio.to_thread`. Python's
    cyclic garbage collector pauses meanwhile, in the whole process; it takes about 5 KB for each
    attendee who waits at the same time.

    Args:
        event: what is planned.

    Returns:
        The same plan each time.
    """
    course = simulate(event)
    return Plan(
        event=event,
        course=course,
        earliest=earliest_finish(event),
        afterwards=afterwards(event, course),
        gains=tuple(_gain(change, changed) for change, changed in _changes(event)),
    )


def simulate(event: LiveEvent, rooms: Sequence[str] = (), *, until: float = math.inf) -> Course:
    """Let the crowd of an event in, in virtual time.

    Args:
        event: the event.
        rooms: ARNs of its rooms; made-up ones by default.
        until: seconds after the doors at which it is stopped, for a rehearsal that was.

    Returns:
        How its doors fare; as for :func:`plan`.
    """
    with _collector_paused(), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)  # noqa: S101 (for the type checker)
        return runner.run(_hold(event, rooms or event.arns(), LoopClock(loop), until))


async def _hold(event: LiveEvent, rooms: Sequence[str], clock: Clock, until: float) -> Course:
    async with AsyncTokenService(
        session=_minting_here(clock, event.latency),
        endpoint_url="http://127.0.0.1",
        quota=event.quota,
        cache=stock_for(event),
        pool=PoolPolicy(prepared=False),  # the requests are for nobody
        clock=clock,
    ) as service:
        doors = Doors(event, service, rooms, clock)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until + event.prewarm)):
                await doors.hold()
        return doors.course()


def stock_for(event: LiveEvent) -> CachePolicy:
    """Return a policy with room for all that can be prewarmed."""
    return CachePolicy(max_stock=math.ceil(event.quota.rate * TOKEN_LIFE_SECONDS) * event.regions)


def _minting_here(clock: Clock, latency: float) -> AioSession:
    """Return a session whose clients mint in this process."""

    async def create_chat_token(*, sessionDurationInMinutes: int = 60, **_: Any) -> dict[str, Any]:  # noqa: N803 (boto3's)
        # As at AWS, a token's life begins when it is made. This is `sleep`, for half of its price.
        loop = asyncio.get_running_loop()
        answered = loop.create_future()
        loop.call_later(latency, answered.set_result, None)
        await answered
        now = datetime.fromtimestamp(clock.wall(), UTC)
        return {
            "token": "planned",
            "tokenExpirationTime": now + timedelta(seconds=TOKEN_LIFE_SECONDS),
            "sessionExpirationTime": now + timedelta(minutes=sessionDurationInMinutes),
        }

    async def open_client(_: str) -> CreateChatToken:
        return create_chat_token

    return session_here(open_client)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector.

    It would look through all who wait over and over, for as long as all the rest takes, and find
    nothing: what a viewer leaves behind is freed when it has its token.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def earliest_finish(event: LiveEvent) -> float:
    """Return the earliest second after the doors at which the last viewer can have a token.

    Whoever comes needs a permit, and so does everybody behind. From the start of prewarming on, a
    region has its rate of them, and beforehand what its bucket holds: a second's worth, unless it
    is known. Only arithmetic: no service is that good.
    """
    times = event.arrivals.times(event.attendees)
    regions = [RoomArn.parse(room).region for room in event.arns()]
    earliest = 0.0
    for region in set(regions):
        own = [at for each, at in enumerate(times) if regions[each % len(regions)] == region]
        ahead = math.ceil(event.quota.rate * event.prewarm)
        ahead += event.quota.burst or math.ceil(event.quota.rate)
        for each, at in enumerate(own):
            to_come = max(0, len(own) - max(each, ahead))
            earliest = max(earliest, at + to_come / event.quota.rate)
    return earliest


def afterwards(event: LiveEvent, course: Course) -> Afterwards:
    """Tell what the crowd asks for once it is in, by arithmetic.

    Args:
        event: the event.
        course: how its doors fared.
    """
    by_session = event.renewal is Renewal.SESSION
    after = event.renewal.due(event.session_minutes * 60.0 if by_session else TOKEN_LIFE_SECONDS)
    lost = event.reconnects / 3_600
    # The limit for a rate of 0 is 1 / R.
    renewed = lost / math.expm1(lost * after) if lost else 1 / after
    viewers, quota = course.admitted, event.quota.rate * event.regions
    mean = viewers * (lost + renewed)
    wave = max(course.timeline.tokens) * math.exp(-lost * after) + viewers * lost
    return Afterwards(
        reconnects=viewers * lost,
        renewals=viewers * renewed,
        peak=max(mean, wave),
        quota=quota,
        renewed_after=after,
        carried=int(quota / (lost + renewed)),
    )


def _changes(event: LiveEvent) -> Iterator[tuple[str, LiveEvent]]:
    if event.regions < len(REGIONS):
        regions = event.regions + 1
        rooms = math.ceil(event.rooms / regions) * regions  # an equal share for each
        yield "one more region", replace(event, regions=regions, rooms=rooms)
    if event.prewarm < _EARLIER:
        yield f"prewarming {_EARLIER:g} s ahead", replace(event, prewarm=_EARLIER)
    if event.renewal is Renewal.TOKEN:
        yield "renewing by session", replace(event, renewal=Renewal.SESSION)


def _gain(change: str, event: LiveEvent) -> Gain:
    quota = event.quota
    most = min(event.attendees // _THIN_ATTENDEES, int(quota.rate // _THIN_RATE))
    # Of a quota, the limiter does not use a fraction of a permit.
    thinness = max((each for each in range(1, most + 1) if quota.rate % each == 0), default=1)
    thin = replace(
        event,
        attendees=math.ceil(event.attendees / thinness),
        quota=replace(
            quota,
            rate=quota.rate / thinness,
            burst=quota.burst and max(1, quota.burst // thinness),
            max_waiting=quota.max_waiting // thinness,
        ),
    )
    course = simulate(thin)
    late = min(event.attendees, course.late * thinness)
    return Gain(change, event, course.waits, course.finished, late)


def plan_as_json(made: Plan) -> dict[str, Any]:
    """Return a plan as JSON can hold it, in the shape that docs/guide.md describes."""
    return {
        "version": 1,
        "event": event_as_json(made.event),
        "earliest_finish": made.earliest,
        "plan": course_as_json(made.course),
        "afterwards": {**asdict(made.afterwards), "fits": made.afterwards.fits},
        "gains": [
            {
                "change": gain.change,
                "waits": gain.waits and asdict(gain.waits),
                "finished": gain.finished,
                "late": gain.late,
            }
            for gain in made.gains
        ],
    }


def rehearsal_as_json(
    event: LiveEvent, planned: Course, measured: Course, *, interrupted: bool
) -> dict[str, Any]:
    """Return a rehearsal as JSON can hold it, in the shape that docs/guide.md describes."""
    return {
        "version": 1,
        "event": event_as_json(event),
        "plan": course_as_json(planned),
        "measured": course_as_json(measured),
        "interrupted": interrupted,
    }


def event_as_json(event: LiveEvent) -> dict[str, Any]:
    """Return an event as JSON can hold it."""
    members = asdict(event)
    quota: Mapping[str, Any] = members.pop("quota")
    return {**members, "rate": quota["rate"], "burst": quota["burst"]}


def course_as_json(course: Course) -> dict[str, Any]:
    """Return a course as JSON can hold it."""
    return asdict(course)
