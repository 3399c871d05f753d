"""What the engine gets to see: sealed values, under names that tell nothing."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest

from aioivschat import InvalidConfiguration
from aioivschat.redis import RedisTier
from aioivschat.redis._sealing import Sealer

OLD, NEW = b"o" * 32, b"n" * 32
PLAIN = b"canary-plain"


@pytest.mark.fault(30)
def test_a_sealed_value_shows_nothing_and_never_looks_the_same_twice() -> None:
    """Equal tokens cannot be told to be equal."""
    sealer = Sealer([OLD])
    one, other = sealer.seal("name", PLAIN), sealer.seal("name", PLAIN)
    assert one != other
    assert PLAIN not in one
    assert one.isascii()
    assert PLAIN == sealer.open("name", one) == sealer.open("name", other)


@pytest.mark.fault(25)
def test_a_value_opens_under_its_own_name_only() -> None:
    """One that somebody moved to another name is worth nothing."""
    sealer = Sealer([OLD])
    assert sealer.open("another name", sealer.seal("name", PLAIN)) is None


@pytest.mark.fault(25)
def test_a_corrupted_value_does_not_open() -> None:
    """Wherever it was hit, and however short it was cut."""
    sealer = Sealer([OLD])
    sealed = sealer.seal("name", PLAIN)
    for place in range(len(sealed) - 2):  # of the last two characters some bits mean nothing
        other = b"A" if sealed[place : place + 1] != b"A" else b"B"
        assert sealer.open("name", sealed[:place] + other + sealed[place + 1 :]) is None
        assert sealer.open("name", sealed[:place]) is None
    assert sealer.open("name", b"\xff\x00") is None


def test_keys_can_be_changed_while_a_fleet_runs() -> None:
    """At each step, neighbours open each other's values and find each other's names."""
    steps = [Sealer(keys) for keys in ([OLD], [OLD, NEW], [NEW, OLD], [NEW])]
    for before, after in pairwise(steps):
        for writer, reader in ((before, after), (after, before)):
            name = writer.names("a", "parts")[0]
            assert name in reader.names("a", "parts")
            assert PLAIN == reader.open(name, writer.seal(name, PLAIN))
    assert steps[-1].open("name", steps[0].seal("name", PLAIN)) is None


def test_names_of_different_things_differ() -> None:
    """Also where joined text would be the same."""
    sealer = Sealer([OLD])
    parts = [("r", "u:x"), ("r:u", "x"), ("r", None), (None, "r"), ("r",), (["r"],), ("r", "")]
    for one, other in combinations(parts, 2):
        assert sealer.names(*one) != sealer.names(*other)
    assert sealer.names("r", "u") == Sealer([OLD]).names("r", "u")
    assert sealer.names("r", "u") != Sealer([NEW]).names("r", "u")


@pytest.mark.fault(30)
@pytest.mark.parametrize("key", [b"canary-short", "k" * 32, bytearray(32)])
def test_a_key_that_is_none_is_refused_and_not_shown(key: object) -> None:
    """At construction, naming the option."""
    keys = [OLD, key]
    with pytest.raises(InvalidConfiguration, match=r"RedisTier\.keys: must be of 32 bytes each"):
        RedisTier("redis://127.0.0.1:1", keys=keys)  # type: ignore[arg-type]  # what is tested
    tier = RedisTier("redis://127.0.0.1:1", keys=[OLD])
    assert OLD.decode() not in repr(tier)


@pytest.mark.parametrize("namespace", ["", "{a}", "x" * 65])
def test_a_namespace_that_would_break_the_hash_slot_is_refused(namespace: str) -> None:
    """It is the tag of all keys."""
    with pytest.raises(InvalidConfiguration, match="namespace"):
        RedisTier("redis://127.0.0.1:1", namespace=namespace)
