"""A host whose clock is wrong gets its tokens: requests are signed by AWS's time, once known."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from aioivschat import (
    AccessDenied,
    AsyncTokenService,
    PoolPolicy,
    Quota,
    RetryPolicy,
    TokenRequest,
)
from aioivschat.emulator import Emulator, Fault, FaultKind, QuotaShape, ThreadedEmulatorServer
from support.raw_servers import http, raw_server
from support.services import ROOM, UNLIMITED, local_session, outcomes, until

MINUTES, DAYS = 60.0, 86_400.0
BOTH_WAYS = pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "general"])


@pytest.fixture
def emulator() -> Iterator[ThreadedEmulatorServer]:
    """Run an emulator that checks signatures and refuses nobody else."""
    model = Emulator(quota=QuotaShape("unlimited"))
    with ThreadedEmulatorServer(model, verify_signatures=True) as server:
        yield server


def _open_service(
    url: str, prepared: bool, quota: Quota = UNLIMITED, attempts: int = 1
) -> AsyncTokenService:
    return AsyncTokenService(
        session=local_session(),
        endpoint_url=url,
        quota=quota,
        retry=RetryPolicy(max_attempts=attempts, base_delay=0.001, max_delay=0.001),
        pool=PoolPolicy(prepared=prepared),
    )


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.fault(17)
@BOTH_WAYS
@pytest.mark.parametrize("ahead", [10 * MINUTES, -10 * MINUTES, 3 * DAYS, -3 * DAYS])
async def test_a_wrong_clock_costs_one_request(
    emulator: ThreadedEmulatorServer,
    caplog: pytest.LogCaptureFixture,
    ahead: float,
    prepared: bool,
) -> None:
    """The first is refused and sent again; all later ones are right at once; a warning says why."""
    emulator.emulator.configure(clock_skew=ahead)
    async with _open_service(emulator.url, prepared) as tokens:
        issued = [await tokens.issue(TokenRequest(ROOM, f"u{n}"), fresh=True) for n in range(5)]
        assert 6 == tokens.stats().requests
    assert 5 == len({one.token for one in issued})
    (warning,) = _warnings(caplog)
    side = "behind" if ahead > 0 else "ahead of"
    assert f"{side} AWS's (us-east-1)" in warning
    seconds = float(warning.split(" s ")[0].rpartition(" ")[2])
    assert abs(ahead) == pytest.approx(seconds, abs=5)


@BOTH_WAYS
async def test_calls_that_were_sent_meanwhile_are_sent_once_more_too(
    emulator: ThreadedEmulatorServer, caplog: pytest.LogCaptureFixture, prepared: bool
) -> None:
    """Each of 20 concurrent calls costs two requests at most, each through the limiter."""
    emulator.emulator.configure(clock_skew=10 * MINUTES)
    quota = Quota(rate=1000.0)
    async with _open_service(emulator.url, prepared, quota=quota) as tokens:
        requests = [TokenRequest(ROOM, f"u{n}") for n in range(20)]
        await asyncio.gather(*(tokens.issue(request) for request in requests))
        assert 21 <= tokens.stats().requests <= 40
    assert 1 == len(_warnings(caplog))


@BOTH_WAYS
async def test_each_change_of_the_clock_is_followed(
    emulator: ThreadedEmulatorServer, caplog: pytest.LogCaptureFixture, prepared: bool
) -> None:
    """A clock that goes wrong while the client is open, and is set right later, costs one each."""
    async with _open_service(emulator.url, prepared) as tokens:
        for ahead in (0.0, 0.0, 20 * MINUTES, -20 * MINUTES, 0.0):
            emulator.emulator.configure(clock_skew=ahead)
            for _ in range(2):
                await tokens.issue(TokenRequest(ROOM, "u"), fresh=True)
        assert 10 + 3 == tokens.stats().requests
    assert 3 == len(_warnings(caplog))


@BOTH_WAYS
@pytest.mark.parametrize("date", ["now", "X: no date", "Date: today"])
async def test_a_bad_signature_with_a_right_clock_is_an_error_at_once(
    caplog: pytest.LogCaptureFixture, date: str, prepared: bool
) -> None:
    """The clock is blamed only where the answer's ``Date`` says so."""
    body = b'{"__type":"InvalidSignatureException","message":"no"}'
    answer = http(body, status="403 Forbidden")
    own = b"Date: Mon, 05 Jan 2099 10:00:00 GMT\r\n"
    async with raw_server() as server, _open_service(server.url, prepared) as tokens:
        for _ in range(2):
            await tokens.issue(TokenRequest(ROOM, "u"), fresh=True)
        line = f"Date: {formatdate(usegmt=True)}" if date == "now" else date
        server.answer = answer.replace(own, f"{line}\r\n".encode())
        for _ in range(2):
            with pytest.raises(AccessDenied):
                await tokens.issue(TokenRequest(ROOM, "u"), fresh=True)
        assert 4 == len(server.seen)
    assert [] == _warnings(caplog)


@BOTH_WAYS
async def test_what_is_refused_all_the_same_is_an_error(
    caplog: pytest.LogCaptureFixture, prepared: bool
) -> None:
    """A server that refuses whatever the time is asked once more, not for ever."""
    body = b'{"__type":"RequestTimeTooSkewed","message":"no"}'
    async with (
        raw_server(http(body, status="403 Forbidden")) as server,
        _open_service(server.url, prepared) as tokens,
    ):
        for sent in (2, 3):
            with pytest.raises(AccessDenied):
                await tokens.issue(TokenRequest(ROOM, "u"), fresh=True)
            assert sent == len(server.seen)
    assert 1 == len(_warnings(caplog))


@BOTH_WAYS
@pytest.mark.parametrize("kind", [FaultKind.THROTTLE_JSON, FaultKind.ERROR_500, FaultKind.RESET])
async def test_a_retry_may_be_the_first_to_find_the_clock_wrong(
    emulator: ThreadedEmulatorServer, kind: FaultKind, prepared: bool
) -> None:
    """What is refused for another reason at first, and then for its time, is sent once more."""
    emulator.emulator.configure(clock_skew=10 * MINUTES)
    emulator.emulator.fail_next(Fault(kind))
    async with _open_service(emulator.url, prepared, attempts=2) as tokens:
        assert (await tokens.issue(TokenRequest(ROOM, "u"))).token
        assert 3 == tokens.stats().requests


@BOTH_WAYS
async def test_nothing_is_sent_again_for_a_caller_who_has_left(
    emulator: ThreadedEmulatorServer, prepared: bool
) -> None:
    """The clock is corrected all the same."""
    emulator.emulator.configure(clock_skew=10 * MINUTES, latency=0.1)
    async with _open_service(emulator.url, prepared) as tokens:
        call = asyncio.create_task(tokens.issue(TokenRequest(ROOM, "u")))
        await until(lambda: tokens.stats().requests == 1)
        call.cancel()
        await until(lambda: not tokens.stats().flights)
        assert 1 == tokens.stats().requests
        await tokens.issue(TokenRequest(ROOM, "u"))
        assert 2 == tokens.stats().requests


@BOTH_WAYS
async def test_nothing_is_sent_again_while_the_service_closes(
    emulator: ThreadedEmulatorServer, prepared: bool
) -> None:
    """As with retries: the refusal is the outcome."""
    emulator.emulator.configure(clock_skew=10 * MINUTES, latency=0.1)
    tokens = _open_service(emulator.url, prepared)
    call = asyncio.create_task(tokens.issue(TokenRequest(ROOM, "u")))
    await until(lambda: tokens.stats().requests == 1)
    await tokens.aclose()
    assert [AccessDenied] == [type(error) for error in await outcomes(call)]
    assert 1 == tokens.stats().requests
