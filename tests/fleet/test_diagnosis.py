"""What the operator is told when a fleet cannot use its engine: each cause once, in words."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aioivschat.redis import RedisTier
from aioivschat.redis._diagnosis import explain
from aioivschat.redis._engine import EngineState
from aioivschat.redis.check import Grade, check
from support.engine import EngineServer, cluster, proxy, replicated
from support.engine_calls import OpenEngine, until_away, until_back
from support.raw_servers import certificate
from support.services import SEALING_KEY, OpenService, until

pytestmark = pytest.mark.fault(58)

SECRET = "the-very-secret"


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was told; assert that it is without a stack trace and without a secret."""
    records = [each for each in caplog.records if each.name == "aioivschat"]
    told = [each.getMessage() for each in records if "cannot be used" in each.getMessage()]
    for record in records:
        assert record.exc_info is None
        assert record.stack_info is None
        assert SECRET not in f"{record.getMessage()} {record.args}"
    assert SECRET not in caplog.text
    return told


def _count(caplog: pytest.LogCaptureFixture, word: str) -> int:
    return sum(word in each for each in _told(caplog))


@asynccontextmanager
async def _answering(answer: bytes | None) -> AsyncIterator[int]:
    """Run a server that answers all with the same bytes and closes; none: closes at once."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is not None:
            await reader.read(1)
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


class _Wrong:
    """The wrong engines of the table below, each as a coroutine that returns its URL."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def _server(self, **options: Any) -> EngineServer:
        return self._stack.enter_context(EngineServer(self._folder / "server", **options))

    def _cluster_node(self) -> EngineServer:
        return self._stack.enter_context(cluster(self._folder / "cluster", nodes=2))[0]

    def _sentinel(self) -> EngineServer:
        return self._stack.enter_context(replicated(self._folder / "replicated"))[2]

    async def _proxy(self, *args: Any) -> int:
        return await self._stack.enter_async_context(proxy(*args))

    async def _answers(self, answer: bytes | None) -> int:
        return await self._stack.enter_async_context(_answering(answer))

    async def password(self) -> str:
        return f"redis://:{SECRET}@{self._server(requirepass='other').address}"

    async def no_password(self) -> str:
        return self._server(requirepass=SECRET).url

    async def unneeded_password(self) -> str:
        return f"redis://nobody:{SECRET}@{self._server().address}"

    async def password_of_a_cluster(self) -> str:
        return f"redis+cluster://nobody:{SECRET}@{self._cluster_node().address}"

    async def password_of_sentinels(self) -> str:
        master = self._server()
        text = f"sentinel monitor fleet 127.0.0.1 {master.port} 1\n"
        sentinel = self._stack.enter_context(
            EngineServer(self._folder / "sentinel", sentinel=text, requirepass="other")
        )
        return f"redis+sentinel://fleet:{SECRET}@{sentinel.address}/fleet"

    async def rights(self) -> str:
        server = self._server()
        with server.client() as client:
            client.acl_setuser(
                "poor", enabled=True, passwords=[f"+{SECRET}"], keys=["*"], commands=["+ping"]
            )
        return f"redis://poor:{SECRET}@{server.address}"

    async def rights_in_a_cluster(self) -> str:
        node = self._cluster_node()
        with node.client() as client:
            client.acl_setuser("poor", enabled=True, passwords=[f"+{SECRET}"], keys=["*"])
        return f"redis+cluster://poor:{SECRET}@{node.address}"

    async def host(self) -> str:
        return f"redis://:{SECRET}@no-such-host.invalid:6379"

    async def host_of_a_sentinel(self) -> str:
        return f"redis+sentinel://:{SECRET}@no-such-host.invalid/fleet"

    async def host_of_a_cluster(self) -> str:
        return f"redis+cluster://:{SECRET}@no-such-host.invalid"

    async def port(self) -> str:
        return f"redis://:{SECRET}@127.0.0.1:{_closed_port()}"

    async def port_of_a_sentinel(self) -> str:
        return f"redis+sentinel://:{SECRET}@127.0.0.1:{_closed_port()}/fleet"

    async def path(self) -> str:
        return f"unix://:{SECRET}@{self._folder}/none.sock"

    async def web_server(self) -> str:
        return f"redis://127.0.0.1:{await self._answers(HTTP)}"

    async def web_server_by_tls(self) -> str:
        return f"rediss://127.0.0.1:{await self._answers(HTTP)}"

    async def closes(self) -> str:
        return f"redis://:{SECRET}@127.0.0.1:{await self._answers(None)}"

    async def no_tls(self) -> str:
        return f"rediss://:{SECRET}@{self._server().address}"

    async def no_tls_at_sentinels(self) -> str:
        return f"rediss+sentinel://:{SECRET}@{self._sentinel().address}/fleet"

    async def only_tls(self) -> str:
        port = await self._proxy(self._server().port, certificate(self._folder))
        return f"redis://:{SECRET}@127.0.0.1:{port}"

    async def unverified(self) -> str:
        port = await self._proxy(self._server().port, certificate(self._folder))
        return f"rediss://:{SECRET}@127.0.0.1:{port}"

    async def another_host(self) -> str:
        file = certificate(self._folder)
        port = await self._proxy(self._server().port, file)
        return f"rediss://localhost:{port}?ssl_ca_certs={file}&ssl_check_hostname=yes"

    async def old(self) -> str:
        server = self._server()
        with server.client() as client:
            version = client.info("server")["redis_version"]
        port = await self._proxy(server.port, None, {version.encode(): b"6.0.9"})
        return f"redis://127.0.0.1:{port}"

    async def old_cluster(self) -> str:
        node = self._stack.enter_context(cluster(self._folder / "cluster", nodes=1))[0]
        with node.client() as client:
            version = client.info("server")["redis_version"]
        replaced = {version.encode(): b"6.0.9"}
        port = await self._proxy(node.port, None, replaced)
        replaced[str(node.port).encode()] = str(port).encode()
        return f"redis+cluster://127.0.0.1:{port}"

    async def renamed_commands(self) -> str:
        return self._server(rename_command="EVALSHA ''").url

    async def database(self) -> str:
        return f"{self._server().url}/99"

    async def replica(self) -> str:
        return self._stack.enter_context(replicated(self._folder))[1].url

    async def node(self) -> str:
        server = self._cluster_node()
        with server.client() as client:
            # The key of the first probe belongs to the other node.
            slot = client.execute_command("CLUSTER", "KEYSLOT", "{aioivschat}")
            first = client.execute_command("CLUSTER", "SLOTS")
        owner = next(each[2][1] for each in _slots(first) if each[0] <= slot <= each[1])
        other = next(each[2][1] for each in _slots(first) if each[2][1] != owner)
        return f"redis://127.0.0.1:{other}"

    async def no_cluster(self) -> str:
        return f"redis+cluster://{self._server().address}"

    async def sentinel(self) -> str:
        return self._sentinel().url

    async def name_of_the_master(self) -> str:
        return f"redis+sentinel://{self._sentinel().address}/fleeet"

    async def full(self) -> str:
        return self._server(maxmemory=1).url

    async def silent(self) -> str:
        hole = self._stack.enter_context(socket.socket())
        hole.bind(("127.0.0.1", 0))
        hole.listen(1)
        return f"redis://:{SECRET}@127.0.0.1:{hole.getsockname()[1]}"


def _slots(answer: Any) -> list[Any]:
    """Return CLUSTER SLOTS as the engine writes it, whatever redis-py made of it."""
    if isinstance(answer, dict):
        return [[*each, ["", value["primary"][1]]] for each, value in answer.items()]
    return list(answer)


CAUSES = {
    "password": ("refuses the user or the password", "percent-encoded"),
    "no_password": ("refuses the user or the password", "percent-encoded"),
    "unneeded_password": ("refuses the user or the password", "percent-encoded"),
    "password_of_a_cluster": ("refuses the user or the password", "percent-encoded"),
    "password_of_sentinels": ("sentinels refuse the user or the password", "sentinel_password="),
    "rights": ("lacks a right", "docs/fleet.md"),
    "rights_in_a_cluster": ("lacks a right", "docs/fleet.md"),
    "host": ("no such host", "host in the URL"),
    "host_of_a_sentinel": ("no such host", "host in the URL"),
    "host_of_a_cluster": ("no such host", "host in the URL"),
    "port": ("nobody listens", "port in the URL"),
    "port_of_a_sentinel": ("nobody listens", "port in the URL"),
    "path": ("no such socket", "path in the URL"),
    "web_server": ("no Valkey or Redis", "host and port"),
    "web_server_by_tls": ("no TLS", "redis://"),
    "closes": ("closed without an answer", "rediss://"),
    "no_tls": ("no TLS", "redis://"),
    "no_tls_at_sentinels": ("no TLS", "redis://"),
    "only_tls": ("closed without an answer", "rediss://"),
    "unverified": ("cannot be verified", "ssl_ca_certs="),
    "another_host": ("of another host", "ssl_check_hostname=no"),
    "old": ("older than Redis 6.2", "Redis 6.2 or later"),
    "old_cluster": ("older than Redis 6.2", "Redis 6.2 or later"),
    "renamed_commands": ("lacks a command", "no command renamed"),
    "database": ("no such database", "number"),
    "replica": ("a replica", "redis+sentinel://"),
    "node": ("a node of a cluster", "redis+cluster://"),
    "no_cluster": ("no cluster", "redis://"),
    "sentinel": ("lacks a command", "redis+sentinel://"),
    "name_of_the_master": ("no master of that name", "name of the master"),
    "full": ("memory is full", "maxmemory"),
    "silent": ("does not answer in time", "firewalls"),
}


@pytest.mark.parametrize("wrong", CAUSES)
async def test_a_wrong_engine_is_told_once(
    open_engine: OpenEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    """One WARNING names the cause and what to change, however often the engine is probed."""
    caplog.set_level(logging.DEBUG, "aioivschat")
    async with AsyncExitStack() as stack:
        make: Callable[[], Any] = getattr(_Wrong(tmp_path, stack), wrong)
        engine = open_engine(await make())
        await engine.open()
        cause, setting = CAUSES[wrong]
        await until(lambda: _count(caplog, cause) > 0)
        await asyncio.sleep(1.0)  # at least one more probe, on a machine that is not too slow
        assert EngineState.AWAY is engine.state
        # On a machine that is, a probe may have timed out.
        [told] = [each for each in _told(caplog) if wrong == "silent" or "in time" not in each]
        assert cause in told
        assert setting in told
        await engine.aclose()


async def test_a_cause_is_told_again_when_it_changes_or_was_over(
    open_engine: OpenEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A password that is refused, right, and refused again is told twice; another cause, once."""
    with EngineServer(tmp_path, requirepass="right") as server:
        engine = open_engine(f"redis://:right@{server.address}")
        with server.client() as client:
            for times in (1, 2):
                await until_back(engine)
                client.config_set("requirepass", "other")
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await until_away(engine)
                async with asyncio.timeout(10):
                    while _count(caplog, "password") < times:
                        await asyncio.sleep(0.01)
                client.config_set("requirepass", "right")
                await until(lambda: engine.state is EngineState.SHARED)
        assert 2 == _count(caplog, "password")
        server.kill()
        await until_away(engine)
        await until(lambda: "nobody listens" in _told(caplog)[-1])
        await engine.aclose()


async def test_an_engine_that_tells_no_version_is_used(
    open_engine: OpenEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """INFO is refused, or names no version of Redis: that is no failure, and nothing is told."""
    with EngineServer(tmp_path) as server:
        with server.client() as client:
            client.acl_setuser(
                "fleet",
                enabled=True,
                passwords=["+secret"],
                keys=["*"],
                commands=["+eval", "+evalsha", "+set", "+incr"],
            )
            version = client.info("server")["redis_version"]
        await until_back(open_engine(f"redis://fleet:secret@{server.address}"))
        async with proxy(server.port, None, {version.encode(): b"nightly"[: len(version)]}) as port:
            await until_back(open_engine(f"redis://127.0.0.1:{port}"))
    assert not _told(caplog)


async def test_the_fleet_goes_on_and_its_event_has_the_class_alone(
    open_service: OpenService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A service with a wrong password serves its callers; the operator reads one line of it."""
    from aioivschat import Event, SharedChanged, SharedState, TokenRequest
    from support.services import ROOM

    events: list[Event] = []
    with EngineServer(tmp_path, requirepass="right") as server:
        tier = RedisTier(f"redis://:{SECRET}@{server.address}", keys=[SEALING_KEY], members=2)
        service = open_service(shared=tier, observers=[events.append])
        for number in range(3):
            await service.issue(TokenRequest(ROOM, f"user-{number}"))
        await until(lambda: bool(_told(caplog)))
        await service.aclose()
    assert 1 == len(_told(caplog))
    told = [event for event in events if isinstance(event, SharedChanged)]
    assert [SharedChanged(SharedState.LOCAL, "AuthenticationError")] == told


async def test_the_check_says_the_same(tmp_path: Path) -> None:
    """`aioivschat fleet check` explains why it cannot connect in the same words."""
    findings = [each async for each in check(f"redis://:{SECRET}@127.0.0.1:{_closed_port()}")]
    assert [(Grade.FAIL, "connection")] == [(each.grade, each.topic) for each in findings]
    assert "nobody listens" in findings[0].found
    assert "host and port" in findings[0].advice


async def test_sentinels_of_a_client_of_ones_own_are_told_too(
    open_engine: OpenEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a user's own client, the newest redis-py tells less: that its sentinels failed."""
    sentinels: Any = redis.asyncio.sentinel
    own = {"retry": Retry(NoBackoff(), 0)}
    manager = sentinels.Sentinel([("127.0.0.1", _closed_port())], 0, own, password=SECRET, **own)
    client = manager.master_for("fleet")
    engine = open_engine(client)
    await engine.open()
    await until(lambda: bool(_told(caplog)))
    assert "sentinels" in _told(caplog)[0] or "nobody listens" in _told(caplog)[0]
    await engine.aclose()
    await client.aclose()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (redis.exceptions.ConnectionError("max number of clients reached"), "too many clients"),
        (redis.exceptions.ConnectionError("Too many connections"), "may open no more connections"),
        (redis.exceptions.ConnectionError("The previous master is now a slave"), "a replica"),
        (redis.exceptions.ResponseError("MISCONF Errors writing to the AOF file"), "its own disk"),
        (redis.exceptions.ResponseError("DENIED It is running in protected mode"), "protected"),
        (redis.exceptions.ClusterDownError("The cluster is down"), "hash slots is not served"),
        (redis.exceptions.BusyLoadingError("loading the dataset"), "loading its data"),
        (redis.exceptions.RedisError(f"something {SECRET}"), "fails with RedisError"),
    ],
)
async def test_what_no_server_shows_at_will_is_explained(error: Exception, cause: str) -> None:
    """Failures as redis-py raises them; what is unknown is told by its class."""
    assert cause in " ".join(await explain(error, None))
    assert SECRET not in " ".join(await explain(error, None))


async def test_an_error_that_cannot_be_written_is_explained() -> None:
    """A client of the user's own may raise anything, even what has no text."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert ("it fails with Odd", "check the URL, the user and its rights") == await explain(
        Odd(), None
    )
