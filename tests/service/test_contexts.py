"""Contexts: a flight runs in a copy of its starter's, and nothing outlives a call in its own."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiobotocore.config import AioConfig

from aioivschat import (
    AsyncTokenService,
    AttemptFailed,
    ChatTokenError,
    Delivered,
    Event,
    Joined,
    Minted,
    PoolPolicy,
    Quota,
    Retrying,
    RetryPolicy,
    TokenRequest,
)
from aioivschat.emulator import Emulator, Fault, FaultKind, ThreadedEmulatorServer
from support.contexts import Callers
from support.endpoint_servers import Serve, serve_aiohttp, serve_starlette
from support.raw_servers import BODY, certificate, http, raw_server, tls
from support.services import ROOM, UNLIMITED, OpenService, local_session, outcomes, until
from support.tasks import FACTORIES

REQUEST = TokenRequest(ROOM, "u")
WARM = [TokenRequest(ROOM, f"warm {number}") for number in range(2)]

QUICK = RetryPolicy(max_attempts=4, base_delay=0.001, max_delay=0.001)

# The delay is 844 s with this seed.
LONG_DELAY: dict[str, Any] = {
    "retry": RetryPolicy(base_delay=1000.0, max_delay=1000.0),
    "rng": random.Random(0),
}

# One permit at once, and the next one long after the test.
ONE_AT_ONCE = Quota(rate=0.01)


@pytest.fixture
def emulator(ivschat_emulator: ThreadedEmulatorServer) -> Emulator:
    """The model behind the server."""
    return ivschat_emulator.emulator


@pytest.fixture(params=[True, False], ids=["direct", "general"])
def pool(request: pytest.FixtureRequest) -> PoolPolicy:
    """One of the two ways."""
    return PoolPolicy(prepared=request.param)


async def _warm_up(tokens: AsyncTokenService) -> None:
    """Open the client and a connection; from here on, requests may go the prepared way."""
    for request in WARM:
        await tokens.issue(request)


# What a caller may do; each ends with the call over and its task forgotten.


async def _call_alone(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    await callers.run(lambda: tokens.issue(REQUEST))


async def _call_again(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    await _warm_up(tokens)
    await callers.run(lambda: tokens.issue(REQUEST))


async def _call_for_a_while(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    await _warm_up(tokens)
    await callers.run(lambda: tokens.issue(REQUEST, timeout=600.0))
    await callers.run(lambda: tokens.issue(REQUEST, idempotency_key="k", timeout=600.0))


async def _join(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    model.configure(latency=0.1)
    calls = [callers.start(lambda: tokens.issue(REQUEST, timeout=600.0)) for _ in range(3)]
    await asyncio.gather(*calls)
    assert 2 == tokens.stats().joined


async def _call_until_a_retry_succeeds(
    tokens: AsyncTokenService, model: Emulator, callers: Callers
) -> None:
    await _warm_up(tokens)
    model.fail_next(Fault(FaultKind.ERROR_500))
    model.fail_next(Fault(FaultKind.RESET))
    await callers.run(lambda: tokens.issue(REQUEST))
    assert 5 == tokens.stats().requests


async def _fail(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    model.fail_next(Fault(FaultKind.ACCESS_DENIED))
    with suppress(ChatTokenError):
        await callers.run(lambda: tokens.issue(REQUEST))
    model.fail_next(Fault(FaultKind.RESET, times=4))
    with suppress(ChatTokenError):
        await callers.run(lambda: tokens.issue(REQUEST))
    assert 5 == tokens.stats().requests


async def _give_up(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    await _warm_up(tokens)
    model.fail_next(Fault(FaultKind.BLACK_HOLE))
    with suppress(ChatTokenError):
        await callers.run(lambda: tokens.issue(REQUEST, timeout=0.1))
    await tokens.aclose(grace=0.0)


async def _leave_while_sent(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    await _warm_up(tokens)
    model.configure(latency=0.1)
    call = callers.start(lambda: tokens.issue(REQUEST))
    await until(lambda: tokens.stats().requests == 3)
    call.cancel()
    await outcomes(call)
    # The stock's sweeper has a timer now.
    await until(lambda: tokens.stats().stock_held == 1)


async def _prewarm(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    await callers.run(lambda: tokens.prewarm([REQUEST, *WARM]))
    assert 3 == tokens.stats().stock_held

    async def arrive() -> AsyncIterator[TokenRequest]:
        yield REQUEST

    # It is done long before its doors.
    await callers.run(lambda: tokens.prewarm(arrive(), doors=1.5))
    assert 4 == tokens.stats().stock_held


async def _leave_prewarming(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    await _warm_up(tokens)
    model.fail_next(Fault(FaultKind.BLACK_HOLE))
    call = callers.start(lambda: tokens.prewarm([REQUEST]))
    await until(lambda: tokens.stats().requests == 3)
    call.cancel()
    await outcomes(call)
    # The flight goes on by itself.
    assert 1 == tokens.stats().flights


async def _take_over(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    model.configure(latency=0.1)
    ahead = callers.start(lambda: tokens.prewarm([REQUEST]))
    await until(lambda: tokens.stats().requests == 1)
    await callers.run(lambda: tokens.issue(REQUEST))
    await ahead
    assert 1 == tokens.stats().requests


async def _take_what_is_there(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    await tokens.prewarm([REQUEST])
    for _ in range(2):
        await callers.run(lambda: tokens.issue(REQUEST))
    await callers.run(lambda: tokens.create_chat_token(roomIdentifier=ROOM, userId="u"))
    assert 1 == tokens.stats().requests


async def _forbid(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    async def invalidate() -> None:
        tokens.invalidate(user="u")

    await tokens.prewarm([REQUEST])
    await callers.run(invalidate)


async def _close(tokens: AsyncTokenService, model: Emulator, callers: Callers) -> None:
    await callers.run(lambda: tokens.issue(REQUEST))
    await callers.run(tokens.aclose)


Action = Callable[[AsyncTokenService, Emulator, Callers], Awaitable[None]]

ACTIONS: list[Action] = [
    *(_call_alone, _call_again, _call_for_a_while, _join, _call_until_a_retry_succeeds),
    *(_fail, _give_up, _leave_while_sent, _prewarm, _leave_prewarming, _take_over),
    *(_take_what_is_there, _forbid, _close),
]


@pytest.mark.parametrize("act", ACTIONS)
async def test_nothing_keeps_the_context_of_a_call_that_has_ended(
    emulator: Emulator,
    open_service: OpenService,
    callers: Callers,
    pool: PoolPolicy,
    act: Action,
) -> None:
    """An object that only a caller's context held is gone as soon as its call is over."""
    tokens = open_service(pool=pool, retry=QUICK)
    await act(tokens, emulator, callers)
    await callers.assert_gone()
    await tokens.aclose(grace=0.0)


async def test_a_caller_who_left_before_a_retry_is_not_kept(
    emulator: Emulator, open_service: OpenService, callers: Callers, pool: PoolPolicy
) -> None:
    """A caller is cancelled while its flight sleeps before a retry, for 844 s: nothing keeps it."""
    told: list[str] = []
    tokens = open_service(
        pool=pool, observers=[lambda event: told.append(type(event).__name__)], **LONG_DELAY
    )
    await _warm_up(tokens)
    emulator.fail_next(Fault(FaultKind.THROTTLE_JSON))

    async def leave() -> None:
        call = callers.start(lambda: tokens.issue(REQUEST))
        await until(lambda: "Retrying" in told)
        call.cancel()
        await outcomes(call)

    await leave()
    await callers.assert_gone()


async def test_a_caller_who_left_the_queue_is_not_kept(
    open_service: OpenService, callers: Callers
) -> None:
    """A limiter's timer that a caller has set, for 100 s, does not keep the caller that left."""
    tokens = open_service(quota=ONE_AT_ONCE)
    await tokens.issue(REQUEST)

    async def leave() -> None:
        calls = [callers.start(lambda: tokens.issue(REQUEST, fresh=True)) for _ in range(2)]
        await until(lambda: tokens.stats().waiting == 2)
        for call in calls:
            call.cancel()
        await outcomes(*calls)

    await leave()
    await callers.assert_gone()


async def test_a_huge_answer_keeps_no_caller(
    open_service: OpenService, callers: Callers, pool: PoolPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of a megabyte, for which reading is paused and resumed, keeps no caller alive."""
    make_session: Any = aiohttp.ClientSession.__init__
    small = functools.partialmethod(make_session, read_bufsize=1024)
    monkeypatch.setattr(aiohttp.ClientSession, "__init__", small)
    huge = BODY[:-1] + b',"more":"' + b"x" * 1_000_000 + b'"}'
    async with raw_server(http(huge)) as server:
        tokens = open_service(endpoint_url=server.url, pool=pool)
        await _warm_up(tokens)
        await callers.run(lambda: tokens.issue(REQUEST))
        await callers.assert_gone()


async def test_tls_keeps_no_caller(
    open_service: OpenService,
    callers: Callers,
    pool: PoolPolicy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the handshake nor the end of a connection keeps the caller that caused it."""
    file = certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    async with raw_server(tls=tls(file)) as server:
        tokens = open_service(endpoint_url=server.url, pool=pool)
        await callers.run(lambda: tokens.issue(REQUEST))
        await callers.run(lambda: tokens.issue(REQUEST, fresh=True))
        server.answer = http(BODY, "Connection: close")
        await callers.run(lambda: tokens.issue(REQUEST, fresh=True))
        await callers.assert_gone()


SIGNALS = (
    *("on_request_start", "on_request_headers_sent", "on_request_chunk_sent"),
    *("on_response_chunk_received", "on_request_end"),
    *("on_connection_create_start", "on_connection_create_end", "on_connection_reuseconn"),
)
"""aiohttp's, of a request that succeeds; those of DNS are left out, as is none for an address."""


def _trace_http(monkeypatch: pytest.MonkeyPatch, note: Callable[[str], object]) -> None:
    """Trace the requests of all new HTTP sessions, as instrumentations of aiohttp do."""
    make_session: Any = aiohttp.ClientSession.__init__

    def signal(name: str) -> Callable[..., Awaitable[None]]:
        async def receive(*_: object) -> None:
            note(name)

        return receive

    @functools.wraps(make_session)
    def make_traced_session(*arguments: Any, **options: Any) -> None:
        config = aiohttp.TraceConfig()
        for name in SIGNALS:
            getattr(config, name).append(signal(name))
        make_session(*arguments, trace_configs=[config], **options)

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", make_traced_session)


async def test_a_connection_that_idled_too_long_keeps_no_caller(
    open_service: OpenService,
    callers: Callers,
    pool: PoolPolicy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller that finds a connection too old to be used, and closes it, is not kept by that."""
    file = certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    made: list[str] = []

    def note(name: str) -> None:
        made.append(name)
        if name == "on_request_start":
            # Idle for too long, and the timer that looks for such has no chance to run.
            time.sleep(0.15)

    _trace_http(monkeypatch, note)
    session: Any = local_session()
    session.set_default_client_config(AioConfig(connector_args={"keepalive_timeout": 0.1}))
    async with raw_server(tls=tls(file)) as server:
        tokens = open_service(endpoint_url=server.url, pool=pool, session=session)
        await _warm_up(tokens)
        await callers.run(lambda: tokens.issue(REQUEST))
        assert "on_connection_reuseconn" not in made
        await callers.assert_gone()


async def test_what_is_made_with_a_client_keeps_no_caller(
    open_service: OpenService, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timers that are set while a client and its HTTP session are made do not keep the caller."""
    timers: list[asyncio.TimerHandle] = []

    def set_timer(**_: object) -> None:
        timers.append(asyncio.get_running_loop().call_later(600.0, lambda: None))

    make_session: Any = aiohttp.ClientSession.__init__

    @functools.wraps(make_session)
    def make_timed_session(*arguments: Any, **options: Any) -> None:
        make_session(*arguments, **options)
        set_timer()

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", make_timed_session)
    session: Any = local_session()
    session.register("creating-client-class.ivschat", set_timer)
    tokens = open_service(session=session)
    await callers.run(lambda: tokens.issue(REQUEST))
    assert 2 == len(timers)
    await callers.assert_gone()


@pytest.mark.parametrize("serve", [serve_aiohttp, serve_starlette], ids=["aiohttp", "starlette"])
async def test_an_endpoint_keeps_no_request_that_waited(
    emulator: Emulator, open_service: OpenService, callers: Callers, serve: Serve
) -> None:
    """What watches the clients of two that wait does not keep the first when it has its token."""

    async def authorize(request: Any, ask: object) -> TokenRequest:
        user: str = request.headers["X-User"]
        if user == "first":
            callers.hold()
        return TokenRequest(ROOM, user)

    tokens = open_service()
    await _warm_up(tokens)
    emulator.configure(latency=0.1)
    async with serve(authorize, tokens) as url, aiohttp.ClientSession() as session:

        async def ask(user: str) -> int:
            # Servers have timers of their own for connections that stay open.
            headers = {"X-User": user, "Connection": "close", "Content-Type": "application/json"}
            async with session.post(url, data=b"{}", headers=headers) as response:
                return response.status

        first = asyncio.create_task(ask("first"))
        await until(lambda: emulator.counts().requests == 3)
        emulator.fail_next(Fault(FaultKind.BLACK_HOLE))
        second = asyncio.create_task(ask("second"))
        await until(lambda: tokens.stats().requests == 4)
        assert 200 == await first
        await callers.assert_gone()
        await tokens.aclose(grace=0.0)
        assert 503 == await second


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())
@pytest.mark.parametrize(
    "act", [_call_for_a_while, _call_until_a_retry_succeeds, _leave_while_sent, _prewarm, _close]
)
async def test_no_task_factory_keeps_the_context_of_a_call(
    emulator: Emulator, open_service: OpenService, callers: Callers, factory: Any, act: Action
) -> None:
    """Whatever makes the tasks of the loop, a caller is gone as soon as its call is over."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        tokens = open_service(retry=QUICK)
        await act(tokens, emulator, callers)
        await callers.assert_gone()
        await tokens.aclose(grace=0.0)
    finally:
        loop.set_task_factory(None)


@pytest.mark.parametrize("act", [_call_for_a_while, _call_until_a_retry_succeeds, _close])
def test_uvloop_keeps_no_caller(ivschat_emulator: ThreadedEmulatorServer, act: Action) -> None:
    """On uvloop, too, a caller is gone as soon as its call is over."""
    uvloop = pytest.importorskip("uvloop", reason="there is none for Windows")

    async def main() -> None:
        callers = Callers()
        async with AsyncTokenService(
            session=local_session(),
            endpoint_url=ivschat_emulator.url,
            quota=UNLIMITED,
            retry=QUICK,
        ) as tokens:
            await act(tokens, ivschat_emulator.emulator, callers)
            await callers.assert_gone()
        callers.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


STAGES = (
    *("provide-client-params", "before-parameter-build", "before-call", "request-created"),
    *("before-sign", "before-send", "before-parse", "response-received", "after-call"),
)
"""Of a call by botocore."""


class Watched:
    """Whose contexts those see who watch flights.

    Attributes:
        user: the caller whose context it is.
        seen: where somebody looked, and whom they saw.
    """

    def __init__(self) -> None:
        self.user: ContextVar[str] = ContextVar("user", default="nobody")
        self.seen: list[tuple[str, str]] = []
        self._left: ContextVar[str | None] = ContextVar("left", default=None)

    def note(self, where: str) -> None:
        """Note whose context this is, and leave something in it."""
        self.seen.append((where, self.user.get()))
        self._left.set(where)

    def listen_to(self, session: Any) -> None:
        """Be called by botocore at each stage of a session's calls."""
        for stage in STAGES:
            listener = functools.partial(lambda where, **_: self.note(where), stage)
            session.register(f"{stage}.ivschat.CreateChatToken", listener)

    def observe(self, event: Event) -> None:
        """Note events of flights, which are observed in them."""
        if isinstance(event, AttemptFailed | Minted | Retrying):
            self.note(type(event).__name__)

    async def call(self, user: str, call: Callable[[], Awaitable[object]]) -> None:
        """Make a call as somebody, in a context of its own, and find nothing left in it."""
        self.user.set(user)
        await call()
        assert (user, None) == (self.user.get(), self._left.get())


@pytest.mark.fault(8)
async def test_a_flight_runs_in_a_copy_of_its_starters_context(
    emulator: Emulator, open_service: OpenService, pool: PoolPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever watches aiohttp or the service sees the caller that a request is sent for first."""
    watched = Watched()
    _trace_http(monkeypatch, watched.note)
    tokens = open_service(pool=pool, observers=[watched.observe])
    emulator.configure(latency=0.1)
    for user in ("one", "another"):
        starting = asyncio.create_task(watched.call(user, lambda: tokens.issue(REQUEST)))
        await until(lambda: tokens.stats().flights == 1)
        joining = watched.call("who joins", lambda: tokens.issue(REQUEST))
        await asyncio.gather(starting, joining)
        seen, watched.seen = watched.seen, []
        assert {user} == {seen_user for _, seen_user in seen}
        assert {"on_request_start", "on_request_end", "Minted"} < {where for where, _ in seen}
        tokens.invalidate(room=ROOM)
    assert (2, 2) == (tokens.stats().joined, tokens.stats().requests)


@pytest.mark.fault(8)
async def test_botocores_listeners_see_the_starters_context(
    emulator: Emulator, open_service: OpenService
) -> None:
    """At each stage of each request, retries included, and nothing of it reaches a caller."""
    watched, session = Watched(), local_session()
    watched.listen_to(session)
    tokens = open_service(session=session, retry=QUICK, observers=[watched.observe])
    await tokens.issue(WARM[0])
    watched.seen.clear()
    emulator.fail_next(Fault(FaultKind.ERROR_500, latency=0.1))
    starting = asyncio.create_task(watched.call("starter", lambda: tokens.issue(REQUEST)))
    await until(lambda: tokens.stats().flights == 1)
    await asyncio.gather(starting, watched.call("who joins", lambda: tokens.issue(REQUEST)))
    assert (1, 3) == (tokens.stats().joined, tokens.stats().requests)
    stages = [where for where, _ in watched.seen]
    assert [*STAGES, "AttemptFailed", "Retrying", *STAGES, "Minted"] == stages
    assert {"starter"} == {user for _, user in watched.seen}


@pytest.mark.fault(8)
async def test_prewarming_runs_in_no_callers_context(open_service: OpenService) -> None:
    """Its tokens are for nobody in particular, so its flights have no caller's values."""
    watched, session = Watched(), local_session()
    watched.listen_to(session)
    tokens = open_service(session=session)
    await watched.call("who prewarms", lambda: tokens.prewarm([REQUEST, *WARM]))
    assert {"nobody"} == {user for _, user in watched.seen}
    assert 3 == tokens.stats().requests


@pytest.mark.fault(8)
async def test_who_joins_is_told_of_in_its_own_context(
    emulator: Emulator, open_service: OpenService
) -> None:
    """An observer can link the trace of who joins to the flight: `Joined` comes in its context."""
    user: ContextVar[str] = ContextVar("user", default="nobody")
    seen: list[tuple[str, str]] = []

    def observer(event: Event) -> None:
        if isinstance(event, Joined | Delivered):
            seen.append((type(event).__name__, user.get()))

    async def call(name: str) -> None:
        user.set(name)
        await tokens.issue(REQUEST)

    emulator.configure(latency=0.1)
    tokens = open_service(observers=[observer])
    starting = asyncio.create_task(call("starter"))
    await until(lambda: tokens.stats().flights == 1)
    await asyncio.gather(starting, call("who joins"))
    delivered = {("Delivered", "starter"), ("Delivered", "who joins")}
    assert ("Joined", "who joins") == seen[0]
    assert delivered == set(seen[1:])
