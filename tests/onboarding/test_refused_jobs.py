"""Jobs that are refused: a room, or all of them, after a handful of requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest

from aioivschat import (
    AccessDenied,
    ConnectionFailed,
    Prewarmed,
    RetryPolicy,
    TokenRequest,
)
from aioivschat.emulator import Emulator, Fault, FaultKind, ThreadedEmulatorServer
from aioivschat.onboarding import Outcome, onboard, onboard_in_batches
from support.services import ROOM, OpenService, until

QUICK = RetryPolicy(max_attempts=2, base_delay=0.001, max_delay=0.001)
HANDFUL = 5
OTHER = ROOM.replace("AbCdEfGhIjKl", "Other")


@pytest.fixture
def emulator(ivschat_emulator: ThreadedEmulatorServer) -> Emulator:
    """The model of the emulator that is served, which is as fast as the services here are."""
    ivschat_emulator.emulator.configure(quota="unlimited")
    return ivschat_emulator.emulator


def guests(count: int, *rooms: str) -> Iterator[TokenRequest]:
    """Return a request for each of so many, for each of the rooms in turn."""
    places = rooms or (ROOM,)
    return (TokenRequest(places[n % len(places)], f"u{n}") for n in range(count))


def deny(emulator: Emulator, times: int | None = None) -> None:
    """Have requests denied."""
    emulator.fail_next(Fault(FaultKind.ACCESS_DENIED, times=times))


def names(outcomes: list[Outcome]) -> Counter[str]:
    """Return how many ended with which error."""
    return Counter(type(each.error).__name__ for each in outcomes)


@pytest.mark.fault(40)
async def test_a_refused_room_costs_a_handful_of_requests(
    emulator: Emulator, open_service: OpenService
) -> None:
    """Each of its attendees has the error, of which each has a copy."""
    deny(emulator)
    got = [each async for each in onboard(open_service(), guests(1_000))]
    assert {"AccessDenied": 1_000} == names(got)
    assert HANDFUL == emulator.counts().requests
    assert 1_000 == len({id(each.error) for each in got})
    assert 1_000 == len({each.attendee.line for each in got})


@pytest.mark.fault(40)
async def test_other_rooms_go_on(emulator: Emulator, open_service: OpenService) -> None:
    """A room that does not exist costs a handful too, and nobody else a token."""
    emulator.configure(any_room=False)
    room = emulator.create_room(region="us-east-1")["arn"]
    got = [each async for each in onboard(open_service(), guests(400, ROOM, room), in_flight=10)]
    assert {"ResourceNotFound": 200, "NoneType": 200} == names(got)
    assert all((each.token is None) == (each.request.room == ROOM) for each in got if each.request)
    # What was under way when the fifth was refused.
    assert emulator.counts().requests <= 200 + HANDFUL + 10


@pytest.mark.fault(40)
@pytest.mark.parametrize("kind", [FaultKind.BAD_SIGNATURE, FaultKind.PENDING_VERIFICATION])
async def test_a_refused_account_ends_the_job_at_once(
    emulator: Emulator, open_service: OpenService, kind: FaultKind
) -> None:
    """It is raised, and nobody has an outcome who was refused for it."""
    tokens = open_service()
    got: list[Outcome] = []
    with pytest.raises(AccessDenied if kind is FaultKind.BAD_SIGNATURE else Exception) as caught:
        async for outcome in onboard(tokens, guests(1_000), in_flight=10):
            got.append(outcome)
            if len(got) == 20:
                emulator.fail_next(Fault(kind, times=None))
    assert "account" == getattr(caught.value, "scope", None)
    assert {"NoneType"} == set(names(got))
    counts = emulator.counts()
    assert counts.requests - counts.minted <= 10
    await until(lambda: not tokens.stats().flights)


@pytest.mark.fault(40)
async def test_a_slow_consumer_does_not_keep_a_refused_job_going(
    emulator: Emulator, open_service: OpenService
) -> None:
    """The calls under way end when the refusal comes, not when outcomes are taken again."""
    tokens = open_service()
    batches = onboard_in_batches(tokens, guests(1_000), in_flight=100)
    await anext(batches)
    deny_all = Fault(FaultKind.BAD_SIGNATURE, times=None)
    emulator.fail_next(deny_all)
    await until(lambda: not tokens.stats().flights)
    with pytest.raises(AccessDenied):
        async for _ in batches:
            emulator.fail_next(deny_all)


@pytest.mark.fault(40)
async def test_several_refused_rooms_end_the_job(
    emulator: Emulator, open_service: OpenService
) -> None:
    """Nothing was served meanwhile: it is the account."""
    deny(emulator)
    rooms = [f"{ROOM}{number}" for number in range(100)]
    with pytest.raises(AccessDenied):
        async for _ in onboard(open_service(), guests(1_000, *rooms)):
            pass
    assert HANDFUL == emulator.counts().requests


@pytest.mark.fault(40)
async def test_an_upstream_that_is_away_ends_the_job(
    emulator: Emulator, open_service: OpenService
) -> None:
    """After a handful of calls in a row whose retries have failed: the others stay undone."""
    emulator.fail_next(Fault(FaultKind.RESET, times=None))
    got = 0
    with pytest.raises(ConnectionFailed):
        async for _ in onboard(open_service(retry=QUICK), guests(1_000)):
            got += 1
    assert got < HANDFUL
    assert emulator.counts().requests <= 2 * HANDFUL


@pytest.mark.fault(40)
async def test_single_refusals_end_nothing(emulator: Emulator, open_service: OpenService) -> None:
    """Each is an outcome, and all others get their tokens."""
    tokens = open_service(retry=QUICK)
    got: list[Outcome] = []
    async for outcome in onboard(tokens, guests(300), in_flight=4):
        got.append(outcome)
        if len(got) % 50 == 0:
            deny(emulator, times=1)
    assert {"NoneType", "AccessDenied"} == set(names(got))
    assert names(got)["AccessDenied"] <= 6
    assert 300 == len(got)


@pytest.mark.fault(40)
async def test_a_slow_start_waits_for_no_answer_for_long(
    emulator: Emulator, open_service: OpenService
) -> None:
    """A handful of requests goes first; without an answer to them, the others follow."""
    emulator.configure(latency=60.0)
    tokens = open_service()
    batches = onboard_in_batches(tokens, guests(50), in_flight=20)
    waiting = asyncio.create_task(anext(batches))
    await until(lambda: tokens.stats().flights == 20)
    waiting.cancel()
    await asyncio.wait((waiting,))
    await batches.aclose()
    emulator.configure(latency=0.0)


@pytest.mark.fault(40)
@pytest.mark.parametrize("doors", [None, 3.0])
async def test_prewarming_a_refused_room_costs_a_handful(
    emulator: Emulator, open_service: OpenService, doors: float | None
) -> None:
    """The rest is left out."""
    deny(emulator)
    tokens = open_service()
    result = await tokens.prewarm(list(guests(2_000)), doors=doors)
    assert Prewarmed(0, {"AccessDenied": HANDFUL}, 0, 2_000 - HANDFUL) == result
    assert HANDFUL == emulator.counts().requests


@pytest.mark.fault(40)
async def test_prewarming_goes_on_in_other_rooms(
    emulator: Emulator, open_service: OpenService
) -> None:
    """Each request is counted once."""
    emulator.configure(any_room=False)
    room = emulator.create_room(region="us-east-1")["arn"]
    result = await open_service().prewarm(list(guests(400, ROOM, room)))
    assert (200, 200) == (result.minted, result.left_out + sum(result.failed.values()))
    assert result.failed["ResourceNotFound"] < 100


@pytest.mark.fault(40)
async def test_prewarming_a_refused_account_ends_everywhere(
    emulator: Emulator, open_service: OpenService
) -> None:
    """In other regions too, and for requests that are still to be read."""
    elsewhere = ROOM.replace("us-east-1", "eu-west-1")

    async def requests() -> AsyncIterator[TokenRequest]:
        for request in guests(2_000, ROOM, elsewhere):
            yield request

    emulator.fail_next(Fault(FaultKind.BAD_SIGNATURE, times=None))
    result = await open_service().prewarm(requests())
    assert 2_000 == result.left_out + sum(result.failed.values())
    assert emulator.counts().requests <= 2 * HANDFUL
