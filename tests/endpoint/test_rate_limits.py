"""How many tokens one user and one room get from the token endpoint."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from typing import Any

import pytest

from aioivschat import InvalidConfiguration, Priority, Quota, TokenRequest
from aioivschat._endpoint.rate_limits import RateLimits
from aioivschat.aiohttp import Ask, EndpointPolicy, Share
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from aioivschat.planning._outcomes import percentile
from support.endpoint_servers import (
    ONE_REQUEST,
    Mount,
    Rule,
    assert_problem,
    count_requests,
    open_busy_service,
    open_virtual_endpoint,
)
from support.services import ROOM, BentClock, OpenService, bare_session, outcomes, until
from support.virtual import settle, virtual_time


@pytest.mark.fault(27)
async def test_one_users_flood_costs_the_others_nothing(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """The flooding user gets 5 tokens and otherwise 429; all the others get theirs."""
    # So long that the seconds which the test takes do not count.
    policy = EndpointPolicy(patience=1e6, per_user=Share(tokens=5, seconds=5e9))
    client = await mount(policy)
    flood = [client.ask(user="mallory") for _ in range(300)]
    others = [client.ask(user=f"viewer-{number}") for number in range(30)]
    answers = await asyncio.gather(*flood, *others)
    mallory, viewers = answers[:300], answers[300:]
    assert [200] * 30 == [answer.status for answer in viewers]
    refused = [answer for answer in mallory if answer.status != 200]
    assert 295 == len(refused)
    for answer in refused:
        assert_problem(answer, 429, "own-share")
        assert 0.99e9 <= int(answer.headers["Retry-After"]) <= 1.5e9 + 1
    assert 35 == count_requests(ivschat_emulator)


async def _measure_waits(flood: int) -> tuple[float, int]:
    """Return the p99 wait of 100 viewers a second beside so many requests a second of one user,
    and how many tokens that user got.
    """
    loop = asyncio.get_running_loop()
    waits: list[float] = []
    got = 0
    async with open_virtual_endpoint(EndpointPolicy()) as ask:

        async def request_token(user: str) -> None:
            nonlocal got
            begun = loop.time()
            reply = await ask(user)
            if user == "mallory":
                got += reply.status == 200
                assert reply.status in (200, 429)
                assert (reply.status == 429) == ("Retry-After" in reply.headers)
            else:
                assert 200 == reply.status
                waits.append(loop.time() - begun)

        calls = []
        for tick in range(1000):
            names = [f"viewer-{tick}", *["mallory"] * (flood // 100)]
            calls += [asyncio.create_task(request_token(name)) for name in names]
            await asyncio.sleep(0.01)
        await asyncio.gather(*calls)
    return percentile(sorted(waits), 99), got


@pytest.mark.fault(27)
@virtual_time
async def test_one_users_flood_at_most_doubles_the_others_wait() -> None:
    """1,000 requests a second of one user for ten seconds leave the others' p99 below twice."""
    alone, _ = await _measure_waits(flood=0)
    beside, got = await _measure_waits(flood=1_000)
    assert 0.02 == pytest.approx(alone)
    assert beside <= 2 * alone
    assert 5 <= got <= 5 + 5


async def test_a_share_grows_again(ivschat_emulator: ThreadedEmulatorServer) -> None:
    """A used share of 2 tokens in 10 s grows by one each 5 s, and never beyond 2."""
    clock = BentClock()
    policy = EndpointPolicy(per_user=Share(tokens=2, seconds=10.0), per_room=None)
    limits = RateLimits(policy, clock)
    request = TokenRequest(ROOM, "alice")

    def taken() -> int:
        for count in range(10):
            try:
                limits.charge(request)
            except Exception:
                return count
        return 10

    given = [taken()]
    for seconds in (4.9, 0.2, 5.0, 1000.0):
        clock.pass_by(seconds)
        given.append(taken())
    assert [2, 0, 1, 1, 2] == given


async def test_a_room_can_have_a_share(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A room's share is for all its users together; one refused for it is not charged."""
    client = await mount(EndpointPolicy(per_room=Share(tokens=3, seconds=1000.0)))
    statuses = [(await client.ask(user=f"viewer-{number}")).status for number in range(5)]
    assert [200, 200, 200, 429, 429] == statuses
    assert 3 == count_requests(ivschat_emulator)


async def test_repeating_an_attempt_is_free(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Only the first request of an attempt that got its token is charged."""
    client = await mount(EndpointPolicy(per_user=Share(tokens=1, seconds=1000.0)))
    statuses = [(await client.ask(key="attempt")).status for _ in range(10)]
    assert [200] * 10 == statuses
    assert 429 == (await client.ask(key="another")).status
    assert 1 == count_requests(ivschat_emulator)


async def test_an_attempt_that_failed_upstream_pays_again(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Each request that AWS was sent is charged: one key must not allow any number."""
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.ERROR_500, times=None))
    client = await mount(EndpointPolicy(per_user=Share(tokens=3, seconds=1000.0)))
    statuses = [(await client.ask(key="attempt")).status for _ in range(5)]
    assert [502, 502, 502, 429, 429] == statuses
    assert 3 == count_requests(ivschat_emulator)


async def test_who_was_shed_has_not_paid(mount: Mount, open_service: OpenService) -> None:
    """A request that is refused for its predicted wait is not charged."""
    policy = EndpointPolicy(patience=0.5, per_user=Share(tokens=2, seconds=1000.0))
    client = await mount(policy, service=await open_busy_service(open_service, rate=0.1))
    statuses = [(await client.ask(key=f"attempt-{number}")).status for number in range(6)]
    assert [503] * 6 == statuses


ONE_TOKEN = EndpointPolicy(
    patience=1e6, per_user=Share(tokens=1, seconds=1e9), per_room=Share(tokens=2, seconds=1e9)
)
"""So long that the seconds which a test takes do not count."""


@pytest.mark.fault(47)
async def test_all_tries_of_an_attempt_are_charged_once(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """50 tries at once, and more afterwards, cost one token; another attempt costs another."""
    client = await mount(ONE_TOKEN)
    answers = await asyncio.gather(*(client.ask(key="attempt") for _ in range(50)))
    answers += [await client.ask(key="attempt") for _ in range(10)]
    assert 1 == len({answer.json["token"] for answer in answers})
    assert_problem(await client.ask(key="another"), 429, "own-share")
    assert 200 == (await client.ask(key="attempt", user="bob")).status
    assert 429 == (await client.ask(key="attempt", user="carol")).status  # the room's share
    assert 2 == count_requests(ivschat_emulator)


@pytest.mark.fault(47)
@pytest.mark.parametrize("key", ["attempt", None])
async def test_who_leaves_the_queue_has_not_paid(
    key: str | None, mount: Mount, open_service: OpenService
) -> None:
    """What a try was charged is given back if it ends before anything was sent to AWS."""
    service = await open_busy_service(open_service, rate=0.001)
    client = await mount(ONE_TOKEN, service=service)
    for _ in range(3):
        tries = [asyncio.create_task(client.ask(key=key)) for _ in range(3 if key else 1)]
        await until(lambda: service.stats().waiting == 1)
        for call in tries:
            call.cancel()
        await outcomes(*tries)
        await until(lambda: service.stats().waiting == 0)
    others = [asyncio.create_task(client.ask(key="another")) for _ in range(2)]
    await until(lambda: service.stats().waiting == 1)
    others[0].cancel()
    await asyncio.sleep(0.5)  # until it has been noticed: the other one has still paid
    assert 429 == (await client.ask(key="attempt", headers={"Prefer": "wait=1"})).status
    others[1].cancel()
    await outcomes(*others)
    await until(lambda: service.stats().waiting == 0)


@pytest.mark.fault(47)
@virtual_time
async def test_who_ran_out_of_time_in_the_queue_has_not_paid() -> None:
    """A wait that became longer than it was predicted costs nothing either."""
    async with open_virtual_endpoint(ONE_TOKEN, Quota(rate=2.0)) as ask:
        await ask("first")
        hurried = {"Idempotency-Key": "attempt", "Prefer": "wait=1"}
        late = asyncio.create_task(ask("alice", hurried))
        await settle()
        host = TokenRequest(ROOM, "host")
        urgent = [
            asyncio.create_task(ask.service.issue(host, fresh=True, priority=Priority.HIGH))
            for _ in range(4)
        ]
        assert 503 == (await late).status
        assert 200 == (await ask("alice", {"Idempotency-Key": "another"})).status
        await asyncio.gather(*urgent)


@pytest.mark.fault(47)
async def test_who_reached_nobody_has_not_paid(mount: Mount) -> None:
    """Where there is no connection to AWS, nothing was sent."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        client = await mount(ONE_TOKEN, endpoint_url=url)
        for key in ("attempt", "attempt", "another", None):
            assert_problem(await client.ask(key=key), 503, "unreachable")


@pytest.mark.fault(47)
async def test_who_could_not_be_signed_for_has_not_paid(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Without credentials nothing is sent either."""

    class Nobody:
        async def load_credentials(self) -> None:
            return None

    session: Any = bare_session()
    session.register_component("credential_provider", Nobody())
    client = await mount(ONE_TOKEN, session=session)
    statuses = [(await client.ask(key=key)).status for key in ("attempt", "attempt", "another")]
    assert statuses[0] >= 500
    assert [statuses[0]] * 3 == statuses
    assert 0 == count_requests(ivschat_emulator)


@pytest.mark.fault(47)
@pytest.mark.parametrize("fails", [False, True])
async def test_who_leaves_after_the_request_has_paid_for_it(
    fails: bool, mount: Mount, open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """The token that comes is the attempt's, free of charge; if none comes, another one costs."""
    emulator = ivschat_emulator.emulator
    emulator.configure(latency=0.6)  # longer than it takes to notice that a client has left
    if fails:
        emulator.fail_next(Fault(FaultKind.ERROR_500))
    service = open_service(retry=ONE_REQUEST)
    client = await mount(ONE_TOKEN, service=service)
    call = asyncio.create_task(client.ask(key="attempt"))
    await until(lambda: service.stats().requests == 1)
    call.cancel()
    await outcomes(call)
    assert 429 == (await client.ask(key="another")).status
    await until(lambda: service.stats().flights == 0)
    again = [(await client.ask(key="attempt")).status for _ in range(3)]
    assert [429 if fails else 200] * 3 == again
    assert 1 == count_requests(ivschat_emulator)


@pytest.mark.fault(47)
@virtual_time
async def test_who_leaves_takes_back_nothing_that_another_try_has_used() -> None:
    """A try that was served has used the charge, though nothing was sent for the one that left."""
    async with open_virtual_endpoint(ONE_TOKEN, Quota(rate=1.0)) as ask:
        headers = {"Idempotency-Key": "attempt"}
        abandoned = asyncio.create_task(ask.service.issue(TokenRequest(ROOM, "alice"), fresh=True))
        await asyncio.sleep(0.01)
        queued = asyncio.create_task(ask("alice", headers))
        await settle()
        abandoned.cancel()
        await asyncio.sleep(0.02)
        assert 200 == (await ask("alice", headers)).status  # with the token that was abandoned
        queued.cancel()
        await outcomes(queued)
        assert 429 == (await ask("alice", {"Idempotency-Key": "another"})).status


@pytest.mark.fault(47)
async def test_a_token_that_could_not_be_handed_out_was_paid_for(
    mount: Mount, rule: Rule, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """If the rule refuses after the wait, its token is the next try's, free of charge."""
    answers = [True, False, True]

    async def changing(request: Any, ask: Ask) -> TokenRequest | None:
        return await rule(request, ask) if answers.pop(0) else None

    client = await mount(ONE_TOKEN, authorize=changing)
    statuses = [(await client.ask(key="attempt")).status for _ in range(2)]
    assert [403, 200] == statuses
    assert 1 == count_requests(ivschat_emulator)


@pytest.mark.fault(47)
async def test_one_key_brings_no_more_than_what_was_paid_for(
    mount: Mount, open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A repetition is free while its token is there; one that needs a new token is charged."""
    service = open_service()
    client = await mount(ONE_TOKEN, service=service)
    assert 200 == (await client.ask(key="attempt")).status
    service.invalidate(user="alice")
    assert 429 == (await client.ask(key="attempt")).status
    assert 1 == count_requests(ivschat_emulator)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EndpointPolicy(patience=0),
        lambda: EndpointPolicy(patience=math.inf),
        lambda: Share(tokens=0, seconds=1),
        lambda: Share(tokens=1, seconds=0),
        lambda: Share(tokens=1, seconds=math.nan),
    ],
)
def test_a_policy_that_cannot_work_is_refused(make: Callable[[], object]) -> None:
    """Numbers out of range raise InvalidConfiguration when the policy is made."""
    with pytest.raises(InvalidConfiguration):
        make()
