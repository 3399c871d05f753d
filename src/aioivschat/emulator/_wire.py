"""Requests to the model and its answers, as values that the servers turn into HTTP and back."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from aioivschat._clock import iso_utc

DEFAULT_REGION = "us-east-1"
DEFAULT_ACCOUNT = "123456789012"

_ID_ALPHABET = string.ascii_letters + string.digits
_ID_CHARACTERS = 12  # service model, ID


class ServiceError(Exception):
    """An error that the service answers with.

    Args:
        status: the HTTP status.
        code: the error's name in the service model, such as ``ResourceNotFoundException``.
        message: the message; nothing sensitive, except with the fault ``echo_user``.
        members: the error's other members in the service model.
    """

    def __init__(self, status: int, code: str, message: str, **members: Any) -> None:
        super().__init__(f"{code} ({status}): {message}")
        self.status = status
        self.code = code
        self.members = {"message": message, **members}


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the control plane.

    Args:
        operation: the operation's name, which is the path without its slash; empty if the request
            was not a POST.
        body: the body as received.
        region: the region of the SigV4 credential scope.
        account: the caller's account.
        denial: the error of a signature that is not good, by a server that checks signatures.
    """

    operation: str
    body: bytes = field(repr=False)
    region: str = DEFAULT_REGION
    account: str = DEFAULT_ACCOUNT
    denial: ServiceError | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response.

    Args:
        status: the HTTP status.
        headers: every header but those of the connection; without ``Date`` here, none is sent.
        body: the body as sent.
        delay: seconds to wait before sending.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    delay: float = 0.0

    def to_bytes(self) -> bytes:
        """Return the whole response, for a server whose framework would add headers of its own.

        Its ``Connection: close`` says that no other response follows.
        """
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.status != HTTPStatus.NO_CONTENT:
            lines.append(f"Content-Length: {len(self.body)}")
        lines += ["Connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.body


@dataclass(frozen=True, slots=True)
class Drop:
    """Reset the connection without an answer.

    Args:
        delay: seconds to wait before that.
    """

    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer; the connection stays open until the client closes it."""


Outcome = Answer | Drop | Hang


def region_of(authorization: str | None) -> str:
    """Return the region of a SigV4 ``Authorization`` header's credential scope.

    The scope is ``KEY/DATE/REGION/SERVICE/aws4_request``; without one, return us-east-1.
    """
    _, found, scope = (authorization or "").partition("Credential=")
    parts = scope.split("/", 4)
    return parts[2] if found and len(parts) == 5 else DEFAULT_REGION


def parse_json_object(body: bytes | str) -> dict[str, Any] | None:
    """Return the JSON object that a body holds, empty for an empty body; None for anything else."""
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def new_id() -> str:
    """Return an id of the form that IVS Chat makes: 12 letters and digits."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_CHARACTERS))


def iso_time(seconds: float) -> str:
    """Return wall seconds since the epoch in ISO 8601 with milliseconds and ``Z``."""
    return iso_utc(datetime.fromtimestamp(seconds, UTC))
