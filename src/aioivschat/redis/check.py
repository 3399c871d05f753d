"""Whether an engine suits a fleet, and what should be changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from aioivschat.errors import InvalidConfiguration
from aioivschat.redis._connecting import close_client, connect
from aioivschat.redis._diagnosis import OLDEST_VERSION, explain
from aioivschat.redis._engine import CALL_TIMEOUT_SECONDS

__all__ = ["Finding", "Grade", "check"]

_HASH_SLOTS = 16_384
_LATENCY_PROBES = 50
# A fifth of the time in which a call may be answered.
_SLOW_SECONDS = CALL_TIMEOUT_SECONDS / 5
_ANSWER_TIMEOUT_SECONDS = 5.0  # for connecting with the first question, and for each other one
_ENOUGH_MEMORY_BYTES = 128 * 2**20
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")

# KEYS: a name that nothing else uses. ARGV: the channel. RETURNS: the engine's time in seconds.
_CHECK_SCRIPT = """
local check_key, channel = KEYS[1], ARGV[1]
redis.call('SET', check_key, redis.call('TIME')[1], 'PX', 1000)
redis.call('PUBLISH', channel, 'check')
return redis.call('GET', check_key)
"""


class Grade(StrEnum):
    """What a finding means for a fleet."""

    OK = "ok"
    CHANGE = "change"  # works, and should be changed
    FAIL = "fail"  # does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one topic.

    Args:
        grade: what it means.
        topic: what was checked.
        found: what was found.
        advice: what to change; empty if nothing.
    """

    grade: Grade
    topic: str
    found: str
    advice: str = ""


async def check(url: str, *, namespace: str = "aioivschat") -> AsyncIterator[Finding]:
    """Check an engine as a fleet would use it.

    Args:
        url: as for :class:`aioivschat.redis.RedisTier`.
        namespace: the fleet's.

    Yields:
        What was found, topic by topic; it ends after a finding that rules the engine out.

    Raises:
        InvalidConfiguration: no engine can be reached by such a URL.
    """
    try:
        client = connect(url)
    except InvalidConfiguration:
        del url  # out of tracebacks that show locals: it may hold a password
        raise
    try:
        try:
            nodes = await asyncio.wait_for(_read_info(client, url), _ANSWER_TIMEOUT_SECONDS)
        except Exception as error:
            yield Finding(Grade.FAIL, "connection", *await explain(error, client))
            return
        findings = [_check_transport(url)]
        for info in nodes:
            findings += _check_node(info)
        if "+cluster" in url:
            findings.append(_check_hash_slots(await client.cluster_info()))
        elif any(int(info.get("cluster_enabled", 0)) for info in nodes):
            findings.append(
                Finding(
                    Grade.FAIL,
                    "cluster",
                    "a node of a cluster",
                    "use redis+cluster:// for its address",
                )
            )
        # Equal findings of several nodes are reported once.
        for finding in dict.fromkeys(findings):
            yield finding
        if not any(finding.grade is Grade.FAIL for finding in findings):
            async for finding in _time_scripts(client, namespace):
                yield finding
    finally:
        await close_client(client)


async def _read_info(client: Any, url: str) -> list[Mapping[str, Any]]:
    """Return what each node that takes writes reports about itself."""
    if "+cluster" in url:
        return list((await client.info(target_nodes="primaries")).values())
    info = await client.info()
    with suppress(Exception):  # some users and some hosted services may not
        info |= await client.config_get("appendfsync")
    return [info]


def _check_transport(url: str) -> Finding:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].partition(":")[0]
    if parts.scheme.startswith(("rediss", "valkeys")):
        return Finding(Grade.OK, "transport", "TLS")
    if parts.scheme == "unix" or host in _LOOPBACK_HOSTS:
        return Finding(Grade.OK, "transport", "this host")
    return Finding(
        Grade.CHANGE,
        "transport",
        "unencrypted",
        "use rediss://: values are sealed, the password is not",
    )


def _check_node(info: Mapping[str, Any]) -> Iterator[Finding]:
    name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version", "unknown"))
    numbers = tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2])
    if numbers >= OLDEST_VERSION:
        yield Finding(Grade.OK, "version", f"{name} {version}")
    else:
        yield Finding(
            Grade.FAIL, "version", f"{name} {version}", "use Valkey, or Redis 6.2 or later"
        )

    if info.get("role", "master") == "master":
        yield Finding(Grade.OK, "role", "takes writes")
    else:
        yield Finding(
            Grade.FAIL, "role", "a replica", "use the address of the master, or redis+sentinel://"
        )

    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        yield Finding(Grade.OK, "eviction", policy)
    else:
        yield Finding(
            Grade.CHANGE,
            "eviction",
            policy,
            "set maxmemory-policy noeviction: what is evicted is a lease, an invalidation or a "
            "token; a full engine is noticed instead",
        )

    limit = int(info.get("maxmemory", 0))
    if limit == 0:
        yield Finding(
            Grade.CHANGE, "memory", "no limit", "set maxmemory, to 128 MB or more for the fleet"
        )
    elif limit < _ENOUGH_MEMORY_BYTES:
        yield Finding(
            Grade.CHANGE, "memory", f"{limit / 2**20:.0f} MB", "set maxmemory to 128 MB or more"
        )
    else:
        yield Finding(Grade.OK, "memory", f"{limit / 2**20:.0f} MB")

    if not int(info.get("aof_enabled", 0)):
        yield Finding(Grade.OK, "persistence", "no append-only file; none is needed")
    elif info.get("appendfsync") == "always":
        yield Finding(
            Grade.CHANGE,
            "persistence",
            "every write waits for the disk",
            "set appendfsync everysec, or appendonly no: tokens live for a minute",
        )
    else:
        yield Finding(Grade.OK, "persistence", "append-only file, not waited for")


async def _time_scripts(client: Any, namespace: str) -> AsyncIterator[Finding]:
    """Run, write and publish as a fleet does, and measure how long that takes."""
    took: list[float] = []
    try:
        for _ in range(_LATENCY_PROBES):
            started = time.perf_counter()
            await asyncio.wait_for(
                client.eval(_CHECK_SCRIPT, 1, f"{{{namespace}}}:check", f"{namespace}:events"),
                _ANSWER_TIMEOUT_SECONDS,
            )
            took.append(time.perf_counter() - started)
    except Exception as error:
        yield Finding(
            Grade.FAIL,
            "scripts",
            type(error).__name__,
            f"let the user run EVAL and EVALSHA, write ~{{{namespace}*}}:* and publish to "
            f"&{namespace}:events; see the docs for the whole rule",
        )
        return
    yield Finding(Grade.OK, "scripts", "run, write and publish")
    typical, longest = median(took), max(took[1:])
    found = f"{typical * 1000:.1f} ms, at most {longest * 1000:.1f} ms"
    if typical >= CALL_TIMEOUT_SECONDS:
        yield Finding(Grade.FAIL, "latency", found, "a call may take 50 ms: put the engine nearer")
    elif typical >= _SLOW_SECONDS or longest >= CALL_TIMEOUT_SECONDS:
        yield Finding(
            Grade.CHANGE, "latency", found, "put the engine into the processes' own region"
        )
    else:
        yield Finding(Grade.OK, "latency", found)


def _check_hash_slots(info: Mapping[str, Any]) -> Finding:
    served = int(info.get("cluster_slots_ok", 0))
    if info.get("cluster_state") == "ok" and served == _HASH_SLOTS:
        return Finding(Grade.OK, "cluster", f"all {_HASH_SLOTS} hash slots are served")
    return Finding(
        Grade.FAIL,
        "cluster",
        f"{served} of {_HASH_SLOTS} hash slots are served",
        "repair the cluster first",
    )
