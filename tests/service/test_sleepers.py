"""Flights that sleep before a retry, and callers who have less time than that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aioivschat import (
    DeadlineExceeded,
    Overloaded,
    Prewarmed,
    Priority,
    Quota,
    RetryPolicy,
    Throttled,
    TokenRequest,
)
from support.scripted_aws import LATENCY, Script, ScriptedAws, throttle
from support.services import ROOM, outcomes
from support.virtual import settle, virtual_time

ALICE = TokenRequest(ROOM, "alice")
ASKED = 8  # seconds by Retry-After, fewer than are believed at most


def refuse_first(asked: object = ASKED, status: int = 429) -> ScriptedAws:
    """Return an AWS that refuses the first request."""
    return ScriptedAws(lambda number, _: throttle(asked, status) if number == 1 else None)


@pytest.mark.fault(35)
@pytest.mark.parametrize("how", [{}, {"idempotency_key": "attempt"}], ids=["plain", "keyed"])
@pytest.mark.parametrize("earlier", [{}, {"timeout": 30.0}], ids=["for ever", "30 s"])
@virtual_time
async def test_who_has_less_time_takes_the_sleepers_place(
    how: dict[str, Any], earlier: dict[str, Any]
) -> None:
    """One request at a time, and its token is for those who waited, too."""
    aws = refuse_first()
    async with aws.service() as tokens:
        patient = [asyncio.create_task(tokens.issue(ALICE, **how, **earlier)) for _ in range(2)]
        await asyncio.sleep(1.0)
        started = aws.clock.monotonic()
        token = await tokens.issue(ALICE, timeout=3.0, **how)
        assert aws.clock.monotonic() - started == pytest.approx(LATENCY)
        assert {token.token} == {each.token for each in await asyncio.gather(*patient)}
        assert aws.clock.monotonic() - started == pytest.approx(LATENCY)
        await asyncio.sleep(20.0)
        assert (2, 1) == (aws.requests_for("alice"), aws.at_once["alice"])
        assert 0 == tokens.stats().flights


@pytest.mark.fault(35)
@virtual_time
async def test_who_has_time_enough_joins_the_sleeper() -> None:
    """What the server asked for is kept to."""
    aws = refuse_first()
    async with aws.service() as tokens:
        started = aws.clock.monotonic()
        calls = [asyncio.create_task(tokens.issue(ALICE))]
        await asyncio.sleep(1.0)
        calls.append(asyncio.create_task(tokens.issue(ALICE, timeout=20.0)))
        await asyncio.gather(*calls)
        assert aws.clock.monotonic() - started == pytest.approx(ASKED + 2 * LATENCY)
        assert 2 == len(aws.sent)


@pytest.mark.fault(35)
@virtual_time
async def test_the_place_may_be_taken_again_and_again() -> None:
    """While AWS goes on refusing, each newcomer tries once, and the patient one outlasts them."""
    aws = ScriptedAws(lambda *_: throttle(ASKED))
    async with aws.service() as tokens:
        patient = asyncio.create_task(tokens.issue(ALICE))
        for _ in range(3):
            await asyncio.sleep(0.5)
            (result,) = await outcomes(tokens.issue(ALICE, timeout=1.0))
            assert isinstance(result, DeadlineExceeded | Throttled)
        assert 4 == len(aws.sent)
        aws.script = lambda number, user: None
        assert (await patient).token
        assert (5, 1) == (len(aws.sent), aws.at_once["alice"])


@pytest.mark.fault(35)
@virtual_time
async def test_who_is_refused_leaves_the_sleeper_alone() -> None:
    """A newcomer for whom there is no permit in time takes no place."""
    aws = refuse_first()
    async with aws.service(quota=Quota(rate=1.0, burst=1)) as tokens:
        started = aws.clock.monotonic()
        patient = asyncio.create_task(tokens.issue(ALICE))
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded):
            await tokens.issue(ALICE, timeout=0.5)
        assert (await patient).token
        assert aws.clock.monotonic() - started == pytest.approx(ASKED + 2 * LATENCY)
        assert 2 == len(aws.sent)


@pytest.mark.fault(35)
@pytest.mark.parametrize("how", [{"fresh": True}, {"idempotency_key": "attempt"}, {}])
@virtual_time
async def test_a_caller_takes_the_place_of_a_sleeping_prewarming(how: dict[str, Any]) -> None:
    """It needs no second token then; one who has time takes its flight over, as ever."""
    for timeout, requests, result in (
        (3.0, 2, Prewarmed(0, {}, served=1)),
        (20.0, 2, Prewarmed(1, {})),
    ):
        aws = refuse_first()
        async with aws.service() as tokens:
            ahead = asyncio.create_task(tokens.prewarm([ALICE]))
            await asyncio.sleep(1.0)
            started = aws.clock.monotonic()
            assert (await tokens.issue(ALICE, timeout=timeout, **how)).token
            assert aws.clock.monotonic() - started < timeout
            assert requests == len(aws.sent)
            assert result == await ahead
            assert (0, 1) == (tokens.stats().stock_held, aws.at_once["alice"])


@pytest.mark.fault(35)
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("asked", ["3600", "Fri, 31 Dec 2100 23:59:59 GMT", "9" * 400])
@virtual_time
async def test_no_wait_is_believed_that_this_quota_cannot_need(asked: str, status: int) -> None:
    """More than ten seconds are ten: the quota is whole again after one."""
    aws = refuse_first(asked, status)
    async with aws.service() as tokens:
        started = aws.clock.monotonic()
        assert (await tokens.issue(ALICE)).token
        expected = 10.0 if asked.isdigit() else 0.0  # a date needs one to be compared with
        waited = aws.clock.monotonic() - started - 2 * LATENCY
        assert expected - 1e-6 <= waited <= max(expected, RetryPolicy().max_delay) + 1e-6


@pytest.mark.fault(35)
@virtual_time
async def test_an_urgent_caller_is_not_refused_for_the_queue_of_others() -> None:
    """It makes the flight that it joins as urgent as itself."""
    aws = ScriptedAws()
    async with aws.service(quota=Quota(rate=1.0, burst=1)) as tokens:
        crowd = [
            asyncio.create_task(tokens.issue(TokenRequest(ROOM, f"u{number}")))
            for number in range(20)
        ]
        waiting = asyncio.create_task(tokens.issue(ALICE))
        await settle()
        token = await tokens.issue(ALICE, timeout=3.0, priority=Priority.HIGH)
        assert token.token == (await waiting).token
        for call in crowd:
            call.cancel()


STUCK: dict[str, Script] = {
    "black hole": lambda *_: asyncio.sleep(3600),
    "503": lambda *_: throttle(None, 503),
    "503 with Retry-After": lambda *_: throttle(5, 503),
    "429": lambda *_: throttle(),
    "429 with Retry-After": lambda *_: throttle(3600),
    "slow": lambda *_: asyncio.sleep(4.0),
}


@pytest.mark.fault(36)
@pytest.mark.parametrize("doors", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("kind", STUCK)
@virtual_time
async def test_prewarming_ends_at_its_doors(kind: str, doors: float) -> None:
    """Whatever AWS does: no request is sent after them, and each one is accounted for."""
    aws = ScriptedAws(STUCK[kind])
    requests = [TokenRequest(ROOM, f"u{number}") for number in range(5)]
    async with aws.service(retry=RetryPolicy(max_attempts=1_000)) as tokens:
        opening = aws.clock.monotonic() + doors
        result = await tokens.prewarm(requests, doors=doors)
        assert aws.clock.monotonic() <= opening
        assert 5 == sum(result.failed.values())
        sent = len(aws.sent)
        await asyncio.sleep(10.0)
        assert sent == len(aws.sent)
        late = 5 if kind == "slow" else 0
        assert late == tokens.stats().stock_held
        if kind in ("black hole", "slow"):
            assert {"DeadlineExceeded": 5} == result.failed


@pytest.mark.fault(36)
@virtual_time
async def test_prewarming_ends_at_its_doors_while_its_client_is_opened() -> None:
    """What was not sent is left out, and the opening goes on for the crowd."""
    aws = ScriptedAws()
    aws.opening_takes = 5.0
    async with aws.service() as tokens:
        started = aws.clock.monotonic()
        assert Prewarmed(0, {}, left_out=1) == await tokens.prewarm([ALICE], doors=2.0)
        assert aws.clock.monotonic() - started <= 2.0
        assert (await tokens.issue(ALICE)).token
        assert aws.clock.monotonic() - started == pytest.approx(5.0 + LATENCY, abs=1.1)


@pytest.mark.fault(36)
@virtual_time
async def test_what_a_caller_waits_for_at_the_doors_is_the_callers() -> None:
    """It counts as served, and its flight goes on for him."""
    aws = ScriptedAws(lambda *_: asyncio.sleep(4.0))
    async with aws.service() as tokens:
        ahead = asyncio.create_task(tokens.prewarm([ALICE], doors=2.0))
        await asyncio.sleep(1.5)
        call = asyncio.create_task(tokens.issue(ALICE, fresh=True))
        assert Prewarmed(0, {}, served=1) == await ahead
        assert (await call).token
        assert (1, 0) == (len(aws.sent), tokens.stats().stock_held)
