"""How a client of the engine is made: addresses, TLS, clusters, sentinels."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from aioivschat.errors import InvalidConfiguration, require

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def connect(url: str) -> Any:
    """Return an asyncio client of redis-py for a URL.

    ======================================  ===================================================
    ``redis://user:password@host:6379/0``   a single server; ``rediss://`` with TLS
    ``redis+cluster://host:port,host:port`` a cluster; ``rediss+cluster://`` with TLS
    ``redis+sentinel://host:port/name/0``   the master of that name, by its sentinels;
                                            ``rediss+sentinel://`` with TLS
    ``unix:///path``                        a socket of this host
    ======================================  ===================================================

    ``valkey`` may stand for ``redis``. What follows a ``?`` are options of redis-py's client.

    Raises:
        InvalidConfiguration: the URL is none of these.
        ImportError: redis-py is not installed.
    """
    try:
        return _make_client(url)
    except InvalidConfiguration as error:
        wrong = error
    except (TypeError, ValueError) as error:
        wrong = InvalidConfiguration(
            "RedisTier", "a URL with a port and options that redis-py knows", type(error).__name__
        )
    finally:
        del url
    # Raised here without context: the frames below, those of redis-py too, hold the password.
    raise wrong.with_traceback(None)


def _make_client(url: str) -> Any:
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    split = urlsplit(url)
    scheme, _, topology = split.scheme.replace("valkey", "redis", 1).partition("+")
    known = {"redis": ("", "cluster", "sentinel"), "rediss": ("", "cluster", "sentinel")}
    fits = topology in known.get(scheme, ("",) if scheme == "unix" else ())
    require(fits, "RedisTier", "a redis://, rediss:// or unix:// URL", split.scheme)
    for name, path in parse_qsl(split.query):
        if name in _FILES:
            _check_file(name, path)
    # The breaker decides about timeouts and retries.
    options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "socket_timeout": None}
    if not topology:
        plain = url.replace(split.scheme, scheme, 1)
        return Redis.from_url(plain, **options)
    credentials, _, hosts = split.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    options |= dict(parse_qsl(split.query))
    options |= {"username": unquote(user) or None, "password": unquote(password) or None}
    if scheme == "rediss":
        options["ssl"] = True
    nodes = [urlsplit(f"//{host}") for host in hosts.split(",")]
    if topology == "cluster":
        from redis.asyncio.cluster import ClusterNode

        startup = [ClusterNode(node.hostname or "", node.port or 6379) for node in nodes]
        return RedisCluster(startup_nodes=startup, **options)
    name, _, db = split.path.strip("/").partition("/")
    sentinels: Any = importlib.import_module("redis.asyncio.sentinel")  # it has no types
    addresses = [(node.hostname or "", node.port or 26379) for node in nodes]
    return sentinels.Sentinel(addresses, **options).master_for(name, db=int(db or 0))


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
    """Close a client, and the clients of its sentinels."""
    await client.aclose()
    pool = getattr(client, "connection_pool", None)
    manager = getattr(pool, "sentinel_manager", None)
    for sentinel in manager.sentinels if manager is not None else ():
        await sentinel.aclose()


def open_pubsub(client: Any) -> Any:
    """Return a connection for subscriptions, also for a cluster's client that offers none."""
    if hasattr(client, "pubsub"):
        return client.pubsub()
    # A cluster passes each message on to all its nodes, so any node will do.
    library = importlib.import_module(type(client).__module__.partition(".")[0] + ".asyncio")
    plain = getattr(library, "Redis", None) or library.Valkey
    node = client.get_random_node()
    pool = library.ConnectionPool(connection_class=node.connection_class, **node.connection_kwargs)
    return plain(connection_pool=pool).pubsub()
