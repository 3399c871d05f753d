"""A plan: the service itself in virtual time, and arithmetic for what comes afterwards."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from aioivschat import InvalidConfiguration, Quota
from aioivschat.planning import (
    Arrivals,
    LiveEvent,
    Renewal,
    afterwards,
    earliest_finish,
    plan,
    plan_as_json,
    simulate,
)

PACE = 0.995 * 200  # what the limiter makes of a quota whose shape is unknown


@pytest.mark.parametrize(
    ("arrivals", "times"),
    [
        (Arrivals(), [0, 0, 0, 0]),
        (Arrivals("uniform", 8), [0, 2, 4, 6]),
        (Arrivals("curve", counts=(1, 0, 3)), [0, 2, 2 + 1 / 3, 2 + 2 / 3]),
        (Arrivals("curve", counts=(20, 0, 60)), [0, 2, 2 + 1 / 3, 2 + 2 / 3]),
    ],
)
def test_attendees_come_as_the_curve_says(arrivals: Arrivals, times: list[float]) -> None:
    """Arrivals come in order, the first at the doors; a curve is scaled to the attendees."""
    assert pytest.approx(times) == list(arrivals.times(4))


def test_a_ramp_grows_evenly() -> None:
    """On a ramp a quarter has come after half of the time, and all at its end."""
    times = Arrivals("ramp", 100).times(1_000)
    assert 250 == sum(each < 50 for each in times)
    assert 10 == sum(each < 10 for each in times)
    assert max(times) < 100


@pytest.mark.parametrize(
    ("lines", "counts"),
    [
        ("second,arrivals\n0,5\n2,7\n", (5, 0, 7)),
        ("0,5\n2,7", (5, 0, 7)),
        ("arrivals\n5\n0\n7\n", (5, 0, 7)),
        ("5\n\n0\n7\n\n", (5, 0, 7)),
        ("2,7\n0,4\n0,1\n", (5, 0, 7)),
    ],
)
def test_a_file_of_arrivals_is_read(lines: str, counts: tuple[int, ...]) -> None:
    """With a header or without, with seconds or one row for each; what is left out is 0."""
    assert Arrivals("curve", counts=counts) == Arrivals.read(lines.splitlines(keepends=True))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("second,arrivals\n0,many\n", "line 2"),
        ("0,1\n1,-1\n", "line 2"),
        ("0,1\n-1,1\n", "line 2"),
        ("0,1\n1,1,1\n", "line 2"),
        ("0,1\n86400,1\n", "line 2"),
        ("0,0\n", "1 to 10,000,000 in all"),
        ("0,10000001\n", "1 to 10,000,000 in all"),
        ("second,arrivals\n", "0 or more in each second"),
        ("", "0 or more in each second"),
    ],
)
def test_arrivals_that_make_no_sense_are_refused(lines: str, told: str) -> None:
    """Arrivals that cannot be read are refused, by their line where a row is at fault."""
    with pytest.raises(InvalidConfiguration, match=told):
        Arrivals.read(lines.splitlines())


@pytest.mark.parametrize(
    "text", ["", "once", "at-once:5", "uniform", "uniform:", "ramp:-1", "ramp:nan", "uniform:1e9"]
)
def test_a_curve_that_is_none_is_refused(text: str) -> None:
    """The error for an unknown shape names the allowed ones."""
    with pytest.raises(InvalidConfiguration, match="arrivals: must be"):
        Arrivals.parse(text)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("attendees", [0, 10_000_001]),
        ("prewarm", [-1, 55.1, float("nan")]),
        ("regions", [0, 8]),
        ("rooms", [0, 1_001]),
        ("session_minutes", [0, 181]),
        ("reconnects", [-1, 3_601]),
        ("patience", [0, float("inf")]),
        ("latency", [-0.1, 5.1]),
    ],
)
def test_an_event_that_cannot_be_is_refused(option: str, values: list[Any]) -> None:
    """The error for an option out of range names the option and its limit."""
    for value in values:
        with pytest.raises(InvalidConfiguration, match=f"{option}: must be"):
            LiveEvent(**{"attendees": 10, option: value})
    with pytest.raises(InvalidConfiguration, match="rooms: must be one for each region"):
        LiveEvent(10, regions=2)


def test_a_crowd_is_let_in_at_the_services_own_pace() -> None:
    """First come first served, without a token that the limiter would not have allowed."""
    outcome = simulate(LiveEvent(2_000, latency=0.05, quota=Quota(learnt=10)))
    assert (2_000, 2_000, {}) == (outcome.arrived, outcome.admitted, outcome.failed)
    assert outcome.waits is not None
    assert 2_000 / PACE == pytest.approx(outcome.finished, abs=0.06)
    assert 1_000 / PACE == pytest.approx(outcome.waits.p50, abs=0.06)
    assert 1_900 / PACE == pytest.approx(outcome.waits.p95, abs=0.06)
    assert outcome.finished == outcome.waits.last == outcome.waits.longest
    assert max(outcome.timeline.tokens) <= 200
    # Those who wait longer than 10 s come last.
    assert outcome.late == sum(outcome.timeline.admitted[10:])


@pytest.mark.parametrize(("learnt", "takes"), [(None, 0.4), (200, 0.2)])
def test_a_crowd_is_let_in_by_what_is_learnt_of_the_quota(learnt: int | None, takes: float) -> None:
    """Nothing is throttled in a plan: a second's quota is sent as fast as connections allow.

    One token more opens the client.
    """
    event = LiveEvent(1_999, latency=0.05, reconnects=0, quota=Quota(learnt=learnt))
    outcome = simulate(event)
    # The last two hundred go once nine windows are over.
    assert 9 * 200 / PACE < outcome.finished <= 9 * 200 / PACE + takes
    assert max(outcome.timeline.tokens) <= 200


def test_a_plan_is_the_same_each_time_and_waits_for_nothing() -> None:
    """An hour of arrivals takes no hour, and chance has no part in it."""
    event = LiveEvent(300, Arrivals("uniform", 3_600), reconnects=10)
    started = time.monotonic()
    assert simulate(event) == simulate(event)
    assert time.monotonic() - started < 600


def test_nobody_waits_where_the_quota_suffices() -> None:
    """Below the quota a viewer waits for the reply only."""
    outcome = simulate(LiveEvent(500, Arrivals("uniform", 10), latency=0.03))
    assert outcome.waits is not None
    assert 0.03 == pytest.approx(outcome.waits.longest, abs=0.001)
    assert 0 == outcome.late


def test_the_timeline_adds_up() -> None:
    """Each viewer comes once, gets in once and waits in between; each token is in its second."""
    outcome = simulate(LiveEvent(1_000, Arrivals("ramp", 3), prewarm=2, reconnects=0))
    timeline = outcome.timeline
    assert -2 == timeline.start
    assert [1_000, 1_000] == [sum(timeline.arrived), sum(timeline.admitted)]
    assert 1_000 == sum(timeline.tokens) - outcome.unused
    assert outcome.prewarmed == sum(timeline.tokens[:2])
    assert (0, 0) == (timeline.arrived[0], timeline.waiting[-1])
    assert min(timeline.waiting) == 0
    lengths = {
        len(getattr(timeline, each)) for each in ("arrived", "admitted", "waiting", "tokens")
    }
    assert {len(timeline.arrived)} == lengths


def test_prewarmed_tokens_wait_for_their_viewers() -> None:
    """As many as the quota gives beforehand are in within the first second."""
    outcome = simulate(LiveEvent(3_000, prewarm=10))
    assert 10 * PACE == pytest.approx(outcome.prewarmed, rel=0.02)
    assert outcome.first_second >= outcome.prewarmed
    assert 3_000 / PACE - 10 == pytest.approx(outcome.finished, abs=0.5)


def test_nothing_is_minted_ahead_for_who_comes_too_late() -> None:
    """A token that would have died before its viewer comes is none of the prewarmed ones."""
    outcome = simulate(LiveEvent(600, Arrivals("uniform", 600), prewarm=5, reconnects=0))
    # One comes a second, and the last of those would need to live for 55 s.
    assert outcome.prewarmed <= 56
    assert 0 == outcome.unused


def test_rooms_in_two_regions_have_a_quota_each() -> None:
    """With half of the crowd in each of two regions, all are in after half of the time."""
    outcome = simulate(LiveEvent(2_000, regions=2, rooms=4))
    assert 1_000 / PACE == pytest.approx(outcome.finished, abs=0.06)


def test_who_is_refused_is_counted() -> None:
    """Viewers over the limit of the queue fail with Overloaded and are counted."""
    outcome = simulate(LiveEvent(500, quota=Quota(max_waiting=100)))
    assert ["Overloaded"] == list(outcome.failed)
    assert 500 == outcome.admitted + outcome.failed["Overloaded"]
    assert 0 == outcome.timeline.waiting[-1]


def test_a_simulation_can_be_stopped() -> None:
    """A stopped simulation tells who was in and who still waited."""
    outcome = simulate(LiveEvent(2_000, patience=1.0), until=4.0)
    assert 4 * PACE == pytest.approx(outcome.admitted, abs=20)
    assert 2_000 == outcome.arrived
    # Those who were in within a second were not late.
    assert 2_000 - outcome.first_second == pytest.approx(outcome.late, abs=2)
    assert 4 == len(outcome.timeline.waiting)


@pytest.mark.parametrize(
    ("renewal", "viewers", "last"), [(Renewal.SESSION, 200, 18_000), (Renewal.TOKEN, 100, 3_000)]
)
def test_what_comes_afterwards_is_what_a_simulation_of_hours_finds(
    renewal: Renewal, viewers: int, last: int
) -> None:
    """The arithmetic of reconnects and renewals, against dozens of renewals of each viewer."""
    everybody_and_one = (viewers - 1, *(0,) * (last - 1), 1)
    event = LiveEvent(
        viewers,
        Arrivals("curve", counts=everybody_and_one),
        session_minutes=10,
        reconnects=6.0,
        renewal=renewal,
    )
    outcome = simulate(event)
    expected = afterwards(event, outcome)
    # The last one comes when all is over.
    a_second = (expected.reconnects + expected.renewals) * (viewers - 1) / viewers
    assert a_second == pytest.approx(outcome.returned / last, rel=0.04)
    assert expected.fits
    assert {Renewal.SESSION: 540.0, Renewal.TOKEN: 30.0}[renewal] == expected.renewed_after


def test_reconnects_need_not_be() -> None:
    """Without reconnects the crowd asks for renewals only."""
    event = LiveEvent(1_000, reconnects=0)
    then = afterwards(event, simulate(event))
    assert 0.0 == then.reconnects
    assert 1_000 / 3_540 == pytest.approx(then.renewals)
    # All come again at the pace at which they were let in.
    assert 200 == pytest.approx(then.peak, abs=2)


def test_renewing_by_token_carries_six_thousand() -> None:
    """A client spends a token every 30 s, so that 200 a second are used up by 6,000 of them."""
    event = LiveEvent(100, renewal=Renewal.TOKEN, reconnects=0)
    assert 6_000 == afterwards(event, simulate(event)).carried


@pytest.mark.parametrize(
    "event",
    [
        LiveEvent(100),
        LiveEvent(1_000),
        LiveEvent(1_000, quota=Quota(rate=200, burst=150)),
        LiveEvent(1_000, Arrivals("ramp", 4)),
        LiveEvent(1_000, Arrivals("uniform", 20)),
        LiveEvent(3_000, prewarm=10),
        LiveEvent(900, regions=2, rooms=3),
        LiveEvent(1_000, Arrivals("curve", counts=(300, 0, 700)), prewarm=1),
    ],
)
def test_nothing_ends_before_the_earliest_finish(event: LiveEvent) -> None:
    """No simulation ends before the earliest finish, nor far behind it."""
    earliest, finished = earliest_finish(event), simulate(event).finished
    assert earliest <= finished < 1.02 * earliest + 1.3


def test_the_earliest_finish_is_the_quotas() -> None:
    """Everybody's permit, less those of the time before the doors and those of a full bucket."""
    assert 49.0 == earliest_finish(LiveEvent(10_000))
    assert 49.5 == earliest_finish(LiveEvent(10_000, quota=Quota(burst=100)))
    assert 24.0 == earliest_finish(LiveEvent(10_000, regions=2, rooms=2))
    assert 39.0 == earliest_finish(LiveEvent(10_000, prewarm=10))
    assert 7.0 == earliest_finish(LiveEvent(8, Arrivals("uniform", 8)))
    # A third room gives one region two thirds of the crowd.
    assert pytest.approx(97 / 3, abs=0.01) == earliest_finish(LiveEvent(10_000, regions=2, rooms=3))


def test_gains_are_those_of_the_event_with_the_change() -> None:
    """Gains tried on a smaller crowd match a simulation of the whole crowd."""
    made = plan(LiveEvent(10_000))
    assert ["one more region", "prewarming 50 s ahead"] == [gain.change for gain in made.gains]
    for gain in made.gains:
        outcome = simulate(gain.event)
        assert outcome.waits is not None
        assert gain.waits is not None
        for member in ("p50", "p95", "last"):
            expected = getattr(outcome.waits, member)
            assert pytest.approx(expected, abs=0.3) == getattr(gain.waits, member)
        assert pytest.approx(outcome.late, abs=40) == gain.late


def test_only_what_can_be_changed_is_suggested() -> None:
    """There are seven regions, 50 s are the most, and the session's end is what it should be."""
    seven = LiveEvent(70, regions=7, rooms=7, prewarm=50)
    assert () == plan(seven).gains
    by_token = plan(replace(seven, renewal=Renewal.TOKEN)).gains
    assert ["renewing by session"] == [gain.change for gain in by_token]


def test_the_shape_of_the_json_is_stable() -> None:
    """Every member that docs/guide.md describes, and no other."""
    shape = json.loads(json.dumps(plan_as_json(plan(LiveEvent(300, prewarm=1)))))
    assert ["version", "event", "earliest_finish", "plan", "afterwards", "gains"] == list(shape)
    assert 1 == shape["version"]
    assert [
        "attendees",
        "arrivals",
        "prewarm",
        "rooms",
        "regions",
        "session_minutes",
        "reconnects",
        "renewal",
        "patience",
        "latency",
        "rate",
        "burst",
        "learnt",
    ] == list(shape["event"])
    assert {"shape": "at-once", "seconds": 0.0, "counts": []} == shape["event"]["arrivals"]
    assert [
        "arrived",
        "admitted",
        "failed",
        "waits",
        "late",
        "first_second",
        "finished",
        "prewarmed",
        "unused",
        "returned",
        "throttled",
        "timeline",
    ] == list(shape["plan"])
    assert ["p50", "p95", "p99", "last", "longest"] == list(shape["plan"]["waits"])
    assert ["start", "arrived", "admitted", "waiting", "tokens"] == list(shape["plan"]["timeline"])
    assert [
        "reconnects",
        "renewals",
        "peak",
        "quota",
        "renewed_after",
        "carried",
        "fits",
    ] == list(shape["afterwards"])
    for gain in shape["gains"]:
        assert ["change", "waits", "finished", "late"] == list(gain)


@pytest.mark.parametrize("leave", [gc.enable, gc.disable])
def test_the_garbage_collector_is_left_as_it_was(leave: Callable[[], None]) -> None:
    """The collector is on or off after a plan as it was before."""
    before = gc.isenabled()
    leave()
    try:
        expected = gc.isenabled()
        simulate(LiveEvent(10))
        assert expected == gc.isenabled()
    finally:
        (gc.enable if before else gc.disable)()


async def test_a_coroutine_plans_in_a_thread() -> None:
    """A simulation runs in a thread while a coroutine waits for it."""
    outcome = await asyncio.to_thread(simulate, LiveEvent(10))
    assert 10 == outcome.admitted
