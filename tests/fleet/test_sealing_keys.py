"""With no sealing key a fleet shares its quota only; with several, a key can be changed."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest

from aioivschat import (
    Event,
    Invalidated,
    InvalidConfiguration,
    SharedChanged,
    SharedState,
    TokenRequest,
)
from aioivschat.emulator import ThreadedEmulatorServer
from aioivschat.redis import RedisTier
from support.engine import EngineServer
from support.services import ROOM, OpenService, until

REQUEST = TokenRequest(ROOM, "alice")
OLD, NEW = b"o" * 32, b"n" * 32


async def test_without_a_key_no_token_is_stored(
    open_member: OpenService,
    engine_server: EngineServer,
    ivschat_emulator: ThreadedEmulatorServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without a key tokens stay in their processes; the log and an event say so."""
    events: list[Event] = []
    with caplog.at_level(logging.WARNING, "aioivschat"):
        here, there = open_member(keys=[], observers=[events.append]), open_member(keys=[])
        await here.prewarm([REQUEST])
        assert not (await here.issue(REQUEST)).reused
        assert not (await there.issue(REQUEST)).reused
        here.invalidate(user="alice")
    assert 2 == ivschat_emulator.emulator.counts().requests
    warning = "no sealing key: the fleet shares its quota, and not its tokens"
    assert [warning] * 2 == [record.getMessage() for record in caplog.records]
    told = [event for event in events if isinstance(event, SharedChanged)]
    assert [SharedChanged(SharedState.QUOTA_ONLY, "no sealing key")] == told
    with engine_server.client() as client:
        kinds = {name.split(b":")[-2] for name in client.scan_iter("{aioivschat}:*:*")}
    assert not kinds & {b"a", b"l", b"s", b"f"}


async def test_a_key_is_changed_while_the_fleet_runs(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """At each step of changing a key, processes of two steps share attempts, stock and fences."""
    steps = [[OLD], [OLD, NEW], [NEW, OLD], [NEW]]
    for number, (before, after) in enumerate(pairwise(steps)):
        events: list[Event] = []
        one, other = open_member(keys=before), open_member(keys=after, observers=[events.append])
        request = TokenRequest(ROOM, f"user-{number}")
        requests = ivschat_emulator.emulator.counts().requests
        first = await one.issue(request, idempotency_key="one")
        second = await other.issue(request, idempotency_key="two")
        assert first.token == (await other.issue(request, idempotency_key="one")).token
        assert second.token == (await one.issue(request, idempotency_key="two")).token
        for member, neighbour in ((one, other), (other, one)):
            await member.prewarm([request])
            await neighbour.issue(request, fresh=True)
            assert 1 <= neighbour.stats().shared
        assert 4 == ivschat_emulator.emulator.counts().requests - requests
        events.clear()
        one.invalidate(user=request.user)
        await until(
            lambda events=events: any(isinstance(event, Invalidated) for event in events)  # type: ignore[misc]  # a loop's
        )
        assert not (await other.issue(request, idempotency_key="one")).reused


async def test_a_fleet_with_another_key_or_namespace_is_another_fleet(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Fleets with different keys or namespaces neither find nor reject each other's tokens."""
    here = open_member(keys=[OLD])
    others = [open_member(keys=[NEW]), open_member(keys=[OLD], namespace="staging")]
    first = await here.issue(REQUEST)
    for other in others:
        assert first.token != (await other.issue(REQUEST)).token
        assert 0 == other.stats().rejected
    assert first.token == (await open_member(keys=[OLD]).issue(REQUEST)).token


async def test_a_tier_serves_one_service(
    open_service: OpenService, engine_server: EngineServer
) -> None:
    """A second service that is given the same tier is refused when it is made."""
    tier = RedisTier(engine_server.url)
    open_service(shared=tier)
    with pytest.raises(InvalidConfiguration, match="this service alone"):
        open_service(shared=tier)
