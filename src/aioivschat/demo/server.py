"""The demo: an emulator, the token endpoint, and a page with two people in one room.

One web server has it all, the chat edge too, so that the page needs nothing from another origin.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any, Self

import aiohttp
from aiohttp import web

from aioivschat._events import AttemptFailed, Event, Minted
from aioivschat._models import Capability, ChatToken, TokenRequest
from aioivschat._service.limiter import Quota
from aioivschat._service.service import AsyncTokenService
from aioivschat.aiohttp import Ask, setup
from aioivschat.emulator import Emulator, QuotaShape, ThreadedEmulatorServer
from aioivschat.emulator._edge import ChatEdge
from aioivschat.errors import ChatTokenError, DeadlineExceeded, Overloaded

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Demo"

PEOPLE: Mapping[str, frozenset[str]] = {
    "host": frozenset(Capability),
    "viewer": frozenset({Capability.SEND_MESSAGE}),
}
"""Who the page's two people are, and what each may do."""

CROWD_MAX = 200
"""Viewers of the crowd at once: at the demo's own pace, twenty seconds of queue."""

_WHO = "Demo-Person"
"""The header that says which of the two asks. A page from elsewhere cannot send it."""

_TOKEN_PATH = "/chat/token"  # noqa: S105 (a path)
_LATENCY = 0.03  # seconds; about what a region nearby takes
_PATIENCE = 8.0  # seconds; the endpoint's own
_ASKS_TWICE = 5  # one viewer in so many
_GRACE = 0.5  # seconds for requests under way when the demo ends

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_FILES = {
    "/": ("demo.html", "text/html"),
    "/demo.css": ("demo.css", "text/css"),
    "/demo.js": ("demo.js", "text/javascript"),
    "/demo.svg": ("demo.svg", "image/svg+xml"),
}


async def run_demo(
    session: Any, *, host: str, port: int, rate: float, ready: Callable[[str], None]
) -> None:
    """Run the demo until it is cancelled.

    Args:
        session: an AWS session with any credentials, for the emulator.
        host: the address to listen on.
        port: the port to listen on; 0 for one that is free.
        rate: tokens a second that the emulator allows; small, so that there is a queue to see.
        ready: called with the page's URL once it is there.

    Raises:
        OSError: the address cannot be listened on.
    """
    pace = _Pace()
    emulator = Emulator(quota=QuotaShape("bucket", rate, max(1.0, rate)), latency=_LATENCY)
    # A thread of its own: the emulator answers while this loop is busy, as AWS would.
    with ThreadedEmulatorServer(emulator) as server:
        service = AsyncTokenService(
            session=session, endpoint_url=server.url, quota=Quota(rate=rate), observers=[pace]
        )
        async with service, Crowd(service, server.edge_url) as crowd:
            demo = _Demo(service, emulator, crowd, pace, rate)
            runner = web.AppRunner(demo.application(), access_log=None, shutdown_timeout=_GRACE)
            await runner.setup()
            try:
                await web.TCPSite(runner, host, port).start()
                ready(_url(host, runner.addresses[0][1]))
                await asyncio.Event().wait()
            finally:
                await runner.cleanup()


def _url(host: str, port: int) -> str:
    # Where it listens everywhere, this machine is the one that surely reaches it.
    name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


class _Pace:
    """Counts the requests of the last second, as the quota does."""

    def __init__(self) -> None:
        self._sent: deque[float] = deque(maxlen=10_000)

    def __call__(self, event: Event, /) -> None:
        """Take note of an answered request, by when it was sent."""
        if isinstance(event, Minted | AttemptFailed):
            self._sent.append(time.monotonic() - event.seconds)

    def rate(self) -> int:
        """Return how many requests were sent in the last second."""
        since = time.monotonic() - 1.0
        return sum(sent > since for sent in self._sent)


class Crowd:
    """Viewers who come all at once, each with a token and a connection of its own.

    Args:
        service: issues the tokens.
        edge_url: where they connect.

    Attributes:
        connected: how many are in the room.
        refused: how often one was told to come back later.
    """

    def __init__(self, service: AsyncTokenService, edge_url: str) -> None:
        self._service = service
        self._edge_url = edge_url
        self._viewers: set[asyncio.Task[None]] = set()
        self._came = 0
        self.connected = 0
        self.refused = 0

    async def __aenter__(self) -> Self:
        # Connections stay open: with a limit, the first hundred viewers would keep the rest out.
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()
        await self._http.close()

    def __len__(self) -> int:
        return len(self._viewers)

    def come(self, count: int) -> int:
        """Let so many come; fewer if there is no room for them.

        Returns:
            How many come.
        """
        count = min(count, CROWD_MAX - len(self))
        for _ in range(count):
            self._came += 1
            viewer = asyncio.create_task(self._view(self._came))
            self._viewers.add(viewer)
            viewer.add_done_callback(self._viewers.discard)
        return count

    async def leave(self) -> None:
        """Send all away, those who wait as well."""
        viewers = list(self._viewers)
        for viewer in viewers:
            viewer.cancel()
        await asyncio.gather(*viewers, return_exceptions=True)

    async def _view(self, number: int) -> None:
        request = TokenRequest(ROOM, f"crowd-{number}", PEOPLE["viewer"])
        attempt = uuid.uuid4().hex
        # A double click, a proxy's retry: the attempt is the same, and so is the token.
        asks = 2 if number % _ASKS_TWICE == 0 else 1
        try:
            token, *_ = await asyncio.gather(*(self._token(request, attempt) for _ in range(asks)))
            async with self._http.ws_connect(self._edge_url, protocols=[token.token]) as websocket:
                self.connected += 1
                try:
                    async for _ in websocket:
                        pass
                finally:
                    self.connected -= 1
        except (ChatTokenError, aiohttp.ClientError):
            pass  # one fewer

    async def _token(self, request: TokenRequest, attempt: str) -> ChatToken:
        while True:
            try:
                return await self._service.issue(
                    request, idempotency_key=attempt, timeout=_PATIENCE
                )
            except (Overloaded, DeadlineExceeded) as error:
                self.refused += 1
                later = error.retry_after if isinstance(error, Overloaded) else 1.0
                # Whole seconds and a jitter, as by Retry-After and the module for browsers.
                await asyncio.sleep(math.ceil(later) + random.random())  # noqa: S311 (no secret)


class _Demo:
    """What the page asks for.

    Args:
        service: issues the tokens.
        emulator: where people chat.
        crowd: who comes on request.
        pace: what is sent.
        quota: tokens a second that the emulator allows.
    """

    def __init__(
        self,
        service: AsyncTokenService,
        emulator: Emulator,
        crowd: Crowd,
        pace: _Pace,
        quota: float,
    ) -> None:
        self._service = service
        self._emulator = emulator
        self._edge = ChatEdge(emulator)
        self._crowd = crowd
        self._pace = pace
        self._quota = quota
        self._refused = 0

    def application(self) -> web.Application:
        """Make the web application."""
        app = web.Application(middlewares=[self._count_refusals])
        setup(app, authorize=self._authorize, service=self._service, path=_TOKEN_PATH)
        add = app.router
        add.add_get("/edge", self._edge.serve)
        add.add_get("/demo/state", self._state)
        add.add_post("/demo/drop", self._drop)
        add.add_post("/demo/crowd", self._come)
        add.add_delete("/demo/crowd", self._leave)
        for path, (name, content_type) in _FILES.items():
            add.add_get(path, _file(name, content_type))
        app.on_response_prepare.append(_add_headers)
        app.on_shutdown.append(self._close_edge)
        return app

    async def _authorize(self, request: web.Request, ask: Ask) -> TokenRequest | None:
        # An application would look at its own session here; the demo believes what it is told.
        who = _person(request)
        if who is None:
            return None
        return TokenRequest(ROOM, who, PEOPLE[who], {"displayName": who.capitalize()})

    @web.middleware
    async def _count_refusals(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        response = await handler(request)
        if request.path == _TOKEN_PATH and response.status in (403, 429, 503):
            self._refused += 1
        return response

    async def _state(self, request: web.Request) -> web.Response:
        stats = self._service.stats()
        state = {
            "quota": self._quota,
            "rate": self._pace.rate(),
            "issued": stats.minted,
            "waiting": stats.waiting,
            "wait": round(self._service.estimate(ROOM), 1),
            "coalesced": stats.joined + stats.cached,
            "refused": self._refused + self._crowd.refused,
            "throttled": stats.throttled,
            "connections": self._emulator.chat.connections,
            "crowd": {"all": len(self._crowd), "in": self._crowd.connected, "max": CROWD_MAX},
        }
        return web.json_response(state, headers={"Cache-Control": "no-store"})

    async def _drop(self, request: web.Request) -> web.Response:
        who = _person(request)
        if who is None:
            raise web.HTTPForbidden
        return web.json_response({"dropped": self._emulator.chat.drop(who)})

    async def _come(self, request: web.Request) -> web.Response:
        # Only pages of this origin send JSON without asking first.
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType
        try:
            count = (await request.json())["viewers"]
        except (ValueError, TypeError, KeyError):
            count = None
        if type(count) is not int or not 1 <= count <= CROWD_MAX:
            raise web.HTTPBadRequest
        return web.json_response({"coming": self._crowd.come(count)})

    async def _leave(self, request: web.Request) -> web.Response:
        await self._crowd.leave()
        return web.Response(status=204)

    async def _close_edge(self, app: web.Application) -> None:
        self._edge.close()


def _person(request: web.Request) -> str | None:
    who = request.headers.get(_WHO)
    return who if who in PEOPLE else None


def _file(name: str, content_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    body = (resources.files("aioivschat.demo") / "static" / name).read_bytes()

    async def serve(request: web.Request) -> web.Response:
        return web.Response(
            body=body,
            content_type=content_type,
            charset="utf-8",
            headers={"Cache-Control": "no-cache"},
        )

    return serve


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
