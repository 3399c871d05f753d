"""Faults: how they are queued, and what each does to an answer."""

from __future__ import annotations

import json

import pytest

from aioivschat.emulator import Drop, Emulator, Fault, FaultKind, Hang, Request
from support.emulators import answer, members, statuses, token_request


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
    """A spoiling fault is a 200 with something wrong in it that took a token from the quota."""
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
    """The fault's error repeats the user id, which a careful service would not."""
    emulator.fail_next(Fault(FaultKind.ECHO_USER))
    text = answer(emulator, token_request(attributes={"name": "canary"})).body.decode()
    assert "alice" in text
    assert "canary" in text


def test_faults_come_in_order_as_often_as_asked(emulator: Emulator) -> None:
    """A fault queued twice comes twice; the next one lasts until it is cleared."""
    emulator.fail_next(Fault(FaultKind.ERROR_500, times=2), Fault(FaultKind.ERROR_503, times=None))
    assert [500, 500, 503, 503, 503] == statuses(emulator, 5)
    emulator.clear_faults()
    assert [200] == statuses(emulator, 1)


def test_fault_is_for_tokens_only(emulator: Emulator) -> None:
    """Room operations meet no fault."""
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
    """A fault is parsed from the form of the command line."""
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
    """A malformed fault raises `ValueError`."""
    with pytest.raises(ValueError, match=r".+"):
        Fault.from_json(value)
