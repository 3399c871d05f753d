"""In a fleet, too, nothing that outlives a call keeps its caller's context."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from aioivschat import PoolPolicy, Quota, RetryPolicy, TokenRequest
from aioivschat.emulator import Emulator, Fault, FaultKind, ThreadedEmulatorServer
from aioivschat.redis import RedisTier
from support.contexts import Callers
from support.engine import EngineServer
from support.services import ROOM, SEALING_KEY, OpenService, outcomes, until
from support.tasks import FACTORIES

REQUEST = TokenRequest(ROOM, "u")
QUICK = RetryPolicy(max_attempts=4, base_delay=0.001, max_delay=0.001)

Act = Callable[[OpenService, Emulator, Callers], Awaitable[None]]


@pytest.fixture
def emulator(ivschat_emulator: ThreadedEmulatorServer) -> Emulator:
    """The model behind the server."""
    return ivschat_emulator.emulator


async def _call_first(open_member: OpenService, model: Emulator, callers: Callers) -> None:
    """Connect to the engine and to AWS, and send a request."""
    member = open_member()
    await callers.run(lambda: member.issue(REQUEST, timeout=600.0))


async def _call_for_an_attempt(open_member: OpenService, model: Emulator, callers: Callers) -> None:
    """Mint for an attempt, and find its token at another member."""
    one, other = open_member(), open_member()
    for member in (one, other):
        await callers.run(partial(member.issue, REQUEST, idempotency_key="key"))
    assert (1, 0) == (one.stats().requests, other.stats().requests)


async def _wait_for_another(open_member: OpenService, model: Emulator, callers: Callers) -> None:
    """Wait for the flight of another member, which is asked again and again."""
    one, other = open_member(), open_member()
    await other.issue(TokenRequest(ROOM, "warm"))
    model.configure(latency=0.8)
    first = asyncio.create_task(one.issue(REQUEST, idempotency_key="key"))
    await until(lambda: one.stats().requests == 1)
    await callers.run(lambda: other.issue(REQUEST, idempotency_key="key"))
    await first
    assert 1 == other.stats().requests


async def _retry(open_member: OpenService, model: Emulator, callers: Callers) -> None:
    """Have a request sent again."""
    member = open_member(retry=QUICK)
    model.fail_next(Fault(FaultKind.ERROR_500))
    await callers.run(lambda: member.issue(REQUEST))
    assert 2 == member.stats().requests


async def _prewarm(open_member: OpenService, model: Emulator, callers: Callers) -> None:
    """Stock tokens in the engine, for another member."""
    one, other = open_member(), open_member()
    await callers.run(lambda: one.prewarm([REQUEST]))
    await callers.run(lambda: other.issue(REQUEST, fresh=True))
    assert (1, 0) == (one.stats().requests, other.stats().requests)


async def _leave_while_sent(open_member: OpenService, model: Emulator, callers: Callers) -> None:
    """Leave a token to the stock of the fleet."""
    member = open_member()
    model.configure(latency=0.1)
    call = callers.start(lambda: member.issue(REQUEST))
    await until(lambda: member.stats().requests == 1)
    call.cancel()
    await outcomes(call)
    await until(lambda: member.stats().flights == 0)


async def _leave_the_queue(open_member: OpenService, model: Emulator, callers: Callers) -> None:
    """Wait for a slot of the fleet, and leave."""
    member = open_member(quota=Quota(rate=0.01))
    await member.issue(REQUEST)
    calls = [callers.start(lambda: member.issue(REQUEST, fresh=True)) for _ in range(2)]
    await until(lambda: member.stats().waiting == 2)
    for call in calls:
        call.cancel()
    await outcomes(*calls)


async def _forbid(open_member: OpenService, model: Emulator, callers: Callers) -> None:
    """Invalidate, as the first thing that is done in a fleet."""
    member = open_member()

    async def invalidate() -> None:
        member.invalidate(user="u")

    await callers.run(invalidate)


async def _close(open_member: OpenService, model: Emulator, callers: Callers) -> None:
    """Close a member, and with it all that it has under way."""
    member = open_member()
    await callers.run(lambda: member.issue(REQUEST))
    await callers.run(member.aclose)


ACTS: list[Act] = [
    *(_call_first, _call_for_an_attempt, _wait_for_another, _retry, _prewarm),
    *(_leave_while_sent, _leave_the_queue, _forbid, _close),
]


@pytest.mark.parametrize("act", ACTS)
async def test_nothing_keeps_the_context_of_a_call_that_has_ended(
    emulator: Emulator, open_member: OpenService, callers: Callers, act: Act
) -> None:
    """An object that only a caller's context held is gone as soon as its call is over."""
    await act(open_member, emulator, callers)
    await callers.assert_gone()


async def test_the_general_way_keeps_no_context_either(
    open_member: OpenService, callers: Callers
) -> None:
    """It is the same where aiobotocore builds each request."""
    member = open_member(pool=PoolPolicy(prepared=False))
    for number in range(2):
        request = TokenRequest(ROOM, f"viewer-{number}")
        await callers.run(partial(member.issue, request, idempotency_key="key"))
    await callers.assert_gone()


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())
@pytest.mark.parametrize("act", [_call_for_an_attempt, _prewarm, _forbid, _close])
async def test_no_task_factory_keeps_the_context_of_a_call(
    emulator: Emulator, open_member: OpenService, callers: Callers, factory: Any, act: Act
) -> None:
    """Whatever makes the tasks of the loop, a caller is gone as soon as its call is over."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        await act(open_member, emulator, callers)
        await callers.assert_gone()
    finally:
        loop.set_task_factory(None)


async def test_an_engine_that_does_not_answer_keeps_no_caller(
    engine_server: EngineServer, open_service: OpenService, callers: Callers
) -> None:
    """A caller leaves its command behind and goes on without the engine; then it is gone."""
    member = open_service(shared=RedisTier(engine_server.url, keys=[SEALING_KEY], timeout=0.2))
    await member.issue(TokenRequest(ROOM, "warm"), fresh=True)
    with engine_server.stopped():
        await callers.run(lambda: member.issue(REQUEST, idempotency_key="key"))
        await callers.assert_gone()
