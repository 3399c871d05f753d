"""The cache: bounded, quick whatever expires, and never a token that cannot work."""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import FrameType
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioivschat import CachePolicy, ChatToken, InvalidConfiguration, TokenRequest
from aioivschat._models import Identity
from aioivschat._service.cache import Entry, TokenCache
from aioivschat._service.fences import _MAX_FENCES, Fences
from aioivschat._service.stock import TokenStock
from support.virtual import VirtualClock, VirtualLoop, virtual_time

ROOM = "arn:aws:ivschat:eu-west-1:123456789012:room/a"
OTHER_ROOM = "arn:aws:ivschat:eu-west-1:123456789012:room/b"
NEVER = datetime(2100, 1, 1, tzinfo=UTC)

thorough = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def who(user: str = "u", room: str = ROOM) -> Identity:
    """Return the identity of a user's request."""
    return TokenRequest(room, user).identity


def pass_time(seconds: float) -> None:
    """Let virtual time pass while nothing else happens."""
    cast("VirtualLoop", asyncio.get_running_loop()).stall(seconds)


class Bench:
    """A cache and a stock, their clock, and tokens numbered in the order of their making."""

    def __init__(self, **options: Any) -> None:
        policy = CachePolicy(**options)
        self.clock = VirtualClock()
        self.fences = Fences()
        self.cache = TokenCache(policy, self.clock, self.fences)
        self.stock = TokenStock(policy, self.cache)
        self.made = 0

    def entry(
        self, identity: Identity | None = None, *, life: float = 60.0, generation: int | None = None
    ) -> Entry:
        """Make an entry whose request begins now."""
        self.made += 1
        return Entry(
            identity or who(),
            ChatToken(f"token-{self.made}", NEVER, NEVER),
            self.clock.monotonic() + life,
            self.clock.wall() + life,
            self.fences.generation if generation is None else generation,
        )


def work(operation: Callable[[], object]) -> int:
    """Count the function calls, Python's and C's, that an operation makes."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    # Other tests' garbage has finalizers, whose calls are none of the operation's.
    gc.disable()
    sys.setprofile(count)
    try:
        operation()
    finally:
        sys.setprofile(before)
        gc.enable()
    return calls


# The policy.


@pytest.mark.fault(15)
@pytest.mark.parametrize("margin", [60, 60.0, 61.0, float("inf"), float("nan"), -0.1])
def test_a_margin_that_no_token_can_have_is_refused(margin: float) -> None:
    """A token lives 60 s: with 60 or more left, none could ever be handed out."""
    with pytest.raises(InvalidConfiguration) as caught:
        CachePolicy(min_remaining=margin)
    assert "CachePolicy.min_remaining" == caught.value.option
    assert "less than the 60 s that a token lives" in caught.value.limit


@pytest.mark.parametrize("margin", [0, 0.0, 5.0, 59.999])
def test_a_margin_below_a_tokens_life_is_accepted(margin: float) -> None:
    """Down to none."""
    assert margin == CachePolicy(min_remaining=margin).min_remaining


@pytest.mark.parametrize("option", ["max_tokens", "max_stock"])
def test_bounds_below_one_are_refused(option: str) -> None:
    """A cache of nothing is an error of whoever configured it."""
    for bound in (0, -1):
        with pytest.raises(InvalidConfiguration, match=rf"CachePolicy\.{option}: must be at least"):
            CachePolicy(**cast("dict[str, Any]", {option: bound}))
    assert 1 == getattr(CachePolicy(**cast("dict[str, Any]", {option: 1})), option)


# How long a token is handed out.


@pytest.mark.fault(15)
@virtual_time
async def test_a_token_is_handed_out_while_the_margin_is_left() -> None:
    """Delivered or stocked: up to 55 s of 60, and not a moment longer."""
    bench = Bench(min_remaining=5.0)
    bench.cache.put("key", entry := bench.entry())
    bench.stock.add(spare := bench.entry())
    bench.stock.add(bench.entry())
    pass_time(55.0)
    assert entry is bench.cache.get("key")
    assert spare is bench.stock.take(who())
    pass_time(0.001)
    assert None is bench.cache.get("key")
    assert None is bench.stock.take(who())
    assert (0, 0) == (len(bench.cache), len(bench.stock))


@pytest.mark.fault(16)
@virtual_time
async def test_a_wall_clock_stepped_forward_ends_a_life() -> None:
    """By the wall clock an hour has passed: no token is that old."""
    bench = Bench()
    bench.cache.put("key", bench.entry())
    bench.stock.add(bench.entry())
    bench.clock.step = 3600
    assert None is bench.cache.get("key")
    assert None is bench.stock.take(who())


@pytest.mark.fault(16)
@virtual_time
async def test_what_died_stays_dead_when_the_wall_clock_is_set_right() -> None:
    """A look at the wrong time costs a token, and never brings one back."""
    bench = Bench()
    bench.cache.put("key", bench.entry())
    bench.clock.step = 3600
    assert None is bench.cache.get("key")
    bench.clock.step = 0
    assert None is bench.cache.get("key")


@pytest.mark.fault(16)
@virtual_time
async def test_a_wall_clock_stepped_back_lengthens_no_life() -> None:
    """The monotonic clock goes on counting."""
    bench = Bench(min_remaining=5.0)
    bench.cache.put("key", entry := bench.entry())
    bench.stock.add(bench.entry())
    bench.clock.step = -3600
    pass_time(55.0)
    assert entry is bench.cache.get("key")
    pass_time(0.001)
    assert None is bench.cache.get("key")
    assert None is bench.stock.take(who())


@pytest.mark.fault(16)
@virtual_time
async def test_a_stalled_monotonic_clock_lengthens_no_life() -> None:
    """The host was suspended for minutes, which only the wall clock saw."""
    bench = Bench()
    bench.cache.put("key", bench.entry())
    bench.stock.add(bench.entry())
    pass_time(180.0)
    bench.clock.stalled = 180.0
    assert None is bench.cache.get("key")
    assert None is bench.stock.take(who())


moments = st.lists(
    st.tuples(
        st.sampled_from(["pass", "step", "suspend"]),
        st.floats(0, 90, allow_nan=False).map(lambda x: round(x, 3)),
        st.sampled_from([1, -1, 60, -60]),
    ),
    max_size=8,
)


@pytest.mark.fault(16)
@thorough
@given(moments)
@virtual_time
async def test_a_token_never_outlives_the_earlier_of_its_deadlines(
    script: list[tuple[str, float, int]],
) -> None:
    """Whatever the clocks do to each other; the time the host was awake counts in any case."""
    bench = Bench(min_remaining=5.0)
    entry = bench.entry()
    mono_end, wall_end = bench.clock.monotonic() + 60, bench.clock.wall() + 60
    bench.cache.put("key", entry)
    awake = 0.0
    for what, seconds, sign in script:
        if what == "pass":
            pass_time(seconds)
            awake += seconds
        elif what == "step":
            bench.clock.step += sign * seconds
        else:
            pass_time(seconds)
            bench.clock.stalled += seconds
        left = min(mono_end - bench.clock.monotonic(), wall_end - bench.clock.wall())
        got = bench.cache.get("key")
        assert (left < 5.0) or got is entry
        if left < 5.0 or awake > 55.001:
            assert None is got
            return


# Bounds.


@pytest.mark.fault(18)
@virtual_time
async def test_a_million_distinct_keys_stay_within_the_limit() -> None:
    """The oldest make room, and the newest are there."""
    bench = Bench(max_tokens=1_000)
    cache, sample = bench.cache, bench.entry()
    most = 0
    for key in range(1_000_000):
        cache.put(
            key, Entry(sample.identity, sample.token, sample.monotonic_end, sample.wall_end, 0)
        )
        if not key % 997:
            most = max(most, len(cache))
    assert 1_000 == most == len(cache)
    assert None is cache.get(1_000_000 - 1_001)
    assert None is not cache.get(1_000_000 - 1_000)


@pytest.mark.fault(18)
@virtual_time
async def test_memory_is_flat_after_warm_up() -> None:
    """Distinct keys, stock of distinct identities, and fences: ten turnovers cost nothing."""
    bench = Bench(max_tokens=200, max_stock=200)

    def turn_over(start: int) -> None:
        for n in range(start, start + 2_000):
            bench.cache.put(who(f"user-{n}"), bench.entry())
            bench.stock.add(bench.entry(who(f"user-{n}")))
            pass_time(0.01)

    turn_over(0)
    tracemalloc.start()
    try:
        turn_over(2_000)
        before, _ = tracemalloc.get_traced_memory()
        for start in range(4_000, 12_000, 2_000):
            turn_over(start)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A single entry with its identity and slots takes about 1 KB.
    assert after - before < 20_000
    assert (200, 200) == (len(bench.cache), len(bench.stock))


@virtual_time
async def test_the_oldest_stock_makes_room() -> None:
    """Over all identities, and what is dropped counts as unused."""
    bench = Bench(max_stock=2)
    for user in ("a", "b", "c"):
        bench.stock.add(bench.entry(who(user)))
    assert (2, 1) == (len(bench.stock), bench.stock.expired_unused)
    assert None is bench.stock.take(who("a"))
    tokens = [entry.token.token for user in "bc" if (entry := bench.stock.take(who(user)))]
    assert ["token-2", "token-3"] == tokens


@virtual_time
async def test_the_newest_token_of_a_key_is_not_taken_for_its_first() -> None:
    """A key that was invalidated and minted again is as young as its token."""
    bench = Bench(max_tokens=2)
    bench.cache.put("other", bench.entry())
    bench.cache.put("key", bench.entry())
    bench.fences.add(None, "u")
    assert None is bench.cache.get("key")
    bench.cache.put("key", entry := bench.entry())
    bench.cache.put("third", bench.entry())
    assert entry is bench.cache.get("key")


CALLS = 200
"""More calls than any single operation makes, and far fewer than a mass of entries would cost."""


@pytest.mark.fault(18)
@virtual_time
async def test_no_insertion_clears_up_after_a_mass_of_delivered_tokens() -> None:
    """50,000 expire together: each insertion removes two at most, and catches up all the same."""
    bench = Bench(max_tokens=50_000)
    for key in range(50_000):
        bench.cache.put(key, bench.entry())
    pass_time(120.0)
    removed, cost = [], []
    for key in range(60_000, 110_000):
        before, entry = len(bench.cache), bench.entry()
        if key % 100:
            bench.cache.put(key, entry)
        else:
            cost.append(work(lambda key=key, entry=entry: bench.cache.put(key, entry)))  # type: ignore[misc]  # a lambda's default
        removed.append(before + 1 - len(bench.cache))
    assert 2 == max(removed)
    assert max(cost) < CALLS
    assert 50_000 == len(bench.cache)


@pytest.mark.fault(18)
@virtual_time
async def test_no_look_up_clears_up_after_a_mass_of_delivered_tokens() -> None:
    """It removes the one that it looked at."""
    bench = Bench(max_tokens=50_000)
    for key in range(50_000):
        bench.cache.put(key, bench.entry())
    pass_time(120.0)
    for key in (25_000, 0, 49_999):
        before = len(bench.cache)
        assert work(lambda key=key: bench.cache.get(key)) < CALLS  # type: ignore[misc]  # a lambda's default
        assert before - 1 == len(bench.cache)


@pytest.mark.fault(18)
@virtual_time
async def test_no_insertion_clears_up_after_a_mass_of_stock() -> None:
    """50,000 expire together: each insertion removes two at most, and each is counted."""
    bench = Bench(max_stock=50_000)
    for n in range(50_000):
        bench.stock.add(bench.entry(who(str(n))))
    pass_time(120.0)
    removed = []
    for n in range(30_000):
        before = len(bench.stock)
        bench.stock.add(bench.entry(who(str(n))))
        removed.append(before + 1 - len(bench.stock))
    assert {1, 2} >= set(removed) - {0}
    assert work(lambda: bench.stock.add(bench.entry())) < 2 * CALLS
    assert 80_001 - len(bench.stock) == bench.stock.expired_unused


@pytest.mark.fault(18)
@virtual_time
async def test_taking_from_stock_of_many_clears_up_after_one_only() -> None:
    """Others' expired tokens are none of its business."""
    bench = Bench(max_stock=50_000)
    for n in range(50_000):
        bench.stock.add(bench.entry(who(str(n))))
    pass_time(120.0)
    assert work(lambda: bench.stock.take(who("25000"))) < CALLS
    assert 49_999 == len(bench.stock)


@pytest.mark.fault(18)
@virtual_time
async def test_taking_from_stock_of_one_identity_does_not_clear_up_after_all_of_it() -> None:
    """`prewarm` mints one for each request, also for equal ones."""
    bench = Bench(max_stock=50_000)
    for _ in range(50_000):
        bench.stock.add(bench.entry())
    pass_time(120.0)
    assert work(lambda: bench.stock.take(who())) < CALLS


@pytest.mark.fault(18)
@virtual_time
async def test_no_look_up_clears_up_after_a_mass_of_invalidations() -> None:
    """50,000 users were banned a minute ago."""
    bench = Bench()
    for n in range(50_000):
        bench.fences.add(None, str(n))
    bench.cache.put("key", bench.entry(life=300, generation=0))
    pass_time(120.0)
    assert work(lambda: bench.cache.get("key")) < CALLS


@virtual_time
async def test_invalidation_takes_no_time_whatever_is_held() -> None:
    """A fence is remembered; nothing is searched."""
    bench = Bench(max_tokens=50_000)
    for n in range(50_000):
        bench.cache.put(n, bench.entry())
    assert work(lambda: bench.fences.add(ROOM, None)) < CALLS


# Stock.


@virtual_time
async def test_each_stocked_token_is_taken_exactly_once_oldest_first() -> None:
    """Identities do not mix, and an empty stock says so."""
    bench = Bench()
    for _ in range(3):
        bench.stock.add(bench.entry(who("a")))
        bench.stock.add(bench.entry(who("b")))
    taken = {user: [bench.stock.take(who(user)) for _ in range(4)] for user in "ab"}
    tokens = {user: [e and e.token.token for e in entries] for user, entries in taken.items()}
    assert {
        "a": ["token-1", "token-3", "token-5", None],
        "b": ["token-2", "token-4", "token-6", None],
    } == tokens
    assert (0, 0) == (len(bench.stock), bench.stock.expired_unused)


@virtual_time
async def test_expired_stock_is_passed_over_and_counted() -> None:
    """The oldest usable one is taken; what was dropped before it was minted in vain."""
    bench = Bench()
    bench.stock.add(bench.entry())
    pass_time(30.0)
    bench.stock.add(young := bench.entry())
    bench.stock.add(bench.entry())
    pass_time(26.0)
    assert young is bench.stock.take(who())
    assert (1, 1) == (bench.stock.expired_unused, len(bench.stock))


@virtual_time
async def test_a_token_that_nobody_took_is_restocked_once_and_as_stock_only() -> None:
    """It leaves the delivered ones, so that no second call shares it."""
    bench = Bench()
    entry = bench.entry()
    bench.cache.put("key", entry)
    bench.stock.restock("key", entry)
    assert (0, 1) == (len(bench.cache), len(bench.stock))
    assert None is bench.cache.get("key")
    assert [entry, None] == [bench.stock.take(who()), bench.stock.take(who())]


@virtual_time
async def test_a_token_that_somebody_was_given_is_never_restocked() -> None:
    """It may be spent by now."""
    bench = Bench()
    entry = bench.entry()
    bench.cache.put("key", entry)
    entry.hand_out()
    bench.stock.restock("key", entry)
    assert 0 == len(bench.stock)
    assert entry is bench.cache.get("key")


@virtual_time
async def test_restocking_leaves_a_successor_alone() -> None:
    """Another token stands under the key meanwhile."""
    bench = Bench()
    bench.cache.put("key", successor := bench.entry())
    bench.stock.restock("key", stray := bench.entry())
    assert successor is bench.cache.get("key")
    assert stray is bench.stock.take(who())


@virtual_time
async def test_a_token_that_cannot_work_is_not_restocked() -> None:
    """Expired, or invalidated while it was on its way."""
    bench = Bench()
    late = bench.entry()
    pass_time(56.0)
    bench.stock.restock(None, late)
    fenced = bench.entry()
    bench.fences.add(None, "u")
    bench.stock.restock(None, fenced)
    assert 0 == len(bench.stock)


@virtual_time
async def test_only_a_token_that_is_given_again_is_a_hit() -> None:
    """A look-up that finds no token, or only an expired one, is not counted."""
    bench = Bench()
    assert None is bench.cache.get(who())
    bench.cache.put(who(), entry := bench.entry())
    assert entry is bench.cache.get(who())
    pass_time(56.0)
    assert None is bench.cache.get(who())
    assert 1 == bench.cache.hits


@virtual_time
async def test_the_first_to_be_given_a_token_is_told_so_and_the_rest_too() -> None:
    """The same token each time; only the mark differs."""
    entry = Bench().entry()
    before, tokens, after = entry.handed_out, [entry.hand_out() for _ in range(3)], entry.handed_out
    assert (False, True) == (before, after)
    assert [False, True, True] == [token.reused for token in tokens]
    assert {"token-1"} == {token.token for token in tokens}


# Invalidation.


@pytest.mark.parametrize(
    ("room", "user", "dead"),
    [
        (ROOM, None, {(ROOM, "u"), (ROOM, "v")}),
        (None, "u", {(ROOM, "u"), (OTHER_ROOM, "u")}),
        (ROOM, "u", {(ROOM, "u")}),
        (ROOM, "stranger", set()),
    ],
)
@virtual_time
async def test_invalidation_forgets_exactly_what_it_names(
    room: str | None, user: str | None, dead: set[tuple[str, str]]
) -> None:
    """A room, a user, or a user in a room; delivered and stocked."""
    bench = Bench()
    everybody = [(r, u) for r in (ROOM, OTHER_ROOM) for u in ("u", "v")]
    for r, u in everybody:
        bench.cache.put((r, u), bench.entry(who(u, r)))
        bench.stock.add(bench.entry(who(u, r)))
    bench.fences.add(room, user)
    gone = {(r, u) for r, u in everybody if bench.cache.get((r, u)) is None}
    not_stocked = {(r, u) for r, u in everybody if bench.stock.take(who(u, r)) is None}
    assert dead == gone == not_stocked


@virtual_time
async def test_a_fence_holds_for_what_began_before_it_and_for_nothing_else() -> None:
    """A token that arrives after the fence belongs to the time its request began."""
    bench = Bench()
    before = bench.fences.generation
    bench.fences.add(None, "u")
    between = bench.fences.generation
    bench.fences.add(None, "v")
    assert bench.fences.is_fenced(before, who("u"))
    assert not bench.fences.is_fenced(between, who("u"))
    assert bench.fences.is_fenced(between, who("v"))
    assert not bench.fences.is_fenced(bench.fences.generation, who("v"))
    bench.cache.put("key", bench.entry(generation=before))
    assert None is bench.cache.get("key")
    bench.cache.put("key", entry := bench.entry(generation=between))
    assert entry is bench.cache.get("key")


@virtual_time
async def test_a_second_invalidation_moves_the_fence() -> None:
    """What was minted between the two is dead as well."""
    bench = Bench()
    bench.fences.add(ROOM, "u")
    bench.cache.put("key", bench.entry())
    bench.fences.add(ROOM, "u")
    assert None is bench.cache.get("key")


@virtual_time
async def test_a_fence_outlives_the_longest_queue() -> None:
    """A flight that waited for minutes began before the user was banned all the same."""
    bench = Bench()
    began = bench.fences.generation
    bench.fences.add(None, "u")
    pass_time(61.0)
    assert bench.fences.is_fenced(began, who())


@virtual_time
async def test_more_invalidations_than_can_be_remembered_forget_everything_older() -> None:
    """Too much is forgotten rather than too little, and memory stays bounded."""
    bench = Bench()
    bench.cache.put("innocent", bench.entry())
    for n in range(_MAX_FENCES):
        bench.fences.add(None, f"banned-{n}")
    bench.cache.put("late", bench.entry())
    assert None is not bench.cache.get("innocent")
    assert bench.fences.is_fenced(0, who("banned-0"))
    bench.fences.add(None, "one too many")
    assert None is bench.cache.get("innocent")
    assert None is bench.cache.get("late")
    assert bench.fences.is_fenced(0, who("banned-0"))
    for user in ("u", "one too many"):
        bench.cache.put(user, new := bench.entry(who(user)))
        assert new is bench.cache.get(user)


@virtual_time
async def test_a_cleared_cache_holds_nothing_and_works_on() -> None:
    """Closing forgets every token."""
    bench = Bench()
    bench.cache.put("key", bench.entry())
    bench.stock.add(bench.entry())
    bench.cache.clear()
    bench.stock.clear()
    assert (0, 0) == (len(bench.cache), len(bench.stock))
    assert None is bench.cache.get("key")
    assert None is bench.stock.take(who())
    bench.cache.put("key", entry := bench.entry())
    assert entry is bench.cache.get("key")


# Against a naive model.


@dataclass
class Held:
    """What the model knows of an entry."""

    entry: Entry
    ends: float
    born: int


@dataclass
class Model:
    """The cache, written down without regard to speed.

    It says what must be there and what must not; between the two the bounds leave some room.
    """

    limit: int
    puts: list[tuple[str, Held]] = field(default_factory=list)
    stocks: list[tuple[str, Held]] = field(default_factory=list)
    fences: dict[str, int] = field(default_factory=dict)
    generation: int = 0

    def usable(self, user: str, held: Held, now: float) -> bool:
        """Tell whether a token can be handed out."""
        return held.ends - now >= 5.0 and self.fences.get(user, 0) <= held.born

    def delivered(self, user: str) -> tuple[Held | None, bool]:
        """Return the newest entry of a user, and whether the bound keeps it for sure."""
        places = [n for n, (key, _) in enumerate(self.puts) if key == user]
        if not places:
            return None, False
        kept = len(self.puts) - places[-1] <= self.limit
        return self.puts[places[-1]][1], kept


users = st.sampled_from(["a", "b", "c", "d"])
operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "stock", "get", "take", "ban"]), users),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 10.0, 30.0, 54.5, 55.5])),
    ),
    max_size=60,
)


@thorough
@given(operations, st.integers(1, 4))
@virtual_time
async def test_the_cache_agrees_with_a_naive_one(script: list[tuple[str, Any]], limit: int) -> None:
    """Whatever is put, stocked, looked up, taken, banned and waited for."""
    bench = Bench(max_tokens=limit, max_stock=limit)
    cache, model = bench.cache, Model(limit)
    taken: set[str] = set()
    for what, argument in script:
        now = bench.clock.monotonic()
        if what == "wait":
            pass_time(argument)
        elif what == "ban":
            bench.fences.add(None, argument)
            model.generation += 1
            model.fences[argument] = model.generation
        elif what in ("put", "stock"):
            held = Held(bench.entry(who(argument)), now + 60, model.generation)
            if what == "put":
                cache.put(argument, held.entry)
                model.puts.append((argument, held))
            else:
                bench.stock.add(held.entry)
                model.stocks = [*model.stocks, (argument, held)][-limit:]
        elif what == "get":
            got = cache.get(argument)
            newest, kept = model.delivered(argument)
            if newest is None or not model.usable(argument, newest, now):
                assert None is got
            elif kept or got is not None:
                assert newest.entry is got
        else:
            got = bench.stock.take(who(argument))
            mine = [
                held
                for user, held in model.stocks
                if user == argument and model.usable(user, held, now)
            ]
            # What is dead may have made room already, so the cache may know of more than these.
            if mine:
                assert got is not None
            if got is not None:
                assert got.token.token not in taken
                taken.add(got.token.token)
                held = next(held for _, held in model.stocks if held.entry is got)
                assert mine[0] is held
                model.stocks = [pair for pair in model.stocks if pair[1] is not held]
        assert len(cache) <= limit
        assert len(bench.stock) <= limit
