"""One call for a token, and whether it can be served in time: if not, it is refused at once."""

from __future__ import annotations

from dataclasses import dataclass

from aioivschat._clock import Clock
from aioivschat._events import Observers, Shed
from aioivschat._models import Identity, Priority, RoomArn, SharingKey, TokenRequest
from aioivschat._secrets import Secret
from aioivschat._service.limiter import Limiter
from aioivschat._service.stats import Counters
from aioivschat.errors import Overloaded

NEVER = float("inf")
"""The deadline of a call without one."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Call(Secret):
    """One call for a token.

    Args:
        request: what is asked for.
        room: the parts of its room's ARN.
        key: what calls agree on when they share a token; ``None``: it is for this call alone.
        priority: who goes first.
        deadline: until when the token must be there, by the monotonic clock.
    """

    request: TokenRequest
    room: RoomArn
    key: SharingKey | None
    priority: Priority
    deadline: float

    @property
    def identity(self) -> Identity:
        """What is asked for, as AWS sees it."""
        return self.request.identity


@dataclass(frozen=True, slots=True)
class Admission:
    """Refuses calls that would wait for too long, or behind too many."""

    clock: Clock
    counters: Counters
    observers: Observers

    def check_queue(self, call: Call, limiter: Limiter) -> None:
        """Check a call that needs a permit of its own.

        Raises:
            Overloaded: too many wait, or its turn would come after its deadline.
        """
        room = call.request.room
        if limiter.full:
            wait = limiter.predicted_wait(call.priority, room)
            self._refuse_call(call, "too many calls are waiting", wait)
        if call.deadline < NEVER:
            wait = limiter.predicted_wait(call.priority, room)
            self.check_turn(call, self.clock.monotonic() + wait)

    def check_turn(self, call: Call, expected: float) -> None:
        """Check a call whose turn is expected at some time.

        Raises:
            Overloaded: that is after its deadline.
        """
        if expected > call.deadline:
            late = expected - call.deadline
            self._refuse_call(call, "the wait would be longer than the timeout", late)

    def _refuse_call(self, call: Call, reason: str, retry_after: float) -> None:
        self.counters.shed += 1
        if self.observers:
            self.observers.tell(Shed(call.request.room, retry_after))
        raise Overloaded(reason, retry_after)
