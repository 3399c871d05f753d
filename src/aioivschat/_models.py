"""Requests and tokens, rooms, and what makes two requests the same.

Constraints are those of the ``ivschat`` service model and API reference. They are checked here,
before any I/O, because botocore checks neither patterns, enums nor maxima.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from functools import lru_cache
from itertools import combinations
from types import MappingProxyType
from typing import Any, TypeVar, cast

from aioivschat._secrets import Hidden, Secret, Unpickled, hides
from aioivschat.errors import InvalidRequest

T = TypeVar("T")

TOKEN_LIFE_SECONDS = 60.0
"""Seconds that a token can be used to connect (API reference, ``tokenExpirationTime``)."""

ROOM_MAX_CHARACTERS = 128
USER_MAX_CHARACTERS = 128
ATTRIBUTES_MAX_BYTES = 1024
SESSION_MAX_MINUTES = 180
SESSION_DEFAULT_MINUTES = 60
KEY_MAX_CHARACTERS = 255  # an idempotency key's

_ROOM_FORM = re.compile(r"arn:aws:ivschat:([a-z0-9-]+):([0-9]+):room/([a-zA-Z0-9-]+)")
_OTHER_ARN_FORM = re.compile(r"arn:[a-z-]{1,16}:[a-z0-9-]{1,32}:[a-z0-9-]{0,32}:[0-9]{0,16}:")
_ROOM_LIMIT = "a room ARN, arn:aws:ivschat:<region>:<account>:room/<id>"

_CAPABILITY_FORM = re.compile(r"[A-Z_]{1,32}")
_CAPABILITIES_LIMIT = "a collection of SEND_MESSAGE, DELETE_MESSAGE, DISCONNECT_USER"

_NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})


class Capability(StrEnum):
    """What the holder of a token may do besides viewing, which is implicit."""

    SEND_MESSAGE = "SEND_MESSAGE"
    DELETE_MESSAGE = "DELETE_MESSAGE"
    DISCONNECT_USER = "DISCONNECT_USER"


class Priority(IntEnum):
    """Who goes first when calls wait for the quota: moderators, say, before viewers.

    Within a priority rooms take turns, and within a room it is first in, first out: a storm in one
    room takes no more than every second permit from another.
    """

    HIGH = 0
    NORMAL = 1
    BACKGROUND = 2


def checked_priority(priority: object) -> Priority:
    """Return a priority, also by its number; raise :class:`InvalidRequest` for what is none."""
    if type(priority) is Priority:
        return priority
    if type(priority) is int and 0 <= priority < len(Priority):
        return Priority(priority)
    raise InvalidRequest("priority", "Priority.HIGH, NORMAL or BACKGROUND", "another value")


@dataclass(frozen=True, slots=True)
class RoomArn:
    """The parts of a room's ARN; a quota belongs to its account and region."""

    region: str
    account: str
    room_id: str

    @classmethod
    def parse(cls, text: str) -> RoomArn:
        """Take an ARN apart.

        Args:
            text: 1 to 128 characters, ``arn:aws:ivschat:<region>:<account>:room/<id>``.

        Raises:
            InvalidRequest: if it is not the ARN of a chat room.
        """
        try:
            text = plain(text)
            if type(text) is not str:
                raise InvalidRequest("roomIdentifier", _ROOM_LIMIT, _type_of(text))
            return _parse_room(text)
        except InvalidRequest as error:
            wrong = error
        del text  # out of tracebacks that show locals: it may be anything
        raise wrong.with_traceback(None)

    def __str__(self) -> str:
        return f"arn:aws:ivschat:{self.region}:{self.account}:room/{self.room_id}"


# An event has thousands of viewers in a handful of rooms.
@lru_cache(maxsize=1024)
def _parse_room(text: str) -> RoomArn:
    if not 1 <= len(text) <= ROOM_MAX_CHARACTERS:
        limit = f"1 to {ROOM_MAX_CHARACTERS} characters"
        raise InvalidRequest("roomIdentifier", limit, f"{len(text)}")
    match = _ROOM_FORM.fullmatch(text)
    if match is None:
        # Show nothing but the start of an ARN: the rest may be a user id in the wrong place.
        other = _OTHER_ARN_FORM.match(text)
        found = f"{other[0]}…" if other is not None else "other text"
        raise InvalidRequest("roomIdentifier", _ROOM_LIMIT, found)
    return RoomArn(*match.groups())


class Identity(Hidden):
    """What makes two requests the same to AWS; hashable, and shown as nothing but its kind."""

    __slots__ = ()


class Attempt(Hidden):
    """One logical connection attempt: ``Attempt((identity, idempotency_key))``."""

    __slots__ = ()

    @property
    def identity(self) -> Identity:
        return cast(Identity, self.at(0))

    @property
    def key(self) -> str:
        return cast(str, self.at(1))


SharingKey = Identity | Attempt
"""What calls have in common that share a token: plain ones their identity, others their attempt."""


@hides("user", "attributes", "identity")
@dataclass(frozen=True, init=False, eq=False, repr=False, slots=True)
class TokenRequest(Secret):
    """A request for one token.

    Two requests are equal if and only if they would mean the same to AWS: the order of
    capabilities and of attributes has no meaning, and the default duration equals an explicit 60.

    Args:
        room: ARN of the room, 1 to 128 characters.
        user: the user's id in the application, 1 to 128 characters of any text.
        capabilities: any of ``SEND_MESSAGE``, ``DELETE_MESSAGE``, ``DISCONNECT_USER``; none by
            default, which lets the user view.
        attributes: what the room shows about the user with each message; text to text, at most
            1,024 bytes of UTF-8 over all keys and values.
        session_minutes: how long the chat session may last, 1 to 180 minutes.

    Raises:
        InvalidRequest: naming the first member that breaks a limit.
    """

    _SENT_INSTEAD = "as_members(), the arguments of create_chat_token"

    room: str
    user: str
    capabilities: frozenset[Capability]
    attributes: Mapping[str, str]
    session_minutes: int
    identity: Identity = field(init=False)

    def __init__(
        self,
        room: str,
        user: str,
        capabilities: Iterable[str] = (),
        attributes: Mapping[str, str] | None = None,
        session_minutes: int = SESSION_DEFAULT_MINUTES,
    ) -> None:
        members = _checked_members(room, user, capabilities, attributes, session_minutes)
        if isinstance(members, InvalidRequest):
            # Out of tracebacks that show locals.
            del self, room, user, capabilities, attributes, session_minutes
            raise members
        # What was checked: a mapping may differ when it is read again, or an Enum as it is shown.
        plain_room, plain_user, granted, pairs, minutes = members
        put = object.__setattr__
        put(self, "room", plain_room)
        put(self, "user", plain_user)
        put(self, "capabilities", granted)
        put(self, "attributes", MappingProxyType(dict(pairs)) if pairs else _NO_ATTRIBUTES)
        put(self, "session_minutes", minutes)
        put(self, "identity", Identity(members))

    def as_members(self) -> dict[str, Any]:
        """Return the request as the members of ``CreateChatToken``."""
        members: dict[str, Any] = {
            "roomIdentifier": self.room,
            "userId": self.user,
            "sessionDurationInMinutes": self.session_minutes,
        }
        if self.capabilities:
            members["capabilities"] = list(CAPABILITY_NAMES[self.capabilities])
        if self.attributes:
            members["attributes"] = dict(self.attributes)
        return members

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenRequest):
            return NotImplemented
        return self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        names = ", ".join(sorted(self.capabilities))
        return (
            f"TokenRequest(room={self.room!r}, user=<redacted>, capabilities={{{names}}}, "
            f"attributes=<{len(self.attributes)} redacted>, "
            f"session_minutes={self.session_minutes})"
        )


@hides("token")
@dataclass(frozen=True, slots=True, repr=False)
class ChatToken(Secret):
    """A token that connects once.

    Args:
        token: the secret itself; only this attribute and :meth:`reply` show it.
        token_expires: until when it can be used to connect, by AWS's clock.
        session_expires: until when the session lasts that it opens, by AWS's clock.
        reused: whether somebody was handed it before: it may be spent already.
    """

    _SENT_INSTEAD = "token.token"

    token: str
    token_expires: datetime
    session_expires: datetime
    reused: bool = False

    def reply(self) -> Reply:
        """Return the reply that boto3's ``create_chat_token`` gives."""
        return Reply(
            token=self.token,
            tokenExpirationTime=self.token_expires,
            sessionExpirationTime=self.session_expires,
        )

    def as_reused(self) -> ChatToken:
        """Return the same token, marked as handed out before."""
        return ChatToken(self.token, self.token_expires, self.session_expires, reused=True)

    def __repr__(self) -> str:
        return (
            f"ChatToken(token=<redacted>, token_expires={self.token_expires.isoformat()}, "
            f"session_expires={self.session_expires.isoformat()}, reused={self.reused})"
        )


class Reply(Unpickled, dict[str, Any]):
    """The reply of ``create_chat_token``: a dict whose ``repr``, as in a log, hides the token."""

    __slots__ = ()
    _SENT_INSTEAD = "dict(reply)"

    def __repr__(self) -> str:
        shown = {key: value for key, value in self.items() if key != "token"}
        return f"{{'token': <redacted>, {repr(shown)[1:]}"

    __str__ = __repr__

    def copy(self) -> Reply:
        """Return a copy that does not show its token either."""
        return Reply(self)

    __copy__ = copy

    def __or__(self, other: Any) -> Any:
        return _as_reply(super().__or__(other))

    def __ror__(self, other: Any) -> Any:
        return _as_reply(super().__ror__(other))

    def __deepcopy__(self, memo: dict[int, Any]) -> Reply:
        return Reply(self)  # its values never change


def _as_reply(merged: Any) -> Any:
    return merged if merged is NotImplemented else Reply(merged)


def _checked_members(
    room: str,
    user: str,
    capabilities: Iterable[str],
    attributes: Mapping[str, str] | None,
    session_minutes: int,
) -> tuple[Any, ...] | InvalidRequest:
    """Check every member; return an error instead of raising it, so that it has no traceback."""
    try:
        if type(room) is not str or type(user) is not str:
            room, user = plain(room), plain(user)
        RoomArn.parse(room)
        _check_user(user)
        granted = _checked_capabilities(capabilities)
        pairs = _checked_attributes(attributes) if attributes is not None else ()
        minutes = _checked_minutes(session_minutes)
    except InvalidRequest as error:
        return error.with_traceback(None)
    return room, user, granted, pairs, minutes


def unchecked_identity(
    room: str,
    user: str,
    capabilities: Iterable[str],
    attributes: Mapping[str, str] | None,
    session_minutes: int,
) -> tuple[Any, ...] | None:
    """Return what equals the identity of a request with these arguments; ``None``: check them.

    It is for look-ups and costs a fraction of the checks: whatever is found under it was stored
    after a request with equal arguments had passed them. It, or hashing what it returns, may raise
    ``TypeError``.
    """
    # By exact type: True equals 1 but is no duration, the keys of {"SEND_MESSAGE": False} are not
    # what was meant, and text of a class of its own may equal what it is not.
    if type(session_minutes) is not int or type(capabilities) not in _COLLECTIONS:
        return None
    if type(room) is not str or type(user) is not str:
        return None
    if attributes is None:
        return room, user, frozenset(capabilities), (), session_minutes
    if type(attributes) is not dict:
        return None
    if {*map(type, attributes), *map(type, attributes.values())} - {str}:
        return None
    return room, user, frozenset(capabilities), tuple(sorted(attributes.items())), session_minutes


_COLLECTIONS = (list, tuple, set, frozenset)


def _type_of(value: object) -> str:
    return f"a value of type {type(value).__name__}"


def plain(text: T) -> T:
    """Return text as a plain ``str``: of a subclass only its characters count, for AWS too.

    What is no text is returned as it is.
    """
    # By type: an object may say of itself that it is text, as proxies and mocks do.
    if type(text) is str or not issubclass(type(text), str):
        return text
    return cast("T", str.__str__(text))


def _is_text(value: object) -> bool:
    """Tell whether a value is plain text that UTF-8 can encode: a lone surrogate it cannot."""
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked_capabilities(capabilities: Iterable[str]) -> frozenset[Capability]:
    # Iterable, but not what was meant: characters of text, keys of {"SEND_MESSAGE": False}.
    if isinstance(capabilities, str | bytes | Mapping) or not isinstance(capabilities, Iterable):
        raise InvalidRequest("capabilities", _CAPABILITIES_LIMIT, _type_of(capabilities))
    names = tuple(capabilities)
    try:
        return _CAPABILITY_SETS[frozenset(names)]
    except (KeyError, TypeError):
        pass
    # Text of a class of its own may have another hash.
    names = tuple(map(plain, names))
    known = Capability.__members__
    unknown: list[object] = [name for name in names if not (type(name) is str and name in known)]
    if not unknown:
        return _CAPABILITY_SETS[frozenset(names)]
    wrong = unknown[0]
    if type(wrong) is not str:
        found = _type_of(wrong)
    else:
        # Show only what looks like a capability: the rest may be a user id in the wrong place.
        found = repr(wrong) if _CAPABILITY_FORM.fullmatch(wrong) else "other text"
    raise InvalidRequest("capabilities", _CAPABILITIES_LIMIT, found)


# All eight: a hundred thousand cached requests share these objects, and a check is one look-up.
_CAPABILITY_SETS: dict[frozenset[str], frozenset[Capability]] = {
    chosen: chosen
    for size in range(len(Capability) + 1)
    for chosen in map(frozenset, combinations(Capability, size))
}
CAPABILITY_NAMES = {chosen: sorted(map(str, chosen)) for chosen in _CAPABILITY_SETS}


def _checked_attributes(attributes: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    if not isinstance(attributes, Mapping):
        raise InvalidRequest("attributes", "a mapping of text to text", _type_of(attributes))
    size = 0
    pairs: dict[str, str] = {}
    for name, value in attributes.items():
        name, value = plain(name), plain(value)
        for text in (name, value):
            if not _is_text(text):
                found = "a lone surrogate" if type(text) is str else _type_of(text)
                raise InvalidRequest("attributes", "text to text, encodable as UTF-8", found)
            size += len(text.encode())
        pairs[name] = value
    if size > ATTRIBUTES_MAX_BYTES:
        limit = f"at most {ATTRIBUTES_MAX_BYTES} bytes of UTF-8 over all keys and values"
        raise InvalidRequest("attributes", limit, f"{size} bytes")
    return tuple(sorted(pairs.items()))


def _check_user(user: str) -> None:
    if type(user) is not str:
        raise InvalidRequest("userId", "text", _type_of(user))
    if not 1 <= len(user) <= USER_MAX_CHARACTERS:
        limit = f"1 to {USER_MAX_CHARACTERS} characters"
        raise InvalidRequest("userId", limit, f"{len(user)} characters")
    if not _is_text(user):
        raise InvalidRequest("userId", "encodable as UTF-8", "a lone surrogate")


def _checked_minutes(minutes: int) -> int:
    limit = f"a whole number from 1 to {SESSION_MAX_MINUTES}"
    # True is an int to Python, and no duration.
    if not issubclass(type(minutes), int) or type(minutes) is bool:
        raise InvalidRequest("sessionDurationInMinutes", limit, _type_of(minutes))
    minutes = int.__int__(minutes)
    if not 1 <= minutes <= SESSION_MAX_MINUTES:
        # Python refuses to print thousands of digits.
        found = str(minutes) if abs(minutes) < 10**9 else "a number far outside"
        raise InvalidRequest("sessionDurationInMinutes", limit, found)
    return minutes
