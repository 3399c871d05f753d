"""The chat connections of each room: who may send what, and who receives it.

Nothing here does I/O. A server opens a `Connection` with a token, passes each frame of the client
to `Chat.receive`, and sends the client what `Connection.take` returns.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from ._frames import ChatRequest, edge_error, error_frame, make_frame
from ._quota import Meter, QuotaShape, throttling_error
from ._tokens import Grant, TokenError
from ._wire import Drop, ServiceError, iso_time, new_id, parse_json_object

# IVS Chat service quotas: 10 messaging requests a second from one connection; and 100 a second of
# each of SendEvent, DeleteMessage and DisconnectUser in an account and region, the API's and the
# edge's together. Neither shape is published.
_CONNECTION_QUOTA = QuotaShape("sliding", 10)
_OPERATION_QUOTA = QuotaShape("bucket", 100, 100)

# A room with default limits sends that many in more than a minute, at its full rate.
_OUTBOX_LIMIT_FRAMES = 1_000
# The messages of a room that can be deleted: far more than a chat window shows.
_MESSAGES_KEPT = 10_000
_REASON_LIMIT_CHARACTERS = 256  # service model, Reason
_ID_LIMIT_CHARACTERS = 128  # service model, UserID; a message id is shorter

CLOSE_NORMAL = 1000  # close codes of RFC 6455
CLOSE_GOING_AWAY = 1001


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection with a close frame, after the frames that wait.

    Args:
        code: the WebSocket close code.
        reason: text for the close frame.
    """

    code: int
    reason: str


class Connection:
    """One chat connection, made by `Chat.connect`.

    Args:
        grant: what its token entitles it to.
        notify: see `Chat.connect`.

    Attributes:
        grant: what its token entitles it to.
        ending: how the server has to end the connection; None while it is open.
    """

    __slots__ = ("_notify", "_outbox", "ending", "grant", "meter")

    def __init__(self, grant: Grant, notify: Callable[[Connection], None]) -> None:
        self.grant = grant
        self.ending: Close | Drop | None = None
        self.meter = _CONNECTION_QUOTA.meter()
        self._notify = notify
        self._outbox: deque[str] = deque()

    def take(self) -> str | None:
        """Return the next frame for the client, None if there is none now.

        Read `ending` first: once it is set, no frame is added.
        """
        return self._outbox.popleft() if self._outbox else None

    def put(self, frame: str) -> bool:
        """Add a frame for the client, unless too many wait already; return whether it was added."""
        if len(self._outbox) >= _OUTBOX_LIMIT_FRAMES:
            return False
        self._outbox.append(frame)
        self._notify(self)
        return True

    def end(self, ending: Close | Drop) -> None:
        """Set how the connection ends; frames that wait are still sent, except before a `Drop`."""
        if isinstance(ending, Drop):
            self._outbox.clear()
        self.ending = ending
        self._notify(self)


@dataclass(slots=True)
class _RoomState:
    connections: dict[Connection, None] = field(default_factory=dict)  # an ordered set
    messages: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _meter: Meter | None = None  # of messages; made for the first one

    def admit_message(self, max_rate: int, now: float) -> bool:
        if self._meter is None:
            self._meter = QuotaShape("sliding", max_rate).meter()
        return self._meter.admit(now)


class Chat:
    """The chat connections of all rooms; safe to use from several threads.

    A request is checked in this order: session, rate of the connection, form, whether the room
    exists, capability, members, rate of the room, review. The order at AWS is not published.

    The emulator runs no review Lambda: in a room that has a ``messageReviewHandler``, its
    ``fallbackResult`` says whether messages are relayed or refused with a 406.

    `send_event`, `delete_message` and `disconnect_user` reach everybody in a room. They take the
    room's ARN, and the client's id of the request if it came over a connection. They raise a
    `ServiceError`, a ``ThrottlingException``, beyond 100 requests a second for each operation,
    account and region.

    Args:
        lock: held during every operation; a reentrant lock.
        redeem: spends a token, or raises `TokenError`.
        find_rules: returns a room's members in the service model by its ARN, None for no room.
        clock: wall seconds.
        monotonic: seconds that never go back; rates are counted on it.

    Attributes:
        opened: connections opened.
        refused: handshakes refused for their token.
        messages: messages relayed, each counted once.
        events: events sent to rooms, each counted once.
    """

    def __init__(
        self,
        *,
        lock: AbstractContextManager[Any],
        redeem: Callable[[str], Grant],
        find_rules: Callable[[str], Mapping[str, Any] | None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._lock = lock
        self._redeem = redeem
        self._find_rules = find_rules
        self._clock = clock
        self._monotonic = monotonic
        self._rooms: defaultdict[str, _RoomState] = defaultdict(_RoomState)
        self.reset()

    def reset(self) -> None:
        """Close every connection; forget all messages, counts and used quotas."""
        with self._lock:
            for connection in self._open_connections():
                self.close(connection, Close(CLOSE_GOING_AWAY, "reset"))
            self._rooms.clear()
            self._meters: dict[tuple[str, str, str], Meter] = defaultdict(_OPERATION_QUOTA.meter)
            self.opened = self.refused = self.messages = self.events = 0

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        with self._lock:
            return len(self._open_connections())

    def connect(self, token: str, notify: Callable[[Connection], None]) -> Connection:
        """Open a connection with a token, which spends the token.

        Args:
            token: the token, from CreateChatToken.
            notify: called with the connection whenever it has a frame to take, or ends; from any
                thread and with the lock held, so that it must only wake another task.

        Raises:
            TokenError: the token is unknown, spent or expired, each with a class of its own.
        """
        with self._lock:
            try:
                grant = self._redeem(token)
            except TokenError:
                self.refused += 1
                raise
            connection = Connection(grant, notify)
            self._rooms[grant.room].connections[connection] = None
            self.opened += 1
            return connection

    def receive(self, connection: Connection, data: str | bytes) -> None:
        """Perform a request of a client, or send the client an ERROR.

        Args:
            connection: the client's.
            data: a frame; every binary frame is malformed.
        """
        with self._lock:
            if connection.ending is not None or self.expire(connection) <= 0:
                return
            members = parse_json_object(data) if isinstance(data, str) else None
            request = ChatRequest(members or {})
            try:
                self._perform_request(connection, request, well_formed=members is not None)
            except ServiceError as error:
                self._put_or_drop(connection, error_frame(error, request.request_id))

    def expire(self, connection: Connection) -> float:
        """End a connection whose session is over, with an ERROR 401 and a close frame.

        Returns:
            The seconds until the session is over, 0 or less if it is.
        """
        with self._lock:
            left = connection.grant.session_expires - self._clock()
            if left <= 0 and connection.ending is None:
                error = edge_error(401, "The connection has expired")
                self._put_or_drop(connection, error_frame(error))
                self.close(connection, Close(CLOSE_NORMAL, "session expired"))
            return left

    def close(self, connection: Connection, ending: Close | Drop) -> None:
        """End a connection that has no `Connection.ending` yet."""
        with self._lock:
            if connection.ending is None:
                self.leave(connection)
                connection.end(ending)

    def leave(self, connection: Connection) -> None:
        """Take a connection out of its room, whose frames it gets no more."""
        with self._lock:
            room = self._rooms.get(connection.grant.room)
            if room is not None:
                room.connections.pop(connection, None)

    def drop(self, user: str | None = None) -> int:
        """Cut connections at once, without a close frame, as a lost network would.

        Args:
            user: the user id whose connections are cut, in all rooms; None for everybody's.

        Returns:
            The number of connections cut.
        """
        with self._lock:
            everybody = self._open_connections()
            cut = [each for each in everybody if user in (None, each.grant.user_id)]
            for connection in cut:
                self.close(connection, Drop())
            return len(cut)

    def send_event(
        self,
        room: str,
        name: str,
        attributes: Mapping[str, str],
        *,
        request_id: str | None = None,
        operation: str = "SendEvent",
    ) -> str:
        """Send an event, which counts against the quota of ``operation``; return its id."""
        with self._lock:
            self._admit_operation(operation, room)
            event_id, now = new_id(), self._clock()
            frame = make_frame(
                "EVENT",
                event_id,
                request_id,
                EventName=name,
                SendTime=iso_time(now),
                Attributes=attributes,
            )
            self._send_to_all(room, frame, now)
            self.events += 1
            return event_id

    def delete_message(
        self, room: str, message_id: str, reason: str, *, request_id: str | None = None
    ) -> str:
        """Send an event that tells clients to delete a message; return the event's id.

        An empty ``reason`` is left out. A message that is not among the room's last 10,000 is a
        ``ResourceNotFoundException``.
        """
        with self._lock:
            known = self._rooms.get(room)
            if known is None or message_id not in known.messages:
                raise ServiceError(
                    404,
                    "ResourceNotFoundException",
                    "There is no such message in the room",
                    resourceId=message_id,
                    resourceType="MESSAGE",
                )
            # MessageID is deprecated (API reference, Event), but the SDK reads it.
            return self.send_event(
                room,
                "aws:DELETE_MESSAGE",
                {"MessageId": message_id, "MessageID": message_id, **_reason_attribute(reason)},
                request_id=request_id,
                operation="DeleteMessage",
            )

    def disconnect_user(
        self, room: str, user_id: str, reason: str, *, request_id: str | None = None
    ) -> None:
        """Send an event that a user is disconnected, and close the user's connections to the room.

        An empty ``reason`` is left out. The user need not be connected. Unspent tokens of the user
        stay valid: the API reference says nothing else.
        """
        with self._lock:
            self.send_event(
                room,
                "aws:DISCONNECT_USER",
                {"UserId": user_id, **_reason_attribute(reason)},
                request_id=request_id,
                operation="DisconnectUser",
            )
            for connection in self._connections_to(room):
                if connection.grant.user_id == user_id:
                    self.close(connection, Close(CLOSE_NORMAL, "disconnected"))

    def _perform_request(
        self, connection: Connection, request: ChatRequest, *, well_formed: bool
    ) -> None:
        grant = connection.grant
        if not connection.meter.admit(self._monotonic()):
            raise edge_error(429, "The connection sends too many requests a second")
        if not well_formed:
            raise edge_error(400, "The request is not a JSON object")
        action = _ACTIONS.get(request.action)
        if action is None:
            raise edge_error(400, "There is no such Action")
        request.check_request_id()
        rules = self._find_rules(grant.room)
        if rules is None:
            raise edge_error(404, "The room does not exist")
        if request.action not in grant.capabilities:
            raise edge_error(403, f"The connection lacks the capability {request.action}")
        action(self, grant, request, rules)

    def _send_message(self, grant: Grant, request: ChatRequest, rules: Mapping[str, Any]) -> None:
        content = request.read_required_text("Content", rules["maximumMessageLength"])
        attributes = request.read_attributes()
        room = self._rooms[grant.room]
        if not room.admit_message(rules["maximumMessageRatePerSecond"], self._monotonic()):
            raise edge_error(429, "The room gets too many messages a second")
        review = rules["messageReviewHandler"]
        if review.get("uri") and review.get("fallbackResult") == "DENY":
            raise edge_error(406, "The message was rejected in review")
        message_id, now = new_id(), self._clock()
        room.messages[message_id] = None
        if len(room.messages) > _MESSAGES_KEPT:
            room.messages.popitem(last=False)
        frame = make_frame(
            "MESSAGE",
            message_id,
            request.request_id,
            Content=content,
            SendTime=iso_time(now),
            Attributes=attributes,
            Sender={"UserId": grant.user_id, "Attributes": grant.attributes},
        )
        self._send_to_all(grant.room, frame, now)
        self.messages += 1

    def _delete_message(self, grant: Grant, request: ChatRequest, _: Mapping[str, Any]) -> None:
        message_id = request.read_required_text("Id", _ID_LIMIT_CHARACTERS)
        reason = request.read_text("Reason", _REASON_LIMIT_CHARACTERS)
        self.delete_message(grant.room, message_id, reason, request_id=request.request_id)

    def _disconnect_user(self, grant: Grant, request: ChatRequest, _: Mapping[str, Any]) -> None:
        user_id = request.read_required_text("UserId", _ID_LIMIT_CHARACTERS)
        reason = request.read_text("Reason", _REASON_LIMIT_CHARACTERS)
        self.disconnect_user(grant.room, user_id, reason, request_id=request.request_id)

    def _send_to_all(self, room: str, frame: str, now: float) -> None:
        for connection in self._connections_to(room):
            # The timer that ends a session may be late: send nothing after the session's end.
            if connection.grant.session_expires > now:
                self._put_or_drop(connection, frame)
            else:
                self.expire(connection)

    def _put_or_drop(self, connection: Connection, frame: str) -> None:
        if not connection.put(frame):
            self.close(connection, Drop())

    def _admit_operation(self, operation: str, room: str) -> None:
        _, _, _, region, account, room_id = room.split(":", 5)
        if not self._meters[operation, account, region].admit(self._monotonic()):
            raise throttling_error(room_id.removeprefix("room/"), _OPERATION_QUOTA)

    def _connections_to(self, arn: str) -> list[Connection]:
        room = self._rooms.get(arn)
        return list(room.connections) if room else []

    def _open_connections(self) -> list[Connection]:
        return [connection for arn in self._rooms for connection in self._connections_to(arn)]


_ACTIONS: dict[str, Callable[[Chat, Grant, ChatRequest, Mapping[str, Any]], None]] = {
    "SEND_MESSAGE": Chat._send_message,
    "DELETE_MESSAGE": Chat._delete_message,
    "DISCONNECT_USER": Chat._disconnect_user,
}


def _reason_attribute(reason: str) -> dict[str, str]:
    return {"Reason": reason} if reason else {}
