"""Connections: what nobody asked for is no answer, and a request goes to AWS alone."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import pickle
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aioivschat import AwsError, PoolPolicy, TokenRequest
from aioivschat._aws.clients import ClientPool
from support.raw_servers import BODY, REGION, certificate, http, open_pool, raw_server, tls
from support.services import ROOM, OpenService, until
from support.talking_server import TalkingServer, answer_with, talking_server

REQUEST = TokenRequest(ROOM, "some user", {"SEND_MESSAGE"}, {"name": "some name"})

STALE = answer_with("stale")


End = Callable[[asyncio.StreamWriter], object] | None


def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort() if writer.get_extra_info("ssl_object") else writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _finish(writer: asyncio.StreamWriter) -> None:
    # With TLS: the alert that says so, and then the end.
    writer.close()


WORDS: dict[str, tuple[bytes, End]] = {
    "an answer": (STALE, None),
    "two answers": (STALE * 2, None),
    "an answer and the end": (STALE, _finish),
    "a late refusal": (http(b"", "Connection: close", status="408 Request Timeout"), _finish),
    "half a head": (b"HTTP/1.1 403 Forbidden\r\nX-Rest: ", None),
    "half a body": (STALE[:-20], None),
    "an interim answer": (b"HTTP/1.1 103 Early Hints\r\n\r\n", None),
    "white space": (b"\r\n", None),
    "no HTTP": (b"\x00\xffwhat is this?\r\n\r\n", None),
    "the end": (b"", _finish),
    "an abrupt end": (b"", _close),
    "a reset": (b"", _reset),
}
"""What a server says unasked, and how it ends the connection."""


@pytest.fixture(params=[True, False], ids=["direct", "general"])
def policy(request: pytest.FixtureRequest) -> PoolPolicy:
    """One of the two ways."""
    return PoolPolicy(prepared=request.param)


@pytest.fixture(params=[False, True], ids=["plain", "TLS"])
def server_context(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """What a server with TLS needs, whose certificate clients trust; or None."""
    if not request.param:
        return None
    file = certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    return tls(file)


async def _mint(pool: ClientPool, server: TalkingServer) -> None:
    """Mint, and check that the answer is the one to this very request."""
    before = server.requests
    minted = await pool.mint(REGION, REQUEST)
    assert (f"{before + 1}", before + 1) == (minted.token.token, server.requests)


@pytest.mark.parametrize("read_bufsize", [1024, 65536])
async def test_a_connection_with_nothing_unasked_is_used_again(
    policy: PoolPolicy, server_context: Any, monkeypatch: pytest.MonkeyPatch, read_bufsize: int
) -> None:
    """One connection carries all, also after an answer for which reading was paused, and errors."""
    make_session: Any = aiohttp.ClientSession.__init__
    made = functools.partialmethod(make_session, read_bufsize=read_bufsize)
    monkeypatch.setattr(aiohttp.ClientSession, "__init__", made)
    with talking_server(server_context) as server:
        async with open_pool(server.url, policy=policy) as (pool, why):
            for _ in range(3):
                await _mint(pool, server)
            huge = http(BODY[:-1] + b',"more":"' + b"x" * 500_000 + b'"}')
            refusal = http(b'{"__type":"ThrottlingException"}', status="429 Too Many")
            for answer in (huge, refusal, http(b"", status="503 Busy")):
                server.split = lambda _, answer=answer: [answer]  # type: ignore[misc]  # a loop's
                with suppress(AwsError):
                    await pool.mint(REGION, REQUEST)
            server.split = lambda answer: [answer]
            await _mint(pool, server)
            assert [] == why
            assert (7, 1) == (server.requests, server.connected)


@pytest.mark.parametrize("blocked", [False, True], ids=["idle", "blocked"])
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
async def test_what_came_unasked_is_no_answer(
    policy: PoolPolicy, server_context: Any, words: tuple[bytes, End], blocked: bool
) -> None:
    """A connection on which something came while it was idle is not used, and no call fails.

    If the event loop was blocked meanwhile, the bytes are still in the kernel.
    """
    data, then = words
    with talking_server(server_context) as server:
        async with open_pool(server.url, policy=policy) as (pool, why):
            for _ in range(2):
                await _mint(pool, server)
            for _ in range(3):
                assert 1 == server.say(data, then=then)
                if not blocked:
                    for _ in range(5):
                        await asyncio.sleep(0)
                await _mint(pool, server)
            assert [] == why


SPLITS: dict[str, Callable[[bytes], list[bytes]]] = {
    "in one segment": lambda answer: [answer + STALE],
    "with the body": lambda answer: [answer[:-50], answer[-50:] + STALE],
    "in parts": lambda answer: [answer, STALE[:60], STALE[60:]],
    "after the head": lambda answer: [answer[:60], answer[60:-50], answer[-50:] + STALE[:-20]],
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
async def test_an_upstream_that_answers_twice_is_not_believed_twice(
    policy: PoolPolicy, server_context: Any, split: Callable[[bytes], list[bytes]]
) -> None:
    """Each call gets the answer to its own request, however the second one follows the first."""
    with talking_server(server_context) as server:
        async with open_pool(server.url, policy=policy) as (pool, why):
            server.split = split
            for _ in range(4):
                await _mint(pool, server)
                await until(lambda: server.answered == server.requests)
            assert [] == why


@pytest.mark.parametrize("first", [STALE[:40], b"\r\n"], ids=["half a head", "white space"])
async def test_the_rest_of_what_came_unasked_is_no_answer(
    policy: PoolPolicy, server_context: Any, first: bytes
) -> None:
    """A part is enough for a connection not to be used: the rest would come with an answer."""
    with talking_server(server_context) as server:
        async with open_pool(server.url, policy=policy) as (pool, why):
            for _ in range(2):
                await _mint(pool, server)
            server.say(first, then=None)
            for _ in range(5):
                await asyncio.sleep(0)
            before = server.connected
            rest = STALE.removeprefix(first)
            server.split = lambda answer: [
                (rest if server.connected == before else b"") + answer,
            ]
            await _mint(pool, server)
            assert [] == why


async def test_no_connection_of_many_is_used_on_which_something_came(
    policy: PoolPolicy,
) -> None:
    """As many as are idle may have a stale answer: all of them are closed."""
    with talking_server() as server:
        async with open_pool(server.url, policy=policy) as (pool, _):
            await asyncio.gather(*(pool.mint(REGION, REQUEST) for _ in range(8)))
            assert server.say(STALE, then=None) > 1
            for _ in range(3):
                await _mint(pool, server)


REDIRECTS = {
    300: "Multiple Choices",
    301: "Moved Permanently",
    302: "Found",
    303: "See Other",
    304: "Not Modified",
    305: "Use Proxy",
    306: "Switch Proxy",
    307: "Temporary Redirect",
    308: "Permanent Redirect",
}


def _redirects(status: int, target: str) -> Iterator[bytes]:
    """Answers that would lead to a target, in all ways; bodies and headers mention it."""
    line = f"{status} {REDIRECTS[status]} to {target}"
    members = {"__type": target, "message": f"go to {target}", "resourceId": target}
    bodies = [
        b"",
        json.dumps(members).encode(),
        json.dumps(members | {"__type": "ResourceNotFoundException"}).encode(),
        json.dumps(json.loads(BODY) | members).encode(),
        f"<html><a href='{target}'>Moved</a></html>".encode(),
    ]
    for body in [b""] if status == 304 else bodies:
        for location in (
            target,
            target.removeprefix("http:"),
            "/target",
            "?target",
            "odd://target",
        ):
            yield http(body, f"Location: {location}", f"x-amzn-errortype: {target}", status=line)
    yield http(b"", status=line)


@pytest.mark.parametrize("status", REDIRECTS)
async def test_no_redirect_is_followed_or_spoken_of(
    policy: PoolPolicy, status: int, log: io.StringIO
) -> None:
    """The other server gets nothing; the error names the status, and nothing of the target."""
    async with (
        raw_server() as other,
        raw_server(successes_first=2) as server,
        open_pool(server.url, policy=policy) as (pool, why),
    ):
        for _ in range(2):
            await pool.mint(REGION, REQUEST)
        target, requests = f"{other.url}/target", 2
        for server.answer in _redirects(status, target):
            requests += 1
            with pytest.raises(AwsError) as caught:
                await pool.mint(REGION, REQUEST)
            error = caught.value
            assert (AwsError, status, f"{status}") == (type(error), error.status, error.code)
            assert "r" == error.request_id
            assert error.__cause__ is None
            assert error.__context__ is None
            shown = f"{error!s} {error!r} {error.args} {vars(error)} {pickle.dumps(error)!r}"
            assert "target" not in shown + log.getvalue()
            assert other.url.rpartition(":")[2] not in shown + log.getvalue()
        assert (requests, []) == (len(server.seen), other.seen)
        assert [] == why


async def test_a_redirect_costs_one_request(open_service: OpenService, policy: PoolPolicy) -> None:
    """A service sends none again: the same would come of it."""
    async with raw_server() as other:
        answer = http(b"", f"Location: {other.url}/there", status="307 Temporary Redirect")
        async with raw_server(answer) as server:
            tokens = open_service(endpoint_url=server.url, pool=policy)
            with pytest.raises(AwsError, match="307"):
                await tokens.issue(REQUEST)
            assert (1, 0) == (len(server.seen), len(other.seen))
