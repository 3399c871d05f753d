"""The endpoint behind middlewares of others, on servers as they are.

What a middleware hands on as ``receive`` is a stranger's: it may give the body again and again
without ever waiting, which would stop the event loop and with it the server and this test. So the
middlewares here fail once they were asked far more often than anybody has a reason to.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive

import aioivschat.aiohttp
import aioivschat.starlette
from aioivschat import InvalidConfiguration, Quota, TokenRequest
from aioivschat.aiohttp import EndpointPolicy
from aioivschat.emulator import ThreadedEmulatorServer
from support.endpoint_servers import (
    GENEROUS,
    Client,
    Rule,
    assert_problem,
    count_requests,
    running,
    running_asgi,
)
from support.services import ROOM, OpenService, until

FAR_TOO_OFTEN = 20_000

Replay = Callable[[bytes, Receive], Receive]


class AskedWithoutEnd(BaseException):
    """Not to be swallowed by what handles a middleware's failures."""


class ReplaysBody:
    """The recipe of many: it reads the body, to log or check it, and gives it again downstream."""

    def __init__(self, app: Any, replay: Replay) -> None:
        self._app = app
        self._replay = replay
        self.asked = 0

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """Pass a request on with its body as it is given again."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        replayed = self._replay(body, receive)

        async def count() -> Message:
            self.asked += 1
            if self.asked > FAR_TOO_OFTEN:
                raise AskedWithoutEnd
            return await replayed()

        async def wait_and_send(message: Message) -> None:
            await asyncio.sleep(0)
            await send(message)

        await self._app(scope, count, wait_and_send)


def _once(body: bytes, then: Receive) -> Receive:
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            return await then()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def again_and_again(body: bytes, receive: Receive) -> Receive:
    """Give the body at each call."""

    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def twice(body: bytes, receive: Receive) -> Receive:
    """Give the body once more, before what comes of the server."""
    return _once(body, _once(body, receive))


def empty_for_ever(body: bytes, receive: Receive) -> Receive:
    """Give empty messages after the body, of which there is always one more."""

    async def empty() -> Message:
        return {"type": "http.request", "body": b"", "more_body": True}

    return _once(body, empty)


def nothing_more(body: bytes, receive: Receive) -> Receive:
    """Never return after the body."""

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    return _once(body, never)


def failure(body: bytes, receive: Receive) -> Receive:
    """Fail when asked again."""

    async def fail() -> Message:
        raise RuntimeError("the body was given")

    return _once(body, fail)


def what_the_server_has(body: bytes, receive: Receive) -> Receive:
    """Give the body once: the recipe as it should be."""
    return _once(body, receive)


REPLAYS = [again_and_again, twice, empty_for_ever, nothing_more, failure, what_the_server_has]


@pytest.mark.fault(45)
@pytest.mark.parametrize("replay", REPLAYS)
async def test_a_middleware_may_give_the_body_again(
    replay: Replay, open_service: OpenService, caplog: pytest.LogCaptureFixture
) -> None:
    """However it does so: a token is minted, and nothing is asked of it without an end."""
    inner = Starlette()
    service = open_service()
    aioivschat.starlette.setup(inner, authorize=Rule(), service=service, policy=GENEROUS)
    app = ReplaysBody(inner, replay)
    async with running_asgi(app) as url, aiohttp.ClientSession() as session:
        client = Client(session, f"{url}/chat/token")
        assert [200, 200] == [(await client.ask()).status for _ in range(2)]
        # For the body of each, and once for what comes after it.
        assert 2 <= app.asked <= 4
        assert_problem(await client.ask({"user": "bob"}), 403, "forbidden")
    gc.collect()  # asyncio tells of a task whose failure nobody saw when the task is gone
    assert [] == caplog.messages


@pytest.mark.fault(45)
async def test_a_function_as_a_middleware_may_give_the_body_again(
    open_service: OpenService, caplog: pytest.LogCaptureFixture
) -> None:
    """The recipe for FastAPI's ``@app.middleware("http")``, and the body read there without it."""
    app = FastAPI()
    asked = 0

    @app.middleware("http")
    async def log_body(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        body = await request.body()

        async def receive() -> Message:
            nonlocal asked
            asked += 1
            if asked > FAR_TOO_OFTEN:
                raise AskedWithoutEnd
            return {"type": "http.request", "body": body}

        if "X-Replay" in request.headers:
            request._receive = receive
        return await call_next(request)

    app.add_middleware(GZipMiddleware, minimum_size=1)
    service = open_service()
    aioivschat.starlette.setup(app, authorize=Rule(), service=service, policy=GENEROUS)
    async with running_asgi(app) as url, aiohttp.ClientSession() as session:
        client = Client(session, f"{url}/chat/token")
        assert 200 == (await client.ask({"room": ROOM})).status
        assert 200 == (await client.ask({"room": ROOM}, headers={"X-Replay": "1"})).status
        assert_problem(
            await client.ask({"user": "bob"}, headers={"X-Replay": "1"}), 403, "forbidden"
        )
    assert [] == caplog.messages


@pytest.mark.fault(45)
async def test_a_disconnect_at_once_is_one(
    open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A server may tell it before anybody watches: nothing is sent to AWS for who has left."""

    def disconnect(body: bytes, receive: Receive) -> Receive:
        async def gone() -> Message:
            return {"type": "http.disconnect"}

        return _once(body, gone)

    inner = Starlette()
    service = open_service(quota=Quota(rate=0.2))
    await service.issue(TokenRequest(ROOM, "first"), fresh=True)
    aioivschat.starlette.setup(inner, authorize=Rule(), service=service)
    async with (
        running_asgi(ReplaysBody(inner, disconnect)) as url,
        aiohttp.ClientSession() as session,
    ):
        client = Client(session, f"{url}/chat/token")
        for _ in range(2):
            assert 499 == (await client.ask()).status
        # Its predicted wait is more than its patience, so that it is refused before it waits.
        assert 503 == (await client.ask(headers={"Prefer": "wait=1"})).status
        await until(lambda: service.stats().waiting == 0)
    assert 1 == count_requests(ivschat_emulator)


class BreaksBody:
    """A middleware that spoils the body on its way in."""

    def __init__(self, app: Any, receive: Receive) -> None:
        self._app = app
        self._receive = receive

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """Pass a request on with another body."""
        own = self._receive if scope["type"] == "http" and scope["method"] == "POST" else receive
        await self._app(scope, own, send)


@pytest.mark.fault(45)
async def test_a_body_without_an_end_is_too_large(open_service: OpenService) -> None:
    """Messages without a byte, of which there is always one more, are not read for ever."""
    asked = 0

    async def receive() -> Message:
        nonlocal asked
        asked += 1
        if asked > FAR_TOO_OFTEN:
            raise AskedWithoutEnd
        return {"type": "http.request", "body": b"", "more_body": True}

    inner = Starlette()
    aioivschat.starlette.setup(inner, authorize=Rule(), service=open_service())
    async with (
        running_asgi(BreaksBody(inner, receive)) as url,
        aiohttp.ClientSession() as session,
    ):
        client = Client(session, f"{url}/chat/token")
        assert_problem(await client.ask(), 413, "too-large")


@pytest.mark.fault(45)
async def test_a_body_may_come_byte_by_byte(open_service: OpenService) -> None:
    """The largest body is read also if each byte is a message, and the last has none."""
    body = b'{"capabilities":["SEND_MESSAGE"]}'.ljust(4096)
    messages = iter([body[i : i + 1] for i in range(len(body))] + [b""])
    left = len(body) + 1

    async def receive() -> Message:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": next(messages), "more_body": left > 0}

    inner = Starlette()
    aioivschat.starlette.setup(inner, authorize=Rule(), service=open_service())
    async with (
        running_asgi(BreaksBody(inner, receive)) as url,
        aiohttp.ClientSession() as session,
    ):
        # What comes after the body fails here, as the middleware's messages are used up.
        assert 200 == (await Client(session, f"{url}/chat/token").ask()).status


@pytest.mark.fault(45)
async def test_a_body_that_was_taken_is_not_waited_for_without_end(
    open_service: OpenService,
) -> None:
    """A middleware that reads the body and gives it to nobody: the client is told in time."""

    class Takes:
        def __init__(self, app: Any) -> None:
            self._app = app

        async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
            if scope["type"] == "http":
                await Request(scope, receive).body()
            await self._app(scope, receive, send)

    inner = Starlette(middleware=[Middleware(Takes)])
    policy = EndpointPolicy(patience=0.2)
    aioivschat.starlette.setup(inner, authorize=Rule(), service=open_service(), policy=policy)
    async with running_asgi(inner) as url, aiohttp.ClientSession() as session:
        assert_problem(await Client(session, f"{url}/chat/token").ask(), 408, "no-body")


@pytest.mark.parametrize("kind", ["aiohttp", "starlette"])
@pytest.mark.fault(45)
async def test_a_body_that_never_comes_is_not_waited_for_without_end(
    kind: str, open_service: OpenService
) -> None:
    """A client that promises a body and sends half of it is told in time, and nothing is asked."""
    rule, policy = Rule(), EndpointPolicy(patience=0.2)
    if kind == "aiohttp":
        web_app = web.Application()
        aioivschat.aiohttp.setup(web_app, authorize=rule, service=open_service(), policy=policy)
        server = running(web_app)
    else:
        app = Starlette()
        aioivschat.starlette.setup(app, authorize=rule, service=open_service(), policy=policy)
        server = running_asgi(app)
    async with server as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(
            b"POST /chat/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        async with asyncio.timeout(20):
            status = await reader.readline()
        writer.close()
        await writer.wait_closed()
    assert b" 408 " in status
    assert 0 == rule.calls


@pytest.mark.fault(45)
async def test_the_failure_of_a_middleware_is_its_own(open_service: OpenService) -> None:
    """If it cannot give the body, that is the application's error; the next request is served."""
    failures = [RuntimeError("it is broken"), ClientDisconnect()]

    class Fails:
        def __init__(self, app: Any) -> None:
            self._app = app

        async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
            async def fail() -> Message:
                raise failures.pop(0)

            await self._app(scope, fail if failures else receive, send)

    inner = Starlette(middleware=[Middleware(Fails)])
    aioivschat.starlette.setup(inner, authorize=Rule(), service=open_service(), policy=GENEROUS)
    connector = aiohttp.TCPConnector(force_close=True)  # uvicorn closes it after a failure
    async with (
        running_asgi(_without_lifespan(inner)) as url,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        client = Client(session, f"{url}/chat/token")
        assert [500, 499, 200] == [(await client.ask()).status for _ in range(3)]


def _without_lifespan(app: Any) -> Any:
    """Do what daphne does: serve no lifespan, and no state of one."""

    async def serve(scope: Any, receive: Receive, send: Any) -> None:
        assert scope["type"] == "http"
        await app({name: scope[name] for name in scope if name != "state"}, receive, send)

    return serve


@pytest.mark.fault(45)
async def test_a_server_without_lifespan_is_told_as_such(
    ivschat_env: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The error says who should have run the lifespan, and names servers that never do."""
    app = FastAPI()
    aioivschat.starlette.setup(app, authorize=Rule())
    async with running_asgi(_without_lifespan(app)) as url, aiohttp.ClientSession() as session:
        assert 500 == (await Client(session, f"{url}/chat/token").ask()).status
    (error,) = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert isinstance(error, InvalidConfiguration)
    assert "no lifespan has run" in str(error)
    assert "daphne" in str(error)


@pytest.mark.fault(45)
async def test_a_service_that_is_handed_in_needs_no_lifespan(open_service: OpenService) -> None:
    """Neither on a server that runs none, nor in a mounted application."""
    mounted = FastAPI()
    aioivschat.starlette.setup(mounted, authorize=Rule(), service=open_service())
    app = FastAPI()
    app.mount("/inner", mounted)
    async with running_asgi(_without_lifespan(app)) as url, aiohttp.ClientSession() as session:
        assert 200 == (await Client(session, f"{url}/inner/chat/token").ask()).status


@pytest.mark.fault(45)
async def test_middlewares_of_aiohttp_may_take_the_body(open_service: OpenService) -> None:
    """Read as text, JSON or a form it is there again; read in pieces it is gone, and so told."""
    readers: list[Callable[[web.Request], Awaitable[Any]]] = [
        lambda request: request.text(),
        lambda request: request.json(),
        lambda request: request.post(),
        lambda request: request.content.read(),
    ]

    @web.middleware
    async def take(request: web.Request, handler: Any) -> web.StreamResponse:
        await readers[int(request.headers["X-Reader"])](request)
        response: web.StreamResponse = await handler(request)
        response.enable_compression()
        return response

    app = web.Application(middlewares=[take])
    aioivschat.aiohttp.setup(app, authorize=Rule(), service=open_service(), policy=GENEROUS)
    async with running(app) as url, aiohttp.ClientSession() as session:
        client = Client(session, f"{url}/chat/token")
        answers = [
            await client.ask({"room": ROOM}, headers={"X-Reader": str(reader)})
            for reader in range(len(readers))
        ]
    assert [200, 200, 200, 400] == [answer.status for answer in answers]
    assert_problem(answers[-1], 400, "bad-request")


def test_the_service_of_an_application_that_has_not_started_is_told_as_such() -> None:
    """It is another mistake than to have set up nothing."""
    app = web.Application()
    with pytest.raises(InvalidConfiguration, match="no setup"):
        aioivschat.aiohttp.get_service(app)
    aioivschat.aiohttp.setup(app, authorize=Rule())
    with pytest.raises(InvalidConfiguration, match="no start"):
        aioivschat.aiohttp.get_service(app)
