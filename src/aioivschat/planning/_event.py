"""The live event: its crowd, its quota, its regions and how its clients renew."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aioivschat._models import SESSION_MAX_MINUTES, TOKEN_LIFE_SECONDS, RoomArn
from aioivschat._service.cache import CachePolicy
from aioivschat._service.pace import Quota
from aioivschat.errors import require, require_number
from aioivschat.planning._arrivals import MAX_ATTENDEES, Arrivals

REGIONS = (
    "us-east-1",
    "us-west-2",
    "ap-south-1",
    "ap-northeast-1",
    "ap-northeast-2",
    "eu-central-1",
    "eu-west-1",
)
"""Where there is IVS Chat (IVS Chat endpoints and quotas)."""

MAX_PREWARM_SECONDS = TOKEN_LIFE_SECONDS - CachePolicy().min_remaining
"""The greatest age at which a token is handed out: nothing is minted earlier before its use."""


class Renewal(StrEnum):
    """When a client opens its next connection, by the ``tokenExpirationTime`` it was given.

    The chat SDK does so, with a new token, 30 s before that time if at most 60 s are left,
    otherwise 60 s before (amazon-ivs-chat-messaging 1.1.1, read and measured).
    """

    SESSION = "session"  # the session's end: one token for each session
    TOKEN = "token"  # noqa: S105 (AWS's own value, a minute ahead: one about every 30 s)

    def due(self, left: float) -> float:
        """Return seconds until a client renews whose expiration is ``left`` seconds away."""
        return max(0.0, left - (30.0 if left <= TOKEN_LIFE_SECONDS else 60.0))


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """A live event: its crowd, its quota and how its clients behave.

    Args:
        attendees: how many come, 1 to 10 million.
        arrivals: when they come.
        quota: what AWS allows an account in each region.
        prewarm: seconds before the doors in which tokens may be minted ahead: 0 to 55, as a token
            lives for 60 s and is handed out with 5 s left. Minting begins as late as possible.
        rooms: number of rooms; attendees are spread over them in turn. At least one for each
            region.
        regions: number of regions, 1 to 7; rooms are spread over them in turn.
        session_minutes: how long a session lasts, 1 to 180 minutes.
        reconnects: how often an hour a viewer loses the connection and asks for a new token, 0 to
            3,600.
        renewal: what clients renew by.
        patience: seconds, above 0; viewers who wait longer are counted, and keep waiting.
        latency: seconds from a request to its token, 0 to 5.

    Raises:
        InvalidConfiguration: an argument is out of its range.
    """

    attendees: int
    arrivals: Arrivals = Arrivals()  # noqa: RUF009 (frozen)
    quota: Quota = Quota()  # noqa: RUF009 (frozen)
    prewarm: float = 0.0
    rooms: int = 1
    regions: int = 1
    session_minutes: int = 60
    reconnects: float = 1.0
    renewal: Renewal = Renewal.SESSION
    patience: float = 10.0
    latency: float = 0.02

    def __post_init__(self) -> None:
        def check(option: str, **limits: Any) -> None:
            require_number(option, getattr(self, option), **limits)

        check("attendees", least=1, most=MAX_ATTENDEES, whole=True)
        check("prewarm", least=0, most=MAX_PREWARM_SECONDS, unit=" s")
        check("regions", least=1, most=len(REGIONS), whole=True)
        check("rooms", least=1, most=1_000, whole=True)
        require(self.rooms >= self.regions, "rooms", "one for each region, at least", self.rooms)
        check("session_minutes", least=1, most=SESSION_MAX_MINUTES, whole=True)
        check("reconnects", least=0, most=3_600, unit=" an hour")
        check("patience", above=0, unit=" s")
        check("latency", least=0, most=5, unit=" s")

    def arns(self) -> tuple[str, ...]:
        """Return made-up ARNs for the event's rooms."""
        return tuple(
            str(RoomArn(REGIONS[room % self.regions], "123456789012", f"Room{room + 1}"))
            for room in range(self.rooms)
        )
