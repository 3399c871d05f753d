"""What a client asks for: the form of its request, the members of its body, the grant's bounds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aioivschat._endpoint.exchange import BODY_MAX_BYTES, Received, Unread
from aioivschat._endpoint.problems import (
    BAD_REQUEST,
    FORBIDDEN,
    GRANT_CHANGED,
    INVALID_MEMBER,
    UNREAD,
    UNSUPPORTED,
    Refusal,
)
from aioivschat._models import KEY_MAX_CHARACTERS, TokenRequest
from aioivschat._secrets import Secret, hides
from aioivschat.errors import InvalidRequest

_WAIT_FORM = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:$|[,;])', re.IGNORECASE)
_KEY_FORM = re.compile(rf"[!-~]{{1,{KEY_MAX_CHARACTERS}}}")

_MIN_PATIENCE_SECONDS = 1.0
"""With less, hardly any answer from AWS would be in time."""

# The library's names, AWS's, and those of AWS's demo application.
MEMBERS = {
    "room": "room",
    "roomIdentifier": "room",
    "arn": "room",
    "user": "user",
    "userId": "user",
    "capabilities": "capabilities",
    "attributes": "attributes",
    "session_minutes": "session_minutes",
    "sessionDurationInMinutes": "session_minutes",
    "durationInMinutes": "session_minutes",
}
"""Members of a body: by its name there, the field of :class:`Ask`."""

_HARMLESS_NAME = re.compile(r"[A-Za-z_]{1,40}")
_ANY_ROOM = "arn:aws:ivschat:us-east-1:0:room/x"


@hides("user", "attributes")
@dataclass(frozen=True, slots=True, repr=False)
class Ask(Secret):
    """What the body of a request asks for; it grants nothing.

    What the body leaves out is ``None``. Every member that is there keeps the limits of
    :class:`~aioivschat.TokenRequest`.

    Args:
        room: ARN of the room.
        user: the user's id.
        capabilities: what the client wants to be able to do.
        attributes: what the room is to show about the user.
        session_minutes: how long the session is to last.
    """

    room: str | None = None
    user: str | None = None
    capabilities: frozenset[str] | None = None
    attributes: Mapping[str, str] | None = None
    session_minutes: int | None = None

    def __repr__(self) -> str:
        user = None if self.user is None else "<redacted>"
        attributes = None if self.attributes is None else f"<{len(self.attributes)} redacted>"
        names = None if self.capabilities is None else sorted(map(str, self.capabilities))
        return (
            f"Ask(room={self.room!r}, user={user}, capabilities={names}, "
            f"attributes={attributes}, session_minutes={self.session_minutes})"
        )


def check_form(received: Received) -> bytes:
    """Return the body; refuse what is not JSON, compressed or not all there, or a malformed key."""
    headers, body, key = received.headers, received.body, received.key
    content_type = headers.get("Content-Type", "")
    # Any other type is refused because a page of another origin may send it with the user's
    # cookies; JSON it may send only if CORS lets it.
    if content_type != "application/json":
        media_type, _, _ = content_type.partition(";")
        if media_type.strip().lower() != "application/json":
            raise Refusal(UNSUPPORTED)
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal(UNSUPPORTED, "The body must not be compressed.")
    if not isinstance(body, Unread) and len(body) > BODY_MAX_BYTES:
        body = Unread.TOO_LARGE  # a framework had it read
    if isinstance(body, Unread):
        raise Refusal(UNREAD[body])
    if key is not None and not _KEY_FORM.fullmatch(key):
        raise Refusal(
            BAD_REQUEST,
            f"Idempotency-Key must be 1 to {KEY_MAX_CHARACTERS} visible ASCII characters.",
        )
    return body


def shorten_patience(patience: float, headers: Mapping[str, str]) -> float:
    """Return the seconds to wait: the policy's, or fewer if the request prefers (RFC 7240)."""
    preferred = headers.get("Prefer")
    wait = None if preferred is None else _WAIT_FORM.search(preferred)
    if wait is None:
        return patience
    return min(patience, max(_MIN_PATIENCE_SECONDS, float(wait[1])))


def parse(body: bytes) -> Ask:
    """Read a body; refuse one that is not an object of known members within their limits."""
    try:
        members = json.loads(body.decode())
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise Refusal(BAD_REQUEST, "The body must be a JSON object in UTF-8.")
    asked: dict[str, Any] = {}
    named: dict[str, str] = {}
    for name, value in members.items():
        field = MEMBERS.get(name)
        if field is None:
            shown = name if _HARMLESS_NAME.fullmatch(name) else "a member of another name"
            raise Refusal(INVALID_MEMBER, f"{shown} is not known.")
        if field in asked:
            raise Refusal(INVALID_MEMBER, f"{named[field]} and {name} mean the same: give one.")
        if value is None:
            raise Refusal(INVALID_MEMBER, f"{name} must not be null: leave it out.")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON has one kind of number
        asked[field], named[field] = value, name
    try:
        # The limits are those of a TokenRequest, which also needs a room and a user.
        checked = TokenRequest(**{"room": _ANY_ROOM, "user": "-", **asked})
    except InvalidRequest as error:
        name = named[MEMBERS[error.member]]
        raise Refusal(INVALID_MEMBER, f"{name} must be {error.limit}.") from None
    return Ask(**{field: getattr(checked, field) for field in asked})


def narrow(grant: TokenRequest, ask: Ask) -> TokenRequest:
    """Return the grant, with less if less was asked for; refuse an ask for more than is granted."""
    capabilities, minutes = grant.capabilities, grant.session_minutes
    wanted = capabilities if ask.capabilities is None else ask.capabilities
    asked_minutes = minutes if ask.session_minutes is None else ask.session_minutes
    fewer = wanted is not capabilities  # equal sets of capabilities are one object
    if (
        (ask.room is not None and ask.room != grant.room)
        or (ask.user is not None and ask.user != grant.user)
        or (fewer and not wanted <= capabilities)
        or asked_minutes > minutes
        or (ask.attributes is not None and not ask.attributes.items() <= grant.attributes.items())
    ):
        raise Refusal(FORBIDDEN)
    if not fewer and asked_minutes == minutes:
        return grant
    return TokenRequest(grant.room, grant.user, wanted, grant.attributes, asked_minutes)


def check_still_granted(minted: TokenRequest, grant: TokenRequest) -> None:
    """Refuse to hand out a token that was minted for a grant if a later one allows less."""
    if not (
        minted.room == grant.room
        and minted.user == grant.user
        and minted.attributes == grant.attributes
        and minted.capabilities <= grant.capabilities
        # A rule that counts down to an event's end may have come to the next minute.
        and minted.session_minutes <= grant.session_minutes + 1
    ):
        raise Refusal(GRANT_CHANGED, retry_after=1.0)
