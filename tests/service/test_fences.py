"""Invalidation: what began before it is never handed out again, and nothing else is lost."""

from __future__ import annotations

import pytest

from aioivschat._service.fences import _MAX_FENCES
from support.token_store import (
    MAX_CALLS,
    OTHER_ROOM,
    ROOM,
    TokenStore,
    U,
    attempt,
    count_calls,
    identity_of,
    pass_time,
)
from support.virtual import virtual_time


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
    """Delivered and stocked tokens of a room, of a user, or of a user in a room."""
    store = TokenStore()
    everybody = {(r, u): identity_of(u, r) for r in (ROOM, OTHER_ROOM) for u in ("u", "v")}
    for identity in everybody.values():
        store.cache.put(identity, store.entry(identity))
        store.stock.add(store.entry(identity))
    store.fences.add(room, user)
    not_cached = {who for who, identity in everybody.items() if store.cache.get(identity) is None}
    not_stocked = {who for who, identity in everybody.items() if store.stock.take(identity) is None}
    assert dead == not_cached == not_stocked


@virtual_time
async def test_a_fence_holds_for_what_began_before_it_and_for_nothing_else() -> None:
    """A token that arrives after the fence counts by the start of its request."""
    store = TokenStore()
    fences, user_v = store.fences, identity_of("v")
    before = fences.generation
    fences.add(None, "u")
    between = fences.generation
    fences.add(None, "v")
    assert fences.is_fenced(before, U)
    assert not fences.is_fenced(between, U)
    assert fences.is_fenced(between, user_v)
    assert not fences.is_fenced(fences.generation, user_v)
    for generation, found in ((before, False), (between, True)):
        store.cache.put(U, entry := store.entry(generation=generation))
        assert (entry if found else None) is store.cache.get(U)


@virtual_time
async def test_an_attempts_token_is_fenced_by_room_and_user_too() -> None:
    """Its idempotency key makes no difference."""
    store = TokenStore()
    store.cache.put(attempt(), store.entry())
    store.fences.add(ROOM, "u")
    assert None is store.cache.get(attempt())


@virtual_time
async def test_a_second_invalidation_moves_the_fence() -> None:
    """What was minted between the two is dead as well."""
    store = TokenStore()
    store.fences.add(ROOM, "u")
    store.cache.put(U, store.entry())
    store.fences.add(ROOM, "u")
    assert None is store.cache.get(U)


@virtual_time
async def test_a_fence_outlives_the_longest_queue() -> None:
    """A flight may wait for minutes: it began before the user was banned all the same."""
    store = TokenStore()
    began = store.fences.generation
    store.fences.add(None, "u")
    pass_time(61.0)
    assert store.fences.is_fenced(began, U)


@virtual_time
async def test_more_fences_than_are_kept_forget_everything_older() -> None:
    """Too much is forgotten rather than too little, and memory stays bounded."""
    store = TokenStore()
    fences, early, late, banned = store.fences, attempt("early"), attempt("late"), identity_of("0")
    store.cache.put(early, store.entry())
    for number in range(_MAX_FENCES):
        fences.add(None, str(number))
    store.cache.put(late, store.entry())
    assert None is not store.cache.get(early)
    assert fences.is_fenced(0, banned)
    fences.add(None, "one too many")
    assert None is store.cache.get(early)
    assert None is store.cache.get(late)
    assert fences.is_fenced(0, banned)
    for identity in (U, identity_of("one too many")):
        store.cache.put(identity, new := store.entry(identity))
        assert new is store.cache.get(identity)


@virtual_time
async def test_to_invalidate_takes_no_longer_when_much_is_held() -> None:
    """A fence is added, and no token is searched for."""
    store = TokenStore(max_tokens=50_000)
    for number in range(50_000):
        store.cache.put(attempt(number), store.entry())
    assert count_calls(lambda: store.fences.add(ROOM, None)) < MAX_CALLS


@pytest.mark.fault(18)
@virtual_time
async def test_no_look_up_takes_longer_after_many_invalidations() -> None:
    """50,000 users were banned a minute ago: a look-up checks three fences, not all."""
    store = TokenStore()
    for number in range(50_000):
        store.fences.add(None, str(number))
    store.cache.put(U, store.entry(life=300, generation=0))
    pass_time(120.0)
    assert count_calls(lambda: store.cache.get(U)) < MAX_CALLS
