"""A prepared request has the outcome that the same request has in the general way."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.config import AioConfig

from aioivschat import AwsError, MalformedResponse, PoolPolicy, TokenRequest
from aioivschat._aws.clients import ClientPool, NewToken
from aioivschat._aws.http_session import HttpSession
from aioivschat._aws.requests import ClientCalls
from aioivschat._aws.signing import SigningClock
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from support.raw_servers import (
    BODY,
    DATE,
    REGION,
    SUCCESS,
    certificate,
    http,
    open_pool,
    raw_server,
    series,
    tls,
)
from support.services import ROOM, bare_session, until

REQUEST = TokenRequest(ROOM, "some user", {"SEND_MESSAGE"}, {"name": "some name"})
PREPARED, GENERAL = PoolPolicy(), PoolPolicy(prepared=False)
SHORT_TIMEOUTS: dict[str, Any] = {"connect_timeout": 0.2, "read_timeout": 0.2}


def _body_with(**members: object) -> bytes:
    return json.dumps(json.loads(BODY) | members).encode()


def _body_ending(text: object) -> bytes:
    return _body_with(tokenExpirationTime=text)


TIMES: tuple[object, ...] = (
    "2099-01-05T10:00:59Z",
    "2099-01-05T10:00:59.1Z",
    "2099-01-05T10:00:59.123456Z",
    "2099-01-05T10:00:59.1234567Z",
    "2099-01-05T10:00:59.Z",
    "2099-01-05T10:00:59,5Z",
    "2099-01-05T10:00:59.5z",
    "2099-01-05t10:00:59z",
    "2099-01-05T12:00:59+02:00",
    "2099-01-05T12:00:59.5+0200",
    "2099-01-05T10:00:59-00:00",
    "2099-01-05T10:00:59",
    "2099-01-05 10:00:59Z",
    "20990105T100059Z",
    "2099-W02-1T10:00:59Z",
    "2099-005T10:00:59Z",
    "2099-01-05T24:00:00Z",
    "2099-01-05T10:00:60Z",
    "2099-02-30T10:00:00Z",
    "0000-01-01T00:00:00Z",
    "0050-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
    "2099-01-05T10:00:59Z ",
    "2099-01-05T10:00:59Z\n",
    "\uff12\uff10\uff19\uff19-01-05T10:00:59Z",
    "2099-01-05",
    "Mon, 05 Jan 2099 10:00:59 GMT",
    "4071199259",
    4071199259,
    4071199259.25,
    1e300,
    -1,
    True,
    "",
    "soon",
    None,
    [],
    {},
)

BODIES = {
    "plain": BODY,
    "empty": b"",
    "UTF-16": BODY.decode().encode("utf-16"),
    "UTF-16, no mark": BODY.decode().encode("utf-16-le"),
    "byte order mark": b"\xef\xbb\xbf" + BODY,
    "not UTF-8": BODY.replace(b'"t"', b'"\xff"'),
    "white space around": b"\r\n " + BODY + b"\n\n",
    "more after it": BODY + b"{}",
    "cut off": BODY[:60],
    "duplicate keys": BODY[:-1] + b',"token":"last"}',
    "duplicate keys, the last null": BODY[:-1] + b',"token":null}',
    "extra members": _body_with(more={"deep": [1, None]}, ResponseMetadata={"RequestId": "mine"}),
    "nested a little": _body_with(more=json.loads("[" * 200 + "]" * 200)),
    "nested without end": BODY[:-1] + b',"more":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not a number": BODY[:-1] + b',"more":NaN}',
    "a list": b"[]",
    "a text": b'"token"',
    "null": b"null",
    "a number": b"7",
    "an error": b'{"__type":"ThrottlingException","message":"no"}',
    "no token": _body_with(token=None),
    "an empty token": _body_with(token=""),
    "a numeric token": _body_with(token=7),
    "a token in a list": _body_with(token=["t"]),
    "a token of a lone surrogate": _body_with(token="\ud800"),
    "a token of other letters": _body_with(token="ÄÖ中🎉"),
    "no session end": _body_with(sessionExpirationTime=None),
    "session end past": _body_with(sessionExpirationTime="2001-01-01T00:00:00Z"),
    **{f"ends {text!r}": _body_ending(text) for text in TIMES},
}

ANSWERS = {
    **{f"200, {name}": http(body) for name, body in BODIES.items()},
    "lower case, other case": SUCCESS.replace(b"x-amzn-RequestId", b"X-AMZN-REQUESTID"),
    "no request id": SUCCESS.replace(b"x-amzn-RequestId: r\r\n", b""),
    "another request id": SUCCESS.replace(b"x-amzn-RequestId", b"x-amz-request-id"),
    "another request id, no token": http(b"{}").replace(b"x-amzn-RequestId", b"x-amz-request-id"),
    "another request id, an empty token": http(_body_with(token="")).replace(
        b"x-amzn-RequestId", b"x-amz-request-id"
    ),
    "two request ids": http(BODY, "X-Amzn-RequestId: second"),
    "no date": http(_body_ending("2030-01-01T00:00:00Z")).replace(DATE.encode(), b"X: y"),
    "two dates": http(BODY, "Date: Mon, 05 Jan 2099 10:00:30 GMT"),
    "no date at all": SUCCESS.replace(DATE.encode(), b"Date: today"),
    "a header of other letters": http(BODY, "X-Event: Köln"),
    "a header that is not UTF-8": http(BODY, b"X-Event: K\xf6ln"),
    "a header that is not UTF-8, an error": http(b"{}", b"X: \xff", status="429 Slow Down"),
    "another content type": SUCCESS.replace(b"application/json", b"text/html; charset=utf-16"),
    "gzip": http(gzip.compress(BODY, mtime=0), "Content-Encoding: gzip"),
    "said to be gzip": http(BODY, "Content-Encoding: gzip"),
    "the last on its connection": http(BODY, "Connection: close"),
    "chunked": SUCCESS.partition(b"Content-Length")[0]
    + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    **{
        f"{status}, a token": http(BODY, status=status)
        for status in (
            *("201 Created", "202 Accepted", "206 Partial Content", "299 Odd"),
            *("300 Choices", "301 Moved", "302 Found", "304 Not Modified", "305 Use Proxy"),
            *("307 Temporary", "308 Permanent", "400 Bad", "404 Not Found", "429 Slow", "500 Oh"),
            *("503 Busy", "599 Odd", "600 Odder", "999 Oddest"),
        )
    },
    "204": http(b"", status="204 No Content"),
    **{
        f"{status}, an error": http(
            json.dumps({"__type": kind, "message": message, "resourceId": "r"}).encode(),
            "Retry-After: 7",
            status=f"{status} Error",
        )
        for status, kind, message in (
            (200, "ThrottlingException", "slow down"),
            (400, "ValidationException", "bad"),
            (400, "ThrottlingException", "slow down"),
            (403, "AccessDeniedException", "some user may not"),
            (403, "com.amazon#PendingVerification:http://x/", "wait"),
            (404, "ResourceNotFoundException", "no such room"),
            (418, "TeapotException", "short"),
            (429, "ThrottlingException", "slow down"),
            (500, "InternalServerException", "oh"),
            (503, "ServiceUnavailable", "busy"),
        )
    },
    "400, the kind in a header": http(
        b'{"message":"m"}', "x-amzn-errortype: ValidationException:http://x/", status="400 Bad"
    ),
    "429, XML": http(b"<Error><Code>Throttling</Code></Error>", status="429 Slow"),
    "503, XML": http(b"<html><b>Http/1.1 Service Unavailable</b></html>", status="503 Busy"),
    "500, not UTF-8": http(b"\xff\xfe", status="500 Oh"),
    "429, a date to retry after": http(
        b"", "Retry-After: Mon, 05 Jan 2099 10:00:09 GMT", status="429 Slow"
    ),
}


def _comparable(outcome: object) -> object:
    """Return a token, or all that distinguishes an error, for comparison."""
    if not isinstance(outcome, Exception):
        return outcome
    members: dict[str, Any] = vars(outcome)
    assert outcome.__cause__ is None
    assert outcome.__context__ is None
    names = [kind.__name__ for kind in type(outcome).__mro__]
    return names, outcome.args, str(outcome), members


async def _mint(pool: ClientPool) -> object:
    try:
        return await pool.mint(REGION, REQUEST)
    except Exception as error:
        return error


async def _mint_twice(pool: ClientPool) -> list[object]:
    """Mint twice: the second outcome shows in what state the first left the connection."""
    return [_comparable(await _mint(pool)) for _ in range(2)]


async def _mint_both_ways(
    answer: bytes | None,
    then: Callable[[asyncio.StreamWriter], None] | None = None,
    **policy: Any,
) -> list[object]:
    """Return the outcomes of two requests, after checking that both ways have the same ones."""
    outcomes, sent = [], []
    for prepared in (True, False):
        async with (
            raw_server(answer, then, successes_first=2) as server,
            open_pool(server.url, policy=PoolPolicy(prepared=prepared, **policy)) as (pool, why),
        ):
            learnt = [await _mint(pool) for _ in range(2)]
            assert [NewToken] * 2 == [type(one) for one in learnt]
            outcomes.append(await _mint_twice(pool))
            sent.append(len(server.seen))
            assert prepared is (1 == len(set(series(server.seen[1:4]))))
            assert [] == why
    assert outcomes[1] == outcomes[0]
    assert sent[1] == sent[0]
    # Two before and these two: aiohttp repeats no POST by itself.
    assert 4 == sent[0]
    return outcomes[0]


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_an_answer_has_the_outcome_that_aiobotocore_gives_it(answer: bytes) -> None:
    """Both ways give the same token or error for this answer."""
    await _mint_both_ways(answer)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_a_redirect_is_an_error_that_says_nothing_of_its_target(status: int) -> None:
    """Neither way goes there; of an answer that names it everywhere, the status is shown only."""
    async with raw_server() as target:
        headers = f"Location: {target.url}", f"x-amzn-errortype: To {target.url}"
        bodies = [json.dumps({"message": f"to {target.url}", "__type": "MovedException"}).encode()]
        bodies.append(f"<a href={target.url}>here</a>".encode())
        for body in bodies if status != 304 else [b""]:
            answer = http(body, *headers, status=f"{status} Moved")
            for outcome in await _mint_both_ways(answer):
                assert f"CreateChatToken: {status} ({status}): no message" in str(outcome)
                assert target.url.removeprefix("http://") not in str(outcome)
        assert [] == target.seen


def _reset_connection(writer: asyncio.StreamWriter) -> None:
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _close_connection(writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize("how", [_close_connection, _reset_connection])
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        SUCCESS[:-20],
        b"Hello\r\n\r\n",
        b"HTTP/1.1 200",
    ],
    ids=["nothing", "part of the headers", "part of the body", "no HTTP", "a status"],
)
async def test_a_broken_connection_has_the_same_name(
    answer: bytes, how: Callable[[asyncio.StreamWriter], None]
) -> None:
    """Both ways raise the same error if the connection ends before or within the answer."""
    await _mint_both_ways(answer, how)


async def test_a_late_answer_has_the_same_name() -> None:
    """``ReadTimeoutError`` in both ways, whether nothing or a part of the answer came."""
    assert ["ReadTimeoutError"] * 2 == _reasons(await _mint_both_ways(None, **SHORT_TIMEOUTS))
    part = SUCCESS[:-20]
    assert ["ReadTimeoutError"] * 2 == _reasons(await _mint_both_ways(part, **SHORT_TIMEOUTS))


async def test_a_cancelled_call_stays_cancelled() -> None:
    """A call that is cancelled while its answer is awaited ends as cancelled."""
    async with raw_server() as server, open_pool(server.url) as (pool, _):
        await pool.mint(REGION, REQUEST)
        server.answer = None
        minting = asyncio.create_task(pool.mint(REGION, REQUEST))
        await until(lambda: len(server.seen) == 2)
        minting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await minting


@pytest.mark.parametrize("policy", [PREPARED, GENERAL], ids=["prepared", "general"])
async def test_a_task_that_was_cancelled_before_has_its_timeout(policy: PoolPolicy) -> None:
    """A cancellation that was caught before the call is not taken for one during it."""
    async with raw_server() as server:
        short = replace(policy, **SHORT_TIMEOUTS)
        async with open_pool(server.url, policy=short) as (pool, _):
            for _ in range(2):
                await pool.mint(REGION, REQUEST)
            server.answer = None
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(1)
            assert ["ReadTimeoutError"] == _reasons([_comparable(await _mint(pool))])
            assert 0 == task.uncancel()


def _reasons(outcomes: Any) -> list[str]:
    return [members["reason"] for _, _, _, members in outcomes]


@pytest.fixture
def trusted_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a certificate that clients trust."""
    file = certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    return file


async def _failure_after_a_change(
    change: Callable[[int], AbstractAsyncContextManager[object]],
    context: ssl.SSLContext | None = None,
    **policy: Any,
) -> list[str]:
    """Return why connecting fails after the server was replaced: the same in both ways."""
    outcomes = []
    for prepared in (True, False):
        async with AsyncExitStack() as stack:
            async with raw_server(tls=context) as server:
                pool, why = await stack.enter_async_context(
                    open_pool(server.url, policy=PoolPolicy(prepared=prepared, **policy))
                )
                for _ in range(3):
                    await pool.mint(REGION, REQUEST)
                assert prepared is (1 == len(set(series(server.seen[1:]))))
                assert [] == why
            async with change(int(server.url.rpartition(":")[2])):
                # The first request may go over a connection that the old server is closing.
                outcomes.append((await _mint_twice(pool))[1:])
    assert outcomes[1] == outcomes[0]
    return _reasons(outcomes[0])


@asynccontextmanager
async def _no_server(port: int) -> AsyncIterator[None]:
    yield


async def test_a_refused_connection_has_the_same_name() -> None:
    """``EndpointConnectionError`` in both ways if nothing listens any more."""
    assert ["EndpointConnectionError"] == await _failure_after_a_change(_no_server)


@asynccontextmanager
async def _full_backlog(port: int) -> AsyncIterator[None]:
    """Listen with a full backlog and accept no connection."""
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            waiting = asyncio.ensure_future(loop.sock_connect(one, ("127.0.0.1", port)))
            await asyncio.wait([waiting], timeout=0.1)
            waiting.cancel()
            await asyncio.wait([waiting])
        yield


async def test_a_late_connection_has_the_same_name() -> None:
    """``ConnectTimeoutError`` in both ways if the server accepts no connection."""
    assert ["ConnectTimeoutError"] == await _failure_after_a_change(_full_backlog, **SHORT_TIMEOUTS)


@asynccontextmanager
async def _server_without_tls(port: int) -> AsyncIterator[None]:
    """Answer in the clear where TLS is expected."""

    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SUCCESS)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", port)
    yield
    server.close()


async def test_a_failure_of_tls_has_the_same_name(
    trusted_certificate: Path, tmp_path: Path
) -> None:
    """``SSLError`` in both ways for a certificate that is not trusted, and for no TLS at all."""
    (tmp_path / "other").mkdir()
    other = tls(certificate(tmp_path / "other"))
    for change in (
        lambda port: raw_server(port=port, tls=other),
        _server_without_tls,
    ):
        assert ["SSLError"] == await _failure_after_a_change(change, tls(trusted_certificate))


@pytest.mark.parametrize("retry_after", [None, "7", "soon"])
@pytest.mark.parametrize("kind", sorted(set(FaultKind) - {FaultKind.BLACK_HOLE}))
async def test_a_fault_of_the_emulator_is_the_same_either_way(
    ivschat_emulator: ThreadedEmulatorServer, kind: FaultKind, retry_after: str | None
) -> None:
    """Both ways have the same outcome but for ids and times.

    A black hole is left to the tests of late answers, whose timeouts are short.
    """
    outcomes = []
    for policy in (PREPARED, GENERAL):
        model = ivschat_emulator.emulator
        model.reset()
        async with open_pool(ivschat_emulator.url, policy=policy) as (pool, why):
            for _ in range(2):
                await pool.mint(REGION, REQUEST)
            model.fail_next(Fault(kind, retry_after=retry_after))
            outcomes.append(_timeless(await _mint(pool)))
            assert 3 == model.counts().requests
            assert [] == why
    assert outcomes[1] == outcomes[0]


async def test_a_quota_and_a_missing_room_are_the_same_either_way(
    ivschat_emulator: ThreadedEmulatorServer,
) -> None:
    """Both ways raise the same errors for a missing room and for a quota that is used up."""
    model = ivschat_emulator.emulator
    outcomes = []
    for policy in (PREPARED, GENERAL):
        async with open_pool(ivschat_emulator.url, policy=policy) as (pool, _):
            for _ in range(2):
                await pool.mint(REGION, REQUEST)
            model.configure(any_room=False)
            missing = await _mint(pool)
            model.reset()
            model.configure(quota="fixed:1")
            spent = [await _mint(pool) for _ in range(3)][-1]
            model.reset()
            assert ["ResourceNotFound", "Throttled"] == [
                type(error).__name__ for error in (missing, spent)
            ]
            outcomes.append([_timeless(missing), _timeless(spent)])
    assert outcomes[1] == outcomes[0]


def _timeless(outcome: object) -> object:
    """Return an outcome without the ids and times that differ each time."""
    if isinstance(outcome, NewToken):
        # Date leaves out a part of a second of the token's life.
        return type(outcome), round(outcome.life, -1)
    if not isinstance(outcome, AwsError | MalformedResponse):
        return _comparable(outcome)
    shown, request_id = repr(_comparable(outcome)), outcome.request_id
    assert request_id is None or request_id in shown
    return shown.replace(str(request_id), "<id>")


async def test_a_reply_is_the_clients_own() -> None:
    """Prepared calls return what the client returns, metadata included."""
    async with raw_server() as server:
        options: Any = {"region_name": REGION, "endpoint_url": server.url}
        options["config"] = AioConfig(http_session_cls=HttpSession)
        async with bare_session("testing", "testing").create_client("ivschat", **options) as client:
            told: list[str | None] = []
            clock = SigningClock(REGION)
            calls = ClientCalls(client, clock, prepared=True, on_change=told.append)
            replies = [await calls.create_chat_token(REQUEST) for _ in range(3)]
            assert 1 == len(set(series(server.seen[1:])))
    assert [replies[0]] * 2 == replies[1:]
    assert [] == told
