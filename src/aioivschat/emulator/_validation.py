"""The service model's constraints, as far as the emulated operations need them.

Source: the ``ivschat`` service model of 2020-07-14 that botocore ships. The library checks requests
too; these are written on their own, so that the one finds the mistakes of the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ._wire import ServiceError

_ROOM_ARN = re.compile(r"arn:aws:ivschat:([a-z0-9-]+):([0-9]+):room/([a-zA-Z0-9-]+)")
_ROOM_NAME = re.compile(r"[a-zA-Z0-9-_]*")
_ID = re.compile(r"[a-zA-Z0-9]+")
_CAPABILITIES = frozenset({"SEND_MESSAGE", "DISCONNECT_USER", "DELETE_MESSAGE"})
ATTRIBUTES_LIMIT = 1024  # bytes over all keys and values (CreateChatToken, SendEvent)
_DEFAULT_MINUTES = 60


@dataclass(frozen=True, slots=True)
class Arn:
    """A room's ARN, taken apart."""

    text: str
    region: str
    account: str
    room_id: str


_NO_ARN = Arn("", "", "", "")


class Members:
    """Reads the members of one request, and notes everything that breaks a constraint.

    What breaks one reads as if it were not there, until `close` raises. A null counts as absent, as
    in the protocol. Messages never repeat a value: user ids and attributes are sensitive.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body
        self._problems: list[dict[str, str]] = []

    def text(
        self,
        name: str,
        *,
        required: bool = False,
        shortest: int = 0,
        longest: int = 1024,
        pattern: re.Pattern[str] | None = None,
    ) -> str:
        """Return a string member, empty if there is none."""
        value = self._body.get(name)
        if value is None:
            if required:
                self._note(name, "must be given")
        elif not isinstance(value, str):
            self._note(name, "must be a string")
        elif not shortest <= len(value) <= longest:
            self._note(name, f"must have {shortest} to {longest} characters")
        elif utf8_size(value) is None:
            self._note(name, "must be well-formed UTF-8")
        elif pattern is not None and pattern.fullmatch(value) is None:
            self._note(name, f"must match {pattern.pattern}")
        else:
            return value
        return ""

    def arn(self, name: str) -> Arn:
        """Return a room's ARN, which must be given."""
        text = self.text(name, required=True, shortest=1, longest=128, pattern=_ROOM_ARN)
        match = _ROOM_ARN.fullmatch(text)
        return Arn(match[0], match[1], match[2], match[3]) if match else _NO_ARN

    def integer(self, name: str, lowest: int, highest: int, default: int) -> int:
        """Return an integer member."""
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            self._note(name, f"must be a whole number from {lowest} to {highest}")
            return default
        return value

    def texts(self, name: str, *, most: int, allowed: frozenset[str] | None = None) -> list[str]:
        """Return a member that is a list of strings."""
        value = self._body.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._note(name, "must be a list of strings")
            return []
        if len(value) > most:
            self._note(name, f"must have {most} items at most")
        if allowed is not None and not allowed.issuperset(value):
            self._note(name, f"must hold only {', '.join(sorted(allowed))}")
        return value

    def mapping(self, name: str, *, most: int) -> dict[str, str]:
        """Return a member that maps strings to strings."""
        value = self._body.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            self._note(name, "must map strings to strings")
            return {}
        if len(value) > most:
            self._note(name, f"must have {most} entries at most")
        return value

    def utf8_total(self, name: str, mapping: Mapping[str, str], limit: int) -> None:
        """Hold the keys and values of a map to a number of bytes in all."""
        sizes = [utf8_size(text) for entry in mapping.items() for text in entry]
        if None in sizes:
            self._note(name, "must be well-formed UTF-8")
        elif sum(filter(None, sizes)) > limit:
            self._note(name, f"must have {limit} bytes at most, keys and values together")

    def close(self) -> None:
        """Raise one ``ValidationException`` that names every member noted."""
        if self._problems:
            names = ", ".join(sorted({problem["name"] for problem in self._problems}))
            raise ServiceError(
                400,
                "ValidationException",
                f"Failed to validate: {names}",
                reason="FIELD_VALIDATION_FAILED",
                fieldList=self._problems,
            )

    def _note(self, name: str, message: str) -> None:
        self._problems.append({"name": name, "message": message})


@dataclass(frozen=True, slots=True)
class TokenMembers:
    """A valid CreateChatToken request."""

    room: Arn
    user_id: str
    capabilities: frozenset[str]
    attributes: Mapping[str, str]
    minutes: int

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self:
        """Read a request's body.

        Raises:
            ServiceError: a ``ValidationException``.
        """
        members = Members(body)
        room = members.arn("roomIdentifier")
        user_id = members.text("userId", required=True, shortest=1, longest=128)
        # The model sets no limit on the list: it is a list of an enumeration, repeats allowed.
        capabilities = members.texts("capabilities", most=1024, allowed=_CAPABILITIES)
        minutes = members.integer("sessionDurationInMinutes", 1, 180, _DEFAULT_MINUTES)
        attributes = members.mapping("attributes", most=ATTRIBUTES_LIMIT)
        members.utf8_total("attributes", attributes, ATTRIBUTES_LIMIT)
        members.close()
        return cls(room, user_id, frozenset(capabilities), attributes, minutes)


def room_arn(body: Mapping[str, Any]) -> Arn:
    """Read the ``identifier`` of a GetRoom or DeleteRoom request.

    Raises:
        ServiceError: a ``ValidationException``.
    """
    members = Members(body)
    arn = members.arn("identifier")
    members.close()
    return arn


def room_members(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a CreateRoom request says of the new room, defaults filled in.

    Raises:
        ServiceError: a ``ValidationException``.
    """
    members = Members(body)
    found = {
        "name": members.text("name", longest=128, pattern=_ROOM_NAME),
        "maximumMessageRatePerSecond": members.integer("maximumMessageRatePerSecond", 1, 100, 10),
        "maximumMessageLength": members.integer("maximumMessageLength", 1, 500, 500),
        "messageReviewHandler": members.mapping("messageReviewHandler", most=2),
        "tags": members.mapping("tags", most=50),
        "loggingConfigurationIdentifiers": members.texts("loggingConfigurationIdentifiers", most=3),
    }
    members.close()
    return found


@dataclass(frozen=True, slots=True)
class EventMembers:
    """A valid SendEvent request."""

    room: Arn
    name: str
    attributes: Mapping[str, str]

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self:
        """Read a request's body.

        Raises:
            ServiceError: a ``ValidationException``.
        """
        members = Members(body)
        room = members.arn("roomIdentifier")
        name = members.text("eventName", required=True, shortest=1, longest=100)
        attributes = members.mapping("attributes", most=ATTRIBUTES_LIMIT)
        members.utf8_total("attributes", attributes, ATTRIBUTES_LIMIT)
        members.close()
        return cls(room, name, attributes)


@dataclass(frozen=True, slots=True)
class ModerationMembers:
    """A valid DeleteMessage or DisconnectUser request: its target is a message or a user."""

    room: Arn
    target: str
    reason: str

    @classmethod
    def of_deletion(cls, body: Mapping[str, Any]) -> Self:
        """Read the body of a DeleteMessage request.

        Raises:
            ServiceError: a ``ValidationException``.
        """
        members = Members(body)
        target = members.text("id", required=True, shortest=12, longest=12, pattern=_ID)
        return cls._of(members, target)

    @classmethod
    def of_disconnection(cls, body: Mapping[str, Any]) -> Self:
        """Read the body of a DisconnectUser request.

        Raises:
            ServiceError: a ``ValidationException``.
        """
        members = Members(body)
        target = members.text("userId", required=True, shortest=1, longest=128)
        return cls._of(members, target)

    @classmethod
    def _of(cls, members: Members, target: str) -> Self:
        room = members.arn("roomIdentifier")
        reason = members.text("reason", shortest=1, longest=256)
        members.close()
        return cls(room, target, reason)


def utf8_size(text: str) -> int | None:
    """Return a text's bytes in UTF-8, None if it has none: JSON can hold half a surrogate pair."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None
