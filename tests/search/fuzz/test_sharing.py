"""Whatever the shared store holds or says: a token that was sealed for its name, or a miss."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aioivschat import ChatToken, Clock, TokenRequest
from aioivschat._events import Observers
from aioivschat._service.fleet import Busy, Held
from aioivschat.redis import RedisTier
from aioivschat.redis._sealing import Sealer
from aioivschat.redis._tokens import RedisTokens
from support.engine import EngineServer
from support.fuzzing import Target, bounded
from support.services import ROOM, SEALING_KEY

SEALERS = (Sealer([SEALING_KEY]), Sealer([b"o" * 32, SEALING_KEY]))
PLAIN = b'["token", "2099-01-01T00:00:00+00:00", "2099-01-01T01:00:00+00:00"]'
SEALED = SEALERS[0].seal("name", PLAIN)


def check_value(value: bytes) -> None:
    """Check that what opens is what was sealed."""
    for sealer in SEALERS:
        assert sealer.open("name", value) in (None, PLAIN)
        assert sealer.open("another name", value) is None


_CUTS = st.tuples(st.integers(0, len(SEALED)), st.integers(0, len(SEALED)), st.binary(max_size=8))


@pytest.mark.fault(25)
@bounded
@given(
    st.binary(max_size=120)
    | st.binary(max_size=60).map(urlsafe_b64encode)
    | st.binary(max_size=60).map(lambda raw: urlsafe_b64encode(urlsafe_b64decode(SEALED)[:4] + raw))
    | _CUTS.map(lambda cut: SEALED[: cut[0]] + cut[2] + SEALED[cut[1] :])
)
def test_what_was_not_sealed_for_its_name_does_not_open(value: bytes) -> None:
    """Of any length, with the id of a key that is there, cut out of one that was."""
    check_value(value)


REQUEST, OTHER = TokenRequest(ROOM, "alice"), TokenRequest(ROOM, "bob")


@pytest.fixture
def invalidated() -> list[object]:
    """What the fleet has invalidated in the process of the fixture `tokens`."""
    return []


@pytest.fixture
async def tokens(
    engine_server: EngineServer, invalidated: list[object]
) -> AsyncIterator[RedisTokens]:
    """The tokens of a fleet as one process sees them."""
    tier = RedisTier(engine_server.url, keys=[SEALING_KEY], timeout=5.0)
    tokens = tier.bind(Clock(), 5.0, lambda *what: invalidated.append(what), Observers())
    tier.open()
    assert tokens is not None
    # The first answer brings the engine's time.
    await tokens.flight(OTHER.identity, None).claim(lease=1.0)
    yield tokens
    await tier.aclose()


_MOMENTS = st.sampled_from([b"0", b"9" * 16, b"9" * 400, b"1e9", b"-1", b""]) | st.binary(
    max_size=3
)


@pytest.mark.fault(25)
@bounded
@given(
    begun=_MOMENTS,
    ending=_MOMENTS,
    sealed=st.sampled_from([None, None, b"", b"|"]) | st.binary(max_size=40),
    lease=st.none()
    | st.dictionaries(st.sampled_from(["owner", "awaited", "x"]), st.binary(max_size=3)),
    fence=st.sampled_from([None, None, b"0", b"x", b"9" * 400, b"nan", b"-inf"]),
    kind=st.sampled_from("as"),
    left=st.sampled_from([30.0, 2.0]),
)
@example(b"0", b"9" * 400, None, None, None, "a", 30.0)
@example(b"0", b"9" * 16, None, None, None, "s", 2.0)
async def test_whatever_lies_in_the_store_is_a_token_or_a_miss(
    tokens: RedisTokens,
    engine_server: EngineServer,
    begun: bytes,
    ending: bytes,
    sealed: bytes | None,
    lease: dict[str, bytes] | None,
    fence: bytes | None,
    kind: str,
    left: float,
) -> None:
    """No claim raises, and none finds a token that was not sealed here, or a longer life than that
    which was sealed with it.
    """
    now = datetime.now(UTC)
    token = ChatToken("sealed here", now + timedelta(minutes=1), now + timedelta(hours=1))
    keys = tokens.store.key_rows(REQUEST.identity, REQUEST.identity)[0]
    name = {"a": keys.attempt, "s": keys.stock}[kind]
    if sealed is None:
        value = b"|".join([begun, ending, tokens.store.seal_token(name, token, left)])
    else:
        value = b"|".join([begun, ending, sealed])
    with engine_server.client() as client:
        client.flushall()
        if kind == "a":
            client.set(name, value)
        else:
            client.rpush(name, value)
        if lease:
            client.hset(keys.lease, mapping=lease)
        if fence is not None:
            client.set(keys.user_in_room_fence, fence)
        flight = tokens.flight(REQUEST.identity, REQUEST.identity)
        found = await flight.claim(lease=0.01)
        if isinstance(found, Held):
            assert sealed is None
            assert token == found.token or token.as_reused() == found.token
            assert 5.0 <= found.life <= left
        else:
            assert found is None or isinstance(found, Busy)
            if found is None:
                assert not client.exists(name)
        flight.close()
        await tokens.settled()


@pytest.mark.fault(25)
@bounded
@given(
    st.binary(max_size=40)
    | st.binary(max_size=40).map(lambda tail: b"fence:1 2 " + tail)
    | st.binary(max_size=40).map(lambda tail: b"landed:" + tail)
)
async def test_no_message_is_obeyed_that_was_not_sealed(
    tokens: RedisTokens, invalidated: list[object], message: bytes
) -> None:
    """Whoever can publish on the channel, but has no sealing key, invalidates nothing."""
    kind, _, text = message.partition(b":")
    tokens._dispatch_message(kind, text)
    assert [] == invalidated


TARGETS = {"sealed-values": Target(check_value, (SEALED, SEALED[:30]))}
