"""Mounting the token endpoint on Starlette and FastAPI applications."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import aiohttp
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from aioivschat import AsyncTokenService, InvalidConfiguration, Quota
from aioivschat.starlette import get_service, lifespan, routes, setup
from support.endpoint_servers import Rule, running_asgi
from support.services import OpenService, outcomes, until

ALICE = {"X-User": "alice"}


async def _post(url: str, **options: Any) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession(headers=ALICE) as session,
        session.post(url, **options) as response,
    ):
        return response.status, await response.text()


async def _page(request: Request) -> Response:
    return JSONResponse(repr(get_service(request)))


@pytest.mark.usefixtures("ivschat_env")
async def test_it_mounts_on_fastapi() -> None:
    """The service is opened and closed with the application, and is a dependency of routes."""
    app = FastAPI()
    setup(app, authorize=Rule())
    seen: list[AsyncTokenService] = []

    @app.post("/page")
    async def page(service: Annotated[AsyncTokenService, Depends(get_service)]) -> str:
        seen.append(service)
        return "seen"

    async with running_asgi(app) as url:
        assert 200 == (await _post(f"{url}/chat/token", json={}))[0]
        assert 200 == (await _post(f"{url}/page"))[0]
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{url}/chat/token-provider.js") as response,
        ):
            assert 200 == response.status
            assert "text/javascript; charset=utf-8" == response.headers["Content-Type"]
    assert "closed" in repr(seen[0])


async def test_an_open_service_is_left_open(open_service: OpenService) -> None:
    """A service that was handed in stays open when the application ends."""
    service = open_service()
    app = Starlette()
    setup(app, authorize=Rule(), service=service)
    async with running_asgi(app) as url:
        await _post(f"{url}/chat/token", json={})
    assert "open" in repr(service)


async def test_the_applications_own_lifespan_runs_within(open_service: OpenService) -> None:
    """The application's own lifespan runs while the service is open, and keeps its state."""
    events: list[str] = []

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[dict[str, str]]:
        events.append("started")
        yield {"own": "state"}
        events.append("ended")

    async def page(request: Request) -> Response:
        return JSONResponse([request.state.own, repr(get_service(request))])

    service = open_service()
    app = Starlette(lifespan=own, routes=[Route("/page", page, methods=["POST"])])
    setup(app, authorize=Rule(), service=service)
    async with running_asgi(app) as url:
        _, text = await _post(f"{url}/page")
    assert '["state","<AsyncTokenService open' in text
    assert ["started", "ended"] == events


async def test_the_pieces_serve_a_mounted_application(open_service: OpenService) -> None:
    """Routes of a mounted application work with the lifespan of the outermost one."""
    inner = Starlette(routes=[*routes(authorize=Rule()), Route("/page", _page, methods=["POST"])])
    app = Starlette(routes=[Mount("/inner", inner)], lifespan=lifespan(service=open_service()))
    async with running_asgi(app) as url:
        assert 200 == (await _post(f"{url}/inner/chat/token", json={}))[0]
        assert 200 == (await _post(f"{url}/inner/page"))[0]


def test_a_service_that_is_not_there_is_said_so() -> None:
    """Without the lifespan, ``get_service`` raises InvalidConfiguration."""
    with pytest.raises(InvalidConfiguration):
        get_service(Request({"type": "http"}))


async def test_a_departure_is_noticed_through_middleware(open_service: OpenService) -> None:
    """A disconnect is noticed behind BaseHTTPMiddleware, which has a receive of its own."""

    class Plain(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            return response

    service = open_service(quota=Quota(rate=0.2))
    app = Starlette(middleware=[Middleware(Plain)])
    setup(app, authorize=Rule(), service=service)
    async with running_asgi(app) as url:
        assert 200 == (await _post(f"{url}/chat/token", json={}))[0]
        call = asyncio.create_task(_post(f"{url}/chat/token", json={}))
        await until(lambda: service.stats().waiting == 1)
        call.cancel()
        await outcomes(call)
        await until(lambda: service.stats().waiting == 0, within=2)


async def test_a_body_that_breaks_off_is_no_error_of_the_server(
    open_service: OpenService, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that disconnects amid its body is neither logged as an error nor asked about."""
    app = Starlette()
    rule = Rule()
    setup(app, authorize=rule, service=open_service())
    with caplog.at_level(logging.WARNING):
        async with running_asgi(app) as url:
            _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(
                b"POST /chat/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.close()
            await writer.wait_closed()
            await asyncio.sleep(0.1)
    assert [] == caplog.messages
    assert 0 == rule.calls
