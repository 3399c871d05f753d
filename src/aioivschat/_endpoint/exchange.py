"""What a web framework hands to the endpoint and takes back from it."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Mapping
from dataclasses import dataclass
from enum import Enum

from aioivschat._contexts import time_limit
from aioivschat._secrets import Unpickled, hides

BODY_MAX_BYTES = 4096
"""Four times the largest attributes, which are what makes a body large."""

PROBLEM_HEADERS = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}


class Unread(Enum):
    """Why a body was not read to its end."""

    TOO_LARGE = "larger than BODY_MAX_BYTES"
    TOO_LATE = "not there in time"


@hides("body", "headers", "key")
class Received(Unpickled):
    """A request's headers and body; its ``repr`` shows neither, as tracebacks may show locals.

    Headers are found by names of any case; ``key``, the idempotency key, is valid only after the
    form was checked.
    """

    __slots__ = ("body", "headers", "key")

    def __init__(self, headers: Mapping[str, str], body: bytes | Unread) -> None:
        self.headers = headers
        self.body = body
        self.key = headers.get("Idempotency-Key")


@hides("body")
@dataclass(slots=True, repr=False)
class Reply(Unpickled):
    """What goes back to the client; its ``repr`` leaves out the body, which may hold a token."""

    status: int
    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"<Reply {self.status}>"


CLIENT_GONE = Reply(499, PROBLEM_HEADERS, b"")
"""For a client that disconnected: nginx logs this status for it."""


async def read_body(chunks: AsyncIterable[bytes]) -> bytes | Unread:
    """Return the body; stop as soon as it is larger than ``BODY_MAX_BYTES``."""
    body = b""
    async for chunk in chunks:
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            return Unread.TOO_LARGE
    return body


async def read_in_time(reading: Awaitable[bytes | Unread], seconds: float) -> bytes | Unread:
    """Return a body that is being read, if it is there within so many seconds.

    It may never come: the client stalls, or a middleware has read it and passes nothing on.
    """
    try:
        async with time_limit(seconds):
            return await reading
    except TimeoutError:
        return Unread.TOO_LATE
