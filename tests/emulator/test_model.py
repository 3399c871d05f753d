"""The emulator's model, on virtual clocks and without any server."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aioivschat.emulator as package
from aioivschat.emulator import (
    Answer,
    Drop,
    Emulator,
    Fault,
    FaultKind,
    Hang,
    QuotaShape,
    Request,
    ServiceError,
    TokenExpired,
    TokenSpent,
    TokenUnknown,
)

START = 1_800_000_000.0  # 2027-01-15T08:00:00Z
ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/AbCdEf123456"
OTHER_ACCOUNT = "arn:aws:ivschat:us-east-1:210987654321:room/AbCdEf123456"
EUROPE = "arn:aws:ivschat:eu-west-1:123456789012:room/AbCdEf123456"


class Time:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.passed = 0.0

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return START + self.passed

    def monotonic(self) -> float:
        """Return seconds that passed."""
        return self.passed


@pytest.fixture
def time() -> Time:
    """Clocks that stand still until a test moves them."""
    return Time()


@pytest.fixture
def emulator(time: Time) -> Emulator:
    """A model on those clocks."""
    return Emulator(clock=time.wall, monotonic=time.monotonic)


def token_request(region: str = "us-east-1", **members: Any) -> Request:
    """Return a CreateChatToken request, valid but for the members given."""
    body = {"roomIdentifier": ROOM, "userId": "alice", **members}
    return Request("CreateChatToken", json.dumps(body).encode(), region)


def answer(emulator: Emulator, request: Request | None = None) -> Answer:
    """Return the answer to a request, by default a valid one for a token."""
    outcome = emulator.respond(request or token_request())
    assert isinstance(outcome, Answer)
    return outcome


def statuses(emulator: Emulator, requests: int) -> list[int]:
    """Return the statuses of so many requests for a token."""
    return [answer(emulator).status for _ in range(requests)]


def members(of: Answer) -> Any:
    """Return what the JSON of an answer holds."""
    return json.loads(of.body)


# --- tokens ---------------------------------------------------------------------------------------


def test_token_lives_a_minute_and_session_as_long_as_asked(emulator: Emulator) -> None:
    """Both times are counted from the creation, in ISO 8601 with milliseconds."""
    reply = members(answer(emulator, token_request(sessionDurationInMinutes=90)))
    assert "2027-01-15T08:01:00.000Z" == reply["tokenExpirationTime"]
    assert "2027-01-15T09:30:00.000Z" == reply["sessionExpirationTime"]


def test_tokens_are_distinct_and_safe_in_headers(emulator: Emulator) -> None:
    """300 characters that a URL and a WebSocket subprotocol may hold, no two alike."""
    tokens = [members(answer(emulator))["token"] for _ in range(100)]
    assert 100 == len(set(tokens))
    assert {300} == {len(token) for token in tokens}
    assert all(token.replace("-", "").replace("_", "").isalnum() for token in tokens)


def test_minute_of_session_can_be_shorter(time: Time) -> None:
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
    emulator: Emulator, time: Time, after: float, works: bool
) -> None:
    """At the very end of its minute a token is of no more use."""
    token = members(answer(emulator))["token"]
    time.passed += after
    if works:
        emulator.redeem(token)
    else:
        with pytest.raises(TokenExpired):
            emulator.redeem(token)
    assert int(works) == emulator.counts().redeemed


def test_unknown_token_is_not_redeemed(emulator: Emulator) -> None:
    """What was never minted has an error of its own."""
    with pytest.raises(TokenUnknown):
        emulator.redeem("forged")


def test_grant_shows_no_user(emulator: Emulator) -> None:
    """User id and attributes stay out of the repr."""
    token = members(answer(emulator, token_request(attributes={"name": "canary"})))["token"]
    shown = repr(emulator.redeem(token))
    assert "alice" not in shown
    assert "canary" not in shown


def test_requests_and_answers_show_no_body(emulator: Emulator) -> None:
    """Neither a user id nor a token is in a repr."""
    request = token_request(userId="canary")
    reply = answer(emulator, request)
    assert "canary" not in repr(request)
    assert members(reply)["token"] not in repr(reply)


# --- validation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("roomIdentifier", None),
        ("roomIdentifier", 5),
        ("roomIdentifier", "AbCdEf123456"),
        ("roomIdentifier", "arn:aws:ivs:us-east-1:123456789012:channel/AbCdEf123456"),
        ("roomIdentifier", ROOM + "\n"),
        ("roomIdentifier", ROOM + "x" * 128),
        ("userId", None),
        ("userId", ""),
        ("userId", "x" * 129),
        ("userId", "\ud800"),
        ("capabilities", "SEND_MESSAGE"),
        ("capabilities", ["ROOT"]),
        ("capabilities", [1]),
        ("sessionDurationInMinutes", 0),
        ("sessionDurationInMinutes", 181),
        ("sessionDurationInMinutes", "60"),
        ("sessionDurationInMinutes", True),
        ("attributes", []),
        ("attributes", {"a": 1}),
        ("attributes", {"key": "ü" * 511}),
        ("attributes", {"key": "\udfff"}),
    ],
)
def test_invalid_member_is_named(emulator: Emulator, member: str, value: Any) -> None:
    """A member outside the service model's constraints is refused by name, not by value."""
    refusal = answer(emulator, token_request(**{member: value}))
    assert 400 == refusal.status
    assert "ValidationException" == refusal.headers["x-amzn-errortype"]
    error = members(refusal)
    assert "FIELD_VALIDATION_FAILED" == error["reason"]
    assert [member] == [field["name"] for field in error["fieldList"]]
    assert (1, 0) == (emulator.counts().refused, emulator.counts().minted)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("userId", "x" * 128),
        ("userId", "𝄞" * 128),
        ("capabilities", ["SEND_MESSAGE", "DELETE_MESSAGE", "DISCONNECT_USER", "SEND_MESSAGE"]),
        ("capabilities", None),
        ("sessionDurationInMinutes", 1),
        ("sessionDurationInMinutes", 180),
        ("attributes", {"ke": "ü" * 511}),
        ("attributes", {"": ""}),
    ],
)
def test_member_at_its_limit_is_accepted(emulator: Emulator, member: str, value: Any) -> None:
    """What the constraints just allow gets a token."""
    assert 200 == answer(emulator, token_request(**{member: value})).status


def test_every_invalid_member_is_named_at_once(emulator: Emulator) -> None:
    """One answer tells all that is wrong."""
    refusal = answer(emulator, token_request(userId="", sessionDurationInMinutes=0))
    names = [field["name"] for field in members(refusal)["fieldList"]]
    assert ["userId", "sessionDurationInMinutes"] == names


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"1", b"[" * 100_000])
def test_body_that_is_no_object_is_refused(emulator: Emulator, body: bytes) -> None:
    """Malformed JSON, and JSON that is no object, is a validation error."""
    refusal = answer(emulator, Request("CreateChatToken", body))
    assert (400, "OTHER") == (refusal.status, members(refusal)["reason"])


@given(st.binary())
def test_no_body_breaks_the_model(body: bytes) -> None:
    """Whatever comes gets an answer, and none of it is a token."""
    assert 400 == answer(Emulator(), Request("CreateChatToken", body)).status


def test_unknown_operation_is_refused(emulator: Emulator) -> None:
    """An operation that is not emulated is a validation error with that reason."""
    refusal = answer(emulator, Request("UpdateRoom", b"{}"))
    assert (400, "UNKNOWN_OPERATION") == (refusal.status, members(refusal)["reason"])


# --- rooms ----------------------------------------------------------------------------------------


def test_room_is_created_found_and_deleted(emulator: Emulator) -> None:
    """A room is there from its creation to its deletion."""
    room = emulator.create_room({"name": "lobby"}, region="eu-west-1", account="210987654321")
    assert f"arn:aws:ivschat:eu-west-1:210987654321:room/{room['id']}" == room["arn"]
    assert (12, True) == (len(room["id"]), room["id"].isalnum())

    identifier = {"identifier": room["arn"]}
    assert room == emulator.get_room(identifier, region="eu-west-1")
    emulator.delete_room(identifier, region="eu-west-1")
    with pytest.raises(ServiceError, match="ResourceNotFoundException"):
        emulator.get_room(identifier, region="eu-west-1")


def test_rooms_are_listed_by_pages_that_survive_deletion(emulator: Emulator) -> None:
    """Following the tokens gives each room once, although one seen before is deleted between."""
    arns = [emulator.create_room({"name": f"room-{n}"})["arn"] for n in range(7)]
    first = emulator.list_rooms({"maxResults": 3})
    emulator.delete_room({"identifier": arns[2]})
    second = emulator.list_rooms({"maxResults": 3, "nextToken": first["nextToken"]})
    last = emulator.list_rooms({"maxResults": 3, "nextToken": second["nextToken"]})
    seen = [room["arn"] for page in (first, second, last) for room in page["rooms"]]
    assert arns == seen
    assert "nextToken" not in last


def test_rooms_are_listed_by_account_region_and_name(emulator: Emulator) -> None:
    """A list holds no room of another account, region or name."""
    wanted = emulator.create_room({"name": "lobby"})["arn"]
    emulator.create_room({"name": "hall"})
    emulator.create_room({"name": "lobby"}, region="eu-west-1")
    emulator.create_room({"name": "lobby"}, account="210987654321")
    rooms = emulator.list_rooms({"name": "lobby"})["rooms"]
    assert [wanted] == [room["arn"] for room in rooms]


@pytest.mark.parametrize("any_room", [True, False])
def test_room_that_was_deleted_has_no_tokens(any_room: bool) -> None:
    """Whether or not every room exists, a deleted one does not."""
    emulator = Emulator(any_room=any_room)
    arn = emulator.create_room()["arn"]
    assert 200 == answer(emulator, token_request(roomIdentifier=arn)).status
    emulator.delete_room({"identifier": arn})
    assert 404 == answer(emulator, token_request(roomIdentifier=arn)).status


def test_unknown_room_is_not_found_if_rooms_must_exist() -> None:
    """The error is as modelled."""
    refusal = answer(Emulator(any_room=False))
    error = members(refusal)
    assert (404, "ResourceNotFoundException") == (
        refusal.status,
        refusal.headers["x-amzn-errortype"],
    )
    assert ("AbCdEf123456", "ROOM") == (error["resourceId"], error["resourceType"])


def test_room_of_another_region_is_not_found(emulator: Emulator) -> None:
    """A request must go to the region that is in the room's ARN."""
    assert 404 == answer(emulator, token_request(roomIdentifier=EUROPE)).status
    assert 200 == answer(emulator, token_request("eu-west-1", roomIdentifier=EUROPE)).status


# --- quota ----------------------------------------------------------------------------------------


def test_throttled_answer_is_as_modelled() -> None:
    """429, the code in the header, and the members of the service model."""
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
    """The quota counts by what is in the room's ARN."""
    emulator.configure(quota="fixed:1")
    requests = [
        token_request(roomIdentifier=ROOM),
        token_request(roomIdentifier=OTHER_ACCOUNT),
        token_request("eu-west-1", roomIdentifier=EUROPE),
    ]
    assert [200, 200, 200] == [answer(emulator, request).status for request in requests]
    assert [429, 429, 429] == [answer(emulator, request).status for request in requests]


def test_invalid_request_takes_nothing_from_the_quota(emulator: Emulator) -> None:
    """Only requests that name a room count."""
    emulator.configure(quota="fixed:1")
    assert 400 == answer(emulator, token_request(userId="")).status
    assert [200, 429] == statuses(emulator, 2)


def test_bucket_refills_steadily(emulator: Emulator, time: Time) -> None:
    """A bucket of 2 at 10 a second has one more after a tenth of a second."""
    emulator.configure(quota="bucket:10:2")
    assert [200, 200, 429] == statuses(emulator, 3)
    time.passed += 0.1
    assert [200, 429] == statuses(emulator, 2)


def test_fixed_window_starts_with_the_first_request(emulator: Emulator, time: Time) -> None:
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
    """A thousand requests at one instant are all served."""
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
    """From each admission on, a second holds at most as many as the limit."""
    times = admitted(QuotaShape("sliding", limit), pauses)
    for start in times:
        assert limit >= sum(start <= time < start + 1 for time in times)


@given(limit=st.integers(1, 5), pauses=gaps)
def test_no_fixed_window_is_above_the_limit(limit: int, pauses: list[float]) -> None:
    """The windows lie on a grid from the first admission on."""
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
    """Hammering a meter between requests changes nothing about which of them are served."""
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
    """A shape survives being printed and read."""
    parsed = QuotaShape.parse(text)
    assert (shape.kind, shape.rate) == (parsed.kind, parsed.rate)
    assert text == str(shape) == str(parsed)
    assert parsed == QuotaShape.parse(str(parsed))


def test_bucket_holds_a_second_by_default() -> None:
    """A size left out is the rate; nothing said at all is the published quota."""
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
    """What is no shape raises, and says so."""
    with pytest.raises(ValueError, match=r"quota|rate|bucket|not"):
        QuotaShape.parse(text)


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("throttle_json", 429, "ThrottlingException"),
        ("throttle_html", 429, None),
        ("throttle_empty", 429, None),
        ("error_500", 500, "InternalServerException"),
        ("error_503", 503, "ServiceUnavailableException"),
        ("access_denied", 403, "AccessDeniedException"),
        ("pending_verification", 403, "PendingVerification"),
        ("bad_signature", 403, "InvalidSignatureException"),
        ("echo_user", 400, "ValidationException"),
    ],
)
def test_fault_refuses_and_takes_nothing_from_the_quota(
    emulator: Emulator, kind: str, status: int, code: str | None
) -> None:
    """A refusing fault has its status and code, once, and mints nothing."""
    emulator.configure(quota="fixed:1")
    emulator.fail_next(Fault(FaultKind(kind), retry_after="7"))
    refusal = answer(emulator)
    assert (status, code, "7") == (
        refusal.status,
        refusal.headers.get("x-amzn-errortype"),
        refusal.headers["Retry-After"],
    )
    assert 0 == emulator.counts().minted
    assert [200, 429] == statuses(emulator, 2)


@pytest.mark.parametrize(("kind", "outcome"), [("reset", Drop(0.5)), ("black_hole", Hang())])
def test_fault_leaves_the_request_unanswered(
    emulator: Emulator, kind: str, outcome: Drop | Hang
) -> None:
    """A reset may come late, a black hole never answers; both count as dropped."""
    emulator.fail_next(Fault(FaultKind(kind), latency=0.5))
    assert outcome == emulator.respond(token_request())
    assert 1 == emulator.counts().dropped
    assert [(0.0, 0)] == list(emulator.outcomes)


def test_faults_spoil_a_success(emulator: Emulator) -> None:
    """Each of them is a 200 with something wrong in it, and each took a token from the quota."""
    kinds = ["truncate", "empty_object", "missing_token", "missing_expiry"]
    kinds += ["naive_expiry", "past_expiry", "garbage"]
    emulator.fail_next(*[Fault(FaultKind(kind)) for kind in kinds])
    answers = dict(zip(kinds, [answer(emulator) for _ in kinds], strict=True))
    assert {200} == {spoilt.status for spoilt in answers.values()}

    whole = {"token", "tokenExpirationTime", "sessionExpirationTime"}
    with pytest.raises(json.JSONDecodeError):
        members(answers["truncate"])
    assert {} == members(answers["empty_object"])
    assert whole - {"token"} == members(answers["missing_token"]).keys()
    assert whole - {"tokenExpirationTime"} == members(answers["missing_expiry"]).keys()
    naive = members(answers["naive_expiry"])["tokenExpirationTime"]
    assert "2027-01-15T08:01:00.000" == naive
    past = members(answers["past_expiry"])["tokenExpirationTime"]
    assert "2001-01-01T00:00:00.000Z" == past
    assert "text/html" == answers["garbage"].headers["Content-Type"]
    assert len(kinds) == emulator.counts().minted


def test_spoiling_fault_waits_for_a_success(emulator: Emulator) -> None:
    """A request that is refused anyway leaves the fault for the next one."""
    emulator.fail_next(Fault(FaultKind.EMPTY_OBJECT))
    assert 400 == answer(emulator, token_request(userId="")).status
    assert {} == members(answer(emulator))


def test_fault_echoes_the_user(emulator: Emulator) -> None:
    """The error repeats what a careful service would not."""
    emulator.fail_next(Fault(FaultKind.ECHO_USER))
    text = answer(emulator, token_request(attributes={"name": "canary"})).body.decode()
    assert "alice" in text
    assert "canary" in text


def test_faults_come_in_order_as_often_as_asked(emulator: Emulator) -> None:
    """Twice the one, then the other until it is cleared."""
    emulator.fail_next(Fault(FaultKind.ERROR_500, times=2), Fault(FaultKind.ERROR_503, times=None))
    assert [500, 500, 503, 503, 503] == statuses(emulator, 5)
    emulator.clear_faults()
    assert [200] == statuses(emulator, 1)


def test_fault_is_for_tokens_only(emulator: Emulator) -> None:
    """Room operations do not meet it."""
    emulator.fail_next(Fault(FaultKind.ERROR_500))
    assert 200 == answer(emulator, Request("CreateRoom", b"{}")).status
    assert [500] == statuses(emulator, 1)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("reset", Fault(FaultKind.RESET)),
        ("reset:3", Fault(FaultKind.RESET, times=3)),
        ("reset:0", Fault(FaultKind.RESET, times=None)),
    ],
)
def test_fault_is_read(text: str, fault: Fault) -> None:
    """The command line's form of a fault."""
    assert fault == Fault.parse(text)


@pytest.mark.parametrize(
    "value",
    [
        5,
        {},
        {"kind": "nonsense"},
        {"kind": "reset", "more": 1},
        {"kind": "reset", "times": 0},
        {"kind": "reset", "times": True},
        {"kind": "reset", "latency": -1},
        {"kind": "reset", "latency": "1"},
        {"kind": "reset", "retry_after": 1},
    ],
)
def test_malformed_fault_is_refused(value: object) -> None:
    """Whatever is no fault raises `ValueError`."""
    with pytest.raises(ValueError, match=r".+"):
        Fault.from_json(value)


# --- settings, delays, clocks ---------------------------------------------------------------------


def test_delay_is_latency_jitter_and_that_of_the_fault() -> None:
    """The three add up, the jitter by its share."""
    emulator = Emulator(latency=1.0, jitter=0.5, uniform=lambda: 0.5)
    emulator.fail_next(Fault(FaultKind.SLOW, latency=10.0))
    assert [11.25, 1.25] == [answer(emulator).delay for _ in range(2)]


def test_clock_skew_moves_date_and_expiry_alike(emulator: Emulator) -> None:
    """A service an hour ahead says so in its Date, and in what it says of tokens."""
    emulator.configure(clock_skew=3600.0)
    reply = answer(emulator)
    assert "Fri, 15 Jan 2027 09:00:00 GMT" == reply.headers["Date"]
    assert "2027-01-15T09:01:00.000Z" == members(reply)["tokenExpirationTime"]
    emulator.redeem(members(reply)["token"])


@pytest.mark.parametrize(
    ("setting", "sent"), [("absent", None), ("garbled", "yesterday, around noon")]
)
def test_date_header_can_be_wrong(emulator: Emulator, setting: str, sent: str | None) -> None:
    """It can be left out, or be no date."""
    emulator.configure(date_header=setting)
    assert sent == answer(emulator).headers.get("Date")


@pytest.mark.parametrize(
    "setting",
    [
        {"latency": -1},
        {"latency": "1"},
        {"jitter": float("nan")},
        {"clock_skew": float("inf")},
        {"token_life": True},
        {"any_room": 1},
        {"date_header": "wrong"},
        {"quota": "nonsense"},
        {"quota": 200},
        {"unheard_of": 1},
    ],
)
def test_invalid_setting_changes_nothing(emulator: Emulator, setting: dict[str, Any]) -> None:
    """It is refused, at construction as later."""
    before = emulator.settings
    with pytest.raises(ValueError, match=r".+"):
        emulator.configure(**{"minute": 1.0, **setting})
    assert before == emulator.settings
    with pytest.raises(ValueError, match=r".+"):
        Emulator(**setting)


def test_every_request_is_counted_once(emulator: Emulator, time: Time) -> None:
    """Each ends up in one of the counts, with its arrival and status."""
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
    """The tally per user is there for tests that need it."""
    emulator.respond(token_request())
    assert {} == emulator.minted_by_user
    emulator.configure(track_users=True)
    for user in ("alice", "bob", "alice"):
        emulator.respond(token_request(userId=user))
    assert {"alice": 2, "bob": 1} == emulator.minted_by_user


def test_flights_are_counted_with_their_peak(emulator: Emulator) -> None:
    """Two at once make a peak of two, which stays."""
    with emulator.flights, emulator.flights:
        assert 2 == emulator.counts().in_flight
    assert (0, 2) == (emulator.counts().in_flight, emulator.counts().peak_in_flight)


def test_reset_restores_the_initial_state(time: Time) -> None:
    """Settings, rooms, tokens, faults, quota and counts are those of the start."""
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
    """``__all__`` is explicit, sorted, and every name of it can be had."""
    assert sorted(package.__all__) == package.__all__
    assert all(getattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = package.nonsense


def test_denied_request_meets_no_fault(emulator: Emulator) -> None:
    """Who is not let in uses up neither faults nor quota."""
    emulator.fail_next(Fault(FaultKind.ERROR_500))
    denial = ServiceError(403, "InvalidSignatureException", "no")
    refusal = answer(emulator, Request("CreateChatToken", b"{}", denial=denial))
    assert (403, 1) == (refusal.status, emulator.counts().refused)
    assert [500] == statuses(emulator, 1)
