"""A client that finds no engine any more: one made from a URL is replaced, a user's own is told."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import valkey.asyncio

from aioivschat import TokenRequest
from aioivschat.redis import RedisTier
from aioivschat.redis._engine import Engine, EngineAway, EngineState
from support.engine import EngineServer, cluster, replicated
from support.engine_calls import (
    COUNTER,
    INCREMENT,
    OpenEngine,
    try_call,
    until_away,
    until_back,
)
from support.fault_proxy import End, FaultProxy
from support.services import ROOM, SEALING_KEY, OpenService, until

pytestmark = [
    pytest.mark.fault(59),
    # A cluster's client that has lost its nodes has lost their connections too, without closing
    # them; and one that loses a connection in the moment of its opening drops it likewise. The
    # server has closed these; the collector then finds their sockets.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WHOLE_AGAIN_SECONDS = 5.0
"""Seconds that a fleet may take to be whole again after its engine's return, as the docs say."""

SLOTS = 16_384


@pytest.fixture(scope="module")
def _one_shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineServer]:
    with cluster(tmp_path_factory.mktemp("shard"), nodes=1) as (node,):
        yield node


@pytest.fixture
def one_shard(_one_shard: EngineServer) -> EngineServer:
    """The node of a running cluster of one shard, with nothing in it."""
    with _one_shard.client() as client:
        client.flushall()
        client.script_flush()
    return _one_shard


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    """Let the collector find what a test has dropped before the next test."""
    yield
    gc.collect()


@asynccontextmanager
async def _engine_of(
    kind: str, folder: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[str, list[EngineServer]]]:
    """Run an engine; yield its URL and its servers."""
    if kind == "single":
        server = request.getfixturevalue("engine_server")
        yield server.url, [server]
    elif kind == "one shard":
        node = request.getfixturevalue("one_shard")
        yield f"redis+cluster://{node.address}", [node]
    elif kind == "three shards":
        nodes = request.getfixturevalue("cluster_nodes")
        yield "redis+cluster://" + ",".join(node.address for node in nodes), nodes
    else:
        with replicated(folder) as (master, replica, sentinel):
            yield f"redis+sentinel://{sentinel.address}/fleet", [master, replica, sentinel]


KINDS = ["single", "one shard", "three shards", "sentinel"]


def _lose_engine(client: Any, servers: list[EngineServer]) -> None:
    """Break a client as redis-py before 7.4 breaks that of a cluster: nowhere left to connect."""
    if nodes := getattr(client, "nodes_manager", None):
        nodes.startup_nodes.clear()
    else:
        manager = getattr(client.connection_pool, "sentinel_manager", None)
        for each in (client, *(manager.sentinels if manager else ())):
            pool = each.connection_pool
            pool.connection_kwargs["port"] = 1
            for connection in (*pool._available_connections, *pool._in_use_connections):
                connection.port = 1
    for server in servers:
        _drop_connections(server)


def _drop_connections(server: EngineServer) -> None:
    with server.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def _connections(servers: list[EngineServer]) -> int:
    """Return how many clients the servers have, this function's own among them."""
    count = 0
    for server in servers:
        with server.client() as client:
            count += client.info("clients")["connected_clients"]
    return count


async def _call_until_replaced(engine: Engine, client: object) -> None:
    """Make calls until one of another client is answered."""
    async with asyncio.timeout(WHOLE_AGAIN_SECONDS + 5.0):
        while engine._client is client:
            await try_call(engine)
            await asyncio.sleep(0.01)
    await until_back(engine)
    await engine.run_script(INCREMENT, COUNTER)


async def _answered_within(engine: Engine, seconds: float) -> None:
    """Wait until ten calls in a row are answered."""
    answered = 0
    async with asyncio.timeout(seconds):
        while answered < 10:
            _, away = await try_call(engine)
            answered = 0 if away else answered + 1
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS[1:3])
@pytest.mark.parametrize("dropped", ["one", "all"])
async def test_dropped_connections_of_a_cluster_cost_seconds(
    open_engine: OpenEngine, tmp_path: Path, request: pytest.FixtureRequest, kind: str, dropped: str
) -> None:
    """Redis-py before 7.4 drops a node with its connection, the last one of a cluster too."""
    async with _engine_of(kind, tmp_path, request) as (url, servers):
        engine = open_engine(url)
        await until_back(engine)
        for server in servers:
            with server.client() as client:
                busy = [each for each in client.client_list() if each["cmd"].startswith("evalsha")]
                for each in busy[: 1 if dropped == "one" else None]:
                    client.execute_command("CLIENT", "KILL", "ID", each["id"])
        for _ in range(6):  # as many as there are connections
            await try_call(engine)
        await _answered_within(engine, WHOLE_AGAIN_SECONDS)


@pytest.mark.parametrize("kind", KINDS[1:3])
@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_a_cluster_is_found_again_soon_after_its_return(
    open_engine: OpenEngine, tmp_path: Path, kind: str, how: str
) -> None:
    """All nodes are away for longer than the first probes take; then calls are answered again."""
    with cluster(tmp_path, nodes=1 if kind == "one shard" else 3) as servers:
        engine = open_engine("redis+cluster://" + ",".join(node.address for node in servers))
        await until_back(engine)
        for server in servers:
            server.kill() if how == "killed" else server.stop()
        await until_away(engine)
        await asyncio.sleep(2.0)
        for server in servers:
            await asyncio.to_thread(server.start if how == "killed" else server.cont)
        await until(lambda: _takes_writes(servers))
        await _answered_within(engine, WHOLE_AGAIN_SECONDS)


def _takes_writes(servers: list[EngineServer]) -> bool:
    """Tell whether a cluster has come together again, two seconds after a restart."""
    for server in servers:
        with server.client() as client:
            if b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO", NEVER_DECODE=1):
                return False
    return True


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_finds_no_engine_is_replaced(
    open_engine: OpenEngine, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    """A new client takes its place, for messages too."""
    async with _engine_of(kind, tmp_path, request) as (url, servers):
        engine = open_engine(url)
        heard: list[bytes] = []
        engine.listen("news", heard.append, lambda: heard.append(b"missed"))
        await until_back(engine)
        await until(lambda: bool(heard))
        _lose_engine(engine._client, servers)
        await _call_until_replaced(engine, engine._client)
        with servers[0].client() as publisher:

            def is_heard() -> bool:
                publisher.publish("news", "some")  # again, as it may be between two connections
                return b"some" in heard and heard.count(b"missed") >= 2

            await until(is_heard)
        await engine.aclose()


@pytest.mark.parametrize("kind", KINDS[:2])
async def test_of_replaced_clients_nothing_is_left(
    open_engine: OpenEngine, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    """Many replacements under load leave no connection, task or client behind."""
    async with _engine_of(kind, tmp_path, request) as (url, servers):
        engine = open_engine(url)
        engine.listen("news", lambda message: None, lambda: None)
        await until_back(engine)
        old: list[weakref.ref[object]] = []
        counts: list[int] = []
        load = asyncio.create_task(_call_for_ever(engine))
        for _ in range(3):
            old.append(weakref.ref(engine._client))
            _lose_engine(engine._client, servers)
            await _call_until_replaced(engine, engine._client)
            await until(lambda: not engine._background)
            counts.append(_connections(servers))
        load.cancel()
        await asyncio.wait((load,))
        # The subscription may be between two connections, and calls open one when they need it.
        assert max(counts) <= counts[0] + 3
        await until(lambda: not engine._commands)
        await engine.aclose()
        del load
        await asyncio.sleep(0)
        assert {asyncio.current_task()} == asyncio.all_tasks()
        await until(lambda: _connections(servers) == len(servers))
        gc.collect()
        assert [None] * 3 == [each() for each in old]


async def _call_for_ever(engine: Engine) -> None:
    while True:
        await try_call(engine)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("kind", KINDS[:2])
async def test_closing_while_a_client_is_replaced_leaves_nothing(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    """Closing at any moment of it ends all tasks and connections."""
    async with _engine_of(kind, tmp_path, request) as (url, servers):

        async def close_after(seconds: float) -> None:
            engine = Engine(url, timeout=2.0)  # so many may be slow to connect
            engine.listen("news", lambda message: None, lambda: None)
            await until_back(engine)
            broken.append(engine._client)
            await all_broken.wait()
            await until_away(engine)
            await asyncio.sleep(seconds)
            await engine.aclose()

        broken: list[Any] = []
        all_broken = asyncio.Event()
        delays = [number / 8 for number in range(12)]  # the third probe is made within 1.5 s
        closing = asyncio.gather(*(close_after(seconds) for seconds in delays))
        await until(lambda: len(broken) == len(delays), within=30.0)
        for client in broken:
            _lose_engine(client, [])
        for server in servers:
            _drop_connections(server)
        all_broken.set()
        await closing
        assert {asyncio.current_task()} == {
            task for task in asyncio.all_tasks() if task is not closing
        }
        await until(lambda: _connections(servers) == len(servers))


async def test_a_call_under_way_at_a_client_that_is_replaced_fails(
    open_engine: OpenEngine, engine_server: EngineServer
) -> None:
    """Its answer counts as lost: the caller is not cancelled, and the old client is closed."""
    async with FaultProxy(engine_server.url) as proxy:
        engine = open_engine(proxy.url, timeout=8.0)
        await until_back(engine)
        client = engine._client
        proxy.end(End.BLACK_HOLE)
        call = asyncio.create_task(engine.run_script(INCREMENT, COUNTER))
        await until(lambda: bool(engine._commands))
        await asyncio.sleep(0.01)  # sent
        _lose_engine(client, [])
        await client.connection_pool.disconnect(inuse_connections=False)
        await _call_until_replaced(engine, client)
        async with asyncio.timeout(5.0):
            with pytest.raises(EngineAway, match="ConnectionAbortedError") as caught:
                await call
        assert caught.value.may_have_run
        assert EngineState.SHARED is engine.state
        await engine.aclose()


@pytest.mark.parametrize("kind", ["redis-py", "valkey-py"])
async def test_a_client_of_the_users_own_is_told_to_be_beyond_help(
    open_engine: OpenEngine,
    one_shard: EngineServer,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """One WARNING for each time away says what to do; the client is probed on, and found well."""
    make: Callable[..., Any] = (
        redis.asyncio.RedisCluster if kind == "redis-py" else valkey.asyncio.ValkeyCluster
    )
    client = make(host="127.0.0.1", port=one_shard.port)
    engine = open_engine(client)
    await until_back(engine)
    nodes = client.nodes_manager.startup_nodes
    for _ in range(2):
        known = dict(nodes)
        nodes.clear()
        _drop_connections(one_shard)
        await until_away(engine)
        await until(lambda: bool(_told(caplog)))
        await asyncio.sleep(1.0)
        assert 1 == _told(caplog)
        caplog.clear()
        nodes.update(known)
        await until_back(engine)
    assert client is engine._client
    await engine.aclose()
    await client.aclose()


def _told(caplog: pytest.LogCaptureFixture) -> int:
    return sum("beyond help" in record.getMessage() for record in caplog.records)


@contextmanager
def _away(server: EngineServer, how: str) -> Iterator[None]:
    if how == "stopped":
        with server.stopped():
            yield
        return
    server.kill()
    try:
        yield
    finally:
        server.start()


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize("of_cluster", [False, True])
async def test_of_an_engine_that_is_away_the_client_is_not_accused(
    open_engine: OpenEngine,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    how: str,
    of_cluster: bool,
) -> None:
    """While a new connection fails as well, nothing is said of a user's own client."""
    async with AsyncExitStack() as stack:
        if of_cluster:
            (server,) = stack.enter_context(cluster(tmp_path, nodes=1))
            client: Any = redis.asyncio.RedisCluster(host="127.0.0.1", port=server.port)
        else:
            server = stack.enter_context(EngineServer(tmp_path))
            client = redis.asyncio.Redis(port=server.port)
        stack.push_async_callback(client.aclose)
        engine = open_engine(client)
        await until_back(engine)
        with _away(server, how):
            await until_away(engine)
            await asyncio.sleep(3.0)
            assert 0 == _told(caplog)
        await engine.aclose()


async def test_calls_go_on_while_a_slot_moves(open_engine: OpenEngine, tmp_path: Path) -> None:
    """During a migration and after it calls are answered, by the client that was there before."""
    with cluster(tmp_path) as nodes:
        engine = open_engine("redis+cluster://" + ",".join(node.address for node in nodes))
        await until_back(engine)
        client = engine._client
        slot = _on(nodes[0], "CLUSTER", "KEYSLOT", COUNTER[0])
        source = nodes[slot * len(nodes) // SLOTS]
        target = next(node for node in nodes if node is not source)
        ids = {node.port: _own_id(node) for node in nodes}
        _on(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
        _on(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
        await _answered_within(engine, WHOLE_AGAIN_SECONDS)
        _on(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 1000, "KEYS", COUNTER[0])
        await _answered_within(engine, WHOLE_AGAIN_SECONDS)
        for node in (target, source):
            _on(node, "CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])
        await _answered_within(engine, WHOLE_AGAIN_SECONDS)
        assert client is engine._client
        await engine.aclose()


def _own_id(node: EngineServer) -> str:
    answer = _on(node, "CLUSTER", "MYID")
    return answer.decode() if isinstance(answer, bytes) else str(answer)


def _on(node: EngineServer, *command: object) -> Any:
    with node.client() as client:
        return client.execute_command(*command)


async def test_of_one_shard_that_is_away_nothing_is_left(
    open_engine: OpenEngine, tmp_path: Path
) -> None:
    """While two shards are well, clients are tried and closed, and messages still heard."""
    with cluster(tmp_path) as servers:
        engine = open_engine("redis+cluster://" + ",".join(node.address for node in servers))
        await until_back(engine)
        slot = _on(servers[0], "CLUSTER", "KEYSLOT", COUNTER[0])
        shard = servers[slot * len(servers) // SLOTS]
        others = [node for node in servers if node is not shard]
        with shard.stopped():
            await until_away(engine)
            await asyncio.sleep(4.0)
            assert max(_connections([node]) for node in others) < 10
        await _answered_within(engine, WHOLE_AGAIN_SECONDS)
        await engine.aclose()
        await until(lambda: _connections(servers) == len(servers))


async def test_a_fleet_on_a_cluster_of_one_shard_is_whole_again(
    open_service: OpenService, one_shard: EngineServer
) -> None:
    """After one dropped connection attempts are shared again, and bans are heard."""
    url = f"redis+cluster://{one_shard.address}"
    here, there = (
        open_service(shared=RedisTier(url, keys=[SEALING_KEY], timeout=1.0)) for _ in range(2)
    )
    await here.issue(TokenRequest(ROOM, "first"))
    await there.issue(TokenRequest(ROOM, "second"))
    _drop_connections(one_shard)
    async with asyncio.timeout(WHOLE_AGAIN_SECONDS + 5.0):
        for number in range(10_000):
            request = TokenRequest(ROOM, f"user{number}")
            one = await here.issue(request, idempotency_key="attempt")
            other = await there.issue(request, idempotency_key="attempt")
            if one.token == other.token:
                break
            await asyncio.sleep(0.05)
    mallory = TokenRequest(ROOM, "mallory")
    await there.issue(mallory)
    here.invalidate(user=mallory.user)
    await until(lambda: there.ready(mallory) is None)
