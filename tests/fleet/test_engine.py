"""The engine's breaker: how soon it opens, and when it closes again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aioivschat.redis._engine import Engine, EngineState, Script
from support.engine import EngineServer
from support.engine_calls import (
    COUNTER,
    INCREMENT,
    OpenEngine,
    try_call,
    until_away,
    until_back,
)
from support.services import until


@asynccontextmanager
async def slow_road(port: int, delay: list[float]) -> AsyncIterator[int]:
    """Run a proxy that delays everything by `delay[0]` seconds; yield its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def delay_bytes(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                await asyncio.sleep(delay[0])
                target.write(data)
        except OSError:
            pass
        finally:
            target.close()

    async def connect(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        for one, other in ((source, back), (there, target)):
            task = asyncio.create_task(delay_bytes(one, other))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.fault(21)
async def test_a_stopped_engine_costs_two_timeouts_and_then_nothing(
    open_engine: OpenEngine, engine_server: EngineServer
) -> None:
    """Two calls time out; then calls fail at once, until the engine answers again."""
    states: list[tuple[EngineState, str]] = []
    engine = open_engine(engine_server.url, on_state=lambda *change: states.append(change))
    await until_back(engine)
    with engine_server.stopped():
        first = [await try_call(engine) for _ in range(2)]
        then = sorted([await try_call(engine) for _ in range(100)], key=lambda each: each[0])
        stopped = list(states)
    await until_back(engine)
    for seconds, away in first:
        assert away is not None
        assert (True, ("TimeoutError",)) == (away.may_have_run, away.args)
        assert 0.05 <= seconds < 0.5
    # The median: single calls may be delayed by the probe or by a busy machine.
    seconds, away = then[50]
    assert away is not None
    assert not away.may_have_run
    assert seconds < 0.001
    opened = [(EngineState.SHARED, ""), (EngineState.AWAY, "TimeoutError")]
    assert opened == stopped
    assert [*opened, (EngineState.SHARED, "")] == states


async def test_calls_at_the_same_time_count_as_one_failure(
    open_engine: OpenEngine, engine_server: EngineServer
) -> None:
    """Calls that overlap and time out count as one failure, which leaves the breaker closed."""
    engine = open_engine(engine_server.url)
    await until_back(engine)
    with engine_server.stopped():
        results = await asyncio.gather(*(try_call(engine) for _ in range(3)))
    assert all(away is not None for _, away in results)
    assert EngineState.SHARED is engine.state
    await engine.run_script(INCREMENT, COUNTER)


async def test_a_crowd_of_calls_is_no_failure(
    open_engine: OpenEngine, engine_server: EngineServer
) -> None:
    """1,000 calls at once wait for connections for longer than the timeout, and none fails."""
    engine = open_engine(engine_server.url, timeout=0.5)
    await until_back(engine)
    busy = Script("for _ = 1, 300000 do end return 1")
    results = await asyncio.gather(*(try_call(engine, busy) for _ in range(1_000)))
    assert {None} == {away for _, away in results}
    assert max(seconds for seconds, _ in results) > 0.5


async def test_an_engine_that_was_killed_is_found_after_its_start(
    open_engine: OpenEngine, engine_server: EngineServer
) -> None:
    """After a kill and a start on the same port, the engine is used again."""
    engine = open_engine(engine_server.url)
    await until_back(engine)
    engine_server.kill()
    try:
        await until_away(engine)
    finally:
        engine_server.start()
    await until_back(engine)


async def test_an_engine_that_is_away_from_the_start_is_found(
    open_engine: OpenEngine, engine_server: EngineServer
) -> None:
    """The first call waits until the state is known, and fails; later the engine is found."""
    engine_server.kill()
    try:
        engine = open_engine(engine_server.url)
        _, away = await try_call(engine)
        assert away is not None
        assert ("ConnectionError",) == away.args
    finally:
        engine_server.start()
    await until_back(engine)


@pytest.mark.fault(25)
async def test_a_script_that_was_flushed_is_sent_again(
    open_engine: OpenEngine, engine_server: EngineServer
) -> None:
    """After SCRIPT FLUSH a script is sent in full once, within the same call."""
    engine = open_engine(engine_server.url)
    await until_back(engine)
    with engine_server.client() as client:
        client.script_flush()
        before = client.info("commandstats")["cmdstat_eval"]["calls"]
        assert 2 == await engine.run_script(INCREMENT, COUNTER)
        assert 3 == await engine.run_script(INCREMENT, COUNTER)
        assert before + 1 == client.info("commandstats")["cmdstat_eval"]["calls"]


async def test_a_full_memory_counts_as_away(open_engine: OpenEngine, tmp_path: Path) -> None:
    """A full engine opens the breaker, with the reason, until memory is free again."""
    with EngineServer(tmp_path, maxmemory_policy="noeviction") as server, server.client() as client:
        engine = open_engine(server.url)
        await until_back(engine)
        client.config_set("maxmemory", 1)
        assert ("OutOfMemoryError",) == (await until_away(engine)).args
        await asyncio.sleep(0.6)
        assert EngineState.AWAY is engine.state
        client.config_set("maxmemory", 0)
        await until_back(engine)


async def test_a_read_only_replica_counts_as_away(open_engine: OpenEngine, tmp_path: Path) -> None:
    """A server that becomes a replica opens the breaker, until it is a master again."""
    with EngineServer(tmp_path / "one") as one, EngineServer(tmp_path / "two") as two:
        engine = open_engine(one.url)
        await until_back(engine)
        with one.client() as client:
            client.replicaof("127.0.0.1", two.port)
            assert ("ReadOnlyError",) == (await until_away(engine)).args
            client.replicaof("NO", "ONE")
        await until_back(engine)


async def test_a_wrong_password_counts_as_away(open_engine: OpenEngine, tmp_path: Path) -> None:
    """A wrong password is the reason for being away, and is in neither the reason nor the repr."""
    with EngineServer(tmp_path, requirepass="the-right-one") as server:
        engine = open_engine(f"redis://:the-wrong-one@{server.address}")
        away = await until_away(engine)
        assert ("AuthenticationError",) == away.args
        assert "the-wrong-one" not in f"{engine!r} {away!r}"
        await until_back(open_engine(f"redis://:the-right-one@{server.address}"))


async def test_a_user_may_have_few_rights(open_engine: OpenEngine, tmp_path: Path) -> None:
    """A user with the few rights that scripts need is enough; a forbidden command fails as away."""
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
        await until_back(engine)
        _, away = await try_call(engine, Script("return redis.call('GET', KEYS[1])"))
        assert away is not None
        assert not away.may_have_run


async def test_a_slow_network_counts_as_away(
    open_engine: OpenEngine, engine_server: EngineServer
) -> None:
    """A round trip above 50 ms opens the breaker until the network is faster again."""
    delay = [0.0]
    async with slow_road(engine_server.port, delay) as port:
        engine = open_engine(f"redis://127.0.0.1:{port}")
        await until_back(engine)
        delay[0] = 0.06
        assert ("TimeoutError",) == (await until_away(engine)).args
        await asyncio.sleep(0.9)
        assert EngineState.AWAY is engine.state
        delay[0] = 0.01
        await until_back(engine)
        await engine.aclose()


async def test_a_network_that_is_only_far_is_used(
    open_engine: OpenEngine, engine_server: EngineServer
) -> None:
    """A round trip of 30 ms is used, though connecting takes longer than a call may."""
    async with slow_road(engine_server.port, [0.015]) as port:
        engine = open_engine(f"redis://127.0.0.1:{port}")
        await until_back(engine)
        assert None is (await try_call(engine))[1]
        await engine.aclose()


async def test_listening_begins_again_after_a_lost_connection(
    open_engine: OpenEngine, engine_server: EngineServer
) -> None:
    """After a restart both channels are subscribed again, and their callbacks are told of it."""
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
    await until(lambda: {b"first", b"second"} <= set(heard))


async def test_closing_leaves_nothing_behind(engine_server: EngineServer) -> None:
    """Closing ends all tasks and connections, also with a call under way."""
    before = len(asyncio.all_tasks())
    with engine_server.client() as client:
        connected = client.info("clients")["connected_clients"]
        engine = Engine(engine_server.url)
        engine.listen("news", lambda message: None, lambda: None)
        await engine.open()
        await until(lambda: engine.state is EngineState.SHARED)
        call = asyncio.create_task(try_call(engine))
        await asyncio.sleep(0)
        await engine.aclose()
        await asyncio.wait((call,))
        assert before == len(asyncio.all_tasks())
        await until(lambda: client.info("clients")["connected_clients"] == connected)


async def test_a_port_where_nobody_answers_counts_as_away(open_engine: OpenEngine) -> None:
    """Where nothing answers, the first call fails after 50 ms and connecting after a second."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(1)
        engine = open_engine(f"redis://127.0.0.1:{hole.getsockname()[1]}")
        seconds, away = await try_call(engine)
        assert away is not None
        assert not away.may_have_run
        assert 0.05 <= seconds < 0.9
        assert EngineState.CONNECTING is engine.state
        await until(lambda: engine.state is EngineState.AWAY)
