"""How many script calls an issue makes: none for a local hit, two at most before a request."""

from __future__ import annotations

import asyncio

from aioivschat import AsyncTokenService, TokenRequest
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from support.engine import EngineServer
from support.services import ROOM, OpenService, until

REQUEST = TokenRequest(ROOM, "alice")


async def _settled(member: AsyncTokenService, server: EngineServer) -> int:
    """Wait until a service has connected; return the script calls so far."""
    await member.issue(TokenRequest(ROOM, "somebody"))
    calls = -1
    while calls != (calls := server.script_calls()):
        await asyncio.sleep(0.3)
    return calls


async def test_a_local_hit_makes_no_script_call(
    open_member: OpenService, engine_server: EngineServer
) -> None:
    """A token that this process has, minted here or claimed once, is issued without the engine."""
    here, there = open_member(), open_member()
    await here.issue(REQUEST)
    await _settled(here, engine_server)
    await there.issue(REQUEST)
    before = await _settled(there, engine_server)
    for _ in range(100):
        await there.issue(REQUEST)
    assert before == engine_server.script_calls()


async def test_a_request_is_preceded_by_two_script_calls_at_most(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer, engine_server: EngineServer
) -> None:
    """Before a request there are two script calls: a claim, and one for a slot."""
    member = open_member()
    before = await _settled(member, engine_server)
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.SLOW, latency=0.5))
    requests = ivschat_emulator.emulator.counts().requests
    call = asyncio.create_task(member.issue(REQUEST, idempotency_key="attempt"))
    await until(lambda: ivschat_emulator.emulator.counts().requests > requests)
    assert engine_server.script_calls() - before <= 2
    await call


async def test_a_token_that_the_fleet_has_costs_one_script_call(
    open_member: OpenService, engine_server: EngineServer
) -> None:
    """A claimed token takes one script call, and no slot."""
    here, there = open_member(), open_member()
    await here.issue(REQUEST)
    await _settled(here, engine_server)
    before = await _settled(there, engine_server)
    await there.issue(REQUEST)
    assert 1 == engine_server.script_calls() - before
