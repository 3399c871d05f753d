"""Why a request got no token, in words of the library's own (RFC 9457)."""

from __future__ import annotations

import json
import logging
import math
import random
import uuid
from traceback import walk_tb
from typing import Any, NamedTuple

from aioivschat._endpoint.exchange import BODY_MAX_BYTES, PROBLEM_HEADERS, Reply, Unread
from aioivschat.errors import (
    AwsError,
    ConnectionFailed,
    CredentialsFailed,
    DeadlineExceeded,
    Interrupted,
    InvalidRequest,
    MalformedResponse,
    Overloaded,
    ResourceNotFound,
    ServerFault,
    ServiceClosed,
    Throttled,
)

_log = logging.getLogger("aioivschat.endpoint")

_RETRY_AFTER_SECONDS = 1.0
"""When to come back if neither AWS nor the limiter says so."""


class _ProblemType(NamedTuple):
    """A type of problem: the last part of its URN, its title, and its usual detail."""

    status: int
    name: str
    title: str
    detail: str


BAD_REQUEST = _ProblemType(
    400, "bad-request", "The request is malformed", "The request is malformed."
)
FORBIDDEN = _ProblemType(
    403, "forbidden", "Not granted", "You may not have a token, or not with all that was asked for."
)
_NO_ROOM = _ProblemType(404, "no-such-room", "No such room", "The chat room does not exist.")
_TOO_LATE = _ProblemType(
    408, "no-body", "The body did not come", "The body did not come in time; send it again."
)
_TOO_LARGE = _ProblemType(
    413, "too-large", "The body is too large", f"The body may have {BODY_MAX_BYTES} bytes."
)
UNREAD = {Unread.TOO_LARGE: _TOO_LARGE, Unread.TOO_LATE: _TOO_LATE}
UNSUPPORTED = _ProblemType(415, "not-json", "The body is not JSON", "Send application/json.")
INVALID_MEMBER = _ProblemType(
    422, "invalid-member", "A member breaks a limit", "A member breaks a limit."
)
RATE_LIMITED = _ProblemType(
    429, "own-share", "Too many requests", "Too many tokens were asked for; try again later."
)
_INTERNAL = _ProblemType(
    500, "internal", "Internal error", "The server could not handle the request."
)
_UPSTREAM = _ProblemType(
    502, "upstream", "The chat service refused", "The chat service gave no usable answer."
)
_OVERLOADED = _ProblemType(
    503, "overloaded", "Too busy", "The request cannot be served in time; try again later."
)
_UNREACHABLE = _ProblemType(
    503, "unreachable", "The chat service is away", "The chat service cannot be reached."
)
GRANT_CHANGED = _ProblemType(
    503, "grant-changed", "Ask again", "What you may do in the room changed while you waited."
)


class Refusal(Exception):
    """The endpoint itself refuses the request; with no ``retry_after``, repeating is of no use."""

    def __init__(
        self, problem: _ProblemType, detail: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(problem.name)
        self.problem = problem
        self.detail = detail or problem.detail
        self.retry_after = retry_after


def reply_with_problem(error: Exception, rng: random.Random) -> Reply:
    """Describe an error to the client, and log its cause under the same id."""
    if isinstance(error, Refusal):
        kind, detail, retry_after = error.problem, error.detail, error.retry_after
    else:
        kind, retry_after = _problem_of(error)
        detail = kind.detail
    problem: dict[str, Any] = {
        "type": f"urn:problem-type:aioivschat:{kind.name}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": uuid.uuid4().urn,
    }
    headers = PROBLEM_HEADERS
    if retry_after is not None:
        # Jitter, so that clients refused together do not come back together.
        seconds = math.ceil(retry_after + rng.random() * max(1.0, retry_after / 2))
        # The body has it too: scripts of another origin can read few headers (Fetch, CORS).
        problem["retryAfter"] = seconds
        headers = {**headers, "Retry-After": str(seconds)}
    level = logging.WARNING if kind.status >= 500 else logging.INFO
    if _log.isEnabledFor(level):
        _log.log(level, "%s %s: %s", problem["instance"], kind.name, _describe_cause(error))
    return Reply(kind.status, headers, json.dumps(problem).encode())


def _problem_of(error: Exception) -> tuple[_ProblemType, float | None]:
    """Return the type of problem, and the seconds after which to come back."""
    match error:
        case Overloaded():
            return _OVERLOADED, error.retry_after
        case Throttled():
            return _OVERLOADED, error.retry_after or _RETRY_AFTER_SECONDS
        case DeadlineExceeded() | ServiceClosed() | Interrupted():
            return _OVERLOADED, _RETRY_AFTER_SECONDS
        case ConnectionFailed():
            return _UNREACHABLE, _RETRY_AFTER_SECONDS
        case CredentialsFailed():
            return _UNREACHABLE, _RETRY_AFTER_SECONDS if error.may_pass else None
        case ResourceNotFound():
            return _NO_ROOM, None
        case ServerFault():
            return _UPSTREAM, error.retry_after or _RETRY_AFTER_SECONDS
        case AwsError() | MalformedResponse():
            return _UPSTREAM, None
        case _:
            return _INTERNAL, None


def _describe_cause(error: Exception) -> str:
    """Describe an error without its message, which may hold a secret if the rule raised it."""
    if isinstance(error, Refusal):
        return error.problem.title
    name = type(error).__name__
    if isinstance(error, AwsError):
        return f"{name}, {error.code}, request id {error.request_id}"
    if isinstance(error, ConnectionFailed | CredentialsFailed | InvalidRequest):
        # The library's own, as the rule's InvalidRequest is a refusal.
        return f"{name}, {error}"
    if _problem_of(error)[0] is not _INTERNAL:
        return name
    where = ""
    for frame, line in walk_tb(error.__traceback__):  # the last is where it was raised
        where = f" at {frame.f_code.co_filename}:{line}"
    return name + where
