"""The module for browsers, run by Node against a real endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from email.utils import formatdate
from importlib import resources
from pathlib import Path
from time import time
from typing import Any

import pytest
from aiohttp import web

import aioivschat.aiohttp
from aioivschat import TokenRequest
from aioivschat.aiohttp import Ask
from support.endpoint_servers import GENEROUS, Rule, running
from support.node import Node
from support.services import OpenService

pytestmark = pytest.mark.e2e

TESTS = Path(__file__).with_name("token-provider.test.mjs")


class Trouble:
    """Fails the requests of each attempt as its header ``X-Trouble`` lists, one entry a request.

    Attributes:
        seen: the requests' keys and preferences, by the name of the test.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[dict[str, str]]] = {}

    @web.middleware
    async def middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Record the request, and fail it or pass it on."""
        response: web.StreamResponse
        name = request.headers.get("X-Test")
        if name is None or request.method != "POST":
            response = await handler(request)
            return response
        requests = self.seen.setdefault(name, [])
        troubles = json.loads(request.headers["X-Trouble"])
        trouble = troubles[len(requests)] if len(requests) < len(troubles) else None
        requests.append(
            {"key": request.headers["Idempotency-Key"], "prefer": request.headers["Prefer"]}
        )
        match trouble:
            case "hang":
                await asyncio.sleep(60)
            case "reset":
                return _reset(request)
            case "reset-late":
                await handler(request)
                return _reset(request)
            case "cut":
                return web.Response(text='{"token": "abc', content_type="application/json")
            case "no token":
                return web.json_response({"error": "who are you?"})
            case "moved":
                raise web.HTTPTemporaryRedirect(request.path)
            case "login":
                raise web.HTTPFound("/login?next=secret")
            case int():
                return web.Response(status=trouble)
            case {"status": status, "html": True}:
                return _show_page(status)
            case {"status": status, "after": "date"}:
                date = formatdate(time() + 3, usegmt=True)
                return web.Response(status=status, headers={"Retry-After": date})
            case {"status": status, "after": "body"}:
                return web.json_response({"retryAfter": 1}, status=status)
            case {"status": status, "after": seconds}:
                return web.Response(status=status, headers={"Retry-After": seconds})
        response = await handler(request)
        return response

    async def show(self, request: web.Request) -> web.Response:
        """Return the requests that were seen of a test."""
        return web.json_response(self.seen.get(request.match_info["name"], []))


def _show_page(status: int = 200) -> web.Response:
    return web.Response(status=status, text="<!doctype html>", content_type="text/html")


def _reset(request: web.Request) -> web.Response:
    assert request.transport is not None
    connection = request.transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
    return web.Response()


@pytest.mark.fault(46)
@pytest.mark.parametrize("platform", ["node", "react-native"])
async def test_the_module_does_as_its_tests_say(
    platform: str, node: Node, open_service: OpenService, tmp_path: Path
) -> None:
    """The tests of token-provider.test.mjs pass against a real endpoint."""
    rule = Rule()

    async def authorize(request: web.Request, ask: Ask) -> TokenRequest | None:
        if request.headers.get("X-Credentials", "good") != "good":
            raise web.HTTPUnauthorized
        return await rule(request, ask)

    async def show_login(_: web.Request) -> web.Response:
        return _show_page()

    trouble = Trouble()
    app = web.Application(middlewares=[trouble.middleware])
    aioivschat.aiohttp.setup(app, authorize=authorize, service=open_service(), policy=GENEROUS)
    app.router.add_get("/seen/{name}", trouble.show)
    app.router.add_get("/login", show_login)
    # Node goes by the name, where browsers go by the type that the server says.
    module = tmp_path / "token-provider.mjs"
    module.write_bytes(
        (resources.files("aioivschat._endpoint") / "static/token-provider.js").read_bytes()
    )
    environment = {**os.environ, "MODULE": module.as_uri()}
    if platform == "react-native":
        environment["NPM_MODULES"] = f"{node.modules.as_uri()}/"
    async with running(app) as url:
        process = await asyncio.create_subprocess_exec(
            *node.command,
            "--test",
            "--test-reporter=tap",
            str(TESTS),
            env={**environment, "ENDPOINT": f"{url}/chat/token"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(120):
            output, _ = await process.communicate()
    assert 0 == process.returncode, output.decode()
