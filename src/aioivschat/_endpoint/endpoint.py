"""The token endpoint, whatever the web framework: who asked, for what, and what they are told.

One request goes straight down: its form, what the body asks, what the application's rule grants,
the caller's own share, the service, the rule once more if that took a while, the reply. The
modules of the frameworks bring requests here and carry answers back.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import random
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from cachetools import LRUCache, TTLCache

from aioivschat._clock import Clock, iso_utc
from aioivschat._models import (
    KEY_MAX_CHARACTERS,
    TOKEN_LIFE_SECONDS,
    Attempt,
    ChatToken,
    TokenRequest,
)
from aioivschat._secrets import Secret, Unpickled
from aioivschat._service.service import AsyncTokenService
from aioivschat.errors import (
    AwsError,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidConfiguration,
    InvalidRequest,
    MalformedResponse,
    Overloaded,
    ResourceNotFound,
    ServerFault,
    ServiceClosed,
    Throttled,
    require,
)

_log = logging.getLogger("aioivschat.endpoint")

R = TypeVar("R")

PATH = "/chat/token"
"""Where the endpoint is by default; the browsers' module is beside it, at :func:`provider_path`."""

BODY_MAX_BYTES = 4096
"""Four times the largest attributes, which are what makes a body large."""

_KNOWN_BODIES = 1024
"""Bodies whose meaning is remembered: all viewers of an event ask for much the same."""

_KNOWN_CALLERS = 100_000
"""Users whose share is remembered, and attempts; a user that is forgotten has a full share."""

_ATTEMPT_SECONDS = TOKEN_LIFE_SECONDS / 2
"""How long repeating a served attempt is free: well within the time for which its token is kept."""


@dataclass(frozen=True, slots=True, repr=False)
class Ask(Secret):
    """What the body of a request asks for; it grants nothing.

    What the body leaves out is ``None``. Every member that is there keeps the limits of
    :class:`~aioivschat.TokenRequest`.

    Args:
        room: ARN of the room.
        user: the user's id.
        capabilities: what the client wants to be able to do.
        attributes: what the room is to show about the user.
        session_minutes: how long the session is to last.
    """

    room: str | None = None
    user: str | None = None
    capabilities: frozenset[str] | None = None
    attributes: Mapping[str, str] | None = None
    session_minutes: int | None = None

    def __repr__(self) -> str:
        user = None if self.user is None else "<redacted>"
        attributes = None if self.attributes is None else f"<{len(self.attributes)} redacted>"
        names = None if self.capabilities is None else sorted(map(str, self.capabilities))
        return (
            f"Ask(room={self.room!r}, user={user}, capabilities={names}, "
            f"attributes={attributes}, session_minutes={self.session_minutes})"
        )


@dataclass(frozen=True, slots=True)
class Share:
    """How many new tokens one user, or one room, may have.

    Args:
        tokens: so many at once, at least 1.
        seconds: and so many again in this time, above 0.

    Raises:
        InvalidConfiguration: a number is out of its range.
    """

    tokens: int
    seconds: float

    def __post_init__(self) -> None:
        require(self.tokens >= 1, "Share.tokens", "at least 1", self.tokens)
        finite = 0 < self.seconds < math.inf
        require(finite, "Share.seconds", "a finite number above 0", self.seconds)


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """How the endpoint treats its callers.

    Args:
        patience: seconds, above 0, that a request waits for its token; below the time after which
            clients and proxies give up. A request may shorten it: ``Prefer: wait=3`` (RFC 7240).
        per_user: how many new tokens each user may have. Repeating an attempt that got its token
            is free. ``None``: no limit.
        per_room: the same for each room.
        raw_expiration: whether ``tokenExpirationTime`` is AWS's own, a minute ahead, and not the
            end of the session. The chat SDK then takes a new token every 30 seconds.

    Raises:
        InvalidConfiguration: a number is out of its range.
    """

    patience: float = 8.0
    per_user: Share | None = Share(tokens=5, seconds=10.0)
    per_room: Share | None = None
    raw_expiration: bool = False

    def __post_init__(self) -> None:
        finite = 0 < self.patience < math.inf
        require(finite, "EndpointPolicy.patience", "a finite number above 0", self.patience)


class Answer(NamedTuple):
    """What goes back to the client; it shows no body, which may hold a token."""

    status: int
    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"<Answer {self.status}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Answer may hold a token and is not pickled")


class Received(Unpickled):
    """What came from the client; an object that shows nothing of it, also where locals are shown.

    Args:
        headers: by name, whatever the case.
        body: ``None`` if it is larger than ``BODY_MAX_BYTES``.

    Attributes:
        key: the idempotency key, once the form was checked.
    """

    __slots__ = ("body", "headers", "key")

    def __init__(self, headers: Mapping[str, str], body: bytes | None) -> None:
        self.headers = headers
        self.body = body
        self.key: str | None = None


class _Served(Unpickled):
    """The token that an attempt was given, and the reply that says so."""

    __slots__ = ("answer", "token")

    def __init__(self, token: str, answer: Answer) -> None:
        self.token = token
        self.answer = answer


Authorize = Callable[[R, Ask], Awaitable[TokenRequest | None]]
"""The application's rule: what the caller of a request is granted, or ``None`` to refuse."""

Watch = Callable[[Callable[[], None]], Callable[[], None]]
"""Given what to call when the client goes away; returns what ends the watching."""


class Endpoint(Generic[R]):
    """Answers requests for tokens.

    Args:
        authorize: the application's rule.
        policy: how callers are treated.
        passed_on: exceptions of the framework that the rule may raise to answer in its own way.
        clock: where the time comes from.
        rng: where the jitter comes from.

    Raises:
        InvalidConfiguration: there is no rule.
    """

    def __init__(
        self,
        authorize: Authorize[R] | None,
        policy: EndpointPolicy,
        passed_on: type[Exception],
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if not callable(authorize):
            limit = "an async function that says what a caller is granted"
            raise InvalidConfiguration("authorize", limit, "none")
        self._authorize = authorize
        self._policy = policy
        self._passed_on = passed_on
        self._rng = rng or random.Random()  # noqa: S311 (no secret)
        clock = clock or Clock()
        self._shares = _Shares(policy, clock)
        self._asks: dict[bytes, Ask] = {}
        self._served: TTLCache[Attempt, _Served] = TTLCache(
            _KNOWN_CALLERS, _ATTEMPT_SECONDS, timer=clock.monotonic
        )

    async def respond(
        self,
        service: AsyncTokenService,
        request: R,
        received: Received,
        watch: Watch,
    ) -> Answer:
        """Answer a request.

        Args:
            service: issues the token.
            request: the framework's own request, for the rule.
            received: what it holds.
            watch: how to learn that the client went away; used while there is a wait.

        Raises:
            Exception: one of ``passed_on``, raised by the rule.
        """
        try:
            return await self._token(service, request, received, watch)
        except _Departed:
            return NOBODY
        except _Refusal as refusal:
            return self._problem(refusal.kind, refusal.detail, refusal.retry_after, refusal)
        except self._passed_on:
            raise
        except Exception as error:
            kind, retry_after = _judge(error)
            return self._problem(kind, kind.detail, retry_after, error)

    async def _token(
        self,
        service: AsyncTokenService,
        request: R,
        received: Received,
        watch: Watch,
    ) -> Answer:
        _check_form(received)
        assert received.body is not None  # noqa: S101 (the form's check saw it)
        ask = self._asks.get(received.body) or self._parsed(received.body)
        wanted = await self._granted(request, ask)
        fresh = received.key is None
        attempt = None if received.key is None else Attempt((wanted.identity, received.key))
        served = None if attempt is None else self._remembered(attempt)
        if served is None:
            self._shares.charge(wanted)
        token = service.ready(wanted, idempotency_key=received.key, fresh=fresh)
        if token is None:
            try:
                with _Presence(watch):
                    token = await service.issue(
                        wanted,
                        idempotency_key=received.key,
                        fresh=fresh,
                        timeout=self._patience(received.headers),
                    )
            except Overloaded:
                if served is None:
                    self._shares.refund(wanted)  # nothing was sent
                raise
            # Whoever was banned meanwhile gets nothing. The token stays unused: a later call gets
            # it only by being granted the very same again, for the same attempt.
            _check_still_covered(wanted, await self._granted(request, ask))
        if served is not None and served.token == token.token:
            return served.answer
        answer = self._reply(token)
        if attempt is not None:
            self._served[attempt] = _Served(token.token, answer)
        return answer

    def _remembered(self, attempt: Attempt) -> _Served | None:
        try:
            return self._served[attempt]  # its get() would look twice
        except KeyError:
            return None

    def _parsed(self, body: bytes) -> Ask:
        ask = _parse(body)
        if ask.user is None and ask.attributes is None:  # nothing personal is remembered
            if len(self._asks) >= _KNOWN_BODIES:
                self._asks.clear()
            self._asks[body] = ask
        return ask

    async def _granted(self, request: R, ask: Ask) -> TokenRequest:
        """Return what of the ask the rule grants: never more than either."""
        try:
            grant = await self._authorize(request, ask)
        except InvalidRequest as error:
            # The rule made its request of what the body asks.
            raise _Refusal(_INVALID, f"{error.member} must be {error.limit}") from None
        if grant is None:
            raise _Refusal(_FORBIDDEN)
        if not isinstance(grant, TokenRequest):
            raise TypeError("authorize must return a TokenRequest or None")
        return _narrowed(grant, ask)

    def _patience(self, headers: Mapping[str, str]) -> float:
        patience, preferred = self._policy.patience, headers.get("Prefer")
        if preferred is not None:
            wish = _WAIT.search(preferred)
            if wish is not None:
                # With less than a second, hardly any answer from AWS would be in time.
                patience = min(patience, max(1.0, float(wish[1])))
        return patience

    def _reply(self, token: ChatToken) -> Answer:
        session_end, aws_end = iso_utc(token.session_expires), iso_utc(token.token_expires)
        body = (
            f'{{"token":{json.dumps(token.token)},'
            f'"tokenExpirationTime":"{aws_end if self._policy.raw_expiration else session_end}",'
            f'"sessionExpirationTime":"{session_end}","awsTokenExpirationTime":"{aws_end}"}}'
        )
        return Answer(200, _JSON_HEADERS, body.encode())

    def _problem(
        self, kind: _Kind, detail: str, retry_after: float | None, cause: Exception
    ) -> Answer:
        """Describe what went wrong in our own words (RFC 9457), and note it under the same id."""
        problem: dict[str, Any] = {
            "type": f"urn:problem-type:aioivschat:{kind.name}",
            "title": kind.title,
            "status": kind.status,
            "detail": detail,
            "instance": uuid.uuid4().urn,
        }
        headers = _PROBLEM_HEADERS
        if retry_after is not None:
            # So that those who were sent away together do not come back together.
            spread = self._rng.random() * max(1.0, retry_after / 2)
            seconds = math.ceil(retry_after + spread)
            # The body has it too: a page from elsewhere sees few headers (Fetch, CORS).
            problem["retryAfter"] = seconds
            headers = {**headers, "Retry-After": str(seconds)}
        level = logging.WARNING if kind.status >= 500 else logging.INFO
        if _log.isEnabledFor(level):
            _log.log(level, "%s %s: %s", problem["instance"], kind.name, _described(cause))
        return Answer(kind.status, headers, json.dumps(problem).encode())


# The form of a request.

_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:$|[,;])', re.IGNORECASE)


def _check_form(received: Received) -> None:
    """Check everything that needs no look into the body, and take the idempotency key."""
    headers, body = received.headers, received.body
    content_type = headers.get("Content-Type", "")
    # Strict, for more than form's sake: a page from elsewhere cannot send JSON with the user's
    # cookies unless CORS lets it.
    if content_type != "application/json":
        media_type, _, _ = content_type.partition(";")
        if media_type.strip().lower() != "application/json":
            raise _Refusal(_UNSUPPORTED)
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _Refusal(_UNSUPPORTED, "The body must not be compressed.")
    if body is None or len(body) > BODY_MAX_BYTES:
        raise _Refusal(_TOO_LARGE)
    key = headers.get("Idempotency-Key")
    # Of ASCII, what prints is visible, the space apart.
    if key is not None and not (
        0 < len(key) <= KEY_MAX_CHARACTERS
        and key.isascii()
        and key.isprintable()
        and " " not in key
    ):
        raise _Refusal(
            _BAD_REQUEST,
            f"Idempotency-Key must be 1 to {KEY_MAX_CHARACTERS} visible ASCII characters.",
        )
    received.key = key


# What the body asks. Its members go by the library's names, by AWS's, and by those of AWS's demo.

_MEMBERS = {
    "room": "room",
    "roomIdentifier": "room",
    "arn": "room",
    "user": "user",
    "userId": "user",
    "capabilities": "capabilities",
    "attributes": "attributes",
    "session_minutes": "session_minutes",
    "sessionDurationInMinutes": "session_minutes",
    "durationInMinutes": "session_minutes",
}
_ERROR_MEMBERS = {
    "roomIdentifier": "room",
    "userId": "user",
    "sessionDurationInMinutes": "session_minutes",
}
_SHOWABLE = re.compile(r"[A-Za-z_]{1,40}")


def _parse(body: bytes) -> Ask:
    """Read a body.

    Raises:
        _Refusal: it is not a JSON object, or a member is unknown or breaks a limit.
    """
    try:
        members = json.loads(body.decode())
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise _Refusal(_BAD_REQUEST, "The body must be a JSON object in UTF-8.")
    asked: dict[str, Any] = {}
    named: dict[str, str] = {}
    for name, value in members.items():
        member = _MEMBERS.get(name)
        if member is None:
            shown = name if _SHOWABLE.fullmatch(name) else "a member of another name"
            raise _Refusal(_INVALID, f"{shown} is not known.")
        if member in asked:
            raise _Refusal(_INVALID, f"{named[member]} and {name} mean the same: give one.")
        if value is None:
            raise _Refusal(_INVALID, f"{name} must not be null: leave it out.")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON has one kind of number
        asked[member], named[member] = value, name
    try:
        # The limits are those of a request; what is not asked for gets a stand-in.
        checked = TokenRequest(**{"room": _ANY_ROOM, "user": "-", **asked})
    except InvalidRequest as error:
        name = named[_ERROR_MEMBERS.get(error.member, error.member)]
        raise _Refusal(_INVALID, f"{name} must be {error.limit}.") from None
    return Ask(**{member: getattr(checked, member) for member in asked})


_ANY_ROOM = "arn:aws:ivschat:us-east-1:0:room/x"


# What is granted.


def _narrowed(grant: TokenRequest, ask: Ask) -> TokenRequest:
    """Return the grant, with no more capabilities and no longer a session than was asked for.

    Raises:
        _Refusal: the ask names something that is not granted.
    """
    capabilities, minutes = grant.capabilities, grant.session_minutes
    wanted = capabilities if ask.capabilities is None else ask.capabilities
    fewer = wanted is not capabilities  # equal sets of capabilities are the same one
    if (
        (ask.room is not None and ask.room != grant.room)
        or (ask.user is not None and ask.user != grant.user)
        or (fewer and not wanted <= capabilities)
        or (ask.session_minutes is not None and ask.session_minutes > minutes)
        or (ask.attributes is not None and not ask.attributes.items() <= grant.attributes.items())
    ):
        raise _Refusal(_FORBIDDEN)
    shorter = ask.session_minutes is not None and ask.session_minutes != minutes
    if not (fewer or shorter):
        return grant
    return TokenRequest(
        grant.room,
        grant.user,
        wanted,
        grant.attributes,
        minutes if ask.session_minutes is None else ask.session_minutes,
    )


def _check_still_covered(minted: TokenRequest, grant: TokenRequest) -> None:
    """Check that a token made for one grant may leave under a later one."""
    if not (
        minted.room == grant.room
        and minted.user == grant.user
        and minted.attributes == grant.attributes
        and minted.capabilities <= grant.capabilities
        # A rule that counts down to an event's end may have come to the next minute.
        and minted.session_minutes <= grant.session_minutes + 1
    ):
        raise _Refusal(_CHANGED, retry_after=1.0)


# The caller's own share.


class _Buckets(Unpickled):
    """Token buckets by name, each held as the one moment when it is full again (GCRA)."""

    def __init__(self, share: Share, clock: Clock) -> None:
        self._interval = share.seconds / share.tokens
        self._depth = share.seconds - self._interval
        self._clock = clock
        self._full_at: LRUCache[str, float] = LRUCache(_KNOWN_CALLERS)

    def wait(self, name: str) -> float:
        """Return the seconds until there is something in the bucket; at most 0 if there is."""
        return self._full_at.get(name, -math.inf) - self._depth - self._clock.monotonic()

    def take(self, name: str) -> None:
        full_at = max(self._full_at.get(name, -math.inf), self._clock.monotonic())
        self._full_at[name] = full_at + self._interval

    def put_back(self, name: str) -> None:
        full_at = self._full_at.get(name)
        if full_at is not None:
            self._full_at[name] = full_at - self._interval


class _Shares:
    """What each user and each room may still have."""

    def __init__(self, policy: EndpointPolicy, clock: Clock) -> None:
        self._users = policy.per_user and _Buckets(policy.per_user, clock)
        self._rooms = policy.per_room and _Buckets(policy.per_room, clock)

    def charge(self, wanted: TokenRequest) -> None:
        """Take one token's worth from the shares.

        Raises:
            _Refusal: one of the shares is used up; nothing is taken then.
        """
        wait = max(
            self._users.wait(wanted.user) if self._users else 0.0,
            self._rooms.wait(wanted.room) if self._rooms else 0.0,
        )
        if wait > 0:
            raise _Refusal(_OWN_SHARE, retry_after=wait)
        if self._users:
            self._users.take(wanted.user)
        if self._rooms:
            self._rooms.take(wanted.room)

    def refund(self, wanted: TokenRequest) -> None:
        """Give back what was taken for a request that went nowhere."""
        if self._users:
            self._users.put_back(wanted.user)
        if self._rooms:
            self._rooms.put_back(wanted.room)


# The wait.


class _Departed(Exception):
    """The client went away while it waited."""


class _Presence:
    """Ends what is within when the client goes away.

    Args:
        watch: how to learn that it did.

    Raises:
        _Departed: on leaving, if it did.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._departed = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (a handler runs in a task)
        self._task = task
        self._cancelling = task.cancelling()
        self._unwatch = self._watch(self._depart)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._unwatch()
        # As asyncio.timeout does: a cancellation by somebody else goes on.
        if (
            self._departed
            and self._task.uncancel() <= self._cancelling
            and isinstance(error, asyncio.CancelledError)
        ):
            raise _Departed from None

    def _depart(self) -> None:
        self._departed = True
        self._task.cancel()


# What can go wrong.


class _Kind(NamedTuple):
    """One type of problem (RFC 9457)."""

    status: int
    name: str
    title: str
    detail: str


_BAD_REQUEST = _Kind(400, "bad-request", "The request is malformed", "The request is malformed.")
_FORBIDDEN = _Kind(
    403, "forbidden", "Not granted", "You may not have a token, or not with all that was asked for."
)
_NO_ROOM = _Kind(404, "no-such-room", "No such room", "The chat room does not exist.")
_TOO_LARGE = _Kind(
    413, "too-large", "The body is too large", f"The body may have {BODY_MAX_BYTES} bytes."
)
_UNSUPPORTED = _Kind(415, "not-json", "The body is not JSON", "Send application/json.")
_INVALID = _Kind(422, "invalid-member", "A member breaks a limit", "A member breaks a limit.")
_OWN_SHARE = _Kind(
    429, "own-share", "Too many requests", "Too many tokens were asked for; try again later."
)
_INTERNAL = _Kind(500, "internal", "Internal error", "The server could not handle the request.")
_UPSTREAM = _Kind(
    502, "upstream", "The chat service refused", "The chat service gave no usable answer."
)
_OVERLOADED = _Kind(
    503, "overloaded", "Too busy", "The request cannot be served in time; try again later."
)
_UNREACHABLE = _Kind(
    503, "unreachable", "The chat service is away", "The chat service cannot be reached."
)
_CHANGED = _Kind(
    503, "grant-changed", "Ask again", "What you may do in the room changed while you waited."
)


class _Refusal(Exception):
    """The request is not served, for a reason found here."""

    def __init__(
        self, kind: _Kind, detail: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(kind.name)
        self.kind = kind
        self.detail = detail or kind.detail
        self.retry_after = retry_after


_SECOND = 1.0
"""When to come back if nobody knows better."""


def _judge(error: Exception) -> tuple[_Kind, float | None]:
    """Return what an error means to the client, and the seconds after which to come back."""
    match error:
        case Overloaded():
            return _OVERLOADED, error.retry_after
        case Throttled():
            return _OVERLOADED, error.retry_after or _SECOND
        case DeadlineExceeded() | ServiceClosed():
            return _OVERLOADED, _SECOND
        case ConnectionFailed():
            return _UNREACHABLE, _SECOND
        case ResourceNotFound():
            return _NO_ROOM, None
        case ServerFault():
            return _UPSTREAM, error.retry_after or _SECOND
        case AwsError() | MalformedResponse():
            return _UPSTREAM, None
        case _:
            return _INTERNAL, None


def _described(cause: Exception) -> str:
    """Describe an error without its message, which is not ours to vouch for."""
    if isinstance(cause, _Refusal):
        return cause.kind.title
    name = type(cause).__name__
    if isinstance(cause, AwsError):
        return f"{name}, {cause.code}, request id {cause.request_id}"
    if _judge(cause)[0] is not _INTERNAL:
        return name
    place = cause.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return name
    return f"{name} at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}"


# Answers.

_JSON_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}
_PROBLEM_HEADERS = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
NOBODY = Answer(499, _PROBLEM_HEADERS, b"")
"""For a client that went away: access logs of web servers have this status for it."""


# What is served beside the endpoint.


def provider_path(path: str) -> str:
    """Return where the module for browsers is served, given the endpoint's path."""
    return f"{path}-provider.js"


class Provider:
    """Serves the module for browsers, ``token-provider.js``."""

    def __init__(self) -> None:
        self._body = _static("token-provider.js")
        self._headers = {
            "Content-Type": "text/javascript; charset=utf-8",
            "Cache-Control": "public, max-age=3600",
            "ETag": f'"{hashlib.sha256(self._body).hexdigest()[:32]}"',
        }

    def respond(self, headers: Mapping[str, str]) -> Answer:
        """Answer a request: the module, or 304 if the client has it."""
        known = headers.get("If-None-Match", "")
        tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
        if "*" in tags or self._headers["ETag"] in tags:
            return Answer(304, self._headers, b"")
        return Answer(200, self._headers, self._body)


def openapi(path: str = PATH) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the endpoint.

    Args:
        path: where the endpoint is.
    """
    description: dict[str, Any] = json.loads(_static("openapi.json"))
    described = description["paths"]
    description["paths"] = {
        path: described[PATH],
        provider_path(path): described[provider_path(PATH)],
    }
    return description


def _static(name: str) -> bytes:
    return (resources.files("aioivschat._endpoint") / "static" / name).read_bytes()


def missing_service(where: str) -> NoReturn:
    """Say that there is no open service.

    Raises:
        InvalidConfiguration: always.
    """
    raise InvalidConfiguration(where, "set up, and the application started", "no open service")
