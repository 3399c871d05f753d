"""A TCP proxy that delays, limits or ends connections between a client and its server as set.

Nothing on PyPI does this: toxiproxy's clients need its Go server, and the proxies in Python can
neither reset nor half-close a connection, and take no seed.
"""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from aioivschat.emulator._edge import reset_transport

Way = Literal["up", "down"]
"""Up is from the client to the server."""

_PIECE = 65_536
"""Bytes read at once."""


class End(Enum):
    """How a connection ends before its time."""

    CLOSE = "close"  # in order, both ways
    RESET = "reset"  # both ways
    HALF_CLOSE = "half close"  # one way only; the other goes on
    BLACK_HOLE = "black hole"  # stays open, and nothing passes that way


@dataclass(frozen=True, slots=True)
class Toxics:
    """What happens to the bytes that go one way.

    Args:
        latency: seconds by which each piece, as it is read, comes later; those behind it wait.
        jitter: up to so many seconds more, at random.
        bandwidth: bytes a second, above 0.
        slice: bytes that are passed on at once, at least 1.
        pause: seconds between slices.
        limit: bytes that pass on each connection from now on; ``None``: any number.
        end: what happens then; with a limit of 0, to the first byte.
    """

    latency: float = 0.0
    jitter: float = 0.0
    bandwidth: float = math.inf
    slice: int = _PIECE
    pause: float = 0.0
    limit: int | None = None
    end: End = End.CLOSE


NONE = Toxics()
HOLE = Toxics(limit=0, end=End.BLACK_HOLE)


class FaultProxy:
    """Listens on a free port of 127.0.0.1 for a server.

    Args:
        url: the server's, or just ``//host:port``.
        seed: of all that is random.

    Attributes:
        up: what happens on the way to the server; set it at any time, also for connections that
            are open.
        down: the same on the way back.
        muted: connections on which a client has sent this carry nothing any more; empty: none.
        accepted: connections so far.
        passed: bytes that were passed on so far, by way.
    """

    def __init__(self, url: str, seed: int = 0) -> None:
        self._target = urlsplit(url)
        self._rng = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[_Connection] = set()
        self.up = self.down = NONE
        self.muted = b""
        self.accepted = 0
        self.passed: dict[Way, int] = {"up": 0, "down": 0}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        self.end(End.RESET)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __len__(self) -> int:
        """Return how many connections are open."""
        return len(self._open)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The server's URL by way of here."""
        return f"{self._target.scheme}://127.0.0.1:{self.port}"

    def calm(self) -> None:
        """Pass on all bytes unchanged from now on; those that were lost stay lost."""
        self.up = self.down = NONE

    def end(self, how: End, way: Way = "down") -> None:
        """End every open connection now, idle ones included.

        Args:
            how: how.
            way: which way, if it is one.
        """
        for connection in self._open:
            connection.end(how, way)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection = None
        try:
            there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
            connection = _Connection(writer, back)
            self._open.add(connection)
            await asyncio.gather(
                self._carry("up", reader, back, connection),
                self._carry("down", there, writer, connection),
            )
        except OSError:
            reset_transport(writer.transport)  # as if nobody listened
        except asyncio.CancelledError:
            pass  # only the end of the proxy cancels this, and asyncio's callback would log it
        finally:
            if connection is not None:
                connection.end(End.CLOSE, "down")
                self._open.discard(connection)
            self._tasks.discard(task)

    async def _carry(
        self,
        way: Way,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: _Connection,
    ) -> None:
        """Pass on what comes one way, until it ends."""
        toxics, left = NONE, math.inf
        try:
            while piece := await reader.read(_PIECE):
                if way == "up":
                    connection.sent = (connection.sent + piece)[:_PIECE]
                if self.muted and self.muted in connection.sent:
                    connection.end(End.BLACK_HOLE, "up")
                    connection.end(End.BLACK_HOLE, "down")
                now = self.up if way == "up" else self.down
                if now is not toxics:
                    toxics, left = now, math.inf if now.limit is None else now.limit
                await asyncio.sleep(toxics.latency + self._rng.uniform(0, toxics.jitter))
                for start in range(0, len(piece), toxics.slice):
                    part = piece[start : start + toxics.slice]
                    part = part[: int(min(left, len(part)))]
                    await asyncio.sleep(
                        len(part) / toxics.bandwidth + (toxics.pause if start else 0)
                    )
                    if connection.swallows[way]:
                        break
                    writer.write(part)
                    await writer.drain()
                    self.passed[way] += len(part)
                    left -= len(part)
                    if not left:
                        connection.end(toxics.end, way)
            # The end of one side is passed on to the other.
            connection.end(End.HALF_CLOSE, way)
        except ConnectionError:
            connection.end(End.RESET, way)


class _Connection:
    """A client's connection and the one to the server.

    Attributes:
        swallows: whether nothing passes any more, by way.
        sent: the first bytes that the client sent.
    """

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._to: dict[Way, asyncio.StreamWriter] = {"up": server, "down": client}
        self.swallows: dict[Way, bool] = {"up": False, "down": False}
        self.sent = b""

    def end(self, how: End, way: Way) -> None:
        """End both ways, or one, as ``how`` says."""
        self.swallows[way] = True
        for writer in self._to.values():
            if how is End.RESET:
                reset_transport(writer.transport)
            elif how is End.CLOSE:
                writer.close()
        if how is End.HALF_CLOSE:
            self._to[way].write_eof()
