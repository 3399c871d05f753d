"""The stock: bounded, each token for one caller, and never a token that cannot work."""

from __future__ import annotations

import pytest

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


@virtual_time
async def test_each_stocked_token_is_taken_exactly_once_oldest_first() -> None:
    """Each identity has tokens of its own, and an empty stock gives none."""
    store = TokenStore()
    identities = {user: identity_of(user) for user in "ab"}
    for _ in range(3):
        for identity in identities.values():
            store.stock.add(store.entry(identity))
    tokens = {
        user: [
            entry and entry.token.token for entry in (store.stock.take(identity) for _ in range(4))
        ]
        for user, identity in identities.items()
    }
    assert {
        "a": ["token-1", "token-3", "token-5", None],
        "b": ["token-2", "token-4", "token-6", None],
    } == tokens
    assert (0, 0) == (len(store.stock), store.stock.expired_unused)


@virtual_time
async def test_expired_stock_is_passed_over_and_counted() -> None:
    """The oldest usable token is taken; the one that was dropped before it was minted in vain."""
    store = TokenStore()
    store.stock.add(store.entry())
    pass_time(30.0)
    store.stock.add(young := store.entry())
    store.stock.add(store.entry())
    pass_time(26.0)
    assert young is store.stock.take(U)
    assert (1, 1) == (store.stock.expired_unused, len(store.stock))


@virtual_time
async def test_the_oldest_of_all_identities_makes_room() -> None:
    """The token that is dropped counts as unused."""
    store = TokenStore(max_stock=2)
    for user in "abc":
        store.stock.add(store.entry(identity_of(user)))
    assert (2, 1) == (len(store.stock), store.stock.expired_unused)
    assert None is store.stock.take(identity_of("a"))
    taken = [store.stock.take(identity_of(user)) for user in "bc"]
    assert ["token-2", "token-3"] == [entry.token.token for entry in taken if entry is not None]


# Restocking.


@virtual_time
async def test_a_token_that_nobody_took_is_restocked_once_and_as_stock_only() -> None:
    """It is no delivered token any more, so that no second call shares it."""
    store = TokenStore()
    entry = store.entry()
    store.cache.put(attempt(), entry)
    assert store.stock.restock(entry)
    assert (0, 1) == (len(store.cache), len(store.stock))
    assert None is store.cache.get(attempt())
    assert [entry, None] == [store.stock.take(U), store.stock.take(U)]


@virtual_time
async def test_a_token_that_somebody_was_given_is_never_restocked() -> None:
    """It may be spent by now."""
    store = TokenStore()
    entry = store.entry()
    store.cache.put(U, entry)
    entry.hand_out()
    assert not store.stock.restock(entry)
    assert 0 == len(store.stock)
    assert entry is store.cache.get(U)


@virtual_time
async def test_restocking_leaves_a_successor_alone() -> None:
    """Another token was delivered under the key meanwhile."""
    store = TokenStore()
    store.cache.put(U, stray := store.entry())
    store.cache.put(U, successor := store.entry())
    assert store.stock.restock(stray)
    assert successor is store.cache.get(U)
    assert stray is store.stock.take(U)


@virtual_time
async def test_a_token_that_cannot_work_is_not_restocked() -> None:
    """It has expired, or was invalidated while it was on its way."""
    store = TokenStore()
    late = store.entry()
    pass_time(56.0)
    assert not store.stock.restock(late)
    fenced = store.entry()
    store.fences.add(None, "u")
    assert not store.stock.restock(fenced)
    assert 0 == len(store.stock)


# No operation clears up after a mass of tokens.


@pytest.mark.fault(18)
@virtual_time
async def test_no_insertion_clears_up_after_a_mass_of_stock() -> None:
    """50,000 expire together: each insertion removes two at most, and each is counted."""
    store = TokenStore(max_stock=50_000)
    identities = [identity_of(str(number)) for number in range(50_000)]
    for identity in identities:
        store.stock.add(store.entry(identity))
    pass_time(120.0)
    removed = set()
    for identity in identities[:30_000]:
        before = len(store.stock)
        store.stock.add(store.entry(identity))
        removed.add(before + 1 - len(store.stock))
    assert removed <= {0, 1, 2}
    assert count_calls(lambda: store.stock.add(store.entry())) < 2 * MAX_CALLS
    assert 80_001 - len(store.stock) == store.stock.expired_unused


@pytest.mark.fault(18)
@virtual_time
async def test_taking_from_stock_of_many_clears_up_after_one_only() -> None:
    """Others' expired tokens are left to their own calls and to sweeps."""
    store = TokenStore(max_stock=50_000)
    for number in range(50_000):
        store.stock.add(store.entry(identity_of(str(number))))
    pass_time(120.0)
    wanted = identity_of("25000")
    assert count_calls(lambda: store.stock.take(wanted)) < MAX_CALLS
    assert 49_999 == len(store.stock)


@pytest.mark.fault(18)
@virtual_time
async def test_taking_from_stock_of_one_identity_does_not_clear_up_after_all_of_it() -> None:
    """`prewarm` mints one token for each request, also for equal ones."""
    store = TokenStore(max_stock=50_000)
    for _ in range(50_000):
        store.stock.add(store.entry())
    pass_time(120.0)
    assert count_calls(lambda: store.stock.take(U)) < MAX_CALLS
