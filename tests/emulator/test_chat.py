"""The chat's model, on stepped clocks and without any server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioivschat.emulator import (
    Answer,
    Close,
    Connection,
    Drop,
    Emulator,
    Request,
    ServiceError,
    TokenExpired,
    TokenSpent,
    TokenUnknown,
)
from support.emulators import ROOM, SteppedTime

OTHER_ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Other1234567"
EVERYTHING = ("SEND_MESSAGE", "DELETE_MESSAGE", "DISCONNECT_USER")


class Client:
    """One connection, as its user sees it."""

    def __init__(self, emulator: Emulator, user: str = "alice", **members: Any) -> None:
        body = {"roomIdentifier": ROOM, "userId": user, "capabilities": EVERYTHING, **members}
        body["capabilities"] = list(body["capabilities"])
        self.chat = emulator.chat
        self.notified = 0
        self.token = emulator.create_chat_token(body)["token"]
        self.connection = self.chat.connect(self.token, self._notify)

    def _notify(self, connection: Connection) -> None:
        self.notified += 1

    def ending(self) -> Close | Drop | None:
        """Return how the server has to end the connection."""
        return self.connection.ending

    def frames(self) -> list[dict[str, Any]]:
        """Return what has come since the last time."""
        return [json.loads(frame) for frame in iter(self.connection.take, None)]

    def ask(self, action: str, **members: Any) -> dict[str, Any]:
        """Send a request and return the last frame that comes of it."""
        self.chat.receive(self.connection, json.dumps({"Action": action, **members}))
        return self.frames()[-1]

    def code(self, action: str, **members: Any) -> int:
        """Send a request and return the code of its ERROR, 200 for none."""
        return int(self.ask(action, **members).get("ErrorCode", 200))

    def say(self, content: str = "hello", **members: Any) -> dict[str, Any]:
        """Send a message."""
        return self.ask("SEND_MESSAGE", Content=content, **members)


# --- connecting -----------------------------------------------------------------------------------


def test_token_connects_once(emulator: Emulator) -> None:
    """A second connection with the same token is refused and counted."""
    client = Client(emulator)
    with pytest.raises(TokenSpent):
        emulator.chat.connect(client.token, lambda _: None)
    with pytest.raises(TokenUnknown):
        emulator.chat.connect("forged", lambda _: None)
    counts = emulator.counts()
    assert (1, 1, 2) == (counts.chat_open, counts.chat_opened, counts.chat_refused)


def test_token_connects_within_its_minute(emulator: Emulator, time: SteppedTime) -> None:
    """A token older than a minute connects nobody and stays unspent."""
    token = emulator.create_chat_token({"roomIdentifier": ROOM, "userId": "alice"})["token"]
    time.passed = 60.0
    with pytest.raises(TokenExpired):
        emulator.chat.connect(token, lambda _: None)
    assert (0, 0) == (emulator.counts().redeemed, emulator.counts().chat_opened)


def test_session_ends_with_a_401_and_a_close(emulator: Emulator, time: SteppedTime) -> None:
    """A session gets a 401 and a close at its end, by its timer, and not before."""
    client = Client(emulator, sessionDurationInMinutes=2)
    time.passed = 119.0
    assert 1.0 == emulator.chat.expire(client.connection)
    assert (None, []) == (client.ending(), client.frames())
    time.passed = 120.0
    assert 0.0 == emulator.chat.expire(client.connection)
    emulator.chat.expire(client.connection)
    (error,) = client.frames()
    assert {"Type", "Id", "ErrorCode", "ErrorMessage"} == error.keys()
    assert ("ERROR", 401) == (error["Type"], error["ErrorCode"])
    assert Close(1000, "session expired") == client.ending()
    assert 0 == emulator.counts().chat_open


def test_session_that_is_over_neither_speaks_nor_hears(
    emulator: Emulator, time: SteppedTime
) -> None:
    """If the timer is late, the first frame either way ends a session that is over."""
    speaker, hearer = Client(emulator), Client(emulator, "bob", sessionDurationInMinutes=1)
    time.passed = 61.0
    assert "hello" == speaker.say()["Content"]
    assert [401] == [frame["ErrorCode"] for frame in hearer.frames()]
    time.passed = 3600.0
    assert 401 == speaker.code("SEND_MESSAGE", Content="hello")
    emulator.chat.receive(speaker.connection, "{}")
    assert [] == speaker.frames()


def test_minute_of_a_session_can_be_shorter(time: SteppedTime) -> None:
    """The setting that shortens a session's minutes shortens connections."""
    emulator = Emulator(clock=time.wall, monotonic=time.monotonic, minute=0.5)
    assert 30.0 == emulator.chat.expire(Client(emulator).connection)


# --- messages -------------------------------------------------------------------------------------


def test_message_reaches_everybody_in_the_room(emulator: Emulator) -> None:
    """A message reaches its sender and the whole room with its request id, no other room."""
    alice = Client(emulator, attributes={"displayName": "Alice"})
    bob, carol = Client(emulator, "bob"), Client(emulator, "carol", roomIdentifier=OTHER_ROOM)
    message = alice.say("hi ✓", RequestId="r-1", Attributes={"a": "b"})
    identifier = message.pop("Id")
    assert (12, True) == (len(identifier), identifier.isalnum())
    assert {
        "Type": "MESSAGE",
        "RequestId": "r-1",
        "Content": "hi ✓",
        "SendTime": "2027-01-15T08:00:00.000Z",
        "Attributes": {"a": "b"},
        "Sender": {"UserId": "alice", "Attributes": {"displayName": "Alice"}},
    } == message
    assert [{**message, "Id": identifier}] == bob.frames()
    assert [] == carol.frames()
    assert (1, 0) == (emulator.counts().messages, emulator.counts().events)


def test_error_reaches_only_the_one_who_asked(emulator: Emulator) -> None:
    """An ERROR goes to its requester only, with the request's id and an id of its own."""
    alice, bob = Client(emulator), Client(emulator, "bob")
    error = alice.ask("SEND_MESSAGE", RequestId="r-2", Content="")
    assert {"Type", "Id", "RequestId", "ErrorCode", "ErrorMessage"} == error.keys()
    assert ("ERROR", "r-2", 400) == (error["Type"], error["RequestId"], error["ErrorCode"])
    assert ([], 0) == (bob.frames(), emulator.counts().messages)


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({}, 400),
        ({"Content": ""}, 400),
        ({"Content": 5}, 400),
        ({"Content": "\ud800"}, 400),
        ({"Content": "𝄞" * 500}, 200),
        ({"Content": "𝄞" * 501}, 413),
        ({"Content": "x", "Attributes": None, "RequestId": None}, 200),
        ({"Content": "x", "Attributes": []}, 400),
        ({"Content": "x", "Attributes": {"a": 1}}, 400),
        ({"Content": "x", "Attributes": {"a": "\udfff"}}, 400),
        ({"Content": "x", "Attributes": {"ke": "ü" * 511}}, 200),
        ({"Content": "x", "Attributes": {"key": "ü" * 511}}, 413),
        ({"Content": "x", "RequestId": 5}, 400),
        ({"Content": "x", "RequestId": "\ud800"}, 400),
        ({"Content": "x", "Action": "send_message"}, 400),
        ({"Content": "x", "Action": ["SEND_MESSAGE"]}, 400),
        ({"Content": "x", "Unknown": 1}, 200),
    ],
)
def test_message_is_held_to_its_limits(
    emulator: Emulator, members: dict[str, Any], code: int
) -> None:
    """A malformed message gets a 400, one too large a 413; one at the limit is relayed."""
    client = Client(emulator)
    emulator.chat.receive(client.connection, json.dumps({"Action": "SEND_MESSAGE", **members}))
    assert [code] == [frame.get("ErrorCode", 200) for frame in client.frames()]


@pytest.mark.parametrize("data", ["", "{", "[]", "null", "5", "[" * 100_000, b"{}", b"\xff"])
def test_frame_that_is_no_request_gets_a_400(emulator: Emulator, data: str | bytes) -> None:
    """Malformed JSON, JSON that is no object, and bytes get a 400."""
    client = Client(emulator)
    emulator.chat.receive(client.connection, data)
    assert [400] == [frame["ErrorCode"] for frame in client.frames()]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
requests = st.fixed_dictionaries(
    {"Action": st.sampled_from(EVERYTHING) | json_values},
    optional=dict.fromkeys(
        ("RequestId", "Content", "Attributes", "Id", "UserId", "Reason"), json_values
    ),
)


@given(st.text() | st.binary() | requests.map(json.dumps))
def test_whatever_comes_gets_one_well_formed_frame(data: str | bytes) -> None:
    """Any frame is answered by one well-formed frame, never an exception or a 500."""
    emulator = Emulator()
    client = Client(emulator, "eve")
    emulator.chat.receive(client.connection, data)
    (frame,) = client.frames()
    assert frame["Type"] in ("MESSAGE", "EVENT", "ERROR")
    assert frame.get("ErrorCode") in (None, 400, 404, 413)
    assert isinstance(frame.get("RequestId", ""), str)


def test_room_sets_the_length_of_a_message(emulator: Emulator) -> None:
    """A room's own maximumMessageLength holds in it."""
    arn = emulator.create_room({"maximumMessageLength": 3})["arn"]
    client = Client(emulator, roomIdentifier=arn)
    assert [200, 413] == [client.code("SEND_MESSAGE", Content=text) for text in ("abc", "abcd")]


@pytest.mark.parametrize(("fallback", "code"), [("ALLOW", 200), ("DENY", 406)])
def test_review_falls_back(emulator: Emulator, fallback: str, code: int) -> None:
    """The room's fallback decides on a message, as no review handler can be called."""
    handler = {"uri": "arn:aws:lambda:us-east-1:123456789012:function:review"}
    arn = emulator.create_room({"messageReviewHandler": {**handler, "fallbackResult": fallback}})
    client = Client(emulator, roomIdentifier=arn["arn"])
    assert code == client.code("SEND_MESSAGE", Content="hello")


def test_room_that_was_deleted_relays_nothing(emulator: Emulator) -> None:
    """Those still connected to a deleted room get a 404."""
    arn = emulator.create_room()["arn"]
    client = Client(emulator, roomIdentifier=arn)
    emulator.delete_room({"identifier": arn})
    assert 404 == client.code("SEND_MESSAGE", Content="hello")


@pytest.mark.parametrize(
    ("action", "members"),
    [
        ("SEND_MESSAGE", {"Content": "x"}),
        ("DELETE_MESSAGE", {"Id": "AbCdEf123456"}),
        ("DISCONNECT_USER", {"UserId": "bob"}),
    ],
)
def test_each_action_needs_its_capability(
    emulator: Emulator, action: str, members: dict[str, str]
) -> None:
    """An action is refused with 403 to a user who has all other capabilities."""
    client = Client(emulator, capabilities=set(EVERYTHING) - {action})
    assert 403 == client.code(action, **members)


# --- rates ----------------------------------------------------------------------------------------


def test_connection_asks_ten_times_a_second(emulator: Emulator, time: SteppedTime) -> None:
    """Ten requests a second are served, malformed ones counted; the next second is new."""
    client, other = Client(emulator), Client(emulator, "bob")
    codes = [client.code("NONSENSE") for _ in range(9)]
    assert [400] * 9 == codes
    assert 200 == client.code("SEND_MESSAGE", Content="x")
    error = client.say(RequestId="r-3")
    assert (429, "r-3") == (error["ErrorCode"], error["RequestId"])
    assert "Content" in other.say()
    time.passed = 1.0
    assert 200 == client.code("SEND_MESSAGE", Content="x")


@pytest.mark.parametrize("rate", [3, 15])
def test_room_takes_so_many_messages_a_second(
    emulator: Emulator, time: SteppedTime, rate: int
) -> None:
    """maximumMessageRatePerSecond holds for all connections of a room together."""
    arn = emulator.create_room({"maximumMessageRatePerSecond": rate})["arn"]
    clients = [Client(emulator, f"user-{n}", roomIdentifier=arn) for n in range(2 * rate)]
    codes = [client.code("SEND_MESSAGE", Content="x") for client in clients]
    assert [200] * rate + [429] * rate == codes
    time.passed = 1.0
    assert "Content" in clients[-1].say()


# --- moderation -----------------------------------------------------------------------------------


def test_message_is_deleted_by_an_event(emulator: Emulator) -> None:
    """All are told which message was deleted and why; the moderator has no other answer."""
    moderator, viewer = Client(emulator, "mod"), Client(emulator, "bob")
    identifier = moderator.say()["Id"]
    event = moderator.ask("DELETE_MESSAGE", Id=identifier, Reason="spam", RequestId="r-4")
    assert {"Type", "Id", "RequestId", "EventName", "SendTime", "Attributes"} == event.keys()
    assert ("EVENT", "aws:DELETE_MESSAGE", "r-4") == (
        event["Type"],
        event["EventName"],
        event["RequestId"],
    )
    assert {"MessageID": identifier, "MessageId": identifier, "Reason": "spam"} == event[
        "Attributes"
    ]
    assert event == viewer.frames()[-1]
    assert 1 == emulator.counts().events


def test_unknown_message_is_not_deleted(emulator: Emulator) -> None:
    """Deleting a message of another room fails like deleting one that never was."""
    elsewhere = Client(emulator, roomIdentifier=OTHER_ROOM)
    client = Client(emulator)
    for identifier in (elsewhere.say()["Id"], "AbCdEf123456"):
        assert 404 == client.code("DELETE_MESSAGE", Id=identifier)
    assert [400, 413] == [client.code("DELETE_MESSAGE", Id=bad) for bad in (5, "x" * 129)]


def test_disconnected_user_is_told_and_closed(emulator: Emulator) -> None:
    """All connections of the user to the room are told, then closed, and no others."""
    moderator, bystander = Client(emulator, "mod"), Client(emulator, "carol")
    bobs = [Client(emulator, "bob") for _ in range(2)]
    elsewhere = Client(emulator, "bob", roomIdentifier=OTHER_ROOM)
    event = moderator.ask("DISCONNECT_USER", UserId="bob", RequestId="r-5")
    assert ("aws:DISCONNECT_USER", {"UserId": "bob"}) == (event["EventName"], event["Attributes"])
    for client in (*bobs, bystander):
        assert [event] == client.frames()
    assert [Close(1000, "disconnected")] * 2 == [bob.ending() for bob in bobs]
    open_still = (moderator, bystander, elsewhere)
    assert [None] * 3 == [client.ending() for client in open_still]
    assert 3 == emulator.counts().chat_open


def test_disconnecting_spares_unspent_tokens(emulator: Emulator) -> None:
    """A disconnected user with an unspent token can connect again (AWS documents no revocation)."""
    token = emulator.create_chat_token({"roomIdentifier": ROOM, "userId": "bob"})["token"]
    emulator.disconnect_user({"roomIdentifier": ROOM, "userId": "bob"})
    assert "bob" == emulator.chat.connect(token, lambda _: None).grant.user_id


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({}, 400),
        ({"UserId": "x" * 128, "Reason": "y" * 256}, 200),
        ({"UserId": "x" * 129}, 413),
        ({"UserId": "x", "Reason": "y" * 257}, 413),
        ({"UserId": "x", "Reason": 5}, 400),
        ({"UserId": "x", "Reason": None}, 200),
    ],
)
def test_moderation_is_held_to_its_limits(
    emulator: Emulator, members: dict[str, Any], code: int
) -> None:
    """Moderation is held to the service model's limits, with the edge's codes."""
    assert code == Client(emulator).code("DISCONNECT_USER", **members)


# --- the control plane's operations ---------------------------------------------------------------


def respond(emulator: Emulator, operation: str, **members: Any) -> tuple[int, dict[str, Any]]:
    """Return status and members of an operation's answer."""
    body = json.dumps({"roomIdentifier": ROOM, **members}).encode()
    outcome = emulator.respond(Request(operation, body))
    assert isinstance(outcome, Answer)
    return outcome.status, json.loads(outcome.body)


def test_operations_reach_the_room(emulator: Emulator) -> None:
    """Each chat operation sends its event, without a request id, to all who are connected."""
    client, bob = Client(emulator), Client(emulator, "bob")
    identifier = client.say()["Id"]
    status, reply = respond(emulator, "SendEvent", eventName="app:go", attributes={"a": "b"})
    sent = client.frames()[-1]
    assert (200, sent["Id"]) == (status, reply["id"])
    assert ("app:go", {"a": "b"}) == (sent["EventName"], sent["Attributes"])
    assert "RequestId" not in sent

    status, reply = respond(emulator, "DeleteMessage", id=identifier, reason="spam")
    deleted = client.frames()[-1]
    assert (200, deleted["Id"]) == (status, reply["id"])
    assert (identifier, "spam") == (
        deleted["Attributes"]["MessageID"],
        deleted["Attributes"]["Reason"],
    )

    assert (200, {}) == respond(emulator, "DisconnectUser", userId="bob", reason="rude")
    assert {"UserId": "bob", "Reason": "rude"} == client.frames()[-1]["Attributes"]
    assert Close(1000, "disconnected") == bob.ending()


@pytest.mark.parametrize(
    ("operation", "members", "invalid"),
    [
        ("SendEvent", {}, ["eventName"]),
        ("SendEvent", {"eventName": "x" * 101}, ["eventName"]),
        ("SendEvent", {"eventName": "x", "attributes": {"k": "v" * 1024}}, ["attributes"]),
        ("SendEvent", {"eventName": "x", "roomIdentifier": "x"}, ["roomIdentifier"]),
        ("DeleteMessage", {}, ["id"]),
        ("DeleteMessage", {"id": "AbCdEf12345_"}, ["id"]),
        ("DeleteMessage", {"id": "AbCdEf123456", "reason": ""}, ["reason"]),
        ("DisconnectUser", {"reason": "x" * 257}, ["userId", "reason"]),
    ],
)
def test_operations_are_validated(
    emulator: Emulator, operation: str, members: dict[str, Any], invalid: list[str]
) -> None:
    """Chat operations are held to the service model's constraints; errors name the members."""
    status, error = respond(emulator, operation, **members)
    assert (400, invalid) == (status, [field["name"] for field in error["fieldList"]])


@pytest.mark.parametrize(
    ("operation", "members"),
    [
        ("SendEvent", {"eventName": "x"}),
        ("DeleteMessage", {"id": "AbCdEf123456"}),
        ("DisconnectUser", {"userId": "x"}),
    ],
)
def test_operations_need_the_room(operation: str, members: dict[str, str]) -> None:
    """A chat operation on a room that does not exist is not found."""
    status, error = respond(Emulator(any_room=False), operation, **members)
    assert (404, "ROOM") == (status, error["resourceType"])


def test_operation_on_unknown_message_is_not_found(emulator: Emulator) -> None:
    """Deleting an unknown message gives an error that names it."""
    status, error = respond(emulator, "DeleteMessage", id="AbCdEf123456")
    assert (404, "MESSAGE", "AbCdEf123456") == (
        status,
        error["resourceType"],
        error["resourceId"],
    )


def test_operations_have_a_quota_of_their_own(emulator: Emulator, time: SteppedTime) -> None:
    """Each operation may be called 100 times a second, by API and edge together."""
    client = Client(emulator)
    for _ in range(100):
        emulator.disconnect_user({"roomIdentifier": ROOM, "userId": "nobody"})
    with pytest.raises(ServiceError, match="ThrottlingException") as throttled:
        emulator.disconnect_user({"roomIdentifier": OTHER_ROOM, "userId": "nobody"})
    assert (429, 100) == (throttled.value.status, throttled.value.members["limit"])
    assert 429 == client.code("DISCONNECT_USER", UserId="nobody")
    assert 200 == respond(emulator, "SendEvent", eventName="x")[0]
    time.passed = 0.01
    assert (200, {}) == respond(emulator, "DisconnectUser", userId="nobody")


# --- how connections end --------------------------------------------------------------------------


def test_slow_consumer_is_dropped_and_nobody_else(emulator: Emulator, time: SteppedTime) -> None:
    """A connection with over 1,000 waiting frames is dropped; others lose none."""
    slow, quick = Client(emulator, "slow"), Client(emulator, "quick")
    endings = []
    for _ in range(1_001):
        time.passed += 0.01  # what the quota of events asks for
        emulator.send_event({"roomIdentifier": ROOM, "eventName": "x"})
        assert 1 == len(quick.frames())
        endings.append(slow.ending())
    assert [None] * 1_000 + [Drop()] == endings
    assert ([], None) == (slow.frames(), quick.ending())
    assert 1 == emulator.counts().chat_open


def test_connections_are_dropped_on_demand(emulator: Emulator) -> None:
    """Dropping a user's connections, or all, takes effect at once and loses waiting frames."""
    alice, bob = Client(emulator), Client(emulator, "bob")
    emulator.send_event({"roomIdentifier": ROOM, "eventName": "x"})
    assert 1 == emulator.chat.drop("alice")
    assert (Drop(), []) == (alice.ending(), alice.frames())
    assert None is bob.ending()
    assert 1 == emulator.chat.drop()
    assert (Drop(), 0) == (bob.ending(), emulator.chat.drop())


def test_reset_closes_connections_and_forgets(emulator: Emulator) -> None:
    """A reset forgets messages and counts; older connections change nothing afterwards."""
    client = Client(emulator)
    identifier = client.say()["Id"]
    emulator.reset()
    assert Close(1001, "reset") == client.ending()
    emulator.chat.receive(client.connection, '{"Action":"SEND_MESSAGE","Content":"x"}')
    emulator.chat.leave(client.connection)
    counts = emulator.counts()
    assert (0, 0, 0) == (counts.chat_open, counts.chat_opened, counts.messages)
    assert 404 == Client(emulator).code("DELETE_MESSAGE", Id=identifier)


def test_whoever_left_hears_nothing(emulator: Emulator) -> None:
    """A connection whose user left is not open and gets no frames."""
    gone = Client(emulator, "bob")
    emulator.chat.leave(gone.connection)
    Client(emulator).say()
    assert ([], 0, 1) == (gone.frames(), gone.notified, emulator.counts().chat_open)


def test_every_frame_and_the_end_are_notified(emulator: Emulator) -> None:
    """A server is notified of each frame and of the end: it need not poll."""
    client = Client(emulator)
    client.say()
    emulator.chat.drop()
    assert 2 == client.notified


def test_oldest_messages_are_forgotten(emulator: Emulator, time: SteppedTime) -> None:
    """A room remembers 10,000 messages, so that a long event does not fill the memory."""
    arn = emulator.create_room({"maximumMessageRatePerSecond": 100})["arn"]
    client = Client(emulator, roomIdentifier=arn, sessionDurationInMinutes=180)
    identifiers = []
    for _ in range(10_001):
        time.passed += 0.125
        identifiers.append(client.say()["Id"])
    time.passed += 1.0
    assert 404 == client.code("DELETE_MESSAGE", Id=identifiers[0])
    assert 200 == client.code("DELETE_MESSAGE", Id=identifiers[1])
