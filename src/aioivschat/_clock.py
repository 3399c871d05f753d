"""Time, injected wherever it is read."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

TICK_SECONDS = time.get_clock_info("monotonic").resolution
"""How much too early the event loop may call a timer: to set another for the rest would spin."""


class Clock:
    """The clocks of this host.

    The library reads time and sleeps only through one of these, so that a subclass may bend it.
    """

    # Not wrapped in methods: they are called for every token that is handed out.

    wall = staticmethod(time.time)
    """Return seconds since the epoch; may be stepped by an administrator or NTP."""

    monotonic = staticmethod(time.monotonic)
    """Return seconds that never go back; may stand still while the host is suspended."""

    async def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds."""
        await asyncio.sleep(seconds)


def iso_utc(moment: datetime) -> str:
    """Return an aware moment in UTC as ISO 8601, with milliseconds and ``Z``."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return f"{moment.isoformat(timespec='milliseconds')[:-6]}Z"
