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
from ._wire import ServiceError, new_id


def edge_error(status: int, message: str) -> ServiceError:
    """Return an error of the chat edge, with one of the API reference's error codes.

    The message says what is wrong, without any value that was sent.
    """
    return ServiceError(status, HTTPStatus(status).phrase, message)


class ChatRequest:
    """A request that came over a connection; its members are checked as they are read.

    A null counts as absent: the SDK lets optional members be null.
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

    def read_required_text(self, name: str, longest: int) -> str:
        """Return a string of at least one code point, or raise as `read_text`, 400 without one."""
        text = self.read_text(name, longest)
        if not text:
            raise edge_error(400, f"{name} must be given")
        return text

    def read_text(self, name: str, longest: int) -> str:
        """Return a string, empty if there is none.

        Raises:
            ServiceError: 400 if it is not text, 413 for more than ``longest`` code points.
        """
        value = self._members.get(name)
        if value is None:
            return ""
        if not isinstance(value, str) or utf8_size(value) is None:
            raise edge_error(400, f"{name} must be a string of well-formed UTF-8")
        if len(value) > longest:
            raise edge_error(413, f"{name} must have {longest} characters at most")
        return value

    def read_attributes(self) -> dict[str, str]:
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
        size = utf8_size(*value, *value.values())
        if size is None:
            raise edge_error(400, "Attributes must be well-formed UTF-8")
        if size > ATTRIBUTES_LIMIT_BYTES:
            raise edge_error(413, f"Attributes must have {ATTRIBUTES_LIMIT_BYTES} bytes at most")
        return value


def make_frame(kind: str, identifier: str, request_id: str | None, **members: object) -> str:
    """Write a frame to a client: a MESSAGE, an EVENT or an ERROR."""
    # The SDK accepts a request id that is text or absent, but no null.
    named = {} if request_id is None else {"RequestId": request_id}
    return json.dumps({"Type": kind, "Id": identifier, **named, **members}, separators=(",", ":"))


def error_frame(error: ServiceError, request_id: str | None = None) -> str:
    """Write an ERROR, for the client whose request it answers."""
    message = error.members["message"]
    return make_frame("ERROR", new_id(), request_id, ErrorCode=error.status, ErrorMessage=message)
