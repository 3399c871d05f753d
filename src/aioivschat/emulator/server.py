"""The emulator's server on aiohttp: control plane, admin surface and chat edge on one port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Self

from aiohttp import web

from ._admin import ADMIN_PREFIX, answer_admin_request
from ._edge import ChatEdge, is_handshake, reset_transport
from ._model import Emulator
from ._wire import Answer, Hang, Outcome, Request, region_of

if TYPE_CHECKING:
    from ._sigv4 import SignatureVerifier

_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# How long aiohttp waits for handlers when the server stops: they sleep, or close a WebSocket.
_SHUTDOWN_SECONDS = 0.05


class _CountingServer(web.Server):
    """aiohttp's low-level server; counts every connection in the model."""

    def __init__(self, emulator: Emulator, handler: _Handler) -> None:
        # A client that closes its connection cancels its request: black holes would pile up.
        super().__init__(handler, handler_cancellation=True, access_log=None)
        self._emulator = emulator

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        self._emulator.connection_opened()
        super().connection_made(handler, transport)


class _Server:
    """What both servers share; one server may run again after it has stopped."""

    def __init__(
        self,
        emulator: Emulator | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        verify_signatures: bool = False,
        access_keys: Mapping[str, str] | None = None,
    ) -> None:
        self.emulator = emulator or Emulator()
        self._host = host
        self._port = port
        self._verifier: SignatureVerifier | None = None
        if verify_signatures:
            # Few servers check signatures, and botocore's signer takes long to import.
            from ._sigv4 import SignatureVerifier

            self._verifier = SignatureVerifier(access_keys)
        self._edge = ChatEdge(self.emulator)
        self._server: _CountingServer | None = None
        self._runner: web.ServerRunner | None = None
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The endpoint's URL, without a slash at its end.

        Raises:
            RuntimeError: the server is not running.
        """
        if self._url is None:
            raise RuntimeError("the emulator's server is not running")
        return self._url

    @property
    def edge_url(self) -> str:
        """The chat edge's URL, as chat clients take it in place of a region.

        Raises:
            RuntimeError: the server is not running.
        """
        return self.url.replace("http", "ws", 1)

    def drop_connections(self, user: str | None = None) -> int:
        """Cut chat connections at once, without a close frame, as a lost network would.

        Args:
            user: the user id whose connections are cut; None for everybody's.

        Returns:
            The number of connections cut.
        """
        return self.emulator.chat.drop(user)

    async def _start(self) -> None:
        self._closing = asyncio.Event()
        self._server = _CountingServer(self.emulator, self._handle_request)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=_SHUTDOWN_SECONDS)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except BaseException:
            await self._runner.cleanup()
            raise
        port = self._runner.addresses[0][1]
        self._url = f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{port}"

    async def _stop(self) -> None:
        self._url = None
        self._closing.set()
        self._edge.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def reset_connections(self) -> None:
        """Reset every open connection, idle ones included."""
        if self._server is not None:
            for connection in self._server.connections:
                if connection.transport is not None:
                    reset_transport(connection.transport)

    async def _handle_request(self, request: web.BaseRequest) -> web.StreamResponse:
        if is_handshake(request):
            return await self._edge.serve(request)
        if request.path.startswith(ADMIN_PREFIX):
            body = await request.read()
            return _make_response(
                answer_admin_request(self.emulator, request.method, request.path, body)
            )
        with self.emulator.flights:
            outcome = self._respond(request, await request.read())
            if isinstance(outcome, Hang):
                await self._closing.wait()
            elif outcome.delay:
                await asyncio.sleep(outcome.delay)
            return _send_outcome(request, outcome)

    def _respond(self, request: web.BaseRequest, body: bytes) -> Outcome:
        denial = None
        if self._verifier is not None:
            headers = {name.lower(): value for name, value in request.headers.items()}
            denial = self._verifier.find_denial(
                request.method, str(request.url), headers, body, self.emulator.now()
            )
        operation = request.path[1:] if request.method == "POST" else ""
        region = region_of(request.headers.get("Authorization"))
        return self.emulator.respond(Request(operation, body, region, denial=denial))


class EmulatorServer(_Server):
    """Serves the emulator on the running event loop.

    ::

        async with EmulatorServer() as server:
            client = session.create_client("ivschat", endpoint_url=server.url, ...)

    Args:
        emulator: the model to serve; None for a new one.
        host: the address to listen on.
        port: the port to listen on; 0 for one that is free.
        verify_signatures: answer 403 to a request whose SigV4 signature is not good.
        access_keys: secret access keys by access key id; None for ``testing``/``testing``.

    Attributes:
        emulator: the model.

    Raises:
        OSError: on entering, the address cannot be listened on.
    """

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()


class ThreadedEmulatorServer(_Server):
    """Serves the emulator on an event loop in a thread of its own.

    For code that is not async, and for fixtures: ``with ThreadedEmulatorServer() as server:``.
    Arguments and attributes are those of `EmulatorServer`. The model may be used from any thread.

    Raises:
        OSError: on entering, the address cannot be listened on.
    """

    def __enter__(self) -> Self:
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)),
            name="ivschat-emulator",
            daemon=True,
        )
        self._thread.start()
        try:
            started.result()
        except BaseException:
            self._thread.join()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def reset_connections(self) -> None:
        """Reset every open connection, idle ones included; from any thread."""
        reset_in_loop = super().reset_connections

        async def reset() -> None:
            reset_in_loop()

        asyncio.run_coroutine_threadsafe(reset(), self._loop).result()

    async def _serve(self, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        await self._closing.wait()
        await self._stop()


def _send_outcome(request: web.BaseRequest, outcome: Outcome) -> web.StreamResponse:
    transport = request.transport
    if not isinstance(outcome, Answer):
        if transport is not None:
            reset_transport(transport)
        # aiohttp needs a response; it is not sent, as the transport is closed.
        return web.Response()
    if "Date" not in outcome.headers:
        # aiohttp would add a Date: write the answer to the transport directly.
        if transport is not None:
            transport.write(outcome.to_bytes())
            transport.close()
        return web.Response()
    return _make_response(outcome)


def _make_response(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)
