"""The limiter of each account and region, made when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aioivschat._events import Observers, RateChanged
from aioivschat._models import RoomArn
from aioivschat._service.fleet import SharedTier
from aioivschat._service.limiter import Limiter, Quota


@dataclass(eq=False)
class Limiters:
    """The limiters of a service, which its tier makes."""

    quota: Quota | Mapping[tuple[str, str], Quota]
    tier: SharedTier
    observers: Observers
    max_connections: int
    _limiters: dict[tuple[str, str], Limiter] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """How many reservations wait, at all of them."""
        return sum(limiter.waiting for limiter in self._limiters.values())

    def get_or_make(self, arn: RoomArn) -> Limiter:
        """Return the limiter of a room's account and region."""
        account, region = arn.account, arn.region
        limiter = self._limiters.get((account, region))
        if limiter is None:
            quota = self.quota
            if not isinstance(quota, Quota):
                quota = quota.get((account, region)) or Quota()

            def tell(rate: float) -> None:
                self.observers.tell(RateChanged(account, region, rate))

            limiter = self.tier.limiter(account, region, quota, tell, self.max_connections)
            self._limiters[account, region] = limiter
        return limiter
