"""`aioivschat fleet check`: whether an engine suits a fleet, and what should be changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aioivschat.redis.check import Finding, Grade, _check_transport, check
from support.engine import EngineServer, cluster, replicated
from support.fault_proxy import FaultProxy

SUITED: dict[str, Any] = {"maxmemory": "256mb", "maxmemory_policy": "noeviction"}


async def _grades(url: str) -> dict[str, Grade]:
    return {finding.topic: finding.grade async for finding in check(url)}


async def test_an_engine_that_suits_gets_no_advice(tmp_path: Path) -> None:
    """All topics of an engine that suits are checked, and none has an advice."""
    with EngineServer(tmp_path, **SUITED) as server:
        findings = [finding async for finding in check(server.url)]
    topics = "transport version role eviction memory persistence rights messages scripts latency"
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


@pytest.mark.fault(61)
async def test_a_service_that_tells_nothing_may_suit(tmp_path: Path) -> None:
    """Hosted services refuse INFO and CONFIG, some by having no such commands."""
    with EngineServer(tmp_path / "one", **SUITED) as server, server.client() as client:
        rule = "ACL SETUSER some on nopass ~* &* +@all"
        client.execute_command(*rule.split(), "-info", "-config")
        grades = await _grades(server.url.replace("//", "//some:any@"))
    untold = {"version", "role", "eviction", "memory", "persistence"}
    assert untold == {topic for topic, grade in grades.items() if grade is Grade.UNKNOWN}
    assert Grade.FAIL not in grades.values()
    with EngineServer(tmp_path / "other", **SUITED, rename_command="CONFIG none") as server:
        assert Grade.FAIL not in (await _grades(server.url)).values()


@pytest.mark.fault(61)
async def test_all_that_is_lacking_is_told_at_once(tmp_path: Path) -> None:
    """Each right by itself, also where no script may run, nor one on the fleet's keys."""
    with EngineServer(tmp_path, **SUITED) as server, server.client() as client:
        url = server.url.replace("//", "//poor:any@")
        rule = "ACL SETUSER poor on nopass resetkeys ~{aioivschat:*}:* resetchannels +@all"
        client.execute_command(*rule.split(), "-eval", "-zpopmin", "-time", "-subscribe")
        findings = [finding async for finding in check(url)]
        lacking = {each.advice.split()[1] for each in findings if each.topic == "rights"}
        assert {
            "~{aioivschat}:*", "&aioivschat:events", "+eval", "+zpopmin", "+time", "+subscribe"
        } == lacking  # fmt: skip
        assert not client.keys("*check*")


@pytest.mark.fault(61)
async def test_an_engine_without_messages_fails(tmp_path: Path) -> None:
    """SUBSCRIBE is no command there, or nothing comes of it."""
    with EngineServer(tmp_path, **SUITED, rename_command="SUBSCRIBE none") as server:
        findings = [finding async for finding in check(server.url)]
    assert ["no command SUBSCRIBE"] == [each.found for each in findings if each.topic == "rights"]
    with EngineServer(tmp_path, **SUITED) as server:
        async with FaultProxy(server.url) as proxy:
            proxy.muted = b"SUBSCRIBE"
            findings = [finding async for finding in check(proxy.url)]
    assert (Grade.FAIL, "none is heard") in [(each.grade, each.found) for each in findings]


@pytest.mark.fault(61)
async def test_a_cluster_of_one_primary_suits(tmp_path: Path) -> None:
    """Its client answers for one node otherwise than for several."""
    with cluster(tmp_path, nodes=1) as nodes:
        grades = await _grades(f"redis+cluster://{nodes[0].address}")
    assert {"cluster", "rights", "messages", "scripts", "version"} <= grades.keys()
    assert Grade.FAIL not in grades.values()


@pytest.mark.fault(61)
async def test_the_right_to_enter_a_cluster_is_named(cluster_nodes: list[EngineServer]) -> None:
    """Also where the URL has an option that clients of clusters alone know."""
    address = cluster_nodes[0].address
    for node in cluster_nodes:
        with node.client() as client:
            rights = "~*", "&*", "+@all", "-cluster|slots", "-cluster|shards"
            client.execute_command("ACL", "SETUSER", "outside", "on", ">pw", *rights)
    try:
        url = f"redis+cluster://outside:pw@{address}?require_full_coverage=no"
        findings = [finding async for finding in check(url)]
    finally:
        for node in cluster_nodes:
            with node.client() as client:
                client.execute_command("ACL", "DELUSER", "outside")
    assert "no right to CLUSTER SLOTS" in [each.found for each in findings]
    assert Grade.FAIL == findings[-1].grade


@pytest.mark.fault(61)
@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("redis://[::1]:6379", True),
        ("redis://user:p%40w@[::1]:6379/0", True),
        ("redis://[::1]", True),
        ("redis://127.0.0.2:6379", True),
        ("redis://LOCALHOST", True),
        ("redis://", True),
        ("redis:///0", True),
        ("unix:///run/valkey.sock", True),
        ("redis+cluster://[::1]:7000,localhost:7001", True),
        ("redis+sentinel://127.0.0.1:26379,[::1]:26379/fleet", True),
        ("redis://[2001:db8::1]:6379", False),
        ("redis://localhost@engine", False),
        ("redis://localhost.example.com", False),
        ("redis+cluster://127.0.0.1:7000,engine:7001", False),
    ],
)
def test_this_host_is_known_by_each_of_its_names(url: str, is_here: bool) -> None:
    """What goes to this host is not advised to be encrypted."""
    assert ("this host" if is_here else "unencrypted") == _check_transport(url).found


@pytest.mark.fault(61)
async def test_a_socket_of_this_host_is_checked(tmp_path: Path) -> None:
    """So is an address in IPv6."""
    path = tmp_path / "socket"
    with EngineServer(tmp_path, **SUITED, unixsocket=path):
        grades = await _grades(f"unix://{path}")
    assert Grade.OK == grades["transport"] == grades["rights"] == grades["scripts"]


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
