"""The chat itself: who is connected to which room, what they may say, and who hears it.

Nothing here does I/O. A server opens a `Connection` with a token, hands in what the client sends,
and takes out what the client is to get.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from ._frames import ChatRequest, error_frame, event_frame, message_frame, refusal
from ._quota import Meter, QuotaShape
from ._tokens import Grant, TokenError
from ._wire import Drop, ServiceError, new_id, parse_object

# IVS Chat service quotas: 10 messaging requests a second from one connection, and 100 a second of
# each of the three operations below in an account and region, over the API and the edge together.
# Neither shape is published.
_CONNECTION_QUOTA = QuotaShape("sliding", 10)
_OPERATION_QUOTA = QuotaShape("bucket", 100, 100)

# Frames that may wait for a client: a minute and more of a default room at its full rate.
_OUTBOX_LIMIT = 1_000
# Messages of a room that can be deleted: a chat that scrolls shows far fewer.
_MESSAGES_KEPT = 10_000

_NORMAL = 1000  # close codes of RFC 6455
_GOING_AWAY = 1001


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection in order, after all that was to be sent before.

    Args:
        code: the WebSocket close code.
        reason: text for the close frame.
    """

    code: int
    reason: str


class Connection:
    """One chat connection; `Chat.connect` makes them.

    Args:
        grant: what its token entitles it to.
        notify: see `Chat.connect`.

    Attributes:
        grant: what its token entitles it to.
        ending: how the server has to end it; None while it is open.
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

        Whoever takes reads `ending` first: once it is set, no frame is added.
        """
        return self._outbox.popleft() if self._outbox else None

    def put(self, frame: str) -> bool:
        """Add a frame for the client; False if too many wait already."""
        if len(self._outbox) >= _OUTBOX_LIMIT:
            return False
        self._outbox.append(frame)
        self._notify(self)
        return True

    def end(self, ending: Close | Drop) -> None:
        """Say how the connection ends; what waits still goes out unless it is dropped."""
        if isinstance(ending, Drop):
            self._outbox.clear()
        self.ending = ending
        self._notify(self)


@dataclass(slots=True)
class _Room:
    meter: Meter | None = None  # of messages; made with the first
    connections: dict[Connection, None] = field(default_factory=dict)  # a set, in order of arrival
    messages: OrderedDict[str, None] = field(default_factory=OrderedDict)


class Chat:
    """Rooms full of connections; safe to use from several threads.

    A request is judged in this order: session, rate of the connection, form, whether the room
    exists, capability, members, rate of the room, review. The order at AWS is not published.

    There is no Lambda to review messages: in a room that has a ``messageReviewHandler``, its
    ``fallbackResult`` says whether messages are relayed or refused with a 406.

    Args:
        lock: held during every operation; one that the same thread may take twice.
        redeem: spends a token, or raises `TokenError`.
        rules: a room's members in the service model by its ARN, None if there is no such room.
        clock: wall seconds.
        monotonic: seconds that never go back; rates are counted on it.

    Attributes:
        opened: connections opened.
        refused: tokens that opened none.
        messages: messages relayed, each once however many heard it.
        events: events sent to rooms, likewise.
    """

    opened: int
    refused: int
    messages: int
    events: int

    def __init__(
        self,
        *,
        lock: AbstractContextManager[Any],
        redeem: Callable[[str], Grant],
        rules: Callable[[str], Mapping[str, Any] | None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._lock = lock
        self._redeem = redeem
        self._rules = rules
        self._clock = clock
        self._monotonic = monotonic
        self._rooms: dict[str, _Room] = {}
        self.reset()

    def reset(self) -> None:
        """Close every connection, and forget all that was."""
        with self._lock:
            for connection in self._open():
                self.close(connection, Close(_GOING_AWAY, "reset"))
            self._rooms = {}
            self._meters: dict[tuple[str, str, str], Meter] = {}
            self.opened = self.refused = self.messages = self.events = 0

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        with self._lock:
            return len(self._open())

    def connect(self, token: str, notify: Callable[[Connection], None]) -> Connection:
        """Open a connection with a token, which is spent by that.

        Args:
            token: what CreateChatToken gave.
            notify: called with the connection whenever there is something to take from it, or it
                ends. It may be called from any thread, with the lock held, so that it must only
                pass the word on.

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
            self._room(grant.room).connections[connection] = None
            self.opened += 1
            return connection

    def receive(self, connection: Connection, data: str | bytes) -> None:
        """Do what a client asks for, or send it an ERROR.

        Args:
            connection: whose.
            data: a frame; one of bytes is malformed, whatever it holds.
        """
        with self._lock:
            if connection.ending is not None or self.expire(connection) <= 0:
                return
            members = parse_object(data) if isinstance(data, str) else None
            request = ChatRequest(members or {})
            try:
                self._perform(connection, request, well_formed=members is not None)
            except ServiceError as error:
                self._put(connection, error_frame(error, request.request_id))

    def expire(self, connection: Connection) -> float:
        """End a connection whose session is over: a 401 goes to the client, then a close.

        Returns:
            The seconds until the session is over, 0 or less if it is.
        """
        with self._lock:
            left = connection.grant.session_expires - self._clock()
            if left <= 0 and connection.ending is None:
                self._put(connection, error_frame(refusal(401, "The connection has expired")))
                self.close(connection, Close(_NORMAL, "session expired"))
            return left

    def close(self, connection: Connection, ending: Close | Drop) -> None:
        """End a connection, unless it ends already."""
        with self._lock:
            if connection.ending is None:
                self.leave(connection)
                connection.end(ending)

    def leave(self, connection: Connection) -> None:
        """Forget a connection; the client is gone, or is not to hear any more."""
        with self._lock:
            room = self._rooms.get(connection.grant.room)
            if room is not None:
                room.connections.pop(connection, None)

    def drop(self, user: str | None = None) -> int:
        """Cut connections at once, without a close frame, as a lost network would.

        Args:
            user: the user id whose connections are cut, in all rooms; None for everybody's.

        Returns:
            How many there were.
        """
        with self._lock:
            cut = [each for each in self._open() if user is None or each.grant.user_id == user]
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
        """Send an event to everybody in a room.

        Args:
            room: the room's ARN.
            name: the event's name.
            attributes: its attributes.
            request_id: the client's name for the request that it comes from.
            operation: whose quota it counts against.

        Returns:
            The event's id.

        Raises:
            ServiceError: a ``ThrottlingException``.
        """
        with self._lock:
            self._admit(operation, room)
            event_id, now = new_id(), self._clock()
            frame = event_frame(event_id, name, attributes, request_id=request_id, now=now)
            self._relay(room, frame, now)
            self.events += 1
            return event_id

    def delete_message(
        self, room: str, message_id: str, reason: str, *, request_id: str | None = None
    ) -> str:
        """Tell everybody in a room to delete a message; the service does no more than that.

        Args:
            room: the room's ARN.
            message_id: the message's id.
            reason: why; empty if it is not told.
            request_id: the client's name for the request that it comes from.

        Returns:
            The event's id.

        Raises:
            ServiceError: a ``ResourceNotFoundException`` if the room had no such message among its
                last 10,000, or a ``ThrottlingException``.
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
            # MessageID is deprecated (API reference, Event), yet what the SDK reads.
            return self.send_event(
                room,
                "aws:DELETE_MESSAGE",
                {"MessageId": message_id, "MessageID": message_id, **_told(reason)},
                request_id=request_id,
                operation="DeleteMessage",
            )

    def disconnect_user(
        self, room: str, user_id: str, reason: str, *, request_id: str | None = None
    ) -> None:
        """Close every connection of a user to a room, after an event that tells everybody.

        Tokens of the user that are not spent stay good: the API reference tells of no other.

        Args:
            room: the room's ARN.
            user_id: the user's id; nobody of that name need be there.
            reason: why; empty if it is not told.
            request_id: the client's name for the request that it comes from.

        Raises:
            ServiceError: a ``ThrottlingException``.
        """
        with self._lock:
            self.send_event(
                room,
                "aws:DISCONNECT_USER",
                {"UserId": user_id, **_told(reason)},
                request_id=request_id,
                operation="DisconnectUser",
            )
            for connection in self._in(room):
                if connection.grant.user_id == user_id:
                    self.close(connection, Close(_NORMAL, "disconnected"))

    def _perform(self, connection: Connection, request: ChatRequest, *, well_formed: bool) -> None:
        grant = connection.grant
        if not connection.meter.admit(self._monotonic()):
            raise refusal(429, "The connection sends too many requests a second")
        if not well_formed:
            raise refusal(400, "The request is not a JSON object")
        action = _ACTIONS.get(request.action)
        if action is None:
            raise refusal(400, "Action is none that there is")
        request.check_request_id()
        rules = self._rules(grant.room)
        if rules is None:
            raise refusal(404, "The room does not exist")
        if request.action not in grant.capabilities:
            raise refusal(403, f"The connection lacks the capability {request.action}")
        action(self, grant, request, rules)

    def _send_message(self, grant: Grant, request: ChatRequest, rules: Mapping[str, Any]) -> None:
        content = request.content(rules["maximumMessageLength"])
        attributes = request.attributes()
        room = self._room(grant.room)
        if room.meter is None:
            room.meter = QuotaShape("sliding", rules["maximumMessageRatePerSecond"]).meter()
        if not room.meter.admit(self._monotonic()):
            raise refusal(429, "The room gets too many messages a second")
        review = rules["messageReviewHandler"]
        if review.get("uri") and review.get("fallbackResult") == "DENY":
            raise refusal(406, "The message was rejected in review")
        message_id, now = new_id(), self._clock()
        room.messages[message_id] = None
        if len(room.messages) > _MESSAGES_KEPT:
            room.messages.popitem(last=False)
        frame = message_frame(
            message_id,
            content,
            attributes,
            user_id=grant.user_id,
            user_attributes=grant.attributes,
            request_id=request.request_id,
            now=now,
        )
        self._relay(grant.room, frame, now)
        self.messages += 1

    def _delete_message(self, grant: Grant, request: ChatRequest, _: Mapping[str, Any]) -> None:
        self.delete_message(
            grant.room, request.message_id(), request.reason(), request_id=request.request_id
        )

    def _disconnect_user(self, grant: Grant, request: ChatRequest, _: Mapping[str, Any]) -> None:
        self.disconnect_user(
            grant.room, request.user_id(), request.reason(), request_id=request.request_id
        )

    def _relay(self, room: str, frame: str, now: float) -> None:
        for connection in self._in(room):
            # Whoever's timer is late hears nothing beyond the session.
            if connection.grant.session_expires > now:
                self._put(connection, frame)
            else:
                self.expire(connection)

    def _put(self, connection: Connection, frame: str) -> None:
        if not connection.put(frame):
            self.close(connection, Drop())

    def _admit(self, operation: str, room: str) -> None:
        _, _, _, region, account, room_id = room.split(":", 5)
        key = (operation, account, region)
        if key not in self._meters:
            self._meters[key] = _OPERATION_QUOTA.meter()
        if not self._meters[key].admit(self._monotonic()):
            raise ServiceError(
                429,
                "ThrottlingException",
                "Rate exceeded",
                resourceId=room_id.removeprefix("room/"),
                resourceType="ROOM",
                limit=int(_OPERATION_QUOTA.rate),
            )

    def _room(self, arn: str) -> _Room:
        room = self._rooms.get(arn)
        if room is None:
            room = self._rooms[arn] = _Room()
        return room

    def _in(self, arn: str) -> list[Connection]:
        room = self._rooms.get(arn)
        return list(room.connections) if room else []

    def _open(self) -> list[Connection]:
        return [connection for arn in self._rooms for connection in self._in(arn)]


_ACTIONS: dict[str, Callable[[Chat, Grant, ChatRequest, Mapping[str, Any]], None]] = {
    "SEND_MESSAGE": Chat._send_message,
    "DELETE_MESSAGE": Chat._delete_message,
    "DISCONNECT_USER": Chat._disconnect_user,
}


def _told(reason: str) -> dict[str, str]:
    return {"Reason": reason} if reason else {}
