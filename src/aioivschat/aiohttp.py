"""The token endpoint for aiohttp's web server.

::

    app = web.Application()
    aioivschat.aiohttp.setup(app, authorize=authorize)
    web.run_app(app)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

from aiohttp import hdrs, web

from aioivschat._endpoint.endpoint import (
    BODY_MAX_BYTES,
    NOBODY,
    PATH,
    Answer,
    Ask,
    Authorize,
    Endpoint,
    EndpointPolicy,
    Provider,
    Received,
    Share,
    missing_service,
    openapi,
    provider_path,
)
from aioivschat._service.service import AsyncTokenService
from aioivschat.errors import require

__all__ = ["SERVICE", "Ask", "EndpointPolicy", "Share", "get_service", "openapi", "setup"]

SERVICE = web.AppKey("aioivschat", AsyncTokenService)
"""Where the application keeps the service."""

_SWEEP = 0.25
"""Seconds between two looks at who is still there: a place in the queue is soon free again."""


def setup(
    app: web.Application,
    *,
    authorize: Authorize[web.Request] | None = None,
    service: AsyncTokenService | None = None,
    path: str = PATH,
    policy: EndpointPolicy = EndpointPolicy(),  # noqa: B008 (frozen)
) -> None:
    """Mount the token endpoint: ``POST`` to it, and the browsers' module beside it.

    CORS is the application's own affair. The endpoint uses the request headers ``Content-Type``,
    ``Idempotency-Key`` and ``Prefer``, and answers with ``Retry-After``.

    Args:
        app: the application, or a sub-application.
        authorize: required: an async function that is given the request and an :class:`Ask`, and
            returns the ``TokenRequest`` that the caller of the request is granted, or ``None`` to
            refuse (403). To answer in its own way, 401 say, it raises a ``web.HTTPException``. A
            request that asks for more than is granted is refused; one that asks for less gets
            less. It runs again after a wait, so it must give the same caller the same. The
            request's body has been read.
        service: an open service, which is left open; by default one is opened when the application
            starts and closed when it ends.
        path: where the endpoint is; the module for browsers is at the same with ``-provider.js``.
        policy: how callers are treated.

    Raises:
        InvalidConfiguration: there is no ``authorize``, or the application has an endpoint.
    """
    mounted = SERVICE in app or _MOUNTED in app
    require(not mounted, "setup", "called once for an application", "a second call")
    endpoint = Endpoint(authorize, policy, passed_on=web.HTTPException)
    provider = Provider()
    departures = _Departures()
    app[_MOUNTED] = True
    if service is None:
        app.cleanup_ctx.append(_own_service)
    else:
        app[SERVICE] = service

    async def token(request: web.Request) -> web.Response:
        watch = partial(departures.watch, request)
        try:
            received = Received(request.headers, await _body(request))
            answer = await endpoint.respond(get_service(app), request, received, watch)
        except ConnectionError:
            return _response(NOBODY)
        except web.HTTPException as answer_of_rule:
            answer_of_rule.headers[hdrs.CACHE_CONTROL] = "no-store"
            raise
        return _response(answer)

    async def module(request: web.Request) -> web.Response:
        return _response(provider.respond(request.headers))

    app.router.add_post(path, token)
    app.router.add_get(provider_path(path), module)


def get_service(place: web.Request | web.Application) -> AsyncTokenService:
    """Return the open service.

    Args:
        place: a request to the application that :func:`setup` was called on, or to one that is
            mounted under it; or that application itself.

    Raises:
        InvalidConfiguration: there is none: not set up, or not started.
    """
    config = place.config_dict if isinstance(place, web.Request) else place
    service: AsyncTokenService | None = config.get(SERVICE)
    return service or missing_service("aioivschat.aiohttp")


_MOUNTED = web.AppKey("aioivschat_mounted", bool)


async def _own_service(app: web.Application) -> AsyncIterator[None]:
    async with AsyncTokenService() as service:
        app[SERVICE] = service
        yield


async def _body(request: web.Request) -> bytes | None:
    """Return the body, or ``None`` if it is too large."""
    try:
        return await _read(request)
    except web.RequestPayloadError:
        # Not compressed as it says it is: refused for that, or else for being no JSON.
        return b""


async def _read(request: web.Request) -> bytes | None:
    """Return the body, or ``None`` as soon as it is too large."""
    content = request.content
    if content.is_eof():
        # A small body comes with its headers. If there is none, a middleware may have read it.
        return content.read_nowait() or await request.read()
    if (request.content_length or 0) > BODY_MAX_BYTES:
        return None
    body = b""
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            return None
    return body


class _Departures:
    """Tells of clients that went away while they waited.

    aiohttp cancels handlers only where the server is told to, and has no event for it; so one
    timer looks after all who wait.
    """

    def __init__(self) -> None:
        self._waiting: dict[Callable[[], None], web.Request] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, request: web.Request, leave: Callable[[], None]) -> Callable[[], None]:
        """Call ``leave`` once when the client is gone; return what ends that."""
        self._waiting[leave] = request
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SWEEP, self._sweep)
        return lambda: self._unwatch(leave)

    def _unwatch(self, leave: Callable[[], None]) -> None:
        self._waiting.pop(leave, None)
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_SWEEP, self._sweep)
        for leave, request in list(self._waiting.items()):
            if request.transport is None or request.transport.is_closing():
                self._unwatch(leave)
                leave()


def _response(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)
