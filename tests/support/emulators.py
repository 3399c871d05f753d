"""What tests of the emulator share: clocks, requests to the model, and clients of its servers."""

from __future__ import annotations

import json
from typing import Any

from aiobotocore.session import get_session
from botocore.config import Config
from botocore.loaders import create_loader

from aioivschat.emulator import Answer, Emulator, Request

START = 1_800_000_000.0  # 2027-01-15T08:00:00Z
ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/AbCdEf123456"
EUROPE = "arn:aws:ivschat:eu-west-1:123456789012:room/AbCdEf123456"
TOKEN_REQUEST = {"roomIdentifier": ROOM, "userId": "alice"}

_LOADER = create_loader()
"""It reads each file once: reading what botocore knows of AWS is most of what a client costs."""


class SteppedTime:
    """Two clocks that stand still until a test sets ``passed``, in seconds."""

    def __init__(self) -> None:
        self.passed = 0.0

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return START + self.passed

    def monotonic(self) -> float:
        """Return the seconds that passed."""
        return self.passed


def token_request(region: str = "us-east-1", **members: Any) -> Request:
    """Return a CreateChatToken request, valid but for the members given."""
    return Request("CreateChatToken", json.dumps({**TOKEN_REQUEST, **members}).encode(), region)


def answer(emulator: Emulator, request: Request | None = None) -> Answer:
    """Return the answer to a request, by default a valid one for a token."""
    outcome = emulator.respond(request or token_request())
    assert isinstance(outcome, Answer)
    return outcome


def statuses(emulator: Emulator, requests: int) -> list[int]:
    """Return the statuses of so many requests for a token."""
    return [answer(emulator).status for _ in range(requests)]


def members(of: Answer) -> Any:
    """Return the value of an answer's JSON."""
    return json.loads(of.body)


def client_of(
    url: str,
    *,
    secret: str = "testing",
    region: str = "us-east-1",
    read_timeout: float = 0.5,
    **more: Any,
) -> Any:
    """Return a context manager of an aiobotocore client that sends each request once."""
    session: Any = get_session()
    session.register_component("data_loader", _LOADER)
    return session.create_client(
        "ivschat",
        region_name=region,
        endpoint_url=url,
        aws_access_key_id="testing",
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}, read_timeout=read_timeout),
        **more,
    )
