"""The token endpoint, whatever the web framework.

A request goes straight down: its form, what the body asks, what the application's rule grants, the
rate limits, the service, the rule once more if that took a while, the reply. The framework's
module hands requests in and sends the replies.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Generic, TypeVar

from cachetools import TTLCache

from aioivschat._clock import Clock, iso_utc
from aioivschat._endpoint.asks import (
    Ask,
    check_form,
    check_still_granted,
    narrow,
    parse,
    shorten_patience,
)
from aioivschat._endpoint.exchange import CLIENT_GONE, Received, Reply
from aioivschat._endpoint.problems import FORBIDDEN, INVALID_MEMBER, Refusal, reply_with_problem
from aioivschat._endpoint.rate_limits import KNOWN_CALLERS, Charges, EndpointPolicy
from aioivschat._models import TOKEN_LIFE_SECONDS, Attempt, ChatToken, TokenRequest
from aioivschat._secrets import Unpickled, hides
from aioivschat._service.issuing import note_flight
from aioivschat._service.service import AsyncTokenService
from aioivschat.errors import InvalidConfiguration, InvalidRequest

R = TypeVar("R")

Authorize = Callable[[R, Ask], Awaitable[TokenRequest | None]]
"""The application's rule: what the caller of a request is granted, or ``None`` to refuse."""

WatchClient = Callable[[Callable[[], None]], Callable[[], None]]
"""Given what to call when the client disconnects; returns what ends the watching."""

_FREE_REPEAT_SECONDS = TOKEN_LIFE_SECONDS / 2
"""How long repeating a served attempt is free: well within the time for which its token is kept."""

_MAX_KNOWN_BODIES = 1024
"""Bodies whose meaning is remembered: all viewers of an event ask for much the same."""

_JSON_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Endpoint(Generic[R]):
    """Answers requests for tokens.

    To answer in its own way the rule raises a ``passed_on``, an exception of the framework.
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
        self._rng = rng or random.SystemRandom()  # a fork shares no state of it
        clock = clock or Clock()
        self._wall = clock.wall
        self._charges = Charges(policy, clock)
        self._asks: dict[bytes, Ask] = {}
        self._served: TTLCache[Attempt, _ServedToken] = TTLCache(
            KNOWN_CALLERS, _FREE_REPEAT_SECONDS, timer=clock.monotonic
        )

    async def respond(
        self, service: AsyncTokenService, request: R, received: Received, watch: WatchClient
    ) -> Reply:
        """Answer a request: ``request`` is the framework's own, for the rule."""
        try:
            return await self._reply_with_token(service, request, received, watch)
        except _ClientDisconnected:
            return CLIENT_GONE
        except self._passed_on:
            raise
        except Exception as error:
            return reply_with_problem(error, self._rng)

    async def _reply_with_token(
        self, service: AsyncTokenService, request: R, received: Received, watch: WatchClient
    ) -> Reply:
        ask = self._read_ask(received)  # no local here holds the body, if the rule fails
        wanted = await self._ask_rule(request, ask)
        fresh = received.key is None
        attempt = None if received.key is None else Attempt((wanted.identity, received.key))
        served = None if attempt is None else self._find_served(attempt)
        if served is not None:
            token = service.ready(wanted, idempotency_key=received.key)
            if token is not None and token.token == served.token:
                return self._make_reply(served)
        charge = self._charges.begin_try(wanted, attempt)
        has_token = False
        try:
            token = service.ready(wanted, idempotency_key=received.key, fresh=fresh)
            if token is None:
                patience = shorten_patience(self._policy.patience, received.headers)
                noted = note_flight.set(charge.note_flight)
                try:
                    with _CancelOnDisconnect(watch):
                        token = await service.issue(
                            wanted, idempotency_key=received.key, fresh=fresh, timeout=patience
                        )
                finally:
                    note_flight.reset(noted)
                # The rule may have banned the user during the wait. The token is kept for this
                # attempt only: a later try gets it if it is granted the very same again.
                check_still_granted(wanted, await self._ask_rule(request, ask))
            has_token = True
        finally:
            self._charges.end_try(charge, wanted, attempt, has_token=has_token)
        served = self._format_token(token)
        if attempt is not None:
            self._served[attempt] = served
        return self._make_reply(served)

    def _read_ask(self, received: Received) -> Ask:
        body = check_form(received)
        ask = self._asks.get(body)
        if ask is None:
            ask = parse(body)
            if ask.user is None and ask.attributes is None:  # nothing personal is remembered
                if len(self._asks) >= _MAX_KNOWN_BODIES:
                    self._asks.clear()
                self._asks[body] = ask
        return ask

    def _find_served(self, attempt: Attempt) -> _ServedToken | None:
        try:
            return self._served[attempt]  # TTLCache.get() looks it up twice
        except KeyError:
            return None

    async def _ask_rule(self, request: R, ask: Ask) -> TokenRequest:
        """Return what the rule grants of the ask: never more than either."""
        try:
            grant = await self._authorize(request, ask)
        except InvalidRequest as error:
            # Raised by the TokenRequest that the rule made of the ask: the client's mistake.
            raise Refusal(INVALID_MEMBER, f"{error.member} must be {error.limit}") from None
        if grant is None:
            raise Refusal(FORBIDDEN)
        if not isinstance(grant, TokenRequest):
            raise TypeError("authorize must return a TokenRequest or None")
        return narrow(grant, ask)

    def _format_token(self, token: ChatToken) -> _ServedToken:
        session_end, aws_end = iso_utc(token.session_expires), iso_utc(token.token_expires)
        members = (
            f'{{"token":{json.dumps(token.token)},'
            f'"tokenExpirationTime":"{aws_end if self._policy.raw_expiration else session_end}",'
            f'"sessionExpirationTime":"{session_end}","awsTokenExpirationTime":"{aws_end}","now":"'
        )
        return _ServedToken(token.token, members.encode(), token.token_expires.timestamp())

    def _make_reply(self, served: _ServedToken) -> Reply:
        # The client compares the time with the others, which are AWS's. This host's clock may be
        # wrong; but a token that is handed out has not expired, and lives for a minute at most.
        now = min(max(self._wall(), served.aws_end - TOKEN_LIFE_SECONDS), served.aws_end)
        seconds, thousandths = divmod(round(now * 1000), 1000)
        end = b'%b.%03dZ"}' % (_format_second(seconds), thousandths)
        return Reply(200, _JSON_HEADERS, served.members + end)


@hides("token", "members")
@dataclass(eq=False, slots=True, repr=False)
class _ServedToken(Unpickled):
    """A token that was served, the reply's members but for its time, and the token's end."""

    token: str
    members: bytes
    aws_end: float


@lru_cache(maxsize=4)
def _format_second(seconds: int) -> bytes:
    return iso_utc(datetime.fromtimestamp(seconds, UTC)).removesuffix(".000Z").encode()


class _ClientDisconnected(Exception):
    """The client disconnected while its request waited."""


class _CancelOnDisconnect:
    """Cancels its block when the client disconnects, and raises ``_ClientDisconnected`` then."""

    def __init__(self, watch: WatchClient) -> None:
        self._watch = watch
        self._disconnected = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (a handler runs in a task)
        self._task = task
        self._cancelling = task.cancelling()
        self._unwatch = self._watch(self._cancel)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._unwatch()
        # As in asyncio.timeout: if somebody else cancelled the task too, CancelledError goes on.
        if (
            self._disconnected
            and self._task.uncancel() <= self._cancelling
            and isinstance(error, asyncio.CancelledError)
        ):
            raise _ClientDisconnected from None

    def _cancel(self) -> None:
        self._disconnected = True
        self._task.cancel()
