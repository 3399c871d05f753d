"""Mounting the token endpoint on an aiohttp application."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from importlib import resources
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aioivschat import AsyncTokenService, InvalidConfiguration, TokenRequest
from aioivschat.aiohttp import SERVICE, Ask, get_service, setup
from aioivschat.emulator import ThreadedEmulatorServer
from support.endpoint_servers import Rule, running
from support.services import ROOM, OpenService, until


async def _post(url: str, **options: Any) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, headers={"X-User": "alice"}, **options) as response,
    ):
        return response.status, await response.text()


@pytest.mark.usefixtures("ivschat_env")
async def test_three_lines_mount_it() -> None:
    """By default the service is opened and closed with the application."""
    app = web.Application()
    setup(app, authorize=Rule())
    async with running(app) as url:
        service = get_service(app)
        assert service is app[SERVICE]
        status, _ = await _post(f"{url}/chat/token", json={})
        assert 200 == status
    assert "closed" in repr(service)


async def test_an_open_service_is_left_open(open_service: OpenService) -> None:
    """A service that was handed in stays open when the application ends."""
    service = open_service()
    app = web.Application()
    setup(app, authorize=Rule(), service=service)
    async with running(app) as url:
        await _post(f"{url}/chat/token", json={})
    assert "open" in repr(service)


@pytest.mark.usefixtures("ivschat_env")
async def test_the_service_is_found_from_everywhere_below() -> None:
    """``get_service`` finds the service of the nearest application that has an endpoint."""
    found: dict[str, AsyncTokenService] = {}

    def page(name: str) -> Any:
        async def handler(request: web.Request) -> web.Response:
            found[name] = get_service(request)
            return web.Response()

        return handler

    app, plain, own = web.Application(), web.Application(), web.Application()
    setup(app, authorize=Rule())
    setup(own, authorize=Rule(), path="/enter")
    for part, name in ((app, "app"), (plain, "plain"), (own, "own")):
        part.router.add_post(f"/{name}", page(name))
    app.add_subapp("/plain", plain)
    app.add_subapp("/own", own)
    async with running(app) as url:
        for path in ("app", "plain/plain", "own/own"):
            assert 200 == (await _post(f"{url}/{path}"))[0]
        assert 200 == (await _post(f"{url}/own/enter", json={}))[0]
    assert found["app"] is found["plain"] is get_service(app)
    assert found["own"] is get_service(own) is not found["app"]


async def test_a_service_that_is_not_there_is_said_so() -> None:
    """Before setup or start, ``get_service`` raises InvalidConfiguration."""
    app = web.Application()
    with pytest.raises(InvalidConfiguration):
        get_service(app)
    setup(app, authorize=Rule())
    with pytest.raises(InvalidConfiguration):
        get_service(app)


def test_an_application_has_one_endpoint() -> None:
    """A second setup is refused: it would be unclear which service is meant."""
    app = web.Application()
    setup(app, authorize=Rule())
    with pytest.raises(InvalidConfiguration, match="second"):
        setup(app, authorize=Rule(), path="/other")


async def test_the_browsers_module_is_served_beside_the_endpoint(
    open_service: OpenService,
) -> None:
    """The module has an ETag of its content, and is not sent again to who has it."""
    source = (resources.files("aioivschat._endpoint") / "static" / "token-provider.js").read_bytes()
    tag = f'"{hashlib.sha256(source).hexdigest()[:32]}"'
    app = web.Application()
    setup(app, authorize=Rule(), service=open_service(), path="/enter")
    async with running(app) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/enter-provider.js") as response:
            assert source == await response.read()
            assert "text/javascript; charset=utf-8" == response.headers["Content-Type"]
            assert tag == response.headers["ETag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            async with session.get(
                f"{url}/enter-provider.js", headers={"If-None-Match": known}
            ) as response:
                assert (304, b"") == (response.status, await response.read())
        async with session.get(
            f"{url}/enter-provider.js", headers={"If-None-Match": '"other"'}
        ) as response:
            assert 200 == response.status


async def test_a_middleware_may_have_read_the_body(open_service: OpenService) -> None:
    """A body that a middleware has read, to check a signature, say, is read again."""

    @web.middleware
    async def reader(request: web.Request, handler: Any) -> web.StreamResponse:
        await request.read()
        response: web.StreamResponse = await handler(request)
        return response

    app = web.Application(middlewares=[reader])
    setup(app, authorize=Rule(), service=open_service())
    async with running(app) as url:
        assert 200 == (await _post(f"{url}/chat/token", json={"room": ROOM}))[0]
        assert 403 == (await _post(f"{url}/chat/token", json={"user": "bob"}))[0]
        assert 413 == (await _post(f"{url}/chat/token", json={"x": "x" * 5000}))[0]


async def test_the_host_may_cancel_handlers(open_service: OpenService) -> None:
    """With aiohttp's handler cancellation, a disconnected client's handler ends at once."""
    service = open_service()
    app = web.Application()
    entered = asyncio.Event()

    async def rule(request: web.Request, ask: Ask) -> TokenRequest | None:
        entered.set()
        await asyncio.sleep(60)
        return None

    setup(app, authorize=rule, service=service)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    call = asyncio.create_task(
        _post(f"http://127.0.0.1:{runner.addresses[0][1]}/chat/token", json={})
    )
    await entered.wait()
    tasks = len(asyncio.all_tasks())
    call.cancel()
    await until(lambda: len(asyncio.all_tasks()) < tasks)
    await runner.cleanup()


async def test_a_body_that_breaks_off_is_no_error_of_the_server(
    open_service: OpenService,
    ivschat_emulator: ThreadedEmulatorServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A client that disconnects amid its body is neither logged as an error nor asked about."""
    app = web.Application()
    rule = Rule()
    setup(app, authorize=rule, service=open_service())
    with caplog.at_level(logging.WARNING):
        async with running(app) as url:
            port = int(url.rpartition(":")[2])
            for _ in range(3):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
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
