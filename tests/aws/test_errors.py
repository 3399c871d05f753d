"""Errors: one tree, whole after copying and pickling, caught as boto3 users catch them."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from aioivschat import errors as errors_module
from aioivschat._aws.errors import _mixed_class
from aioivschat.errors import (
    AccessDenied,
    AwsError,
    ChatTokenError,
    ConnectionFailed,
    DeadlineExceeded,
    Exceptions,
    Interrupted,
    InvalidConfiguration,
    InvalidRequest,
    MalformedResponse,
    Overloaded,
    PendingVerification,
    ResourceNotFound,
    ServerFault,
    ServiceClosed,
    Throttled,
    ValidationFailed,
    WrongLoop,
)

RESPONSE = {
    "Error": {"Code": "SomeException", "Message": "No."},
    "ResponseMetadata": {"RequestId": "id-1", "HTTPStatusCode": 418},
}


class TheirException(ClientError):
    """A modelled error as a session makes it: a subclass of `ClientError`."""


LOCAL = [
    ChatTokenError("anything"),
    InvalidRequest("userId", "text", "a value of type int"),
    InvalidConfiguration("Quota.rate", "above 0", -1),
    Overloaded("too many calls are waiting", 2.5),
    ServiceClosed(),
    Interrupted("minting a token"),
    WrongLoop("process"),
    MalformedResponse("no token", "id-1"),
    # Subclasses of OSError, whose constructor is another.
    DeadlineExceeded(8.0),
    ConnectionFailed("ServerDisconnectedError"),
]
AWS_KINDS: list[type[AwsError]] = [
    AwsError,
    AccessDenied,
    PendingVerification,
    ResourceNotFound,
    ValidationFailed,
    Throttled,
    ServerFault,
]


def aws(kind: type[AwsError]) -> AwsError:
    """Make an error of AWS, with the attributes that are set after construction."""
    error = kind(RESPONSE)
    if isinstance(error, Throttled | ServerFault):
        error.retry_after = 3.0
    return error


def by_pickle(protocol: int) -> Callable[[Any], Any]:
    """Return a function that pickles and unpickles with a protocol."""
    return lambda error: pickle.loads(pickle.dumps(error, protocol))


def name(value: object) -> str:
    """Return the name of a parameter of a test."""
    return type(value).__name__


COPIES = [
    pytest.param(copy.copy, id="copy"),
    pytest.param(copy.deepcopy, id="deepcopy"),
    *(
        pytest.param(by_pickle(protocol), id=f"pickle-{protocol}")
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ),
]


def assert_equal_copies(error: ChatTokenError, twin: ChatTokenError) -> None:
    """Assert that a copy is another object with the same message and attributes."""
    assert error is not twin
    assert str(error) == str(twin)
    assert error.args == twin.args
    assert vars(error) == vars(twin)


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("error", LOCAL, ids=name)
def test_local_errors_stay_whole(
    error: ChatTokenError, duplicate: Callable[[ChatTokenError], ChatTokenError]
) -> None:
    """A copy or pickle keeps class, message and attributes: each caller of a flight gets a copy."""
    twin = duplicate(error)
    assert type(error) is type(twin)
    assert_equal_copies(error, twin)


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("kind", AWS_KINDS)
def test_errors_of_aws_stay_whole(
    kind: type[AwsError], duplicate: Callable[[AwsError], AwsError]
) -> None:
    """A copy or pickle keeps code, status, request id and response."""
    error = aws(kind)
    twin = duplicate(error)
    assert kind is type(twin)
    assert_equal_copies(error, twin)
    assert ("SomeException", 418, "id-1") == (
        twin.code,
        twin.status,
        twin.request_id,
    )
    assert (RESPONSE, "CreateChatToken") == (twin.response, twin.operation_name)


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("kind", AWS_KINDS)
def test_errors_mixed_with_a_sessions_stay_whole(
    kind: type[AwsError], duplicate: Callable[[AwsError], AwsError]
) -> None:
    """A copy has the mixed class. A mixed class cannot be imported, so a pickle has ours only."""
    error = aws(_mixed_class(kind, TheirException))
    assert isinstance(error, kind)
    assert isinstance(error, TheirException)
    twin = duplicate(error)
    assert isinstance(twin, kind)
    assert (duplicate is copy.copy) == isinstance(twin, TheirException)
    assert_equal_copies(error, twin)


@pytest.mark.parametrize("kind", AWS_KINDS)
def test_a_mixed_class_is_made_once_and_has_our_name(kind: type[AwsError]) -> None:
    """One class for each pair of classes; our own where the session's is just `ClientError`."""
    assert _mixed_class(kind, TheirException) is _mixed_class(kind, TheirException)
    assert kind.__name__ == _mixed_class(kind, TheirException).__name__
    assert kind is _mixed_class(kind, ClientError)


def test_the_message_of_an_aws_error_says_what_a_ticket_needs() -> None:
    """It holds operation, code, status, message and request id."""
    assert "CreateChatToken: SomeException (418): No. (request id id-1)" == str(aws(AwsError))


def test_an_empty_answer_makes_an_error_all_the_same() -> None:
    """An error without code, status, message or id can be made, as of a 429 without a body."""
    error = Throttled({})
    assert ("Unknown", 0, None, None) == (
        error.code,
        error.status,
        error.request_id,
        error.retry_after,
    )
    assert "CreateChatToken: Unknown (0): no message (request id None)" == str(error)


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (LOCAL[1], ValueError),
        (LOCAL[2], ValueError),
        (LOCAL[4], RuntimeError),
        (LOCAL[5], RuntimeError),
        (DeadlineExceeded(1.0), TimeoutError),
        (ConnectionFailed("x"), ConnectionError),
        (aws(ResourceNotFound), ClientError),
    ],
)
def test_errors_are_caught_as_python_and_boto3_name_them(
    error: ChatTokenError, base: type[Exception]
) -> None:
    """Each is also of a built-in class or of botocore's `ClientError`."""
    assert isinstance(error, base)


def test_the_exceptions_of_the_service_have_boto3s_names() -> None:
    """`except tokens.exceptions.ResourceNotFoundException` works as with a client."""
    assert Exceptions.ClientError is ClientError
    for ours, theirs in (
        (AccessDenied, Exceptions.AccessDeniedException),
        (ServerFault, Exceptions.InternalServerException),
        (PendingVerification, Exceptions.PendingVerification),
        (ResourceNotFound, Exceptions.ResourceNotFoundException),
        (Throttled, Exceptions.ThrottlingException),
        (ValidationFailed, Exceptions.ValidationException),
    ):
        assert ours is theirs


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """The docstring of `errors` draws every class of the module at its depth, and no other."""
    classes = {
        value.__name__: value
        for value in vars(errors_module).values()
        if isinstance(value, type)
        and issubclass(value, ChatTokenError)
        and value.__module__ == errors_module.__name__
    }
    drawn = re.findall(
        r"^    ([ │├└─]*)([A-Z]\w+)(?:  .*)?$", str(errors_module.__doc__), re.MULTILINE
    )
    depths = {name: len(branch) // 4 for branch, name in drawn}
    expected = {
        name: 0 if kind is ChatTokenError else 1 + (AwsError in kind.__mro__[1:])
        for name, kind in classes.items()
    }
    assert set(classes) == set(depths)
    assert expected == depths
