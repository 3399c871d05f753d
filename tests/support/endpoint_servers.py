"""The token endpoint on real sockets, behind each of the web servers it is made for."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import aiohttp
import uvicorn
from aiohttp import web
from starlette.applications import Starlette

import aioivschat.aiohttp
import aioivschat.starlette
from aioivschat import AsyncTokenService, PoolPolicy, Quota, RetryPolicy, TokenRequest
from aioivschat._endpoint.endpoint import Endpoint
from aioivschat._endpoint.exchange import Received, Reply
from aioivschat.aiohttp import Ask, EndpointPolicy
from aioivschat.emulator import ThreadedEmulatorServer
from aioivschat.planning._virtual_time import minting_session
from support.services import ROOM, OpenService
from support.virtual import VirtualClock

GENEROUS = EndpointPolicy(per_user=None)
"""For tests that are not about rate limits."""

ONE_REQUEST = RetryPolicy(max_attempts=1)

Serve = Callable[..., AbstractAsyncContextManager[str]]
Mount = Callable[..., Any]


class Rule:
    """The rule of the tests' application: whoever names a user in ``X-User`` is that user.

    Attributes:
        banned: users who get nothing.
        capabilities: what everybody is granted.
        calls: how often the rule was asked.
    """

    def __init__(self) -> None:
        self.banned: set[str] = set()
        self.capabilities = {"SEND_MESSAGE", "DELETE_MESSAGE"}
        self.calls = 0

    async def __call__(self, request: Any, ask: Ask) -> TokenRequest | None:
        """Grant one room, a name of the user's choosing, and no other attribute."""
        self.calls += 1
        user = request.headers.get("X-User")
        if user is None or user in self.banned:
            return None
        wished = ask.attributes or {}
        attributes = {name: text for name, text in wished.items() if name == "displayName"}
        return TokenRequest(ROOM, user, self.capabilities, attributes)


@asynccontextmanager
async def serve_aiohttp(
    rule: Any, service: AsyncTokenService, policy: EndpointPolicy = GENEROUS
) -> AsyncIterator[str]:
    """Serve the endpoint with aiohttp; give its URL."""
    app = web.Application()
    aioivschat.aiohttp.setup(app, authorize=rule, service=service, policy=policy)
    async with running(app) as url:
        yield f"{url}/chat/token"


@asynccontextmanager
async def serve_starlette(
    rule: Any, service: AsyncTokenService, policy: EndpointPolicy = GENEROUS
) -> AsyncIterator[str]:
    """Serve the endpoint with Starlette on uvicorn; give its URL."""
    app = Starlette()
    aioivschat.starlette.setup(app, authorize=rule, service=service, policy=policy)
    async with running_asgi(app) as url:
        yield f"{url}/chat/token"


@asynccontextmanager
async def running(app: web.Application) -> AsyncIterator[str]:
    """Run an aiohttp application on a free port; give its URL."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class _Server(uvicorn.Server):
    """Ends as soon as it is told to: uvicorn itself looks ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait for the end."""
        await self.on_tick(0)  # for the headers of all answers
        await self.stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End without the pause that uvicorn makes for its connections, where there are none."""
        for _ in range(20):  # turns, in which it hears that its clients are gone
            if not self.server_state.connections:
                break
            await asyncio.sleep(0)
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
        await self.lifespan.shutdown()


@asynccontextmanager
async def running_asgi(app: Any) -> AsyncIterator[str]:
    """Run an ASGI application on a free port; give its URL."""
    # One that says TCP: asyncio then has no answer wait for the acknowledgment of its beginning.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    options = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1)
    server = _Server(options)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(10):
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop.set()
        await serving
        listener.close()


class HttpResponse:
    """A response that was read to its end."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> dict[str, Any]:
        """The members of the body."""
        members: dict[str, Any] = json.loads(self.body)
        return members


class Client:
    """A client of the endpoint; every request is its own connection attempt unless keyed.

    Args:
        session: sends the requests.
        url: the endpoint's URL.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def ask(
        self,
        body: Any = None,
        *,
        user: str | None = "alice",
        key: str | None = None,
        raw: Any = None,
        headers: dict[str, str] | None = None,
    ) -> HttpResponse:
        """Send a request; ``raw`` is sent as it is."""
        sent = {"Content-Type": "application/json"}
        if user is not None:
            sent["X-User"] = user
        if key is not None:
            sent["Idempotency-Key"] = key
        sent |= headers or {}
        data = json.dumps({} if body is None else body).encode() if raw is None else raw
        async with self._session.post(self.url, data=data, headers=sent) as response:
            return HttpResponse(response.status, response.headers, await response.read())


def assert_problem(answer: HttpResponse, status: int, name: str) -> None:
    """Check that a response is a problem of RFC 9457 with no further members."""
    problem = answer.json
    assert status == answer.status
    assert "application/problem+json" == answer.headers["Content-Type"]
    assert "no-store" == answer.headers["Cache-Control"]
    assert {"type", "title", "status", "detail", "instance"} == set(problem) - {"retryAfter"}
    assert f"urn:problem-type:aioivschat:{name}" == problem["type"]
    assert status == problem["status"]
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", problem["instance"])
    assert "Traceback" not in answer.body.decode()
    if "Retry-After" in answer.headers:
        assert str(problem["retryAfter"]) == answer.headers["Retry-After"]
        assert problem["retryAfter"] >= 1


async def open_busy_service(open_service: OpenService, rate: float) -> AsyncTokenService:
    """Return a service that has just used its only permit for a while."""
    service = open_service(quota=Quota(rate=rate), retry=ONE_REQUEST)
    await service.issue(TokenRequest(ROOM, "first"), fresh=True)
    return service


def count_requests(emulator: ThreadedEmulatorServer) -> int:
    """Return how many requests reached the emulator."""
    return emulator.emulator.counts().requests


def _watch_nobody(cancel: Callable[[], None]) -> Callable[[], None]:
    """Watch a client that does not disconnect."""
    return lambda: None


@dataclass(frozen=True)
class VirtualEndpoint:
    """An endpoint in virtual time, without a web server.

    Args:
        service: the service that it issues tokens by.
    """

    service: AsyncTokenService
    _endpoint: Endpoint[str]

    async def __call__(self, user: str, headers: Mapping[str, str] = MappingProxyType({})) -> Reply:
        """Ask for a token."""
        received = Received({"Content-Type": "application/json", **headers}, b"{}")
        return await self._endpoint.respond(self.service, user, received, _watch_nobody)


@asynccontextmanager
async def open_virtual_endpoint(
    policy: EndpointPolicy,
    quota: Quota = Quota(),  # noqa: B008 (frozen)
    host_ahead: float = 0.0,
) -> AsyncIterator[VirtualEndpoint]:
    """Open an endpoint in virtual time; AWS answers after 20 ms.

    The clock of its host may be some seconds ahead of AWS's.
    """

    async def rule(user: str, ask: Ask) -> TokenRequest | None:
        return TokenRequest(ROOM, user)

    clock, host_clock = VirtualClock(), VirtualClock()
    host_clock.step = host_ahead
    endpoint = Endpoint(rule, policy, ValueError, host_clock)
    async with AsyncTokenService(
        session=minting_session(clock, 0.02),
        endpoint_url="http://127.0.0.1",
        pool=PoolPolicy(prepared=False),
        quota=quota,
        clock=clock,
    ) as service:
        yield VirtualEndpoint(service, endpoint)
