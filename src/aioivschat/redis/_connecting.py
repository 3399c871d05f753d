"""How a client of the engine is made: addresses, TLS, clusters, sentinels."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aioivschat._contexts import time_limit
from aioivschat.errors import InvalidConfiguration, require

MAX_CONCURRENT_CALLS = 4
"""Calls under way at most, each on its own connection: more would slow each other down until they
time out. With 10 ms to the engine and back, 4 make 400 calls a second."""

_CONNECTIONS = MAX_CONCURRENT_CALLS + 2
"""Connections that a tier needs: with one for an urgent call, and one for the subscription."""

_CLOSING_SECONDS = 1.0
"""Seconds that closing may take: through TLS, redis-py waits for the other side to close too."""

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

_KINDS = {
    "redis": ("", "cluster", "sentinel"),
    "rediss": ("", "cluster", "sentinel"),
    "unix": ("",),
}

_URL = re.compile(r"([a-z+]+)://(?:([^/?#]*)@)?([^/?#@]*)([^?#@]*)(?:\?([^#]*))?", re.IGNORECASE)
_HOST = re.compile(r"(?:\[([^][]+)\]|([^][:,]*))(?::([^,:]*))?")


@dataclass(frozen=True, slots=True, repr=False)
class _Address:
    """The parts of a URL, still encoded; ``options`` are the parts of its query."""

    scheme: str
    topology: str
    credentials: str
    hosts: str
    path: str
    options: Sequence[str]


def connect(url: str) -> Any:
    """Return an asyncio client of redis-py for a URL.

    ======================================  ===================================================
    ``redis://user:password@host:6379/0``   a single server; ``rediss://`` with TLS
    ``redis+cluster://host:port,host:port`` a cluster; ``rediss+cluster://`` with TLS
    ``redis+sentinel://host:port/name/0``   the master of that name, by its sentinels;
                                            ``rediss+sentinel://`` with TLS
    ``unix:///path``                        a socket of this host
    ======================================  ===================================================

    ``valkey`` may stand for ``redis``. What follows a ``?`` are options of redis-py's client. User,
    password, TLS and options hold for the sentinels too, but for ``sentinel_username=`` and
    ``sentinel_password=``, which may be empty.

    Raises:
        InvalidConfiguration: the URL is none of these, or an option or its value is unknown.
        ImportError: redis-py is not installed.
    """
    try:
        client = _make_client_or_name_option(_split(url))
        check_connections(client)
    except InvalidConfiguration as error:
        wrong = error
    else:
        return client
    finally:
        del url
    # Raised here without context: the frames below, those of redis-py too, hold the password.
    raise wrong.with_traceback(None)


def check_connections(client: Any) -> None:
    """Raise InvalidConfiguration if a client may open fewer connections than a tier needs."""
    pool = getattr(client, "connection_pool", None)
    limit = getattr(pool, "max_connections", None)
    if pool is None:  # a cluster's client
        limit = getattr(client, "connection_kwargs", {}).get("max_connections")
    if getattr(client, "single_connection_client", False) is True:
        limit = 1
    enough = not isinstance(limit, int) or limit >= _CONNECTIONS
    require(enough, "RedisTier, max_connections", f"{_CONNECTIONS} or more", limit)


def _split(url: str) -> _Address:
    match = _URL.fullmatch(url.strip())
    kinds = "a redis://, rediss:// or unix:// URL, with / ? # and @ before its host percent-encoded"
    if match is None:
        raise InvalidConfiguration("RedisTier", kinds, "other text")
    scheme, credentials, hosts, path, query = (part or "" for part in match.groups())
    kind, _, topology = scheme.lower().replace("valkey", "redis", 1).partition("+")
    require(topology in _KINDS.get(kind, ()), "RedisTier", kinds, f"{scheme}://")
    parts = [part for part in query.split("&") if part]
    named = all("=" in part for part in parts)
    require(named, "RedisTier", "a URL whose options are name=value", "other text")
    return _Address(kind, topology, credentials, hosts, path, parts)


def _make_client_or_name_option(address: _Address) -> Any:
    options = address.options
    # Options are left out until the client can be made: the last one left out is wrong.
    for left_out in range(len(options) + 1):
        try:
            client = _make_client(address, options[left_out:])
        except (InvalidConfiguration, ImportError):
            raise
        except Exception:  # redis-py raises many kinds
            client = None
        if client is None:
            continue
        if left_out == 0:
            return client
        name = _name(options[left_out - 1])
        # What looks like an option may be a password that was not encoded.
        shown = name.isidentifier() and (address.credentials or "@" not in "".join(options))
        raise InvalidConfiguration(
            f"RedisTier, {name}" if shown else "RedisTier",
            "an option that redis-py knows for such a URL, with a value that fits",
            "another name or value",
        )
    raise InvalidConfiguration("RedisTier", "a URL that redis-py knows", "another")


def _name(option: str) -> str:
    return unquote(option.partition("=")[0])


def _make_client(address: _Address, query: Sequence[str]) -> Any:
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.connection import ConnectionPool, SSLConnection

    from aioivschat.redis._sentinels import CREDENTIALS, Sentinel, logins

    redis_sentinel: Any = importlib.import_module("redis.asyncio.sentinel")  # it has no types
    tls, topology = address.scheme == "rediss", address.topology
    if not topology:
        options = _read_options(address, query, Redis)
        pool = ConnectionPool(**options)
        _try_connection(pool)
        return Redis.from_pool(pool)

    port = 26_379 if topology == "sentinel" else 6379
    nodes = [_read_host(host, port) for host in address.hosts.split(",")]
    if topology == "cluster":
        options = _read_options(address, query, Redis, RedisCluster)
        startup = [ClusterNode(*node) for node in nodes]
        cluster = RedisCluster(startup_nodes=startup, ssl=tls, **options)
        for each in cluster.nodes_manager.startup_nodes.values():
            _try_connection(each)
        return cluster

    own = [each for each in query if _name(each) not in CREDENTIALS]
    given = {_name(each): unquote(each.partition("=")[2]) for each in query if each not in own}
    options = _read_options(address, own, Redis, redis_sentinel.Sentinel)
    manager = redis_sentinel.Sentinel([], sentinel_kwargs={}, **options)
    for_all = {**manager.connection_kwargs, **({"connection_class": SSLConnection} if tls else {})}
    tried = logins(options, given)
    manager.sentinels = [Sentinel(*node, tried, for_all) for node in nodes]
    service = unquote(address.path.strip("/").partition("/")[0])
    client = manager.master_for(service, ssl=tls)
    for pool in (client.connection_pool, manager.sentinels[0].connection_pool):
        _try_connection(pool)
    return client


def _read_options(address: _Address, query: Sequence[str], *made: Callable[..., Any]) -> Any:
    """Return the keyword arguments that redis-py makes of a URL, for what is made of them."""
    from redis.asyncio.connection import parse_url, to_bool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    scheme, topology = address.scheme, address.topology
    for option in query:
        name = _name(option)
        fits = scheme == "rediss" or not name.startswith("ssl_")
        require(
            fits,
            f"RedisTier, {name}",
            "for rediss://",
            f"{scheme}{'+' * bool(topology)}{topology}://",
        )
        if name in _FILES:
            _check_file(name, unquote(option.partition("=")[2]))
    if scheme == "unix":
        require(not address.hosts, "RedisTier", "unix:///path with three slashes", "two")
        hosts, path = "", address.path
    else:
        path = address.path.strip("/")
        if topology == "sentinel":
            service, _, path = path.partition("/")
            require(service != "", "RedisTier", "redis+sentinel://host:port/name", "no name")
        fits = path in ("", "0") if topology == "cluster" else path.isdecimal() or not path
        limit = "a number, 0 in a cluster"
        require(fits, "RedisTier, database", limit, "something else")
        hosts, path = "host" if topology else address.hosts, f"/{path}"
    if not topology and hosts:
        _read_host(hosts, 6379)
    url = f"{scheme}://{address.credentials}@{hosts}{path}?{'&'.join(query)}"
    # The breaker decides about timeouts and retries.
    options = {"retry": Retry(NoBackoff(), 0), "socket_timeout": None, **parse_url(url)}
    converters: dict[type, Callable[[str], object]] = {bool: to_bool, int: int, float: float}
    for each in made:
        for name, parameter in inspect.signature(each).parameters.items():
            # What redis-py's parser does not know it leaves as text.
            if isinstance(value := options.get(name), str):
                if type(parameter.default) in converters:
                    options[name] = converters[type(parameter.default)](value)
                elif "str" not in str(parameter.annotation):
                    raise ValueError(name)
    if topology:
        for name in ("host", "port", "connection_class"):
            options.pop(name, None)
    return options


def _read_host(text: str, default_port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    host = unquote(match[1] or match[2]) if match else ""
    limit = "host:port, or [host]:port for IPv6; several are for redis+cluster:// and +sentinel"
    require(host != "", "RedisTier, host", limit, "other text")
    port = (match and match[3]) or f"{default_port}"
    fits = port.isdecimal() and 0 < int(port) < 65_536
    require(fits, "RedisTier, port", "a number from 1 to 65535", "another")  # or half a password
    return host, int(port)


def _try_connection(pool: Any) -> None:
    """Raise what a pool, or a cluster's node, would only raise when it connects."""
    connection = pool.connection_class(**pool.connection_kwargs)
    context = getattr(connection, "ssl_context", None)
    if context is not None:
        context.get()


def _check_file(option: str, path: str) -> None:
    """Raise InvalidConfiguration for a file that no connection could use, which would look away."""
    try:
        Path(path).open("rb").close()
    except OSError as error:
        reason = error.strerror
    else:
        return
    raise InvalidConfiguration(
        f"RedisTier, {option}", "a file that can be used", f"{path} ({reason})"
    )


async def close_client(client: Any) -> None:
    """Close a client, and the clients of its sentinels; no failure of that is of use to anybody."""
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    closings = [each.aclose for each in (client, *(manager.sentinels if manager else ()))]
    if nodes := getattr(client, "nodes_manager", None):
        # A cluster's client leaves connections open that were opened after it had lost a node.
        closings += [partial(nodes.aclose, group) for group in ("nodes_cache", "startup_nodes")]
    for close in closings:
        with suppress(Exception):
            async with time_limit(_CLOSING_SECONDS):
                await close()


def open_pubsub(client: Any) -> Any:
    """Return a connection for subscriptions, also for a cluster's client that offers none."""
    if hasattr(client, "pubsub"):
        return client.pubsub()
    # A cluster passes each message on to all its nodes, so any node will do.
    return client_of(client.get_random_node()).pubsub()


def client_of(node: Any) -> Any:
    """Return a client of its own for a node of a cluster's client."""
    library = importlib.import_module(type(node).__module__.partition(".")[0] + ".asyncio")
    plain = getattr(library, "Redis", None) or library.Valkey
    pool = library.ConnectionPool(connection_class=node.connection_class, **node.connection_kwargs)
    return plain.from_pool(pool)


async def ping_by_new_connection(client: Any) -> None:
    """Have the engine, or some node of a cluster, answer a connection other than the client's."""
    source = getattr(client, "connection_pool", None) or client.get_random_node()
    connection = source.connection_class(**source.connection_kwargs)
    try:
        await connection.connect()
        await connection.send_command("PING")
        await connection.read_response()
    finally:
        await connection.disconnect(nowait=True)
