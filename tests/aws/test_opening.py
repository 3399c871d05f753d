"""Opening a client: work of the pool's own, joined by whoever needs it, and nothing left behind."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from aiobotocore.session import AioSession

from aioivschat import (
    AsyncTokenService,
    ChatToken,
    DeadlineExceeded,
    Interrupted,
    InvalidConfiguration,
    PoolPolicy,
    Prewarmed,
    Quota,
    ServiceClosed,
    TokenRequest,
)
from support.services import ROOM, bare_session, outcomes
from support.virtual import VirtualClock, settle, virtual_time

REQUEST = TokenRequest(ROOM, "u")
ELSEWHERE = TokenRequest(ROOM.replace("us-east-1", "eu-central-1"), "u")


class Clients:
    """Clients that mint in this process, and what came of opening them.

    Attributes:
        begun: the regions whose opening began, in order.
        open: the regions of those that are open now.
        clock: of all.
    """

    def __init__(self, *openings: Callable[[], Awaitable[object]]) -> None:
        """Take what each opening waits for; the last one holds for the rest too."""
        self.begun: list[str] = []
        self.open: list[str] = []
        self.clock = VirtualClock()
        self._openings = openings

    @asynccontextmanager
    async def create(
        self, *_: object, region_name: str, endpoint_url: str, **__: object
    ) -> AsyncIterator[SimpleNamespace]:
        """Open a client, as a session does."""
        opening = self._openings[min(len(self.begun), len(self._openings) - 1)]
        self.begun.append(region_name)
        await opening()
        self.open.append(region_name)
        try:
            yield SimpleNamespace(
                meta=SimpleNamespace(endpoint_url=endpoint_url),
                create_chat_token=self._create_chat_token,
            )
        finally:
            self.open.remove(region_name)

    def service(self) -> AsyncTokenService:
        """Return a service with these clients."""
        session = AioSession()
        vars(session)["create_client"] = self.create
        return AsyncTokenService(
            session=session,
            endpoint_url="http://127.0.0.1",
            quota=Quota(rate=10_000.0),
            pool=PoolPolicy(prepared=False),
            clock=self.clock,
        )

    async def _create_chat_token(self, **asked: Any) -> dict[str, Any]:
        end = datetime.fromtimestamp(self.clock.wall() + 60, UTC)
        return {"token": asked["userId"], "tokenExpirationTime": end, "sessionExpirationTime": end}


def takes(seconds: float) -> Callable[[], Awaitable[object]]:
    """Return an opening that takes so long."""
    return lambda: asyncio.sleep(seconds)


async def cannot() -> None:
    """Fail to open."""
    raise LookupError("no such profile")


def _root_of(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


async def deaf() -> None:
    """Take 100 s to open, whoever cancels."""
    loop = asyncio.get_running_loop()
    until = loop.time() + 100.0
    while (left := until - loop.time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue


@pytest.mark.fault(34)
@virtual_time
async def test_opening_goes_on_when_all_who_need_it_have_left() -> None:
    """Each has less time than it takes: it is begun once, and whoever comes later is served."""
    clients = Clients(takes(1.5))
    async with clients.service() as tokens:
        for _ in range(2):
            results = await outcomes(*(tokens.issue(REQUEST, timeout=0.7) for _ in range(3)))
            assert [DeadlineExceeded] * 3 == [type(result) for result in results]
        started = asyncio.get_running_loop().time()
        assert (await tokens.issue(REQUEST, timeout=0.7)).token
        assert asyncio.get_running_loop().time() - started < 0.2
        assert ["us-east-1"] == clients.begun
    assert [] == clients.open


@pytest.mark.fault(34)
@virtual_time
async def test_opening_goes_on_for_a_prewarming_that_was_cancelled() -> None:
    """The client is there for the first call."""
    clients = Clients(takes(1.5))
    async with clients.service() as tokens:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await tokens.prewarm([REQUEST])
        await asyncio.sleep(1.0)
        assert (["us-east-1"], ["us-east-1"]) == (clients.begun, clients.open)


@virtual_time
async def test_clients_are_opened_one_after_the_other() -> None:
    """A session is not made for two at a time; each region is opened once."""
    clients = Clients(takes(1.0))
    async with clients.service() as tokens:
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(tokens.issue(one) for one in (REQUEST, ELSEWHERE) * 2))
        assert 2.0 == asyncio.get_running_loop().time() - started
        assert ["us-east-1", "eu-central-1"] == clients.begun


@virtual_time
async def test_who_waits_gets_a_copy_of_what_went_wrong_and_the_next_tries_again() -> None:
    """One attempt for all who wait; its error names its cause, and gathers no tracebacks."""
    clients = Clients(cannot, takes(0.0))
    async with clients.service() as tokens:
        results = await outcomes(*(tokens.issue(REQUEST) for _ in range(3)))
        assert [LookupError] * 3 == [type(result) for result in results]
        assert 3 == len({id(result) for result in results})
        roots = [_root_of(result) for result in results]
        assert 1 == len({id(root) for root in roots})
        assert "cannot" == traceback.extract_tb(roots[0].__traceback__)[-1].name
        assert 1 == len(clients.begun)
        assert (await tokens.issue(REQUEST)).token


@virtual_time
async def test_a_failure_that_nobody_waits_for_is_not_reported() -> None:
    """asyncio would, of a task whose exception nobody looked at; that is an error here."""

    async def fail_late() -> None:
        await asyncio.sleep(1.0)
        await cannot()

    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    clients = Clients(fail_late)
    async with clients.service() as tokens:
        with pytest.raises(DeadlineExceeded):
            await tokens.issue(REQUEST, timeout=0.5)
        await asyncio.sleep(1.0)
    assert [] == complaints


@virtual_time
async def test_an_opening_that_never_ends_is_given_up() -> None:
    """After a minute its callers are told, and the next one opens a client."""
    clients = Clients(takes(1e6), takes(0.0))
    async with clients.service() as tokens:
        started = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded, match="60 s"):
            await tokens.issue(REQUEST)
        assert 60.0 == asyncio.get_running_loop().time() - started
        assert (await tokens.issue(REQUEST)).token


@virtual_time
async def test_an_opening_cancelled_from_outside_is_told_as_such() -> None:
    """By nobody's call and not by closing: the service is open, and the next call opens it."""
    clients = Clients(takes(1.0))
    async with clients.service() as tokens:
        before = asyncio.all_tasks()
        calls = [asyncio.create_task(tokens.issue(REQUEST)) for _ in range(2)]
        ahead = asyncio.create_task(tokens.prewarm([REQUEST]))
        await settle()
        for task in asyncio.all_tasks() - before - {*calls, ahead}:
            if "_open" in repr(task):
                task.cancel()
        assert [Interrupted] * 2 == [type(result) for result in await outcomes(*calls)]
        assert Prewarmed(minted=0, failed={"Interrupted": 1}) == await ahead
        assert (await tokens.issue(REQUEST)).token


@pytest.mark.fault(34)
@virtual_time
async def test_closing_ends_an_opening_and_whoever_waits_for_it() -> None:
    """At once, though the opening would take longer than the grace."""
    clients = Clients(takes(100.0))
    tokens, started = clients.service(), asyncio.get_running_loop().time()
    calls = [asyncio.create_task(tokens.issue(one)) for one in (REQUEST, REQUEST, ELSEWHERE)]
    ahead = asyncio.create_task(tokens.prewarm([REQUEST]))
    await settle()
    await tokens.aclose()
    assert started == asyncio.get_running_loop().time()
    assert all(call.done() for call in calls)
    results = await outcomes(*calls, ahead)
    assert [ServiceClosed] * 4 == [type(result) for result in results]
    assert [] == clients.open


@pytest.mark.fault(34)
@virtual_time
async def test_a_client_that_comes_after_closing_is_closed() -> None:
    """Some credentials come whoever cancels; closing does not wait for them."""
    clients = Clients(deaf)
    tokens, started = clients.service(), asyncio.get_running_loop().time()
    call = asyncio.create_task(tokens.issue(REQUEST))
    await settle()
    await tokens.aclose()
    assert asyncio.get_running_loop().time() - started < 10.0
    assert call.done()
    assert isinstance(call.exception(), ServiceClosed)
    await asyncio.sleep(100.0)
    assert (["us-east-1"], []) == (clients.begun, clients.open)


@pytest.mark.fault(34)
@pytest.mark.parametrize(
    ("name", "value", "opens"),
    [
        ("AWS_ENDPOINT_URL_IVSCHAT", "http://ivschat.example.com", 0),
        ("AWS_CA_BUNDLE", "/missing.example.com", 3),
    ],
)
async def test_a_client_that_cannot_be_used_is_closed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, opens: int
) -> None:
    """An endpoint in the clear opens none; without a file that it needs, none is left."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_IVSCHAT", "https://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    session: Any = bare_session("testing", "testing")
    create, opened, closed = session.create_client, list[Any](), list[Any]()

    @asynccontextmanager
    async def counted(*args: Any, **options: Any) -> AsyncIterator[Any]:
        async with create(*args, **options) as client:
            opened.append(client)
            try:
                yield client
            finally:
                closed.append(client)

    session.create_client = counted
    async with AsyncTokenService(session=session) as tokens:
        for _ in range(3):
            with pytest.raises(InvalidConfiguration, match=r"\.example\.com"):
                await tokens.issue(REQUEST)
        assert opens == len(opened) == len(closed)


@virtual_time
async def test_calls_of_one_moment_open_one_client() -> None:
    """Those that come while it is being opened wait for it."""
    clients = Clients(takes(1.0))
    async with clients.service() as tokens:
        users = [f"u{number}" for number in range(5)]
        got = await asyncio.gather(*(tokens.issue(TokenRequest(ROOM, user)) for user in users))
        assert all(isinstance(token, ChatToken) for token in got)
        assert users == [token.token for token in got]
        assert ["us-east-1"] == clients.begun == clients.open
