"""Web servers with the token endpoint, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from aioivschat import (
    AsyncTokenService,
)
from aioivschat.aiohttp import EndpointPolicy
from support.endpoint_servers import (
    GENEROUS,
    ONE_REQUEST,
    Client,
    Mount,
    Rule,
    Serve,
    serve_aiohttp,
    serve_starlette,
)
from support.services import OpenService


@pytest.fixture(params=[serve_aiohttp, serve_starlette], ids=["aiohttp", "starlette"])
def serve(request: pytest.FixtureRequest) -> Serve:
    """Serves the endpoint by one of the web frameworks."""
    server: Serve = request.param
    return server


@pytest.fixture
def rule() -> Rule:
    """The application's rule."""
    return Rule()


@pytest.fixture
async def mount(serve: Serve, rule: Rule, open_service: OpenService) -> AsyncIterator[Mount]:
    """Serves the endpoint and gives a client of it."""
    async with AsyncExitStack() as stack:

        async def make(
            policy: EndpointPolicy = GENEROUS,
            *,
            authorize: Any = None,
            service: AsyncTokenService | None = None,
            **options: Any,
        ) -> Client:
            service = service or open_service(**{"retry": ONE_REQUEST, **options})
            url = await stack.enter_async_context(serve(authorize or rule, service, policy))
            session = await stack.enter_async_context(aiohttp.ClientSession())
            return Client(session, url)

        yield make


@pytest.fixture
async def client(mount: Mount) -> Client:
    """A client of an endpoint that limits nobody."""
    client: Client = await mount()
    return client
