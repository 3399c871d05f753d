"""The life of a token: it is handed out only while it can be used, by every clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aioivschat import (
    CachePolicy,
    Clock,
    Event,
    InvalidConfiguration,
    MalformedResponse,
    Minted,
    RetryPolicy,
    TokenRequest,
)
from aioivschat.emulator import Emulator, ThreadedEmulatorServer
from support.services import ROOM, BentClock, OpenService, until

REQUEST = TokenRequest(ROOM, "u")


@pytest.fixture
def emulator(ivschat_emulator: ThreadedEmulatorServer) -> Emulator:
    """The model behind the server."""
    return ivschat_emulator.emulator


@pytest.mark.fault(15)
async def test_a_token_is_shared_until_its_margin(
    emulator: Emulator, open_service: OpenService
) -> None:
    """With `min_remaining=10` it is handed out until 50 s after the start of its request."""
    clock = BentClock()
    tokens = open_service(clock=clock, cache=CachePolicy(min_remaining=10.0))
    await tokens.issue(REQUEST)
    clock.pass_by(45.0)
    assert (await tokens.issue(REQUEST)).reused
    clock.pass_by(5.0)
    assert not (await tokens.issue(REQUEST)).reused
    assert 2 == emulator.counts().requests


@pytest.mark.fault(15)
async def test_stock_is_handed_out_until_its_margin(
    emulator: Emulator, open_service: OpenService
) -> None:
    """A stocked token that is too old is dropped and counted, and another is minted."""
    clock = BentClock()
    tokens = open_service(clock=clock, cache=CachePolicy(min_remaining=10.0))
    await tokens.prewarm([REQUEST, REQUEST])
    clock.pass_by(45.0)
    await tokens.issue(REQUEST, fresh=True)
    assert 2 == emulator.counts().requests
    clock.pass_by(6.0)
    await tokens.issue(REQUEST, fresh=True)
    assert 3 == emulator.counts().requests
    assert 1 == tokens.stats().expired_unused


@pytest.mark.fault(15)
async def test_life_counts_from_the_start_of_the_request(
    emulator: Emulator, open_service: OpenService
) -> None:
    """The 30 s that the answer took are part of the token's life."""
    clock = BentClock()
    tokens = open_service(clock=clock)
    emulator.configure(latency=0.3)
    call = asyncio.create_task(tokens.issue(REQUEST))
    await until(lambda: tokens.stats().requests == 1)
    clock.pass_by(30.0)
    await call
    clock.pass_by(24.0)
    assert (await tokens.issue(REQUEST)).reused
    clock.pass_by(1.0)
    assert not (await tokens.issue(REQUEST)).reused


@pytest.mark.fault(15)
@pytest.mark.parametrize("margin", [60.0, 61.0, float("nan"), -1.0])
def test_a_margin_that_no_token_can_keep_is_refused(margin: float) -> None:
    """A token lives for 60 s, so no more can remain."""
    with pytest.raises(InvalidConfiguration, match=r"CachePolicy\.min_remaining"):
        CachePolicy(min_remaining=margin)


@pytest.mark.fault(15)
async def test_a_token_that_comes_without_its_margin_is_malformed(
    emulator: Emulator, open_service: OpenService
) -> None:
    """It counts as a failed request, so that retries end as they do for any failure."""
    emulator.configure(token_life=3.0)
    tokens = open_service(
        cache=CachePolicy(min_remaining=10.0),
        retry=RetryPolicy(max_attempts=3, base_delay=0.001, max_delay=0.001),
    )
    with pytest.raises(MalformedResponse, match="too little is left"):
        await tokens.issue(REQUEST)
    assert 3 == emulator.counts().requests


@pytest.mark.fault(15)
async def test_an_upstream_that_takes_too_long_is_not_asked_for_ever(
    emulator: Emulator, open_service: OpenService
) -> None:
    """An answer that is too slow for the margin counts as a failed request."""
    emulator.configure(latency=0.2)
    tokens = open_service(
        cache=CachePolicy(min_remaining=59.9),
        retry=RetryPolicy(max_attempts=3, base_delay=0.001, max_delay=0.001),
    )
    with pytest.raises(MalformedResponse, match="too little is left"):
        await tokens.issue(REQUEST, timeout=60.0)
    assert 3 == emulator.counts().requests


@pytest.mark.fault(16)
@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_a_stepped_wall_clock_lengthens_no_life(
    emulator: Emulator, open_service: OpenService, step: float
) -> None:
    """A step forward may end a life early; a step back leaves the monotonic deadline."""
    clock = BentClock()
    tokens = open_service(clock=clock)
    await tokens.issue(REQUEST)
    clock.stepped += step
    assert (step < 0) == (await tokens.issue(REQUEST)).reused
    clock.pass_by(56.0)
    assert not (await tokens.issue(REQUEST)).reused


@pytest.mark.fault(16)
async def test_a_suspended_host_hands_out_nothing_old(
    emulator: Emulator, open_service: OpenService
) -> None:
    """The monotonic clock missed minutes of suspension, and the wall clock shows them."""
    clock = BentClock()
    tokens = open_service(clock=clock)
    await tokens.issue(REQUEST)
    await tokens.prewarm([TokenRequest(ROOM, "other")])
    clock.stepped += 180.0
    assert not (await tokens.issue(REQUEST)).reused
    await tokens.issue(TokenRequest(ROOM, "other"))
    assert 4 == emulator.counts().requests


@pytest.mark.fault(16)
async def test_a_token_that_died_on_the_way_is_replaced(
    emulator: Emulator, open_service: OpenService
) -> None:
    """The host was suspended while the answer came: the caller gets a second, living token."""
    clock = BentClock()
    tokens = open_service(clock=clock)
    emulator.configure(latency=0.2)
    call = asyncio.create_task(tokens.issue(REQUEST))
    await until(lambda: tokens.stats().requests == 1)
    clock.stepped += 120.0
    token = await call
    assert not token.reused
    assert 2 == emulator.counts().requests
    assert token.token == (await tokens.issue(REQUEST)).token


@pytest.mark.fault(16)
async def test_a_token_that_died_while_its_caller_was_woken_is_replaced(
    emulator: Emulator, open_service: OpenService
) -> None:
    """The host was suspended between the answer and the caller's turn: it gets a second token."""
    clock = BentClock()

    def suspend(event: Event) -> None:
        if isinstance(event, Minted) and emulator.counts().requests == 1:
            clock.pass_by(58.0)

    tokens = open_service(clock=clock, observers=[suspend])
    assert not (await tokens.issue(REQUEST)).reused
    assert 2 == emulator.counts().requests


@pytest.mark.fault(17)
@pytest.mark.parametrize("off", [300.0, -300.0])
@pytest.mark.parametrize("date", ["normal", "absent", "garbled"])
async def test_a_wrong_host_clock_makes_no_storm_and_no_longer_life(
    emulator: Emulator, open_service: OpenService, off: float, date: str
) -> None:
    """A life is expiry minus the answer's own date; without a date it is at most a minute."""
    clock = BentClock()
    # Here AWS's clock is wrong instead of the host's, which makes the same difference. Signatures
    # are not checked here, as botocore corrects its own clock.
    emulator.configure(clock_skew=off, date_header=date)
    quick = RetryPolicy(base_delay=0.001, max_delay=0.001)
    tokens = open_service(clock=clock, retry=quick)
    if date != "normal" and off < 0:
        # Without a date, the expiry seems to have passed: an error after the last retry.
        with pytest.raises(MalformedResponse, match="past"):
            await tokens.issue(REQUEST, timeout=60.0)
        assert tokens.stats().requests <= 12
        return
    for _ in range(100):
        await tokens.issue(REQUEST)
    assert 1 == emulator.counts().requests
    clock.pass_by(56.0)
    assert not (await tokens.issue(REQUEST)).reused


async def test_a_reply_tells_the_times_by_awss_clock(
    emulator: Emulator, open_service: OpenService
) -> None:
    """A reply holds the times that AWS gave, whatever the host's clock says."""
    emulator.configure(clock_skew=300.0)
    tokens, clock = open_service(), Clock()
    reply: dict[str, Any] = await tokens.create_chat_token(roomIdentifier=ROOM, userId="u")
    assert 350 < reply["tokenExpirationTime"].timestamp() - clock.wall() <= 360
