"""Whether an event fits, known beforehand.

::

    event = LiveEvent(50_000, Arrivals("ramp", 120), prewarm=50)
    print(plan(event).course.waits)

The plan lets the event's crowd in through :class:`~aioivschat.AsyncTokenService` itself, in virtual
time and with an upstream in this process that mints after the event's latency: whatever the service
does about pace, order, stock and priorities, the plan does too. What the crowd keeps up afterwards
is arithmetic.
"""

from aioivschat.planning._crowd import (
    REGIONS,
    Arrivals,
    Course,
    Doors,
    LiveEvent,
    Moment,
    Renewal,
    Timeline,
    Waits,
)
from aioivschat.planning._plan import (
    CONNECTIONS,
    Afterwards,
    Gain,
    Plan,
    afterwards,
    course_as_json,
    earliest_finish,
    event_as_json,
    plan,
    plan_as_json,
    rehearsal_as_json,
    simulate,
    stock_for,
)

__all__ = [
    "CONNECTIONS",
    "REGIONS",
    "Afterwards",
    "Arrivals",
    "Course",
    "Doors",
    "Gain",
    "LiveEvent",
    "Moment",
    "Plan",
    "Renewal",
    "Timeline",
    "Waits",
    "afterwards",
    "course_as_json",
    "earliest_finish",
    "event_as_json",
    "plan",
    "plan_as_json",
    "rehearsal_as_json",
    "simulate",
    "stock_for",
]
