"""The limiter: the whole quota and never more, first come first served, whoever leaves."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioivschat import (
    InvalidConfiguration,
    LocalLimiter,
    Priority,
    Quota,
    Reservation,
    RetryPolicy,
    Throttled,
)
from aioivschat._service.retry import Retrier
from aioivschat.emulator._quota import QuotaShape
from support.virtual import VirtualClock, VirtualLoop, settle, virtual_time

thorough = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])

ROUNDING = 1e-6


def loop() -> VirtualLoop:
    """Return the running loop."""
    return cast("VirtualLoop", asyncio.get_running_loop())


def limiter_of(**quota: Any) -> LocalLimiter:
    """Make a limiter on a clock of its own."""
    return LocalLimiter(Quota(**quota), VirtualClock())


def most_within(seconds: float, times: Sequence[float]) -> int:
    """Count the most that fall into any sliding window, its end left out."""
    ordered = sorted(times)
    first, most = 0, 0
    for last, time in enumerate(ordered):
        while time - ordered[first] >= seconds - ROUNDING:
            first += 1
        most = max(most, last - first + 1)
    return most


async def serve(limiter: LocalLimiter, count: int, **options: Any) -> list[float]:
    """Let so many come at once, and return when each got its permit."""

    async def one(place: Reservation) -> float:
        await place.granted()
        return loop().time()

    return await asyncio.gather(*[one(limiter.reserve(**options)) for _ in range(count)])


# The quota's options.


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rate", 0),
        ("rate", -1.0),
        ("rate", float("inf")),
        ("rate", float("nan")),
        ("burst", 0),
        ("burst", -5),
        ("max_waiting", -1),
    ],
)
def test_a_quota_that_cannot_work_is_refused(option: str, value: float) -> None:
    """The error names the option."""
    with pytest.raises(InvalidConfiguration) as caught:
        Quota(**cast("dict[str, Any]", {option: value}))
    assert f"Quota.{option}" == caught.value.option


def test_the_bounds_of_a_quota_are_accepted() -> None:
    """A bucket of one, nobody waiting, and a rate far below one."""
    quota = Quota(rate=0.001, burst=1, max_waiting=0)
    assert (0.001, 1, 0) == (quota.rate, quota.burst, quota.max_waiting)
    assert (200.0, None) == (Quota().rate, Quota().burst)


# The pace.


@pytest.mark.fault(7)
@virtual_time
async def test_no_sliding_second_sees_more_than_the_quota_from_cold() -> None:
    """And yet nearly all of the quota is used, in the order of arrival."""
    start = loop().time()
    times = await serve(limiter_of(), 1_000)
    assert times == sorted(times)
    assert most_within(1.0, times) <= 200
    # 198 a second, less what is made up for at the start.
    assert times[-1] - start < 1_000 / 198


@pytest.mark.fault(7)
@virtual_time
async def test_no_sliding_second_sees_more_than_the_quota_after_a_rest() -> None:
    """Lost time is made up for in part, and only within the window."""
    limiter = limiter_of()
    times = []
    for rest in (0.0, 0.01, 0.3, 0.9, 1.5, 60.0, 0.02):
        await asyncio.sleep(rest)
        times += await serve(limiter, 150)
    assert most_within(1.0, times) <= 200


@virtual_time
async def test_the_first_callers_after_a_rest_go_at_once() -> None:
    """A twentieth of a second is made up for, so a few need not wait at all."""
    start = loop().time()
    times = await serve(limiter_of(), 20)
    assert 10 == sum(time == start for time in times)


@pytest.mark.parametrize(
    ("rate", "window", "most"),
    [(0.2, 5.0, 1), (0.5, 2.0, 1), (1, 1.0, 1), (1.5, 1.0, 1), (2.5, 1.0, 2), (7.9, 1.0, 7)],
)
@virtual_time
async def test_small_and_fractional_rates_are_kept(rate: float, window: float, most: int) -> None:
    """Below one a second the window is as long as one permit takes; parts of one do not count."""
    start = loop().time()
    times = await serve(limiter_of(rate=rate), 30)
    assert most == most_within(window, times)
    assert times[-1] - start <= 30 / most * window * 1.02


@virtual_time
async def test_stalls_are_made_up_for_within_the_window() -> None:
    """A busy event loop wastes none of the quota, and spends none twice."""
    limiter, rng, start = limiter_of(), random.Random(5), loop().time()
    serving = asyncio.create_task(serve(limiter, 1_000))
    while not serving.done():
        await asyncio.sleep(rng.uniform(0.0, 0.1))
        loop().stall(rng.uniform(0.0, 0.04))
    times = serving.result()
    assert most_within(1.0, times) <= 200
    assert max(times) - start < 1_000 / 198 + 0.05


@virtual_time
async def test_after_a_long_stall_the_window_holds() -> None:
    """What was lost beyond a twentieth of a second is lost."""
    limiter, start = limiter_of(), loop().time()
    serving = asyncio.create_task(serve(limiter, 600))
    for _ in range(4):
        await asyncio.sleep(0.3)
        loop().stall(0.7)
    times = await serving
    assert most_within(1.0, times) <= 200
    assert most_within(0.01, times) <= 12
    assert times[-1] - start < 600 / 198 + 4 * 0.7


@pytest.mark.parametrize("burst", [1, 20, 200])
@virtual_time
async def test_a_known_bucket_is_used_to_nine_tenths(burst: int) -> None:
    """Never above that and what has flowed in since, over any stretch of time."""
    limiter, rng = limiter_of(burst=burst), random.Random(burst)
    allowed = max(1.0, 0.9 * burst)
    times: list[float] = []
    start = loop().time()
    times += await serve(limiter, 300)
    assert int(allowed) == sum(time == start for time in times)
    for _ in range(3):
        await asyncio.sleep(rng.uniform(0, 1.5))
        loop().stall(rng.uniform(0, 0.1))
        times += await serve(limiter, 150)
    times.sort()
    for first in range(len(times)):
        for last in range(first, len(times), 7):
            spent = last - first + 1
            assert spent <= allowed + 200 * (times[last] - times[first]) + ROUNDING


@virtual_time
async def test_all_waiters_share_one_timer() -> None:
    """A hundred thousand timers would be a load of their own."""
    limiter = limiter_of()
    before = timers()
    places = [limiter.reserve() for _ in range(10_000)]
    assert before + 1 == timers()
    for place in places[::2]:
        place.release()
    assert before + 1 == timers()
    for place in places:
        place.release()
    await asyncio.sleep(1)
    assert before == timers()


def timers() -> int:
    """Count the timers that the running loop keeps."""
    return sum(not handle.cancelled() for handle in vars(loop())["_scheduled"])


# Who goes first.


@virtual_time
async def test_the_more_urgent_go_first_and_each_queue_is_first_in_first_out() -> None:
    """Whoever waits already lets them pass."""
    limiter = limiter_of(rate=1)
    await limiter.reserve().granted()
    order: list[str] = []

    async def one(name: str, place: Reservation) -> None:
        await place.granted()
        order.append(name)

    asked = [
        ("b1", Priority.BACKGROUND),
        ("n1", Priority.NORMAL),
        ("h1", Priority.HIGH),
        ("b2", Priority.BACKGROUND),
        ("h2", Priority.HIGH),
        ("n2", Priority.NORMAL),
    ]
    await asyncio.gather(*[one(name, limiter.reserve(priority)) for name, priority in asked])
    assert ["h1", "h2", "n1", "n2", "b1", "b2"] == order


@virtual_time
async def test_a_retry_goes_to_the_head_of_its_queue() -> None:
    """It has waited; the more urgent go before it still."""
    limiter = limiter_of(rate=1)
    await limiter.reserve().granted()
    order: list[str] = []

    async def one(name: str, place: Reservation) -> None:
        await place.granted()
        order.append(name)

    places = [
        ("n1", limiter.reserve()),
        ("h1", limiter.reserve(Priority.HIGH)),
        ("again", limiter.reserve(again=True)),
        ("n2", limiter.reserve()),
    ]
    await asyncio.gather(*[one(name, place) for name, place in places])
    assert ["h1", "again", "n1", "n2"] == order


@virtual_time
async def test_promotion_moves_to_the_end_of_a_more_urgent_queue() -> None:
    """Never back, and not at all once a permit was given or the place given up."""
    limiter = limiter_of(rate=1)
    ready = limiter.reserve()
    order: list[str] = []

    async def one(name: str, place: Reservation) -> None:
        await place.granted()
        order.append(name)

    low, high, normal, gone = (
        limiter.reserve(Priority.BACKGROUND),
        limiter.reserve(Priority.HIGH),
        limiter.reserve(Priority.NORMAL),
        limiter.reserve(Priority.BACKGROUND),
    )
    gone.release()
    for place, priority in (
        (low, Priority.HIGH),
        (high, Priority.BACKGROUND),
        (normal, Priority.NORMAL),
        (gone, Priority.HIGH),
        (ready, Priority.HIGH),
    ):
        place.promote(priority)
    await asyncio.gather(
        one("ready", ready), one("normal", normal), one("low", low), one("high", high)
    )
    assert ["ready", "high", "low", "normal"] == order
    assert 0 == limiter.waiting


# What a caller is told.


@pytest.mark.parametrize("quota", [Quota(), Quota(burst=200), Quota(rate=20), Quota(rate=0.5)])
@virtual_time
async def test_the_predicted_wait_is_the_wait(quota: Quota) -> None:
    """To within the lost time that the window makes nobody wait for twice."""
    limiter = LocalLimiter(quota, VirtualClock())
    start = loop().time()
    predicted, places = [], []
    for _ in range(400 if quota.rate > 1 else 10):
        predicted.append(limiter.predicted_wait())
        places.append(limiter.reserve())
    assert all(
        place.expected - start == pytest.approx(wait)
        for place, wait in zip(places, predicted, strict=True)
    )
    for place, wait in zip(places, predicted, strict=True):
        await place.granted()
        assert wait == pytest.approx(loop().time() - start, abs=max(0.06, 0.1 / quota.rate))


@virtual_time
async def test_the_predicted_wait_counts_those_who_go_first() -> None:
    """The more urgent wait for nobody below them."""
    limiter = limiter_of(rate=10)
    for priority in (Priority.NORMAL, Priority.HIGH, Priority.BACKGROUND):
        for _ in range(10):
            limiter.reserve(priority)
    waits = [limiter.predicted_wait(priority) for priority in Priority]
    assert [10 / 9.9, 19 / 9.9, 29 / 9.9] == pytest.approx(
        [w - waits[0] + 10 / 9.9 for w in waits], abs=0.11
    )


@virtual_time
async def test_nobody_waits_when_a_permit_is_due() -> None:
    """The predicted wait is then none at all, and never below."""
    limiter = limiter_of()
    assert 0.0 == limiter.predicted_wait()
    await limiter.reserve().granted()
    await asyncio.sleep(100)
    assert 0.0 == limiter.predicted_wait()


@pytest.mark.fault(19)
@virtual_time
async def test_the_queue_is_full_when_as_many_wait_as_may() -> None:
    """Not before, and no longer once somebody left."""
    limiter = limiter_of(rate=1, max_waiting=2)
    await limiter.reserve().granted()
    places = []
    for waiting in range(2):
        assert (waiting, False) == (limiter.waiting, limiter.full)
        places.append(limiter.reserve())
    assert (2, True) == (limiter.waiting, limiter.full)
    places[0].release()
    assert (1, False) == (limiter.waiting, limiter.full)


@virtual_time
async def test_a_queue_of_none_lets_those_through_who_need_not_wait() -> None:
    """`max_waiting=0`: permits at once or not at all."""
    limiter = limiter_of(rate=1, max_waiting=0)
    full = [limiter.full]
    await limiter.reserve().granted()
    full.append(limiter.full)
    await asyncio.sleep(1.1)
    full.append(limiter.full)
    assert [False, True, False] == full


# Leaving.


@pytest.mark.fault(7)
@virtual_time
async def test_a_place_given_back_is_the_next_ones() -> None:
    """As if whoever left had never come."""
    limiter = limiter_of(rate=10)
    places = [limiter.reserve() for _ in range(50)]
    for place in places[1:49]:
        place.release()
        place.release()
    start = loop().time()
    await places[0].granted()
    await places[49].granted()
    assert loop().time() - start <= 1 / 9.9 + ROUNDING
    assert 0 == limiter.waiting


@pytest.mark.fault(7)
@virtual_time
async def test_a_permit_given_back_unused_is_the_next_ones() -> None:
    """It was granted already: pace and window forget it."""
    limiter = limiter_of(rate=1)
    held = limiter.reserve()
    waiting = asyncio.create_task(serve(limiter, 2))
    await asyncio.sleep(0.25)
    held.release()
    held.release()
    first, second = await waiting
    assert 1_000.25 == first
    assert second - first >= 1.0


@pytest.mark.fault(7)
@virtual_time
async def test_a_used_permit_cannot_be_given_back() -> None:
    """That would grant it twice."""
    limiter = limiter_of(rate=1)
    used = limiter.reserve()
    await used.granted()
    used.release()
    assert limiter.predicted_wait() > 0.99


@dataclass(frozen=True)
class Caller:
    """One who comes, and perhaps leaves.

    Attributes:
        arrives: seconds after the start.
        priority: its queue.
        leaves: when: never, so many seconds after it came, at the very moment its permit is
            expected, or in the tick in which the one before it got a permit.
        holds: whether it sits on its place for a while before it asks for the permit.
    """

    arrives: float
    priority: Priority
    leaves: float | str | None
    holds: bool


crowds = st.lists(
    st.builds(
        Caller,
        st.sampled_from([0.0, 0.0, 0.0, 0.1, 1.0, 2.5]),
        st.sampled_from(Priority),
        st.sampled_from([None, None, 0.0, 0.3, 1.0, "when expected", "after another"]),
        st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=50,
)

quotas = st.sampled_from([(0.5, None), (1, None), (2.5, None), (20, 10), (60, None)])
moments = st.lists(st.sampled_from([0.05, 0.1, 0.3, 1.0, 2.6]), max_size=3, unique=True)


@dataclass
class Outcome:
    """What came of a crowd: who got a permit, in which order, and when."""

    granted: list[tuple[int, float]]
    left: set[int]


async def crowd(
    rate: float, burst: int | None, callers: Sequence[Caller], stalls: Sequence[float]
) -> Outcome:
    """Let a crowd at a limiter; now and then the loop stalls, so many are granted at once."""
    limiter = limiter_of(rate=rate, burst=burst)
    start = loop().time()
    for moment in stalls:
        loop().call_at(start + moment, loop().stall, 0.4)
    outcome = Outcome([], set())
    tasks: dict[int, asyncio.Task[None]] = {}
    spared: set[int] = set()  # those who got theirs, or are on their way out already

    async def one(number: int, caller: Caller) -> None:
        place = limiter.reserve(caller.priority)
        if caller.leaves == "when expected":
            loop().call_at(place.expected, tasks[number].cancel)
        elif isinstance(caller.leaves, float):
            loop().call_later(caller.leaves, tasks[number].cancel)
        try:
            if caller.holds:
                try:
                    await asyncio.sleep(0.2)
                except asyncio.CancelledError:
                    place.release()
                    raise
            await place.granted()
        finally:
            spared.add(number)
        outcome.granted.append((number, loop().time() - start))
        for other, its in enumerate(callers):
            if its.leaves == "after another" and other in tasks and other not in spared:
                spared.add(other)
                tasks[other].cancel()
                return

    for number, caller in sorted(enumerate(callers), key=lambda pair: pair[1].arrives):
        if start + caller.arrives > loop().time():
            await asyncio.sleep(start + caller.arrives - loop().time())
        # All that come at once are there before the first of them runs.
        tasks[number] = asyncio.create_task(one(number, caller))
    results = await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert {type(None), asyncio.CancelledError} >= {type(result) for result in results}
    # Some were cancelled before they could even begin.
    outcome.left |= {number for number, task in tasks.items() if task.cancelled()}
    assert 0 == limiter.waiting
    return outcome


@pytest.mark.fault(7)
@thorough
@given(crowds, quotas, moments)
@virtual_time
async def test_whoever_leaves_no_permit_is_lost_and_none_is_given_twice(
    callers: list[Caller], quota: tuple[float, int | None], stalls: list[float]
) -> None:
    """Also when they leave in the very tick of the grant.

    No sliding second above the quota, first in first out within a priority, one permit each.
    """
    rate, burst = quota
    outcome = await crowd(rate, burst, callers, stalls)
    numbers = [number for number, _ in outcome.granted]
    times = [time for _, time in outcome.granted]
    assert sorted([*numbers, *outcome.left]) == list(range(len(callers)))
    assert {n for n, caller in enumerate(callers) if caller.leaves is None} <= set(numbers)

    if not any(caller.holds for caller in callers):
        if burst is None:
            window, most = max(1.0, 1 / rate), max(1, math.floor(rate))
            assert most_within(window, times) <= most
        else:
            for first in range(len(times)):
                for last in range(first, len(times)):
                    spent = last - first + 1
                    flowed = rate * (times[last] - times[first])
                    assert spent <= 0.9 * burst + flowed + ROUNDING
        for priority in Priority:
            served = [n for n in numbers if callers[n].priority is priority]
            assert served == sorted(served, key=lambda n: (callers[n].arrives, n))


@pytest.mark.fault(7)
@thorough
@given(crowds, quotas, moments)
@virtual_time
async def test_after_cancellations_the_throughput_is_that_of_none(
    callers: list[Caller], quota: tuple[float, int | None], stalls: list[float]
) -> None:
    """Those who stay are done no later than if nobody else had ever come."""
    waiting = [Caller(c.arrives, Priority.NORMAL, c.leaves, holds=False) for c in callers]
    outcome = await crowd(*quota, waiting, stalls)
    stayed = [number for number, _ in outcome.granted]
    rest = [Caller(waiting[n].arrives, Priority.NORMAL, None, holds=False) for n in sorted(stayed)]
    alone = await crowd(*quota, rest, stalls)
    for (_, with_others), (_, without) in zip(outcome.granted, alone.granted, strict=True):
        assert with_others <= without + ROUNDING


# Learning.


async def epoch(limiter: LocalLimiter, served: int, throttled: int) -> float:
    """Let a second pass with so much served and throttled; return the rate afterwards."""
    for _ in range(served):
        limiter.served()
    for _ in range(throttled):
        limiter.throttled()
    await asyncio.sleep(1.0)
    limiter.served()
    return limiter.rate


@virtual_time
async def test_throttling_brings_the_rate_down_to_what_is_served_and_a_probe() -> None:
    """With a quarter served it becomes a quarter and a twentieth of the quota."""
    limiter = limiter_of()
    assert 198.0 == limiter.rate
    assert 198 / 4 + 10 == pytest.approx(await epoch(limiter, 49, 148), abs=1)


@virtual_time
async def test_clean_seconds_bring_the_rate_back() -> None:
    """Doubling each, up to the whole and not beyond."""
    limiter = limiter_of()
    low = await epoch(limiter, 49, 148)
    rates = [await epoch(limiter, 50, 0) for _ in range(4)]
    assert [2 * low, 198, 198, 198] == pytest.approx([min(rate, 198) for rate in rates])
    assert 198.0 == rates[-1]


@virtual_time
async def test_the_rate_never_falls_below_its_probe() -> None:
    """However much is throttled: somebody has to notice when it is over."""
    limiter = limiter_of()
    for _ in range(50):
        rate = await epoch(limiter, 0, 500)
        assert 10.0 <= rate < 198.0
    assert limiter.predicted_wait() <= 0.1


@virtual_time
async def test_one_stray_throttle_in_light_traffic_does_not_shut_the_door() -> None:
    """With a handful served or none, whoever comes next goes at once."""
    for served in (0, 1, 5):
        limiter = limiter_of()
        assert 99.0 <= await epoch(limiter, served, 1)
        assert 0.0 == limiter.predicted_wait()
        assert 198.0 == await epoch(limiter, served, 0)


@virtual_time
async def test_a_long_rest_restores_the_whole_rate() -> None:
    """Nobody need call in each of the seconds."""
    limiter = limiter_of()
    low = await epoch(limiter, 0, 500)
    assert low < 20
    await asyncio.sleep(3600)
    limiter.reserve()
    assert 198.0 == limiter.rate


@virtual_time
async def test_a_long_rest_right_after_throttling_restores_the_whole_rate() -> None:
    """The last crowd ended with throttles; an hour later the next one comes."""
    limiter = limiter_of()
    for _ in range(500):
        limiter.throttled()
    await asyncio.sleep(3600)
    limiter.reserve()
    assert 198.0 == limiter.rate


@virtual_time
async def test_a_change_of_rate_is_told_and_nothing_else() -> None:
    """Once each, with the new rate."""
    told: list[float] = []
    limiter = LocalLimiter(Quota(), VirtualClock(), told.append)
    for served, throttled in ((100, 0), (100, 100), (100, 0), (100, 0), (100, 0)):
        await epoch(limiter, served, throttled)
    assert 2 == len(told)
    assert told[0] < 198.0
    assert 198.0 == told[1] == limiter.rate


@virtual_time
async def test_a_slower_pace_begins_with_no_burst() -> None:
    """What a known bucket has left is so many permits at any pace, and not so much time."""
    limiter = limiter_of(rate=10, burst=3)
    times = await serve(limiter, 10)
    for _ in times:
        limiter.throttled()
    times += await serve(limiter, 10)
    assert limiter.rate < 10
    bucket = QuotaShape("bucket", 10, 3).meter()
    assert [True] * 20 == [bucket.admit(time) for time in times]


@virtual_time
async def test_the_rate_changes_for_those_who_wait_already() -> None:
    """The reservation holds a place, not a time."""
    limiter = limiter_of(rate=10)
    start = loop().time()
    serving = asyncio.create_task(serve(limiter, 100))
    await settle()
    for _ in range(3):
        for _ in range(50):
            limiter.throttled()
        await asyncio.sleep(1.01)
    assert limiter.rate < 2
    limiter_waits = limiter.waiting
    assert limiter_waits > 75
    times = await serving
    assert times[-1] - start > 100 / 9.9 + 1
    assert 9.9 == limiter.rate
    tail = [later - sooner for sooner, later in pairwise(times[-20:])]
    assert [1 / 9.9] * 19 == pytest.approx(tail, abs=0.02)


# The doors open: everybody at once, against each shape that the server's quota may have.


@dataclass
class Rush:
    """What came of a rush."""

    seconds: float
    throttled: int
    failed: int
    order: list[list[int]]
    shares: list[int]


async def rush(
    shape: str, quota: Quota, *, processes: int = 1, users: int = 2_000, seed: int = 1
) -> Rush:
    """Let users in through processes that know nothing of each other.

    A request takes 20 ms there and back, and up to 2 ms more each way.
    """
    clock, rng, start = VirtualClock(), random.Random(seed), loop().time()
    meter = QuotaShape.parse(shape).meter()
    throttled, failed = 0, 0
    orders: list[list[int]] = [[] for _ in range(processes)]
    done: list[list[float]] = [[] for _ in range(processes)]

    async def process(number: int) -> None:
        limiter = LocalLimiter(quota, clock)
        retrier = Retrier(RetryPolicy(), clock, random.Random(seed + number))

        async def one(user: int) -> None:
            nonlocal failed
            first: Reservation | None = limiter.reserve()

            async def attempt(trial: int) -> None:
                nonlocal throttled, first
                place = first or limiter.reserve(again=True)
                first = None
                await place.granted()
                if trial == 1:
                    orders[number].append(user)
                await asyncio.sleep(0.01 + rng.uniform(0, 0.002))
                admitted = meter.admit(loop().time())
                await asyncio.sleep(0.01 + rng.uniform(0, 0.002))
                if not admitted:
                    throttled += 1
                    limiter.throttled()
                    raise Throttled({})
                limiter.served()

            try:
                await retrier.run(
                    attempt, worthwhile=lambda delay: True, before_sleep=lambda n, delay: None
                )
            except Throttled:
                failed += 1
            done[number].append(loop().time() - start)

        await asyncio.gather(*[one(user) for user in range(users // processes)])

    await asyncio.gather(*[process(number) for number in range(processes)])
    first_end = min(times[-1] for times in done)
    return Rush(
        seconds=max(times[-1] for times in done),
        throttled=throttled,
        failed=failed,
        order=orders,
        shares=[sum(time <= first_end for time in times) for times in done],
    )


SHAPES = ["bucket:200:200", "bucket:200:20", "fixed:200", "sliding:200"]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@virtual_time
async def test_one_process_gets_everybody_through_the_doors_in_order(shape: str, seed: int) -> None:
    """2,000 at 200 a second: none fails, next to none is throttled, little time is lost."""
    result = await rush(shape, Quota(), seed=seed)
    assert 0 == result.failed
    assert result.seconds <= 10.3
    assert result.throttled <= 10
    assert [list(range(2_000))] == result.order


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@virtual_time
async def test_four_processes_that_know_nothing_of_each_other_share_the_quota(
    shape: str, seed: int
) -> None:
    """None fails, none starves, little of the quota is lost, and each keeps its order."""
    result = await rush(shape, Quota(), processes=4, seed=seed)
    assert 0 == result.failed
    assert result.seconds <= 11.5
    assert min(result.shares) >= 250
    assert [list(range(500))] * 4 == result.order


@virtual_time
async def test_a_known_bucket_saves_the_time_that_it_holds() -> None:
    """9.0 s are possible; no request is throttled for it."""
    result = await rush("bucket:200:200", Quota(burst=200))
    assert (0, 0) == (result.failed, result.throttled)
    assert result.seconds <= 9.27
