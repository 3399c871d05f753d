"""Failures are the same by bare aiobotocore, by the general way and by the prepared way."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import product
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from botocore.exceptions import ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotocoreConnectionError

from aioivschat import (
    AccessDenied,
    AwsError,
    ConnectionFailed,
    PoolPolicy,
    ResourceNotFound,
    ServerFault,
    Throttled,
    TokenRequest,
    ValidationFailed,
)
from support.raw_servers import REGION, SUCCESS, RawServer, http, open_pool, raw_server, series
from support.services import ROOM, bare_session

REQUEST = TokenRequest(ROOM, "some user", {"SEND_MESSAGE"}, {"name": "some name"})

STATUSES = 403, 404, 429, 500, 503

CLASSES: dict[object, type[AwsError]] = {
    "AccessDeniedException": AccessDenied,
    "ResourceNotFoundException": ResourceNotFound,
    "ThrottlingException": Throttled,
    "ValidationException": ValidationFailed,
    403: AccessDenied,
    404: ResourceNotFound,
    429: Throttled,
    500: ServerFault,
    503: ServerFault,
}
"""Our class of an error: by AWS's code, else by the status."""


def _error_body(kind: str, message: str = "No.") -> bytes:
    return json.dumps({"__type": kind, "message": message, "resourceId": "r"}).encode()


READABLE = {
    "denied": _error_body("AccessDeniedException"),
    "no room": _error_body("ResourceNotFoundException"),
    "throttled": _error_body("ThrottlingException"),
    "a code of a namespace": _error_body("com.amazon.coral#ThrottlingException:http://x/"),
    "an unknown code": _error_body("TeapotException"),
    "no code": b'{"message": "No."}',
    "an empty object": b"{}",
    "HTML": b"<html><body>No.</body></html>",
    "XML": b"<Error><Code>Throttling</Code></Error>",
    "empty": b"",
    "cut off": _error_body("ThrottlingException")[:-10],
    "huge": _error_body("ThrottlingException", "x" * 5_000_000),
    "huge HTML": b"<p>" * 1_700_000,
}
"""Bodies of refusals that aiobotocore makes an error of."""

UNREADABLE = {
    "a list": b"[]",
    "a text": b'"No."',
    "a number": b"7",
    "null": b"null",
    "not UTF-8": b"\xff\xfe",
    "nested without end": b"[" * 100_000,
}
"""Those over which it stumbles: it raises an ``AttributeError``, say, and drops the status."""

Ask = Callable[[], Awaitable[object]]


@asynccontextmanager
async def _all_ways(server: RawServer, **limits: Any) -> AsyncIterator[dict[str, Ask]]:
    """Open a client for each way, and send what each needs to know its way."""
    config = AioConfig(retries={"total_max_attempts": 1, "mode": "standard"}, **limits)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            bare_session("testing", "testing").create_client(
                "ivschat", region_name=REGION, endpoint_url=server.url, config=config
            )
        )
        ways: dict[str, Ask] = {"bare": lambda: client.create_chat_token(**REQUEST.as_members())}
        for name, prepared in (("direct", True), ("general", False)):
            policy = PoolPolicy(prepared=prepared, **limits)
            pool, _ = await stack.enter_async_context(open_pool(server.url, policy=policy))
            ways[name] = lambda pool=pool: pool.mint(REGION, REQUEST)  # type: ignore[misc]  # a loop's
        for ask in ways.values():
            await ask()
            await ask()
        yield ways


async def _failure(ask: Ask) -> Exception:
    try:
        return pytest.fail(f"it succeeded: {await ask()}")
    except Exception as error:
        return error


def _facts(error: Exception) -> object:
    """Return what is to be the same, whoever raises the error."""
    if isinstance(error, ConnectionFailed):
        return error.reason
    if isinstance(error, HTTPClientError | BotocoreConnectionError):
        return type(error).__name__
    assert isinstance(error, ClientError)
    response: Any = error.response
    metadata = response["ResponseMetadata"]
    return (
        response["Error"]["Code"],
        response["Error"]["Message"],
        *map(metadata.get, ("RequestId", "HTTPStatusCode", "RetryAttempts")),
        # The session's own class, of which ours is too: `except client.exceptions.X`.
        {kind.__name__ for kind in type(error).__mro__ if kind.__name__.endswith("Exception")},
    )


def _check_class(error: Exception, status: int) -> None:
    """Check the class of an error of ours, and its own members."""
    assert isinstance(error, AwsError)
    kind = CLASSES.get(error.code) or CLASSES[status]
    assert isinstance(error, kind)
    assert (status, error.response["ResponseMetadata"].get("RequestId")) == (
        error.status,
        error.request_id,
    )
    assert (7.0 if kind in (Throttled, ServerFault) else None) == getattr(
        error, "retry_after", None
    )


async def test_a_refusal_is_the_same_by_all_ways() -> None:
    """Code, message and metadata are aiobotocore's by both ways; the class is ours and the same."""
    differences = []
    async with raw_server() as server, _all_ways(server) as ways:
        for (name, body), status in product(READABLE.items(), STATUSES):
            if len(body) > 1_000_000 and status not in (403, 503):
                continue
            server.answer = http(body, "Retry-After: 7", status=f"{status} No")
            server.seen.clear()
            errors = [await _failure(ask) for ask in ways.values()]
            facts = [_facts(error) for error in errors]
            if not (facts[0] == facts[1] == facts[2] and 3 == len(server.seen)):
                differences.append((name, status))
            for error in errors[1:]:
                _check_class(error, status)
    assert [] == differences


async def test_a_refusal_that_cannot_be_read_is_known_by_its_status() -> None:
    """aiobotocore stumbles; both ways raise what the status says, with id and ``Retry-After``."""
    async with raw_server() as server, _all_ways(server) as ways:
        for body, status in product(UNREADABLE.values(), STATUSES):
            server.answer = http(body, "Retry-After: 7", status=f"{status} No")
            errors = [await _failure(ask) for ask in ways.values()]
            assert not isinstance(errors[0], ClientError)
            expected = (f"{status}", "", "r", status, 0, {"Exception", "BaseException"})
            assert [expected] * 2 == [_facts(error) for error in errors[1:]]
            for error in errors[1:]:
                _check_class(error, status)


def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


REFUSAL = http(READABLE["throttled"], status="429 Too Many")

BREAKS = {
    "before the head": b"",
    "in the status": b"HTTP/1.1 4",
    "in the head": REFUSAL[:40],
    "after the head": REFUSAL[: REFUSAL.index(b"\r\n\r\n") + 4],
    "in the body": REFUSAL[:-10],
    "in the body of a success": SUCCESS[:-10],
    "after what is no HTTP": b"Hello\r\n\r\n",
    **{
        f"in a body of {status}, said to be longer": http(
            READABLE["throttled"], "Content-Length: 999", status=f"{status} No"
        )
        for status in STATUSES
    },
}


async def test_a_broken_answer_is_the_same_by_all_ways() -> None:
    """Wherever the connection ends, the error has aiobotocore's name, and one request was sent."""
    differences = []
    async with raw_server() as server, _all_ways(server) as ways:
        for (name, server.answer), server.then in product(BREAKS.items(), (_close, _reset)):
            server.seen.clear()
            errors = [await _failure(ask) for ask in ways.values()]
            facts = [_facts(error) for error in errors]
            if not (facts[0] == facts[1] == facts[2] and 3 == len(server.seen)):
                differences.append((name, server.then.__name__, facts))
            assert [ConnectionFailed] * 2 == [type(error) for error in errors[1:]]
    assert [] == differences


async def test_a_black_hole_is_the_same_by_all_ways() -> None:
    """``ReadTimeoutError``, whether nothing or a part of an answer came."""

    async def ask_all(part: bytes | None) -> None:
        async with (
            raw_server() as server,
            _all_ways(server, connect_timeout=0.4, read_timeout=0.4) as ways,
        ):
            server.answer = part
            errors = await asyncio.gather(*(_failure(ask) for ask in ways.values()))
            assert ["ReadTimeoutError"] * 3 == [_facts(error) for error in errors]

    async with asyncio.TaskGroup() as group:
        for part in (None, b"", REFUSAL[:40], REFUSAL[:-10]):
            group.create_task(ask_all(part))


async def test_a_refused_connection_is_the_same_by_all_ways() -> None:
    """``EndpointConnectionError`` where nothing listens any more."""
    async with AsyncExitStack() as stack:
        async with raw_server() as server:
            ways = await stack.enter_async_context(_all_ways(server))
        for ask in ways.values():
            await _failure(ask)  # over the connection that was just closed
        errors = [await _failure(ask) for ask in ways.values()]
        assert ["EndpointConnectionError"] * 3 == [_facts(error) for error in errors]


async def test_the_ways_are_what_they_are_called() -> None:
    """The prepared way's requests follow one pattern, those of the others do not."""
    async with raw_server() as server, _all_ways(server) as ways:
        for name, ask in ways.items():
            server.seen.clear()
            for _ in range(3):
                await ask()
            assert (name == "direct") is (1 == len(set(series(server.seen))))


@pytest.mark.parametrize(
    "answer",
    [SUCCESS, REFUSAL, http(b"[]", status="500 No"), http(b"", status="503 No"), SUCCESS[:-10]],
    ids=["success", "refusal", "unreadable", "empty", "broken"],
)
async def test_who_listens_after_a_call_is_told_the_same(answer: bytes) -> None:
    """``after-call`` and ``after-call-error`` come as often, and with the same, as of the bare."""
    told: list[tuple[str, object]] = []

    def listen(event_name: str, **members: Any) -> None:
        response, parsed = members.get("http_response"), members.get("parsed")
        what = type(members.get("exception")).__name__
        told.append((event_name, (what, parsed, response and response.status_code)))

    def session() -> Any:
        made: Any = bare_session("testing", "testing")
        for stage in ("after-call", "after-call-error"):
            made.register(f"{stage}.ivschat.CreateChatToken", listen)
        return made

    then = _close if answer == SUCCESS[:-10] else None
    config = AioConfig(retries={"total_max_attempts": 1, "mode": "standard"})
    async with raw_server(answer, then) as server:
        async with session().create_client(
            "ivschat", region_name=REGION, endpoint_url=server.url, config=config
        ) as client:
            await asyncio.gather(
                client.create_chat_token(**REQUEST.as_members()), return_exceptions=True
            )
        by_the_bare, told[:] = [*told], []
        async with open_pool(server.url, session()) as (pool, _):
            await asyncio.gather(pool.mint(REGION, REQUEST), return_exceptions=True)
    assert 1 == len(told)
    assert by_the_bare == told
