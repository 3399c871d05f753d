"""The chat edge: WebSockets in front of the model's chat, on the control plane's own port.

Source: IVS Chat Messaging API Reference, "Connecting to a Room": the token is the WebSocket
subprotocol. What the edge at AWS answers to an unknown, spent or expired token is not published.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from contextlib import suppress

from aiohttp import WSMsgType, web

from ._chat import CLOSE_GOING_AWAY, CLOSE_NORMAL, Chat, Close, Connection
from ._frames import edge_error, error_frame
from ._model import Emulator
from ._tokens import TokenError
from ._wire import Drop

# The time that a client has to read what it is sent and to answer a close frame.
_CLOSE_TIMEOUT_SECONDS = 2.0
# Far above every limit of the API, so that a member that is too long is answered with an ERROR.
_FRAME_LIMIT_BYTES = 128 * 1024
# "token" in RFC 9110. aiohttp would log any other subprotocol, and might fail to echo it.
_SUBPROTOCOL = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_CLOSE_UNAUTHORIZED = 4401  # of the codes for applications, the one most like HTTP's 401

# SO_LINGER, on, for 0 seconds: closing makes the kernel send a reset instead of an orderly end.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset_transport(transport: asyncio.WriteTransport) -> None:
    """Close a connection at once with a reset; what was not sent yet is lost."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


def is_handshake(request: web.BaseRequest) -> bool:
    """Return whether a request is a WebSocket handshake, whatever its path."""
    return request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket"


class ChatEdge:
    """Serves the WebSockets of an emulator's chat, all on one event loop."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._clients: set[_Client] = set()

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one connection from its handshake to its end."""
        token = _read_token(request)
        websocket = web.WebSocketResponse(
            protocols=[token] if token else [],
            timeout=_CLOSE_TIMEOUT_SECONDS,
            compress=False,
            max_msg_size=_FRAME_LIMIT_BYTES,
        )
        # Before the token is spent: a handshake that fails must not spend it.
        if token is None or not websocket.can_prepare(request) or request.transport is None:
            return web.Response(status=400)
        try:
            client = _Client(self._emulator.chat, token, websocket, request.transport)
        except TokenError:
            return await self._refuse(request, websocket)
        self._clients.add(client)
        try:
            await client.serve(request)
        finally:
            self._clients.discard(client)
        return websocket

    async def _refuse(
        self, request: web.BaseRequest, websocket: web.WebSocketResponse
    ) -> web.StreamResponse:
        refusal = self._emulator.settings.refusal
        if refusal == "http":
            return web.json_response({"message": "The token is not valid"}, status=403)
        with suppress(ConnectionError):
            await websocket.prepare(request)
            if refusal == "error":
                await websocket.send_str(error_frame(edge_error(401, "The token is not valid")))
            code = CLOSE_NORMAL if refusal == "error" else _CLOSE_UNAUTHORIZED
            await websocket.close(code=code, message=b"token not valid")
        return websocket

    def close(self) -> None:
        """Close the connections of this edge; others may serve the same emulator."""
        for client in list(self._clients):
            client.close(Close(CLOSE_GOING_AWAY, "the server stops"))


class _Client:
    """Opens a chat connection, or raises `TokenError`, and passes frames to and from its client."""

    def __init__(
        self,
        chat: Chat,
        token: str,
        websocket: web.WebSocketResponse,
        transport: asyncio.Transport,
    ) -> None:
        self._chat = chat
        self._websocket = websocket
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._something_to_send = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._connection = chat.connect(token, self._notify)

    def _notify(self, connection: Connection) -> None:
        # Called by any thread, as soon as the connection is open.
        if threading.get_ident() == self._thread:
            self._wake_writer(connection)
        else:
            with suppress(RuntimeError):  # the loop has closed, and the connection with it
                self._loop.call_soon_threadsafe(self._wake_writer, connection)

    def close(self, ending: Close) -> None:
        self._chat.close(self._connection, ending)

    async def serve(self, request: web.BaseRequest) -> None:
        """Accept the handshake, and serve the connection until it ends."""
        connection = self._connection
        writer: asyncio.Task[None] | None = None
        try:
            # A client renews its session by a second connection, and drops the first one as soon as
            # the second is open: what was sent before that one joined has to be on its way by then.
            await asyncio.sleep(0)
            await self._websocket.prepare(request)
            self._end_session_in_time()
            writer = asyncio.create_task(self._send_frames())
            async for message in self._websocket:
                if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                    self._chat.receive(connection, message.data)
            if connection.ending is not None:
                await writer  # it sends the close frame, and waits for the client's
        except ConnectionError:
            pass  # the client is gone
        finally:
            self._chat.leave(connection)
            for timer in self._timers.values():
                timer.cancel()
            if writer is not None:
                writer.cancel()

    async def _send_frames(self) -> None:
        connection = self._connection
        with suppress(ConnectionError):
            while True:
                # Read the ending before the frames: no frame is added once it is set.
                ending = connection.ending
                while (frame := connection.take()) is not None:
                    await self._websocket.send_str(frame)
                if isinstance(ending, Close):
                    message = ending.reason.encode()
                    await self._websocket.close(code=ending.code, message=message)
                    return
                await self._something_to_send.wait()
                self._something_to_send.clear()

    def _wake_writer(self, connection: Connection) -> None:
        self._something_to_send.set()
        if isinstance(connection.ending, Drop):
            reset_transport(self._transport)
        elif connection.ending is not None and "close" not in self._timers:
            # The writer may be blocked by a client that reads nothing.
            self._timers["close"] = self._loop.call_later(
                _CLOSE_TIMEOUT_SECONDS, reset_transport, self._transport
            )

    def _end_session_in_time(self) -> None:
        # The loop's clock is not the emulator's: the timer may fire a little early, and runs again.
        left = self._chat.expire(self._connection)
        if left > 0:
            self._timers["session"] = self._loop.call_later(left, self._end_session_in_time)


def _read_token(request: web.BaseRequest) -> str | None:
    """Return the first subprotocol of a handshake; empty without any, None if malformed."""
    header = request.headers.get("Sec-WebSocket-Protocol")
    if header is None:
        return ""
    offered = header.partition(",")[0].strip()
    return offered if _SUBPROTOCOL.fullmatch(offered) else None
