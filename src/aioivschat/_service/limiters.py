"""The limiter of each account and region, made when it is first needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aioivschat._clock import Clock
from aioivschat._events import Observers, RateChanged
from aioivschat._models import RoomArn
from aioivschat._service.fair_queue import Connections
from aioivschat._service.fleet import SharedTier
from aioivschat._service.limiter import Limiter
from aioivschat._service.pace import Learnt, Quota
from aioivschat.errors import require

_QUOTA_LIMIT = "a Quota, or a mapping such as {('123456789012', 'us-east-1'): Quota()}"
_ACCOUNT_FORM = re.compile(r"[0-9]{12}")
_REGION_FORM = re.compile(r"[a-z]+(-[a-z]+)+-[0-9]+")


@dataclass(eq=False)
class Limiters:
    """The limiters of a service, which its tier makes.

    Raises:
        InvalidConfiguration: the quota is of another form.
    """

    quota: Quota | Mapping[tuple[str, str], Quota]
    tier: SharedTier
    observers: Observers
    clock: Clock
    max_connections: int
    _connections: dict[str, Connections] = field(default_factory=dict)
    _limiters: dict[tuple[str, str], Limiter] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """How many reservations wait, at all of them."""
        # A copy: another thread may ask while the loop makes another limiter.
        return sum(limiter.waiting for limiter in tuple(self._limiters.values()))

    @property
    def learnt(self) -> tuple[Learnt, ...]:
        """What was learnt of each quota that was used, in the order of their first use."""
        return tuple(
            Learnt(account, region, limiter.rate, limiter.burst, limiter.shape)
            for (account, region), limiter in tuple(self._limiters.items())
        )

    def __post_init__(self) -> None:
        if isinstance(self.quota, Quota):
            return
        require(isinstance(self.quota, Mapping), "quota", _QUOTA_LIMIT, type(self.quota).__name__)
        entries: Iterable[tuple[Any, Any]] = self.quota.items()
        for key, quota in entries:
            match key, quota:
                case (str(account), str(region)), Quota():
                    fits = _ACCOUNT_FORM.fullmatch(account) and _REGION_FORM.fullmatch(region)
                case _:
                    fits = None
            require(fits is not None, "quota", _QUOTA_LIMIT, f"{key!r}: {type(quota).__name__}")
        self.quota = dict(self.quota)

    def get_or_make(self, arn: RoomArn) -> Limiter:
        """Return the limiter of a room's account and region."""
        account, region = arn.account, arn.region
        limiter = self._limiters.get((account, region))
        if limiter is None:
            quota = self.quota
            if not isinstance(quota, Quota):
                quota = quota.get((account, region)) or Quota()

            def tell(rate: float, burst: int) -> None:
                self.observers.tell(RateChanged(account, region, rate, burst))

            connections = self._connections.get(region)
            if connections is None:
                connections = Connections(self.clock, self.max_connections)
                self._connections[region] = connections
            limiter = self.tier.limiter(account, region, quota, tell, connections)
            self._limiters[account, region] = limiter
        return limiter
