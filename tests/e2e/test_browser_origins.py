"""Chromium, with pages of another origin than the token endpoint, and with answers of others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from aiohttp import web

from aioivschat.aiohttp import EndpointPolicy
from support.endpoint_servers import GENEROUS, running
from support.node import Node

from .conftest import OpenStage
from .test_browser import add_page, connected

if TYPE_CHECKING:
    from playwright.async_api import Browser

pytestmark = pytest.mark.e2e

SET_CLOCK = """{
  const RealDate = Date;
  const now = () => RealDate.now() + AHEAD;
  globalThis.Date = class Date extends RealDate {
    constructor(...parts) { super(...(parts.length ? parts : [now()])); }
    static now() { return now(); }
  };
  const { setTimeout } = globalThis;
  globalThis.longestWait = 0;
  globalThis.setTimeout = (callback, milliseconds, ...values) => {
    globalThis.longestWait = Math.max(globalThis.longestWait, milliseconds ?? 0);
    return setTimeout(callback, milliseconds, ...values);
  };
}"""

ASK = """async ([module, url, own]) => {
  const { createTokenProvider } = await import(module);
  const fail = () => { throw new RangeError("of the application"); };
  const options = own ? { [own]: fail } : {};
  return createTokenProvider({ url, timeout: 20_000, ...options })().then(
    () => ["a token"],
    ({ name, message, status, cause }) => [name, message, status, cause?.name],
  );
}"""


def allow_origins(app: web.Application) -> None:
    """Allow pages of other origins what the module says that CORS must allow, and nothing else."""

    @web.middleware
    async def answer_preflight(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.method != "OPTIONS":
            response: web.StreamResponse = await handler(request)
            return response
        allowed = "Content-Type, Idempotency-Key, Prefer, X-User"
        return web.Response(status=204, headers={"Access-Control-Allow-Headers": allowed})

    async def allow(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Access-Control-Allow-Origin"] = "*"

    app.middlewares.append(answer_preflight)
    app.on_response_prepare.append(allow)


@pytest.mark.fault(46)
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("hours", [-2, 2])
async def test_a_page_with_a_wrong_clock_takes_one_token(
    hours: int, raw: bool, stage: OpenStage, node: Node, chromium: Browser
) -> None:
    """It stays connected by it, as its times are corrected by the body of the reply."""
    app, pages = web.Application(), web.Application()
    allow_origins(app)
    add_page(pages, node)
    policy = EndpointPolicy(per_user=None, raw_expiration=raw)
    async with stage(app=app, policy=policy) as here, running(pages) as origin:
        context = await chromium.new_context()
        await context.add_init_script(SET_CLOCK.replace("AHEAD", str(hours * 3_600_000)))
        page = await context.new_page()
        query = {"user": "alice", "edge": here.server.edge_url, "server": here.url}
        await page.goto(f"{origin}/?{urlencode(query)}")
        await connected(page)
        # A token that seems to have expired would be renewed at once, and the next one too.
        await asyncio.sleep(3)
        await connected(page)
        assert (1, 0) == (here.minted, here.refused)
        # The SDK renews a minute before the session ends, or half a minute before the token does.
        waits = await page.evaluate("globalThis.longestWait")
        assert waits <= 30_000 if raw else 58 * 60_000 < waits <= 59 * 60_000


def answer(status: int, **options: Any) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return a handler that always answers the same."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, **options)

    return handler


@pytest.mark.fault(46)
async def test_what_is_no_answer_is_told_as_what_it_is(stage: OpenStage, chromium: Browser) -> None:
    """A login page, a firewall's challenge, an empty answer, a function that throws: at once."""
    page_of = {"text": "<!doctype html>", "content_type": "text/html"}
    elsewhere, app, asked = web.Application(), web.Application(), 0

    @web.middleware
    async def count(request: web.Request, handler: Any) -> web.StreamResponse:
        nonlocal asked
        asked += request.method == "POST"
        response: web.StreamResponse = await handler(request)
        return response

    app.middlewares.append(count)
    elsewhere.router.add_route("*", "/login", answer(200, **page_of))
    async with running(elsewhere) as other:
        for path, handler in {
            "/challenge": answer(202, **page_of),
            "/empty": answer(204),
            "/login": answer(200, **page_of),
            "/to-login": answer(302, headers={"Location": "/login?next=secret"}),
            "/to-other-login": answer(302, headers={"Location": f"{other}/login"}),
            "/moved": answer(307, headers={"Location": "/login"}),
            "/": answer(200, **page_of),
        }.items():
            app.router.add_route("*", path, handler)
        async with stage(app=app, policy=GENEROUS) as here:
            page = await chromium.new_page()
            await page.goto(here.url)

            async def ask(path: str, own: str = "") -> tuple[list[Any], int]:
                nonlocal asked
                asked = 0
                module = f"{here.url}/chat/token-provider.js"
                outcome = await page.evaluate(ASK, [module, path, own])
                return outcome, asked

            login = f"no token: redirected to {here.url}/login, status 200 with text/html"
            outcomes = {
                "/login": [200, "no token: status 200 with text/html", 1],
                "/challenge": [202, "no token: status 202 with text/html", 1],
                "/empty": [204, "no token: status 204 with no body", 1],
                "/to-login": [200, login, 1],
                "/moved": [200, login, 2],
            }
            for path, (status, message, requests) in outcomes.items():
                error = ["TokenProviderError", message, status, None]
                assert (error, requests) == await ask(path)
            # The second request found out that there is a redirect; the third, that it was no
            # passing fault of the network which kept the first from following it.
            message = "redirected to where this page may not read"
            error = ["TokenProviderError", message, 0, "TypeError"]
            assert (error, 3) == await ask("/to-other-login")
            for own in ("body", "headers"):
                message = f"the application's `{own}` failed"
                error = ["TokenProviderError", message, 0, "RangeError"]
                assert (error, 0) == await ask("/chat/token", own)
