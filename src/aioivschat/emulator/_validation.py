"""The service model's constraints, as far as the emulated operations need them.

Source: the ``ivschat`` service model of 2020-07-14 that botocore ships. The library checks requests
by code of its own, so that each of the two checks finds the other's mistakes.

Every reader of a request's body raises `ServiceError`, a ``ValidationException`` that names all
members that break a constraint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._wire import ServiceError

_ROOM_ARN = re.compile(r"arn:aws:ivschat:([a-z0-9-]+):([0-9]+):room/([a-zA-Z0-9-]+)")
_ROOM_NAME = re.compile(r"[a-zA-Z0-9-_]*")
_MESSAGE_ID = re.compile(r"[a-zA-Z0-9]+")
_CAPABILITIES = frozenset({"SEND_MESSAGE", "DISCONNECT_USER", "DELETE_MESSAGE"})
ATTRIBUTES_LIMIT_BYTES = 1024  # bytes over all keys and values (CreateChatToken, SendEvent)
_DEFAULT_MINUTES = 60


@dataclass(frozen=True, slots=True)
class Arn:
    """A room's ARN and its parts."""

    text: str
    region: str
    account: str
    room_id: str


_INVALID_ARN = Arn("", "", "", "")


class Members:
    """Reads the members of one request, and collects which of them break a constraint.

    A member that breaks one reads as if it were absent; `raise_problems`, called last, raises for
    all of them. A null counts as absent, as in the protocol. Messages never repeat a value: user
    ids and attributes are sensitive.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body
        self._problems: list[dict[str, str]] = []

    def read_text(
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
                self._add_problem(name, "must be given")
        elif not isinstance(value, str):
            self._add_problem(name, "must be a string")
        elif not shortest <= len(value) <= longest:
            self._add_problem(name, f"must have {shortest} to {longest} characters")
        elif utf8_size(value) is None:
            self._add_problem(name, "must be well-formed UTF-8")
        elif pattern is not None and pattern.fullmatch(value) is None:
            self._add_problem(name, f"must match {pattern.pattern}")
        else:
            return value
        return ""

    def read_arn(self, name: str) -> Arn:
        """Return a room's ARN, which must be given."""
        text = self.read_text(name, required=True, shortest=1, longest=128, pattern=_ROOM_ARN)
        match = _ROOM_ARN.fullmatch(text)
        return Arn(match[0], match[1], match[2], match[3]) if match else _INVALID_ARN

    def read_integer(self, name: str, lowest: int, highest: int, default: int) -> int:
        """Return an integer member."""
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            self._add_problem(name, f"must be a whole number from {lowest} to {highest}")
            return default
        return value

    def read_texts(
        self, name: str, *, most: int, allowed: frozenset[str] | None = None
    ) -> list[str]:
        """Return a member that is a list of strings."""
        value = self._body.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._add_problem(name, "must be a list of strings")
            return []
        if len(value) > most:
            self._add_problem(name, f"must have {most} items at most")
        if allowed is not None and not allowed.issuperset(value):
            self._add_problem(name, f"must hold only {', '.join(sorted(allowed))}")
        return value

    def read_mapping(self, name: str, *, most: int) -> dict[str, str]:
        """Return a member that maps strings to strings."""
        value = self._body.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            self._add_problem(name, "must map strings to strings")
            return {}
        if len(value) > most:
            self._add_problem(name, f"must have {most} entries at most")
        return value

    def read_attributes(self) -> dict[str, str]:
        """Return the member ``attributes``, whose keys and values have 1 KB at most together."""
        name, limit = "attributes", ATTRIBUTES_LIMIT_BYTES
        attributes = self.read_mapping(name, most=limit)
        size = utf8_size(*attributes, *attributes.values())
        if size is None:
            self._add_problem(name, "must be well-formed UTF-8")
        elif size > limit:
            self._add_problem(name, f"must have {limit} bytes at most, keys and values together")
        return attributes

    def raise_problems(self) -> None:
        """Raise one ``ValidationException`` that names every member with a problem, if any."""
        if self._problems:
            names = ", ".join(sorted({problem["name"] for problem in self._problems}))
            raise ServiceError(
                400,
                "ValidationException",
                f"Failed to validate: {names}",
                reason="FIELD_VALIDATION_FAILED",
                fieldList=self._problems,
            )

    def _add_problem(self, name: str, message: str) -> None:
        self._problems.append({"name": name, "message": message})


def read_token_request(
    body: Mapping[str, Any],
) -> tuple[Arn, str, frozenset[str], dict[str, str], int]:
    """Read room, user id, capabilities, attributes and minutes of a CreateChatToken request."""
    members = Members(body)
    room = members.read_arn("roomIdentifier")
    user_id = members.read_text("userId", required=True, shortest=1, longest=128)
    # The service model limits neither the list's length nor repeats.
    capabilities = members.read_texts("capabilities", most=1024, allowed=_CAPABILITIES)
    minutes = members.read_integer("sessionDurationInMinutes", 1, 180, _DEFAULT_MINUTES)
    attributes = members.read_attributes()
    members.raise_problems()
    return room, user_id, frozenset(capabilities), attributes, minutes


def read_room_arn(body: Mapping[str, Any]) -> Arn:
    """Read the ``identifier`` of a GetRoom or DeleteRoom request."""
    members = Members(body)
    arn = members.read_arn("identifier")
    members.raise_problems()
    return arn


def read_room_members(body: Mapping[str, Any]) -> dict[str, Any]:
    """Read the members of a CreateRoom request, with the defaults of those left out."""
    members = Members(body)
    found = {
        "name": members.read_text("name", longest=128, pattern=_ROOM_NAME),
        "maximumMessageRatePerSecond": members.read_integer(
            "maximumMessageRatePerSecond", 1, 100, 10
        ),
        "maximumMessageLength": members.read_integer("maximumMessageLength", 1, 500, 500),
        "messageReviewHandler": members.read_mapping("messageReviewHandler", most=2),
        "tags": members.read_mapping("tags", most=50),
        "loggingConfigurationIdentifiers": members.read_texts(
            "loggingConfigurationIdentifiers", most=3
        ),
    }
    members.raise_problems()
    return found


def read_event_request(body: Mapping[str, Any]) -> tuple[Arn, str, dict[str, str]]:
    """Read room, event name and attributes of a SendEvent request."""
    members = Members(body)
    room = members.read_arn("roomIdentifier")
    name = members.read_text("eventName", required=True, shortest=1, longest=100)
    attributes = members.read_attributes()
    members.raise_problems()
    return room, name, attributes


def read_deletion_request(body: Mapping[str, Any]) -> tuple[Arn, str, str]:
    """Read room, message id and reason of a DeleteMessage request."""
    members = Members(body)
    message_id = members.read_text(
        "id", required=True, shortest=12, longest=12, pattern=_MESSAGE_ID
    )
    room = members.read_arn("roomIdentifier")
    reason = members.read_text("reason", shortest=1, longest=256)
    members.raise_problems()
    return room, message_id, reason


def read_disconnection_request(body: Mapping[str, Any]) -> tuple[Arn, str, str]:
    """Read room, user id and reason of a DisconnectUser request."""
    members = Members(body)
    user_id = members.read_text("userId", required=True, shortest=1, longest=128)
    room = members.read_arn("roomIdentifier")
    reason = members.read_text("reason", shortest=1, longest=256)
    members.raise_problems()
    return room, user_id, reason


def utf8_size(*texts: str) -> int | None:
    """Return the size of texts in UTF-8 bytes; None for a lone surrogate, which JSON can hold."""
    try:
        return sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError:
        return None
