"""Callers come and go; a flight belongs to none of them."""

from __future__ import annotations

import asyncio
import contextvars
import random
from typing import Any

import pytest

from aioivschat import (
    AccessDenied,
    AsyncTokenService,
    ChatToken,
    Event,
    Quota,
    RetryPolicy,
    TokenRequest,
)
from aioivschat.emulator import Emulator, Fault, FaultKind, ThreadedEmulatorServer
from support.services import ROOM, OpenService, outcomes, until

REQUEST = TokenRequest(ROOM, "u")

# One permit at once, and the next one long after the test.
ONE_AT_ONCE = Quota(rate=0.01)


@pytest.fixture
def emulator(ivschat_emulator: ThreadedEmulatorServer) -> Emulator:
    """The model behind the server."""
    return ivschat_emulator.emulator


async def _in_flight(tokens: AsyncTokenService, callers: int) -> list[asyncio.Task[ChatToken]]:
    """Start callers of one attempt and return when its request is under way."""
    tasks = [
        asyncio.create_task(tokens.issue(REQUEST, idempotency_key="k")) for _ in range(callers)
    ]
    await until(lambda: tokens.stats().requests == 1)
    return tasks


@pytest.mark.fault(1)
@pytest.mark.parametrize("victim", [0, 1, 57, 99])
async def test_a_cancelled_caller_takes_nobody_with_it(
    emulator: Emulator, open_service: OpenService, victim: int
) -> None:
    """100 callers of one attempt, one is cancelled: one request, and 99 get the token."""
    emulator.configure(latency=0.1)
    tokens = open_service()
    before = len(asyncio.all_tasks())
    calls = await _in_flight(tokens, 100)
    calls[victim].cancel()
    got = await outcomes(*calls)
    assert isinstance(got.pop(victim), asyncio.CancelledError)
    assert 1 == len({token.token for token in got})
    assert 1 == emulator.counts().requests
    assert before == len(asyncio.all_tasks())


@pytest.mark.fault(2)
@pytest.mark.parametrize("how", [{"fresh": True}, {"idempotency_key": "another"}, {}])
async def test_a_token_whose_callers_left_becomes_stock(
    emulator: Emulator, open_service: OpenService, how: dict[str, Any]
) -> None:
    """All cancelled after the request was sent: it completes and serves the next call, once."""
    emulator.configure(latency=0.1)
    tokens = open_service()
    for call in await _in_flight(tokens, 100):
        call.cancel()
    await until(lambda: tokens.stats().flights == 0)
    assert 1 == tokens.stats().stock_held
    token = await tokens.issue(REQUEST, **how)
    assert not token.reused
    assert 1 == emulator.counts().requests
    await tokens.issue(REQUEST, fresh=True)
    assert 2 == emulator.counts().requests


@pytest.mark.fault(2)
async def test_a_token_that_was_invalidated_on_its_way_is_no_stock(
    emulator: Emulator, open_service: OpenService
) -> None:
    """It is thrown away, and neither counted nor told of as if somebody could have it."""
    emulator.configure(latency=0.3)
    told: list[str] = []
    tokens = open_service(observers=[lambda event: told.append(type(event).__name__)])
    (call,) = await _in_flight(tokens, 1)
    call.cancel()
    tokens.invalidate(user=REQUEST.user)
    await until(lambda: tokens.stats().flights == 0)
    stats = tokens.stats()
    assert (1, 0, 0) == (stats.minted, stats.stocked, stats.stock_held)
    assert "Stocked" not in told


@pytest.mark.fault(2)
async def test_a_failure_whose_callers_left_is_silent(
    emulator: Emulator, open_service: OpenService
) -> None:
    """Nobody is left to hear of it: no unretrieved exception, no retry, no stock."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    emulator.fail_next(Fault(FaultKind.ERROR_500, times=None, latency=0.1))
    tokens = open_service()
    for call in await _in_flight(tokens, 10):
        call.cancel()
    await until(lambda: tokens.stats().flights == 0)
    assert (1, 0) == (emulator.counts().requests, tokens.stats().stock_held)
    assert [] == complaints


@pytest.mark.fault(2)
async def test_a_place_in_the_queue_is_given_back(
    emulator: Emulator, open_service: OpenService
) -> None:
    """All cancelled while queued at the limiter: no request is sent and nobody waits."""
    tokens = open_service(quota=ONE_AT_ONCE)
    await tokens.issue(TokenRequest(ROOM, "first"))
    calls = [asyncio.create_task(tokens.issue(REQUEST)) for _ in range(10)]
    await until(lambda: tokens.stats().waiting == 1)
    for call in calls:
        call.cancel()
    await outcomes(*calls)
    await until(lambda: tokens.stats().flights == 0)
    assert (1, 0) == (emulator.counts().requests, tokens.stats().waiting)


@pytest.mark.fault(4)
async def test_each_caller_gets_its_own_exception(
    emulator: Emulator, open_service: OpenService
) -> None:
    """100 objects with one cause; the next call tries again."""
    emulator.fail_next(Fault(FaultKind.ACCESS_DENIED, latency=0.1))
    tokens = open_service()
    errors = await outcomes(*await _in_flight(tokens, 100))
    assert 100 == len({id(error) for error in errors})
    assert {AccessDenied.__name__} == {type(error).__name__ for error in errors}
    assert 1 == len({id(error.__cause__) for error in errors})
    assert isinstance(errors[0].__cause__, AccessDenied)
    assert {str(errors[0].__cause__)} == {str(error) for error in errors}
    assert 0 == tokens.stats().flights
    await tokens.issue(REQUEST, idempotency_key="k")
    assert 2 == emulator.counts().requests


@pytest.mark.fault(6)
async def test_a_timeout_around_a_retrying_call_ends_it(
    emulator: Emulator, open_service: OpenService
) -> None:
    """``TimeoutError`` comes from the timeout, and no attempt is made afterwards."""
    # The delay is 844 s with this seed, so that the timeout falls into it.
    retry = RetryPolicy(base_delay=1000.0, max_delay=1000.0)
    tokens = open_service(retry=retry, rng=random.Random(0))
    await tokens.issue(TokenRequest(ROOM, "first"))  # to open a client may take longer
    emulator.fail_next(Fault(FaultKind.THROTTLE_JSON, times=None))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await tokens.issue(REQUEST)
    await until(lambda: tokens.stats().flights == 0)
    assert 2 == emulator.counts().requests


@pytest.mark.fault(6)
async def test_a_short_timeout_does_not_wait_for_the_flight(
    emulator: Emulator, open_service: OpenService
) -> None:
    """The caller is free at once, however long AWS takes."""
    tokens = open_service()
    await tokens.issue(TokenRequest(ROOM, "first"))
    emulator.fail_next(Fault(FaultKind.BLACK_HOLE, times=None))
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await tokens.issue(REQUEST)
    # The black hole would hold it for the read timeout of five seconds.
    assert loop.time() - started < 4.0


@pytest.mark.fault(8)
async def test_a_flight_keeps_its_starters_context_when_the_starter_leaves(
    emulator: Emulator, open_service: OpenService
) -> None:
    """It goes on for who joined, in the context of the caller who started it and was cancelled."""
    user: contextvars.ContextVar[str | None] = contextvars.ContextVar("user", default=None)
    seen: list[str | None] = []

    def observer(event: Event) -> None:
        if type(event).__name__ == "Minted":
            seen.append(user.get())

    tokens = open_service(observers=[observer])

    async def call(name: str) -> None:
        user.set(name)
        await tokens.issue(REQUEST)

    emulator.configure(latency=0.1)
    starter, joiner = asyncio.create_task(call("starter")), asyncio.create_task(call("joiner"))
    await until(lambda: tokens.stats().joined == 1)
    starter.cancel()
    await joiner
    assert ["starter"] == seen
    assert 1 == tokens.stats().requests
