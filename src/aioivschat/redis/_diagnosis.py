"""Why a fleet cannot use its engine, in the words of who operates it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from aioivschat._contexts import time_limit

_log = logging.getLogger("aioivschat")

_OLDEST_VERSION = 6, 2
"""The first Redis with access lists and scripts that may read the clock; Valkey reports a version
of Redis too."""

_ASKING_SECONDS = 1.0
"""Seconds to look whether a server that is silent through TLS answers without it."""

_TEXT_MAX = 4000
"""Characters of a failure that are looked at: some of it comes from whatever answers."""


class UnsupportedVersion(Exception):
    """The engine says that it is older than :data:`_OLDEST_VERSION`."""


class _NoTls(Exception):
    """A server that was asked through TLS answers without it."""


def check_version(info: object) -> None:
    """Raise UnsupportedVersion if an engine's ``INFO`` names an older one; it need not name any."""
    if isinstance(info, Mapping):
        version = re.match(r"(\d{1,4})\.(\d{1,4})", str(info.get("redis_version")))
        if version is not None and (int(version[1]), int(version[2])) < _OLDEST_VERSION:
            raise UnsupportedVersion
        for node in info.values():  # a cluster's client may answer by node
            check_version(node)


# What is found in the classes and texts of a failure and its causes; the first that fits. A text
# of redis-py's holds the class of what a sentinel or a node of a cluster failed with.
_CAUSES = (
    (
        r"UnsupportedVersion",
        "it is older than Redis 6.2",
        "use Valkey, or Redis 6.2 or later",
    ),
    (
        r"MasterNotFoundError: (?!.* : )",
        "its sentinels know no master of that name that is up",
        "check the name of the master, in the URL after the sentinels' hosts",
    ),
    (
        r"MasterNotFoundError: .*(AuthenticationError|WRONGPASS|NOAUTH)",
        "its sentinels refuse the user or the password",
        "check sentinel_username= and sentinel_password= in the URL; without them its user and "
        "password are taken",
    ),
    (
        r"AuthenticationError|WRONGPASS|NOAUTH",
        "it refuses the user or the password",
        "check user and password in the URL, percent-encoded",
    ),
    (
        r"NoPermissionError|NOPERM|ACL failure|has no permissions",
        "its user lacks a right",
        "give the user all rights that docs/fleet.md names; `aioivschat fleet check` tries them",
    ),
    (
        r"[Hh]ostname mismatch|IP address mismatch|doesn't match|not valid for",
        "its certificate is of another host",
        "put the certificate's host into the URL, or ssl_check_hostname=no",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|CertificateError",
        "its certificate cannot be verified",
        "name its certificate authority by ssl_ca_certs= in the URL, or renew the certificate",
    ),
    (
        r"_NoTls|WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HTTP_REQUEST|PACKET_LENGTH_TOO_LONG",
        "no TLS is spoken there",
        "use redis:// without a second s, or the port for TLS",
    ),
    (
        r"CERTIFICATE_REQUIRED|ALERT_BAD_CERTIFICATE|ALERT_UNKNOWN_CA|HANDSHAKE_FAILURE",
        "it asks for another certificate of the client",
        "check ssl_certfile= and ssl_keyfile= in the URL",
    ),
    (
        r"MovedError|MOVED \d|SELECT is not allowed in cluster mode",
        "it is a node of a cluster",
        "use redis+cluster:// for its URL",
    ),
    (
        r"[Uu]nknown (Redis |Valkey )?(sub)?command",
        "it lacks a command that scripts need",
        "use Valkey, or Redis 6.2 or later, with no command renamed; for a sentinel "
        "redis+sentinel://",
    ),
    (
        r"Cluster mode is not enabled|cluster support disabled",
        "it is a single server and no cluster",
        "use redis:// for its URL",
    ),
    (
        r"DB index is out of range|invalid DB index|Invalid Database",
        "it has no such database",
        "check the database's number at the end of the URL's path",
    ),
    (
        r"ReadOnlyError|READONLY|master is now a slave|read only replica",
        "it is a replica",
        "use the address of the master, or redis+sentinel://",
    ),
    (
        r"OutOfMemoryError|OOM command",
        "its memory is full",
        "set maxmemory to 128 MB or more for the fleet",
    ),
    (
        r"MISCONF|NOREPLICAS",
        "it takes no writes while its own disk or replicas fail",
        "check stop-writes-on-bgsave-error and min-replicas-to-write in its configuration",
    ),
    (
        r"ClusterDownError|CLUSTERDOWN|slots? not covered|not all slots",
        "a part of its hash slots is not served",
        "repair the cluster",
    ),
    (r"BusyLoadingError|LOADING", "it is loading its data", "wait, or set save to nothing"),
    (
        r"max number of clients",
        "it has too many clients",
        "set maxclients to more than 6 for each process",
    ),
    (
        r"MaxConnectionsError|Too many connections|No connection available",
        "its client may open no more connections",
        "set max_connections of the client to more",
    ),
    (
        r"protected mode",
        "it is in protected mode",
        "give it a password, and put that into the URL",
    ),
    (
        r"InvalidResponse|Protocol Error|ProtocolError",
        "what answers there is no Valkey or Redis",
        "check host and port in the URL",
    ),
    (
        r"gaierror|Error -\d+ connecting|Name or service not known|nodename nor servname",
        "there is no such host",
        "check the host in the URL",
    ),
    (
        r"ConnectionRefusedError|[Cc]onnection refused|Connect call failed",
        "nobody listens there",
        "check host and port in the URL, and whether it runs",
    ),
    (
        r"FileNotFoundError|No such file",
        "there is no such socket",
        "check the path in the URL, and whether it runs",
    ),
    (
        r"closed by server|ConnectionReset|[Cc]onnection reset|BrokenPipe|IncompleteRead|EOF |"
        r"[Cc]onnection lost|UNEXPECTED_EOF",
        "the connection is closed without an answer",
        "check host and port in the URL, and use rediss:// if TLS is spoken there",
    ),
    (
        r"\bSSL\b|SSLError",
        "TLS fails",
        "check the options ssl_… in the URL, and the engine's own of TLS",
    ),
    (
        r"Error (\d+ )?connecting|OSError|unreachable|No route",
        "it cannot be connected to",
        "check host and port in the URL, and the network",
    ),
    (
        r"Timeout",
        "it does not answer in time",
        "check host and port in the URL, firewalls on the way, and the distance",
    ),
    (
        r"RedisClusterException|ValkeyClusterException",
        "none of its nodes can be connected to",
        "check hosts and ports in the URL, and the network",
    ),
    (
        r"MasterNotFoundError",
        "its sentinels do not answer",
        "check hosts and ports of the sentinels, their user and their password",
    ),
)


async def explain(error: BaseException, client: Any) -> tuple[str, str]:
    """Return what is wrong with an engine, and what to change, in fixed words without a secret.

    Args:
        error: what a client of redis-py or valkey-py raised.
        client: that client.
    """
    found = look_up(error)
    if found == look_up(TimeoutError()):
        # A Valkey or Redis waits for more when TLS greets it.
        with suppress(Exception):
            async with time_limit(_ASKING_SECONDS):
                for host, port in _tls_addresses(client):
                    if await _answers_without_tls(host, port):
                        return look_up(_NoTls())
    return found


def look_up(error: BaseException) -> tuple[str, str]:
    """Return the same by what the error and its causes say, without asking anybody."""
    lines = []
    link: BaseException | None = error
    while link is not None:
        text = ""
        with suppress(Exception):  # of a user's own client
            text = str(link)[:_TEXT_MAX]
        lines.append(f"{type(link).__name__}: {text}")
        link = link.__cause__ or link.__context__
    found = "\n".join(lines)
    for pattern, cause, setting in _CAUSES:
        if re.search(pattern, found):
            return cause, setting
    return f"it fails with {type(error).__name__}", "check the URL, the user and its rights"


def _tls_addresses(client: Any) -> Iterator[tuple[str, int]]:
    """Return the addresses that a client of any kind first connects to, if it does so by TLS."""
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        pools = client.nodes_manager.startup_nodes.values()
    elif (manager := getattr(pool, "sentinel_manager", None)) is not None:
        pools = [getattr(each, "connection_pool", None) for each in manager.sentinels]
    else:
        pools = [pool]
    for each in pools:
        if "SSL" in each.connection_class.__name__:
            yield each.connection_kwargs["host"], each.connection_kwargs["port"]


async def _answers_without_tls(host: str, port: int) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"PING\r\n")
        return await reader.read(1) in (b"+", b"-")
    finally:
        writer.close()


class Diagnosis:
    """Tells the operator why the engine cannot be used: each cause once until it can be."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    async def tell(self, error: BaseException, client: Any) -> None:
        """Log what is wrong, unless it was told already."""
        # Before it is looked at, too: what is silent is asked once, and not by each probe.
        if (first := look_up(error)[0]) in self._told:
            return
        cause, setting = await explain(error, client)
        new = cause not in self._told
        self._told |= {first, cause}
        if new:
            _log.warning("the fleet's engine cannot be used: %s; %s", cause, setting)

    def forget(self) -> None:
        """Note that the engine can be used."""
        self._told.clear()
