"""Whether an engine suits a fleet, and what should be changed."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from aioivschat.errors import InvalidConfiguration
from aioivschat.redis._commands import is_answer
from aioivschat.redis._connecting import client_of, close_client, connect
from aioivschat.redis._diagnosis import UnsupportedVersion, check_version, explain, look_up
from aioivschat.redis._engine import CALL_TIMEOUT_SECONDS
from aioivschat.redis._rights import NOTHING_HEARD, RightTrials

__all__ = ["Finding", "Grade", "check"]

_HASH_SLOTS = 16_384
_LATENCY_PROBES = 50
# A fifth of the time in which a call may be answered.
_SLOW_SECONDS = CALL_TIMEOUT_SECONDS / 5
_ANSWER_TIMEOUT_SECONDS = 5.0  # for connecting with the first question, and for each other one
_ENOUGH_MEMORY_BYTES = 128 * 2**20


# KEYS: a name that nothing else uses. ARGV: none. RETURNS: the engine's time in seconds.
_CHECK_SCRIPT = """
local check_key = KEYS[1]
redis.call('SET', check_key, redis.call('TIME')[1], 'PX', 1000)
return redis.call('GET', check_key)
"""


class Grade(StrEnum):
    """What a finding means for a fleet."""

    OK = "ok"
    CHANGE = "change"  # works, and should be changed
    UNKNOWN = "unknown"  # the engine does not tell, as some hosted services
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
            async for finding in _explain_failure(client, namespace, error):
                yield finding
            return
        findings = [_check_transport(url)]
        for info in nodes:
            findings += _check_node(info)
        if "+cluster" in url:
            findings.append(await _check_hash_slots(client))
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
        async for finding in _check_rights(client, namespace, is_cluster="+cluster" in url):
            yield finding
        if not any(finding.grade is Grade.FAIL for finding in findings):
            async for finding in _time_scripts(client, namespace):
                yield finding
    finally:
        await close_client(client)


async def _explain_failure(client: Any, namespace: str, error: Exception) -> AsyncIterator[Finding]:
    """Say why there is no connection; a cluster's client does not tell which right it lacks."""
    cluster = getattr(client, "nodes_manager", None)
    if cluster is not None:
        node = client_of(next(iter(cluster.startup_nodes.values())))  # all have the same users
        try:
            async for finding in _check_rights(node, namespace, is_cluster=True):
                if "add +" in finding.advice:
                    yield finding
        finally:
            await close_client(node)
    yield Finding(Grade.FAIL, "connection", *await explain(error, client))


async def _read_info(client: Any, url: str) -> list[Mapping[str, Any]]:
    """Return what each node that takes writes reports about itself, as far as it does."""
    if "+cluster" not in url:
        return [await _read_node(client)]
    await client.initialize()
    nodes = client.get_primaries()
    return [await _read_node(client, target_nodes=node) for node in nodes]


async def _read_node(client: Any, **where: Any) -> Mapping[str, Any]:
    info: dict[str, Any] = {}
    try:
        info |= await client.info(**where)
        info |= await client.config_get("appendfsync", **where)
    except Exception as error:
        # Some users and some hosted services may not ask.
        if not is_answer(error):
            raise
    return info


def _check_transport(url: str) -> Finding:
    if urlsplit(url).scheme.startswith(("rediss", "valkeys")):
        return Finding(Grade.OK, "transport", "TLS")
    if _is_this_host(url):
        return Finding(Grade.OK, "transport", "this host")
    return Finding(
        Grade.CHANGE,
        "transport",
        "unencrypted",
        "use rediss://: values are sealed, the password is not",
    )


def _is_this_host(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return True
    addresses = parts.netloc.rpartition("@")[2].split(",")
    for address in addresses:
        host = urlsplit(f"//{address}").hostname or "localhost"  # as redis-py has it
        with suppress(ValueError):
            if ipaddress.ip_address(host).is_loopback:
                continue
        if host != "localhost":
            return False
    return True


def _check_node(info: Mapping[str, Any]) -> Iterator[Finding]:
    for topic, (field, judge) in _NODE_TOPICS.items():
        yield judge(info) if field in info else Finding(Grade.UNKNOWN, topic, "not told")


def _check_version(info: Mapping[str, Any]) -> Finding:
    name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    try:
        check_version(info)
    except UnsupportedVersion as error:
        return Finding(Grade.FAIL, "version", f"{name} {version}", look_up(error)[1])
    return Finding(Grade.OK, "version", f"{name} {version}")


def _check_role(info: Mapping[str, Any]) -> Finding:
    if info["role"] == "master":
        return Finding(Grade.OK, "role", "takes writes")
    return Finding(
        Grade.FAIL, "role", "a replica", "use the address of the master, or redis+sentinel://"
    )


def _check_eviction(info: Mapping[str, Any]) -> Finding:
    policy = str(info["maxmemory_policy"])
    if policy == "noeviction":
        return Finding(Grade.OK, "eviction", policy)
    return Finding(
        Grade.CHANGE,
        "eviction",
        policy,
        "set maxmemory-policy noeviction: what is evicted is a lease, an invalidation or a "
        "token; a full engine is noticed instead",
    )


def _check_memory(info: Mapping[str, Any]) -> Finding:
    limit = int(info["maxmemory"])
    found = f"{limit / 2**20:.0f} MB"
    if limit == 0:
        advice = "set maxmemory, to 128 MB or more for the fleet"
        return Finding(Grade.CHANGE, "memory", "no limit", advice)
    if limit < _ENOUGH_MEMORY_BYTES:
        return Finding(Grade.CHANGE, "memory", found, "set maxmemory to 128 MB or more")
    return Finding(Grade.OK, "memory", found)


def _check_persistence(info: Mapping[str, Any]) -> Finding:
    if not int(info["aof_enabled"]):
        return Finding(Grade.OK, "persistence", "no append-only file; none is needed")
    if "appendfsync" not in info:
        return Finding(Grade.UNKNOWN, "persistence", "append-only file, appendfsync not told")
    if info["appendfsync"] != "always":
        return Finding(Grade.OK, "persistence", "append-only file, not waited for")
    return Finding(
        Grade.CHANGE,
        "persistence",
        "every write waits for the disk",
        "set appendfsync everysec, or appendonly no: tokens live for a minute",
    )


_NODE_TOPICS = {
    "version": ("redis_version", _check_version),
    "role": ("role", _check_role),
    "eviction": ("maxmemory_policy", _check_eviction),
    "memory": ("maxmemory", _check_memory),
    "persistence": ("aof_enabled", _check_persistence),
}
"""By topic: the field without which nothing can be said, and what is said of it."""


async def _check_rights(client: Any, namespace: str, is_cluster: bool) -> AsyncIterator[Finding]:
    """Try each right that a fleet needs, by itself, and report all that are lacking."""
    trials = RightTrials(client, namespace)
    failure = ""
    try:
        await trials.run()
    except Exception as error:
        failure = type(error).__name__
    for right in trials.lacking:
        grade = Grade.FAIL if is_cluster or not right.cluster_only else Grade.CHANGE
        advice = f"add {right.rule} to the user's rights: without it {right.lost}"
        yield Finding(grade, "rights", right.name, advice)
    if failure:
        yield Finding(Grade.FAIL, "rights", failure, "the engine stopped answering")
        return
    if not trials.lacking:
        yield Finding(Grade.OK, "rights", "all that a fleet needs")
    if trials.heard:
        yield Finding(Grade.OK, "messages", "published and heard")
    elif not any(right.lost == NOTHING_HEARD for right in trials.lacking):
        advice = f"let the user publish and subscribe: without messages {NOTHING_HEARD}"
        yield Finding(Grade.FAIL, "messages", "none is heard", advice)


async def _time_scripts(client: Any, namespace: str) -> AsyncIterator[Finding]:
    """Run and write as a fleet does, and measure how long that takes."""
    took: list[float] = []
    try:
        for _ in range(_LATENCY_PROBES):
            started = time.perf_counter()
            await asyncio.wait_for(
                client.eval(_CHECK_SCRIPT, 1, f"{{{namespace}}}:check"),
                _ANSWER_TIMEOUT_SECONDS,
            )
            took.append(time.perf_counter() - started)
    except Exception as error:
        yield Finding(
            Grade.FAIL,
            "scripts",
            type(error).__name__,
            "see the rights above, and whether the engine takes writes",
        )
        return
    yield Finding(Grade.OK, "scripts", "run and write")
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


async def _check_hash_slots(client: Any) -> Finding:
    try:
        info = await client.cluster_info()
    except Exception as error:
        if not is_answer(error):
            raise
        return Finding(Grade.UNKNOWN, "cluster", "not told")
    served = int(info.get("cluster_slots_ok", 0))
    if info.get("cluster_state") == "ok" and served == _HASH_SLOTS:
        return Finding(Grade.OK, "cluster", f"all {_HASH_SLOTS} hash slots are served")
    return Finding(
        Grade.FAIL,
        "cluster",
        f"{served} of {_HASH_SLOTS} hash slots are served",
        "repair the cluster first",
    )
