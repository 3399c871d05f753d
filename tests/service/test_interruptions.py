"""What others interrupt: observers that raise anything, and tasks cancelled from outside."""

from __future__ import annotations

import asyncio

import pytest

from aioivschat import (
    ChatToken,
    Event,
    Interrupted,
    Prewarmed,
    Quota,
    RateChanged,
    RetryPolicy,
    ServiceClosed,
    TokenRequest,
)
from support.scripted_aws import ScriptedAws, throttle
from support.services import ROOM, outcomes
from support.virtual import settle, virtual_time

REQUEST = TokenRequest(ROOM, "u")


class Ending(BaseException):
    """What a stranger may raise: no Exception."""


def _other_tasks(*known: asyncio.Task[object]) -> set[asyncio.Task[object]]:
    """Return the tasks that are neither this one nor known."""
    return asyncio.all_tasks() - {asyncio.current_task(), *known}


@pytest.mark.fault(37)
@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, Ending, LookupError])
@virtual_time
async def test_an_observer_may_raise_anything_at_any_event(error: type[BaseException]) -> None:
    """The crowd is in as soon as with one that is quiet, though the pace changes meanwhile."""

    def throttle_some(number: int, _: str) -> object:
        return throttle() if number <= 40 and number % 4 == 0 else None

    async def last_one_in(*, raises: bool) -> float:
        told: list[type[Event]] = []

        def observe(event: Event) -> None:
            told.append(type(event))
            if raises:
                raise error

        aws = ScriptedAws(throttle_some)
        retry = RetryPolicy(base_delay=1e-9, max_delay=1e-9)
        async with aws.service(observers=[observe], quota=Quota(rate=50.0), retry=retry) as tokens:
            started = aws.clock.monotonic()
            crowd = (tokens.issue(TokenRequest(ROOM, f"u{number}")) for number in range(100))
            results = await outcomes(*crowd)
            assert {ChatToken} == {type(result) for result in results}
            assert RateChanged in told
            return aws.clock.monotonic() - started

    async with asyncio.timeout(60):
        assert await last_one_in(raises=True) == pytest.approx(await last_one_in(raises=False))


@pytest.mark.fault(37)
@pytest.mark.parametrize("moment", ["before it runs", "queued", "sent", "asleep"])
@virtual_time
async def test_a_flight_cancelled_from_outside_says_so(moment: str) -> None:
    """Its callers are told what happened; nothing is lost, and the next call is served."""
    aws = ScriptedAws(lambda number, _: throttle(5) if number == 1 else None)
    async with aws.service(quota=Quota(rate=1.0, burst=1)) as tokens:
        if moment == "queued":
            aws.script = lambda number, user: None
            await tokens.issue(TokenRequest(ROOM, "earlier"))
        else:  # the client is open, and a permit is there
            await tokens._pool.open("us-east-1")
        calls = [asyncio.create_task(tokens.issue(REQUEST)) for _ in range(2)]
        await asyncio.sleep(0)
        if moment != "before it runs":
            await settle()
        if moment == "asleep":
            await asyncio.sleep(1.0)
        flights = _other_tasks(*calls)
        assert 1 == len(flights) == tokens.stats().flights
        for flight in flights:
            flight.cancel()
        results = await outcomes(*calls)
        assert [Interrupted] * 2 == [type(result) for result in results]
        assert (0, 0) == (tokens.stats().flights, tokens.stats().waiting)
        aws.script = lambda number, user: None
        assert tokens.estimate(ROOM) <= 1.0  # no permit was lost with it
        async with asyncio.timeout(1.5):
            assert (await tokens.issue(REQUEST)).token


@pytest.mark.fault(37)
@virtual_time
async def test_prewarming_cancelled_from_outside_says_so() -> None:
    """Its flights count as interrupted; without its own task, it raises."""
    aws = ScriptedAws()
    async with aws.service() as tokens:
        await tokens.issue(TokenRequest(ROOM, "earlier"))
        ahead = asyncio.create_task(tokens.prewarm([REQUEST]))
        await settle()
        (flight,) = (task for task in _other_tasks(ahead) if "_bring_token" in repr(task))
        flight.cancel()
        assert Prewarmed(0, {"Interrupted": 1}) == await ahead
        ahead = asyncio.create_task(tokens.prewarm([REQUEST], doors=30.0))
        await settle()
        (run,) = _other_tasks(ahead)
        run.cancel()
        with pytest.raises(Interrupted, match="prewarming was cancelled"):
            await ahead


@pytest.mark.fault(37)
@virtual_time
async def test_a_closing_cancelled_from_outside_says_so_and_can_be_repeated() -> None:
    """The first one raises; the second one closes."""
    aws = ScriptedAws(lambda *_: asyncio.sleep(3.0))
    tokens = aws.service()
    call = asyncio.create_task(tokens.issue(REQUEST))
    await settle()
    before = _other_tasks(call)
    closing = asyncio.create_task(tokens.aclose())
    await settle()
    for task in _other_tasks(call, closing) - before:
        task.cancel()
    with pytest.raises(Interrupted, match="closing"):
        await closing
    with pytest.raises(ServiceClosed):
        await tokens.issue(REQUEST)
    await tokens.aclose()
    assert "closed" in repr(tokens)
    assert (await call).token
