"""The synchronous methods, called from other threads, as frameworks do for ``def`` routes."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest

from aioivschat import (
    AsyncTokenService,
    ChatToken,
    Event,
    Invalidated,
    InvalidRequest,
    ServiceClosed,
    Stats,
    TokenRequest,
    WrongLoop,
)
from aioivschat.emulator import ThreadedEmulatorServer
from support.paths import ROOT as PROJECT
from support.services import ROOM, OpenService, local_session, until

REQUEST = TokenRequest(ROOM, "canary-user")

CALLS: dict[str, Callable[[AsyncTokenService], object]] = {
    "estimate": lambda tokens: tokens.estimate(ROOM),
    "invalidate": lambda tokens: tokens.invalidate(user="canary-user"),
    "ready": lambda tokens: tokens.ready(REQUEST),
    "stats": lambda tokens: tokens.stats(),
}
ANYWHERE = {"invalidate", "stats"}


def _public_methods() -> set[str]:
    members = inspect.getmembers(AsyncTokenService, inspect.isfunction)
    return {
        name
        for name, member in members
        if not name.startswith("_") and not inspect.iscoroutinefunction(member)
    }


def test_every_synchronous_method_is_tried_here_and_told_of_in_the_readme() -> None:
    """The README's table says of each what it does in another thread."""
    assert set(CALLS) == _public_methods()
    readme = (PROJECT / "README.md").read_text()
    table = readme[readme.index("| from another thread |") :]
    rows = table[: table.index("\n\n")].splitlines()[2:]
    told = {row.split("`")[1].split("(")[0]: row for row in rows}
    assert set(CALLS) == set(told)
    assert set(CALLS) - ANYWHERE == {name for name, row in told.items() if "`WrongLoop`" in row}


def _on_a_loop(call: Callable[[AsyncTokenService], object], tokens: AsyncTokenService) -> object:
    async def run() -> object:
        return call(tokens)

    return asyncio.run(run())


def _plainly(call: Callable[[AsyncTokenService], object], tokens: AsyncTokenService) -> object:
    return call(tokens)


@pytest.mark.fault(38)
@pytest.mark.parametrize("way", [_plainly, _on_a_loop], ids=["def", "a loop of its own"])
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_from_another_thread_works_or_says_what_to_do(
    open_service: OpenService, name: str, way: Callable[..., object]
) -> None:
    """`WrongLoop` comes before any effect; a ban holds for all that is asked after it."""
    events: list[Event] = []
    tokens = open_service(observers=[events.append])
    await tokens.issue(REQUEST)
    before, count = tokens.stats(), len(events)
    try:
        result = await asyncio.to_thread(way, CALLS[name], tokens)
    except WrongLoop as error:
        assert name not in ANYWHERE
        assert "async" in str(error) or "open one in each" in str(error)
        assert (before, count) == (tokens.stats(), len(events))
    else:
        assert name in ANYWHERE
        assert isinstance(result, Stats | None)
        assert (name == "invalidate") == (tokens.ready(REQUEST) is None)


@pytest.mark.fault(38)
@pytest.mark.parametrize("name", CALLS)
async def test_a_service_without_a_loop_yet_is_asked_from_a_thread(
    open_service: OpenService, name: str
) -> None:
    """It holds nothing, so there is nothing to forget; the first loop may still have it."""
    tokens = open_service()
    try:
        await asyncio.to_thread(CALLS[name], tokens)
    except WrongLoop:
        assert "ready" == name
    assert (await tokens.issue(REQUEST)).token


@pytest.mark.fault(38)
async def test_a_ban_by_a_thread_fences_what_is_under_way(
    open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Who waited gets the token, and nobody else does."""
    ivschat_emulator.emulator.configure(latency=0.2)
    tokens = open_service()
    waiting = asyncio.create_task(tokens.issue(REQUEST))
    await until(lambda: tokens.stats().requests == 1)
    await asyncio.to_thread(CALLS["invalidate"], tokens)
    after = await tokens.issue(REQUEST)
    assert after.token != (await waiting).token


@pytest.mark.fault(38)
async def test_bans_by_a_thread_while_tokens_are_handed_out(open_service: OpenService) -> None:
    """Thousands, beside calls and counters: no error anywhere, and each ban is told."""
    events: list[Event] = []
    tokens = open_service(observers=[events.append])
    await tokens.issue(REQUEST)

    def ban_many() -> None:
        for number in range(2_000):
            tokens.invalidate(user=f"banned {number}")
            tokens.stats()
            repr(tokens)

    banning = asyncio.create_task(asyncio.to_thread(ban_many))
    number = 0
    while not banning.done():
        number += 1
        elsewhere = ROOM.replace("123456789012", f"{number:012d}")
        tokens.estimate(elsewhere)  # one more limiter to count
        got = await tokens.issue(TokenRequest(ROOM, f"u{number}"))
        assert isinstance(got, ChatToken)
    await banning
    await until(lambda: sum(isinstance(event, Invalidated) for event in events) == 2_000)


@pytest.mark.fault(38)
async def test_bad_arguments_are_told_to_the_thread(open_service: OpenService) -> None:
    """And not to the loop later."""
    tokens = open_service()
    await tokens.issue(REQUEST)
    with pytest.raises(InvalidRequest):
        await asyncio.to_thread(tokens.invalidate, room="lobby")


@pytest.mark.fault(30)
async def test_a_ban_on_its_way_to_the_loop_shows_nobody(
    open_service: OpenService, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when asyncio logs slow callbacks, nor when it fails there."""
    loop = asyncio.get_running_loop()
    tokens = open_service()
    await tokens.issue(REQUEST)
    shown: list[str] = []
    loop.set_exception_handler(lambda _, context: shown.append(repr(context)))
    monkeypatch.setattr(loop, "slow_callback_duration", 0.0)
    loop.set_debug(True)
    try:
        await asyncio.to_thread(CALLS["invalidate"], tokens)
        await asyncio.sleep(0)
    finally:
        loop.set_debug(False)
    assert "run_on_loop" in log.getvalue() or "_without_arguments" in log.getvalue()
    assert "canary-user" not in log.getvalue()
    assert [] == shown


@pytest.mark.fault(38)
def test_a_ban_after_the_loop_is_closed_says_so(
    ivschat_emulator: ThreadedEmulatorServer,
) -> None:
    """A closed service has nothing to forget; one whose loop was closed under it is told."""
    tokens, closed = (
        AsyncTokenService(session=local_session(), endpoint_url=ivschat_emulator.url)
        for _ in range(2)
    )

    async def use() -> None:
        async with closed:
            await closed.issue(REQUEST)
        tokens.estimate(ROOM)
        await tokens.prewarm([])

    asyncio.run(use())
    with pytest.raises(WrongLoop):
        tokens.invalidate(user="canary-user")
    with pytest.raises(ServiceClosed):
        closed.ready(REQUEST)


@pytest.mark.fault(38)
def test_a_loop_that_was_moved_to_a_thread(ivschat_emulator: ThreadedEmulatorServer) -> None:
    """Opened by ``run_until_complete``, then run for ever elsewhere: the ban goes there."""
    loop = asyncio.new_event_loop()
    tokens = AsyncTokenService(session=local_session(), endpoint_url=ivschat_emulator.url)
    loop.run_until_complete(tokens.issue(REQUEST))
    assert 0.0 <= tokens.estimate(ROOM)  # the loop stands still
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:

        def ask(work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result(10)

        tokens.invalidate(user="canary-user")
        assert not ask(tokens.issue(REQUEST)).reused
        with pytest.raises(WrongLoop, match="run_coroutine_threadsafe"):
            tokens.estimate(ROOM)
        ask(tokens.aclose())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
