"""The frames of the chat edge: reads requests, writes messages, events and errors.

Source: IVS Chat Messaging API Reference; where it leaves something open, what the official
JavaScript SDK, amazon-ivs-chat-messaging 1.1.1, sends and accepts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from ._validation import ATTRIBUTES_LIMIT_BYTES, utf8_size
from ._wire import ServiceError, iso_time, new_id

_REASON_LIMIT_CHARACTERS = 256  # characters (service model, Reason)
_ID_LIMIT_CHARACTERS = 128  # characters (service model, UserID; a message id is shorter)


def edge_error(status: int, message: str) -> ServiceError:
    """Return an error of the chat edge, where errors have a number and no name.

    Args:
        status: one of the API reference's error codes.
        message: what is wrong, without any value that was sent.
    """
    return ServiceError(status, HTTPStatus(status).phrase, message)


class ChatRequest:
    """A request that came over a connection; its members are checked as they are read.

    A null counts as absent: the SDK lets optional members be null.

    Args:
        members: the frame's JSON object.
    """

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members = members

    @property
    def action(self) -> str:
        """The ``Action``; empty if it is not text."""
        action = self._members.get("Action")
        return action if isinstance(action, str) else ""

    @property
    def request_id(self) -> str | None:
        """The client's id for the request; None without one that a frame can repeat."""
        value = self._members.get("RequestId")
        return value if isinstance(value, str) and utf8_size(value) is not None else None

    def check_request_id(self) -> None:
        """Raise a 400 for a request id that no frame can repeat."""
        if self._members.get("RequestId") is not None and self.request_id is None:
            raise edge_error(400, "RequestId must be a string")

    def content(self, longest: int) -> str:
        """Return a message's content.

        Raises:
            ServiceError: 400 without content, 413 for more than ``longest`` code points.
        """
        return self._required("Content", longest)

    def message_id(self) -> str:
        """Return the id of the message to delete.

        Raises:
            ServiceError: 400 without an id, 413 for one of more than 128 characters.
        """
        return self._required("Id", _ID_LIMIT_CHARACTERS)

    def user_id(self) -> str:
        """Return the id of the user to disconnect.

        Raises:
            ServiceError: 400 without an id, 413 for one of more than 128 characters.
        """
        return self._required("UserId", _ID_LIMIT_CHARACTERS)

    def reason(self) -> str:
        """Return why a user is disconnected or a message deleted; empty if no reason is given.

        Raises:
            ServiceError: 400 if it is not text, 413 for more than 256 characters.
        """
        return self._text("Reason", _REASON_LIMIT_CHARACTERS)

    def attributes(self) -> dict[str, str]:
        """Return a message's attributes.

        The API reference sets no limit; 1 KB is the limit of all other attributes.

        Raises:
            ServiceError: 400 unless they map strings to strings, 413 for more than 1 KB.
        """
        value = self._members.get("Attributes")
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise edge_error(400, "Attributes must map strings to strings")
        sizes = [utf8_size(text) for entry in value.items() for text in entry]
        if None in sizes:
            raise edge_error(400, "Attributes must be well-formed UTF-8")
        if sum(filter(None, sizes)) > ATTRIBUTES_LIMIT_BYTES:
            raise edge_error(413, f"Attributes must have {ATTRIBUTES_LIMIT_BYTES} bytes at most")
        return value

    def _required(self, name: str, longest: int) -> str:
        text = self._text(name, longest)
        if not text:
            raise edge_error(400, f"{name} must be given")
        return text

    def _text(self, name: str, longest: int) -> str:
        value = self._members.get(name)
        if value is None:
            return ""
        if not isinstance(value, str) or utf8_size(value) is None:
            raise edge_error(400, f"{name} must be a string of well-formed UTF-8")
        if len(value) > longest:
            raise edge_error(413, f"{name} must have {longest} characters at most")
        return value


def message_frame(
    message_id: str,
    content: str,
    attributes: Mapping[str, str],
    *,
    user_id: str,
    user_attributes: Mapping[str, str],
    request_id: str | None,
    now: float,
) -> str:
    """Write a MESSAGE; ``now`` is when the service received it, in wall seconds."""
    return _frame(
        "MESSAGE",
        message_id,
        request_id,
        Content=content,
        SendTime=iso_time(now),
        Attributes=attributes,
        Sender={"UserId": user_id, "Attributes": user_attributes},
    )


def event_frame(
    event_id: str, name: str, attributes: Mapping[str, str], *, request_id: str | None, now: float
) -> str:
    """Write an EVENT; ``now`` is when it happened, in wall seconds."""
    return _frame(
        "EVENT",
        event_id,
        request_id,
        EventName=name,
        SendTime=iso_time(now),
        Attributes=attributes,
    )


def error_frame(error: ServiceError, request_id: str | None = None) -> str:
    """Write an ERROR, for the client whose request it answers."""
    return _frame(
        "ERROR",
        new_id(),
        request_id,
        ErrorCode=error.status,
        ErrorMessage=error.members["message"],
    )


def _frame(kind: str, identifier: str, request_id: str | None, **members: object) -> str:
    # The SDK accepts a request id that is text or absent, but no null.
    named = {} if request_id is None else {"RequestId": request_id}
    return json.dumps({"Type": kind, "Id": identifier, **named, **members}, separators=(",", ":"))
