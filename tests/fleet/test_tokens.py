"""A fleet's tokens: one for each attempt at all processes, stock claimed once by any of them."""

from __future__ import annotations

import asyncio

import pytest

from aioivschat import (
    CachePolicy,
    Delivered,
    Event,
    Overloaded,
    Quota,
    Source,
    TokenRequest,
)
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from support.engine import EngineServer
from support.services import ROOM, OpenService, outcomes, until

REQUEST = TokenRequest(ROOM, "alice", ["SEND_MESSAGE"], {"displayName": "Alice"})


async def test_an_attempt_retried_at_another_process_gets_the_same_token(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """An attempt has one token at all processes; a retry may reach any of them."""
    events: list[Event] = []
    here, there = open_member(), open_member(observers=[events.append])
    first = await here.issue(REQUEST, idempotency_key="attempt")
    again = await there.issue(REQUEST, idempotency_key="attempt")
    other = await there.issue(REQUEST, idempotency_key="another attempt")
    assert (first.token, False, True) == (again.token, first.reused, again.reused)
    assert (first.token_expires, first.session_expires) == (
        again.token_expires,
        again.session_expires,
    )
    assert other.token != first.token
    assert 2 == ivschat_emulator.emulator.counts().requests
    sources = [event.source for event in events if isinstance(event, Delivered)]
    assert [Source.SHARED, Source.FLIGHT] == sources
    assert 1 == there.stats().shared


async def test_equal_plain_calls_share_a_token_anywhere(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Equal plain calls at two processes share a token; other requests and fresh ones do not."""
    here, there = open_member(), open_member()
    first = await here.issue(REQUEST)
    assert first.token == (await there.issue(REQUEST)).token
    assert first.token != (await there.issue(TokenRequest(ROOM, "alice"))).token
    assert first.token != (await there.issue(REQUEST, fresh=True)).token
    assert 3 == ivschat_emulator.emulator.counts().requests


async def test_a_token_prewarmed_anywhere_is_claimed_once_anywhere(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer, engine_server: EngineServer
) -> None:
    """A prewarmed token is claimed by one attempt, and is that attempt's at all processes."""
    here, there, elsewhere = open_member(), open_member(), open_member()
    assert 1 == (await here.prewarm([REQUEST])).minted
    with engine_server.client() as client:
        assert 1 == len(client.keys("*:s:*"))  # when prewarming is over, it is there
    claimed = await there.issue(REQUEST, idempotency_key="attempt")
    assert not claimed.reused
    assert claimed.token == (await elsewhere.issue(REQUEST, idempotency_key="attempt")).token
    assert 1 == ivschat_emulator.emulator.counts().requests
    assert claimed.token != (await elsewhere.issue(REQUEST, fresh=True)).token
    assert 2 == ivschat_emulator.emulator.counts().requests


@pytest.mark.fault(24)
async def test_one_of_fifty_processes_gets_the_only_undelivered_token(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Of 50 fresh calls at 50 processes, one gets the stocked token, and the others mint."""
    members = [open_member() for _ in range(50)]
    await members[0].prewarm([REQUEST])
    tokens = await asyncio.gather(*(member.issue(REQUEST, fresh=True) for member in members))
    assert 50 == len({token.token for token in tokens})
    assert 50 == ivschat_emulator.emulator.counts().requests
    assert 1 == sum(member.stats().shared for member in members)


async def test_calls_at_many_processes_make_one_request(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """40 calls of one attempt at 8 processes make one request and share its token."""
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.SLOW, latency=0.3))
    members = [open_member() for _ in range(8)]
    calls = [
        member.issue(REQUEST, idempotency_key="attempt") for member in members for _ in range(5)
    ]
    tokens = await asyncio.gather(*calls)
    assert 1 == len({token.token for token in tokens})
    assert 1 == sum(not token.reused for token in tokens)
    assert 1 == ivschat_emulator.emulator.counts().requests


async def test_a_token_whose_caller_went_away_is_claimed_by_another_process(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A token whose only caller left goes into stock, and another process claims it."""
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.SLOW, latency=0.2))
    here, there = open_member(), open_member()
    call = asyncio.create_task(here.issue(REQUEST, idempotency_key="attempt"))
    await until(lambda: ivschat_emulator.emulator.counts().requests == 1)
    call.cancel()
    await outcomes(call)
    await until(lambda: here.stats().stocked == 1)
    claimed = await there.issue(REQUEST, fresh=True)
    assert not claimed.reused
    assert (1, 1) == (ivschat_emulator.emulator.counts().requests, there.stats().shared)


async def test_a_call_takes_over_what_prewarming_has_under_way(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A call that takes over a flight of prewarming gets its token, which is not stocked."""
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.SLOW, latency=0.2))
    here, there = open_member(), open_member()
    prewarming = asyncio.create_task(here.prewarm([REQUEST]))
    await until(lambda: ivschat_emulator.emulator.counts().requests == 1)
    taken = await here.issue(REQUEST, idempotency_key="attempt")
    await prewarming
    assert taken.token == (await there.issue(REQUEST, idempotency_key="attempt")).token
    assert 1 == ivschat_emulator.emulator.counts().requests
    assert taken.token != (await there.issue(REQUEST, fresh=True)).token


async def test_two_processes_that_prewarm_for_one_attempt_agree_on_one_token(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """If two processes have minted for one attempt, one token is the attempt's, the other stock."""
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.SLOW, times=2, latency=0.3))
    members = [open_member(), open_member()]
    prewarming = [asyncio.create_task(member.prewarm([REQUEST])) for member in members]
    await until(lambda: ivschat_emulator.emulator.counts().requests == 2)
    calls = (member.issue(REQUEST, idempotency_key="attempt") for member in members)
    one, other = await asyncio.gather(*calls)
    await asyncio.gather(*prewarming)
    assert one.token == other.token
    await until(lambda: sum(member.stats().stocked for member in members) == 1)
    spare = await members[0].issue(REQUEST, fresh=True)
    assert spare.token != one.token
    assert 2 == ivschat_emulator.emulator.counts().requests


async def test_a_call_in_a_full_queue_still_claims_what_the_fleet_has(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A call that could not be queued is still given a stocked token of another process."""
    slow = Quota(rate=0.01, max_waiting=1)
    here, there = open_member(quota=slow), open_member(quota=slow)
    await here.prewarm([REQUEST])
    somebody = TokenRequest(ROOM, "somebody")
    waiting = asyncio.create_task(there.issue(somebody, fresh=True))
    await until(lambda: there.stats().waiting == 1)
    with pytest.raises(Overloaded):
        await there.issue(somebody, fresh=True)
    assert not (await there.issue(REQUEST, timeout=0.5)).reused
    waiting.cancel()
    await outcomes(waiting)


async def test_a_token_of_the_fleet_lives_no_longer_than_one_of_its_own(
    open_member: OpenService, engine_server: EngineServer
) -> None:
    """A token from the engine has its remaining life, and is not used below `min_remaining`."""
    here, there = open_member(), open_member(cache=CachePolicy(min_remaining=55.0))
    first = await here.issue(REQUEST)
    with engine_server.client() as client:
        (name,) = client.keys("*:a:*")
        assert 50_000 < client.pttl(name) <= 60_000
        born, end, sealed = client.get(name).split(b"|")
        # The same token, 10 s later.
        older = b"%d|%d|%s" % (int(born) - 10_000_000, int(end) - 10_000_000, sealed)
        client.set(name, older, px=50_000)
    assert first.token != (await there.issue(REQUEST)).token


async def test_closing_gives_leases_back(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A process that closes while it mints gives its lease back, so that another one mints."""
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.BLACK_HOLE))
    here, there = open_member(), open_member()
    held = asyncio.create_task(here.issue(REQUEST, idempotency_key="attempt"))
    await until(lambda: ivschat_emulator.emulator.counts().requests == 1)
    waiting = asyncio.create_task(there.issue(REQUEST, idempotency_key="attempt"))
    await until(lambda: there.stats().flights == 1)
    await here.aclose(grace=0.05)
    await outcomes(held)
    assert not (await waiting).reused
