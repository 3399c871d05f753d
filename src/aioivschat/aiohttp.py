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

from aioivschat._contexts import call_later
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
from aioivschat.errors import InvalidConfiguration, require

__all__ = ["SERVICE", "Ask", "EndpointPolicy", "Share", "get_service", "openapi", "setup"]

SERVICE = web.AppKey("aioivschat", AsyncTokenService)
"""Where the application keeps the service."""

_SWEEP_SECONDS = 0.25
"""Poll interval for disconnected clients; until noticed, they keep their reservations."""


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
    ``Idempotency-Key`` and ``Prefer``; no header of its answers needs to be exposed.

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
    module = BrowserModule()
    clients = _WaitingClients()
    app[_MOUNTED] = True
    if service is None:
        app.cleanup_ctx.append(_open_own_service)
    else:
        app[SERVICE] = service

    async def post_token(request: web.Request) -> web.Response:
        watch = partial(clients.watch, request)
        try:
            received = Received(request.headers, await _read_payload(request, policy.patience))
            reply = await endpoint.respond(get_service(app), request, received, watch)
        except ConnectionError:
            return _make_response(CLIENT_GONE)
        except web.HTTPException as reply_of_rule:
            reply_of_rule.headers[hdrs.CACHE_CONTROL] = "no-store"
            raise
        return _make_response(reply)

    async def get_module(request: web.Request) -> web.Response:
        return _make_response(module.respond(request.headers))

    app.router.add_post(path, post_token)
    app.router.add_get(provider_path(path), get_module)


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
    if service is None:
        limit = "set up, and the application started"
        found = "no start of the application" if _MOUNTED in config else "no setup"
        raise InvalidConfiguration("aioivschat.aiohttp", limit, found)
    return service


_MOUNTED = web.AppKey("aioivschat_mounted", bool)


async def _open_own_service(app: web.Application) -> AsyncIterator[None]:
    async with AsyncTokenService() as service:
        app[SERVICE] = service
        yield


async def _read_payload(request: web.Request, seconds: float) -> bytes | Unread:
    """Return the body, if it is there within so many seconds."""
    content = request.content
    try:
        if content.is_eof():
            # A small body comes with its headers. If there is none, a middleware may have read it.
            return content.read_nowait() or await request.read()
        if (request.content_length or 0) > BODY_MAX_BYTES:
            return Unread.TOO_LARGE
        return await read_in_time(read_body(content.iter_any()), seconds)
    except web.RequestPayloadError:
        # The body cannot be decompressed. The endpoint refuses any Content-Encoding, or else an
        # empty body as no JSON.
        return b""


class _WaitingClients:
    """Notices which of the clients that wait have disconnected.

    aiohttp cancels handlers only where the server is told to, and has no event for it; so one
    timer polls the connections of all who wait.
    """

    def __init__(self) -> None:
        self._requests: dict[Callable[[], None], web.Request] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, request: web.Request, cancel: Callable[[], None]) -> Callable[[], None]:
        """Call ``cancel`` once when the client has disconnected; return what ends the watching."""
        self._requests[cancel] = request
        if self._timer is None:
            self._timer = call_later(_SWEEP_SECONDS, self._sweep)
        return partial(self._unwatch, cancel)

    def _unwatch(self, cancel: Callable[[], None]) -> None:
        self._requests.pop(cancel, None)
        if not self._requests and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = call_later(_SWEEP_SECONDS, self._sweep)
        for cancel, request in list(self._requests.items()):
            if request.transport is None or request.transport.is_closing():
                self._unwatch(cancel)
                cancel()


def _make_response(reply: Reply) -> web.Response:
    return web.Response(status=reply.status, headers=reply.headers, body=reply.body)
