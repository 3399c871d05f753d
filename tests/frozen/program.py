"""A program to be frozen: it uses what the library loads by name, and the files that it reads.

It prints as JSON what the test checks; with arguments it is the command ``aioivschat``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib import resources

import aiohttp
from aiohttp import web

import aioivschat
import aioivschat.aiohttp
from aioivschat import AsyncTokenService, TokenRequest
from aioivschat.emulator import ThreadedEmulatorServer

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/AbCdEfGhIjKl"


async def main() -> None:
    """Issue tokens of an emulator, serve an endpoint, and tell of it."""
    told: list[str] = []
    with ThreadedEmulatorServer() as emulator:
        os.environ |= {
            "AWS_ENDPOINT_URL_IVSCHAT": emulator.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }
        observers = [lambda event: told.append(type(event).__name__)]
        async with AsyncTokenService(observers=observers) as tokens:
            for user in ("alice", "bob", "carol"):
                await tokens.issue(TokenRequest(ROOM, user))
            module = await _serve(tokens)
        minted = emulator.emulator.counts().requests
    found = {
        "public": [name for name in aioivschat.__all__ if hasattr(aioivschat, name)],
        "told": told,
        "module": module,
        "requests": minted,
        "files": [*_files(resources.files("aioivschat"), "")],
    }
    print(json.dumps(found))


async def _serve(tokens: AsyncTokenService) -> str:
    """Return the browser's module, as the endpoint serves it."""

    async def authorize(request: web.Request, ask: object) -> TokenRequest:
        return TokenRequest(ROOM, "alice")

    app = web.Application()
    aioivschat.aiohttp.setup(app, authorize=authorize, service=tokens)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    async with (
        aiohttp.ClientSession(f"http://{host}:{port}") as browser,
        browser.get("/chat/token-provider.js") as answer,
    ):
        text = await answer.text()
    await runner.cleanup()
    return text


def _files(folder: resources.abc.Traversable, above: str) -> list[str]:
    found = []
    for each in folder.iterdir():
        path = f"{above}{each.name}"
        found += _files(each, f"{path}/") if each.is_dir() else [path]
    return found


if sys.argv[1:]:
    from aioivschat.cli import main as run_command

    sys.exit(run_command())
asyncio.run(main())
