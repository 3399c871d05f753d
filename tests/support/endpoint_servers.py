"""The token endpoint on real sockets, behind each of the web servers it is made for."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import uvicorn
from aiohttp import web
from starlette.applications import Starlette

import aioivschat.aiohttp
import aioivschat.starlette
from aioivschat import AsyncTokenService, TokenRequest
from aioivschat.aiohttp import Ask, EndpointPolicy
from support.services import ROOM

GENEROUS = EndpointPolicy(per_user=None)
"""For tests that are not about anybody's share."""

Serve = Callable[..., AbstractAsyncContextManager[str]]


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


@asynccontextmanager
async def running_asgi(app: Any) -> AsyncIterator[str]:
    """Run an ASGI application on a free port; give its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    options = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(options)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(10):
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        listener.close()


class Answer:
    """What a server answered."""

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
    ) -> Answer:
        """Send a request; ``raw`` is sent as it is."""
        sent = {"Content-Type": "application/json"}
        if user is not None:
            sent["X-User"] = user
        if key is not None:
            sent["Idempotency-Key"] = key
        sent |= headers or {}
        data = json.dumps({} if body is None else body).encode() if raw is None else raw
        async with self._session.post(self.url, data=data, headers=sent) as response:
            return Answer(response.status, response.headers, await response.read())
