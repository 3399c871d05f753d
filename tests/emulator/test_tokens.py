"""The emulator's tokens: what they are like, and how each is redeemed once."""

from __future__ import annotations

import pytest

from aioivschat.emulator import Emulator, TokenExpired, TokenSpent, TokenUnknown
from support.emulators import ROOM, SteppedTime, answer, members, token_request


def test_token_lives_a_minute_and_session_as_long_as_asked(emulator: Emulator) -> None:
    """Both expiry times count from the creation, in ISO 8601 with milliseconds."""
    reply = members(answer(emulator, token_request(sessionDurationInMinutes=90)))
    assert "2027-01-15T08:01:00.000Z" == reply["tokenExpirationTime"]
    assert "2027-01-15T09:30:00.000Z" == reply["sessionExpirationTime"]


def test_tokens_are_distinct_and_safe_in_headers(emulator: Emulator) -> None:
    """Tokens are distinct, of 300 characters that URLs and WebSocket subprotocols may hold."""
    tokens = [members(answer(emulator))["token"] for _ in range(100)]
    assert 100 == len(set(tokens))
    assert {300} == {len(token) for token in tokens}
    assert all(token.replace("-", "").replace("_", "").isalnum() for token in tokens)


def test_minute_of_session_can_be_shorter(time: SteppedTime) -> None:
    """With a minute of half a second, 60 minutes are over after 30 seconds."""
    emulator = Emulator(clock=time.wall, monotonic=time.monotonic, minute=0.5)
    assert "2027-01-15T08:00:30.000Z" == members(answer(emulator))["sessionExpirationTime"]


def test_token_is_redeemed_once(emulator: Emulator) -> None:
    """The first redemption gives what was granted, the second fails."""
    request = token_request(capabilities=["SEND_MESSAGE"], attributes={"a": "b"})
    token = members(answer(emulator, request))["token"]
    grant = emulator.redeem(token)
    assert (ROOM, "alice") == (grant.room, grant.user_id)
    assert {"SEND_MESSAGE"} == grant.capabilities
    assert {"a": "b"} == grant.attributes
    with pytest.raises(TokenSpent):
        emulator.redeem(token)
    assert 1 == emulator.counts().redeemed


@pytest.mark.parametrize(("after", "works"), [(59.9, True), (60.0, False)])
def test_token_is_redeemed_within_its_minute(
    emulator: Emulator, time: SteppedTime, after: float, works: bool
) -> None:
    """A token cannot be redeemed at the very end of its minute."""
    token = members(answer(emulator))["token"]
    time.passed += after
    if works:
        emulator.redeem(token)
    else:
        with pytest.raises(TokenExpired):
            emulator.redeem(token)
    assert int(works) == emulator.counts().redeemed


def test_unknown_token_is_not_redeemed(emulator: Emulator) -> None:
    """Redeeming a token that was never minted has an error of its own."""
    with pytest.raises(TokenUnknown):
        emulator.redeem("forged")


def test_grant_shows_no_user(emulator: Emulator) -> None:
    """The repr of a grant holds neither user id nor attributes."""
    token = members(answer(emulator, token_request(attributes={"name": "canary"})))["token"]
    shown = repr(emulator.redeem(token))
    assert "alice" not in shown
    assert "canary" not in shown


def test_requests_and_answers_show_no_body(emulator: Emulator) -> None:
    """The reprs of requests and answers hold neither a user id nor a token."""
    request = token_request(userId="canary")
    reply = answer(emulator, request)
    assert "canary" not in repr(request)
    assert members(reply)["token"] not in repr(reply)
