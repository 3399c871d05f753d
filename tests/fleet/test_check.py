"""`aioivschat fleet check`: whether an engine suits a fleet, and what should be changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aioivschat.redis.check import Finding, Grade, check
from support.engine import EngineServer, replicated

SUITED: dict[str, Any] = {"maxmemory": "256mb", "maxmemory_policy": "noeviction"}


async def _grades(url: str) -> dict[str, Grade]:
    return {finding.topic: finding.grade async for finding in check(url)}


async def test_an_engine_that_suits_gets_no_advice(tmp_path: Path) -> None:
    """All topics of an engine that suits are checked, and none has an advice."""
    with EngineServer(tmp_path, **SUITED) as server:
        findings = [finding async for finding in check(server.url)]
    topics = "transport version role eviction memory persistence scripts latency"
    assert topics.split() == [finding.topic for finding in findings]
    # Latency depends on the machine.
    assert {Grade.OK} == {finding.grade for finding in findings if finding.topic != "latency"}
    assert {""} == {finding.advice for finding in findings if finding.topic != "latency"}


async def test_settings_that_should_be_changed_are_named(tmp_path: Path) -> None:
    """Settings that should be changed are found, each with what to set instead."""
    settings: dict[str, Any] = {
        "maxmemory_policy": "allkeys-lru",
        "appendonly": "yes",
        "appendfsync": "always",
    }
    with EngineServer(tmp_path, **settings) as server:
        findings = {finding.topic: finding async for finding in check(server.url)}
    for topic, advice in {
        "eviction": "maxmemory-policy noeviction",
        "memory": "set maxmemory",
        "persistence": "appendfsync everysec",
    }.items():
        assert Grade.CHANGE == findings[topic].grade
        assert advice in findings[topic].advice


async def test_a_user_without_the_rights_fails(tmp_path: Path) -> None:
    """A user without rights to the fleet's keys fails at scripts, a wrong password before them."""
    with EngineServer(tmp_path, **SUITED) as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "poor", "on", ">pw", "+@all", "~other:*")
        poor = await _grades(server.url.replace("//", "//poor:pw@"))
        assert Grade.FAIL == poor["scripts"]
        assert "latency" not in poor
        wrong = [finding async for finding in check(server.url.replace("//", "//poor:guess@"))]
    found = "it refuses the user or the password"
    advice = "check user and password in the URL, percent-encoded"
    assert [Finding(Grade.FAIL, "connection", found, advice)] == wrong


async def test_a_cluster_and_one_of_its_nodes_are_told_apart(
    cluster_nodes: list[EngineServer],
) -> None:
    """A whole cluster suits; one of its nodes, addressed as a single server, does not."""
    whole = await _grades(f"redis+cluster://{cluster_nodes[0].address}")
    node = await _grades(cluster_nodes[0].url)
    assert (Grade.OK, Grade.OK) == (whole["cluster"], whole["scripts"])
    assert Grade.FAIL == node["cluster"]
    assert "scripts" not in node


async def test_a_replica_does_not_suit_and_its_master_does(tmp_path: Path) -> None:
    """A replica fails the check; its master, found by the sentinel, suits."""
    with replicated(tmp_path) as (_, replica, sentinel):
        assert Grade.FAIL == (await _grades(replica.url))["role"]
        found = await _grades(f"redis+sentinel://{sentinel.address}/fleet")
        assert (Grade.OK, Grade.OK) == (found["role"], found["scripts"])


@pytest.mark.parametrize("suits", [True, False])
def test_the_command_says_it_line_by_line(engine_server: EngineServer, suits: bool) -> None:
    """The command prints a line per topic, without the password, and exits with the result."""
    url = engine_server.url if suits else "redis://user:canary-pw@127.0.0.1:1"
    command = [sys.executable, "-W", "error", "-m", "aioivschat", "fleet", "check", url]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (0 if suits else 1, "") == (result.returncode, result.stderr)
    lines = result.stdout.splitlines()
    assert {"ok", "change", "fail"} >= {line.split()[0] for line in lines}
    assert suits == any(line.split()[:2] == ["ok", "scripts"] for line in lines)
    assert "canary-pw" not in result.stdout
