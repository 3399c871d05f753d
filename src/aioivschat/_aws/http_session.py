"""The HTTP session of AWS's clients, through which both ways send."""

from __future__ import annotations

import asyncio
import inspect
import select
import sys
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar
from functools import partial
from typing import Any, cast

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession
from aiohttp.client_proto import ResponseHandler

from aioivschat._aws.internals import limits_of
from aioivschat._contexts import call_later, run_detached

before_leaving: ContextVar[Callable[[], Awaitable[bool]] | None] = ContextVar(
    "aioivschat_before_leaving", default=None
)
"""Awaited by a request that has its connection, just before its bytes leave; returns whether that
took time. A request that has to look for another connection awaits it again."""


class HttpSession(AIOHTTPSession):
    """aiobotocore's HTTP session, which sends by :class:`Sender`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._senders: dict[str | None, Sender] = {}

    async def _get_session(self, proxy_url: str | None) -> Sender:
        sender = self._senders.get(proxy_url)
        if sender is None:
            made = super()._get_session(proxy_url)  # type: ignore[misc]  # it is private
            session = await run_detached(made)
            # Another request may have come here meanwhile: a session is for one sender.
            sender = self._senders.get(proxy_url)
            if sender is None:
                sender = self._senders[proxy_url] = Sender(session, limits_of(self))
        return sender

    async def get_sender(self, proxy_url: str | None = None) -> Sender:
        """Return the sender for the hosts of a proxy; ``None``: for those without one."""
        return self._senders.get(proxy_url) or await self._get_session(proxy_url)


class Sender:
    """Sends requests over the connections of a session of aiohttp's.

    An answer is read whole, within the seconds for connecting and reading together. No redirect is
    followed, as the request is for AWS alone, and no connection is used on which something came
    that nobody had asked for: it would be taken for an answer. Connections keep nothing alive of
    the calls that they were made for.
    """

    def __init__(self, session: aiohttp.ClientSession, limits: aiohttp.ClientTimeout) -> None:
        self._session = session
        # Waiting for a free connection and opening one count too.
        self._deadlines = _Deadlines((limits.sock_connect or 0.0) + (limits.sock_read or 0.0))
        # A timer of aiohttp's for reading would keep its call's context until it is due.
        self._limits = aiohttp.ClientTimeout(sock_connect=limits.sock_connect)
        _guard_connections(session.connector)

    async def request(self, method: str, **options: Any) -> aiohttp.ClientResponse:
        """Send a request, and read its answer to the end.

        Args:
            method: of HTTP.
            options: those of ``aiohttp.ClientSession.request``.

        Raises:
            TimeoutError: it took too long.
            aiohttp.ClientError: there is no whole answer.
        """
        options.setdefault("timeout", self._limits)
        task = self._deadlines.begin()
        try:
            response = await self._session.request(method, allow_redirects=False, **options)
            await response.read()
            return response
        except asyncio.CancelledError:
            if not self._deadlines.took_back_cancellation(task):
                raise
        finally:
            self._deadlines.end(task)
        raise TimeoutError


class _Deadlines:
    """Cancels tasks whose request is late; one timer serves all, as all have equal time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # When each is late, and how often it had been cancelled before.
        self._due: dict[asyncio.Task[Any], tuple[float, int]] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> asyncio.Task[Any]:
        loop = asyncio.get_running_loop()
        task = cast(asyncio.Task[Any], asyncio.current_task(loop))
        self._due[task] = loop.time() + self._seconds, task.cancelling()
        if self._timer is None:
            self._timer = call_later(self._seconds, self._cancel_late)
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        del self._due[task]
        self._late.discard(task)

    def took_back_cancellation(self, task: asyncio.Task[Any]) -> bool:
        """Take back the cancellation of a late task; tell whether there was no other."""
        return task in self._late and task.uncancel() <= self._due[task][1]

    def _cancel_late(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for task, (due, _) in self._due.items():
            if due > now:
                self._timer = call_later(due - now, self._cancel_late)
                return
            if task not in self._late:
                self._late.add(task)
                task.cancel()


class _Connection(ResponseHandler):
    """A connection; it is closed if something comes while it is idle.

    Attributes:
        idle: whether it waits to be used again; ``None`` before its first use.
        poll: tells whether its socket has something to read.
    """

    idle: bool | None = None
    poll: Callable[[int], object] | None = None

    def data_received(self, data: bytes) -> None:
        if data and self.idle:
            self.close()
        else:
            super().data_received(data)

    # The next two register callbacks with the event loop, which keeps them after the call.

    def resume_reading(self, *arguments: Any, **options: Any) -> None:
        Context().run(super().resume_reading, *arguments, **options)

    def close(self) -> None:
        Context().run(super().close)


def _guard_connections(connector: Any) -> None:
    """Open connections in an empty context, and use none that has bytes nobody asked for."""
    own = inspect.unwrap(connector)  # a tracer may have put a proxy there
    kind = type(own)  # its methods are looked up for each call, as tracers replace some
    own._factory = partial(_Connection, loop=asyncio.get_running_loop())

    async def connect_and_look(*arguments: Any, **options: Any) -> Any:
        while True:
            connection = await kind.connect(own, *arguments, **options)
            try:
                if _is_fit(connection):
                    leave = before_leaving.get()
                    if leave is None or not await leave() or _is_fit(connection):
                        connection.protocol.idle = False
                        return connection
            except BaseException:
                connection.release()
                raise
            connection.close()

    def create_detached(*arguments: Any, **options: Any) -> Any:
        return run_detached(kind._create_connection(own, *arguments, **options))

    def release_detached(key: Any, protocol: Any, **options: Any) -> None:
        # Releasing may set the timer that closes idle connections.
        Context().run(kind._release, own, key, protocol, **options)
        protocol.idle = True

    own.connect, own._create_connection = connect_and_look, create_detached
    own._release = release_detached


def _is_fit(connection: Any) -> bool:
    """Tell whether a connection has neither bytes, nor its end, after the last answer."""
    protocol = connection.protocol
    if not protocol.idle:
        return True
    if protocol.should_close:
        return False
    # The event loop may not have read them yet.
    if protocol.poll is None:
        sock = connection.transport.get_extra_info("socket")
        if sys.platform == "win32":
            protocol.poll = lambda _: select.select([sock], [], [], 0)[0]
        else:
            found = select.poll()
            found.register(sock, select.POLLIN)
            protocol.poll = found.poll
    return not protocol.poll(0)
