"""The shapes that a quota of requests a second may have.

AWS publishes 200 requests a second for CreateChatToken, but not whether that is a bucket or a
window, nor the bucket's size. The emulator has every plausible shape.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args

from ._wire import ServiceError

Kind = Literal["bucket", "fixed", "sliding", "unlimited"]

# A bucket's level that is short of one request by rounding alone admits it.
_ROUNDING_TOLERANCE = 1e-9


class Meter(Protocol):
    """Counts requests against one quota."""

    def admit(self, now: float) -> bool:
        """Return whether a request is within the quota, and count it then; ``now``: monotonic."""


class _Bucket:
    def __init__(self, rate: float, size: float) -> None:
        self._rate = rate
        self._size = size
        self._level = size
        self._read_at = 0.0

    def admit(self, now: float) -> bool:
        gained = max(0.0, now - self._read_at) * self._rate
        self._level = min(self._size, self._level + gained)
        self._read_at = now
        if self._level < 1 - _ROUNDING_TOLERANCE:
            return False
        self._level -= 1
        return True


class _FixedWindow:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._opened_at: float | None = None

    def admit(self, now: float) -> bool:
        if self._opened_at is None:
            self._opened_at = now
        windows_passed = math.floor(now - self._opened_at)
        if windows_passed > 0:
            self._opened_at += windows_passed
            self._used = 0
        if self._used >= self._limit:
            return False
        self._used += 1
        return True


class _SlidingWindow:
    def __init__(self, limit: int) -> None:
        self._admitted: deque[float] = deque(maxlen=limit)

    def admit(self, now: float) -> bool:
        full = len(self._admitted) == self._admitted.maxlen
        if full and now - self._admitted[0] < 1.0:
            return False
        self._admitted.append(now)
        return True


class _Unlimited:
    def admit(self, now: float) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class QuotaShape:
    """How many CreateChatToken requests an account may make in a region.

    The default of 200 a second is the published quota (IVS Chat service quotas); the shape and
    the bucket's size are not published.

    Args:
        kind: ``bucket`` refills steadily; ``fixed`` counts in windows of one second that follow
            one another from the first request on; ``sliding`` allows ``rate`` requests in any one
            second; ``unlimited`` refuses no request.
        rate: requests a second, above 0; a whole number for the windows.
        size: what a full bucket holds, in requests, 1 or more; only a bucket has it.

    Raises:
        ValueError: a number is out of its range.
    """

    kind: Kind = "bucket"
    rate: float = 200.0
    size: float = 200.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"quota kind must be one of {', '.join(get_args(Kind))}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError("quota rate must be above 0 requests a second")
        if self.kind in ("fixed", "sliding") and self.rate != int(self.rate):
            raise ValueError(f"the rate of a {self.kind} window must be a whole number")
        if not (math.isfinite(self.size) and self.size >= 1):
            raise ValueError("a bucket must hold 1 request or more")

    @classmethod
    def parse(cls, text: str) -> QuotaShape:
        """Read what ``str()`` of a shape prints.

        Args:
            text: ``bucket:RATE:SIZE`` (``bucket:RATE`` holds the requests of one second),
                ``fixed:RATE``, ``sliding:RATE`` or ``unlimited``.

        Raises:
            ValueError: the text is none of these.
        """
        kind, *numbers = text.split(":")
        most = {"bucket": 2, "fixed": 1, "sliding": 1, "unlimited": 0}.get(kind, -1)
        if not min(most, 1) <= len(numbers) <= most:
            raise ValueError(
                f"{text!r} is not bucket:RATE:SIZE, fixed:RATE, sliding:RATE or unlimited"
            )
        try:
            rate, size = ([float(number) for number in numbers] * 2)[:2] if numbers else (200, 200)
        except ValueError:
            raise ValueError(f"{text!r} holds something that is not a number") from None
        return cls(cast("Kind", kind), rate, size if kind == "bucket" else max(1, rate))

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        if self.kind == "unlimited":
            return self.kind
        if self.kind == "bucket":
            return f"{self.kind}:{self.rate:g}:{self.size:g}"
        return f"{self.kind}:{self.rate:g}"

    def meter(self) -> Meter:
        """Return a new meter of this shape."""
        if self.kind == "bucket":
            return _Bucket(self.rate, self.size)
        if self.kind == "fixed":
            return _FixedWindow(int(self.rate))
        if self.kind == "sliding":
            return _SlidingWindow(int(self.rate))
        return _Unlimited()


def throttling_error(room_id: str, quota: QuotaShape) -> ServiceError:
    """Return the ``ThrottlingException`` for a request for a room that was beyond a quota."""
    return ServiceError(
        429,
        "ThrottlingException",
        "Rate exceeded",
        resourceId=room_id,
        resourceType="ROOM",
        limit=int(quota.rate),
    )
