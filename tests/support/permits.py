"""Uses a limiter's permits as a request does."""

from __future__ import annotations

from aioivschat._service.limiter import Reservation


async def use_permit(reservation: Reservation) -> None:
    """Wait for a permit and spend it on a request that takes no time."""
    await reservation.granted()
    await reservation.spend()
    reservation.release()
