"""The demo: an emulator, the token endpoint, and a page with two people in one room.

One web server serves all of it, the chat edge too, so that the page has one origin.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from aiohttp import web

from aioivschat._events import AttemptFailed, Event, Minted
from aioivschat._models import TokenRequest
from aioivschat._service.pace import Quota
from aioivschat._service.service import AsyncTokenService
from aioivschat.aiohttp import Ask, setup
from aioivschat.demo.crowd import CROWD_MAX, PEOPLE, ROOM, Crowd
from aioivschat.emulator import Emulator, QuotaShape, ThreadedEmulatorServer
from aioivschat.emulator._edge import ChatEdge

_PERSON_HEADER = "Demo-Person"
"""The header that names the person who asks. A page of another origin cannot send it."""

_TOKEN_PATH = "/chat/token"  # noqa: S105 (a path)
_LATENCY_SECONDS = 0.03  # about that of a region nearby
_SHUTDOWN_SECONDS = 0.5  # for requests under way when the demo ends

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
    """
    pace = _Pace()
    emulator = Emulator(quota=QuotaShape("bucket", rate, max(1.0, rate)), latency=_LATENCY_SECONDS)
    # In a thread, so that the emulator replies while this loop is busy, as AWS does.
    with ThreadedEmulatorServer(emulator) as server:
        service = AsyncTokenService(
            session=session, endpoint_url=server.url, quota=Quota(rate=rate), observers=[pace]
        )
        async with service, Crowd(service, server.edge_url) as crowd:
            demo = _Demo(service, emulator, ChatEdge(emulator), crowd, pace, rate)
            runner = web.AppRunner(
                demo.application(), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS
            )
            await runner.setup()
            try:
                await web.TCPSite(runner, host, port).start()
                ready(_page_url(host, runner.addresses[0][1]))
                await asyncio.Event().wait()
            finally:
                await runner.cleanup()


def _page_url(host: str, port: int) -> str:
    # A wildcard address is replaced by the loopback address, which a browser here can open.
    name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


class _Pace:
    """Counts the requests of the last second, as the quota does."""

    def __init__(self) -> None:
        self._sent: deque[float] = deque(maxlen=10_000)

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, Minted | AttemptFailed):
            self._sent.append(time.monotonic() - event.seconds)

    def rate(self) -> int:
        since = time.monotonic() - 1.0
        return sum(sent > since for sent in self._sent)


@dataclass(eq=False, repr=False)
class _Demo:
    """The handlers of the web application."""

    service: AsyncTokenService
    emulator: Emulator
    edge: ChatEdge
    crowd: Crowd
    pace: _Pace
    quota: float  # tokens a second that the emulator allows
    refused: int = 0

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._count_refusals])
        setup(app, authorize=self._authorize, service=self.service, path=_TOKEN_PATH)
        add = app.router
        add.add_get("/edge", self.edge.serve)
        add.add_get("/demo/state", self._get_state)
        add.add_post("/demo/drop", self._drop_connections)
        add.add_post("/demo/crowd", self._start_viewers)
        add.add_delete("/demo/crowd", self._stop_viewers)
        for path, (name, content_type) in _FILES.items():
            add.add_get(path, _serve_file(name, content_type))
        app.on_response_prepare.append(_add_headers)
        app.on_shutdown.append(self._close_edge)
        return app

    async def _authorize(self, request: web.Request, ask: Ask) -> TokenRequest | None:
        # An application would look at its own session here; the demo trusts the header.
        who = _read_person(request)
        if who is None:
            return None
        return TokenRequest(ROOM, who, PEOPLE[who], {"displayName": who.capitalize()})

    @web.middleware
    async def _count_refusals(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        response = await handler(request)
        if request.path == _TOKEN_PATH and response.status in (403, 429, 503):
            self.refused += 1
        return response

    async def _get_state(self, request: web.Request) -> web.Response:
        stats = self.service.stats()
        state = {
            "quota": self.quota,
            "rate": self.pace.rate(),
            "issued": stats.minted,
            "waiting": stats.waiting,
            "wait": round(self.service.estimate(ROOM), 1),
            "coalesced": stats.joined + stats.cached,
            "refused": self.refused + self.crowd.refused,
            "throttled": stats.throttled,
            "connections": self.emulator.chat.connections,
            "crowd": {"all": len(self.crowd), "in": self.crowd.connected, "max": CROWD_MAX},
        }
        return web.json_response(state, headers={"Cache-Control": "no-store"})

    async def _drop_connections(self, request: web.Request) -> web.Response:
        who = _read_person(request)
        if who is None:
            raise web.HTTPForbidden
        return web.json_response({"dropped": self.emulator.chat.drop(who)})

    async def _start_viewers(self, request: web.Request) -> web.Response:
        # A page of another origin needs a preflight to send JSON, which is not granted.
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType
        try:
            count = (await request.json())["viewers"]
        except (ValueError, TypeError, KeyError):
            count = None
        if type(count) is not int or not 1 <= count <= CROWD_MAX:
            raise web.HTTPBadRequest
        return web.json_response({"coming": self.crowd.come(count)})

    async def _stop_viewers(self, request: web.Request) -> web.Response:
        await self.crowd.leave()
        return web.Response(status=204)

    async def _close_edge(self, app: web.Application) -> None:
        self.edge.close()


def _read_person(request: web.Request) -> str | None:
    who = request.headers.get(_PERSON_HEADER)
    return who if who in PEOPLE else None


def _serve_file(name: str, content_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
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
