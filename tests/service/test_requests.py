"""Requests: their limits are AWS's, and two are equal if AWS could not tell them apart."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import aioivschat
from aioivschat import Capability, ChatTokenError, InvalidRequest, RoomArn, TokenRequest
from aioivschat._models import Attempt, unchecked_identity
from aioivschat._service.issuing import sharing_key

ROOM = "arn:aws:ivschat:eu-west-1:123456789012:room/AbCd-1234"
CANARY = "canary-7f3a9"
SURROGATE = "\ud800"
PACKAGE = str(Path(aioivschat.__file__).parent)

thorough = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])


def error_of(*args: Any, **kwargs: Any) -> InvalidRequest:
    """Return the error that a request with these arguments raises."""
    with pytest.raises(InvalidRequest) as caught:
        TokenRequest(*args, **kwargs)
    return caught.value


def room_of(length: int) -> str:
    """Return the ARN of a room with so many characters."""
    start = "arn:aws:ivschat:eu-west-1:123456789012:room/"
    return start + "a" * (length - len(start))


# The room.


@pytest.mark.parametrize("length", [45, 128])
def test_a_room_of_up_to_128_characters_is_accepted(length: int) -> None:
    """The shortest ARN of this account and the longest one."""
    assert room_of(length) == TokenRequest(room_of(length), "u").room


def test_a_room_of_129_characters_is_refused() -> None:
    """The error names the member, the limit and the length found."""
    error = error_of(room_of(129), "u")
    assert ("roomIdentifier", "1 to 128 characters") == (error.member, error.limit)
    assert "roomIdentifier: must be 1 to 128 characters; found 129" == str(error)


def test_an_empty_room_is_refused() -> None:
    """The error names the limit and the length 0."""
    assert "roomIdentifier: must be 1 to 128 characters; found 0" == str(error_of("", "u"))


@pytest.mark.parametrize(
    "room",
    [
        ROOM + "\n",
        "\n" + ROOM,
        ROOM + " ",
        ROOM + "\0",
        ROOM + "/x",
        ROOM + "_",
        ROOM + "é",
        ROOM + SURROGATE,
        ROOM.replace("eu-west-1", "EU-WEST-1"),
        ROOM.replace("eu-west-1", ""),
        ROOM.replace("123456789012", ""),
        ROOM.replace("123456789012", "12345678901a"),
        ROOM.replace("123456789012", "١٢٣"),
        ROOM.replace("AbCd-1234", ""),
        ROOM.replace("arn:aws:", "arn:aws-cn:"),
        ROOM.replace("ivschat", "ivs"),
        ROOM.replace("room/", "logging-configuration/"),
        ROOM.upper(),
        "AbCd-1234",
    ],
)
def test_text_other_than_a_rooms_arn_is_refused(room: str) -> None:
    """Other services, partitions or alphabets, parts left out, and characters around an ARN."""
    error = error_of(room, "u")
    assert "roomIdentifier" == error.member
    assert "a room ARN, arn:aws:ivschat:<region>:<account>:room/<id>" == error.limit
    assert str(error).startswith(f"roomIdentifier: must be {error.limit}; found ")


@pytest.mark.parametrize("room", [None, 7, ROOM.encode(), [ROOM], RoomArn.parse(ROOM)])
def test_a_room_that_is_no_text_is_refused(room: object) -> None:
    """The error names the type that was found."""
    error = error_of(room, "u")
    assert "roomIdentifier" == error.member
    assert str(error).endswith(f"found a value of type {type(room).__name__}")


def test_a_room_has_region_and_account() -> None:
    """``RoomArn`` has the parts of an ARN, and its ``str`` is the ARN."""
    arn = RoomArn.parse(ROOM)
    assert ("eu-west-1", "123456789012", "AbCd-1234") == (arn.region, arn.account, arn.room_id)
    assert ROOM == str(arn)


# The user.


@pytest.mark.parametrize("user", ["u", "u" * 128, "\U0001f600" * 128, "\0", "a\nb", " "])
def test_a_user_of_1_to_128_characters_is_accepted(user: str) -> None:
    """Any text is accepted; characters are counted and not bytes."""
    assert user == TokenRequest(ROOM, user).as_members()["userId"]


@pytest.mark.parametrize("length", [0, 129])
def test_a_user_outside_1_to_128_characters_is_refused(length: int) -> None:
    """The error names the number of characters and shows none of them."""
    error = error_of(ROOM, "u" * length)
    assert ("userId", "1 to 128 characters") == (error.member, error.limit)
    assert f"userId: must be 1 to 128 characters; found {length} characters" == str(error)


@pytest.mark.parametrize("user", [SURROGATE, "a" + SURROGATE, "\udfff" * 128])
def test_a_user_that_utf_8_cannot_carry_is_refused(user: str) -> None:
    """JSON can hold a lone surrogate, and UTF-8 cannot."""
    assert "userId: must be encodable as UTF-8; found a lone surrogate" == str(error_of(ROOM, user))


@pytest.mark.parametrize("user", [None, 7, b"alice", ["alice"], {"alice"}])
def test_a_user_that_is_no_text_is_refused(user: object) -> None:
    """An id of another type, such as an integer, is not converted to text."""
    expected = f"userId: must be text; found a value of type {type(user).__name__}"
    assert expected == str(error_of(ROOM, user))


# Capabilities.


@pytest.mark.parametrize("capability", ["SEND_MESSAGE", "DELETE_MESSAGE", "DISCONNECT_USER"])
def test_each_capability_is_accepted_as_text_and_as_member(capability: str) -> None:
    """A capability's text and its enum member make equal requests."""
    as_text = TokenRequest(ROOM, "u", [capability])
    as_member = TokenRequest(ROOM, "u", {Capability(capability)})
    assert as_text == as_member
    assert [capability] == as_text.as_members()["capabilities"]


def test_there_are_no_other_capabilities() -> None:
    """The enum has the three members of the API."""
    assert {"SEND_MESSAGE", "DELETE_MESSAGE", "DISCONNECT_USER"} == set(Capability)


@pytest.mark.parametrize(
    ("unknown", "found"),
    [
        ("ROOT", "'ROOT'"),
        ("send_message", "other text"),
        ("SEND_MESSAGE\n", "other text"),
        ("", "other text"),
        (SURROGATE, "other text"),
    ],
)
def test_an_unknown_capability_is_refused(unknown: str, found: str) -> None:
    """The error shows an unknown name only if it looks like a capability."""
    error = error_of(ROOM, "u", ["SEND_MESSAGE", unknown])
    limit = "a collection of SEND_MESSAGE, DELETE_MESSAGE, DISCONNECT_USER"
    assert ("capabilities", limit) == (error.member, error.limit)
    assert f"capabilities: must be {limit}; found {found}" == str(error)


@pytest.mark.parametrize("capabilities", ["SEND_MESSAGE", b"SEND_MESSAGE", "", 3, None])
def test_capabilities_that_are_no_collection_are_refused(capabilities: object) -> None:
    """Text is refused too, though it is iterable, and so is ``None``."""
    error = error_of(ROOM, "u", capabilities)
    assert "capabilities" == error.member
    assert str(error).endswith(f"found a value of type {type(capabilities).__name__}")


@pytest.mark.parametrize("name", [None, 1, b"SEND_MESSAGE", ["SEND_MESSAGE"]])
def test_a_capability_that_is_no_text_is_refused(name: object) -> None:
    """``InvalidRequest`` names the type of an element, also of one that cannot be hashed."""
    error = error_of(ROOM, "u", [name])
    assert "capabilities" == error.member
    assert str(error).endswith(f"found a value of type {type(name).__name__}")


def test_capabilities_may_be_any_iterable() -> None:
    """A generator with duplicates is read once and gives a set."""
    once = (name for name in ("SEND_MESSAGE", "DELETE_MESSAGE", "SEND_MESSAGE"))
    expected = frozenset({Capability.SEND_MESSAGE, Capability.DELETE_MESSAGE})
    assert expected == TokenRequest(ROOM, "u", once).capabilities


# Attributes.


def test_1024_bytes_of_attributes_are_accepted() -> None:
    """Bytes of UTF-8 are counted over keys and values."""
    attributes = {"k" * 24: "v" * 400, "é" * 100: "\U0001f600" * 100}
    assert attributes == TokenRequest(ROOM, "u", (), attributes).as_members()["attributes"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"k": "v" * 1024},
        {"k" * 1024: "v"},
        {"k" * 1025: ""},
        {"k": "é" * 512},
        {f"{n:04}": "1234" for n in range(128)} | {"x": ""},
    ],
)
def test_1025_bytes_of_attributes_are_refused(attributes: dict[str, str]) -> None:
    """One byte too many is refused in a key or a value, in one pair or over many."""
    error = error_of(ROOM, "u", (), attributes)
    limit = "at most 1024 bytes of UTF-8 over all keys and values"
    assert ("attributes", limit) == (error.member, error.limit)
    assert f"attributes: must be {limit}; found 1025 bytes" == str(error)


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"k": SURROGATE}, "a lone surrogate"),
        ({SURROGATE: "v"}, "a lone surrogate"),
        ({"k": None}, "a value of type NoneType"),
        ({"k": 1}, "a value of type int"),
        ({"k": b"v"}, "a value of type bytes"),
        ({"k": {"deep": "v"}}, "a value of type dict"),
        ({1: "v"}, "a value of type int"),
    ],
)
def test_attributes_other_than_text_to_text_are_refused(
    attributes: dict[Any, Any], found: str
) -> None:
    """Keys and values are not converted to text, and the error shows no more than a type."""
    error = error_of(ROOM, "u", (), attributes)
    limit = "text to text, encodable as UTF-8"
    assert ("attributes", limit) == (error.member, error.limit)
    assert f"attributes: must be {limit}; found {found}" == str(error)


@pytest.mark.parametrize("attributes", [[("k", "v")], "k", 7, {"k"}, (), ""])
def test_attributes_that_are_no_mapping_are_refused(attributes: object) -> None:
    """Sequences of pairs are refused too, and so are empty collections and text."""
    expected = (
        f"attributes: must be a mapping of text to text; "
        f"found a value of type {type(attributes).__name__}"
    )
    assert expected == str(error_of(ROOM, "u", (), attributes))


class OtherMapping(Mapping[str, str]):
    """A mapping that is not a dict."""

    def __getitem__(self, key: str) -> str:
        """Return the only value."""
        return {"displayName": "Alice"}[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the only key."""
        return iter(("displayName",))

    def __len__(self) -> int:
        """Count the only key."""
        return 1


def test_attributes_may_be_any_mapping() -> None:
    """A mapping that is not a dict makes the same request as an equal dict."""
    expected = TokenRequest(ROOM, "u", (), {"displayName": "Alice"})
    assert expected == TokenRequest(ROOM, "u", (), OtherMapping())


# The duration.


@pytest.mark.parametrize("minutes", [1, 180])
def test_1_to_180_minutes_are_accepted(minutes: int) -> None:
    """The least and the greatest duration are accepted."""
    request = TokenRequest(ROOM, "u", session_minutes=minutes)
    assert minutes == request.as_members()["sessionDurationInMinutes"]


@pytest.mark.parametrize("minutes", [0, 181, -1, 999, 10**8])
def test_other_minutes_are_refused(minutes: int) -> None:
    """Numbers just outside and far outside are refused, and the error shows them."""
    error = error_of(ROOM, "u", session_minutes=minutes)
    limit = "a whole number from 1 to 180"
    assert ("sessionDurationInMinutes", limit) == (error.member, error.limit)
    assert f"sessionDurationInMinutes: must be {limit}; found {minutes}" == str(error)


def test_a_number_too_long_to_print_is_refused_like_any_other() -> None:
    """Python itself raises when an integer of more than 4,300 digits is printed."""
    assert "sessionDurationInMinutes" == error_of(ROOM, "u", session_minutes=10**5000).member


@pytest.mark.parametrize("minutes", [True, False, 60.0, float("nan"), "60", None])
def test_minutes_that_are_no_whole_number_are_refused(minutes: object) -> None:
    """Other types are refused by their name, bool included, though it is an int."""
    error = error_of(ROOM, "u", session_minutes=minutes)
    assert "sessionDurationInMinutes" == error.member
    assert str(error).endswith(f"found a value of type {type(minutes).__name__}")


class _Odd(str):
    """Text that lies about itself, and equals text in other letters."""

    __slots__ = ()

    def __len__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return str(self).casefold() == str(other).casefold()

    def __hash__(self) -> int:
        return hash(str(self).casefold())

    def encode(self, *_: object) -> bytes:
        return b""


class _Endless(int):
    def __le__(self, _: object) -> bool:
        return True

    __ge__ = __le__


class _SaysSo:
    """An object that says it is text, as proxies and mocks do."""

    __class__: Any = str

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("arguments", "member"),
    [
        ((_Odd(ROOM + "x" * 128), "u"), "roomIdentifier"),
        ((ROOM, _Odd("x" * 129)), "userId"),
        ((ROOM, _Odd(SURROGATE)), "userId"),
        ((ROOM, "u", (), {"k": _Odd("x" * 1024)}), "attributes"),
        ((ROOM, "u", (), {_Odd(SURROGATE): "v"}), "attributes"),
        ((ROOM, "u", (), None, _Endless(181)), "sessionDurationInMinutes"),
        ((_SaysSo(), "u"), "roomIdentifier"),
        ((ROOM, _SaysSo()), "userId"),
        ((ROOM, "u", [_SaysSo()]), "capabilities"),
        ((ROOM, "u", (), {"k": _SaysSo()}), "attributes"),
        ((ROOM, "u", (), {_SaysSo(): "v"}), "attributes"),
    ],
)
def test_what_an_object_says_of_itself_does_not_count(
    arguments: tuple[Any, ...], member: str
) -> None:
    """Limits hold for the characters and the number that would be sent."""
    assert member == error_of(*arguments).member


def test_an_idempotency_key_is_its_characters() -> None:
    """Whatever text of a class of its own is equal to."""
    request = TokenRequest(ROOM, "u")
    key = sharing_key(request, _Odd("K"), False)
    assert sharing_key(request, "K", False) == key != sharing_key(request, "k", False)
    odd: Any
    for odd in (_Odd("x" * 256), _SaysSo()):
        with pytest.raises(InvalidRequest):
            sharing_key(request, odd, False)


def test_a_look_up_takes_plain_text_only() -> None:
    """Attributes in other letters are others, whatever their class says."""
    arguments = (ROOM, "u", ["SEND_MESSAGE"], {"k": "v"}, 60)
    assert TokenRequest(*arguments).identity == unchecked_identity(*arguments)
    odd: Any
    for odd in ({"k": _Odd("V")}, {_Odd("K"): "v"}):
        assert unchecked_identity(*arguments[:3], odd, 60) is None


# Errors and secrets.


def test_a_refusal_is_a_value_error_of_the_library() -> None:
    """``InvalidRequest`` is a ``ChatTokenError`` and a ``ValueError``."""
    error = error_of(ROOM, "")
    assert isinstance(error, ChatTokenError)
    assert isinstance(error, ValueError)


@pytest.mark.fault(30)
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((ROOM, CANARY * 20), id="user too long"),
        pytest.param((ROOM, CANARY + SURROGATE), id="user not encodable"),
        pytest.param((ROOM, CANARY.encode()), id="user in bytes"),
        pytest.param((ROOM, [CANARY]), id="user in a list"),
        pytest.param((CANARY, ROOM), id="room and user swapped"),
        pytest.param((ROOM + "\n", CANARY, (), {CANARY: CANARY}), id="room"),
        pytest.param((ROOM, CANARY, ["ROOT"], {CANARY: CANARY}), id="capability"),
        pytest.param((ROOM, CANARY, [CANARY]), id="user among the capabilities"),
        pytest.param((ROOM, CANARY, "ROOT", {CANARY: CANARY}), id="capabilities"),
        pytest.param((ROOM, CANARY, (), {CANARY: CANARY * 100}), id="attributes too long"),
        pytest.param((ROOM, CANARY, (), {CANARY: CANARY + SURROGATE}), id="value not encodable"),
        pytest.param((ROOM, CANARY, (), {CANARY + SURROGATE: ""}), id="key not encodable"),
        pytest.param((ROOM, CANARY, (), {CANARY: {CANARY: 1}}), id="value no text"),
        pytest.param((ROOM, CANARY, (), [(CANARY, CANARY)]), id="attributes no mapping"),
        pytest.param((ROOM, CANARY, (), {CANARY: CANARY}, 181), id="minutes"),
    ],
)
def test_a_refusal_shows_no_user_and_no_attribute(arguments: tuple[Any, ...]) -> None:
    """Message, attributes and traceback with locals show neither, and there is no other error."""
    error = error_of(*arguments)
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [str(frame.locals) for frame in report.stack if frame.filename.startswith(PACKAGE)]
    assert ours
    for text in (str(error), repr(error), repr(error.args), repr(vars(error)), *ours):
        assert CANARY not in text
    assert (None, None) == (error.__cause__, error.__context__)


REQUEST = TokenRequest(ROOM, CANARY, ["SEND_MESSAGE"], {CANARY: CANARY})
ATTEMPT = Attempt((REQUEST.identity, CANARY))


@pytest.mark.fault(30)
def test_a_request_prints_without_user_and_attributes() -> None:
    """``repr``, ``str`` and formats show the rest of a request."""
    expected = (
        f"TokenRequest(room='{ROOM}', user=<redacted>, capabilities={{SEND_MESSAGE}}, "
        "attributes=<1 redacted>, session_minutes=60)"
    )
    for shown in (repr(REQUEST), str(REQUEST), f"{REQUEST}", "%s" % REQUEST, ascii(REQUEST)):  # noqa: UP031 (tested)
        assert expected == shown
    assert f"[{expected}]" == str([REQUEST])


@pytest.mark.fault(30)
def test_identities_and_attempts_print_nothing_of_themselves() -> None:
    """They are keys of dictionaries, which show the ``repr`` of their keys."""
    assert "{<identity>: 1, <attempt>: 2}" == str({REQUEST.identity: 1, ATTEMPT: 2})
    assert "<identity>" == f"{REQUEST.identity}" == "%s" % (REQUEST.identity,)  # noqa: UP031 (tested)


@pytest.mark.fault(30)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("secret", [REQUEST, REQUEST.identity, ATTEMPT], ids=type)
def test_what_holds_a_user_refuses_to_be_pickled(secret: object, protocol: int) -> None:
    """``pickle`` raises, also for a list of them: pickles end up in stores and queues."""
    with pytest.raises(TypeError, match="is not pickled"):
        pickle.dumps([secret], protocol)


def test_a_copy_of_a_request_is_the_request() -> None:
    """Copies of an immutable request are the request itself."""
    assert REQUEST is copy.copy(REQUEST)
    assert REQUEST is copy.deepcopy([REQUEST])[0]


# What a request is.


@pytest.mark.parametrize(
    "member",
    ["room", "user", "capabilities", "attributes", "session_minutes", "identity"],
)
def test_a_request_cannot_be_changed(member: str) -> None:
    """No attribute of a request can be set or deleted."""
    request = TokenRequest(ROOM, "u")
    with pytest.raises(FrozenInstanceError):
        setattr(request, member, getattr(request, member))
    with pytest.raises(FrozenInstanceError):
        delattr(request, member)


def test_a_request_does_not_follow_what_it_was_made_of() -> None:
    """Changing the caller's collections, or what a request returns, does not change the request."""
    capabilities, attributes = ["SEND_MESSAGE"], {"k": "v"}
    request = TokenRequest(ROOM, "u", capabilities, attributes)
    capabilities.append("DELETE_MESSAGE")
    attributes["k"] = "w"
    assert TokenRequest(ROOM, "u", ["SEND_MESSAGE"], {"k": "v"}) == request
    with pytest.raises(TypeError):
        request.attributes["k"] = "w"  # type: ignore[index]  # it must fail
    request.as_members()["attributes"]["k"] = "w"
    assert {"k": "v"} == dict(request.attributes)


def test_the_members_are_those_of_the_api() -> None:
    """``as_members`` sorts capabilities, and leaves out empty ones and empty attributes."""
    full = TokenRequest(ROOM, "u", ["SEND_MESSAGE", "DELETE_MESSAGE"], {"k": "v"}, 30)
    assert {
        "roomIdentifier": ROOM,
        "userId": "u",
        "capabilities": ["DELETE_MESSAGE", "SEND_MESSAGE"],
        "attributes": {"k": "v"},
        "sessionDurationInMinutes": 30,
    } == full.as_members()
    assert {
        "roomIdentifier": ROOM,
        "userId": "u",
        "sessionDurationInMinutes": 60,
    } == TokenRequest(ROOM, "u").as_members()


class Arguments(NamedTuple):
    """The arguments of a request, in any order of capabilities and attributes."""

    room: str
    user: str
    capabilities: list[str]
    attributes: dict[str, str] | None
    minutes: int | None

    def request(self) -> TokenRequest:
        """Make the request, without minutes by the default."""
        arguments: tuple[str, str, Iterable[str], Mapping[str, str] | None] = self[:4]
        return TokenRequest(*arguments, *([] if self.minutes is None else [self.minutes]))

    def meaning(self) -> object:
        """Return what the arguments mean to AWS, found without the library."""
        return (
            self.room,
            self.user,
            set(self.capabilities),
            {} if self.attributes is None else self.attributes,
            60 if self.minutes is None else self.minutes,
        )


# Few and similar pieces, so that equal and almost equal requests both come up.
texts = st.sampled_from(["a", "b", "a:b", "b:a", "a-b", ":", "A"])
rooms = st.sampled_from([ROOM, ROOM + "a", ROOM + "-b", ROOM.replace("eu-west-1", "us-west-2")])
arguments_of_requests = st.builds(
    Arguments,
    rooms,
    texts,
    st.lists(st.sampled_from(["SEND_MESSAGE", "DELETE_MESSAGE", "DISCONNECT_USER"]), max_size=4),
    st.none() | st.dictionaries(texts, texts, max_size=3),
    st.sampled_from([None, 60, 61]),
)


@thorough
@example(Arguments(ROOM, "-au", [], None, None), Arguments(ROOM + "-a", "u", [], None, None))
@example(Arguments(ROOM, "a", [], {"k": "v=w"}, None), Arguments(ROOM, "a", [], {"k=v": "w"}, None))
@example(Arguments(ROOM, "a", [], {"k": "v"}, None), Arguments(ROOM, "a", [], {"v": "k"}, None))
@example(Arguments(ROOM, "a", [], {}, None), Arguments(ROOM, "a", [], None, 60))
@given(arguments_of_requests, arguments_of_requests)
def test_requests_are_equal_if_and_only_if_they_mean_the_same(
    one: Arguments, other: Arguments
) -> None:
    """Equality of requests, identities, hashes and members agrees with what the arguments mean."""
    first, second = one.request(), other.request()
    same = one.meaning() == other.meaning()
    assert same == (first == second)
    assert same == (first.identity == second.identity)
    assert same == (first.as_members() == second.as_members())
    assert same == (len({first, second}) == 1)
    assert same == (len({first.identity, second.identity}) == 1)


@thorough
@given(arguments_of_requests, st.randoms(use_true_random=False))
def test_order_has_no_meaning(one: Arguments, rng: Any) -> None:
    """Capabilities shuffled and named twice, or attributes shuffled, make an equal request."""
    capabilities = one.capabilities * 2
    rng.shuffle(capabilities)
    pairs = list((one.attributes or {}).items())
    rng.shuffle(pairs)
    other = one._replace(capabilities=capabilities, attributes=dict(pairs))
    assert one.request() == other.request()
    assert hash(one.request()) == hash(other.request())


@thorough
@given(st.text(max_size=140), st.dictionaries(st.text(max_size=80), st.text(max_size=80)))
def test_any_text_is_either_refused_or_kept_as_it_is(user: str, attributes: dict[str, str]) -> None:
    """User and attributes within the limits reach AWS as they were written."""
    try:
        members = TokenRequest(ROOM, user, (), attributes).as_members()
    except InvalidRequest:
        size = sum(len(text.encode()) for pair in attributes.items() for text in pair)
        assert not (1 <= len(user) <= 128 and size <= 1024)
    else:
        assert (user, attributes) == (members["userId"], members.get("attributes", {}))


def test_a_request_equals_nothing_else() -> None:
    """A request differs from its members, its identity and text."""
    request = TokenRequest(ROOM, "u")
    assert request != request.as_members()
    assert request != request.identity
    assert request != "u"


@thorough
@given(arguments_of_requests, st.text(max_size=3))
def test_the_identity_of_one_user_is_never_that_of_another(one: Arguments, user: str) -> None:
    """Requests that differ only in the user are not equal."""
    assume(1 <= len(user) and user != one.user)
    assert one.request() != one._replace(user=user).request()
