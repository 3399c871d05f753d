"""The quota of CreateChatToken, in each of its shapes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioivschat.emulator import Emulator, QuotaShape
from support.emulators import EUROPE, ROOM, SteppedTime, answer, members, statuses, token_request

OTHER_ACCOUNT = "arn:aws:ivschat:us-east-1:210987654321:room/AbCdEf123456"


def test_throttled_answer_is_as_modelled() -> None:
    """A throttle is a 429 with its code in the header and the service model's members."""
    emulator = Emulator(quota="fixed:1", monotonic=lambda: 0.0)
    assert [200, 429] == statuses(emulator, 2)
    refusal = answer(emulator)
    assert "ThrottlingException" == refusal.headers["x-amzn-errortype"]
    assert {
        "message": "Rate exceeded",
        "resourceId": "AbCdEf123456",
        "resourceType": "ROOM",
        "limit": 1,
    } == members(refusal)


def test_each_account_and_region_has_its_own_quota(emulator: Emulator) -> None:
    """The quota counts by the account and region of the room's ARN."""
    emulator.configure(quota="fixed:1")
    requests = [
        token_request(roomIdentifier=ROOM),
        token_request(roomIdentifier=OTHER_ACCOUNT),
        token_request("eu-west-1", roomIdentifier=EUROPE),
    ]
    assert [200, 200, 200] == [answer(emulator, request).status for request in requests]
    assert [429, 429, 429] == [answer(emulator, request).status for request in requests]


def test_invalid_request_takes_nothing_from_the_quota(emulator: Emulator) -> None:
    """Only requests that name a room count towards the quota."""
    emulator.configure(quota="fixed:1")
    assert 400 == answer(emulator, token_request(userId="")).status
    assert [200, 429] == statuses(emulator, 2)


def test_bucket_refills_steadily(emulator: Emulator, time: SteppedTime) -> None:
    """A bucket of 2 at 10 a second has one more after a tenth of a second."""
    emulator.configure(quota="bucket:10:2")
    assert [200, 200, 429] == statuses(emulator, 3)
    time.passed += 0.1
    assert [200, 429] == statuses(emulator, 2)


def test_fixed_window_starts_with_the_first_request(emulator: Emulator, time: SteppedTime) -> None:
    """Windows follow one another from the first request on, used or not."""
    emulator.configure(quota="fixed:2")
    time.passed = 10.5
    assert [200] == statuses(emulator, 1)
    time.passed = 11.25
    assert [200, 429] == statuses(emulator, 2)
    time.passed = 11.5
    assert [200, 200, 429] == statuses(emulator, 3)
    time.passed = 13.25
    assert [200] == statuses(emulator, 1)
    time.passed = 13.5
    assert [200, 200, 429] == statuses(emulator, 3)


def test_unlimited_refuses_nobody(emulator: Emulator) -> None:
    """Without a limit a thousand requests at one instant are all served."""
    emulator.configure(quota="unlimited")
    assert {200} == set(statuses(emulator, 1000))


# Binary fractions, so that sums and differences of times are exact.
gaps = st.lists(st.integers(0, 2048).map(lambda units: units / 1024), max_size=60)


def admitted(shape: QuotaShape, pauses: Iterable[float]) -> list[float]:
    """Return when requests with these pauses between them were within the quota."""
    meter, now, times = shape.meter(), 0.0, []
    for pause in pauses:
        now += pause
        if meter.admit(now):
            times.append(now)
    return times


@given(limit=st.integers(1, 5), pauses=gaps)
def test_no_sliding_second_is_above_the_limit(limit: int, pauses: list[float]) -> None:
    """No second that begins with an admission holds more than the limit."""
    times = admitted(QuotaShape("sliding", limit), pauses)
    for start in times:
        assert limit >= sum(start <= time < start + 1 for time in times)


@given(limit=st.integers(1, 5), pauses=gaps)
def test_no_fixed_window_is_above_the_limit(limit: int, pauses: list[float]) -> None:
    """No window of the grid from the first admission on holds more than the limit."""
    times = admitted(QuotaShape("fixed", limit), pauses)
    windows = [int(time - times[0]) for time in times]
    assert all(limit >= windows.count(window) for window in windows)


@given(rate=st.sampled_from([1, 4, 16]), size=st.integers(1, 5), pauses=gaps)
def test_bucket_never_gives_more_than_it_held_and_gained(
    rate: int, size: int, pauses: list[float]
) -> None:
    """Any stretch of time sees at most a full bucket and what flowed into it meanwhile."""
    times = admitted(QuotaShape("bucket", rate, size), pauses)
    for first, start in enumerate(times):
        for last, end in enumerate(times[first:], first):
            assert last - first + 1 <= size + rate * (end - start)


@given(
    limit=st.integers(1, 5),
    pauses=gaps,
    kind=st.sampled_from(["fixed:{}", "sliding:{}", "bucket:{0}:{0}"]),
)
def test_throttled_request_takes_nothing(kind: str, limit: int, pauses: list[float]) -> None:
    """More requests that are throttled change nothing about which of the others are served."""
    shape = QuotaShape.parse(kind.format(limit))
    calm, hammered, now = shape.meter(), shape.meter(), 0.0
    for pause in pauses:
        now += pause
        served = calm.admit(now)
        assert served == hammered.admit(now)
        if not served:
            assert not any(hammered.admit(now) for _ in range(3))


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("bucket:200:20", QuotaShape("bucket", 200, 20)),
        ("bucket:0.5:1", QuotaShape("bucket", 0.5, 1)),
        ("fixed:200", QuotaShape("fixed", 200)),
        ("sliding:200", QuotaShape("sliding", 200)),
        ("unlimited", QuotaShape("unlimited")),
    ],
)
def test_quota_is_read_and_printed(text: str, shape: QuotaShape) -> None:
    """A printed quota is parsed as the same quota."""
    parsed = QuotaShape.parse(text)
    assert (shape.kind, shape.rate) == (parsed.kind, parsed.rate)
    assert text == str(shape) == str(parsed)
    assert parsed == QuotaShape.parse(str(parsed))


def test_bucket_holds_a_second_by_default() -> None:
    """A bucket without a size holds its rate; the default is the published quota."""
    assert QuotaShape("bucket", 50, 50) == QuotaShape.parse("bucket:50")
    assert QuotaShape("bucket", 200, 200) == QuotaShape()


@pytest.mark.parametrize(
    "text",
    [
        *("", ":1", "bucket", "bucket:x", "bucket:1:2:3", "bucket:0:1", "bucket:1:0"),
        *("bucket:nan:1", "fixed", "fixed:0", "fixed:1.5", "fixed:1:1"),
        *("sliding:-1", "sliding:inf", "unlimited:1"),
    ],
)
def test_malformed_quota_is_refused(text: str) -> None:
    """A malformed quota raises an error that says so."""
    with pytest.raises(ValueError, match=r"quota|rate|bucket|not"):
        QuotaShape.parse(text)
