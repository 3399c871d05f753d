"""Time, injected wherever it is read."""

from __future__ import annotations

import asyncio
import time


class Clock:
    """The clocks of this host.

    A subclass may bend time; everything in the library that reads a clock or sleeps does it
    through one of these.
    """

    def wall(self) -> float:
        """Return seconds since the epoch; may be stepped by an administrator or NTP."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never go back; may stand still while the host is suspended."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds."""
        await asyncio.sleep(seconds)
