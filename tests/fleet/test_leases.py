"""Flights across processes: leases that run out, and messages that are lost."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aioivschat import ChatToken, Clock, Event, ResourceNotFound, Retrying, TokenRequest
from aioivschat._events import Observers
from aioivschat._models import Attempt
from aioivschat._service.fleet import Busy, Fenced, Held
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from aioivschat.redis import RedisTier
from aioivschat.redis._tokens import RedisFlight, RedisTokens
from support.engine import EngineServer
from support.paths import TESTS
from support.services import ROOM, SEALING_KEY, OpenService, outcomes, until

REQUEST = TokenRequest(ROOM, "alice")
ATTEMPT = REQUEST.identity
NOW = datetime.now(UTC)

OpenTokens = Callable[[], RedisTokens]


def _token(text: str) -> ChatToken:
    return ChatToken(text, NOW + timedelta(minutes=1), NOW + timedelta(hours=1))


@pytest.fixture
async def open_tokens(engine_server: EngineServer) -> AsyncIterator[OpenTokens]:
    """A factory of the fleet's tokens, as one process each sees them."""
    tiers: list[RedisTier] = []

    def make() -> RedisTokens:
        tier = RedisTier(engine_server.url, keys=[SEALING_KEY], timeout=5.0)
        tiers.append(tier)
        tokens = tier.bind(Clock(), 5.0, lambda room, user: None, Observers())
        assert tokens is not None
        tier.open()
        return tokens

    yield make
    for tier in tiers:
        await tier.aclose()


@pytest.mark.fault(23)
async def test_what_a_holder_does_after_its_lease_does_nothing(open_tokens: OpenTokens) -> None:
    """A member paused past its lease changes neither its successor's lease nor its token."""
    paused = open_tokens().flight(ATTEMPT, ATTEMPT)
    successor = open_tokens().flight(ATTEMPT, ATTEMPT)
    third = open_tokens().flight(ATTEMPT, ATTEMPT)
    assert await paused.claim(lease=0.05) is None
    while isinstance(await successor.claim(lease=30.0), Busy):
        await successor.landed()
    # The late write is refused, and the late unlock leaves the successor its lease.
    assert isinstance(await paused.publish(_token("late"), 60.0, 1.0), Busy)
    paused.close()
    await paused._tokens.settled()
    assert isinstance(await third.claim(lease=30.0), Busy)
    assert await successor.publish(_token("the one"), 60.0, 1.0) is None
    for flight in (paused, third):
        held = await flight.claim(lease=30.0)
        assert isinstance(held, Held)
        assert ("the one", True) == (held.token.token, held.token.reused)
    # And once more, with the token there.
    late = await paused.publish(_token("later still"), 60.0, 1.0)
    assert isinstance(late, Held)
    assert "the one" == late.token.token


_HOLDER = """
import asyncio, sys
from aioivschat import Clock
from aioivschat._events import Observers
from aioivschat.redis import RedisTier
from fleet.test_leases import ATTEMPT, SEALING_KEY, _token

async def main():
    tier = RedisTier(sys.argv[1], keys=[SEALING_KEY], timeout=5.0)
    tokens = tier.bind(Clock(), 5.0, lambda room, user: None, Observers())
    tier.open()
    flight = tokens.flight(ATTEMPT, ATTEMPT)
    assert await flight.claim(lease=0.2) is None
    print("claimed", flush=True)
    sys.stdin.readline()
    answer = await flight.publish(_token("late"), 60.0, 1.0)
    flight.close()
    await tier.aclose()
    print(type(answer).__name__)

asyncio.run(main())
"""


@pytest.mark.fault(23)
@pytest.mark.parametrize("landed", [False, True], ids=["in flight", "landed"])
async def test_a_process_stopped_past_its_lease_harms_no_successor(
    open_tokens: OpenTokens, engine_server: EngineServer, landed: bool
) -> None:
    """A process stopped by SIGSTOP past its lease finds its successor minting, or done."""
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _HOLDER, engine_server.url),
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert b"claimed\n" == await holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        successor = open_tokens().flight(ATTEMPT, ATTEMPT)
        while isinstance(await successor.claim(lease=30.0), Busy):
            await successor.landed()
        if landed:
            assert await successor.publish(_token("the one"), 60.0, 1.0) is None
        holder.send_signal(signal.SIGCONT)
        answer, _ = await holder.communicate(b"go on\n")
    finally:
        if holder.returncode is None:
            holder.kill()
            await holder.wait()
    assert (b"Held" if landed else b"Busy") == answer.strip()
    if not landed:
        assert isinstance(await open_tokens().flight(ATTEMPT, ATTEMPT).claim(lease=1.0), Busy)
        assert await successor.publish(_token("the one"), 60.0, 1.0) is None
    held = await open_tokens().flight(ATTEMPT, ATTEMPT).claim(lease=1.0)
    assert isinstance(held, Held)
    assert "the one" == held.token.token


@pytest.mark.fault(23)
async def test_a_lease_that_was_given_back_late_is_not_the_successors(
    open_tokens: OpenTokens,
) -> None:
    """A release after the lease ran out leaves the successor its lease."""
    paused = open_tokens().flight(ATTEMPT, ATTEMPT)
    successor = open_tokens().flight(ATTEMPT, ATTEMPT)
    assert await paused.claim(lease=0.05) is None
    while isinstance(await successor.claim(lease=30.0), Busy):
        await successor.landed()
    paused.close()
    await paused._tokens.settled()
    assert isinstance(await open_tokens().flight(ATTEMPT, ATTEMPT).claim(lease=1.0), Busy)


async def test_a_member_that_waits_is_told_at_once(
    open_tokens: OpenTokens, engine_server: EngineServer
) -> None:
    """A message ends the wait for another's flight, whether that published or gave up."""
    for landing in ("publish", "close"):
        attempt = Attempt((REQUEST.identity, landing))
        holder, tokens = open_tokens().flight(ATTEMPT, attempt), open_tokens()
        with engine_server.client() as client:
            await until(lambda: 2 <= client.pubsub_numsub("aioivschat:events")[0][1])
        follower = tokens.flight(ATTEMPT, attempt)
        assert await holder.claim(lease=60.0) is None
        assert isinstance(await follower.claim(lease=60.0), Busy)
        if landing == "publish":
            assert await holder.publish(_token("the one"), 60.0, 0.0) is None
        else:
            holder.close()
        # It waits for nothing else here: no poll could set it.
        await until(follower._landed.is_set)


@pytest.mark.fault(25)
async def test_a_member_that_is_not_told_claims_again(open_tokens: OpenTokens) -> None:
    """A member that misses the message claims again long before the lease ends."""
    holder, tokens = open_tokens().flight(ATTEMPT, ATTEMPT), open_tokens()
    follower = tokens.flight(ATTEMPT, ATTEMPT)
    assert await holder.claim(lease=60.0) is None
    assert isinstance(await follower.claim(lease=60.0), Busy)
    tokens.unwatch_leases(follower._leases, follower._landed)
    assert await holder.publish(_token("the one"), 60.0, 0.0) is None
    await asyncio.wait_for(follower.landed(), timeout=10.0)
    held = await follower.claim(lease=60.0)
    assert isinstance(held, Held)
    assert "the one" == held.token.token


@pytest.mark.fault(25)
async def test_members_that_wait_do_not_claim_all_at_once(open_tokens: OpenTokens) -> None:
    """Twenty flights that wait claim again at different moments: half of the time is random."""
    tokens = open_tokens()
    assert await open_tokens().flight(ATTEMPT, ATTEMPT).claim(lease=60.0) is None
    followers = [tokens.flight(ATTEMPT, ATTEMPT) for _ in range(20)]
    for follower in followers:
        assert isinstance(await follower.claim(lease=60.0), Busy)
    loop = asyncio.get_running_loop()
    started, asked = loop.time(), []

    async def follow(flight: RedisFlight) -> None:
        await flight.landed()
        asked.append(loop.time() - started)

    await asyncio.gather(*map(follow, followers))
    assert 0.124 < min(asked)
    # Of 20, uniform over 125 ms, they are closer together once in 10 ** 11 times.
    assert max(asked) - min(asked) > 0.03


@pytest.mark.fault(25)
async def test_a_call_whose_notification_is_lost_gets_its_token_in_time(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer, engine_server: EngineServer
) -> None:
    """A call whose message is lost with its connection gets the token of the other process."""
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.SLOW, latency=0.5))
    here, there = open_member(), open_member()
    first = asyncio.create_task(here.issue(REQUEST, idempotency_key="attempt"))
    await until(lambda: ivschat_emulator.emulator.counts().requests == 1)
    follower = asyncio.create_task(there.issue(REQUEST, idempotency_key="attempt", timeout=8.0))
    await until(lambda: there.stats().flights == 1)
    await asyncio.sleep(0.1)
    with engine_server.client() as client:
        client.client_kill_filter(_type="pubsub")
    assert (await first).token == (await follower).token
    assert 1 == ivschat_emulator.emulator.counts().requests


@pytest.mark.fault(25)
async def test_scripts_that_the_engine_forgot_are_sent_again(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer, engine_server: EngineServer
) -> None:
    """After SCRIPT FLUSH attempts are still shared."""
    here, there = open_member(), open_member()
    await here.issue(REQUEST, idempotency_key="one")
    with engine_server.client() as client:
        client.script_flush()
    two = await here.issue(REQUEST, idempotency_key="two")
    assert two.token == (await there.issue(REQUEST, idempotency_key="two")).token
    assert 2 == ivschat_emulator.emulator.counts().requests


async def test_a_flight_that_fails_lets_the_next_one_try_at_once(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A flight that fails releases its lease, and the other processes mint at once."""
    ivschat_emulator.emulator.configure(any_room=False)
    members = [open_member() for _ in range(3)]
    calls = [member.issue(REQUEST, idempotency_key="attempt", timeout=5.0) for member in members]
    for result in await outcomes(*calls):
        assert isinstance(result, ResourceNotFound)
    assert 3 == ivschat_emulator.emulator.counts().requests


async def test_a_call_cancelled_while_it_waits_for_a_lease_leaves_nothing(
    open_tokens: OpenTokens, open_member: OpenService, engine_server: EngineServer
) -> None:
    """A call cancelled during another's lease leaves no flight and no task; the lease holds."""
    holder = open_tokens().flight(ATTEMPT, ATTEMPT)
    assert await holder.claim(lease=60.0) is None
    member = open_member()
    baseline = len(asyncio.all_tasks())
    call = asyncio.create_task(member.issue(REQUEST))
    with engine_server.client() as client:
        (lease,) = client.keys("*:l:*")
        await until(lambda: bool(client.hexists(lease, "awaited")))
        call.cancel()
        await outcomes(call)
        await until(lambda: member.stats().flights == 0)
        assert client.exists(lease)
    # The connection and the two that listen stay.
    assert len(asyncio.all_tasks()) <= baseline + 3


@pytest.mark.fault(25)
@pytest.mark.parametrize("kind", ["a", "s"])
@pytest.mark.parametrize("spoil", ["corrupt", "cut", "swap", "text"])
async def test_a_value_that_does_not_open_is_deleted_counted_and_a_miss(
    open_member: OpenService,
    ivschat_emulator: ThreadedEmulatorServer,
    engine_server: EngineServer,
    kind: str,
    spoil: str,
) -> None:
    """A stored value that was changed or moved is deleted and counted, and never handed out."""
    here, there = open_member(), open_member()
    if kind == "a":
        await here.issue(REQUEST)
        await here.issue(TokenRequest(ROOM, "mallory"))
    else:
        await here.prewarm([REQUEST, TokenRequest(ROOM, "mallory")])
    with engine_server.client() as client:
        names = client.keys(f"*:{kind}:*")
        assert 2 == len(names)
        values = [client.get(name) if kind == "a" else client.lpop(name) for name in names]
        for name, value, other in zip(names, values, reversed(values), strict=True):
            bad = {
                "corrupt": value[:-20] + b"AAAA" + value[-16:],
                "cut": value[:-30],
                "swap": other,
                "text": b"nonsense",
            }[spoil]
            if kind == "a":
                client.set(name, bad, px=60_000)
            else:
                client.rpush(name, bad)
        token = await there.issue(REQUEST)
        assert not token.reused
        assert (0, 1) == (there.stats().shared, there.stats().rejected)
        assert 3 == ivschat_emulator.emulator.counts().requests
        if kind == "s":
            assert 1 == len(client.keys("*:s:*"))
    assert token.token == (await open_member().issue(REQUEST)).token


async def test_what_was_invalidated_under_way_is_not_kept(open_tokens: OpenTokens) -> None:
    """A token whose flight began before an invalidation is not stored, even without the message."""
    here, there = open_tokens(), open_tokens()
    flight = here.flight(ATTEMPT, ATTEMPT)
    assert await flight.claim(lease=60.0) is None
    claimed_at = time.monotonic()
    there.invalidate(ROOM, None)
    await until(lambda: not there._invalidations.pending)
    age = time.monotonic() - claimed_at
    assert isinstance(await flight.publish(_token("banned"), 60.0, age), Fenced)
    assert await there.flight(ATTEMPT, ATTEMPT).claim(lease=1.0) is None


@pytest.mark.fault(35)
@pytest.mark.parametrize("how", [{"idempotency_key": "attempt"}, {}], ids=["keyed", "plain"])
async def test_a_sleeper_gives_its_lease_back_to_who_has_less_time(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer, how: dict[str, Any]
) -> None:
    """A caller at another process gets a token at once, and the sleeper gets it when it wakes."""
    model = ivschat_emulator.emulator
    asleep: list[Event] = []

    def observe(event: Event) -> None:
        if isinstance(event, Retrying):
            asleep.append(event)

    here, there = open_member(observers=[observe]), open_member()
    await there.issue(TokenRequest(ROOM, "somebody"))  # to open a client takes its time
    model.fail_next(Fault(FaultKind.THROTTLE_JSON, retry_after="4"))
    patient = asyncio.create_task(here.issue(REQUEST, **how))
    await until(lambda: bool(asleep))
    token = await there.issue(REQUEST, timeout=3.0, **how)
    assert not patient.done()
    assert token.token == (await patient).token
    assert 3 == model.counts().requests  # with somebody's


async def test_a_sleeper_mints_after_its_sleep_if_nobody_else_did(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """It claims once more, and what it mints is the attempt's in the whole fleet."""
    model = ivschat_emulator.emulator
    model.fail_next(Fault(FaultKind.THROTTLE_JSON, retry_after="2"))
    here, there = open_member(), open_member()
    token = await here.issue(REQUEST, idempotency_key="attempt")
    assert token.token == (await there.issue(REQUEST, idempotency_key="attempt")).token
    assert 2 == model.counts().requests
