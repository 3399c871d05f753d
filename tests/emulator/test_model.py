"""The emulator's model: clocks, delays, counts and reset, without any server."""

from __future__ import annotations

import pytest

import aioivschat.emulator as package
from aioivschat.emulator import Emulator, Fault, FaultKind, Request, ServiceError, TokenUnknown
from support.emulators import SteppedTime, answer, members, statuses, token_request


def test_delay_is_latency_jitter_and_that_of_the_fault() -> None:
    """The delay is latency, a random share of the jitter and the fault's latency."""
    emulator = Emulator(latency=1.0, jitter=0.5, uniform=lambda: 0.5)
    emulator.fail_next(Fault(FaultKind.SLOW, latency=10.0))
    assert [11.25, 1.25] == [answer(emulator).delay for _ in range(2)]


def test_clock_skew_moves_date_and_expiry_alike(emulator: Emulator) -> None:
    """A service an hour ahead is so in its Date and in its tokens' times."""
    emulator.configure(clock_skew=3600.0)
    reply = answer(emulator)
    assert "Fri, 15 Jan 2027 09:00:00 GMT" == reply.headers["Date"]
    assert "2027-01-15T09:01:00.000Z" == members(reply)["tokenExpirationTime"]
    emulator.redeem(members(reply)["token"])


def test_every_request_is_counted_once(emulator: Emulator, time: SteppedTime) -> None:
    """Each request is in one of the counts, with its arrival and status."""
    emulator.configure(quota="fixed:1")
    kinds = [FaultKind.ERROR_500, FaultKind.RESET, FaultKind.ACCESS_DENIED]
    emulator.fail_next(*map(Fault, kinds))
    for _ in range(5):
        emulator.respond(token_request())
        time.passed += 0.125
    counts = emulator.counts()
    assert 5 == counts.requests
    assert (1, 1, 1, 1, 1) == (
        counts.minted,
        counts.throttled,
        counts.refused,
        counts.failed,
        counts.dropped,
    )
    assert [0.0, 0.125, 0.25, 0.375, 0.5] == list(emulator.arrivals)
    assert [500, 0, 403, 200, 429] == [status for _, status in emulator.outcomes]


def test_users_are_counted_only_if_asked(emulator: Emulator) -> None:
    """Tokens are counted by user only if asked for."""
    emulator.respond(token_request())
    assert {} == emulator.minted_by_user
    emulator.configure(track_users=True)
    for user in ("alice", "bob", "alice"):
        emulator.respond(token_request(userId=user))
    assert {"alice": 2, "bob": 1} == emulator.minted_by_user


def test_flights_are_counted_with_their_peak(emulator: Emulator) -> None:
    """Two requests at once make a peak of two, which stays."""
    with emulator.flights, emulator.flights:
        assert 2 == emulator.counts().in_flight
    assert (0, 2) == (emulator.counts().in_flight, emulator.counts().peak_in_flight)


def test_reset_restores_the_initial_state(time: SteppedTime) -> None:
    """A reset restores settings, rooms, tokens, faults, quota and counts."""
    emulator = Emulator(clock=time.wall, monotonic=time.monotonic, quota="fixed:1", any_room=False)
    fresh = emulator.counts()
    arn = emulator.create_room()["arn"]
    token = members(answer(emulator, token_request(roomIdentifier=arn)))["token"]
    emulator.configure(latency=1.0)
    emulator.fail_next(Fault(FaultKind.ERROR_500, times=None))

    with emulator.flights:
        emulator.reset()
    assert fresh == emulator.counts()
    assert 0.0 == emulator.settings.latency
    assert [] == list(emulator.arrivals)
    assert 404 == answer(emulator, token_request(roomIdentifier=arn)).status
    with pytest.raises(TokenUnknown):
        emulator.redeem(token)


def test_public_names_are_sorted_and_there() -> None:
    """``__all__`` is sorted, and each of its names can be imported."""
    assert sorted(package.__all__) == package.__all__
    assert all(getattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = package.nonsense


def test_denied_request_meets_no_fault(emulator: Emulator) -> None:
    """A request that is denied access uses up neither faults nor quota."""
    emulator.fail_next(Fault(FaultKind.ERROR_500))
    denial = ServiceError(403, "InvalidSignatureException", "no")
    refusal = answer(emulator, Request("CreateChatToken", b"{}", denial=denial))
    assert (403, 1) == (refusal.status, emulator.counts().refused)
    assert [500] == statuses(emulator, 1)
