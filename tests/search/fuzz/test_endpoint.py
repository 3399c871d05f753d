"""Random requests to the token endpoint: grants are kept, and every response is described."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from aiobotocore.session import AioSession
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.applications import Starlette

import aioivschat.starlette
from aioivschat import AsyncTokenService, PoolPolicy
from aioivschat._endpoint.exchange import BODY_MAX_BYTES
from support.endpoint_servers import GENEROUS, Rule, serve_aiohttp
from support.fuzzing import Target, bounded
from support.services import ROOM, UNLIMITED

Exchange = Callable[[list[tuple[bytes, bytes]], bytes], tuple[int, dict[str, str], bytes]]

_STATUSES = {200, 400, 403, 413, 415, 422}
"""The statuses of the endpoint's description that remain where AWS never fails."""


def _session(minted: list[dict[str, Any]]) -> AioSession:
    """Return a session whose clients mint in this process; requests are added to ``minted``."""

    async def create_chat_token(**members: Any) -> dict[str, Any]:
        minted.append(members)
        now = datetime.now(UTC)
        return {
            "token": f"token-{len(minted)}",
            "tokenExpirationTime": now + timedelta(seconds=60),
            "sessionExpirationTime": now + timedelta(hours=1),
        }

    @asynccontextmanager
    async def create_client(*_: object, **options: Any) -> AsyncIterator[SimpleNamespace]:
        meta = SimpleNamespace(endpoint_url=options["endpoint_url"])
        yield SimpleNamespace(meta=meta, create_chat_token=create_chat_token)

    session = AioSession()
    vars(session)["create_client"] = create_client
    return session


class _Endpoints:
    """The endpoint behind aiohttp on a socket, and as an ASGI application without a server."""

    def __init__(self) -> None:
        self.minted: list[dict[str, Any]] = []
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._runner.run(self._open())

    async def _open(self) -> None:
        service = await self._stack.enter_async_context(
            AsyncTokenService(
                session=_session(self.minted),
                endpoint_url="http://127.0.0.1",
                pool=PoolPolicy(prepared=False),
                quota=UNLIMITED,
            )
        )
        url = await self._stack.enter_async_context(serve_aiohttp(Rule(), service))
        self._port = int(url.split(":")[2].partition("/")[0])
        self._asgi = Starlette()
        aioivschat.starlette.setup(self._asgi, authorize=Rule(), service=service, policy=GENEROUS)

    def close(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    def aiohttp(
        self, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request to aiohttp over a new connection."""
        return self._runner.run(self._over_a_socket(headers, body))

    async def _over_a_socket(
        self, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        fixed = [
            (b"Host", b"127.0.0.1"),
            (b"Connection", b"close"),
            (b"Content-Length", b"%d" % len(body)),
        ]
        lines = [b"%s: %s\r\n" % header for header in [*fixed, *headers]]
        writer.write(b"POST /chat/token HTTP/1.1\r\n" + b"".join(lines) + b"\r\n" + body)
        try:
            async with asyncio.timeout(30):
                answer = await reader.read()
        finally:
            writer.close()
        head, _, content = answer.partition(b"\r\n\r\n")
        status, *rest = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in rest)
        return int(status.split()[1]), {name.lower(): value for name, _, value in pairs}, content

    def starlette(
        self, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Call the ASGI application as a server would."""
        return self._runner.run(self._called(headers, body))

    async def _called(
        self, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        half = len(body) // 2
        parts = [
            {"type": "http.request", "body": body[:half], "more_body": True},
            {"type": "http.request", "body": body[half:], "more_body": False},
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return parts.pop(0) if parts else await asyncio.Future()

        async def send(message: Any) -> None:
            sent.append(message)

        async with self._asgi.router.lifespan_context(self._asgi) as state:
            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": "POST",
                "path": "/chat/token",
                "raw_path": b"/chat/token",
                "query_string": b"",
                "scheme": "http",
                "headers": [(name.lower(), value) for name, value in headers],
                "state": dict(state or {}),
            }
            await self._asgi(scope, receive, send)
        start, *bodies = sent
        answered = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], answered, b"".join(part.get("body", b"") for part in bodies)


@cache
def _endpoints() -> _Endpoints:
    return _Endpoints()


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    """Close the endpoints if a test opened them."""
    yield
    if _endpoints.cache_info().currsize:
        _endpoints().close()
        _endpoints.cache_clear()


def check_exchange(server: str, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Send a request; check the response, and what was asked of AWS for it."""
    endpoints = _endpoints()
    endpoints.minted.clear()
    exchange: Exchange = getattr(endpoints, server)
    status, answered, content = exchange(headers, body)
    text = content.decode()
    assert "Traceback" not in text
    if status == 400 and answered["content-type"].startswith("text/plain"):
        return  # not valid HTTP: the web server itself refuses it
    assert status in _STATUSES
    assert "no-store" == answered["cache-control"]
    told = json.loads(text)
    if status != 200:
        assert "application/problem+json" == answered["content-type"]
        assert {"type", "title", "status", "detail", "instance"} == set(told)
        assert [] == endpoints.minted
        return
    users = [value for name, value in headers if name.lower() == b"x-user"]
    # aiohttp decodes headers as UTF-8, Starlette as Latin-1; both may strip white space.
    named = {
        text.strip(" \t")
        for user in users
        for text in (user.decode(errors="surrogateescape"), user.decode("latin-1"))
    }
    for members in endpoints.minted:
        assert ROOM == members["roomIdentifier"]
        assert members["userId"].strip(" \t") in named
        assert set(members.get("capabilities", [])) <= {"SEND_MESSAGE", "DELETE_MESSAGE"}
        assert set(members.get("attributes", {})) <= {"displayName"}
        assert 1 <= members["sessionDurationInMinutes"] <= 60
    assert len(endpoints.minted) <= 1  # none if an earlier request had the same key


_VALUES = st.binary(max_size=12).map(
    lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte != 0x7F)
)


def _header(name: bytes, *likely: bytes) -> st.SearchStrategy[list[tuple[bytes, bytes]]]:
    values = st.sampled_from(likely) | _VALUES
    return st.lists(values.map(lambda value: (name, value)), max_size=2)


_HEADERS = st.tuples(
    st.just([(b"X-User", b"alice")]) | _header(b"X-User", b"alice", b"bob", b"x" * 129),
    st.just([(b"Content-Type", b"application/json")])
    | _header(b"Content-Type", b"APPLICATION/JSON ; charset=x", b"text/plain", b"application/json"),
    _header(b"Idempotency-Key", b"k", b"x" * 256, b" ", b"a b"),
    _header(
        b"Prefer", b"wait=1", b"wait=0", "wait=\u0663".encode(), b'a; wait = "9" ,', b"wait=1e9"
    ),
    _header(b"Content-Encoding", b"identity", b"gzip"),
    _header(b"If-None-Match", b"*"),
).map(lambda parts: [header for part in parts for header in part])

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
_BODIES = st.one_of(
    st.just(b"{}"),
    st.binary(max_size=30),
    st.integers(BODY_MAX_BYTES - 1, BODY_MAX_BYTES + 2).map(lambda size: b"{}".ljust(size)),
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(["room", "roomIdentifier", "arn"], st.just(ROOM) | _JSON),
            **dict.fromkeys(["user", "userId"], st.sampled_from(["alice", "bob"]) | _JSON),
            "capabilities": st.lists(st.sampled_from(["SEND_MESSAGE", "DISCONNECT_USER"])) | _JSON,
            "attributes": st.dictionaries(st.sampled_from(["displayName", "x"]), st.text()) | _JSON,
            **dict.fromkeys(
                ["session_minutes", "durationInMinutes"], st.integers(0, 181) | st.floats() | _JSON
            ),
        },
    ).map(lambda members: json.dumps(members).encode()),
    _JSON.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
)


@pytest.mark.fault(26)
@pytest.mark.fault(27)
@pytest.mark.parametrize("server", ["aiohttp", "starlette"])
@bounded
@given(headers=_HEADERS, body=_BODIES)
@example([(b"X-User", b"\xff\xfe"), (b"Content-Type", b"application/json")], b"{}")
@example([(b"X-User", b" \xa0"), (b"Content-Type", b"application/json")], b"{}")
@example([(b"X-User", b"a"), (b"Content-Type", b"application/json")], b"[" * 4000)
@example([(b"X-User", b"a"), (b"Content-Type", b"application/json")], b'{"user": 1e999}')
@example([(b"X-User", b"a"), (b"Content-Type", b"application/json")], b"9" * 4096)
@example([(b"Content-Type", b"application/json"), (b"Content-Encoding", b"gzip")], b"{}")
@example([(b"Content-Encoding", b"deflate")], b"{}")
def test_any_request_has_an_answer_of_ours_and_no_more_than_its_grant(
    server: str, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """Each response is uncached JSON of a described status, and no token exceeds the grant."""
    check_exchange(server, headers, body)


def _body(server: str) -> Callable[[bytes], None]:
    headers = [(b"X-User", b"alice"), (b"Content-Type", b"application/json")]
    return lambda data: check_exchange(server, headers, data)


def _head(server: str) -> Callable[[bytes], None]:
    names = (b"X-User", b"Content-Type", b"Idempotency-Key", b"Prefer", b"Content-Encoding")

    def check(data: bytes) -> None:
        lines = [line for line in data.split(b"\n") if line]
        headers = [
            (names[line[0] % len(names)], line[1:].translate(None, b"\r\0")) for line in lines
        ]
        check_exchange(server, headers, b"{}")

    return check


TARGETS = {
    f"{server}-{part}": Target(make(server), seeds)
    for server in ("aiohttp", "starlette")
    for part, make, seeds in (
        (
            "body",
            _body,
            (
                f'{{"room": "{ROOM}", "capabilities": ["SEND_MESSAGE"]}}'.encode(),
                b'{"userId": "alice", "session_minutes": 5.0, "attributes": {"displayName": "x"}}',
            ),
        ),
        (
            "head",
            _head,
            (b"\0alice\n\1application/json; charset=utf-8\n\2key\n\3wait=3\n\4identity",),
        ),
    )
}
