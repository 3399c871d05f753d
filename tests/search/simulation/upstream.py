"""IVS Chat in memory: the emulator's model, spoken to without HTTP and parsed by botocore."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, auto
from functools import cache
from typing import Any

import botocore.session
from aiobotocore.session import AioSession
from botocore.errorfactory import ClientExceptionsFactory
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError
from botocore.parsers import ResponseParserFactory

from aioivschat import Clock
from aioivschat.emulator._model import Emulator
from aioivschat.emulator._wire import Answer as Response
from aioivschat.emulator._wire import Drop, Hang, Request
from aioivschat.planning._virtual_time import CreateChatToken, in_process_session

_URL = "http://127.0.0.1/"

Who = tuple[str, str, frozenset[str], tuple[tuple[str, str], ...], int]
"""What a token is for, as the wire has it: room, user, capabilities, attributes, minutes."""


class Fate(IntEnum):
    """What came of a request, as its client saw it."""

    OPEN = auto()  # nothing yet
    CUT = auto()  # its client was cancelled
    NO_ANSWER = auto()
    REFUSED = auto()
    THROTTLED = auto()
    FAILED = auto()
    ANSWERED = auto()


@dataclass(slots=True, eq=False)
class Sent:
    """A request as it was sent, and what came of it.

    Args:
        number: how many were sent before.
        region: of the client.
        who: what it asked for.
        at: when, by the host's monotonic clock.
        at_wall: when, by the host's wall clock.
        invalidations: how many there had been until then.
    """

    number: int
    region: str
    who: Who
    at: float
    at_wall: float
    invalidations: int = 0
    fate: Fate = Fate.OPEN


class Upstream:
    """Answers the clients of one service.

    Args:
        model: decides on answers.
        clock: of the host.
        read_timeout: seconds that a client waits for an answer.
        opening: seconds that it takes to open a client.
        on_send: told of each request when it is sent.

    Attributes:
        sent: all requests, in order.
        tokens: the request of each token that came, by token.
        fates: how many requests have each fate.
        unreachable: clients that cannot be opened before one can.
    """

    def __init__(
        self,
        model: Emulator,
        clock: Clock,
        read_timeout: float,
        opening: float,
        on_send: Callable[[Sent], None],
    ) -> None:
        self._model = model
        self._clock = clock
        self._read_timeout = read_timeout
        self._opening = opening
        self._on_send = on_send
        self.sent: list[Sent] = []
        self.tokens: dict[str, Sent] = {}
        self.fates = dict.fromkeys(Fate, 0)
        self.unreachable = 0

    def session(self) -> AioSession:
        """Return a session whose clients are answered here."""
        return in_process_session(self._open, _session())

    async def _open(self, region: str) -> CreateChatToken:
        await asyncio.sleep(self._opening)
        if self.unreachable:
            self.unreachable -= 1
            raise EndpointConnectionError(endpoint_url=_URL)

        async def create_chat_token(**members: Any) -> Mapping[str, Any]:
            clock = self._clock
            number = len(self.sent)
            sent = Sent(number, region, _who(members), clock.monotonic(), clock.wall())
            self.sent.append(sent)
            self._on_send(sent)
            try:
                return await self._answer(sent, members)
            except asyncio.CancelledError:
                sent.fate = Fate.CUT
                raise
            finally:
                self.fates[sent.fate] += 1

        return create_chat_token

    async def _answer(self, sent: Sent, members: Mapping[str, Any]) -> Mapping[str, Any]:
        request = Request("CreateChatToken", json.dumps(members).encode(), sent.region)
        outcome = self._model.respond(request)
        if isinstance(outcome, Hang) or outcome.delay > self._read_timeout:
            await asyncio.sleep(self._read_timeout)
            sent.fate = Fate.NO_ANSWER
            raise ReadTimeoutError(endpoint_url=_URL)
        await asyncio.sleep(outcome.delay)
        if isinstance(outcome, Drop):
            sent.fate = Fate.NO_ANSWER
            raise ConnectionClosedError(endpoint_url=_URL)
        sent.fate = _fate(outcome.status)
        reply = _parsed(outcome)
        if isinstance(reply.get("token"), str):
            self.tokens[reply["token"]] = sent
        return reply


def _fate(status: int) -> Fate:
    if status == 429:
        return Fate.THROTTLED
    if status >= 500:
        return Fate.FAILED
    return Fate.REFUSED if status >= 400 else Fate.ANSWERED


def _who(members: Mapping[str, Any]) -> Who:
    return (
        members["roomIdentifier"],
        members["userId"],
        frozenset(members.get("capabilities", ())),
        tuple(sorted(members.get("attributes", {}).items())),
        members["sessionDurationInMinutes"],
    )


@cache
def _session() -> AioSession:
    """Return the one session of all programs: making one takes longer than running a program."""
    return AioSession()


@cache
def _botocore() -> tuple[Any, Any, Any]:
    """Return botocore's parser, shape and errors: loading takes longer than 100 programs."""
    model = botocore.session.get_session().get_service_model("ivschat")
    parser = ResponseParserFactory().create_parser(model.metadata["protocol"])
    exceptions = ClientExceptionsFactory().create_client_exceptions(model)
    return parser, model.operation_model("CreateChatToken").output_shape, exceptions


def _parsed(response: Response) -> dict[str, Any]:
    parser, shape, exceptions = _botocore()
    headers = {name.lower(): value for name, value in response.headers.items()}
    parsed: dict[str, Any] = parser.parse(
        {"status_code": response.status, "headers": headers, "body": response.body}, shape
    )
    if response.status >= 300:
        raise exceptions.from_code(parsed["Error"]["Code"])(parsed, "CreateChatToken")
    return parsed
