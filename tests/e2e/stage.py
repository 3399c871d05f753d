"""What the tests play on: the emulator, a web server with the endpoint, and real SDK clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from aiohttp import web

import aioivschat.aiohttp
from aioivschat import AsyncTokenService, CachePolicy, Quota, TokenRequest
from aioivschat.aiohttp import Ask, EndpointPolicy
from aioivschat.emulator import ThreadedEmulatorServer
from support.endpoint_servers import GENEROUS, running
from support.node import Node
from support.services import ROOM, UNLIMITED, local_session

HERE = Path(__file__).parent

_PATIENCE = 30.0
"""Seconds that a test waits for what should come soon; only a failing one waits so long."""

_LINE_LIMIT = 1024 * 1024
"""Bytes in a line from Node."""


@dataclass(frozen=True)
class Stage:
    """A web server with the endpoint, in front of the emulator.

    Args:
        server: the emulator's.
        url: the web server's.
    """

    server: ThreadedEmulatorServer
    url: str

    @property
    def minted(self) -> int:
        """How many tokens there were."""
        return self.server.emulator.counts().minted

    @property
    def refused(self) -> int:
        """How many tokens the chat edge was shown in vain."""
        return self.server.emulator.counts().chat_refused


@asynccontextmanager
async def open_stage(
    server: ThreadedEmulatorServer,
    *,
    policy: EndpointPolicy = GENEROUS,
    service_quota: Quota = UNLIMITED,
    session_minutes: int = 60,
    app: web.Application | None = None,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """Serve an application in which whoever names a user in ``X-User`` is that user.

    Args:
        server: the emulator's.
        policy: the endpoint's.
        service_quota: the service's.
        session_minutes: how long sessions last.
        app: what the endpoint is added to; by default to nothing.
        settings: the emulator's; its quota is unlimited by default.
    """
    settings.setdefault("quota", "unlimited")
    server.emulator.configure(**settings)
    # Where minutes are short, so is a token's life.
    cache = CachePolicy(min_remaining=0)

    async def authorize(request: web.Request, _: Ask) -> TokenRequest:
        capabilities = {"SEND_MESSAGE", "DELETE_MESSAGE", "DISCONNECT_USER"}
        return TokenRequest(
            ROOM, request.headers["X-User"], capabilities, session_minutes=session_minutes
        )

    if app is None:
        app = web.Application()
    async with AsyncTokenService(
        session=local_session(), endpoint_url=server.url, quota=service_quota, cache=cache
    ) as service:
        aioivschat.aiohttp.setup(app, authorize=authorize, service=service, policy=policy)
        async with running(app) as url:
            yield Stage(server, url)


@dataclass(frozen=True)
class Event:
    """Something that happened to a client.

    Args:
        kind: what.
        user: to whom.
        at: when this process heard of it, in monotonic seconds.
        details: the rest.
    """

    kind: str
    user: str | None
    at: float
    details: dict[str, Any] = field(repr=False)


class Clients:
    """SDK clients in a process of Node's, one for each user.

    Args:
        process: Node, running ``clients.mjs``.

    Attributes:
        events: what happened up to now.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.events: list[Event] = []
        self._process = process
        self._news = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def do(self, command: str, user: str, **more: Any) -> None:
        """Have a client do something; what comes of it is an event."""
        assert self._process.stdin is not None
        line = json.dumps({"command": command, "user": user, **more})
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    def of(self, kind: str, user: str | None = None, **details: Any) -> list[Event]:
        """Return the events of a kind: of one user or all, with the given details."""
        return [
            event
            for event in self.events
            if event.kind == kind
            and user in (None, event.user)
            and details.items() <= event.details.items()
        ]

    async def heard(
        self,
        kind: str,
        user: str | None = None,
        *,
        times: int = 1,
        within: float = _PATIENCE,
        **details: Any,
    ) -> Event:
        """Wait until there are so many events of a kind; return the last of these."""
        await self.until(lambda: len(self.of(kind, user, **details)) >= times, within=within)
        return self.of(kind, user, **details)[times - 1]

    async def until(self, condition: Callable[[], bool], *, within: float = _PATIENCE) -> None:
        """Wait until something holds; it is looked at with every event."""
        async with asyncio.timeout(within):
            while not condition():
                assert not self._reader.done(), "Node has ended"
                self._news.clear()
                await self._news.wait()

    async def end(self) -> None:
        """End the process, and check that nothing went wrong in it."""
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        self._process.stdin.close()
        await self._reader
        errors = await self._process.stderr.read()
        assert (0, "") == (await self._process.wait(), errors.decode())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            details = json.loads(line)
            kind, user = details.pop("event"), details.pop("user")
            self.events.append(Event(kind, user, monotonic(), details))
            self._news.set()
        self._news.set()


@asynccontextmanager
async def open_clients(
    node: Node, stage: Stage, *, speed: float = 1.0, ahead: float = 0.0
) -> AsyncIterator[Clients]:
    """Run Node with the SDK, and the provider that the stage serves.

    Args:
        node: how to run it.
        stage: what the clients connect to.
        speed: how fast time runs for the SDK.
        ahead: seconds by which the clock of the clients is ahead.
    """
    config = {
        "sdk": (node.sdk / "index.js").as_uri(),
        "endpoint": f"{stage.url}/chat/token",
        "provider": f"{stage.url}/chat/token-provider.js",
        "edge": stage.server.edge_url,
        "speed": speed,
        "ahead": ahead,
    }
    process = await asyncio.create_subprocess_exec(
        *node.command,
        str(HERE / "clients.mjs"),
        json.dumps(config),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
    )
    clients = Clients(process)
    try:
        await clients.heard("ready")
        yield clients
    finally:
        await clients.end()
