"""The chat edge: WebSockets in front of the model's chat, on the control plane's own port.

Source: IVS Chat Messaging API Reference, "Connecting to a Room": the token is the WebSocket
subprotocol. What the edge at AWS answers to a token that is of no use is not published.
"""

from __future__ import annotations

import asyncio
import re
import threading
from contextlib import suppress

from aiohttp import WSMsgType, web

from ._chat import Chat, Close, Connection
from ._frames import error_frame, refusal
from ._model import Emulator
from ._tokens import TokenError
from ._transport import reset
from ._wire import Drop

# Seconds that a client has to take what it is sent and to answer a close frame.
_PATIENCE = 2.0
# Bytes; far above every limit of the API, so that what is too large is told so by an ERROR.
_LARGEST_FRAME = 128 * 1024
# A subprotocol is a token of RFC 9110. aiohttp would log any other, and perhaps fail to echo it.
_SUBPROTOCOL = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_UNAUTHORIZED = 4401  # of the close codes left to applications, the one like HTTP's 401
_NORMAL = 1000
_GOING_AWAY = 1001


def is_handshake(request: web.BaseRequest) -> bool:
    """Tell whether a client wants a WebSocket; the path has no meaning."""
    return request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket"


class ChatEdge:
    """Serves WebSockets on the event loop that it is used on.

    Args:
        emulator: whose chat.
    """

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._lines: set[_Line] = set()

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Carry one connection from its handshake to its end."""
        token = _token(request)
        websocket = web.WebSocketResponse(
            protocols=[token] if token else [],
            timeout=_PATIENCE,
            compress=False,
            max_msg_size=_LARGEST_FRAME,
        )
        # A handshake that fails must not spend the token.
        if token is None or not websocket.can_prepare(request) or request.transport is None:
            return web.Response(status=400)
        line = _Line(self._emulator.chat, websocket, request.transport)
        try:
            connection = self._emulator.chat.connect(token, line.notify)
        except TokenError:
            return await self._refuse(request, websocket)
        self._lines.add(line)
        try:
            await line.carry(connection, request)
        finally:
            self._lines.discard(line)
        return websocket

    async def _refuse(
        self, request: web.BaseRequest, websocket: web.WebSocketResponse
    ) -> web.StreamResponse:
        how = self._emulator.settings.refusal
        if how == "http":
            return web.json_response({"message": "The token is not valid"}, status=403)
        with suppress(ConnectionError):
            await websocket.prepare(request)
            if how == "error":
                await websocket.send_str(error_frame(refusal(401, "The token is not valid")))
            code = _NORMAL if how == "error" else _UNAUTHORIZED
            await websocket.close(code=code, message=b"token not valid")
        return websocket

    def close(self) -> None:
        """Close the connections that are open here, whoever else serves the same emulator."""
        for line in list(self._lines):
            line.close(Close(_GOING_AWAY, "the server stops"))


class _Line:
    """Carries the frames of one connection over its WebSocket."""

    def __init__(
        self, chat: Chat, websocket: web.WebSocketResponse, transport: asyncio.Transport
    ) -> None:
        self._chat = chat
        self._websocket = websocket
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._news = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def notify(self, connection: Connection) -> None:
        """Hear of a frame or an end, from any thread."""
        if threading.get_ident() == self._thread:
            self._wake(connection)
        else:
            with suppress(RuntimeError):  # the loop has closed, and the connection with it
                self._loop.call_soon_threadsafe(self._wake, connection)

    def close(self, ending: Close) -> None:
        """End the connection from this side."""
        self._chat.close(self._connection, ending)

    async def carry(self, connection: Connection, request: web.BaseRequest) -> None:
        """Serve the connection until it ends."""
        self._connection = connection
        writer: asyncio.Task[None] | None = None
        try:
            await self._websocket.prepare(request)
            self._watch_session()
            writer = asyncio.create_task(self._write())
            async for message in self._websocket:
                if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                    self._chat.receive(connection, message.data)
            if connection.ending is not None:
                await writer  # which is closing, and waits for the client to close too
        except ConnectionError:
            pass  # the client is gone
        finally:
            self._chat.leave(connection)
            for timer in self._timers.values():
                timer.cancel()
            if writer is not None:
                writer.cancel()

    async def _write(self) -> None:
        connection = self._connection
        with suppress(ConnectionError):
            while True:
                # Before the frames: none is added after the ending.
                ending = connection.ending
                while (frame := connection.take()) is not None:
                    await self._websocket.send_str(frame)
                if isinstance(ending, Close):
                    message = ending.reason.encode()
                    await self._websocket.close(code=ending.code, message=message)
                    return
                await self._news.wait()
                self._news.clear()

    def _wake(self, connection: Connection) -> None:
        self._news.set()
        if isinstance(connection.ending, Drop):
            reset(self._transport)
        elif connection.ending is not None and "close" not in self._timers:
            # The writer may be stuck with a client that takes nothing.
            self._timers["close"] = self._loop.call_later(_PATIENCE, reset, self._transport)

    def _watch_session(self) -> None:
        # A timer may fire a little before its time on the emulator's clock.
        left = self._chat.expire(self._connection)
        if left > 0:
            self._timers["session"] = self._loop.call_later(left, self._watch_session)


def _token(request: web.BaseRequest) -> str | None:
    """Return the subprotocol that the client offers first; empty for none, None if malformed."""
    header = request.headers.get("Sec-WebSocket-Protocol")
    if header is None:
        return ""
    offered = header.partition(",")[0].strip()
    return offered if _SUBPROTOCOL.fullmatch(offered) else None
