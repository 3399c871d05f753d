"""The limiter of each account and region, made when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping

from aioivschat._events import Observers, RateChanged
from aioivschat._models import RoomArn
from aioivschat._service.fleet import SharedTier
from aioivschat._service.limiter import Limiter, Quota


class Limiters:
    """The limiters of a service, by account and region.

    Args:
        quota: what AWS allows; or a mapping from (account, region), where `Quota` with its
            defaults holds for the rest.
        tier: makes them.
        observers: told when a rate changes.
    """

    def __init__(
        self,
        quota: Quota | Mapping[tuple[str, str], Quota],
        tier: SharedTier,
        observers: Observers,
    ) -> None:
        self._quota = quota
        self._tier = tier
        self._observers = observers
        self._limiters: dict[tuple[str, str], Limiter] = {}

    @property
    def waiting(self) -> int:
        """How many reservations wait, at all of them."""
        return sum(limiter.waiting for limiter in self._limiters.values())

    def get_or_make(self, arn: RoomArn) -> Limiter:
        """Return the limiter of a room's account and region."""
        account, region = arn.account, arn.region
        limiter = self._limiters.get((account, region))
        if limiter is None:
            quota = self._quota
            if not isinstance(quota, Quota):
                quota = quota.get((account, region)) or Quota()

            def tell(rate: float) -> None:
                self._observers.tell(RateChanged(account, region, rate))

            limiter = self._tier.limiter(account, region, quota, tell)
            self._limiters[account, region] = limiter
        return limiter
