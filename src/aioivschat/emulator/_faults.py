"""Faults on demand for CreateChatToken."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ._wire import ServiceError


class FaultKind(StrEnum):
    """What goes wrong.

    A fault of the first group refuses the request, which takes nothing from the quota. A fault of
    the second group lets the request be performed, quota and minting included, and spoils the
    answer if it is a success; otherwise the fault stays for the next request.
    """

    THROTTLE_JSON = "throttle_json"  # 429 as modelled
    THROTTLE_HTML = "throttle_html"  # 429 as a proxy in front of the service would answer
    THROTTLE_EMPTY = "throttle_empty"  # 429 without a body
    ERROR_500 = "error_500"  # InternalServerException
    ERROR_503 = "error_503"  # ServiceUnavailableException
    ACCESS_DENIED = "access_denied"  # 403 AccessDeniedException
    PENDING_VERIFICATION = "pending_verification"  # 403 PendingVerification
    BAD_SIGNATURE = "bad_signature"  # 403 InvalidSignatureException
    ECHO_USER = "echo_user"  # 400 that repeats the user id and the attributes
    RESET = "reset"  # the connection is reset
    BLACK_HOLE = "black_hole"  # no answer ever

    SLOW = "slow"  # an ordinary answer, later by the fault's latency
    TRUNCATE = "truncate"  # 200, the JSON cut off; Content-Length is that of what is sent
    EMPTY_OBJECT = "empty_object"  # 200 {}
    MISSING_TOKEN = "missing_token"  # 200  # noqa: S105 (a kind, no secret)
    MISSING_EXPIRY = "missing_expiry"  # 200 without tokenExpirationTime
    NAIVE_EXPIRY = "naive_expiry"  # 200, tokenExpirationTime without a time zone
    PAST_EXPIRY = "past_expiry"  # 200, tokenExpirationTime in 2001
    GARBAGE = "garbage"  # 200, an HTML page


# The bodies, with the content type text/html, of throttles that are not as modelled.
BARE_THROTTLES = {
    FaultKind.THROTTLE_HTML: b"<html><body><h1>429 Too Many Requests</h1></body></html>",
    FaultKind.THROTTLE_EMPTY: b"",
}
_MODELLED = {
    FaultKind.ERROR_500: (500, "InternalServerException", "Internal error"),
    FaultKind.ERROR_503: (503, "ServiceUnavailableException", "Service unavailable"),
    FaultKind.ACCESS_DENIED: (403, "AccessDeniedException", "User is not authorized"),
    FaultKind.PENDING_VERIFICATION: (403, "PendingVerification", "Account is being verified"),
    FaultKind.BAD_SIGNATURE: (
        403,
        "InvalidSignatureException",
        "The request signature we calculated does not match the signature you provided.",
    ),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault for the next CreateChatToken requests.

    Args:
        kind: what goes wrong; its value as text is accepted too.
        times: how many requests it hits, 1 or more; None for every request until faults are
            cleared.
        retry_after: a ``Retry-After`` header, sent as it is; None for no header.
        latency: seconds by which the outcome comes later, 0 or more.

    Raises:
        ValueError: there is no such kind, or a value is not of its type or out of its range.
    """

    kind: FaultKind
    times: int | None = 1
    retry_after: str | None = None
    latency: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", FaultKind(self.kind))
        if self.times is not None and (type(self.times) is not int or self.times < 1):
            raise ValueError("times must be 1 or more, or None")
        if not isinstance(self.retry_after, str | None):
            raise ValueError("retry_after must be text, or None")
        if not isinstance(self.latency, int | float) or not 0 <= self.latency < math.inf:
            raise ValueError("latency must be 0 seconds or more")

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read ``KIND`` (once) or ``KIND:TIMES``, where 0 times means until cleared.

        Raises:
            ValueError: the text is neither.
        """
        kind, colon, times = text.partition(":")
        return cls(FaultKind(kind), (int(times) or None) if colon else 1)

    @classmethod
    def from_json(cls, value: object) -> Fault:
        """Read a JSON object whose members are the fields.

        Raises:
            ValueError: the value is not an object, has another member, or a field is not valid.
        """
        if not isinstance(value, Mapping):
            raise ValueError("a fault must be an object")
        try:
            return cls(**value)
        except TypeError as error:
            raise ValueError("a fault has kind, times, retry_after and latency") from error


class FaultQueue:
    """Faults, in the order in which requests will meet them."""

    def __init__(self) -> None:
        self._queue: deque[Fault] = deque()
        self._hits = 0  # of the first fault

    def add(self, faults: Iterable[Fault]) -> None:
        """Append faults."""
        self._queue.extend(faults)

    def clear(self) -> None:
        """Forget every fault."""
        self._queue.clear()
        self._hits = 0

    def first(self) -> Fault | None:
        """Return the fault that the next request meets, None if there is none."""
        return self._queue[0] if self._queue else None

    def count_hit(self) -> None:
        """Count that the first fault hit a request, and remove the fault after its last hit."""
        self._hits += 1
        if self._hits == self._queue[0].times:
            self._queue.popleft()
            self._hits = 0


def modelled_error(kind: FaultKind, body: Mapping[str, Any]) -> ServiceError | None:
    """Return the error with which a fault refuses a request; None for throttles and the rest."""
    if kind is FaultKind.ECHO_USER:
        user_id, attributes = body.get("userId"), body.get("attributes")
        return ServiceError(
            400,
            "ValidationException",
            f"Not acceptable: userId {user_id}, attributes {attributes}",
            reason="OTHER",
            fieldList=[
                {"name": "userId", "message": f"{user_id} is not acceptable"},
                {"name": "attributes", "message": f"{attributes} is not acceptable"},
            ],
        )
    return ServiceError(*_MODELLED[kind]) if kind in _MODELLED else None


def spoil_reply(kind: FaultKind, reply: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return the content type and the body that a fault makes of a successful reply."""
    if kind is FaultKind.GARBAGE:
        return "text/html", b"<html><body><h1>It works!</h1></body></html>"
    members = {} if kind is FaultKind.EMPTY_OBJECT else dict(reply)
    if kind is FaultKind.MISSING_TOKEN:
        del members["token"]
    elif kind is FaultKind.MISSING_EXPIRY:
        del members["tokenExpirationTime"]
    elif kind is FaultKind.NAIVE_EXPIRY:
        members["tokenExpirationTime"] = members["tokenExpirationTime"].removesuffix("Z")
    elif kind is FaultKind.PAST_EXPIRY:
        members["tokenExpirationTime"] = "2001-01-01T00:00:00.000Z"
    text = json.dumps(members).encode()
    return "application/json", text[: len(text) // 2] if kind is FaultKind.TRUNCATE else text
