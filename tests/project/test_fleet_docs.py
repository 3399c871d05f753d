"""What docs/fleet.md says is so: its program and command run, and its rights are enough."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aioivschat import Event, SharedChanged, SharedState, TokenRequest
from aioivschat.redis import RedisTier
from aioivschat.redis.check import Grade, check
from support.engine import EngineServer, cluster
from support.paths import ROOT
from support.services import ROOM, SEALING_KEY, OpenService, until

pytestmark = pytest.mark.once

DOCS = (ROOT / "docs" / "fleet.md").read_text()
REQUEST = TokenRequest(ROOM, "alice")

(_RULE,) = [line for line in DOCS.splitlines() if line.startswith("ACL SETUSER")]
RULE = _RULE.replace("PASSWORD", "pw").split()
RIGHTS = [part for part in RULE if part[0] in "+~&"]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("ivschat_env")
def test_the_program_of_the_docs_shares_through_the_engine(
    engine_server: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program of docs/fleet.md runs without a warning; its token is sealed in the engine."""
    monkeypatch.setenv("ENGINE_URL", engine_server.url)
    monkeypatch.setenv("SEALING_KEY", SEALING_KEY.hex())
    (program,) = _blocks("python")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert (0, "") == (result.returncode, result.stderr)
    with engine_server.client() as client:
        assert 1 == len(client.keys("{aioivschat}:a:*"))
        assert not client.keys("{aioivschat}:s:*")


def test_the_command_of_the_docs_runs(
    engine_server: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of docs/fleet.md finds the engine fit."""
    monkeypatch.setenv("ENGINE_URL", engine_server.url)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (block,) = _blocks("console")
    command = block.removeprefix("$ ")
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (0, "") == (result.returncode, result.stderr)
    assert "ok      scripts" in result.stdout


async def test_the_rights_of_the_docs_are_enough(
    open_service: OpenService, engine_server: EngineServer
) -> None:
    """The rights of docs/fleet.md allow all that a fleet and the check do, and no foreign key."""
    with engine_server.client() as client:
        client.acl_log_reset()
        client.execute_command(*RULE)
    url = engine_server.url.replace("//", "//fleet:pw@")
    events: list[Event] = []
    members = [
        open_service(shared=RedisTier(url, keys=[SEALING_KEY], timeout=5.0), observers=[note])
        for note in (events.append, lambda event: None)
    ]
    here, there = members
    first = await here.issue(REQUEST, idempotency_key="attempt")
    assert first.token == (await there.issue(REQUEST, idempotency_key="attempt")).token
    await here.prewarm([REQUEST])
    assert not (await there.issue(REQUEST, fresh=True)).reused
    assert 2 == there.stats().shared
    await here.issue(REQUEST)
    there.invalidate(room=ROOM)
    await until(lambda: here.ready(REQUEST) is None)
    told = [event.state for event in events if isinstance(event, SharedChanged)]
    assert [SharedState.SHARED] == told
    assert Grade.FAIL not in [finding.grade async for finding in check(url)]
    with engine_server.client() as client:
        refused = {each["object"] for each in client.acl_log() if each["username"] == "fleet"}
        # The client's greeting, which it does without, and what the check would like to know.
        assert {"client|setinfo", "info"} >= refused
        for command in ("GET other", "FLUSHALL", "KEYS *", "PUBLISH other x", "CONFIG GET save"):
            answer = client.execute_command("ACL", "DRYRUN", "fleet", *command.split())
            assert b"OK" != answer
        client.execute_command("ACL", "DELUSER", "fleet")


async def _find_lacking(url: str) -> set[str]:
    return {
        finding.advice.split()[1]
        async for finding in check(url)
        if finding.topic == "rights" and finding.grade is not Grade.OK
    }


@pytest.mark.fault(61)
async def test_the_check_names_each_right_that_is_taken_away(tmp_path: Path) -> None:
    """Each right of docs/fleet.md in turn, and no other with it."""
    with EngineServer(tmp_path) as server, server.client() as client:
        url = server.url.replace("//", "//fleet:pw@")
        client.execute_command(*RULE)
        assert set() == await _find_lacking(url)
        for right in RIGHTS:
            client.execute_command("ACL", "DELUSER", "fleet")
            client.execute_command(*(part for part in RULE if part != right))
            assert {right} == await _find_lacking(url)


@pytest.mark.fault(61)
@pytest.mark.parametrize("nodes", [1, 3])
async def test_the_rights_of_the_docs_are_enough_on_a_cluster(
    open_service: OpenService, tmp_path: Path, nodes: int
) -> None:
    """A fleet shares attempts and hears bans; without a right of the cluster's, check names it."""
    with cluster(tmp_path, nodes) as servers:

        def set_rule(*rule: str) -> None:
            for server in servers:
                with server.client() as client:
                    client.execute_command("ACL", "DELUSER", "fleet")
                    client.execute_command(*rule)

        set_rule(*RULE)
        url = f"redis+cluster://fleet:pw@{servers[0].address}"
        here, there = (
            open_service(shared=RedisTier(url, keys=[SEALING_KEY], timeout=5.0)) for _ in range(2)
        )
        first = await here.issue(REQUEST)
        assert first.token == (await there.issue(REQUEST)).token
        here.invalidate(room=ROOM)
        await until(lambda: there.ready(REQUEST) is None)
        assert set() == await _find_lacking(url)
        for member in (here, there):
            await member.aclose()
        for right in ("+cluster|slots", "+command"):
            set_rule(*(part for part in RULE if part != right))
            assert {right} == await _find_lacking(url)


@pytest.mark.fault(61)
def test_the_rule_names_what_is_called_and_no_more() -> None:
    """The commands of the scripts, and those that run and hear them."""
    sources = [path.read_text() for path in (ROOT / "src/aioivschat/redis").glob("_*.py")]
    calls = re.findall(r"(?:redis\.p?call\(|run_on\([^',]+, )'([A-Z]+)'", "".join(sources))
    others = {"eval", "evalsha", "subscribe", "cluster|slots", "command"}
    allowed = {right[1:] for right in RIGHTS if right[0] == "+"}
    assert {command.lower() for command in calls} | others == allowed
