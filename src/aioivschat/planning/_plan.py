"""A plan: the crowd's run in virtual time, and arithmetic for what it asks for afterwards."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from aioivschat._aws.clients import PoolPolicy
from aioivschat._clock import Clock
from aioivschat._models import TOKEN_LIFE_SECONDS
from aioivschat._service.cache import CachePolicy
from aioivschat._service.service import AsyncTokenService
from aioivschat.planning._crowd import CrowdRun
from aioivschat.planning._event import MAX_PREWARM_SECONDS, REGIONS, LiveEvent, Renewal
from aioivschat.planning._outcomes import CrowdOutcome, Waits
from aioivschat.planning._virtual_time import LoopClock, VirtualLoop, minting_session

MAX_CONNECTIONS = 50_000
"""Chat connections at once for an account and region (IVS Chat service quotas; adjustable)."""

_SUGGESTED_PREWARM_SECONDS = MAX_PREWARM_SECONDS - 5.0
"""The prewarming that a plan suggests: the first tokens outlive doors that open up to 5 s late."""

_TRIAL_ATTENDEES = 2_500
_TRIAL_RATE = 10.0
"""A change is tried on a crowd and a quota divided by the same number, down to these: waits stay
the same to within the time between two permits, and the trial takes a fraction of the time."""


@dataclass(frozen=True, slots=True)
class Afterwards:
    """What the crowd asks for once it is in.

    Args:
        reconnects: tokens a second for lost connections.
        renewals: tokens a second for renewals, on average. A reconnect postpones the viewer's
            renewal: with random reconnects at ``r`` a second and a renewal after ``R`` s, each
            viewer asks for ``r / (exp(r R) - 1)``.
        peak: the most tokens a second, reconnects included. Those who came together renew together
            after ``renewed_after``, less those who reconnected meanwhile.
        quota: tokens a second that all regions allow.
        renewed_after: seconds from a token to its viewer's renewal.
        carried: viewers whose reconnects and renewals the quota allows for good.
    """

    reconnects: float
    renewals: float
    peak: float
    quota: float
    renewed_after: float
    carried: int

    @property
    def fits(self) -> bool:
        """Whether the quota allows everybody's reconnects and renewals, on average."""
        return self.reconnects + self.renewals <= self.quota


@dataclass(frozen=True, slots=True)
class Gain:
    """What one change of the event would bring.

    Args:
        change: the change, in words.
        event: the event with the change.
        waits: how long viewers would wait; ``None`` if nobody got in.
        finished: seconds from the doors to the last token.
        late: about how many viewers would wait longer than the event's patience.
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
        outcome: how its crowd gets in.
        earliest: seconds from the doors to the last token if every permit of the quota were used
            from the start of prewarming on. Nothing is faster.
        afterwards: what the crowd asks for once it is in.
        gains: what changes would bring.
    """

    event: LiveEvent
    outcome: CrowdOutcome
    earliest: float
    afterwards: Afterwards
    gains: tuple[Gain, ...]


def plan(event: LiveEvent) -> Plan:
    """Plan an event.

    It runs an event loop of its own: in a coroutine, use :func:`asyncio.to_thread`. Meanwhile
    Python's cyclic garbage collector is off in the whole process. Each attendee who waits at the
    same time takes about 5 KB. The plan is the same each time for the same event.

    Nothing is throttled in a plan: without ``Quota(burst=…)`` the service learns that a second's
    quota goes at once. Of a smaller bucket, a crowd waits for up to a second longer.
    """
    outcome = simulate(event)
    return Plan(
        event=event,
        outcome=outcome,
        earliest=earliest_finish(event),
        afterwards=afterwards(event, outcome),
        gains=tuple(_try_change(change, changed) for change, changed in _suggest_changes(event)),
    )


def simulate(
    event: LiveEvent, rooms: Sequence[str] = (), *, until: float = math.inf
) -> CrowdOutcome:
    """Run the crowd of an event in virtual time; the notes on :func:`plan` hold here, too.

    Args:
        event: the event.
        rooms: ARNs of its rooms; made-up ones by default.
        until: seconds after the doors at which the run is stopped, to compare with a rehearsal
            that was interrupted then.

    Returns:
        How its crowd gets in.
    """
    loop = VirtualLoop()
    # The cyclic collector would double the time by examining all waiting calls again and again,
    # and find nothing: reference counts free a call's objects when it ends.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(_run_crowd(event, rooms or event.arns(), LoopClock(loop), until))
    finally:
        if collecting:
            gc.enable()


async def _run_crowd(
    event: LiveEvent, rooms: Sequence[str], clock: Clock, until: float
) -> CrowdOutcome:
    async with AsyncTokenService(
        session=minting_session(clock, event.latency),
        endpoint_url="http://127.0.0.1",
        quota=event.quota,
        cache=stock_for(event),
        pool=PoolPolicy(prepared=False),  # nothing is sent: a signature would be wasted
        clock=clock,
    ) as service:
        crowd = CrowdRun(event, service, rooms, clock)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until + event.prewarm)):
                await crowd.run()
        return crowd.outcome()


def stock_for(event: LiveEvent) -> CachePolicy:
    """Return a policy whose stock can hold all that can be prewarmed."""
    return CachePolicy(max_stock=math.ceil(event.quota.rate * TOKEN_LIFE_SECONDS) * event.regions)


def earliest_finish(event: LiveEvent) -> float:
    """Return the earliest second after the doors at which the last viewer can have a token.

    Each viewer needs a permit. From the start of prewarming on, a region gives them at its rate,
    and at once as many as its bucket holds: a second's worth, unless the burst is known. This is a
    bound by arithmetic, which no service reaches.
    """
    times = event.arrivals.times(event.attendees)
    ahead = math.ceil(event.quota.rate * event.prewarm)
    ahead += event.quota.burst or math.ceil(event.quota.rate)
    earliest = 0.0
    for region in range(event.regions):
        own = [at for each, at in enumerate(times) if each % event.rooms % event.regions == region]
        for each, at in enumerate(own):
            to_come = max(0, len(own) - max(each, ahead))
            earliest = max(earliest, at + to_come / event.quota.rate)
    return earliest


def afterwards(event: LiveEvent, outcome: CrowdOutcome) -> Afterwards:
    """Compute what the crowd asks for once it is in, given how it got in."""
    by_session = event.renewal is Renewal.SESSION
    after = event.renewal.due(event.session_minutes * 60.0 if by_session else TOKEN_LIFE_SECONDS)
    lost = event.reconnects / 3_600  # by each viewer, a second
    # The limit for a rate of 0 is 1 / R.
    renewed = lost / math.expm1(lost * after) if lost else 1 / after
    viewers, quota = outcome.admitted, event.quota.rate * event.regions
    mean = viewers * (lost + renewed)
    wave = max(outcome.timeline.tokens) * math.exp(-lost * after) + viewers * lost
    return Afterwards(
        reconnects=viewers * lost,
        renewals=viewers * renewed,
        peak=max(mean, wave),
        quota=quota,
        renewed_after=after,
        carried=int(quota / (lost + renewed)),
    )


def _suggest_changes(event: LiveEvent) -> Iterator[tuple[str, LiveEvent]]:
    if event.regions < len(REGIONS):
        regions = event.regions + 1
        rooms = math.ceil(event.rooms / regions) * regions  # an equal share for each
        yield "one more region", replace(event, regions=regions, rooms=rooms)
    if event.prewarm < _SUGGESTED_PREWARM_SECONDS:
        earlier = replace(event, prewarm=_SUGGESTED_PREWARM_SECONDS)
        yield f"prewarming {_SUGGESTED_PREWARM_SECONDS:g} s ahead", earlier
    if event.renewal is Renewal.TOKEN:
        yield "renewing by session", replace(event, renewal=Renewal.SESSION)


def _try_change(change: str, event: LiveEvent) -> Gain:
    quota = event.quota
    most = min(event.attendees // _TRIAL_ATTENDEES, int(quota.rate // _TRIAL_RATE))
    # The divided rate must be whole: the limiter does not use a fraction of a permit.
    divisor = max((each for each in range(1, most + 1) if quota.rate % each == 0), default=1)
    trial = replace(
        event,
        attendees=math.ceil(event.attendees / divisor),
        quota=replace(
            quota,
            rate=quota.rate / divisor,
            burst=quota.burst and max(1, quota.burst // divisor),
            learnt=quota.learnt and max(1, quota.learnt // divisor),
            max_waiting=quota.max_waiting // divisor,
        ),
    )
    outcome = simulate(trial)
    late = min(event.attendees, outcome.late * divisor)
    return Gain(change, event, outcome.waits, outcome.finished, late)


def plan_as_json(made: Plan) -> dict[str, Any]:
    """Return a plan in the JSON shape that docs/guide.md describes."""
    return {
        "version": 1,
        "event": _event_as_json(made.event),
        "earliest_finish": made.earliest,
        "plan": asdict(made.outcome),
        "afterwards": {**asdict(made.afterwards), "fits": made.afterwards.fits},
        "gains": [
            {name: value for name, value in asdict(gain).items() if name != "event"}
            for gain in made.gains
        ],
    }


def rehearsal_as_json(
    event: LiveEvent, planned: CrowdOutcome, measured: CrowdOutcome, *, interrupted: bool
) -> dict[str, Any]:
    """Return a rehearsal in the JSON shape that docs/guide.md describes."""
    return {
        "version": 1,
        "event": _event_as_json(event),
        "plan": asdict(planned),
        "measured": asdict(measured),
        "interrupted": interrupted,
    }


def _event_as_json(event: LiveEvent) -> dict[str, Any]:
    members = asdict(event)
    del members["quota"]
    quota = event.quota
    return {**members, "rate": quota.rate, "burst": quota.burst, "learnt": quota.learnt}
