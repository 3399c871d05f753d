"""What the fault proxy does to bytes, and what the service makes of it."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aioivschat import (
    AsyncTokenService,
    AttemptFailed,
    ChatToken,
    ChatTokenError,
    ConnectionFailed,
    DeadlineExceeded,
    Event,
    Overloaded,
    PoolPolicy,
    RetryPolicy,
    TokenRequest,
)
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from support.fault_proxy import HOLE, End, FaultProxy, Toxics
from support.services import ROOM, OpenService, outcomes, until

TEXT = bytes(range(256)) * 40

# The bytes themselves.


class Echo:
    """Sends back whatever comes.

    Attributes:
        got: what came so far.
        ended: how each connection ended: ``None`` in order, else the error.
    """

    def __init__(self) -> None:
        self.got = b""
        self.ended: list[Exception | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        end = None
        try:
            while piece := await reader.read(65_536):
                self.got += piece
                writer.write(piece)
                await writer.drain()
        except ConnectionError as error:
            end = error
        writer.close()
        self.ended.append(end)


class Client:
    """A connection by way of the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes = TEXT) -> None:
        """Send."""
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self, size: int = len(TEXT)) -> bytes:
        """Receive so much, or less if it ends before."""
        try:
            return await self.reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            return error.partial


@asynccontextmanager
async def connected(seed: int = 0) -> AsyncIterator[tuple[FaultProxy, Echo, Client]]:
    """Run an echo behind a proxy, with a client before it."""
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with FaultProxy(f"//127.0.0.1:{port}", seed) as proxy:
            client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
            try:
                yield proxy, echo, client
            finally:
                client.writer.close()
        await until(lambda: len(echo.ended) == proxy.accepted)
    finally:
        server.close()


async def _seconds(work: Any) -> float:
    loop = asyncio.get_running_loop()
    started = loop.time()
    await work
    return loop.time() - started


async def test_without_toxics_nothing_is_changed() -> None:
    """Without toxics all bytes pass both ways, and so does the end of the stream."""
    async with connected() as (proxy, echo, client):
        await client.send()
        assert TEXT == await client.receive()
        client.writer.write_eof()
        assert await client.reader.read() == b""
        await until(lambda: not len(proxy))
        assert [None] == echo.ended
        assert {"up": len(TEXT), "down": len(TEXT)} == proxy.passed


@pytest.mark.parametrize("way", ["up", "down"])
async def test_latency_delays_one_way(way: str) -> None:
    """Latency set on an open connection delays one way and leaves the bytes as they are."""
    async with connected() as (proxy, _, client):
        await client.send(b"a")
        await client.receive(1)
        setattr(proxy, way, Toxics(latency=0.05))
        await client.send(b"b")
        assert await _seconds(client.receive(1)) >= 0.049
        proxy.calm()
        await client.send(b"c")
        assert await client.receive(1) == b"c"


async def test_jitter_is_random_and_repeats_with_its_seed() -> None:
    """Jitter delays a piece by exactly what its seed gives."""
    seed = next(seed for seed in range(99) if random.Random(seed).random() > 0.95)
    async with connected(seed) as (proxy, _, client):
        proxy.up = Toxics(jitter=0.1)
        await client.send(b"a")
        assert await _seconds(client.receive(1)) >= 0.094


async def test_bandwidth_takes_its_time() -> None:
    """A piece takes its bytes divided by the bandwidth."""
    async with connected() as (proxy, _, client):
        proxy.down = Toxics(bandwidth=len(TEXT) / 0.1)
        await client.send()
        assert await _seconds(client.receive()) >= 0.099


async def test_slices_come_one_by_one() -> None:
    """Slices arrive in order, with pauses between them."""
    async with connected() as (proxy, echo, client):
        proxy.up = Toxics(slice=1000, pause=0.01)
        await client.send()
        seen: list[int] = []
        while len(echo.got) < len(TEXT):
            seen.append(len(echo.got))
            await asyncio.sleep(0.001)
        # However busy the machine is, it was not all one piece.
        assert [size for size in set(seen) if 0 < size < len(TEXT)]
        assert all(size % 1000 == 0 for size in seen)
        assert TEXT == await client.receive()


@pytest.mark.parametrize("limit", [0, 1, 777])
@pytest.mark.parametrize("end", list(End))
async def test_a_limit_cuts_the_way_back(end: End, limit: int) -> None:
    """The client gets as many bytes as the limit says, then the end that is set."""
    async with connected() as (proxy, echo, client):
        proxy.down = Toxics(limit=limit, end=end)
        await client.send()
        if end is End.RESET:
            # It may overtake what was sent before.
            with pytest.raises(ConnectionError):
                while await client.reader.read(10_000):
                    pass
            return
        assert TEXT[:limit] == await client.receive(limit)
        if end is End.BLACK_HOLE:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.reader.read(1), 0.05)
            proxy.calm()  # which does not bring back what was swallowed
            await client.send(b"more")
            await until(lambda: echo.got.endswith(b"more"))
            assert not echo.ended
            return
        with_reset = False
        try:
            assert await client.reader.read() == b""
        except ConnectionError:
            with_reset = True  # bytes to a closed connection are answered so
        assert not (with_reset and end is End.HALF_CLOSE)
        if end is End.HALF_CLOSE:
            await client.send(b"more")
            await until(lambda: echo.got.endswith(b"more"))
        else:
            await until(lambda: bool(echo.ended))
        assert limit == proxy.passed["down"]


@pytest.mark.parametrize("end", list(End))
async def test_a_limit_cuts_the_way_there(end: End) -> None:
    """The server gets as many bytes as the limit says, and no more."""
    async with connected() as (proxy, echo, client):
        proxy.up = Toxics(limit=300, end=end)
        await client.send()
        if end in (End.BLACK_HOLE, End.HALF_CLOSE):
            assert TEXT[:300] == await client.receive(300)
            assert TEXT[:300] == echo.got
        if end is not End.BLACK_HOLE:
            await until(lambda: bool(echo.ended))
        assert (end is End.RESET) == isinstance((echo.ended or [None])[0], ConnectionError)
        assert 300 == proxy.passed["up"]


async def test_a_limit_counts_from_when_it_was_set() -> None:
    """A limit ignores what passed before it; a new one counts from 0."""
    async with connected() as (proxy, _, client):
        for _ in range(3):
            proxy.down = Toxics(limit=6)
            await client.send(b"12345")
            assert await client.receive(5) == b"12345"


@pytest.mark.parametrize(
    ("end", "seen"), [(End.RESET, ConnectionError), (End.CLOSE, None), (End.HALF_CLOSE, None)]
)
async def test_idle_connections_can_be_ended(end: End, seen: type[Exception] | None) -> None:
    """Ending an idle connection is seen on both sides; a half close by the client only."""
    async with connected() as (proxy, echo, client):
        await client.send(b"a")
        await client.receive(1)
        proxy.end(end)
        if seen is None:
            assert await client.reader.read() == b""
        else:
            with pytest.raises(seen):
                await client.reader.read()
        if end is not End.HALF_CLOSE:
            await until(lambda: bool(echo.ended))
        else:
            assert not echo.ended


async def test_where_nobody_listens_connections_are_reset() -> None:
    """If the server does not listen, its client sees a reset."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with FaultProxy(f"//127.0.0.1:{nobody.getsockname()[1]}") as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            with pytest.raises(ConnectionError):
                await reader.read()
            writer.close()
            assert 1 == proxy.accepted


async def test_a_proxy_leaves_nothing_behind() -> None:
    """A proxy that ends leaves no task and no file, whatever was open."""
    tasks, files = len(asyncio.all_tasks()), _open_files()
    async with connected() as (proxy, _, client):
        proxy.down = HOLE
        await client.send()
        await until(lambda: proxy.passed["up"] >= len(TEXT))
        proxy.up = Toxics(latency=60.0)
        await client.send()
    await until(lambda: (tasks, files) == (len(asyncio.all_tasks()), _open_files()))


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# What the service makes of it.

CALLS = 12
STUBBORN = RetryPolicy(max_attempts=20, base_delay=0.001, max_delay=0.02)
ENOUGH = 60.0
"""Seconds; the deadline of calls that are to succeed, however busy the machine is."""

GENTLE = {
    "far away": Toxics(latency=0.02, jitter=0.05),
    "narrow": Toxics(bandwidth=50_000.0),
    "in slices": Toxics(slice=97, pause=0.0005),
}
HARSH = {
    f"{end.value} after {limit}": Toxics(limit=limit, end=end)
    for end in End
    # Before anything, within the headers, within the body; in a hole all are the same, and slow.
    for limit in ((0, 500) if end is End.BLACK_HOLE else (0, 100, 500))
}

Through = Callable[..., AsyncTokenService]


@pytest.fixture
async def proxy(ivschat_emulator: ThreadedEmulatorServer) -> AsyncIterator[FaultProxy]:
    """A proxy before the emulator; when it has ended, nothing is left of anything."""
    tasks = len(asyncio.all_tasks())
    async with FaultProxy(ivschat_emulator.url) as proxy:
        files = _open_files()
        yield proxy
        await until(lambda: not len(proxy))
        # The emulator's own connections are files of this process too.
        await until(lambda: _open_files() <= files)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)


@pytest.fixture
async def through(open_service: OpenService, proxy: FaultProxy) -> AsyncIterator[Through]:
    """A factory of services by way of the proxy, closed before it."""
    services: list[AsyncTokenService] = []

    def make(**options: Any) -> AsyncTokenService:
        service = open_service(endpoint_url=proxy.url, **options)
        services.append(service)
        return service

    yield make
    for service in services:
        await service.aclose(grace=1.0)


async def _rush(service: AsyncTokenService, timeout: float) -> list[Any]:
    return await outcomes(
        *(
            service.issue(TokenRequest(ROOM, f"u{number}"), fresh=True, timeout=timeout)
            for number in range(CALLS)
        )
    )


def _check_accounts(
    got: list[Any], service: AsyncTokenService, server: ThreadedEmulatorServer
) -> list[ChatToken]:
    """Check that nothing was lost or doubled; return the tokens."""
    tokens = [result for result in got if isinstance(result, ChatToken)]
    assert all(isinstance(result, ChatToken | ChatTokenError) for result in got)
    assert len(tokens) == len({token.token for token in tokens})
    assert not any(token.reused for token in tokens)
    # The emulator knows each of them.
    for token in tokens:
        server.emulator.redeem(token.token)
    stats, counts = service.stats(), server.emulator.counts()
    assert stats.minted == len(tokens) + stats.stocked
    assert stats.requests == stats.minted + stats.throttled + stats.failed
    # A token that never came is one of a request that failed.
    assert 0 <= counts.minted - stats.minted <= stats.failed
    assert counts.requests <= stats.requests
    assert (0, 0) == (stats.flights, stats.waiting)
    return tokens


@pytest.mark.parametrize("toxics", GENTLE.values(), ids=GENTLE)
async def test_a_slow_way_costs_time_and_nothing_else(
    proxy: FaultProxy,
    through: Through,
    ivschat_emulator: ThreadedEmulatorServer,
    toxics: Toxics,
) -> None:
    """On a slow network every call gets its token by its first request."""
    proxy.up = proxy.down = toxics
    service = through(pool=PoolPolicy(connect_timeout=ENOUGH, read_timeout=ENOUGH))
    tokens = _check_accounts(await _rush(service, ENOUGH), service, ivschat_emulator)
    assert (CALLS, CALLS) == (len(tokens), ivschat_emulator.emulator.counts().requests)


@pytest.mark.fault(10)
@pytest.mark.fault(12)
@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "general"])
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("toxics", HARSH.values(), ids=HARSH)
async def test_what_is_cut_off_is_asked_for_again(
    proxy: FaultProxy,
    through: Through,
    ivschat_emulator: ThreadedEmulatorServer,
    toxics: Toxics,
    way: str,
    prepared: bool,
) -> None:
    """Calls that were cut off each get a whole token once the network works."""

    def clear(event: Event) -> None:
        if isinstance(event, AttemptFailed):
            assert (event.error, event.status) == ("ConnectionFailed", 0)
            proxy.calm()

    setattr(proxy, way, toxics)
    service = through(
        retry=STUBBORN,
        pool=PoolPolicy(connect_timeout=0.25, read_timeout=0.25, prepared=prepared),
        observers=[clear],
    )
    got = await _rush(service, ENOUGH)
    assert CALLS == len(_check_accounts(got, service, ivschat_emulator))
    assert service.stats().failed


@pytest.mark.fault(10)
@pytest.mark.fault(13)
@pytest.mark.parametrize("toxics", HARSH.values(), ids=HARSH)
async def test_what_stays_cut_off_is_an_error_in_time(
    proxy: FaultProxy, through: Through, ivschat_emulator: ThreadedEmulatorServer, toxics: Toxics
) -> None:
    """While all is cut off, calls fail by their deadline; no partial answer is a token."""
    proxy.down = toxics
    service = through(
        retry=RetryPolicy(max_attempts=3, base_delay=0.001, max_delay=0.001),
        pool=PoolPolicy(connect_timeout=0.25, read_timeout=0.25),
    )
    loop = asyncio.get_running_loop()
    started = loop.time()
    got = await _rush(service, 0.3)
    # Far from what all attempts would take; how far from the deadline depends on the machine.
    assert loop.time() - started < 10.0
    assert {type(error) for error in got} <= {ConnectionFailed, DeadlineExceeded, Overloaded}
    # A request that nobody waits for any more comes to its end, and is not tried again.
    await until(lambda: not service.stats().flights)
    assert [] == _check_accounts(got, service, ivschat_emulator)


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    "kind", [FaultKind.THROTTLE_JSON, FaultKind.THROTTLE_HTML, FaultKind.THROTTLE_EMPTY]
)
async def test_a_throttle_in_slices_is_a_throttle(
    proxy: FaultProxy, through: Through, ivschat_emulator: ThreadedEmulatorServer, kind: FaultKind
) -> None:
    """A throttle that comes in slices is read whole, with its ``Retry-After``."""
    proxy.down = Toxics(slice=11, pause=0.0001)
    ivschat_emulator.emulator.fail_next(Fault(kind, times=CALLS, retry_after="0"))
    service = through(retry=STUBBORN)
    got = await _rush(service, ENOUGH)
    assert CALLS == len(_check_accounts(got, service, ivschat_emulator))
    assert (CALLS, 0) == (service.stats().throttled, service.stats().failed)


@pytest.mark.fault(12)
@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "general"])
@pytest.mark.parametrize("end", [End.CLOSE, End.RESET, End.HALF_CLOSE])
async def test_a_pooled_connection_that_ended_costs_one_more_request_at_most(
    proxy: FaultProxy,
    through: Through,
    ivschat_emulator: ThreadedEmulatorServer,
    end: End,
    prepared: bool,
) -> None:
    """A pooled connection that ended, idle or in use, costs at most one more request."""
    service = through(retry=STUBBORN, pool=PoolPolicy(prepared=prepared))
    await service.issue(TokenRequest(ROOM, "first"))
    proxy.end(end)
    await service.issue(TokenRequest(ROOM, "idle"))
    assert ivschat_emulator.emulator.counts().requests <= 3
    before = service.stats().requests
    proxy.up = Toxics(limit=0, end=end)
    call = asyncio.create_task(service.issue(TokenRequest(ROOM, "under way")))
    await until(lambda: service.stats().requests > before)
    await until(lambda: service.stats().failed > 0 or call.done())
    proxy.calm()
    assert (await call).token


@pytest.mark.fault(13)
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "general"])
async def test_a_black_hole_keeps_nobody_beyond_the_deadline(
    proxy: FaultProxy,
    through: Through,
    ivschat_emulator: ThreadedEmulatorServer,
    prepared: bool,
    way: str,
) -> None:
    """Waiting for a stuck connection counts towards the deadline; its token is not lost."""
    policy = PoolPolicy(max_connections=1, read_timeout=60.0, prepared=prepared)
    service = through(pool=policy)
    await service.issue(TokenRequest(ROOM, "first"))  # to open a client takes a while
    setattr(proxy, way, HOLE)
    loop = asyncio.get_running_loop()
    started = loop.time()
    got = await outcomes(
        *(service.issue(TokenRequest(ROOM, f"u{number}"), timeout=0.3) for number in range(4))
    )
    kinds = [type(error) for error in got]
    assert DeadlineExceeded is kinds[0]
    # By how long the first request took, the last may be told at once that it waits in vain.
    assert {DeadlineExceeded, Overloaded} >= set(kinds)
    assert loop.time() - started < 10.0
    emulator = ivschat_emulator.emulator
    await until(lambda: emulator.counts().minted == 1 + (way == "down"))
    # What was sent runs on, and nothing else: the others wait for its connection. The way being
    # free again does not bring its answer back.
    await until(lambda: service.stats().flights == 1)
    await service.aclose(grace=0.0)
    assert 0 == service.stats().flights
    assert emulator.counts().minted == 1 + (way == "down")
