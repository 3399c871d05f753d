"""Admission: a call that cannot be served in time is refused at once."""

from __future__ import annotations

import asyncio

import pytest

from aioivschat import (
    AsyncTokenService,
    ChatToken,
    DeadlineExceeded,
    Overloaded,
    Quota,
    TokenRequest,
)
from aioivschat.emulator import Emulator, Fault, FaultKind, ThreadedEmulatorServer
from support.services import ROOM, OpenService, outcomes, until


@pytest.fixture
def emulator(ivschat_emulator: ThreadedEmulatorServer) -> Emulator:
    """The model behind the server."""
    return ivschat_emulator.emulator


async def _crowd(tokens: AsyncTokenService, size: int) -> list[asyncio.Task[object]]:
    """Make calls that wait for permits which come long after the test."""
    crowd = [
        asyncio.create_task(tokens.issue(TokenRequest(ROOM, f"crowd{number}")))
        for number in range(size + 1)
    ]
    await until(lambda: tokens.stats().waiting == size)
    return [task for task in crowd if not task.done()]


async def _leave(crowd: list[asyncio.Task[object]]) -> None:
    for task in crowd:
        task.cancel()
    await asyncio.wait(crowd)


@pytest.mark.fault(19)
async def test_a_wait_beyond_the_deadline_is_refused_at_once(
    emulator: Emulator, open_service: OpenService
) -> None:
    """``Overloaded`` says when a new call has a chance, and no request is sent."""
    tokens = open_service(quota=Quota(rate=0.01))
    crowd = await _crowd(tokens, 2)
    sent = emulator.counts().requests
    with pytest.raises(Overloaded) as caught:
        await tokens.issue(TokenRequest(ROOM, "u"), timeout=8.0)
    # Two wait before it, for a hundred seconds each; it would have waited for eight.
    assert 280 < caught.value.retry_after < 300
    assert sent == emulator.counts().requests
    assert (1, 2) == (tokens.stats().shed, tokens.stats().waiting)
    await _leave(crowd)


@pytest.mark.fault(19)
async def test_a_full_queue_refuses_at_once(emulator: Emulator, open_service: OpenService) -> None:
    """It does so without a deadline too; when a caller has left, another may wait."""
    tokens = open_service(quota=Quota(rate=0.01, max_waiting=3))
    crowd = await _crowd(tokens, 3)
    sent = emulator.counts().requests
    with pytest.raises(Overloaded) as caught:
        await tokens.issue(TokenRequest(ROOM, "u"))
    assert caught.value.retry_after > 0
    assert sent == emulator.counts().requests
    crowd.pop().cancel()
    await until(lambda: tokens.stats().waiting == 2)
    crowd.append(asyncio.create_task(tokens.issue(TokenRequest(ROOM, "u"))))
    await until(lambda: tokens.stats().waiting == 3)
    await _leave(crowd)


@pytest.mark.fault(19)
async def test_a_call_that_joins_a_flight_too_late_for_it_is_refused(
    open_service: OpenService,
) -> None:
    """The wait that counts is that of the flight which it would join."""
    tokens = open_service(quota=Quota(rate=0.01))
    crowd = await _crowd(tokens, 1)
    with pytest.raises(Overloaded):
        await tokens.issue(TokenRequest(ROOM, "crowd1"), timeout=5.0)
    await _leave(crowd)


async def test_many_calls_in_one_tick_see_each_other(open_service: OpenService) -> None:
    """Calls of the same tick count for each other's wait, so that nobody waits in vain."""
    tokens = open_service(quota=Quota(rate=10.0, burst=1))
    await tokens.issue(TokenRequest(ROOM, "first"))
    results = await asyncio.gather(
        *(tokens.issue(TokenRequest(ROOM, f"u{n}"), timeout=1.05) for n in range(100)),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert 88 <= len(refused) <= 91


async def test_the_deadline_covers_retries(emulator: Emulator, open_service: OpenService) -> None:
    """Requests that hang until the end: the call ends in time with ``DeadlineExceeded``."""
    tokens = open_service()
    await tokens.issue(TokenRequest(ROOM, "somebody"))  # opening a client takes its time
    emulator.fail_next(Fault(FaultKind.BLACK_HOLE, times=None))
    with pytest.raises(DeadlineExceeded) as caught:
        await tokens.issue(TokenRequest(ROOM, "u"), timeout=0.2)
    assert 0.2 == caught.value.timeout


async def test_one_callers_deadline_is_not_anothers(
    emulator: Emulator, open_service: OpenService
) -> None:
    """One of two callers of a flight leaves at its deadline; the other gets the token."""
    emulator.configure(latency=0.4)
    tokens = open_service()
    request = TokenRequest(ROOM, "u")
    patient = asyncio.create_task(tokens.issue(request))
    await until(lambda: tokens.stats().requests == 1)
    with pytest.raises(DeadlineExceeded):
        await tokens.issue(request, timeout=0.01)
    assert (await patient).token
    assert 1 == emulator.counts().requests


async def test_the_most_patient_caller_decides_how_long_a_flight_tries(
    emulator: Emulator, open_service: OpenService
) -> None:
    """The first caller has no time for the retry, and the one that joined has."""
    tokens = open_service()
    await tokens.issue(TokenRequest(ROOM, "somebody"))  # opening a client takes its time
    emulator.fail_next(Fault(FaultKind.ERROR_503, retry_after="1"))
    request = TokenRequest(ROOM, "u")
    impatient, patient = await outcomes(
        tokens.issue(request, timeout=0.5), tokens.issue(request, timeout=60.0)
    )
    assert isinstance(impatient, DeadlineExceeded)
    assert isinstance(patient, ChatToken)
    assert 1 == tokens.stats().joined
