"""Has a region ready to be asked, its client open and its credentials at hand, by one for all.

A call waits for that before it queues for a permit: what keeps it from being sent is no answer of
IVS Chat, and spends nothing of the quota.
"""

from __future__ import annotations

from copy import copy
from functools import partial
from typing import NamedTuple

from aioivschat._aws.clients import ClientPool
from aioivschat._clock import Clock
from aioivschat._service.lifecycle import Lifecycle
from aioivschat._service.retry import Retrier
from aioivschat._service.singleflight import Flight, FlightStopped, SingleFlight
from aioivschat.errors import CredentialsFailed


class _SignIn(Flight[None]):
    """One sign-in to a region, for as long as its most patient caller waits.

    Attributes:
        deadline: until when that is, by the monotonic clock.
        failure: of its last try, or of the sign-in before it.
    """

    __slots__ = ("deadline", "failure")

    def __init__(self, region: str, deadline: float, failure: CredentialsFailed | None) -> None:
        super().__init__(region)
        self.deadline = deadline
        self.failure = failure


class _Failure(NamedTuple):
    """How the last sign-in to a region failed.

    Args:
        error: of its last try.
        number: of sign-ins in a row that have failed.
        ended: when it did, by the monotonic clock.
        deadline: until when its callers would have waited; for later ones it tells nothing.
    """

    error: CredentialsFailed
    number: int
    ended: float
    deadline: float


class SignIns:
    """The sign-ins to all regions, one at a time for each.

    A failure is of all who wait for the same region. Those who come later wait for the next try,
    which comes after a pause that is the longer the more have failed.
    """

    def __init__(
        self, pool: ClientPool, retrier: Retrier, lifecycle: Lifecycle, clock: Clock
    ) -> None:
        self._pool = pool
        self._retrier = retrier
        self._lifecycle = lifecycle
        self._clock = clock
        self._flights = SingleFlight[None, _SignIn](self._run, lambda *_: None)
        self._failures: dict[str, _Failure] = {}
        self.is_ready = pool.is_ready

    async def wait(self, region: str, started: float, deadline: float) -> None:
        """Wait until a region is ready.

        Args:
            region: that is to be asked.
            started: when the caller began to wait, for whatever, by the monotonic clock.
            deadline: until when the caller waits.

        Raises:
            CredentialsFailed: there are no credentials.
            InvalidConfiguration: the endpoint cannot be used.
            InvalidRequest: there is no such region.
            ServiceClosed: the service closes meanwhile.
            Interrupted: somebody outside cancelled the work.
        """
        last = self._failures.get(region)
        if last is not None:
            is_shared = started <= last.ended and deadline <= last.deadline
            if is_shared or deadline <= self._next_try(last):
                raise copy(last.error)
        sign_in = self._flights.find(region)
        if sign_in is None:
            sign_in = _SignIn(region, deadline, None if last is None else last.error)
            sign_in.commit()  # whoever leaves, it serves those who come next
            self._flights.share(sign_in, region)
        sign_in.deadline = max(sign_in.deadline, deadline)
        try:
            await self._flights.join(sign_in, lambda _: None)
        except FlightStopped:
            raise self._lifecycle.explain_cancellation("signing in") from None

    def find_failure(self, region: str) -> CredentialsFailed | None:
        """Return why those who wait for a region still do, if a try has failed."""
        sign_in = self._flights.find(region)
        return None if sign_in is None else copy(sign_in.failure)

    async def aclose(self) -> None:
        """End all, as the service is closing."""
        for sign_in in self._flights:
            sign_in.stop()
        for sign_in in self._flights:
            await sign_in.ended()

    async def _run(self, sign_in: _SignIn) -> None:
        region = str(sign_in.key)
        last = self._failures.get(region)
        if last is not None:
            await self._clock.sleep(max(0.0, self._next_try(last) - self._clock.monotonic()))

        async def try_once(_: int) -> None:
            try:
                await self._pool.make_ready(region)
            except CredentialsFailed as error:
                sign_in.failure = copy(error)  # the error itself would keep its traceback
                raise

        try:
            await self._retrier.run(
                try_once,
                retried=(CredentialsFailed,),
                worthwhile=partial(self._is_wanted, sign_in),
            )
        except CredentialsFailed as error:
            number = last.number + 1 if last is not None else 1
            deadline = sign_in.deadline if error.may_pass else float("inf")
            self._failures[region] = _Failure(
                copy(error), number, self._clock.monotonic(), deadline
            )
            raise
        self._failures.pop(region, None)

    def _next_try(self, last: _Failure) -> float:
        return last.ended + self._retrier.longest_delay(last.number)

    def _is_wanted(self, sign_in: _SignIn, delay: float) -> bool:
        """Tell whether anybody would still wait for a try in so many seconds."""
        in_time = self._clock.monotonic() + delay < sign_in.deadline
        return in_time and sign_in.callers > 0 and self._lifecycle.is_open
