"""One long-lived aiobotocore client for each region, and the tokens that it mints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import BotoCoreError, ClientError, InvalidRegionError

from aioivschat._aws.credentials import ClientCredentials
from aioivschat._aws.endpoints import (
    check_endpoint,
    check_files,
    is_direct,
    is_in_the_clear,
    naming_setting,
    parse_http_hosts,
)
from aioivschat._aws.errors import answer_date, credentials_failure, note_answer, translate_error
from aioivschat._aws.http_session import HttpSession, before_leaving
from aioivschat._aws.internals import (
    configured_endpoint,
    http_session_of,
    keep_http_session,
    known_regions,
    mergeable,
    proxy_for,
    user_agent_of,
)
from aioivschat._aws.redaction import current_answer, filter_debug_logs
from aioivschat._aws.requests import ClientCalls, parse_time
from aioivschat._aws.signing import SigningClock
from aioivschat._clock import Clock
from aioivschat._contexts import run_detached, start_task, time_limit
from aioivschat._events import ClientOpened, NotPrepared, Observers, Prepared
from aioivschat._models import TOKEN_LIFE_SECONDS, ChatToken, TokenRequest
from aioivschat.errors import (
    AwsError,
    ChatTokenError,
    ConnectionFailed,
    DeadlineExceeded,
    Interrupted,
    InvalidConfiguration,
    InvalidRequest,
    MalformedResponse,
    ServiceClosed,
    own_copy,
    require_number,
)

_OPENING_MAX_SECONDS = 60.0
"""Seconds that opening a client may take, credentials included. One that never ends would keep its
region closed for good; the next caller may have more luck."""

_CANCELLED_OPENING_SECONDS = 1.0
"""Seconds that closing waits for an opening that was cancelled: one that goes on anyhow closes
its client later, itself."""


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """The connections to AWS.

    Args:
        max_connections: open connections a region at most; at least 1. The default carries 200
            requests a second at half a second each. When all are busy, calls wait in their order,
            and that wait is in all estimates.
        connect_timeout: seconds to open a connection, above 0.
        read_timeout: seconds to wait for an answer, above 0. A request that has its
            permit takes no longer than both together.
        prepared: whether requests are prepared once per client, which takes a fifth of the
            processor time; where that is not possible, aiobotocore builds each one anew all the
            same. Switch it off to have every request go through all of aiobotocore.

    Raises:
        InvalidConfiguration: if a number is out of its range.
    """

    max_connections: int = 100
    connect_timeout: float = 3.0
    read_timeout: float = 5.0
    prepared: bool = True

    def __post_init__(self) -> None:
        require_number("PoolPolicy.max_connections", self.max_connections, least=1, whole=True)
        require_number("PoolPolicy.connect_timeout", self.connect_timeout, above=0, unit=" s")
        require_number("PoolPolicy.read_timeout", self.read_timeout, above=0, unit=" s")


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token of AWS's reply, checked."""

    token: ChatToken
    life: float  # the least seconds, from the start of its request


_REGION_MAX_CHARACTERS = 32
"""A longer name of a region is no typing error, and is not shown whole."""

# Sends a request, once, and returns botocore's parsed answer.
_Call = Callable[[TokenRequest], Awaitable[Mapping[str, Any]]]


class _OpenClient(NamedTuple):
    call: _Call
    clock: SigningClock
    credentials: ClientCredentials
    host: str


class ClientPool:
    """The clients of all regions: opened at first use, one at a time, and closed in reverse order.

    Each is opened in a task of the pool's own, which goes on when those who need it have left.
    Observers are told when a client was opened, and once if its requests cannot be prepared.

    Raises:
        InvalidConfiguration: if the session or the endpoint cannot be used.
    """

    def __init__(
        self,
        session: Any,
        endpoint_url: str | None,
        policy: PoolPolicy,
        clock: Clock,
        observers: Observers,
        allow_http: str | Iterable[str] | None = None,
    ) -> None:
        try:
            self._http_hosts = parse_http_hosts(allow_http)
            if endpoint_url is not None:
                check_endpoint("endpoint_url", endpoint_url, self._http_hosts)
            self._endpoint_url = endpoint_url
        finally:
            del endpoint_url  # out of tracebacks that show locals: it may hold a password
        self._create_client: Callable[..., Any]
        self._session, self._create_client = _botocore_session(session)
        self._policy = policy
        self._clock = clock
        self._observers = observers
        self._calls: dict[str, _OpenClient] = {}
        self._openings: dict[str, asyncio.Task[None]] = {}
        self._one_opening = asyncio.Lock()  # a session cannot open two clients at a time
        self._is_closing = False
        self._closing: asyncio.Future[None] | None = None  # for those who wait for an opening
        self._open_clients = AsyncExitStack()

    def __len__(self) -> int:
        return len(self._calls)

    def is_open(self, region: str) -> bool:
        return region in self._calls

    def is_ready(self, region: str) -> bool:
        """Tell whether a request for the region can be signed and sent now."""
        client = self._calls.get(region)
        return client is not None and client.credentials.are_at_hand()

    async def make_ready(self, region: str) -> None:
        """Open the region's client, if it is not, and have it renew its credentials, if it must.

        Raises:
            CredentialsFailed: there are no credentials.
            InvalidConfiguration: the endpoint cannot be used.
            InvalidRequest: there is no such region.
        """
        await self.open(region)
        try:
            await run_detached(self._calls[region].credentials.renew())
            return
        except Exception as error:
            failure = credentials_failure(error)
        raise failure

    async def open(self, region: str) -> None:
        """Wait until the client of a region is open; opening begins with the first who needs it.

        Raises:
            ServiceClosed: the pool is closing or closed.
            Interrupted: somebody outside cancelled the opening.
            DeadlineExceeded: opening has taken too long.
            Exception: this caller's own copy of why it cannot be opened, with that as its cause.
        """
        if self.is_open(region):
            return
        if self._is_closing:
            raise ServiceClosed
        opening = self._openings.get(region)
        if opening is None:
            opening = start_task(self._open(region), lambda task: self._note_end(region, task))
            self._openings[region] = opening
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
        await asyncio.wait((opening, self._closing), return_when=asyncio.FIRST_COMPLETED)
        if self._is_closing:
            raise ServiceClosed
        if opening.cancelled():
            raise Interrupted("opening a client")
        failure = opening.exception()
        if failure is not None:
            raise own_copy(failure) from failure

    def _note_end(self, region: str, opening: asyncio.Task[None]) -> None:
        del self._openings[region]
        if not opening.cancelled():
            opening.exception()  # else asyncio reports it as never retrieved if all have left

    async def _open(self, region: str) -> None:
        limit = time_limit(_OPENING_MAX_SECONDS)
        try:
            async with self._one_opening, limit, AsyncExitStack() as opened:
                await self._open_into(opened, region)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(_OPENING_MAX_SECONDS) from None

    async def _open_into(self, opened: AsyncExitStack, region: str) -> None:
        """Open the client of a region; what stays in ``opened`` is closed."""
        started = self._clock.monotonic()
        if self._endpoint_url is None:
            # Only now is it known whether AWS_ENDPOINT_URL_IVSCHAT or a profile names one.
            self._endpoint_url = self._configured_endpoint()
        if self._endpoint_url is None and region not in known_regions(self._session):
            raise await self._unknown_region(region)
        with naming_setting("the AWS configuration"):
            client = await self._create(opened, region)
        check_endpoint("the client's endpoint URL", client.meta.endpoint_url, self._http_hosts)
        with suppress(AttributeError):  # a stand-in for a client has no configuration
            check_files(self._session, client)
        host = str(urlsplit(client.meta.endpoint_url).hostname)
        if self._is_closing:
            raise ServiceClosed
        filter_debug_logs()  # botocore's modules have made their loggers by now
        with suppress(AttributeError):  # a stand-in for a client has no events
            client.meta.events.register("before-parse.ivschat.CreateChatToken", note_answer)
        with suppress(Exception):  # the first request will show why
            # This makes the TLS context, which takes long: not while a permit waits for it.
            proxy_url = proxy_for(client, client.meta.endpoint_url)
            await http_session_of(client).get_sender(proxy_url)
        signing_clock = SigningClock(region)
        call = self._create_call(region, client, signing_clock)
        self._calls[region] = _OpenClient(call, signing_clock, ClientCredentials(client), host)
        self._open_clients.push_async_exit(opened.pop_all())
        if self._observers:
            self._observers.tell(ClientOpened(region, self._clock.monotonic() - started))

    async def _create(self, opened: AsyncExitStack, region: str) -> Any:
        try:
            return await opened.enter_async_context(
                self._create_client("ivschat", region_name=region, **self._client_options())
            )
        except InvalidRegionError:
            failure: Exception = await self._unknown_region(region)
        except (BotoCoreError, ClientError) as error:
            failure = credentials_failure(error)  # it looks for them here
        raise failure

    async def _unknown_region(self, region: str) -> InvalidRequest:
        known = await self._session.get_available_regions("ivschat")
        (nearest,) = get_close_matches(region, known, n=1, cutoff=0.0)
        limit = "in a region that this botocore knows, or for an endpoint_url"
        found = f"{region[:_REGION_MAX_CHARACTERS]}, to which {nearest} is the nearest"
        return InvalidRequest("roomIdentifier", limit, found, scope="room")

    async def mint(
        self,
        region: str,
        request: TokenRequest,
        leave: Callable[[], Awaitable[bool]] | None = None,
    ) -> NewToken:
        """Send one request, once, to a region whose client is open.

        Args:
            region: where the room is.
            request: what is asked for.
            leave: awaited once there is a connection, before the request's bytes leave.

        Raises:
            AwsError: AWS refused.
            ConnectionFailed: no whole answer came.
            MalformedResponse: the answer holds no usable token.
            CredentialsFailed: nothing could be sent.
        """
        call, signing_clock, _, host = self._calls[region]
        offset = signing_clock.offset
        asked_at = self._clock.wall()
        answer: dict[str, Any] = {}
        previous = current_answer.set(answer), before_leaving.set(leave)
        try:
            return _parse_reply(await call(request), asked_at + signing_clock.offset)
        except ChatTokenError as error:
            failure: Exception = error
        except Exception as error:
            failure = translate_error(error, request, answer)
            if isinstance(failure, AwsError):
                date = answer_date({"HTTPHeaders": answer.get("headers")})
                failure.clock_corrected = signing_clock.learn(failure.code, date, offset)
        finally:
            current_answer.reset(previous[0])
            before_leaving.reset(previous[1])
            answer.clear()  # out of tracebacks that show locals
        if isinstance(failure, ConnectionFailed):
            reason, cause = failure.reason, failure.cause
            failure = ConnectionFailed(reason, region, host, cause, may_pass=failure.may_pass)
        # Raised out here, without context: botocore's frames and messages hold the request.
        raise failure.with_traceback(None)

    def begin_closing(self) -> None:
        """Open no client any more: whoever waits for one is told that the service is closed."""
        self._is_closing = True
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
        for opening in self._openings.values():
            opening.cancel()

    async def aclose(self) -> None:
        self.begin_closing()
        if self._openings:
            await asyncio.wait(self._openings.values(), timeout=_CANCELLED_OPENING_SECONDS)
        self._calls.clear()
        await self._open_clients.aclose()

    def _create_call(self, region: str, client: Any, clock: SigningClock) -> _Call:
        observers = self._observers  # not the pool: a client that outlives it must not hold it

        def tell(reason: str | None) -> None:
            if observers:
                observers.tell(Prepared(region) if reason is None else NotPrepared(region, reason))

        call: _Call
        try:
            prepared = self._policy.prepared
            call = ClientCalls(client, clock, prepared=prepared, on_change=tell).create_chat_token
            if isinstance(http_session_of(client), HttpSession):
                return call
        except AttributeError as error:  # of a stand-in for a client
            tell(f"no {error.name}")
            call = lambda request: client.create_chat_token(**request.as_members())  # noqa: E731

        async def leave_and_call(request: TokenRequest) -> Mapping[str, Any]:
            # This client's HTTP session does not tell when a request leaves.
            if (leave := before_leaving.get()) is not None:
                await leave()
            return await call(request)

        return leave_and_call

    def _configured_endpoint(self) -> str | None:
        url = configured_endpoint(self._session)
        try:
            return url and check_endpoint("the configured endpoint URL", url, self._http_hosts)
        finally:
            del url  # out of tracebacks that show locals: it may hold a password

    def _client_options(self) -> dict[str, object]:
        config = self._client_config()
        options: dict[str, object] = {"endpoint_url": self._endpoint_url, "config": config}
        if self._endpoint_url is not None and is_in_the_clear(self._endpoint_url):
            options["verify"] = True  # AWS_CA_BUNDLE, which may name no file, is not read
        return options

    def _client_config(self) -> AioConfig:
        # A proxy (HTTP_PROXY) would take requests for this host elsewhere, or what is in the clear.
        # Where one is allowed the option is left out: the session's own configuration holds.
        direct = self._endpoint_url is not None and is_direct(self._endpoint_url)
        options: dict[str, Any] = {"proxies": {}} if direct else {}
        options |= {
            "connect_timeout": self._policy.connect_timeout,
            "read_timeout": self._policy.read_timeout,
            "max_pool_connections": self._policy.max_connections,
            # One request a call, whatever AWS_RETRY_MODE and AWS_MAX_ATTEMPTS say: botocore's own
            # retries would multiply with ours and need no permit. ``max_attempts`` of 1 would mean
            # two requests, and the mode ``adaptive`` would pace them.
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            # A TokenRequest is valid, by narrower limits than botocore's.
            "parameter_validation": False,
        }
        # Composing the user agent for each request would take a fifth of a call.
        user_agent = user_agent_of(self._session, AioConfig(**options))
        if user_agent is not None:
            options["user_agent"] = user_agent
        default = self._session.get_default_client_config()
        if getattr(default, "http_session_cls", AIOHTTPSession) is not AIOHTTPSession:
            return AioConfig(**options)
        return keep_http_session(AioConfig(**options, http_session_cls=HttpSession))


def _botocore_session(session: Any) -> tuple[AioSession, Any]:
    """Return aiobotocore's session, and the function that creates its clients."""
    if session is None:
        session = get_session()
        parsers = session.get_component("response_parser_factory")
        parsers.set_parser_defaults(timestamp_parser=parse_time)
    if isinstance(session, AioSession):
        own = mergeable(session)
        return own, own.create_client
    # An aioboto3.Session, known by what it wraps: its package is an extra.
    wrapped = getattr(session, "_session", None)
    if isinstance(wrapped, AioSession):
        own = mergeable(wrapped)
        if own is not wrapped:
            session = copy(session)
            session._session = own
        return own, session.client
    limit = "an AioSession, an aioboto3.Session or None"
    raise InvalidConfiguration("session", limit, type(session).__qualname__)


def _parse_reply(reply: Mapping[str, Any], asked_at: float) -> NewToken:
    metadata = reply.get("ResponseMetadata", {})
    request_id = metadata.get("RequestId")
    token = reply.get("token")
    if not isinstance(token, str) or not token:
        raise MalformedResponse("no token", request_id)
    # Expiry and Date are both by AWS's clock, so that a wrong clock of this host does no harm.
    answered = answer_date(metadata) or datetime.fromtimestamp(asked_at, UTC)
    token_end = _parse_expiry(reply, "tokenExpirationTime", answered, request_id)
    session_end = _parse_expiry(reply, "sessionExpirationTime", answered, request_id)
    # Date has whole seconds, so the difference can be up to a second too long.
    life = min((token_end - answered).total_seconds(), TOKEN_LIFE_SECONDS)
    return NewToken(ChatToken(token, token_end.astimezone(UTC), session_end.astimezone(UTC)), life)


def _parse_expiry(
    reply: Mapping[str, Any], member: str, answered: datetime, request_id: str | None
) -> datetime:
    end = reply.get(member)
    if not isinstance(end, datetime):
        raise MalformedResponse(f"no {member}", request_id)
    if end.tzinfo is None:
        raise MalformedResponse(f"{member} has no time zone", request_id)
    if end <= answered:
        raise MalformedResponse(f"{member} is past", request_id)
    return end
