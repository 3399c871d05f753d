"""Whether an event fits, known beforehand.

::

    event = LiveEvent(50_000, Arrivals("ramp", 120), prewarm=50)
    print(plan(event).outcome.waits)

The plan runs the event's crowd through :class:`~aioivschat.AsyncTokenService` itself, in virtual
time, with clients that mint in this process after the event's latency. So the plan paces, queues,
stocks and prioritizes exactly as the service does. What the crowd asks for afterwards is
arithmetic.
"""

from aioivschat.planning._arrivals import Arrivals
from aioivschat.planning._event import REGIONS, LiveEvent, Renewal
from aioivschat.planning._outcomes import CrowdOutcome, Timeline, Waits
from aioivschat.planning._plan import (
    Afterwards,
    Gain,
    Plan,
    afterwards,
    earliest_finish,
    plan,
    plan_as_json,
    simulate,
)

__all__ = [
    "REGIONS",
    "Afterwards",
    "Arrivals",
    "CrowdOutcome",
    "Gain",
    "LiveEvent",
    "Plan",
    "Renewal",
    "Timeline",
    "Waits",
    "afterwards",
    "earliest_finish",
    "plan",
    "plan_as_json",
    "simulate",
]
