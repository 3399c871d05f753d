"""The demo's people and its crowd: viewers who come all at once, each with a connection."""

from __future__ import annotations

import asyncio
import math
import random
import uuid
from collections.abc import Mapping
from typing import Self

import aiohttp

from aioivschat._models import Capability, ChatToken, TokenRequest
from aioivschat._service.service import AsyncTokenService
from aioivschat.errors import ChatTokenError, DeadlineExceeded, Overloaded

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Demo"

PEOPLE: Mapping[str, frozenset[str]] = {
    "host": frozenset(Capability),
    "viewer": frozenset({Capability.SEND_MESSAGE}),
}
"""The page's two people, and what each may do."""

CROWD_MAX = 200
"""Viewers at once: at the demo's default rate, twenty seconds of queue."""

_TIMEOUT_SECONDS = 8.0  # as at the endpoint
_EVERY_NTH_CALLS_TWICE = 5


class Crowd:
    """Viewers who come all at once, each with a token and a connection to ``edge_url``."""

    def __init__(self, service: AsyncTokenService, edge_url: str) -> None:
        self._service = service
        self._edge_url = edge_url
        self._viewers: set[asyncio.Task[None]] = set()
        self._started = 0
        self.connected = 0
        self.refused = 0  # calls that were refused or ran out of time

    async def __aenter__(self) -> Self:
        # No limit: connections stay open, and the default of 100 would keep later viewers out.
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()
        await self._http.close()

    def __len__(self) -> int:
        return len(self._viewers)

    def come(self, count: int) -> int:
        """Start ``count`` viewers, or as many as ``CROWD_MAX`` allows; return their number."""
        count = min(count, CROWD_MAX - len(self))
        for _ in range(count):
            self._started += 1
            viewer = asyncio.create_task(self._run_viewer(self._started))
            self._viewers.add(viewer)
            viewer.add_done_callback(self._viewers.discard)
        return count

    async def leave(self) -> None:
        """Stop all viewers, those who wait for a token included."""
        viewers = list(self._viewers)
        for viewer in viewers:
            viewer.cancel()
        await asyncio.gather(*viewers, return_exceptions=True)

    async def _run_viewer(self, number: int) -> None:
        request = TokenRequest(ROOM, f"crowd-{number}", PEOPLE["viewer"])
        attempt = uuid.uuid4().hex
        # As by a double click or a proxy's retry: the same attempt, so the same token.
        calls = 2 if number % _EVERY_NTH_CALLS_TWICE == 0 else 1
        try:
            token, *_ = await asyncio.gather(
                *(self._issue_token(request, attempt) for _ in range(calls))
            )
            async with self._http.ws_connect(self._edge_url, protocols=[token.token]) as websocket:
                self.connected += 1
                try:
                    async for _ in websocket:
                        pass
                finally:
                    self.connected -= 1
        except (ChatTokenError, aiohttp.ClientError):
            pass  # this viewer does not come

    async def _issue_token(self, request: TokenRequest, attempt: str) -> ChatToken:
        while True:
            try:
                return await self._service.issue(
                    request, idempotency_key=attempt, timeout=_TIMEOUT_SECONDS
                )
            except (Overloaded, DeadlineExceeded) as error:
                self.refused += 1
                later = error.retry_after if isinstance(error, Overloaded) else 1.0
                # Whole seconds and a jitter, as a browser does with Retry-After.
                await asyncio.sleep(math.ceil(later) + random.random())  # noqa: S311 (no secret)
