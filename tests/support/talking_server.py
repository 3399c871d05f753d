"""A server that says more than it is asked for, in a thread of its own."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from support.raw_servers import BODY, http

_LIMIT_SECONDS = 10.0
"""It only ends a test that would hang."""


def answer_with(token: str) -> bytes:
    """Return an answer that holds a token."""
    return http(BODY.replace(b'"t"', b'"%s"' % token.encode()))


class TalkingServer:
    """Answers each request with a token that tells its number, and more when told.

    Attributes:
        url: where it listens.
        requests: how many requests came.
        answered: for how many all was sent that is sent for it.
        connected: how many connections were made.
        split: given an answer, what is sent for it: one segment after the other.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests = self.answered = self.connected = 0
        self.split: Callable[[bytes], list[bytes]] = lambda answer: [answer]
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self._loop = asyncio.new_event_loop()

    def say(self, data: bytes, *, then: Callable[[asyncio.StreamWriter], object] | None) -> int:
        """Send something over all open connections, and do something with them; return how many.

        What was sent has arrived when this returns. No other task of the caller's loop runs before.
        """

        async def send() -> int:
            writers = [one for one in self._connections.values() if not one.is_closing()]
            for writer in writers:
                writer.write(data)
                await writer.drain()
                if then is not None:
                    then(writer)
            return len(writers)

        return self._run(send())

    def _run(self, work: Coroutine[Any, Any, int]) -> int:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_LIMIT_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        self.connected += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, _, length = head.lower().partition(b"\r\ncontent-length: ")
                await reader.readexactly(int(length.partition(b"\r\n")[0]))
                self.requests += 1
                for number, part in enumerate(self.split(answer_with(f"{self.requests}"))):
                    if number:
                        await asyncio.sleep(0.05)
                    writer.write(part)
                self.answered += 1
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            del self._connections[task]
            writer.close()

    async def _listen(self, tls: ssl.SSLContext | None) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        return port

    async def _end(self) -> int:
        self._server.close()
        for writer in self._connections.values():
            writer.transport.abort()
        while self._connections:
            await asyncio.sleep(0.001)
        return 0


@contextmanager
def talking_server(tls: ssl.SSLContext | None = None) -> Iterator[TalkingServer]:
    """Serve on a free port."""
    server = TalkingServer()
    thread = threading.Thread(target=server._loop.run_forever)
    thread.start()
    try:
        server._run(server._listen(tls))
        yield server
        server._run(server._end())
    finally:
        server._loop.call_soon_threadsafe(server._loop.stop)
        thread.join()
        server._loop.close()
