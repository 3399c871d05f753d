"""The SDK in Chromium, on a page that is served beside the endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest
from aiohttp import web

from e2e.stage import HERE, Stage
from support.node import Node

from .conftest import OpenStage

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, Route

pytestmark = pytest.mark.e2e

OpenPage = Callable[..., Awaitable["Page"]]


@pytest.fixture
async def here(stage: OpenStage, node: Node) -> AsyncIterator[Stage]:
    """A stage whose web server has the page, too."""
    app = web.Application()
    add_page(app, node)
    async with stage(app=app) as opened:
        yield opened


def add_page(app: web.Application, node: Node) -> None:
    """Add the page to a web server, and the SDK that it uses."""

    async def page(_: web.Request) -> web.FileResponse:
        return web.FileResponse(HERE / "page.html")

    async def script(_: web.Request) -> web.FileResponse:
        return web.FileResponse(HERE / "page.mjs", headers={"Content-Type": "text/javascript"})

    app.router.add_get("/", page)
    app.router.add_get("/page.mjs", script)
    app.router.add_static("/sdk", node.sdk)
    app.router.add_static("/uuid", node.uuid)


@pytest.fixture
async def open_page(chromium: Browser, here: Stage) -> AsyncIterator[OpenPage]:
    """Opens the page for a user, each in a browser profile of its own."""
    wrong: list[str] = []

    async def opened(
        user: str, on_token_request: Callable[[Route], Awaitable[None]] | None = None
    ) -> Page:
        context = await chromium.new_context()
        page = await context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        if on_token_request is not None:
            await page.route("**/chat/token", on_token_request)
        await page.goto(f"{here.url}/?{urlencode({'user': user, 'edge': here.server.edge_url})}")
        return page

    yield opened
    assert [] == wrong


async def connected(page: Page) -> None:
    """Wait until the SDK on a page is connected."""
    await page.wait_for_function("document.querySelector('#state').value === 'connected'")


async def say(page: Page, text: str) -> None:
    """Write a message and send it."""
    await page.get_by_label("message").fill(text)
    await page.get_by_role("button").click()


async def heard(page: Page, text: str) -> None:
    """Wait until a page shows a message."""
    await page.get_by_text(text, exact=True).wait_for()


async def test_two_pages_chat_and_one_comes_back(here: Stage, open_page: OpenPage) -> None:
    """They hear each other, also after the connection of one was cut; each token was good."""
    alice, bob = await open_page("alice"), await open_page("bob")
    await connected(alice)
    await connected(bob)
    await say(alice, "hello")
    await heard(bob, "alice: hello")

    assert 1 == here.server.drop_connections("bob")
    async with asyncio.timeout(10):
        while here.server.emulator.counts().chat_opened < 3:
            await asyncio.sleep(0.01)
    await connected(bob)
    await say(bob, "back again")
    await heard(alice, "bob: back again")
    await say(alice, "welcome")
    await heard(bob, "alice: welcome")

    await alice.reload()
    await connected(alice)
    assert (4, 0) == (here.minted, here.refused)


async def test_a_lost_reply_brings_the_same_token_again(here: Stage, open_page: OpenPage) -> None:
    """The attempt is repeated under its key: one token is made, and the page connects with it."""
    keys: list[str] = []

    async def lose_the_first_reply(route: Route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) == 1:
            await route.fetch()
            await route.abort("connectionreset")
        else:
            await route.continue_()

    page = await open_page("alice", lose_the_first_reply)
    await connected(page)
    assert 2 == len(keys)
    assert 1 == len(set(keys))
    assert (1, 0) == (here.minted, here.refused)


async def test_a_late_reply_is_still_good(here: Stage, open_page: OpenPage) -> None:
    """A token that was under way for some seconds has not expired when the SDK gets it."""

    async def delay(route: Route) -> None:
        reply = await route.fetch()
        await asyncio.sleep(3)
        await route.fulfill(response=reply)

    page = await open_page("alice", delay)
    await connected(page)
    assert (1, 0) == (here.minted, here.refused)
