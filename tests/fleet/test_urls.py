"""What a URL of an engine says: options, credentials and TLS, for each kind of engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import redis.asyncio.sentinel
import valkey.asyncio

from aioivschat import InvalidConfiguration
from aioivschat.redis import RedisTier
from aioivschat.redis._connecting import close_client, connect
from aioivschat.redis._engine import EngineState
from aioivschat.redis.check import Grade, check
from support.engine import EngineServer, cluster, proxy, replicated
from support.engine_calls import OpenEngine, until_away, until_back
from support.raw_servers import certificate
from support.services import until

OPTIONS = "socket_connect_timeout=2&health_check_interval=1&max_connections=20&socket_timeout=3"

pytestmark = pytest.mark.fault(57)


@contextmanager
def _with_sentinel(folder: Path, sentinel: str) -> Iterator[tuple[str, int]]:
    """Run a master and a sentinel that knows it; yield the sentinel's address and its port."""
    with EngineServer(folder / "master", requirepass="m%aster/1") as server:
        with server.client() as client:
            client.acl_setuser(
                "fleet", enabled=True, passwords=["+m%aster/1"], keys=["*"], commands=["+@all"]
            )
        monitor = (
            f"sentinel monitor chat 127.0.0.1 {server.port} 1\nsentinel auth-pass chat m%aster/1\n"
        )
        own: dict[str, Any] = {"requirepass": sentinel} if sentinel and " " not in sentinel else {}
        text = monitor + (f"{sentinel}\n" if " " in sentinel else "")
        with EngineServer(folder / "sentinel", sentinel=text, **own) as watching:
            yield watching.address, server.port


@pytest.mark.parametrize(
    ("sentinel", "url"),
    [
        ("", "redis+sentinel://:m%25aster%2F1@{}/chat"),
        ("", "redis+sentinel://:m%25aster%2F1@{}/chat?sentinel_password="),
        ("", "redis+sentinel://fleet:m%25aster%2F1@{}/chat/0"),
        ("m%aster/1", "redis+sentinel://:m%25aster%2F1@{}/chat/0"),
        ("m%aster/1", "redis+sentinel://fleet:m%25aster%2F1@{}/chat"),
        ("oth+er", "redis+sentinel://:m%25aster%2F1@{}/chat?sentinel_password=oth%2Ber"),
        ("oth+er", "redis+sentinel://fleet:m%25aster%2F1@{}/chat?sentinel_password=oth+er"),
        (
            "user watch on >other +@all",
            "redis+sentinel://:m%25aster%2F1@{}/chat?sentinel_username=watch&sentinel_password=other",
        ),
    ],
)
async def test_a_master_is_found_whatever_its_sentinels_ask_for(
    open_engine: OpenEngine, tmp_path: Path, sentinel: str, url: str
) -> None:
    """The URL's user and password hold for the sentinels, who may have others, or none."""
    with _with_sentinel(tmp_path, sentinel) as (address, _):
        engine = open_engine(f"{url.format(address)}{'&' if '?' in url else '?'}{OPTIONS}")
        await until_back(engine)
        await engine.aclose()


async def test_the_check_finds_a_master_whose_sentinels_ask_for_a_password(tmp_path: Path) -> None:
    """`aioivschat fleet check` logs in to the sentinels as the tier does."""
    with _with_sentinel(tmp_path, "m%aster/1") as (address, _):
        url = f"redis+sentinel://:m%25aster%2F1@{address}/chat"
        grades = {finding.topic: finding.grade async for finding in check(url)}
    assert (Grade.OK, Grade.OK) == (grades["role"], grades["scripts"])


async def test_sentinels_are_asked_through_tls_too(open_engine: OpenEngine, tmp_path: Path) -> None:
    """By `rediss+sentinel://` sentinels and master are asked through TLS."""
    file = certificate(tmp_path)
    with _with_sentinel(tmp_path, "m%aster/1") as (address, port):
        async with proxy(port, file) as master:
            # The real sentinel watches its master without TLS, as neither was built with it.
            replaced = {f"{port}".encode(): f"{master}".encode()}
            async with proxy(int(address.rpartition(":")[2]), file, replaced) as sentinel:
                url = f"rediss+sentinel://:m%25aster%2F1@127.0.0.1:{sentinel}/chat"
                engine = open_engine(f"{url}?ssl_ca_certs={file}&ssl_check_hostname=yes")
                await until_back(engine)
                await engine.aclose()
                unverified = open_engine(f"{url}?ssl_cert_reqs=none&ssl_check_hostname=no")
                await until_back(unverified)
                await unverified.aclose()


@asynccontextmanager
async def _silent_server() -> AsyncIterator[tuple[int, list[bytes]]]:
    """Run a server that takes everything and says nothing; yield its port, and what it takes."""
    heard: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(OSError):
            while data := await reader.read(65_536):
                heard.append(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("options", "sent"), [("", True), ("?sentinel_username=&sentinel_password=", False)]
)
async def test_a_password_is_sent_to_sentinels_unless_theirs_is_empty(
    open_engine: OpenEngine, options: str, sent: bool
) -> None:
    """An empty `sentinel_password=` holds: then the master's password does not reach them."""
    async with _silent_server() as (port, heard):
        engine = open_engine(f"redis+sentinel://fleet:secret@127.0.0.1:{port}/chat{options}")
        await engine.open()
        await until(lambda: bool(heard))
        assert sent == (b"secret" in b"".join(heard))
        await engine.aclose()


async def test_a_sentinel_that_says_nothing_keeps_nobody_from_the_next(
    open_engine: OpenEngine, tmp_path: Path
) -> None:
    """The first of two sentinels takes connections and says nothing: the second one is asked."""
    with _with_sentinel(tmp_path, "") as (address, _):
        async with _silent_server() as (port, _):
            url = f"redis+sentinel://:m%25aster%2F1@127.0.0.1:{port},{address}/chat"
            engine = open_engine(url)
            await until_back(engine)
            await engine.aclose()


async def test_options_hold_for_a_cluster(
    open_engine: OpenEngine, cluster_nodes: list[EngineServer]
) -> None:
    """A cluster is used with options of numbers and flags, those of its own client too."""
    hosts = ",".join(node.address for node in cluster_nodes)
    own = "reinitialize_steps=5&require_full_coverage=no"
    engine = open_engine(f"redis+cluster://{hosts}/0?{OPTIONS}&{own}")
    begun: list[None] = []
    engine.listen("news", lambda message: None, lambda: begun.append(None))
    await until_back(engine)
    await until(lambda: bool(begun))
    await engine.aclose()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://u%40:p%3A@[::1]:7000/3", {"host": "::1", "port": 7000, "db": 3}),
        ("redis:///2", {"db": 2}),
        ("unix://u%40:p%3A@/tmp/some.sock?db=2", {"path": "/tmp/some.sock", "db": 2}),
        ("valkeys://h?ssl_check_hostname=no", {"ssl_check_hostname": False}),
        ("redis://h?decode_responses=no", {"decode_responses": False}),
        ("redis://h?protocol=3", {"protocol": 3}),
        ("redis+sentinel://h/chat/4?health_check_interval=3", {"health_check_interval": 3}),
        (f"redis+sentinel://u%40:p%3A@h/chat?{OPTIONS}", {"socket_connect_timeout": 2.0}),
        (f"redis+cluster://u%40:p%3A@[::1]:7000,127.0.0.1?{OPTIONS}", {"socket_timeout": 3.0}),
    ],
)
def test_options_are_what_redis_py_makes_of_them(url: str, expected: dict[str, object]) -> None:
    """Numbers and flags are no text; user and password are decoded; a client needs no loop."""
    client = connect(url)
    pool = getattr(client, "connection_pool", client)
    options = dict(pool.connection_kwargs)
    assert expected == {name: options[name] for name in expected}
    if "@" in url:
        assert ("u@", "p:") == (options["username"], options["password"])
    if "+cluster" in url:
        nodes = client.nodes_manager.startup_nodes.values()
        assert {("::1", 7000), ("127.0.0.1", 6379)} == {(node.host, node.port) for node in nodes}


KINDS = ("redis://h/0", "redis+cluster://127.0.0.1/0", "redis+sentinel://h/chat", "unix:///path")
TLS_KINDS = ("rediss://h", "rediss+cluster://127.0.0.1", "rediss+sentinel://h/chat")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        *((f"{url}?socket_conect_timeout=2", "socket_conect_timeout") for url in KINDS),
        *((f"{url}?max_connections=x", "max_connections") for url in KINDS),
        *((f"{url}?max_connections=5", "max_connections: must be 6 or more") for url in KINDS),
        *((f"{url}?health_check_interval=often&{OPTIONS}", "health_check") for url in KINDS),
        *((f"{url}?{OPTIONS}&credential_provider=x", "credential_provider") for url in KINDS),
        *((f"{url}?ssl_cert_reqs=none", "ssl_cert_reqs: must be for rediss://") for url in KINDS),
        *((f"{url}?ssl_cert_reqs=maybe", "ssl_cert_reqs") for url in TLS_KINDS),
        *((f"{url}?ssl_ciphers=none&ssl_check_hostname=no", "ssl_ciphers") for url in TLS_KINDS),
        ("redis+sentinel://h/chat?sentinel_pasword=x", "sentinel_pasword"),
        ("redis+sentinel://h/chat?min_other_sentinels=x", "min_other_sentinels"),
        ("redis+cluster://127.0.0.1?reinitialize_steps=x", "reinitialize_steps"),
        ("redis://h?sentinel_password=x", "sentinel_password"),
        ("redis://h:x", "port"),
        ("redis://h:0", "port"),
        ("redis+cluster://a:1,b:65536", "port"),
        ("redis+sentinel://a:1,b:x/chat", "port"),
        ("redis://a,b", "host"),
        ("redis+cluster://", "host"),
        ("redis+sentinel://a,/chat", "host"),
        ("redis://::1:6379", "host"),
        ("redis://[::1:6379", "host"),
        ("redis+sentinel://h", "host:port/name"),
        ("redis+sentinel://h/chat/x", "database"),
        ("redis+cluster://127.0.0.1/3", "database"),
        ("redis://h/x", "database"),
        ("redis://h?db=x", "db"),
        ("redis://h?some", "name=value"),
        ("unix://path", "three slashes"),
    ],
)
def test_what_no_client_knows_is_an_error_that_names_it(url: str, named: str) -> None:
    """A wrong option, or value, is an error when the tier is made; no password shows."""
    url = url.replace("://", "://user:hu%2Fsh@")
    with pytest.raises(InvalidConfiguration, match=named) as caught:
        RedisTier(url)
    assert "hu" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("character", "/?#@")
@pytest.mark.parametrize("before", ["zq", "12"])
def test_a_password_that_is_not_encoded_is_not_shown(before: str, character: str) -> None:
    """It may look like a port, a path, an option or a fragment: no part of it is repeated."""
    url = f"redis://:{before}{character}qz=7@127.0.0.1"
    if character == "@":  # as only the last one ends them, redis-py and all take it for what it is
        assert f"{before}@qz=7" == connect(url).connection_pool.connection_kwargs["password"]
        return
    with pytest.raises(InvalidConfiguration) as caught:
        RedisTier(url)
    assert not any(part in str(caught.value) for part in (before, "qz", "7"))


async def test_a_client_with_too_few_connections_is_refused() -> None:
    """A client of the user's own, of any kind, is an error that says how many a tier needs."""
    sentinels: Any = redis.asyncio.sentinel
    sentinel = sentinels.Sentinel([("h", 1)])
    clients: list[Any] = [
        redis.asyncio.Redis(max_connections=5),
        redis.asyncio.Redis(single_connection_client=True),
        redis.asyncio.Redis.from_pool(redis.asyncio.BlockingConnectionPool(max_connections=5)),
        redis.asyncio.RedisCluster("127.0.0.1", max_connections=5),
        sentinel.master_for("chat", max_connections=5),
        valkey.asyncio.Valkey(max_connections=5),
        valkey.asyncio.ValkeyCluster("127.0.0.1", max_connections=5),
    ]
    for client in clients:
        with pytest.raises(InvalidConfiguration, match="max_connections: must be 6 or more"):
            RedisTier(client)
        await client.aclose()


async def test_six_connections_are_enough(open_engine: OpenEngine, tmp_path: Path) -> None:
    """With as many connections as the error asks for, all calls and the subscription have one."""
    with EngineServer(tmp_path) as server:
        engine = open_engine(f"{server.url}?max_connections=6")
        begun: list[None] = []
        engine.listen("news", lambda message: None, lambda: begun.append(None))
        await until_back(engine)
        await until(lambda: bool(begun))


@pytest.mark.parametrize("kind", ["plain", "cluster", "sentinel", "TLS"])
@pytest.mark.parametrize("used", ["never", "well", "killed"])
async def test_closing_a_client_never_fails(tmp_path: Path, kind: str, used: str) -> None:
    """Not if it was never used, and not if the engine is gone."""
    file = certificate(tmp_path)
    with (
        replicated(tmp_path) as (master, _, sentinel),
        cluster(tmp_path / "cluster", nodes=1) as [node],
    ):
        async with proxy(master.port, file) as port:
            url = {
                "plain": f"{master.url}?{OPTIONS}",
                "cluster": f"redis+cluster://{node.address}?{OPTIONS}",
                "sentinel": f"redis+sentinel://{sentinel.address}/fleet?{OPTIONS}",
                "TLS": f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={file}&{OPTIONS}",
            }[kind]
            client = connect(url)
            if used != "never":
                assert await client.set("key", 1)
            if used == "killed":
                for server in (master, sentinel, node):
                    server.kill()
            await close_client(client)
            await close_client(client)


async def test_too_long_a_wait_for_a_silent_engine_is_over(open_engine: OpenEngine) -> None:
    """`socket_timeout` of the URL ends what the tier's own limits leave open."""
    async with _silent_server() as (port, _):
        engine = open_engine(f"redis://127.0.0.1:{port}?socket_timeout=0.2")
        assert ("TimeoutError",) == (await until_away(engine)).args
        assert EngineState.AWAY is engine.state
