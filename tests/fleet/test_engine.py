"""The way to the engine: how soon it is given up, and how it is found again."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import valkey.asyncio

from aioivschat import InvalidConfiguration
from aioivschat.redis._engine import Engine, EngineAway, EngineState, Script
from support.engine import EngineServer, cluster, replicated
from support.services import until

SCRIPT = Script("return redis.call('INCR', KEYS[1])")
KEYS = ["{tests}:counter"]

Open = Callable[..., Engine]


@pytest.fixture
async def open_engine() -> AsyncIterator[Open]:
    """A factory of engines that are closed after the test."""
    async with AsyncExitStack() as stack:

        def make(address: Any, **options: Any) -> Engine:
            engine = Engine(address, **options)
            stack.push_async_callback(engine.aclose)
            return engine

        yield make


async def tried(engine: Engine, script: Script = SCRIPT) -> tuple[float, EngineAway | None]:
    """Make a call; return how many seconds it took, and how it failed."""
    start = time.perf_counter()
    try:
        await engine.run_script(script, KEYS)
    except EngineAway as away:
        return time.perf_counter() - start, away
    return time.perf_counter() - start, None


async def until_away(engine: Engine) -> EngineAway:
    """Make calls until the breaker is open; return what the next one says."""
    while engine.state is not EngineState.AWAY:
        await tried(engine)
    _, away = await tried(engine)
    assert away is not None
    return away


async def is_back(engine: Engine) -> None:
    """Wait until the engine is shared again by itself, and make a call."""
    await engine.open()
    await until(lambda: engine.state is EngineState.SHARED, within=5.0)
    await engine.run_script(SCRIPT, KEYS)


@asynccontextmanager
async def slow_road(port: int, delay: list[float]) -> AsyncIterator[int]:
    """Run a way to a port on which everything takes ``delay[0]`` seconds; give its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                await asyncio.sleep(delay[0])
                target.write(data)
        except OSError:
            pass
        finally:
            target.close()

    async def travel(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        for one, other in ((source, back), (there, target)):
            task = asyncio.create_task(carry(one, other))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(travel, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.fault(21)
async def test_a_stopped_engine_costs_50_ms_at_first_and_nothing_then(
    open_engine: Open, engine_server: EngineServer
) -> None:
    """Two calls in a row wait in vain; then the breaker is open, until the engine goes on."""
    states: list[tuple[EngineState, str]] = []
    engine = open_engine(engine_server.url, on_state=lambda *change: states.append(change))
    await is_back(engine)
    with engine_server.stopped():
        first = [await tried(engine) for _ in range(2)]
        then = sorted([await tried(engine) for _ in range(100)], key=lambda each: each[0])
        stopped = list(states)
    await is_back(engine)
    for seconds, away in first:
        assert away is not None
        assert (True, ("TimeoutError",)) == (away.may_have_run, away.args)
        assert 0.05 <= seconds < 0.5
    # The median: one in a hundred may meet the probe, or a machine that is busy with others.
    seconds, away = then[50]
    assert away is not None
    assert not away.may_have_run
    assert seconds < 0.001
    opened = [(EngineState.SHARED, ""), (EngineState.AWAY, "TimeoutError")]
    assert opened == stopped
    assert [*opened, (EngineState.SHARED, "")] == states


async def test_calls_at_the_same_time_count_as_one_failure(
    open_engine: Open, engine_server: EngineServer
) -> None:
    """One bad moment must not open the breaker, however many calls it met."""
    engine = open_engine(engine_server.url)
    await is_back(engine)
    with engine_server.stopped():
        results = await asyncio.gather(*(tried(engine) for _ in range(3)))
    assert all(away is not None for _, away in results)
    assert EngineState.SHARED is engine.state
    await engine.run_script(SCRIPT, KEYS)


async def test_a_crowd_of_calls_is_no_failure(
    open_engine: Open, engine_server: EngineServer
) -> None:
    """They wait for one another for longer than a call may take, and none is too late."""
    engine = open_engine(engine_server.url, timeout=0.5)
    await is_back(engine)
    busy = Script("for _ = 1, 300000 do end return 1")
    results = await asyncio.gather(*(tried(engine, busy) for _ in range(1_000)))
    assert {None} == {away for _, away in results}
    assert max(seconds for seconds, _ in results) > 0.5


async def test_an_engine_that_was_killed_is_found_again(
    open_engine: Open, engine_server: EngineServer
) -> None:
    """On the same port, with nothing in it."""
    engine = open_engine(engine_server.url)
    await is_back(engine)
    engine_server.kill()
    try:
        await until_away(engine)
    finally:
        engine_server.start()
    await is_back(engine)


async def test_an_engine_that_is_away_from_the_start_is_found(
    open_engine: Open, engine_server: EngineServer
) -> None:
    """The first call waits for the first verdict; nothing raises but the calls."""
    engine_server.kill()
    try:
        engine = open_engine(engine_server.url)
        _, away = await tried(engine)
        assert away is not None
        assert ("ConnectionError",) == away.args
    finally:
        engine_server.start()
    await is_back(engine)


@pytest.mark.fault(25)
async def test_a_script_that_was_flushed_is_sent_again(
    open_engine: Open, engine_server: EngineServer
) -> None:
    """In a second trip, once; nobody notices."""
    engine = open_engine(engine_server.url)
    await is_back(engine)
    with engine_server.client() as client:
        client.script_flush()
        before = client.info("commandstats")["cmdstat_eval"]["calls"]
        assert 2 == await engine.run_script(SCRIPT, KEYS)
        assert 3 == await engine.run_script(SCRIPT, KEYS)
        assert before + 1 == client.info("commandstats")["cmdstat_eval"]["calls"]


async def test_a_full_memory_counts_as_away(open_engine: Open, tmp_path: Path) -> None:
    """Where nothing can be written nothing can be shared; until there is room again."""
    with EngineServer(tmp_path, maxmemory_policy="noeviction") as server, server.client() as client:
        engine = open_engine(server.url)
        await is_back(engine)
        client.config_set("maxmemory", 1)
        assert ("OutOfMemoryError",) == (await until_away(engine)).args
        await asyncio.sleep(0.6)
        assert EngineState.AWAY is engine.state
        client.config_set("maxmemory", 0)
        await is_back(engine)


async def test_a_read_only_replica_counts_as_away(open_engine: Open, tmp_path: Path) -> None:
    """A server that was made a replica on the way; until it is a master again."""
    with EngineServer(tmp_path / "one") as one, EngineServer(tmp_path / "two") as two:
        engine = open_engine(one.url)
        await is_back(engine)
        with one.client() as client:
            client.replicaof("127.0.0.1", two.port)
            assert ("ReadOnlyError",) == (await until_away(engine)).args
            client.replicaof("NO", "ONE")
        await is_back(engine)


async def test_a_wrong_password_counts_as_away(open_engine: Open, tmp_path: Path) -> None:
    """The reason tells; the password is in neither it nor the representation."""
    with EngineServer(tmp_path, requirepass="the-right-one") as server:
        engine = open_engine(f"redis://:the-wrong-one@{server.address}")
        away = await until_away(engine)
        assert ("AuthenticationError",) == away.args
        assert "the-wrong-one" not in f"{engine!r} {away!r}"
        await is_back(open_engine(f"redis://:the-right-one@{server.address}"))


async def test_a_user_may_have_few_rights(open_engine: Open, tmp_path: Path) -> None:
    """Scripts, what scripts do, and channels; a command beyond them counts as away."""
    with EngineServer(tmp_path) as server:
        with server.client() as client:
            client.acl_setuser(
                "fleet",
                enabled=True,
                passwords=["+secret"],
                keys=["{tests}:*", "{aioivschat}:*"],
                commands=["+eval", "+evalsha", "+set", "+incr"],
            )
        engine = open_engine(f"redis://fleet:secret@{server.address}")
        await is_back(engine)
        _, away = await tried(engine, Script("return redis.call('GET', KEYS[1])"))
        assert away is not None
        assert not away.may_have_run


async def test_a_slow_network_counts_as_away(
    open_engine: Open, engine_server: EngineServer
) -> None:
    """Beyond 50 ms there and back; however long connecting takes, it is back when that is over."""
    delay = [0.0]
    async with slow_road(engine_server.port, delay) as port:
        engine = open_engine(f"redis://127.0.0.1:{port}")
        await is_back(engine)
        delay[0] = 0.06
        assert ("TimeoutError",) == (await until_away(engine)).args
        await asyncio.sleep(0.9)
        assert EngineState.AWAY is engine.state
        delay[0] = 0.01
        await is_back(engine)
        await engine.aclose()


async def test_a_network_that_is_only_far_is_used(
    open_engine: Open, engine_server: EngineServer
) -> None:
    """30 ms there and back: connecting alone takes longer than a call may."""
    async with slow_road(engine_server.port, [0.015]) as port:
        engine = open_engine(f"redis://127.0.0.1:{port}")
        await is_back(engine)
        assert None is (await tried(engine))[1]
        await engine.aclose()


async def test_a_cluster_serves_keys_of_all_its_nodes(open_engine: Open, tmp_path: Path) -> None:
    """And messages published at any of them."""
    with cluster(tmp_path) as servers:
        engine = open_engine("redis+cluster://" + ",".join(each.address for each in servers))
        heard: list[bytes] = []
        begun: list[None] = []
        engine.listen("news", heard.append, lambda: begun.append(None))
        await is_back(engine)
        for number in range(20):
            assert 1 == await engine.run_script(SCRIPT, [f"{{{number}}}:counter"])
        await until(lambda: bool(begun))
        for server in servers:
            with server.client() as client:
                client.publish("news", server.address)
        await until(lambda: len(heard) == len(servers))
        lost = servers[0]
        lost.kill()
        await until_lost(engine)
        lost.start()
        await is_back(engine)


async def test_messages_of_a_cluster_reach_a_client_that_does_not_know_how(
    open_engine: Open, tmp_path: Path
) -> None:
    """valkey-py's, and redis-py's of some years: any node will do."""
    with cluster(tmp_path) as servers:
        client = valkey.asyncio.ValkeyCluster(host="127.0.0.1", port=servers[0].port)
        engine = open_engine(client)
        heard: list[bytes] = []
        await is_back(engine)
        engine.listen("news", heard.append, lambda: heard.append(b"missed"))
        await until(lambda: heard == [b"missed"])
        with servers[1].client() as publisher:
            publisher.publish("news", "some")
        await until(lambda: heard == [b"missed", b"some"])
        await engine.aclose()
        await client.aclose()


async def until_lost(engine: Engine) -> None:
    """Make calls all over the cluster until one of its nodes is missed."""
    async with asyncio.timeout(10):
        while engine.state is EngineState.SHARED:
            for number in range(20):
                with suppress(EngineAway):
                    await engine.run_script(SCRIPT, [f"{{{number}}}:counter"])


async def test_after_a_failover_the_new_master_is_used(open_engine: Open, tmp_path: Path) -> None:
    """The Sentinel names it; its script cache is empty."""
    with replicated(tmp_path) as (master, replica, sentinel):
        engine = open_engine(f"redis+sentinel://{sentinel.address}/fleet/0")
        await is_back(engine)
        master.kill()
        await until_away(engine)
        await until(lambda: engine.state is EngineState.SHARED, within=20.0)
        await engine.run_script(SCRIPT, KEYS)
        with replica.client() as client:
            assert b"master" == client.execute_command("ROLE")[0]
            assert int(client.get(KEYS[0])) >= 1


@pytest.mark.parametrize("library", [redis.asyncio.Redis, valkey.asyncio.Valkey])
async def test_a_client_of_the_users_own_stays_open(
    open_engine: Open, engine_server: EngineServer, library: Any
) -> None:
    """Of redis-py or valkey-py."""
    client = library(port=engine_server.port)
    engine = open_engine(client)
    await is_back(engine)
    await engine.aclose()
    assert await client.ping()
    await client.aclose()


async def test_listening_begins_again_after_every_silence(
    open_engine: Open, engine_server: EngineServer
) -> None:
    """And each time it is told that messages may have been missed."""
    engine = open_engine(engine_server.url)
    heard: list[bytes] = []
    engine.listen("one", heard.append, lambda: heard.append(b"missed"))
    engine.listen("two", heard.append, lambda: heard.append(b"missed too"))
    await until(lambda: b"missed" in heard and b"missed too" in heard)
    engine_server.restart()
    await until(lambda: heard.count(b"missed") == 2 == heard.count(b"missed too"))
    with engine_server.client() as client:
        client.publish("one", "first")
        client.publish("two", "second")
    await until(lambda: heard[-2:] == [b"first", b"second"])


@pytest.mark.parametrize(
    "url", ["http://host", "redis+ring://host", "unix+cluster://host", "host:6379", ""]
)
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidConfiguration):
        Engine(url)


async def test_closing_leaves_nothing_behind(engine_server: EngineServer) -> None:
    """Neither tasks nor connections, whatever was under way."""
    before = len(asyncio.all_tasks())
    with engine_server.client() as client:
        connected = client.info("clients")["connected_clients"]
        engine = Engine(engine_server.url)
        engine.listen("news", lambda message: None, lambda: None)
        await engine.open()
        await until(lambda: engine.state is EngineState.SHARED)
        call = asyncio.create_task(tried(engine))
        await asyncio.sleep(0)
        await engine.aclose()
        await asyncio.wait((call,))
        assert before == len(asyncio.all_tasks())
        await until(lambda: client.info("clients")["connected_clients"] == connected)


async def test_a_port_where_nobody_answers_counts_as_away(open_engine: Open) -> None:
    """A black hole: the first call gives up after 50 ms, connecting after a second."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(1)
        engine = open_engine(f"redis://127.0.0.1:{hole.getsockname()[1]}")
        seconds, away = await tried(engine)
        assert away is not None
        assert not away.may_have_run
        assert 0.05 <= seconds < 0.9
        assert EngineState.CONNECTING is engine.state
        await until(lambda: engine.state is EngineState.AWAY)
