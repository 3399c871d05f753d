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
from support.engine import EngineServer
from support.paths import ROOT
from support.services import ROOM, SEALING_KEY, OpenService, until

pytestmark = pytest.mark.once

DOCS = (ROOT / "docs" / "fleet.md").read_text()
REQUEST = TokenRequest(ROOM, "alice")


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
    (rule,) = [line for line in DOCS.splitlines() if line.startswith("ACL SETUSER")]
    with engine_server.client() as client:
        client.execute_command(*rule.replace("PASSWORD", "pw").split())
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
        for command in ("GET other", "FLUSHALL", "KEYS *", "PUBLISH other x", "CONFIG GET save"):
            answer = client.execute_command("ACL", "DRYRUN", "fleet", *command.split())
            assert b"OK" != answer
        client.execute_command("ACL", "DELUSER", "fleet")
