"""Tokens minted ahead: just in time, within a budget, behind every caller, and none in vain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from aioivschat import (
    AsyncTokenService,
    CachePolicy,
    Event,
    ExpiredUnused,
    InvalidRequest,
    PoolPolicy,
    Prewarmed,
    Quota,
    ServiceClosed,
    Stocked,
    TokenRequest,
)
from aioivschat.planning import LiveEvent, simulate
from support.services import ROOM, bare_session, outcomes
from support.virtual import VirtualClock, settle, virtual_time

PACE = 0.99 * 200  # what the limiter makes of a quota whose shape is unknown
PERMIT = 1 / PACE
LEAD = 1.0  # seconds before the doors by which all is to be sent
LATENCY = 0.02
ELSEWHERE = ROOM.replace("us-east-1", "eu-central-1")


def guests(count: int, room: str = ROOM) -> list[TokenRequest]:
    """Return a request for each of so many."""
    return [TokenRequest(room, f"guest-{number}") for number in range(count)]


class Upstream:
    """Mints in this process, and writes down when for whom.

    Attributes:
        sent: the moment of each request and its user, in order.
        failing: gives the error code for a user, if there is to be one.
        closed: how many clients cannot be opened.
    """

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.sent: list[tuple[float, str]] = []
        self.failing: Callable[[str], str | None] = lambda _: None
        self.closed = 0

    def service(self, **options: Any) -> AsyncTokenService:
        """Return a service whose requests come here."""
        session = bare_session("testing", "testing")
        # Not a subclass: the signature has an overload for every service of AWS.
        vars(session)["create_client"] = self._create_client
        return AsyncTokenService(
            session=session,
            endpoint_url="http://127.0.0.1",
            pool=PoolPolicy(prepared=False),
            clock=self.clock,
            **options,
        )

    @property
    def times(self) -> list[float]:
        """When requests were sent."""
        return [when for when, _ in self.sent]

    @asynccontextmanager
    async def _create_client(self, *_: object, **options: Any) -> AsyncIterator[SimpleNamespace]:
        if self.closed:
            self.closed -= 1
            raise OSError("no client today")
        yield SimpleNamespace(
            meta=SimpleNamespace(endpoint_url=options["endpoint_url"]),
            create_chat_token=self._create_chat_token,
        )

    async def _create_chat_token(self, **asked: Any) -> dict[str, Any]:
        self.sent.append((self.clock.monotonic(), asked["userId"]))
        await asyncio.sleep(LATENCY)
        code = self.failing(asked["userId"])
        if code is not None:
            status = 500 if code == "InternalServerException" else 403
            metadata: Any = {"HTTPStatusCode": status}
            raise ClientError({"Error": {"Code": code}, "ResponseMetadata": metadata}, "it")
        now = datetime.fromtimestamp(self.clock.wall(), UTC)
        return {
            "token": f"token-{len(self.sent)}",
            "tokenExpirationTime": now + timedelta(seconds=60),
            "sessionExpirationTime": now + timedelta(hours=1),
        }


@pytest.fixture
def upstream() -> Upstream:
    """An upstream in this process."""
    return Upstream()


def most_in_a_second(times: list[float]) -> int:
    """Return how many there are in the fullest sliding second."""
    most = first = 0
    for number, when in enumerate(times):
        while times[first] <= when - 1:
            first += 1
        most = max(most, number - first + 1)
    return most


def test_a_crowd_at_the_doors_is_in_within_a_second() -> None:
    """12,000 viewers, 200 a second, 50 s ahead; none of what was minted is left over."""
    outcome = simulate(LiveEvent(12_000, prewarm=50, reconnects=0))
    assert outcome.first_second >= 9_800
    assert (12_000, 0) == (outcome.admitted, outcome.unused)


@pytest.mark.parametrize("kind", ["list", "iterator", "async iterator"])
@virtual_time
async def test_tokens_are_as_young_as_they_can_be(upstream: Upstream, kind: str) -> None:
    """However the requests come: minting ends a second before the doors, at its full pace."""
    requests: Any = guests(1_000)
    if kind == "iterator":
        requests = iter(requests)
    elif kind == "async iterator":
        requests = _as_async(requests)
    async with upstream.service() as tokens:
        doors = upstream.clock.monotonic() + 30
        assert Prewarmed(1_000, {}) == await tokens.prewarm(requests, doors=30)
        assert upstream.times[0] == pytest.approx(doors - LEAD - 1_000 * PERMIT, abs=PERMIT)
        assert upstream.times[-1] == pytest.approx(doors - LEAD, abs=2 * PERMIT)
        assert [request.user for request in guests(1_000)] == [user for _, user in upstream.sent]
        assert 1_000 == tokens.stats().stock_held


async def _as_async(requests: list[TokenRequest]) -> AsyncIterator[TokenRequest]:
    for request in requests:
        yield request


@virtual_time
async def test_those_who_sign_up_late_are_minted_for_as_they_come(upstream: Upstream) -> None:
    """And what comes after the doors is not waited for."""

    async def lobby() -> AsyncIterator[TokenRequest]:
        for request in guests(100):
            await asyncio.sleep(0.1)
            yield request

    async with upstream.service() as tokens:
        doors = upstream.clock.monotonic() + 5
        result = await tokens.prewarm(lobby(), doors=5)
        assert doors == pytest.approx(upstream.clock.monotonic(), abs=LATENCY)
        assert 49 <= result.minted <= 50
        # Those who come before the last second wait for it.
        assert upstream.times[0] >= doors - LEAD - 50 * PERMIT


@virtual_time
async def test_no_more_is_minted_than_will_live(upstream: Upstream) -> None:
    """The last of the list are left out, and told; all others are served a second later."""
    requests = guests(12_000)
    async with upstream.service() as tokens:
        doors = upstream.clock.monotonic() + 70
        result = await tokens.prewarm(requests, doors=70)
        assert upstream.times[0] == pytest.approx(doors - 54, abs=PERMIT)
        assert 54 * PACE == pytest.approx(result.minted, abs=15)
        assert 12_000 == result.minted + result.left_out
        await asyncio.sleep(doors + 0.9 - upstream.clock.monotonic())
        for request in requests[: result.minted]:
            assert None is not tokens.ready(request, fresh=True)
        assert (result.minted, 0) == (len(upstream.sent), tokens.stats().expired_unused)


@virtual_time
async def test_no_more_is_minted_than_the_stock_holds(upstream: Upstream) -> None:
    """One more would only throw out another."""
    async with upstream.service(cache=CachePolicy(max_stock=100)) as tokens:
        result = await tokens.prewarm(guests(300), doors=10)
        assert Prewarmed(100, {}, left_out=200) == result
        assert (100, 0) == (tokens.stats().stock_held, tokens.stats().expired_unused)


@pytest.mark.parametrize("budget", [1.0, 0.5])
@virtual_time
async def test_a_caller_is_not_pushed_back(upstream: Upstream, budget: float) -> None:
    """One who comes while tokens are minted ahead is next: one permit later at most."""
    waits: dict[bool, list[float]] = {}
    for ahead in (False, True):
        async with upstream.service() as tokens:
            await tokens.issue(TokenRequest(ROOM, "warm-up"))
            work = asyncio.create_task(tokens.prewarm(guests(2_000 * ahead), budget=budget))
            waits[ahead] = []
            for number in range(100):
                await asyncio.sleep(0.0357)
                started = upstream.clock.monotonic()
                await tokens.issue(TokenRequest(ROOM, f"caller-{number}"), fresh=True)
                waits[ahead].append(upstream.clock.monotonic() - started)
            assert ahead != work.done()
            assert tokens.stats().waiting <= max(2, PACE * budget / 10)
            work.cancel()
    later = [b - a for a, b in zip(waits[False], waits[True], strict=True)]
    assert max(later) <= PERMIT + 1e-6


@virtual_time
async def test_a_crowd_loses_no_more_than_the_burst(upstream: Upstream) -> None:
    """What is spent of a second's quota is spent; from then on all of the pace is theirs."""
    waits: dict[bool, list[float]] = {}
    for ahead in (False, True):
        async with upstream.service() as tokens:
            await tokens.issue(TokenRequest(ROOM, "warm-up"))
            work = asyncio.create_task(tokens.prewarm(guests(5_000 * ahead)))
            await asyncio.sleep(3)
            started = upstream.clock.monotonic()
            waits[ahead] = []

            async def come(
                user: str,
                tokens: AsyncTokenService = tokens,
                started: float = started,
                waited: list[float] = waits[ahead],
            ) -> None:
                await tokens.issue(TokenRequest(ROOM, user), fresh=True)
                waited.append(upstream.clock.monotonic() - started)

            await asyncio.gather(*(come(f"caller-{number}") for number in range(1_000)))
            work.cancel()
    later = [b - a for a, b in zip(waits[False], waits[True], strict=True)]
    assert max(later) <= 1.0
    assert max(waits[True]) <= 1_000 * PERMIT + LATENCY + PERMIT


@pytest.mark.parametrize("failing", [False, True])
@virtual_time
async def test_the_budget_is_kept(upstream: Upstream, failing: bool) -> None:
    """A quarter of the pace, and no more; what is tried again takes of it too."""
    failed: set[str] = set()

    def once(user: str) -> str | None:
        if user in failed or not failing:
            return None
        failed.add(user)
        return "InternalServerException"

    upstream.failing = once
    async with upstream.service() as tokens:
        assert 500 == (await tokens.prewarm(guests(500), budget=0.25)).minted
    times = upstream.times
    assert len(times) == (1_000 if failing else 500)
    assert len(times) / (times[-1] - times[0]) == pytest.approx(0.25 * PACE, rel=0.05)
    if not failing:
        assert most_in_a_second(times) <= 0.25 * PACE * 1.05 + 1


@virtual_time
async def test_a_smaller_budget_begins_earlier(upstream: Upstream) -> None:
    """So that all are there all the same."""
    async with upstream.service() as tokens:
        doors = upstream.clock.monotonic() + 30
        assert 1_000 == (await tokens.prewarm(guests(1_000), doors=30, budget=0.5)).minted
        assert upstream.times[0] == pytest.approx(doors - LEAD - 2_000 * PERMIT, abs=2 * PERMIT)


@virtual_time
async def test_who_comes_before_the_doors_needs_no_other_token(upstream: Upstream) -> None:
    """A caller before its turn takes the place of what would have been minted ahead."""
    requests = guests(10)
    async with upstream.service() as tokens:
        work = asyncio.create_task(tokens.prewarm(requests, doors=30))
        await asyncio.sleep(5)
        await tokens.issue(requests[3], fresh=True)
        assert Prewarmed(9, {}, served=1) == await work
        assert (10, 9) == (len(upstream.sent), tokens.stats().stock_held)


@virtual_time
async def test_cancelled_it_gives_places_back_and_keeps_what_was_sent(upstream: Upstream) -> None:
    """What was sent comes home into the stock; nothing else is sent any more."""
    async with upstream.service() as tokens:
        work = asyncio.create_task(tokens.prewarm(guests(1_000)))
        await asyncio.sleep(1.0001)
        work.cancel()
        await outcomes(work)
        sent = len(upstream.sent)
        await asyncio.sleep(1)
        stats = tokens.stats()
        assert work.cancelled()
        assert 150 < sent == len(upstream.sent) == stats.stock_held == stats.minted
        assert (0, 0) == (stats.waiting, stats.flights)
        # Nobody is taken for one who is being minted for.
        await tokens.issue(guests(1_000)[-1], fresh=True)


@virtual_time
async def test_cancelled_it_tries_nothing_again(upstream: Upstream) -> None:
    """Nobody is left who would want the token."""
    upstream.failing = lambda _: "InternalServerException"
    async with upstream.service() as tokens:
        work = asyncio.create_task(tokens.prewarm(guests(1)))
        await asyncio.sleep(1.5 * LATENCY)
        work.cancel()
        await outcomes(work)
        sent = len(upstream.sent)
        await asyncio.sleep(60)
        assert 1 <= sent == len(upstream.sent)


@virtual_time
async def test_what_is_tried_again_waits_behind_callers(upstream: Upstream) -> None:
    """The first of its queue, and after all that are more urgent."""
    failures = iter(["InternalServerException"])
    upstream.failing = lambda user: next(failures, None) if user == "guest-0" else None
    async with upstream.service(quota=Quota(rate=10.0)) as tokens:
        work = asyncio.create_task(tokens.prewarm(guests(1)))
        await asyncio.sleep(LATENCY / 2)
        callers = [TokenRequest(ROOM, f"caller-{number}") for number in range(20)]
        await asyncio.gather(*map(tokens.issue, callers))
        assert 1 == (await work).minted
    users = [user for _, user in upstream.sent]
    assert ["guest-0", *(caller.user for caller in callers), "guest-0"] == users


@virtual_time
async def test_what_was_invalidated_under_way_is_nobodys(upstream: Upstream) -> None:
    """A caller does not take it over, and it is no stock."""
    (request,) = guests(1)
    async with upstream.service() as tokens:
        work = asyncio.create_task(tokens.prewarm([request]))
        await asyncio.sleep(LATENCY / 2)
        tokens.invalidate(user=request.user)
        await tokens.issue(request, fresh=True)
        assert 1 == (await work).minted
        assert (2, 0) == (len(upstream.sent), tokens.stats().stock_held)


@virtual_time
async def test_failures_are_counted_by_their_names(upstream: Upstream) -> None:
    """And harm nobody else."""
    upstream.failing = lambda user: "AccessDeniedException" if user.endswith("7") else None
    async with upstream.service() as tokens:
        result = await tokens.prewarm(guests(100), doors=10)
    assert Prewarmed(90, {"AccessDenied": 10}) == result


@virtual_time
async def test_a_client_that_cannot_be_opened_fails_its_request_only(upstream: Upstream) -> None:
    """The next one tries again."""
    upstream.closed = 2
    async with upstream.service() as tokens:
        assert Prewarmed(8, {"OSError": 2}) == await tokens.prewarm(guests(10), doors=10)


@virtual_time
async def test_callers_who_left_are_made_no_way_for(upstream: Upstream) -> None:
    """A crowd that is gone again holds nothing up."""
    async with upstream.service() as tokens:
        work = asyncio.create_task(tokens.prewarm(guests(200)))
        started = upstream.clock.monotonic()
        await asyncio.sleep(0.5)
        crowd = [asyncio.create_task(tokens.issue(each)) for each in guests(2_000, ROOM[:-1])]
        await settle()
        for each in crowd:
            each.cancel()
        assert 200 == (await work).minted
        assert upstream.clock.monotonic() - started < 1.3


@virtual_time
async def test_regions_are_minted_for_side_by_side(upstream: Upstream) -> None:
    """Each has a quota of its own, and begins by the number of its own requests."""
    requests = guests(400) + guests(200, ELSEWHERE)
    async with upstream.service() as tokens:
        doors = upstream.clock.monotonic() + 30
        assert Prewarmed(600, {}) == await tokens.prewarm(requests, doors=30)
    assert upstream.times[0] == pytest.approx(doors - LEAD - 400 * PERMIT, abs=PERMIT)
    assert upstream.times[-1] == pytest.approx(doors - LEAD, abs=2 * PERMIT)


@virtual_time
async def test_two_calls_share_the_quota(upstream: Upstream) -> None:
    """Together they keep to its pace, so that no bursts of theirs stand before a caller."""
    async with upstream.service() as tokens:
        work = asyncio.gather(*(tokens.prewarm(guests(300)) for _ in range(2)))
        await asyncio.sleep(1.5)
        assert tokens.stats().waiting <= 1
        assert [Prewarmed(300, {})] * 2 == await work
    times = upstream.times
    gaps = [b - a for a, b in pairwise(times)]
    assert max(gaps) == pytest.approx(PERMIT, rel=0.01)


@virtual_time
async def test_a_region_without_room_keeps_no_other_waiting(upstream: Upstream) -> None:
    """Though all of its requests come first; and the stock is everybody's."""
    requests = guests(200) + guests(50, ELSEWHERE)
    async with upstream.service(cache=CachePolicy(max_stock=100)) as tokens:
        result = await tokens.prewarm(requests, doors=10)
        assert (100, 150) == (result.minted, result.left_out)
        assert 20 < sum(tokens.ready(r, fresh=True) is not None for r in requests[200:])
        assert 0 == tokens.stats().expired_unused


@virtual_time
async def test_a_request_costs_no_task_until_its_turn(upstream: Upstream) -> None:
    """Thousands may wait for the doors; then only those under way have one."""
    async with upstream.service() as tokens:
        before = len(asyncio.all_tasks())
        work = asyncio.create_task(tokens.prewarm(guests(5_000), doors=50))
        await asyncio.sleep(10)
        assert before + 2 == len(asyncio.all_tasks())
        assert 0 == tokens.stats().waiting
        await asyncio.sleep(30)
        assert len(asyncio.all_tasks()) <= before + 2 + PACE * LATENCY + 2
        assert 5_000 == (await work).minted


@virtual_time
async def test_closing_ends_it_at_once(upstream: Upstream) -> None:
    """Whether it waits for the doors or is under way; nothing is left behind."""
    before = len(asyncio.all_tasks())
    async with upstream.service() as tokens:
        works = [
            asyncio.create_task(tokens.prewarm(guests(2_000))),
            asyncio.create_task(tokens.prewarm(guests(10), doors=1_000)),
        ]
        await asyncio.sleep(1)
        closing = upstream.clock.monotonic()
    results = await outcomes(*works)
    assert [ServiceClosed, ServiceClosed] == [type(result) for result in results]
    assert closing + 1 > upstream.clock.monotonic()
    await settle()
    assert before == len(asyncio.all_tasks())


@virtual_time
async def test_an_error_of_the_requests_is_the_callers(upstream: Upstream) -> None:
    """Nothing is minted for those that were read already, as nobody knows of them."""

    def broken() -> Iterator[TokenRequest]:
        yield from guests(3)
        raise TimeoutError("theirs")

    async with upstream.service() as tokens:
        with pytest.raises(TimeoutError, match="theirs"):
            await tokens.prewarm(broken(), doors=10)
        await asyncio.sleep(20)
    assert [] == upstream.sent


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("doors", value) for value in (0, -1, float("nan"), float("inf"))],
        *[("budget", value) for value in (0, 1.01, float("nan"))],
    ],
)
@virtual_time
async def test_an_option_that_cannot_work_is_refused(
    upstream: Upstream, option: str, value: float
) -> None:
    """The error names it."""
    async with upstream.service() as tokens:
        options: dict[str, Any] = {option: value}
        with pytest.raises(InvalidRequest) as caught:
            await tokens.prewarm(guests(1), **options)
    assert option == caught.value.member
    assert [] == upstream.sent


@virtual_time
async def test_what_expires_unused_is_counted_and_told(upstream: Upstream) -> None:
    """Though nobody ever comes; not for each, but once a second at most."""
    events: list[Event] = []
    async with upstream.service(observers=[events.append]) as tokens:
        await tokens.prewarm(guests(500))
        await asyncio.sleep(50)
        assert 500 == tokens.stats().stock_held
        await asyncio.sleep(10)
        stats = tokens.stats()
        assert (0, 500) == (stats.stock_held, stats.expired_unused)
    told = [event.count for event in events if isinstance(event, ExpiredUnused)]
    assert 500 == sum(told) == sum(isinstance(event, Stocked) for event in events)
    assert len(told) <= 5


@virtual_time
async def test_a_mass_that_expires_at_once_stops_nobody(upstream: Upstream) -> None:
    """It is dropped a little at a time, and still told in few words."""
    events: list[Event] = []
    unlimited = Quota(rate=1e6)
    async with upstream.service(observers=[events.append], quota=unlimited) as tokens:
        await tokens.prewarm(guests(5_000))
        await asyncio.sleep(62)
        assert 5_000 == tokens.stats().expired_unused
    told = [event.count for event in events if isinstance(event, ExpiredUnused)]
    assert 5_000 == sum(told)
    assert len(told) <= 4
