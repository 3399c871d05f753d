"""What the engine sees: sealed values under keyed hashes."""

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
    """Sealing a value twice gives different texts, neither of which contains it."""
    sealer = Sealer([OLD])
    one, other = sealer.seal("name", PLAIN), sealer.seal("name", PLAIN)
    assert one != other
    assert PLAIN not in one
    assert one.isascii()
    assert PLAIN == sealer.open("name", one) == sealer.open("name", other)


@pytest.mark.fault(25)
def test_a_value_opens_under_its_own_name_only() -> None:
    """A value moved to another name does not open."""
    sealer = Sealer([OLD])
    assert sealer.open("another name", sealer.seal("name", PLAIN)) is None


@pytest.mark.fault(25)
def test_a_corrupted_value_does_not_open() -> None:
    """A value changed at any character, or cut anywhere, does not open."""
    sealer = Sealer([OLD])
    sealed = sealer.seal("name", PLAIN)
    for index in range(len(sealed) - 2):  # some bits of the last two characters mean nothing
        other = b"A" if sealed[index : index + 1] != b"A" else b"B"
        assert sealer.open("name", sealed[:index] + other + sealed[index + 1 :]) is None
        assert sealer.open("name", sealed[:index]) is None
    assert sealer.open("name", b"\xff\x00") is None


def test_keys_can_be_changed_while_a_fleet_runs() -> None:
    """At each step of changing a key, old and new processes open each other's values."""
    steps = [Sealer(keys) for keys in ([OLD], [OLD, NEW], [NEW, OLD], [NEW])]
    for before, after in pairwise(steps):
        for writer, reader in ((before, after), (after, before)):
            name = writer.names("a", "parts")[0]
            assert name in reader.names("a", "parts")
            assert PLAIN == reader.open(name, writer.seal(name, PLAIN))
    assert steps[-1].open("name", steps[0].seal("name", PLAIN)) is None


def test_names_of_different_things_differ() -> None:
    """Different things have different names, also where their joined texts are equal."""
    sealer = Sealer([OLD])
    parts = [("r", "u:x"), ("r:u", "x"), ("r", None), (None, "r"), ("r",), (["r"],), ("r", "")]
    for one, other in combinations(parts, 2):
        assert sealer.names(*one) != sealer.names(*other)
    assert sealer.names("r", "u") == Sealer([OLD]).names("r", "u")
    assert sealer.names("r", "u") != Sealer([NEW]).names("r", "u")


@pytest.mark.fault(30)
@pytest.mark.parametrize("key", [b"canary-short", "k" * 32, bytearray(32)])
def test_a_key_of_another_form_is_refused_and_not_shown(key: object) -> None:
    """A key that is not 32 bytes is refused by the option's name, and no repr shows a key."""
    keys = [OLD, key]
    with pytest.raises(InvalidConfiguration, match=r"RedisTier\.keys: must be of 32 bytes each"):
        RedisTier("redis://127.0.0.1:1", keys=keys)  # type: ignore[arg-type]  # what is tested
    tier = RedisTier("redis://127.0.0.1:1", keys=[OLD])
    assert OLD.decode() not in repr(tier)


@pytest.mark.parametrize("namespace", ["", "{a}", "x" * 65])
def test_a_namespace_that_would_break_the_hash_slot_is_refused(namespace: str) -> None:
    """A namespace is the hash tag of all keys, so braces and other lengths are refused."""
    with pytest.raises(InvalidConfiguration, match="namespace"):
        RedisTier("redis://127.0.0.1:1", namespace=namespace)
