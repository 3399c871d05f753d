"""Servers of few bytes on 127.0.0.1, and the clients of the pool that are pointed at them."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aioivschat import Clock, PoolPolicy
from aioivschat._aws.clients import ClientPool
from aioivschat._events import Event, NotPrepared, Observers
from support.services import bare_session

REGION = "us-east-1"

BODY = (
    b'{"token":"t","tokenExpirationTime":"2099-01-05T10:01:00.000Z",'
    b'"sessionExpirationTime":"2099-01-05T11:00:00.000Z"}'
)
DATE = "Date: Mon, 05 Jan 2099 10:00:00 GMT"


def http(body: bytes = BODY, *headers: str | bytes, status: str = "200 OK") -> bytes:
    """Return an answer with a request id, a date within the life of ``BODY``, and other headers."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", "x-amzn-RequestId: r", DATE]
    if not any(b"Content-Length" in _bytes(header) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return b"\r\n".join([*map(_bytes, lines), *map(_bytes, headers), b"", body])


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


SUCCESS = http()


@dataclass
class Seen:
    """A request as it came.

    Attributes:
        line: method, path and version.
        headers: names and values as sent, in their order.
        body: what it held.
    """

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str:
        """Return the value of a header that is there once."""
        (value,) = (value for own, value in self.headers if own.lower() == name.lower())
        return value


@dataclass
class RawServer:
    """Answers every request with the same bytes, or breaks as told.

    Attributes:
        answer: what it sends; ``None`` for nothing ever.
        then: what it does to the connection afterwards.
        seen: every request so far.
        url: where it listens.
        successes_first: how many requests are answered with a success before that.
    """

    answer: bytes | None = SUCCESS
    then: Callable[[asyncio.StreamWriter], None] | None = None
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    successes_first: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        try:
            while await self._serve_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.rstrip("\r\n").split("\r\n")
        headers = [(name, value) for name, _, value in (one.partition(": ") for one in lines)]
        seen = Seen(line, headers, b"")
        if any(name.lower() == "content-length" for name, _ in headers):
            seen.body = await reader.readexactly(int(seen["Content-Length"]))
        self.seen.append(seen)
        if self.successes_first:
            self.successes_first -= 1
            writer.write(SUCCESS)
            return True
        if self.answer is None:
            await reader.read()  # until the client gives up
            return False
        writer.write(self.answer)
        if self.then is not None:
            self.then(writer)
            return False
        await writer.drain()
        return True


@asynccontextmanager
async def raw_server(
    answer: bytes | None = SUCCESS,
    then: Callable[[asyncio.StreamWriter], None] | None = None,
    *,
    successes_first: int = 0,
    tls: ssl.SSLContext | None = None,
    port: int = 0,
) -> AsyncIterator[RawServer]:
    """Serve on a port, or on a free one; wait for all its connections at the end."""
    raw = RawServer(answer, then, successes_first=successes_first)
    connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections[task] = writer
        await raw.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    raw.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield raw
    finally:
        server.close()
        for writer in connections.values():
            writer.transport.abort()
        await asyncio.gather(*connections)


@asynccontextmanager
async def open_pool(
    url: str | None,
    session: Any = None,
    policy: PoolPolicy | None = None,
    told: list[Event] | None = None,
) -> AsyncIterator[tuple[ClientPool, list[str]]]:
    """Open a pool with a client for ``REGION``; give it, and why it does not prepare requests.

    All its events go to ``told``, if it is given.
    """
    reasons: list[str] = []

    def note_reason(event: Event) -> None:
        if told is not None:
            told.append(event)
        if isinstance(event, NotPrepared):
            reasons.append(event.reason)

    pool = ClientPool(
        session or bare_session("testing", "testing"),
        url,
        policy or PoolPolicy(),
        Clock(),
        Observers([note_reason]),
    )
    try:
        await pool.open(REGION)
        yield pool, reasons
    finally:
        await pool.aclose()


def series(seen: list[Seen]) -> list[str]:
    """Return what the invocation ids of requests begin with.

    One pattern's requests share it; those that botocore builds share it with no other.
    """
    return [one["amz-sdk-invocation-id"][:24] for one in seen]


@asynccontextmanager
async def tunnelling_proxy(to: RawServer) -> AsyncIterator[tuple[str, list[str]]]:
    """Serve as an HTTP proxy whose tunnels all lead to one server; give its URL and who was asked.

    What is no request for a tunnel is taken note of as well, and gets no answer.
    """
    asked: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            line, *_ = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            asked.append(line)
            if line.startswith("CONNECT "):
                address = urlsplit(to.url)
                far = await asyncio.open_connection(address.hostname, address.port)
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                try:
                    await asyncio.gather(pass_on(reader, far[1]), pass_on(far[0], writer))
                finally:
                    far[1].close()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def certificate(folder: Path, *names: str) -> Path:
    """Write a certificate of 127.0.0.1 and of hosts by itself, and its key, into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, names)]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return file


def tls(file: Path, *, ask: bool = False) -> ssl.SSLContext:
    """Return what a server with a certificate needs; it may ask its clients for the same one."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(file))
    context.load_cert_chain(file)
    context.verify_mode = ssl.CERT_REQUIRED if ask else ssl.CERT_NONE
    return context
