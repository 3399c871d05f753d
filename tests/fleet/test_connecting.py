"""However the engine is reached, a fleet shares its tokens through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import valkey.asyncio

from aioivschat import Event, SharedChanged, SharedState, TokenRequest
from aioivschat.redis import RedisTier
from support.engine import EngineServer, cluster, replicated
from support.raw_servers import certificate, tls
from support.services import ROOM, SEALING_KEY, OpenService, until

REQUEST = TokenRequest(ROOM, "alice")


@asynccontextmanager
async def _addresses(kind: str, folder: Path) -> AsyncIterator[Callable[[], Any]]:
    """Run an engine, and give a way to make what one process reaches it by."""
    async with AsyncExitStack() as stack:

        def single(library: Any, **options: Any) -> Callable[[], Any]:
            server = stack.enter_context(EngineServer(folder))

            def make() -> Any:
                client = library(port=server.port, **options)
                stack.push_async_callback(client.aclose)
                return client

            return make

        if kind == "cluster":
            nodes = stack.enter_context(cluster(folder))
            yield lambda: "redis+cluster://" + ",".join(node.address for node in nodes)
        elif kind == "sentinel":
            _, _, sentinel = stack.enter_context(replicated(folder))
            yield lambda: f"redis+sentinel://{sentinel.address}/fleet"
        elif kind == "cluster client":
            nodes = stack.enter_context(cluster(folder))

            def make() -> Any:
                client = redis.asyncio.RedisCluster(host="127.0.0.1", port=nodes[0].port)
                stack.push_async_callback(client.aclose)
                return client

            yield make
        elif kind == "decoding client":
            yield single(redis.asyncio.Redis, decode_responses=True)
        elif kind == "valkey-py":
            yield single(valkey.asyncio.Valkey)
        elif kind == "TLS":
            server = stack.enter_context(EngineServer(folder))
            file = certificate(folder)
            port = await stack.enter_async_context(_behind_tls(server.port, file))
            yield lambda: f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={file}"
        else:
            server = stack.enter_context(EngineServer(folder, requirepass="pw"))
            yield lambda: f"valkey://:pw@{server.address}/3"


@asynccontextmanager
async def _behind_tls(port: int, file: Path) -> AsyncIterator[int]:
    """Take TLS off what comes for a port, as a load balancer would; give the port for that."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_engine, to_engine = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(
            forward(reader, to_engine), forward(from_engine, writer), return_exceptions=True
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls(file))
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    "kind",
    ["password", "TLS", "cluster", "cluster client", "sentinel", "decoding client", "valkey-py"],
)
async def test_a_fleet_shares_its_tokens(
    open_service: OpenService, tmp_path: Path, kind: str
) -> None:
    """Attempts, stock and invalidations; and it is never thought to be away."""
    events: list[Event] = []
    async with _addresses(kind, tmp_path) as address:
        here, there = (
            open_service(
                shared=RedisTier(address(), keys=[SEALING_KEY], timeout=5.0),
                observers=[events.append],
            )
            for _ in range(2)
        )
        first = await here.issue(REQUEST, idempotency_key="attempt")
        assert first.token == (await there.issue(REQUEST, idempotency_key="attempt")).token
        await here.prewarm([REQUEST])
        assert not (await there.issue(REQUEST, fresh=True)).reused
        assert 2 == there.stats().shared
        await there.issue(REQUEST)
        here.invalidate(user=REQUEST.user)
        await until(lambda: there.ready(REQUEST) is None)
        assert first.token != (await there.issue(REQUEST, idempotency_key="attempt")).token
        for member in (here, there):
            await member.aclose()
    told = [event for event in events if isinstance(event, SharedChanged)]
    assert [SharedChanged(SharedState.SHARED, "connected")] * 2 == told
