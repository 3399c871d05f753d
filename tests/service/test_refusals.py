"""Whom the failures of a job concern: a row, a room, or all that is left of it."""

from __future__ import annotations

from typing import Any

import pytest

from aioivschat import errors
from aioivschat._service.refusals import ENOUGH, Refusals
from aioivschat.errors import (
    AccessDenied,
    ChatTokenError,
    ConnectionFailed,
    CredentialsFailed,
    DeadlineExceeded,
    Interrupted,
    InvalidConfiguration,
    InvalidRequest,
    MalformedResponse,
    Overloaded,
    PendingVerification,
    ResourceNotFound,
    Scope,
    ServerFault,
    ServiceClosed,
    Throttled,
    ValidationFailed,
    WrongLoop,
)

SCOPES: dict[type[ChatTokenError], Scope] = {
    ChatTokenError: "request",
    InvalidRequest: "request",
    Overloaded: "request",
    DeadlineExceeded: "request",
    errors.AwsError: "request",
    ValidationFailed: "request",
    AccessDenied: "room",
    ResourceNotFound: "room",
    CredentialsFailed: "account",
    PendingVerification: "account",
    Throttled: "account",
    ConnectionFailed: "service",
    Interrupted: "service",
    InvalidConfiguration: "service",
    MalformedResponse: "service",
    ServerFault: "service",
    ServiceClosed: "service",
    WrongLoop: "service",
}

A, B, C, D = "room a", "room b", "room c", "room d"


def unknown_credentials() -> AccessDenied:
    """Return what AWS says of credentials that it does not know."""
    error = AccessDenied({})
    error.scope = "account"
    return error


@pytest.mark.fault(40)
def test_every_error_says_whom_it_concerns() -> None:
    """Each class of the tree is in the table above, where a person adds a new one."""
    tree = {
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, ChatTokenError)
    }
    assert SCOPES == {each: each.scope for each in tree}


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    "error",
    [
        unknown_credentials(),
        PendingVerification({}),
        CredentialsFailed("anything"),
        InvalidConfiguration("url", "HTTPS", "HTTP"),
        ServiceClosed(),
        WrongLoop("process"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_concerns_all_and_lasts_ends_a_job_at_once(error: ChatTokenError) -> None:
    """Whatever was served before; the error that ends it is a copy without a traceback."""
    refusals = Refusals()
    refusals.note_served(A)
    assert refusals.note_failed(A, error)
    for found in (refusals.of_all, refusals.find(A), refusals.find(B)):
        assert (type(error), str(error)) == (type(found), str(found))
        assert found is not error


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    "error",
    [
        Overloaded("too many calls are waiting", 1.0),
        DeadlineExceeded(1.0),
        InvalidRequest("userId", "text", "other"),
        ValidationFailed({}),
        OSError("not of the tree"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_concerns_a_request_ends_nothing(error: Exception) -> None:
    """However often it comes."""
    refusals = Refusals()
    assert not any(refusals.note_failed(A, error) for _ in range(100))
    assert refusals.of_all is refusals.find(A) is None


@pytest.mark.fault(40)
@pytest.mark.parametrize("kind", [AccessDenied, ResourceNotFound])
def test_a_room_is_refused_after_a_handful_in_a_row(kind: Any) -> None:
    """A token for it starts the count anew; other rooms go on."""
    refusals = Refusals()
    for _ in range(3):
        assert not any(refusals.note_failed(A, kind({})) for _ in range(ENOUGH - 1))
        refusals.note_served(A)
    verdicts = [refusals.note_failed(A, kind({})) for _ in range(ENOUGH + 2)]
    # Told once: the last two were under way already.
    assert [*[False] * (ENOUGH - 1), True, False, False] == verdicts
    assert isinstance(refusals.find(A), kind)
    assert refusals.find(B) is refusals.of_all is None


@pytest.mark.fault(40)
def test_several_rooms_in_a_row_are_the_account() -> None:
    """If all of them are denied, and nothing is served meanwhile; missing rooms are just that."""
    refusals = Refusals()
    for _ in range(10):
        for room in (A, B, C):
            assert not refusals.note_failed(room, AccessDenied({}))
        refusals.note_served(D)
        for room in (A, B, C):
            refusals.note_served(room)
    for room in (A, B, C, A):
        assert not refusals.note_failed(room, AccessDenied({}))
    assert refusals.note_failed(B, AccessDenied({}))
    assert isinstance(refusals.of_all, AccessDenied)

    missing = Refusals()
    for number in range(100):
        missing.note_failed(f"room {number}", ResourceNotFound({}))
    assert missing.of_all is None


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    "error",
    [
        ConnectionFailed("ReadTimeoutError"),
        ConnectionFailed("SSLError", may_pass=False),
        ServerFault({}),
        Throttled({}),
        MalformedResponse("no token"),
        CredentialsFailed("STS is away", may_pass=True),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_pass_ends_a_job_after_a_handful_in_a_row(error: ChatTokenError) -> None:
    """Each has been tried as often as the policy says; a token starts the count anew."""
    refusals = Refusals()
    assert not any(refusals.note_failed(A, error) for _ in range(ENOUGH - 1))
    refusals.note_served(B)
    assert not any(refusals.note_failed(A, error) for _ in range(ENOUGH - 1))
    assert refusals.note_failed(B, error)
    assert isinstance(refusals.of_all, type(error))
