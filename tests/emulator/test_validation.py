"""Members of requests are held to the service model's constraints."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioivschat.emulator import Emulator, Request
from support.emulators import ROOM, answer, members, token_request


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
    """Members at the limits of the service model get a token."""
    assert 200 == answer(emulator, token_request(**{member: value})).status


def test_every_invalid_member_is_named_at_once(emulator: Emulator) -> None:
    """One answer names all invalid members."""
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
    """Random bytes as a body always get an answer with 400."""
    assert 400 == answer(Emulator(), Request("CreateChatToken", body)).status


def test_unknown_operation_is_refused(emulator: Emulator) -> None:
    """An operation that is not emulated is a validation error that says so."""
    refusal = answer(emulator, Request("UpdateRoom", b"{}"))
    assert (400, "UNKNOWN_OPERATION") == (refusal.status, members(refusal)["reason"])
