"""The cache: bounded, quick whatever expires, and never a token that cannot work."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioivschat import CachePolicy, InvalidConfiguration
from aioivschat._service.cache import Entry
from support.token_store import (
    MAX_CALLS,
    TokenStore,
    U,
    attempt,
    count_calls,
    identity_of,
    pass_time,
)
from support.virtual import virtual_time

thorough = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


# The policy.


@pytest.mark.fault(15)
@pytest.mark.parametrize("margin", [60, 60.0, 61.0, float("inf"), float("nan"), -0.1])
def test_a_margin_that_no_token_can_have_is_refused(margin: float) -> None:
    """A token lives 60 s: with 60 or more left, none could ever be handed out."""
    with pytest.raises(InvalidConfiguration) as caught:
        CachePolicy(min_remaining=margin)
    assert "CachePolicy.min_remaining" == caught.value.option
    assert "at least 0 s and below 60 s" in caught.value.limit


@pytest.mark.parametrize("margin", [0, 0.0, 5.0, 59.999])
def test_a_margin_below_a_tokens_life_is_accepted(margin: float) -> None:
    """It may be as low as 0 s."""
    assert margin == CachePolicy(min_remaining=margin).min_remaining


@pytest.mark.parametrize("option", ["max_tokens", "max_stock"])
def test_bounds_below_one_are_refused(option: str) -> None:
    """A cache that holds nothing is a mistake in the configuration."""
    for bound in (0, -1):
        with pytest.raises(
            InvalidConfiguration,
            match=rf"CachePolicy\.{option}: must be at least 1",
        ):
            CachePolicy(**cast("dict[str, Any]", {option: bound}))
    assert 1 == getattr(CachePolicy(**cast("dict[str, Any]", {option: 1})), option)


# How long a token is handed out.


@pytest.mark.fault(15)
@virtual_time
async def test_a_token_is_handed_out_while_the_margin_is_left() -> None:
    """A delivered and a stocked token are given up to 55 s of 60, and not a moment longer."""
    store = TokenStore(min_remaining=5.0)
    store.cache.put(U, entry := store.entry())
    store.stock.add(spare := store.entry())
    store.stock.add(store.entry())
    pass_time(55.0)
    assert entry is store.cache.get(U)
    assert spare is store.stock.take(U)
    pass_time(0.001)
    assert None is store.cache.get(U)
    assert None is store.stock.take(U)
    assert (0, 0) == (len(store.cache), len(store.stock))


@pytest.mark.fault(16)
@virtual_time
async def test_a_wall_clock_stepped_forward_ends_a_life() -> None:
    """By the wall clock an hour has passed, so the token may have expired."""
    store = TokenStore()
    store.cache.put(U, store.entry())
    store.stock.add(store.entry())
    store.clock.step = 3600
    assert None is store.cache.get(U)
    assert None is store.stock.take(U)


@pytest.mark.fault(16)
@virtual_time
async def test_what_died_stays_dead_when_the_wall_clock_is_set_right() -> None:
    """A token that was found expired is gone, even if the clock was wrong."""
    store = TokenStore()
    store.cache.put(U, store.entry())
    store.clock.step = 3600
    assert None is store.cache.get(U)
    store.clock.step = 0
    assert None is store.cache.get(U)


@pytest.mark.fault(16)
@virtual_time
async def test_a_wall_clock_stepped_back_lengthens_no_life() -> None:
    """The monotonic clock has gone on, and its deadline holds."""
    store = TokenStore(min_remaining=5.0)
    store.cache.put(U, entry := store.entry())
    store.stock.add(store.entry())
    store.clock.step = -3600
    pass_time(55.0)
    assert entry is store.cache.get(U)
    pass_time(0.001)
    assert None is store.cache.get(U)
    assert None is store.stock.take(U)


@pytest.mark.fault(16)
@virtual_time
async def test_a_stalled_monotonic_clock_lengthens_no_life() -> None:
    """The host was suspended for minutes, which only the wall clock saw."""
    store = TokenStore()
    store.cache.put(U, store.entry())
    store.stock.add(store.entry())
    pass_time(180.0)
    store.clock.stalled = 180.0
    assert None is store.cache.get(U)
    assert None is store.stock.take(U)


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
    """Time passes, the wall clock is stepped, the host is suspended: in any order."""
    store = TokenStore(min_remaining=5.0)
    entry = store.entry()
    mono_end, wall_end = store.clock.monotonic() + 60, store.clock.wall() + 60
    store.cache.put(U, entry)
    awake = 0.0
    for what, seconds, sign in script:
        if what == "pass":
            pass_time(seconds)
            awake += seconds
        elif what == "step":
            store.clock.step += sign * seconds
        else:
            pass_time(seconds)
            store.clock.stalled += seconds
        left = min(mono_end - store.clock.monotonic(), wall_end - store.clock.wall())
        got = store.cache.get(U)
        assert (left < 5.0) or got is entry
        if left < 5.0 or awake > 55.001:
            assert None is got
            return


# Bounds.


@pytest.mark.fault(18)
@virtual_time
async def test_a_million_distinct_keys_stay_within_the_limit() -> None:
    """The oldest tokens make room, and the newest are there."""
    store = TokenStore(max_tokens=1_000)
    cache, sample = store.cache, store.entry()
    most = 0
    for number in range(1_000_000):
        entry = Entry(U, sample.token, sample.monotonic_end, sample.wall_end, 0)
        cache.put(attempt(number), entry)
        if not number % 997:
            most = max(most, len(cache))
    assert 1_000 == most == len(cache)
    assert None is cache.get(attempt(1_000_000 - 1_001))
    assert None is not cache.get(attempt(1_000_000 - 1_000))


@pytest.mark.fault(18)
@virtual_time
async def test_memory_is_flat_after_warm_up() -> None:
    """Ten turnovers of cached and stocked tokens of distinct users take no more memory."""
    store = TokenStore(max_tokens=200, max_stock=200)

    def turn_over(start: int) -> None:
        for number in range(start, start + 2_000):
            identity = identity_of(f"user-{number}")
            store.cache.put(identity, store.entry(identity))
            store.stock.add(store.entry(identity))
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
    # A single entry with its identity takes about 1 KB.
    assert after - before < 20_000
    assert (200, 200) == (len(store.cache), len(store.stock))


@virtual_time
async def test_a_key_whose_token_was_replaced_is_as_young_as_the_new_one() -> None:
    """What makes room is the oldest token, whatever was delivered under its key before."""
    store = TokenStore(max_tokens=2)
    store.cache.put(attempt("other"), store.entry())
    store.cache.put(U, store.entry())
    store.fences.add(None, "u")
    assert None is store.cache.get(U)
    store.cache.put(U, entry := store.entry())
    store.cache.put(attempt("third"), store.entry())
    assert entry is store.cache.get(U)


@pytest.mark.fault(18)
@virtual_time
async def test_no_insertion_clears_up_after_a_mass_of_delivered_tokens() -> None:
    """50,000 expire together: each insertion removes two at most, and catches up all the same."""
    store = TokenStore(max_tokens=50_000)
    cache = store.cache
    for number in range(50_000):
        cache.put(attempt(number), store.entry())
    pass_time(120.0)
    removed, calls = [], []
    for number in range(60_000, 110_000):
        before, key, entry = len(cache), attempt(number), store.entry()
        if number % 100:
            cache.put(key, entry)
        else:
            calls.append(count_calls(partial(cache.put, key, entry)))
        removed.append(before + 1 - len(cache))
    assert 2 == max(removed)
    assert max(calls) < MAX_CALLS
    assert 50_000 == len(cache)


@pytest.mark.fault(18)
@virtual_time
async def test_no_look_up_clears_up_after_a_mass_of_delivered_tokens() -> None:
    """A look-up that finds an expired token removes this one only."""
    store = TokenStore(max_tokens=50_000)
    for number in range(50_000):
        store.cache.put(attempt(number), store.entry())
    pass_time(120.0)
    for number in (25_000, 0, 49_999):
        before, key = len(store.cache), attempt(number)
        assert count_calls(partial(store.cache.get, key)) < MAX_CALLS
        assert before - 1 == len(store.cache)


@virtual_time
async def test_a_cleared_cache_and_stock_hold_nothing_and_work_on() -> None:
    """Closing forgets every token."""
    store = TokenStore()
    store.cache.put(U, store.entry())
    store.stock.add(store.entry())
    store.cache.clear()
    store.stock.clear()
    assert (0, 0) == (len(store.cache), len(store.stock))
    assert None is store.cache.get(U)
    assert None is store.stock.take(U)
    store.cache.put(U, entry := store.entry())
    assert entry is store.cache.get(U)


# What callers are given.


@virtual_time
async def test_only_a_token_that_is_given_again_is_a_hit() -> None:
    """A look-up that finds no token, or only an expired one, is not counted."""
    store = TokenStore()
    assert None is store.cache.get(U)
    store.cache.put(U, entry := store.entry())
    assert entry is store.cache.get(U)
    pass_time(56.0)
    assert None is store.cache.get(U)
    assert 1 == store.cache.hits


@virtual_time
async def test_a_token_is_marked_as_reused_from_its_second_caller_on() -> None:
    """All are given the same token; only the mark differs."""
    entry = TokenStore().entry()
    before, tokens, after = entry.handed_out, [entry.hand_out() for _ in range(3)], entry.handed_out
    assert (False, True) == (before, after)
    assert [False, True, True] == [token.reused for token in tokens]
    assert {"token-1"} == {token.token for token in tokens}


# Against a naive model.


@dataclass
class Held:
    """What the model knows of an entry."""

    entry: Entry
    ends: float
    generation: int


@dataclass
class Model:
    """Cache, stock and fences, written down without regard to speed.

    It says which tokens must be found and which must not; the bounds leave the rest open.
    """

    limit: int
    puts: list[tuple[str, Held]] = field(default_factory=list)
    stocks: list[tuple[str, Held]] = field(default_factory=list)
    fences: dict[str, int] = field(default_factory=dict)
    generation: int = 0

    def usable(self, user: str, held: Held, now: float) -> bool:
        """Tell whether a token can be handed out."""
        return held.ends - now >= 5.0 and self.fences.get(user, 0) <= held.generation

    def delivered(self, user: str) -> tuple[Held | None, bool]:
        """Return the newest entry of a user, and whether the bound keeps it for sure."""
        of_user = [number for number, (owner, _) in enumerate(self.puts) if owner == user]
        if not of_user:
            return None, False
        kept = len(self.puts) - of_user[-1] <= self.limit
        return self.puts[of_user[-1]][1], kept


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
async def test_cache_and_stock_agree_with_a_naive_model(
    script: list[tuple[str, Any]], limit: int
) -> None:
    """Random puts, look-ups, stocked and taken tokens, bans and waits."""
    store = TokenStore(max_tokens=limit, max_stock=limit)
    cache, model = store.cache, Model(limit)
    taken: set[str] = set()
    for what, argument in script:
        now = store.clock.monotonic()
        if what == "wait":
            pass_time(argument)
        elif what == "ban":
            store.fences.add(None, argument)
            model.generation += 1
            model.fences[argument] = model.generation
        elif what in ("put", "stock"):
            identity = identity_of(argument)
            held = Held(store.entry(identity), now + 60, model.generation)
            if what == "put":
                cache.put(identity, held.entry)
                model.puts.append((argument, held))
            else:
                store.stock.add(held.entry)
                model.stocks = [*model.stocks, (argument, held)][-limit:]
        elif what == "get":
            got = cache.get(identity_of(argument))
            newest, kept = model.delivered(argument)
            if newest is None or not model.usable(argument, newest, now):
                assert None is got
            elif kept or got is not None:
                assert newest.entry is got
        else:
            got = store.stock.take(identity_of(argument))
            mine = [
                held
                for user, held in model.stocks
                if user == argument and model.usable(user, held, now)
            ]
            # Expired tokens may have been dropped early, so the stock may hold more than these.
            if mine:
                assert got is not None
            if got is not None:
                assert got.token.token not in taken
                taken.add(got.token.token)
                held = next(held for _, held in model.stocks if held.entry is got)
                assert mine[0] is held
                model.stocks = [pair for pair in model.stocks if pair[1] is not held]
        assert len(cache) <= limit
        assert len(store.stock) <= limit
