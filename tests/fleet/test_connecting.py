"""Addresses and clients: a fleet shares its tokens through an engine of any kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import valkey.asyncio

from aioivschat import Event, InvalidConfiguration, SharedChanged, SharedState, TokenRequest
from aioivschat.redis import RedisTier
from aioivschat.redis._engine import Engine, EngineAway, EngineState
from support.engine import EngineServer, cluster, proxy, replicated
from support.engine_calls import COUNTER, INCREMENT, OpenEngine, until_away, until_back
from support.raw_servers import certificate
from support.services import ROOM, SEALING_KEY, OpenService, until

REQUEST = TokenRequest(ROOM, "alice")


@asynccontextmanager
async def _addresses(
    kind: str, folder: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Callable[[], Any]]:
    """Run an engine; yield a function that makes an address or a client for one process."""
    async with AsyncExitStack() as stack:

        def single(library: Any, **options: Any) -> Callable[[], Any]:
            server = stack.enter_context(EngineServer(folder))

            def make() -> Any:
                client = library(port=server.port, **options)
                stack.push_async_callback(client.aclose)
                return client

            return make

        if kind == "cluster":
            nodes = request.getfixturevalue("cluster_nodes")
            yield lambda: "redis+cluster://" + ",".join(node.address for node in nodes)
        elif kind == "sentinel":
            _, _, sentinel = stack.enter_context(replicated(folder))
            yield lambda: f"redis+sentinel://{sentinel.address}/fleet"
        elif kind == "cluster client":
            nodes = request.getfixturevalue("cluster_nodes")

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
            port = await stack.enter_async_context(proxy(server.port, file))
            yield lambda: f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={file}"
        else:
            server = stack.enter_context(EngineServer(folder, requirepass="pw"))
            yield lambda: f"valkey://:pw@{server.address}/3"


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    "kind",
    ["password", "TLS", "cluster", "cluster client", "sentinel", "decoding client", "valkey-py"],
)
async def test_a_fleet_shares_its_tokens(
    open_service: OpenService, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    """Attempts, stock and invalidations are shared, and the engine never seems to be away."""
    events: list[Event] = []
    async with _addresses(kind, tmp_path, request) as address:
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


async def test_a_cluster_serves_keys_of_all_its_nodes(
    open_engine: OpenEngine, tmp_path: Path
) -> None:
    """A cluster runs scripts on all its nodes and delivers messages published at any of them."""
    with cluster(tmp_path) as servers:
        engine = open_engine("redis+cluster://" + ",".join(each.address for each in servers))
        heard: list[bytes] = []
        begun: list[None] = []
        engine.listen("news", heard.append, lambda: begun.append(None))
        await until_back(engine)
        for number in range(20):
            assert 1 == await engine.run_script(INCREMENT, [f"{{{number}}}:counter"])
        await until(lambda: bool(begun))
        for server in servers:
            with server.client() as client:
                client.publish("news", server.address)
        await until(lambda: len(heard) == len(servers))
        lost = servers[0]
        lost.kill()
        await until_lost(engine)
        lost.start()
        await until_back(engine)


async def test_messages_of_a_cluster_reach_a_client_without_subscriptions(
    open_engine: OpenEngine, cluster_nodes: list[EngineServer]
) -> None:
    """A cluster's client without `pubsub` (valkey-py, old redis-py) listens at any of its nodes."""
    client = valkey.asyncio.ValkeyCluster(host="127.0.0.1", port=cluster_nodes[0].port)
    engine = open_engine(client)
    heard: list[bytes] = []
    await until_back(engine)
    engine.listen("news", heard.append, lambda: heard.append(b"missed"))
    await until(lambda: heard == [b"missed"])
    with cluster_nodes[1].client() as publisher:
        publisher.publish("news", "some")
    await until(lambda: heard == [b"missed", b"some"])
    await engine.aclose()
    await client.aclose()


async def until_lost(engine: Engine) -> None:
    """Call all nodes of a cluster until one that is gone opens the breaker."""
    async with asyncio.timeout(10):
        while engine.state is EngineState.SHARED:
            for number in range(20):
                with suppress(EngineAway):
                    await engine.run_script(INCREMENT, [f"{{{number}}}:counter"])


async def test_after_a_failover_the_new_master_is_used(
    open_engine: OpenEngine, tmp_path: Path
) -> None:
    """After a failover, calls go to the master that the Sentinel names; scripts are sent again."""
    with replicated(tmp_path) as (master, replica, sentinel):
        engine = open_engine(f"redis+sentinel://{sentinel.address}/fleet/0")
        await until_back(engine)
        master.kill()
        await until_away(engine)
        await until(lambda: engine.state is EngineState.SHARED, within=20.0)
        await engine.run_script(INCREMENT, COUNTER)
        with replica.client() as client:
            assert b"master" == client.execute_command("ROLE")[0]
            assert int(client.get(COUNTER[0])) >= 1


@pytest.mark.parametrize("library", [redis.asyncio.Redis, valkey.asyncio.Valkey])
async def test_a_client_of_the_users_own_stays_open(
    open_engine: OpenEngine, engine_server: EngineServer, library: Any
) -> None:
    """Closing the engine leaves a user's own client open, of redis-py or valkey-py."""
    client = library(port=engine_server.port)
    engine = open_engine(client)
    await until_back(engine)
    await engine.aclose()
    assert await client.ping()
    await client.aclose()


@pytest.mark.parametrize(
    "url", ["http://host", "redis+ring://host", "unix+cluster://host", "host:6379", ""]
)
async def test_an_address_of_another_kind_is_refused(url: str) -> None:
    """A URL that names no engine is refused when the engine is made."""
    with pytest.raises(InvalidConfiguration):
        Engine(url)


@pytest.mark.fault(48)
@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster", "rediss+sentinel", "valkeys"])
@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_a_file_of_tls_that_is_missing_is_an_error_at_once(
    tmp_path: Path, scheme: str, option: str
) -> None:
    """It names the option: a fleet would go on alone for ever. No password shows."""
    missing = tmp_path / "missing.pem"
    url = f"{scheme}://user:password@127.0.0.1:9/fleet?{option}={missing}"
    with pytest.raises(InvalidConfiguration, match=rf"{option}: .*missing\.pem") as caught:
        RedisTier(url, keys=[SEALING_KEY])
    assert "password" not in str(caught.value)
