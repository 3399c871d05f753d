"""The model: rooms, quota, tokens, chat and faults of a local IVS Chat, without any I/O.

A server around it turns HTTP into a `Request`, and the `Answer`, `Drop` or `Hang` that `respond`
returns into HTTP.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from random import random
from typing import Any
from uuid import uuid4

from ._chat import Chat
from ._faults import BARE_THROTTLES, Fault, FaultKind, FaultQueue, modelled_error, spoil_reply
from ._quota import Meter, throttling_error
from ._rooms import Rooms
from ._settings import Settings
from ._tokens import Grant, Tokens
from ._validation import (
    read_deletion_request,
    read_disconnection_request,
    read_event_request,
    read_token_request,
)
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
    parse_json_object,
)

_MINT_OPERATION = "CreateChatToken"
_ARRIVALS_KEPT = 100_000  # more than any test or benchmark looks at
_TALLY_NAMES = ("requests", "minted", "throttled", "refused", "failed", "dropped", "redeemed")


@dataclass(frozen=True, slots=True)
class Counts:
    """What the emulator has seen since it was made or reset.

    Every CreateChatToken request counts in exactly one of ``minted``, ``throttled``, ``refused``,
    ``failed`` and ``dropped``.

    Args:
        requests: CreateChatToken requests.
        minted: tokens minted, whether or not a fault spoilt the answer.
        throttled: answers with status 429.
        refused: answers with a 4xx status other than 429.
        failed: answers with a 5xx status.
        dropped: connections reset, and requests never answered.
        redeemed: tokens that opened a connection.
        in_flight: requests of any operation being answered now.
        peak_in_flight: the highest ``in_flight`` so far.
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
    """Counts how many are inside ``with gauge:`` now, and the most that were at once."""

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

    Each operation of the service is a method, such as `create_room` for CreateRoom:

    - ``body``: the request's members in the service model.
    - ``region``: where the request goes; a room exists in its own region only.
    - ``account``: the caller's. Only `create_room` and `list_rooms` use it: everywhere else the
      room's ARN names the account.
    - Returns the reply's members in the service model.
    - Raises `ServiceError`: a ``ValidationException``; a ``ResourceNotFoundException`` for a room
      or message that does not exist; a ``ThrottlingException`` of `create_chat_token` beyond the
      quota, and of `send_event`, `delete_message` and `disconnect_user` beyond 100 requests a
      second for each operation, account and region.

    A request for a token is checked in this order: signature (if a server checks it), faults, the
    service model's constraints, the quota of the account and region in the room's ARN, whether the
    room exists. The order at AWS is not published.

    Args:
        clock: wall seconds since the epoch.
        monotonic: seconds that never go back; the quota and the arrivals are counted on it.
        uniform: a random number from 0 to 1, for the jitter.
        settings: the fields of `Settings`, by keyword; ``quota`` may be text.

    Attributes:
        settings: the settings in force; `configure` changes them.
        arrivals: when CreateChatToken requests came, in monotonic seconds; the last 100,000.
        outcomes: pairs of arrival and status for the same requests, in the order in which they were
            decided; the status is 0 if there was no answer.
        minted_by_user: tokens minted for each user id, if the setting ``track_users`` is on.
        flights: a context manager that a server enters while it answers a request, which counts in
            `Counts.in_flight`.
        chat: the connections to the rooms, for servers of the chat edge.

    Raises:
        ValueError: a setting is not valid.
    """

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
            find_rules=lambda arn: self._rooms.find_rules(arn, self.settings.any_room),
            clock=self.now,
            monotonic=monotonic,
        )
        self.reset()

    def reset(self) -> None:
        """Close every chat connection, and return to the state and settings of a new emulator."""
        with self._lock:
            self.chat.reset()
            self.settings = self._initial
            self.arrivals: deque[float] = deque(maxlen=_ARRIVALS_KEPT)
            self.outcomes: deque[tuple[float, int]] = deque(maxlen=_ARRIVALS_KEPT)
            self.minted_by_user: dict[str, int] = {}
            # A new gauge: a request that began before the reset leaves the gauge that it entered.
            self.flights = _Gauge()
            self._rooms = Rooms()
            self._tokens = Tokens()
            self._faults = FaultQueue()
            self._meters: defaultdict[tuple[str, str], Meter]
            self._meters = defaultdict(lambda: self.settings.quota.meter())
            self._tally = dict.fromkeys(_TALLY_NAMES, 0)
            self._connections = 0

    def configure(self, **changes: Any) -> None:
        """Change settings while the emulator runs.

        Args:
            changes: the fields of `Settings`, by keyword. A new quota starts unused.

        Raises:
            ValueError: a name or a value is not valid; no setting is changed then.
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
        """Return the counts of this moment."""
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
        """Create a room; without a body, one with all defaults. The reply holds its ``arn``."""
        with self._lock:
            return self._rooms.create(
                body or {}, region=region, account=account, now=iso_time(self.now())
            )

    def get_room(
        self, body: Mapping[str, Any], *, region: str = DEFAULT_REGION, account: str = ""
    ) -> dict[str, Any]:
        """Return the members of the room whose ARN is ``identifier``."""
        with self._lock:
            return self._rooms.get(body, region=region)

    def list_rooms(
        self,
        body: Mapping[str, Any] | None = None,
        *,
        region: str = DEFAULT_REGION,
        account: str = DEFAULT_ACCOUNT,
    ) -> dict[str, Any]:
        """Return one page of an account's rooms in a region, in order of creation."""
        with self._lock:
            return self._rooms.list(body or {}, region=region, account=account)

    def delete_room(
        self, body: Mapping[str, Any], *, region: str = DEFAULT_REGION, account: str = ""
    ) -> None:
        """Delete a room; from then on no token can be minted for it."""
        with self._lock:
            self._rooms.delete(body, region=region)

    def create_chat_token(
        self, body: Mapping[str, Any], *, region: str = DEFAULT_REGION, account: str = ""
    ) -> dict[str, Any]:
        """Mint a token; neither counted as a request nor hit by a fault."""
        room, user_id, capabilities, attributes, minutes = read_token_request(body)
        with self._lock:
            settings, now = self.settings, self.now()
            if not self._meters[room.account, room.region].admit(self._monotonic()):
                raise throttling_error(room.room_id, settings.quota)
            self._rooms.require(room, region, settings.any_room)
            grant = Grant(
                room.text,
                user_id,
                capabilities,
                attributes,
                token_expires=now + settings.token_life,
                session_expires=now + minutes * settings.minute,
            )
            token = self._tokens.mint(grant)
            self._tally["minted"] += 1
            if settings.track_users:
                self.minted_by_user[user_id] = self.minted_by_user.get(user_id, 0) + 1
        return {
            "token": token,
            "tokenExpirationTime": iso_time(grant.token_expires),
            "sessionExpirationTime": iso_time(grant.session_expires),
        }

    def redeem(self, token: str, now: float | None = None) -> Grant:
        """Spend a token, as opening a connection with it does.

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
        """Send an event to everybody in a room; see `Chat.send_event`."""
        room, name, attributes = read_event_request(body)
        with self._lock:
            self._rooms.require(room, region, self.settings.any_room)
            return {"id": self.chat.send_event(room.text, name, attributes)}

    def delete_message(
        self, body: Mapping[str, Any], *, region: str = DEFAULT_REGION, account: str = ""
    ) -> dict[str, Any]:
        """Tell everybody in a room to delete a message; see `Chat.delete_message`."""
        room, message_id, reason = read_deletion_request(body)
        with self._lock:
            self._rooms.require(room, region, self.settings.any_room)
            return {"id": self.chat.delete_message(room.text, message_id, reason)}

    def disconnect_user(
        self, body: Mapping[str, Any], *, region: str = DEFAULT_REGION, account: str = ""
    ) -> dict[str, Any]:
        """Close every connection of a user to a room; see `Chat.disconnect_user`."""
        room, user_id, reason = read_disconnection_request(body)
        with self._lock:
            self._rooms.require(room, region, self.settings.any_room)
            self.chat.disconnect_user(room.text, user_id, reason)
            return {}

    def respond(self, request: Request) -> Outcome:
        """Perform a request, or let it meet the next fault, and count it.

        Nothing waits here: the outcome says how many seconds the server waits before it answers.
        """
        with self._lock:
            if request.operation != _MINT_OPERATION:
                return self._answer_operation(request)
            arrival = self._monotonic()
            self.arrivals.append(arrival)
            self._tally["requests"] += 1
            outcome = self._answer_token_request(request)
            self._count_outcome(arrival, outcome)
            return outcome

    def _answer_token_request(self, request: Request) -> Outcome:
        fault = self._faults.first()
        if fault is None or request.denial:
            return self._answer_operation(request)
        refusal = self._refuse_by_fault(request, fault)
        if refusal is not None:
            self._faults.count_hit()
            return refusal
        try:
            reply = self._run_operation(request)
        except ServiceError as error:
            return self._make_error_answer(error)
        self._faults.count_hit()
        return self._make_answer(200, *spoil_reply(fault.kind, reply or {}), fault=fault)

    def _refuse_by_fault(self, request: Request, fault: Fault) -> Outcome | None:
        if fault.kind is FaultKind.RESET:
            return Drop(self._delay_seconds(fault))
        if fault.kind is FaultKind.BLACK_HOLE:
            return Hang()
        if fault.kind in BARE_THROTTLES:
            return self._make_answer(429, "text/html", BARE_THROTTLES[fault.kind], fault=fault)
        body = parse_json_object(request.body) or {}
        error = modelled_error(fault.kind, body)
        if fault.kind is FaultKind.THROTTLE_JSON:
            _, _, room_id = str(body.get("roomIdentifier")).rpartition("/")
            error = throttling_error(room_id, self.settings.quota)
        return self._make_error_answer(error, fault) if error else None

    def _answer_operation(self, request: Request) -> Answer:
        try:
            reply = self._run_operation(request)
        except ServiceError as error:
            return self._make_error_answer(error)
        if reply is None:
            return self._make_answer(204, None, b"")
        return self._make_answer(200, "application/json", json.dumps(reply).encode())

    def _run_operation(self, request: Request) -> dict[str, Any] | None:
        if request.denial:
            raise request.denial
        operation = _OPERATIONS.get(request.operation)
        if operation is None:
            raise _validation_error("UNKNOWN_OPERATION", "There is no such operation")
        body = parse_json_object(request.body)
        if body is None:
            raise _validation_error("OTHER", "The body is not a JSON object")
        return operation(self, body, region=request.region, account=request.account)

    def _make_error_answer(self, error: ServiceError, fault: Fault | None = None) -> Answer:
        body = json.dumps(error.members).encode()
        return self._make_answer(
            error.status, "application/json", body, fault=fault, errortype=error.code
        )

    def _make_answer(
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
        return Answer(status, headers, body, self._delay_seconds(fault))

    def _delay_seconds(self, fault: Fault | None) -> float:
        settings = self.settings
        jitter = settings.jitter * self._uniform() if settings.jitter else 0.0
        return settings.latency + jitter + (fault.latency if fault else 0.0)

    def _count_outcome(self, arrival: float, outcome: Outcome) -> None:
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
    _MINT_OPERATION: Emulator.create_chat_token,
    "CreateRoom": Emulator.create_room,
    "GetRoom": Emulator.get_room,
    "ListRooms": Emulator.list_rooms,
    "DeleteRoom": Emulator.delete_room,
    "SendEvent": Emulator.send_event,
    "DeleteMessage": Emulator.delete_message,
    "DisconnectUser": Emulator.disconnect_user,
}
OPERATIONS = tuple(_OPERATIONS)


def _validation_error(reason: str, message: str) -> ServiceError:
    return ServiceError(400, "ValidationException", message, reason=reason)
