"""A server that mints as fast as Python can, so that benchmarks measure the client.

It reads nothing of a request but its end. Replies are like AWS's: each has a token of its own, the
time to the second and an expiry a minute ahead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import cast

import harness

_CREATE_CHAT_TOKEN = b"POST /CreateChatToken "
_ANSWER_FORMAT = (
    "HTTP/1.1 200 OK\r\n"
    "Content-Type: application/json\r\n"
    "Content-Length: {length}\r\n"
    "Date: {date}\r\n"
    "x-amzn-RequestId: {request}\r\n"
    "\r\n"
    "{body}"
)


def _format_answer(request: str, body: Mapping[str, object]) -> bytes:
    text = json.dumps(body)
    date = formatdate(time.time(), usegmt=True)
    return _ANSWER_FORMAT.format(length=len(text), date=date, request=request, body=text).encode()


class TokenReplies:
    """Makes replies with a token each, and counts them."""

    def __init__(self) -> None:
        self.minted = 0
        self._second = 0
        self._template = b""

    def make_reply(self) -> bytes:
        """Return a new reply, headers included."""
        second = int(time.time())
        if second != self._second:
            self._second, self._template = second, _make_template(second)
        self.minted += 1
        return self._template % (self.minted, self.minted)


def _make_template(second: int) -> bytes:
    """Return what all replies of a second share, with two places for a reply's number."""
    now = datetime.fromtimestamp(second, UTC)
    request = "00000000-0000-4000-8000-000000000000"
    # 300 characters, as the emulator's tokens have; the number replaces the last 12.
    token = random.randbytes(150).hex()
    answer = _format_answer(
        request,
        {
            "token": token,
            "tokenExpirationTime": _format_time(now + timedelta(minutes=1)),
            "sessionExpirationTime": _format_time(now + timedelta(hours=1)),
        },
    )
    for each in (request, token):
        answer = answer.replace(each.encode(), each[:-12].encode() + b"%012x")
    return answer


def _format_time(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Service:
    """The state that all connections share, and the admin requests of :class:`harness.Server`."""

    def __init__(self) -> None:
        self.replies = TokenReplies()
        self.latency = 0.0

    def administer(self, request: bytes) -> bytes:
        """Answer a request that is not for a token."""
        head, _, body = request.partition(b"\r\n\r\n")
        if head.startswith(b"POST "):
            self.replies.minted = 0
        elif head.startswith(b"PATCH "):
            self.latency = json.loads(body)["latency"]
        counts = {"requests": self.replies.minted}
        return _format_answer("", {"counts": counts, "processor": time.process_time()})


class Connection(asyncio.Protocol):
    """One connection, kept alive; a client may pipeline requests."""

    _transport: asyncio.Transport

    def __init__(self, service: Service) -> None:
        self._service = service
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # A cast, as uvloop's transport is not an instance of the class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer each complete request."""
        data = self._rest + data
        start = 0
        while end := _find_end(data, start):
            if data.startswith(_CREATE_CHAT_TOKEN, start):
                self._answer_later(self._service.replies.make_reply())
            else:
                self._transport.write(self._service.administer(data[start:end]))
            start = end
        self._rest = data[start:]

    def _answer_later(self, reply: bytes) -> None:
        if self._service.latency:
            loop = asyncio.get_running_loop()
            loop.call_later(self._service.latency, self._transport.write, reply)
        else:
            self._transport.write(reply)


def _find_end(data: bytes, start: int) -> int:
    """Return where a request ends; 0 if it is not complete yet."""
    head = data.find(b"\r\n\r\n", start)
    if head < 0:
        return 0
    # Two spellings: a search that ignores case takes longer than all the rest.
    for name in (b"\r\nContent-Length:", b"\r\ncontent-length:"):
        found = data.find(name, start, head)
        if found >= 0:
            found += len(name)
            line = data.find(b"\r\n", found, head + 2)
            end = head + 4 + int(data[found:line])
            return end if end <= len(data) else 0
    return head + 4


async def serve(on_url: Callable[[str], None]) -> None:
    """Serve until the process ends; ``on_url`` is called with the URL."""
    service = Service()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(service), "127.0.0.1", 0, backlog=1024)
    host, port = server.sockets[0].getsockname()[:2]
    on_url(f"http://{host}:{port}")
    await server.serve_forever()


def main() -> int:
    """Serve, and print the URL as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=harness.event_loops(), default=harness.event_loops()[-1])
    options = parser.parse_args()
    harness.run(serve(lambda url: print(json.dumps({"url": url}), flush=True)), loop=options.loop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
