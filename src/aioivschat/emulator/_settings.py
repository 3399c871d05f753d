"""The emulator's settings, which can be changed while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from ._quota import QuotaShape

DateHeader = Literal["normal", "absent", "garbled"]
Refusal = Literal["http", "close", "error"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The emulator's settings.

    Args:
        quota: of CreateChatToken, for each account and region on its own.
        latency: seconds before every answer.
        jitter: seconds that are added to the latency at most, evenly distributed.
        any_room: every room exists that was not deleted, created or not.
        token_life: seconds for which a token can be redeemed (one minute at AWS).
        minute: seconds that a minute of session duration lasts, so that tests can be short.
        clock_skew: seconds by which the service's wall clock is ahead; may be below 0.
        date_header: the ``Date`` header is as it should be, or absent, or not a date.
        track_users: count the tokens minted for each user id.
        refusal: how the chat edge refuses a token that is unknown, spent or expired: ``http``
            answers the handshake with 403, ``close`` accepts it and closes with code 4401,
            ``error`` accepts it, sends an ERROR with code 401 and closes. Which of them AWS does is
            not published.

    Raises:
        ValueError: a value is not of its type or out of its range.
    """

    quota: QuotaShape = field(default_factory=QuotaShape)
    latency: float = 0.0
    jitter: float = 0.0
    any_room: bool = True
    token_life: float = 60.0
    minute: float = 60.0
    clock_skew: float = 0.0
    date_header: DateHeader = "normal"
    track_users: bool = False
    refusal: Refusal = "http"

    def __post_init__(self) -> None:
        if not isinstance(self.quota, QuotaShape):
            raise ValueError("quota must be a shape such as bucket:200:200")
        for name in ("latency", "jitter", "token_life", "minute", "clock_skew"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"{name} must be a number of seconds")
            if value < 0 and name != "clock_skew":
                raise ValueError(f"{name} must be 0 seconds or more")
        for name in ("any_room", "track_users"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false")
        if self.date_header not in get_args(DateHeader):
            raise ValueError(f"date_header must be one of {', '.join(get_args(DateHeader))}")
        if self.refusal not in get_args(Refusal):
            raise ValueError(f"refusal must be one of {', '.join(get_args(Refusal))}")

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """Return a copy with some settings changed.

        Args:
            changes: new values by name; a quota may be given as text.

        Raises:
            ValueError: a name or a value is not valid.
        """
        unknown = changes.keys() - {each.name for each in fields(self)}
        if unknown:
            raise ValueError(f"no such setting: {', '.join(sorted(unknown))}")
        quota = changes.get("quota", self.quota)
        parsed = QuotaShape.parse(quota) if isinstance(quota, str) else quota
        return replace(self, **{**changes, "quota": parsed})

    def to_json(self) -> dict[str, Any]:
        """Return the settings as `changed` takes them, the quota as text."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "quota": str(self.quota)}
