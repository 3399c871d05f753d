"""How many tokens one user and one room get from the token endpoint."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest

from aioivschat import (
    InvalidConfiguration,
    TokenRequest,
)
from aioivschat._endpoint.rate_limits import RateLimits
from aioivschat.aiohttp import EndpointPolicy, Share
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from aioivschat.planning._outcomes import percentile
from support.endpoint_servers import (
    Mount,
    assert_problem,
    count_requests,
    open_busy_service,
    open_virtual_endpoint,
)
from support.services import ROOM, BentClock, OpenService
from support.virtual import virtual_time


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
