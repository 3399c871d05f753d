"""The model: rooms, quota, tokens, chat and faults of a local IVS Chat, without any I/O.

Everything the emulator knows and decides is here; a server around it only carries `Request` in and
an `Answer` (or `Drop`, or `Hang`) out.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from random import random
from typing import Any
from uuid import uuid4

from ._chat import Chat
from ._faults import SPOILING, Fault, FaultKind, FaultQueue, bare_throttle, modelled_error, spoil
from ._quota import Meter
from ._rooms import Rooms
from ._settings import Settings
from ._tokens import Grant, Tokens
from ._validation import EventMembers, ModerationMembers, TokenMembers
from ._wire import (
    DEFAULT_ACCOUNT,
    DEFAULT_REGION,
    Answer,
    Drop,
    Hang,
    Outcome,
    Request,
    ServiceError,
    iso_time,
    parse_object,
)

_MINTING = "CreateChatToken"
_HISTORY = 100_000  # arrivals remembered: more than any test or benchmark looks at
_TALLIED = ("requests", "minted", "throttled", "refused", "failed", "dropped", "redeemed")


@dataclass(frozen=True, slots=True)
class Counts:
    """What the emulator has seen since it was made or reset.

    Every CreateChatToken request ends up in exactly one of ``minted``, ``throttled``, ``refused``,
    ``failed`` and ``dropped``.

    Args:
        requests: CreateChatToken requests.
        minted: tokens made, whether or not a fault spoilt the answer.
        throttled: answers with status 429.
        refused: answers with any other 4xx status.
        failed: answers with a 5xx status.
        dropped: connections reset, and requests never answered.
        redeemed: tokens spent.
        in_flight: requests of any operation being answered now.
        peak_in_flight: the most there have been at once.
        connections: connections opened, of HTTP and of chat.
        chat_open: chat connections that are open now.
        chat_opened: chat connections opened.
        chat_refused: handshakes refused for their token.
        messages: chat messages relayed, each counted once.
        events: events sent to rooms, each counted once.
    """

    requests: int
    minted: int
    throttled: int
    refused: int
    failed: int
    dropped: int
    redeemed: int
    in_flight: int
    peak_in_flight: int
    connections: int
    chat_open: int
    chat_opened: int
    chat_refused: int
    messages: int
    events: int


class _Gauge:
    """Counts those within ``with gauge:``, and the most there were at once."""

    __slots__ = ("_lock", "now", "peak")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = 0
        self.peak = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.peak = max(self.peak, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


class Emulator:
    """A local IVS Chat as a pure model; safe to use from several threads.

    A request for a token is judged in this order: signature (if a server checks it), faults, the
    service model's constraints, the quota, whether the room exists. The order at AWS is not
    published. The quota counts by the account and region of the room's ARN. A room exists in its
    own region only.

    Args:
        clock: wall seconds since the epoch.
        monotonic: seconds that never go back; the quota and the arrivals are counted on it.
        uniform: a random number from 0 to 1, for the jitter.
        settings: the fields of `Settings`, by keyword; a quota may be given as text.

    Attributes:
        settings: the settings in force; `configure` changes them.
        arrivals: when CreateChatToken requests came, in monotonic seconds; the last 100,000.
        outcomes: pairs of arrival and status for the same requests, in the order in which they were
            decided; the status is 0 if there was no answer.
        minted_by_user: tokens minted for each user id, if ``track_users`` is set.
        flights: to be entered by a server while it answers a request.
        chat: the connections to the rooms, for servers of the chat edge.

    Raises:
        ValueError: a setting is not valid.
    """

    settings: Settings
    arrivals: deque[float]
    outcomes: deque[tuple[float, int]]
    minted_by_user: dict[str, int]
    flights: _Gauge
    chat: Chat

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random,
        **settings: Any,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._uniform = uniform
        self._initial = Settings().changed(settings)
        self._lock = threading.RLock()
        self.chat = Chat(
            lock=self._lock,
            redeem=self.redeem,
            rules=lambda arn: self._rooms.rules(arn, any_room=self.settings.any_room),
            clock=self.now,
            monotonic=monotonic,
        )
        self.reset()

    def reset(self) -> None:
        """Return to the state, and the settings, that the emulator was made with.

        Every chat connection is closed.
        """
        with self._lock:
            self.chat.reset()
            self.settings = self._initial
            self.arrivals = deque(maxlen=_HISTORY)
            self.outcomes = deque(maxlen=_HISTORY)
            self.minted_by_user = {}
            # A new gauge: requests of before the reset still leave the one that they entered.
            self.flights = _Gauge()
            self._rooms = Rooms()
            self._tokens = Tokens()
            self._faults = FaultQueue()
            self._meters: dict[tuple[str, str], Meter] = {}
            self._tally = dict.fromkeys(_TALLIED, 0)
            self._connections = 0

    def configure(self, **changes: Any) -> None:
        """Change settings while the emulator runs.

        Args:
            changes: the fields of `Settings`, by keyword. A new quota starts with nothing used.

        Raises:
            ValueError: a name or a value is not valid; nothing is changed then.
        """
        with self._lock:
            self.settings = self.settings.changed(changes)
            if "quota" in changes:
                self._meters.clear()

    def fail_next(self, *faults: Fault) -> None:
        """Queue faults for the next CreateChatToken requests, behind those already queued."""
        with self._lock:
            self._faults.add(faults)

    def clear_faults(self) -> None:
        """Forget every queued fault."""
        with self._lock:
            self._faults.clear()

    def counts(self) -> Counts:
        """Return a snapshot of what was seen."""
        with self._lock:
            return Counts(
                **self._tally,
                in_flight=self.flights.now,
                peak_in_flight=self.flights.peak,
                connections=self._connections,
                chat_open=self.chat.connections,
                chat_opened=self.chat.opened,
                chat_refused=self.chat.refused,
                messages=self.chat.messages,
                events=self.chat.events,
            )

    def connection_opened(self) -> None:
        """Count a connection; for servers."""
        with self._lock:
            self._connections += 1

    def now(self) -> float:
        """Return wall seconds by the service's own clock, which may be skewed."""
        return self._clock() + self.settings.clock_skew

    def create_room(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        region: str = DEFAULT_REGION,
        account: str = DEFAULT_ACCOUNT,
    ) -> dict[str, Any]:
        """Create a room.

        Args:
            body: the request's members in the service model; None for all defaults.
            region: the room's region.
            account: the room's account.

        Returns:
            The reply's members in the service model, ``arn`` among them.

        Raises:
            ServiceError: a ``ValidationException``.
        """
        with self._lock:
            return self._rooms.create(
                body or {}, region=region, account=account, now=iso_time(self.now())
            )

    def get_room(
        self, body: Mapping[str, Any], *, region: str = DEFAULT_REGION, account: str = ""
    ) -> dict[str, Any]:
        """Return a room's members.

        Args:
            body: the request's members; ``identifier`` is the room's ARN.
            region: where the request goes.
            account: has no meaning: the ARN names the account.

        Raises:
            ServiceError: a ``ValidationException`` or a ``ResourceNotFoundException``.
        """
        with self._lock:
            return self._rooms.get(body, region=region)

    def list_rooms(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        region: str = DEFAULT_REGION,
        account: str = DEFAULT_ACCOUNT,
    ) -> dict[str, Any]:
        """Return one page of an account's rooms in a region, in order of creation.

        Raises:
            ServiceError: a ``ValidationException``.
        """
        with self._lock:
            return self._rooms.list(body or {}, region=region, account=account)

    def delete_room(
        self, body: Mapping[str, Any], *, region: str = DEFAULT_REGION, account: str = ""
    ) -> None:
        """Delete a room; from then on no token can be made for it.

        Args:
            body: the request's members; ``identifier`` is the room's ARN.
            region: where the request goes.
            account: has no meaning: the ARN names the account.

        Raises:
            ServiceError: a ``ValidationException`` or a ``ResourceNotFoundException``.
        """
        with self._lock:
            self._rooms.delete(body, region=region)

    def create_chat_token(
        self, body: Mapping[str, Any], *, region: str = DEFAULT_REGION, account: str = ""
    ) -> dict[str, Any]:
        """Mint a token; neither counted as a request nor hit by a fault.

        Args:
            body: the request's members in the service model.
            region: where the request goes.
            account: has no meaning: the quota is that of the account in the room's ARN.

        Returns:
            The reply's members: ``token``, and the two times in ISO 8601 with milliseconds.

        Raises:
            ServiceError: a ``ValidationException``, ``ThrottlingException`` or
                ``ResourceNotFoundException``.
        """
        members = TokenMembers.of(body)
        with self._lock:
            room, settings, now = members.room, self.settings, self.now()
            if not self._meter(room.account, room.region).admit(self._monotonic()):
                raise self._throttled(room.room_id)
            self._rooms.admit(room, region=region, any_room=settings.any_room)
            grant = Grant(
                room.text,
                members.user_id,
                members.capabilities,
                members.attributes,
                now + settings.token_life,
                now + members.minutes * settings.minute,
            )
            token = self._tokens.mint(grant)
            self._tally["minted"] += 1
            if settings.track_users:
                minted = self.minted_by_user.get(grant.user_id, 0)
                self.minted_by_user[grant.user_id] = minted + 1
        return {
            "token": token,
            "tokenExpirationTime": iso_time(grant.token_expires),
            "sessionExpirationTime": iso_time(grant.session_expires),
        }

    def redeem(self, token: str, now: float | None = None) -> Grant:
        """Spend a token, as a client does that opens a connection with it.

        Args:
            token: the token.
            now: wall seconds by the service's clock; None for the present.

        Returns:
            What the token entitles its bearer to.

        Raises:
            TokenError: the token is unknown, spent or expired, each with a class of its own.
        """
        with self._lock:
            grant = self._tokens.redeem(token, self.now() if now is None else now)
            self._tally["redeemed"] += 1
            return grant

    def send_event(
        self, body: Mapping[str, Any], *, region: str = DEFAULT_REGION, account: str = ""
    ) -> dict[str, Any]:
        """Send an event to everybody in a room.

        Args:
            body: the request's members in the service model.
            region: where the request goes.
            account: has no meaning: the ARN names the account.

        Returns:
            The reply's members: ``id``, of the event.

        Raises:
            ServiceError: a ``ValidationException``, ``ThrottlingException`` (100 requests a second)
                or ``ResourceNotFoundException``.
        """
        members = EventMembers.of(body)
        with self._lock:
            self._rooms.admit(members.room, region=region, any_room=self.settings.any_room)
            event_id = self.chat.send_event(members.room.text, members.name, members.attributes)
            return {"id": event_id}

    def delete_message(
        self, body: Mapping[str, Any], *, region: str = DEFAULT_REGION, account: str = ""
    ) -> dict[str, Any]:
        """Tell everybody in a room to delete a message.

        Args:
            body: the request's members in the service model.
            region: where the request goes.
            account: has no meaning: the ARN names the account.

        Returns:
            The reply's members: ``id``, of the event.

        Raises:
            ServiceError: a ``ValidationException``, ``ThrottlingException`` (100 requests a second)
                or ``ResourceNotFoundException``, for a room or for a message.
        """
        members = ModerationMembers.of_deletion(body)
        with self._lock:
            self._rooms.admit(members.room, region=region, any_room=self.settings.any_room)
            event_id = self.chat.delete_message(members.room.text, members.target, members.reason)
            return {"id": event_id}

    def disconnect_user(
        self, body: Mapping[str, Any], *, region: str = DEFAULT_REGION, account: str = ""
    ) -> dict[str, Any]:
        """Close every connection of a user to a room.

        Args:
            body: the request's members in the service model.
            region: where the request goes.
            account: has no meaning: the ARN names the account.

        Returns:
            The reply, which has no members.

        Raises:
            ServiceError: a ``ValidationException``, ``ThrottlingException`` (100 requests a second)
                or ``ResourceNotFoundException``.
        """
        members = ModerationMembers.of_disconnection(body)
        with self._lock:
            self._rooms.admit(members.room, region=region, any_room=self.settings.any_room)
            self.chat.disconnect_user(members.room.text, members.target, members.reason)
            return {}

    def respond(self, request: Request) -> Outcome:
        """Decide what happens to a request.

        Nothing here waits: the outcome says how long the server has to.
        """
        with self._lock:
            if request.operation != _MINTING:
                return self._perform(request)
            arrival = self._monotonic()
            self.arrivals.append(arrival)
            self._tally["requests"] += 1
            outcome = self._create_chat_token(request)
            self._record(arrival, outcome)
            return outcome

    def _create_chat_token(self, request: Request) -> Outcome:
        fault = self._faults.peek()
        if fault is None or request.denial:
            return self._perform(request)
        if fault.kind not in SPOILING:
            self._faults.spend()
            return self._refuse(request, fault)
        try:
            reply = self._reply(request)
        except ServiceError as error:
            return self._error(error)
        self._faults.spend()
        return self._answer(200, *spoil(fault.kind, reply or {}), fault=fault)

    def _refuse(self, request: Request, fault: Fault) -> Outcome:
        if fault.kind is FaultKind.RESET:
            return Drop(self._delay(fault))
        if fault.kind is FaultKind.BLACK_HOLE:
            return Hang()
        if bare := bare_throttle(fault.kind):
            return self._answer(429, *bare, fault=fault)
        body = parse_object(request.body) or {}
        if fault.kind is FaultKind.THROTTLE_JSON:
            _, _, room_id = str(body.get("roomIdentifier")).rpartition("/")
            return self._error(self._throttled(room_id), fault)
        return self._error(modelled_error(fault.kind, body), fault)

    def _perform(self, request: Request) -> Answer:
        try:
            reply = self._reply(request)
        except ServiceError as error:
            return self._error(error)
        if reply is None:
            return self._answer(204, None, b"")
        return self._answer(200, "application/json", json.dumps(reply).encode())

    def _reply(self, request: Request) -> dict[str, Any] | None:
        if request.denial:
            raise request.denial
        operation = _OPERATIONS.get(request.operation)
        if operation is None:
            raise _invalid("UNKNOWN_OPERATION", "There is no such operation")
        body = parse_object(request.body)
        if body is None:
            raise _invalid("OTHER", "The body is not a JSON object")
        return operation(self, body, region=request.region, account=request.account)

    def _meter(self, account: str, region: str) -> Meter:
        key = (account, region)
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = self.settings.quota.meter()
        return meter

    def _throttled(self, room_id: str) -> ServiceError:
        return ServiceError(
            429,
            "ThrottlingException",
            "Rate exceeded",
            resourceId=room_id,
            resourceType="ROOM",
            limit=int(self.settings.quota.rate),
        )

    def _error(self, error: ServiceError, fault: Fault | None = None) -> Answer:
        body = json.dumps(error.members).encode()
        return self._answer(
            error.status, "application/json", body, fault=fault, errortype=error.code
        )

    def _answer(
        self,
        status: int,
        content_type: str | None,
        body: bytes,
        *,
        fault: Fault | None = None,
        errortype: str | None = None,
    ) -> Answer:
        headers = {"x-amzn-RequestId": str(uuid4())}
        if content_type is not None:
            headers["Content-Type"] = content_type
        if errortype is not None:
            headers["x-amzn-errortype"] = errortype
        if fault is not None and fault.retry_after is not None:
            headers["Retry-After"] = fault.retry_after
        if self.settings.date_header == "normal":
            headers["Date"] = formatdate(self.now(), usegmt=True)
        elif self.settings.date_header == "garbled":
            headers["Date"] = "yesterday, around noon"
        return Answer(status, headers, body, self._delay(fault))

    def _delay(self, fault: Fault | None) -> float:
        settings = self.settings
        jitter = settings.jitter * self._uniform() if settings.jitter else 0.0
        return settings.latency + jitter + (fault.latency if fault else 0.0)

    def _record(self, arrival: float, outcome: Outcome) -> None:
        status = outcome.status if isinstance(outcome, Answer) else 0
        if status == 0:
            self._tally["dropped"] += 1
        elif status == 429:
            self._tally["throttled"] += 1
        elif status >= 500:
            self._tally["failed"] += 1
        elif status >= 400:
            self._tally["refused"] += 1
        self.outcomes.append((arrival, status))


_OPERATIONS: dict[str, Callable[..., dict[str, Any] | None]] = {
    _MINTING: Emulator.create_chat_token,
    "CreateRoom": Emulator.create_room,
    "GetRoom": Emulator.get_room,
    "ListRooms": Emulator.list_rooms,
    "DeleteRoom": Emulator.delete_room,
    "SendEvent": Emulator.send_event,
    "DeleteMessage": Emulator.delete_message,
    "DisconnectUser": Emulator.disconnect_user,
}
OPERATIONS = tuple(_OPERATIONS)


def _invalid(reason: str, message: str) -> ServiceError:
    return ServiceError(400, "ValidationException", message, reason=reason)
