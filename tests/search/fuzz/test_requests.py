"""Whatever is asked for: a request that AWS would take, or an error that names what is wrong."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import botocore.session
from botocore.awsrequest import HeadersDict
from botocore.parsers import create_parser
from hypothesis import example, given
from hypothesis import strategies as st

from aioivschat import InvalidRequest, RoomArn, TokenRequest
from aioivschat.emulator import Emulator, QuotaShape
from aioivschat.emulator._wire import Answer, Request, region_of
from support.fuzzing import Target, bounded
from support.services import ROOM

_ARNS = st.one_of(
    st.builds(
        "{}:{}:{}:room/{}{}".format,
        st.sampled_from(
            ["arn:aws:ivschat", "arn:aws:ivs", "arn:aws-cn:ivschat", "ARN:aws:ivschat"]
        ),
        st.text("abz09-_", max_size=12),
        st.text("0123456789٣²", max_size=12),
        st.text("aZ09-_é", max_size=110),
        st.sampled_from(["", "\n", " ", "/x", "\0"]),
    ),
    st.text(max_size=150),
)


def check_arn(text: str) -> None:
    """Check that an ARN is what it was made of."""
    try:
        arn = RoomArn.parse(text)
    except InvalidRequest as error:
        assert "roomIdentifier" == error.member
        return
    assert text == str(arn)
    assert text.isascii()
    assert len(text) <= 128


@bounded
@given(_ARNS)
@example(ROOM + "\n")
def test_an_arn_is_a_rooms_or_refused(text: str) -> None:
    """Its parts make the same text again."""
    check_arn(text)


_JSON = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
_TEXT = st.text(st.characters(), max_size=140)
_MEMBERS = st.fixed_dictionaries(
    {"roomIdentifier": st.just(ROOM) | _ARNS | _JSON, "userId": _TEXT | _JSON},
    optional={
        "capabilities": st.lists(
            st.sampled_from(["SEND_MESSAGE", "DELETE_MESSAGE", "DISCONNECT_USER", "ROOT"]) | _JSON,
            max_size=4,
        )
        | _JSON,
        "attributes": st.dictionaries(_TEXT, _TEXT, max_size=9) | _JSON,
        "sessionDurationInMinutes": st.integers(-1, 190) | _JSON,
    },
)


def _emulator() -> Emulator:
    return Emulator(quota=QuotaShape("unlimited"))


def _is_taken(members: dict[str, Any]) -> bool:
    outcome = _emulator().respond(Request("CreateChatToken", json.dumps(members).encode()))
    assert isinstance(outcome, Answer)
    assert outcome.status in (200, 400)
    return outcome.status == 200


def _requested(members: dict[str, Any]) -> TokenRequest | None:
    names = {
        "roomIdentifier": "room",
        "userId": "user",
        "sessionDurationInMinutes": "session_minutes",
    }
    try:
        return TokenRequest(**{names.get(name, name): value for name, value in members.items()})
    except InvalidRequest as error:
        assert error.member in members
        return None


@bounded
@given(_MEMBERS)
@example({"roomIdentifier": ROOM, "userId": "\ud800"})
@example({"roomIdentifier": ROOM, "userId": "a", "attributes": {"\ud800": ""}})
@example({"roomIdentifier": ROOM, "userId": "a", "sessionDurationInMinutes": 60.0})
def test_a_request_is_taken_here_if_and_only_if_it_is_there(members: dict[str, Any]) -> None:
    """The library and the emulator read the service model each on its own."""
    request = _requested(members)
    assert (request is not None) == _is_taken(members)
    if request is not None:
        assert request == _requested(request.as_members())


class _Odd:
    """No type that any member has."""

    __hash__ = None  # type: ignore[assignment]  # cannot be in a set


_ANYTHING = st.one_of(
    st.none(),
    st.binary(max_size=4),
    st.sampled_from(
        [_Odd(), object, iter([1]), {1: 2}, {("a",): "b"}, [[]], [_Odd()], 1j, range(3)]
    ),
    _JSON,
)


@bounded
@given(_ANYTHING, _ANYTHING, _ANYTHING, _ANYTHING, _ANYTHING)
def test_no_argument_whatsoever_raises_anything_else(
    room: Any, user: Any, capabilities: Any, attributes: Any, minutes: Any
) -> None:
    """Each of them alone, and all together."""
    wrong = {
        "room": room,
        "user": user,
        "capabilities": capabilities,
        "attributes": attributes,
        "session_minutes": minutes,
    }
    right = {"room": ROOM, "user": "a"}
    for members in (wrong, *(right | {name: value} for name, value in wrong.items())):
        with suppress(InvalidRequest):
            TokenRequest(**members)


# The emulator, which is a server too.

_OPERATIONS = (
    "CreateChatToken",
    "CreateRoom",
    "GetRoom",
    "ListRooms",
    "DeleteRoom",
    "SendEvent",
    "DeleteMessage",
    "DisconnectUser",
)


def check_operation(operation: str, body: bytes, authorization: str) -> None:
    """Check that the emulator answers as botocore can read, and as the model has it."""
    request = Request(operation, body, region=region_of(authorization))
    outcome = _emulator().respond(request)
    assert isinstance(outcome, Answer)
    assert 200 <= outcome.status < 500
    if operation not in _OPERATIONS:
        return
    model = botocore_model().operation_model(operation)
    answer = {
        "status_code": outcome.status,
        "headers": HeadersDict(outcome.headers),
        "body": outcome.body,
    }
    read = create_parser(botocore_model().protocol).parse(answer, model.output_shape)
    if outcome.status >= 300:
        declared = {shape.name for shape in model.error_shapes}
        assert read["Error"]["Code"] in declared | {"ThrottlingException"}


_MODELS: list[Any] = []


def botocore_model() -> Any:
    """Return the service model that botocore ships."""
    if not _MODELS:
        _MODELS.append(botocore.session.Session().get_service_model("ivschat"))
    return _MODELS[0]


_NAMES = (
    *("name", "identifier", "roomIdentifier", "eventName", "attributes", "id", "userId", "reason"),
    *("maximumMessageRatePerSecond", "maximumMessageLength", "messageReviewHandler", "tags"),
    *("loggingConfigurationIdentifiers", "maxResults", "nextToken"),
)
_ROOM_MEMBERS = st.dictionaries(
    st.sampled_from(_NAMES),
    st.just(ROOM) | _JSON | st.none(),
    max_size=6,
)


@bounded
@given(
    operation=st.sampled_from(_OPERATIONS) | st.text(max_size=5),
    body=st.binary(max_size=30)
    | (_ROOM_MEMBERS | _MEMBERS | _JSON).map(lambda value: json.dumps(value).encode()),
    authorization=st.text(max_size=30)
    | st.text("/=abCredntil", max_size=30).map("Credential={}".format),
)
@example(operation="CreateChatToken", body=b"[" * 100_000, authorization="")
@example(operation="CreateRoom", body=b'{"name": "\\ud800"}', authorization="")
def test_the_emulator_answers_whatever_it_is_sent(
    operation: str, body: bytes, authorization: str
) -> None:
    """With what botocore can read, and with an error of the service model."""
    check_operation(operation, body, authorization)


def _operation(data: bytes) -> None:
    check_operation(_OPERATIONS[data[0] % len(_OPERATIONS)] if data else "", data[1:], "")


TARGETS = {
    "arns": Target(test_an_arn_is_a_rooms_or_refused),
    "requests": Target(test_a_request_is_taken_here_if_and_only_if_it_is_there),
    "arguments": Target(test_no_argument_whatsoever_raises_anything_else),
    "operations": Target(
        _operation,
        (
            f'\0{{"roomIdentifier": "{ROOM}", "userId": "a", "attributes": {{"b": "c"}}}}'.encode(),
            b'\1{"name": "a", "tags": {"b": "c"}, "maximumMessageLength": 9}',
            f'\6{{"roomIdentifier": "{ROOM}", "id": "abcdefghijkl"}}'.encode(),
        ),
    ),
    "operation-members": Target(test_the_emulator_answers_whatever_it_is_sent),
}
