"""Events and their observers.

An event is a frozen dataclass. None carries a token, a user id or an attribute, so that an observer
cannot leak one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

_log = logging.getLogger("aioivschat")


class Source(StrEnum):
    """Where a token came from."""

    CACHE = "cache"  # delivered before, to the same attempt or to an equal call without a key
    STOCK = "stock"  # minted before and delivered to nobody
    FLIGHT = "flight"  # minted while the caller waited
    SHARED = "shared"  # minted by another process of the fleet, or for its stock


class SharedState(StrEnum):
    """What the processes of a fleet share at the moment."""

    SHARED = "shared"  # the quota and the tokens
    POLLING = "polling"  # both; invalidations are asked for, as no message of the fleet is heard
    QUOTA_ONLY = "quota only"  # for want of a sealing key
    LOCAL = "local"  # nothing: the engine is away, and each process uses its part of the quota


@dataclass(frozen=True, slots=True)
class Delivered:
    """A token was delivered to a caller.

    Args:
        room: the room's ARN.
        source: where the token came from.
        waited: seconds from the call to the token.
    """

    room: str
    source: Source
    waited: float


@dataclass(frozen=True, slots=True)
class Joined:
    """A caller joined a flight that was under way.

    Args:
        room: the room's ARN.
    """

    room: str


@dataclass(frozen=True, slots=True)
class Minted:
    """AWS made a token.

    Args:
        room: the room's ARN.
        attempts: requests sent for it.
        seconds: duration of the last request.
    """

    room: str
    attempts: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """One request failed.

    Args:
        room: the room's ARN.
        attempt: the request's number, from 1.
        error: name of the error's class.
        status: the HTTP status, 0 without an answer.
        seconds: duration of the request.
    """

    room: str
    attempt: int
    error: str
    status: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Retrying:
    """A failed request will be sent again.

    Args:
        room: the room's ARN.
        attempt: number of the request that failed, from 1.
        delay: seconds until the next request asks for a permit.
    """

    room: str
    attempt: int
    delay: float


@dataclass(frozen=True, slots=True)
class Shed:
    """A call was refused at once, as it could not be served in time.

    Args:
        room: the room's ARN.
        retry_after: seconds after which a new call has a chance.
    """

    room: str
    retry_after: float


@dataclass(frozen=True, slots=True)
class Stocked:
    """A token that nobody was handed went into the stock.

    Args:
        room: the room's ARN.
    """

    room: str


@dataclass(frozen=True, slots=True)
class ExpiredUnused:
    """Stocked tokens were dropped unused: too old, or replaced by younger ones in a full stock.

    Told once a second at most.

    Args:
        count: tokens dropped since the last such event.
    """

    count: int


@dataclass(frozen=True, slots=True)
class RateChanged:
    """The pace of an account and region was adapted to what AWS's answers teach.

    It is told when rate or burst have changed by a twentieth of the quota, or the rate is whole.

    Args:
        account: the AWS account's id.
        region: the AWS region.
        rate: requests a second from now on.
        burst: requests that are known to be served at once; for ``Quota(learnt=…)``.
    """

    account: str
    region: str
    rate: float
    burst: int


@dataclass(frozen=True, slots=True)
class Invalidated:
    """The tokens of a room, of a user, or of a user in a room were invalidated.

    Args:
        room: the room's ARN, or ``None`` for every room.
        one_user: whether only one user's tokens were.
    """

    room: str | None
    one_user: bool


@dataclass(frozen=True, slots=True)
class ClientOpened:
    """A client was opened for a region.

    Args:
        region: the AWS region.
        seconds: how long opening took.
    """

    region: str
    seconds: float


@dataclass(frozen=True, slots=True)
class NotPrepared:
    """From now on the requests of a region go the general way: aiobotocore builds each one anew.

    That takes several times the processor time of prepared requests and changes nothing else.

    Args:
        region: the AWS region.
        reason: why they cannot be prepared: the function or the event that somebody watches, say.
    """

    region: str
    reason: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The reason that :class:`NotPrepared` told is over, so requests are prepared again.

    Args:
        region: the AWS region.
    """

    region: str


@dataclass(frozen=True, slots=True)
class SharedChanged:
    """What the fleet shares changed, as this process sees it.

    Args:
        state: what is shared from now on.
        reason: why, in fixed words or by the name of an error's class.
    """

    state: SharedState
    reason: str


Event = (
    Delivered
    | Joined
    | Minted
    | AttemptFailed
    | Retrying
    | Shed
    | Stocked
    | ExpiredUnused
    | RateChanged
    | Invalidated
    | ClientOpened
    | NotPrepared
    | Prepared
    | SharedChanged
)


class Observer(Protocol):
    """Called with every event, on the event loop: it must be quick."""

    def __call__(self, event: Event, /) -> None:
        """Take note of an event."""


class Observers(tuple[Observer, ...]):
    """All observers, in their order; false if there are none, so that events need not be made."""

    __slots__ = ()

    def tell(self, event: Event) -> None:
        """Call every observer. A failure is logged and harms neither the others nor the caller.

        `CancelledError` is such a failure too: it cancels nobody here. An interrupt is none.
        """
        for observer in self:
            try:
                observer(event)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                # Its class only: message and traceback may hold anything.
                _log.error("an observer failed with %s", type(error).__name__)


class LoggingObserver:
    """Writes events to a logger, as warnings or for debugging.

    Warnings are failures, sheds, and changes of the pace and of what a fleet shares.

    Args:
        logger: the logger ``aioivschat`` by default.
    """

    def __init__(self, logger: logging.Logger = _log) -> None:
        self._logger = logger

    def __call__(self, event: Event, /) -> None:
        """Log the event; its repr holds nothing secret."""
        noteworthy = isinstance(event, AttemptFailed | Shed | RateChanged | SharedChanged)
        self._logger.log(logging.WARNING if noteworthy else logging.DEBUG, "%r", event)
