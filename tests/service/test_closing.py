"""Closing, and what must not be left behind."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import pytest

from aioivschat import (
    AsyncTokenService,
    ChatToken,
    Quota,
    RetryPolicy,
    ServiceClosed,
    TokenRequest,
    WrongLoop,
)
from aioivschat.emulator import Emulator, Fault, FaultKind, ThreadedEmulatorServer
from support.services import ROOM, OpenService, local_session, outcomes, until

REQUEST = TokenRequest(ROOM, "u")


@pytest.fixture
def emulator(ivschat_emulator: ThreadedEmulatorServer) -> Emulator:
    """The model behind the server."""
    return ivschat_emulator.emulator


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _make(server: ThreadedEmulatorServer, quota: Quota | None = None) -> AsyncTokenService:
    return AsyncTokenService(
        session=local_session(), endpoint_url=server.url, quota=quota or Quota()
    )


@pytest.mark.fault(20)
async def test_closing_settles_a_thousand_calls_within_the_grace(
    ivschat_emulator: ThreadedEmulatorServer,
) -> None:
    """Sent ones come home, queued ones are refused; nothing is left."""
    ivschat_emulator.emulator.configure(latency=0.2)
    tasks, files = len(asyncio.all_tasks()), _open_files()
    tokens = _make(ivschat_emulator)
    calls = [
        asyncio.create_task(tokens.issue(TokenRequest(ROOM, f"u{number}")))
        for number in range(1000)
    ]
    await until(lambda: tokens.stats().requests >= 5)
    await tokens.aclose(grace=30.0)
    got = await outcomes(*calls)
    kinds = {type(result) for result in got}
    assert {ChatToken, ServiceClosed} == kinds
    assert ivschat_emulator.emulator.counts().minted == sum(
        isinstance(result, ChatToken) for result in got
    )
    assert tasks == len(asyncio.all_tasks())
    # The server's ends are in this process too, and close on its own thread.
    await until(lambda: _open_files() <= files)


@pytest.mark.fault(20)
async def test_what_does_not_come_home_in_time_is_ended(
    emulator: Emulator, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A black hole does not hold up closing beyond the grace."""
    emulator.fail_next(Fault(FaultKind.BLACK_HOLE, times=None))
    tokens = _make(ivschat_emulator)
    call = asyncio.create_task(tokens.issue(REQUEST))
    await until(lambda: emulator.counts().requests == 1)
    await tokens.aclose(grace=0.05)
    with pytest.raises(ServiceClosed):
        await call
    assert 1 == emulator.counts().requests


@pytest.mark.fault(20)
async def test_a_call_that_would_retry_ends_when_the_service_closes(
    emulator: Emulator, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """In its delay before the next attempt it is refused at once."""
    emulator.fail_next(Fault(FaultKind.ERROR_500, times=None))
    tokens = AsyncTokenService(
        session=local_session(),
        endpoint_url=ivschat_emulator.url,
        retry=RetryPolicy(base_delay=1000.0, max_delay=1000.0),
    )
    call = asyncio.create_task(tokens.issue(REQUEST))
    await until(lambda: tokens.stats().failed == 1)
    await tokens.aclose(grace=60.0)
    with pytest.raises(ServiceClosed):
        await call


@pytest.mark.fault(20)
async def test_closing_twice_is_fine_and_use_afterwards_is_an_error(
    open_service: OpenService,
) -> None:
    """At once and clear, for every call."""
    tokens = open_service()
    await tokens.issue(REQUEST)
    await asyncio.gather(tokens.aclose(), tokens.aclose())
    await tokens.aclose()
    for call in (
        tokens.issue(REQUEST),
        tokens.create_chat_token(roomIdentifier=ROOM, userId="u"),
        tokens.prewarm([REQUEST]),
    ):
        with pytest.raises(ServiceClosed):
            await call
    with pytest.raises(ServiceClosed):
        async with tokens:
            pass
    assert "closed" in repr(tokens)


@pytest.mark.fault(20)
async def test_another_loop_is_an_error(open_service: OpenService) -> None:
    """A service belongs to the loop it was first used on."""
    tokens = open_service()
    await tokens.issue(REQUEST)

    async def elsewhere() -> None:
        with pytest.raises(WrongLoop, match="event loop"):
            await tokens.issue(REQUEST)
        with pytest.raises(WrongLoop, match="event loop"):
            await tokens.aclose()

    await asyncio.to_thread(asyncio.run, elsewhere())


@pytest.mark.fault(20)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_another_process_is_an_error(open_service: OpenService) -> None:
    """After a fork the child must open its own: the sockets are the parent's."""
    tokens = open_service()
    await tokens.issue(REQUEST)
    child = os.fork()
    if child == 0:  # runs no further than this block, and cannot fail the parent's assertions
        status = 1
        try:
            asyncio.run(tokens.issue(REQUEST))
        except WrongLoop as error:
            status = 0 if "process" in str(error) else 2
        finally:
            os._exit(status)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert 0 == os.waitstatus_to_exitcode(status)


async def test_leaving_the_context_with_calls_in_flight(
    ivschat_emulator: ThreadedEmulatorServer,
) -> None:
    """They get their tokens, as they would have a moment later."""
    ivschat_emulator.emulator.configure(latency=0.2)
    async with _make(ivschat_emulator) as tokens:
        call = asyncio.create_task(tokens.issue(REQUEST))
        await until(lambda: tokens.stats().requests == 1)
    assert (await call).token
    assert 0 == tokens.stats().flights


async def test_leaving_the_context_by_an_exception_closes_as_well(
    ivschat_emulator: ThreadedEmulatorServer,
) -> None:
    """The exception goes its way."""
    with pytest.raises(ZeroDivisionError):
        async with _make(ivschat_emulator) as tokens:
            await tokens.issue(REQUEST)
            _ = 1 // 0
    with pytest.raises(ServiceClosed):
        await tokens.issue(REQUEST)


async def test_cancelling_the_closing_does_not_stop_it(
    emulator: Emulator, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Whoever closes may be cancelled; the house is closed all the same."""
    emulator.configure(latency=0.2)
    tokens = _make(ivschat_emulator)
    call = asyncio.create_task(tokens.issue(REQUEST))
    await until(lambda: tokens.stats().requests == 1)
    closing = asyncio.create_task(tokens.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    assert [asyncio.CancelledError] == [type(result) for result in await outcomes(closing)]
    assert (await call).token
    await tokens.aclose()
    assert "closed" in repr(tokens)


async def test_a_service_dropped_without_closing_says_so(
    ivschat_emulator: ThreadedEmulatorServer,
) -> None:
    """A ``ResourceWarning`` names it, and shows nothing secret."""
    tokens = _make(ivschat_emulator)
    await tokens.issue(REQUEST)
    clients = tokens._pool._open_clients
    with pytest.warns(ResourceWarning, match=r"AsyncTokenService open, 0 flights"):
        del tokens
        gc.collect()
    await clients.aclose()


async def test_a_service_that_was_never_used_may_be_dropped(
    ivschat_emulator: ThreadedEmulatorServer,
) -> None:
    """Nothing was opened, so there is nothing to say; warnings are errors here."""
    tokens = _make(ivschat_emulator)
    del tokens
    gc.collect()
