"""The token endpoint for Starlette and FastAPI.

::

    app = FastAPI()
    aioivschat.starlette.setup(app, authorize=authorize)

or, piece by piece, ``Starlette(routes=[*routes(authorize=authorize)], lifespan=lifespan())``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive

from aioivschat._endpoint.asks import Ask
from aioivschat._endpoint.browser import PATH, BrowserModule, openapi, provider_path
from aioivschat._endpoint.endpoint import Authorize, Endpoint
from aioivschat._endpoint.exchange import (
    BODY_MAX_BYTES,
    CLIENT_GONE,
    Received,
    Reply,
    Unread,
    read_body,
    read_in_time,
)
from aioivschat._endpoint.rate_limits import EndpointPolicy, Share
from aioivschat._service.service import AsyncTokenService
from aioivschat.errors import InvalidConfiguration

__all__ = [
    "Ask",
    "EndpointPolicy",
    "Share",
    "get_service",
    "lifespan",
    "openapi",
    "routes",
    "setup",
]

_STATE = "aioivschat_service"

_MESSAGES_MAX = BODY_MAX_BYTES + 1
"""Messages that a body may come in: each but the last should have a byte."""

_AnyLifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]
_Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]


def setup(
    app: Starlette,
    *,
    authorize: Authorize[Request] | None = None,
    service: AsyncTokenService | None = None,
    path: str = PATH,
    policy: EndpointPolicy = EndpointPolicy(),  # noqa: B008 (frozen)
) -> None:
    """Mount the token endpoint on a Starlette or FastAPI application.

    It adds :func:`routes`, and puts :func:`lifespan` around the application's own. Servers do not
    run the lifespan of a mounted application: give the outermost one the lifespan then, and the
    mounted one the routes.

    Args:
        app: the application.
        authorize: as for :func:`routes`.
        service: as for :func:`lifespan`; one that is handed in is found without a lifespan too.
        path: as for :func:`routes`.
        policy: how callers are treated.

    Raises:
        InvalidConfiguration: there is no ``authorize``.
    """
    app.router.routes.extend(routes(authorize=authorize, path=path, policy=policy))
    app.router.lifespan_context = lifespan(app.router.lifespan_context, service=service)
    if service is not None:
        setattr(app.state, _STATE, service)  # found there by servers that run no lifespan


def routes(
    *,
    authorize: Authorize[Request] | None = None,
    path: str = PATH,
    policy: EndpointPolicy = EndpointPolicy(),  # noqa: B008 (frozen)
) -> list[Route]:
    """Return the route of the endpoint and that of the browsers' module beside it.

    CORS is the application's own affair. The endpoint uses the request headers ``Content-Type``,
    ``Idempotency-Key`` and ``Prefer``; no header of its answers needs to be exposed.

    Args:
        authorize: required: an async function that is given the request and an :class:`Ask`, and
            returns the ``TokenRequest`` that the caller of the request is granted, or ``None`` to
            refuse (403). To answer in its own way, 401 say, it raises a Starlette or FastAPI
            ``HTTPException``. A request that asks for more than is granted is refused; one that
            asks for less gets less. It runs again after a wait, so it must give the same caller
            the same. The request's body has been read.
        path: where the endpoint is; the module for browsers is at the same with ``-provider.js``.
        policy: how callers are treated.

    Raises:
        InvalidConfiguration: there is no ``authorize``.
    """
    endpoint = Endpoint(authorize, policy, passed_on=HTTPException)
    module = BrowserModule()

    async def post_token(request: Request) -> Response:
        watch = partial(_watch_client, request.receive)
        request = Request(request.scope, _limit_messages(request.receive))
        try:
            received = Received(request.headers, await _read_payload(request, policy.patience))
            reply = await endpoint.respond(get_service(request), request, received, watch)
        except ClientDisconnect:
            return _make_response(CLIENT_GONE)
        except HTTPException as reply_of_rule:
            reply_of_rule.headers = {**(reply_of_rule.headers or {}), "Cache-Control": "no-store"}
            raise
        return _make_response(reply)

    async def get_module(request: Request) -> Response:
        return _make_response(module.respond(request.headers))

    return [
        Route(path, post_token, methods=["POST"], name="token", include_in_schema=False),
        Route(
            provider_path(path), get_module, methods=["GET"], name="module", include_in_schema=False
        ),
    ]


def lifespan(
    own: _AnyLifespan | None = None, *, service: AsyncTokenService | None = None
) -> _Lifespan:
    """Return a lifespan that has the service open, around the application's own.

    Args:
        own: the application's own lifespan, which starts after the service and ends before it.
        service: an open service, which is left open; by default one is opened when the application
            starts and closed when it ends.
    """

    @asynccontextmanager
    async def composed(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        async with AsyncExitStack() as stack:
            opened = service or await stack.enter_async_context(AsyncTokenService())
            state = await stack.enter_async_context(own(app)) if own is not None else None
            yield {**(state or {}), _STATE: opened}

    return composed


def get_service(connection: HTTPConnection) -> AsyncTokenService:
    """Return the open service: ``tokens: AsyncTokenService = Depends(get_service)``.

    Args:
        connection: a request, or a WebSocket, to the application or to one mounted under it.

    Raises:
        InvalidConfiguration: there is none: the lifespan is not set up, or was not run.
    """
    places = [connection.app, connection] if "app" in connection.scope else [connection]
    for place in places:
        service: AsyncTokenService | None = getattr(place.state, _STATE, None)
        if service is not None:
            return service
    raise InvalidConfiguration(
        "aioivschat.starlette",
        "opened by the lifespan of the outermost application, or handed in by setup(service=…)",
        "that no lifespan has run: neither setup() nor lifespan() made one, or the server runs "
        "none, as daphne, httpx's ASGITransport and a TestClient outside of a with block",
    )


async def _read_payload(request: Request, seconds: float) -> bytes | Unread:
    """Return the body, if it is there within so many seconds."""
    try:
        return await read_in_time(read_body(request.stream()), seconds)
    except _TooManyMessages:
        return Unread.TOO_LARGE


class _TooManyMessages(Exception):
    """A body comes in more messages than it may have bytes."""


def _limit_messages(receive: Receive) -> Receive:
    """Limit the messages of a body: a middleware may give empty ones for ever, and never wait."""
    messages = count(1)

    async def receive_limited() -> Message:
        if next(messages) > _MESSAGES_MAX:
            raise _TooManyMessages
        return await receive()

    return receive_limited


def _watch_client(receive: Receive, cancel: Callable[[], None]) -> Callable[[], None]:
    """Call ``cancel`` once when the client has disconnected; return what ends the watching."""

    async def listen() -> None:
        await asyncio.sleep(0)  # with eager tasks, `cancel` would cancel a task that is running
        # Once: a middleware that gives the body again and again would never let the loop go on.
        if (await receive())["type"] == "http.disconnect":
            cancel()

    listening = asyncio.create_task(listen())

    def unwatch() -> None:
        listening.cancel()  # if a middleware made it fail, asyncio does not report that either

    return unwatch


def _make_response(reply: Reply) -> Response:
    return Response(reply.body, reply.status, reply.headers)
