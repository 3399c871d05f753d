"""The way to AWS: one long-lived aiobotocore client a region, and its errors in our words.

This module and ``_prepared`` are the only ones on that way that import aiobotocore.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore import exceptions as botocore_errors
from botocore.parsers import ResponseParserError

from aioivschat._aws.prepared import PreparedCalls
from aioivschat._clock import Clock
from aioivschat._models import TOKEN_LIFE, ChatToken, TokenRequest
from aioivschat.errors import (
    AccessDenied,
    AwsError,
    ConnectionFailed,
    InvalidConfiguration,
    MalformedResponse,
    PendingVerification,
    ResourceNotFound,
    ServerFault,
    Throttled,
    ValidationFailed,
    require,
)

_THROTTLES = {
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
}

_BY_CODE: dict[str, type[AwsError]] = {
    "AccessDeniedException": AccessDenied,
    "PendingVerification": PendingVerification,
    "ResourceNotFoundException": ResourceNotFound,
    "ValidationException": ValidationFailed,
    **dict.fromkeys(_THROTTLES, Throttled),
}

_BY_STATUS: dict[int, type[AwsError]] = {
    400: ValidationFailed,
    401: AccessDenied,
    403: AccessDenied,
    404: ResourceNotFound,
    429: Throttled,
}

_RETRY_AFTER_MOST = 86_400.0
"""Seconds that a server may ask to wait: beyond a day it is a mistake, or no number at all."""

_WITHHELD = "(message withheld: it may repeat the request)"


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """The connections to AWS.

    Args:
        max_connections: open connections a region at most; at least 1. The default carries 200
            requests a second at half a second each.
        connect_timeout: seconds to open a connection, above 0.
        read_timeout: seconds to wait for an answer, above 0. A prepared request takes no longer
            than both together, the wait for a free connection included.
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
        connections, connect, read = self.max_connections, self.connect_timeout, self.read_timeout
        require(connections >= 1, "PoolPolicy.max_connections", "at least 1", connections)
        require(connect > 0, "PoolPolicy.connect_timeout", "above 0 s", connect)
        require(read > 0, "PoolPolicy.read_timeout", "above 0 s", read)


@dataclass(frozen=True, slots=True)
class Minted:
    """A token as it came, checked.

    Args:
        token: the token.
        life: seconds that it lives at least, counted from the start of its request.
    """

    token: ChatToken
    life: float


_Call = Callable[[TokenRequest], Awaitable[Mapping[str, Any]]]
"""Sends a request, once, and returns botocore's parsed answer."""


class ClientPool:
    """Opens clients on first use, one opening at a time, and closes them in reverse order.

    Args:
        session: an ``AioSession``, an ``aioboto3.Session``, or ``None`` for a new session, which
            finds credentials and profile as boto3 does.
        endpoint_url: where to send requests instead of to AWS; HTTPS, or on this host.
        policy: the connections.
        clock: where the time comes from.
        on_open: called with the region and the seconds it took when a client was opened.
        on_general: called with the region and the reason, once, if a client's requests cannot be
            prepared.

    Raises:
        InvalidConfiguration: if the session or the endpoint cannot be used.
    """

    def __init__(
        self,
        session: Any,
        endpoint_url: str | None,
        policy: PoolPolicy,
        clock: Clock,
        on_open: Callable[[str, float], None],
        on_general: Callable[[str, str], None],
    ) -> None:
        self._endpoint_url = endpoint_url
        del endpoint_url  # out of tracebacks that show locals: it may hold a password
        if self._endpoint_url is not None:
            _check_endpoint("endpoint_url", self._endpoint_url)
        self._create_client = _client_factory(session)
        self._policy = policy
        self._clock = clock
        self._on_open = on_open
        self._on_general = on_general
        self._calls: dict[str, _Call] = {}
        self._opening = asyncio.Lock()
        self._open_clients = AsyncExitStack()

    def __len__(self) -> int:
        return len(self._calls)

    def is_open(self, region: str) -> bool:
        """Tell whether the client of a region is open."""
        return region in self._calls

    async def open(self, region: str) -> None:
        """Open the client of a region, if it is not open.

        Raises:
            InvalidConfiguration: the environment or a profile names an endpoint that is neither
                HTTPS nor on this host.
        """
        async with self._opening:
            if region in self._calls:
                return
            started = self._clock.monotonic()
            client = await self._open_clients.enter_async_context(
                self._create_client(
                    "ivschat",
                    region_name=region,
                    endpoint_url=self._endpoint_url,
                    config=self._config(),
                )
            )
            # Only now is it known what AWS_ENDPOINT_URL_IVSCHAT or a profile said.
            _check_endpoint("the configured endpoint URL", client.meta.endpoint_url)
            _keep_secrets_out_of_debug_logs()
            with suppress(AttributeError):  # what stands in for a client parses nothing
                client.meta.events.register("before-parse.ivschat.CreateChatToken", _note_answer)
            self._calls[region] = self._call(region, client)
            self._on_open(region, self._clock.monotonic() - started)

    async def mint(self, region: str, request: TokenRequest) -> Minted:
        """Send one request, once.

        Args:
            region: a region whose client is open.
            request: what to ask for.

        Raises:
            AwsError: AWS refused.
            ConnectionFailed: no whole answer came.
            MalformedResponse: the answer holds no usable token.
            botocore.exceptions.BotoCoreError: nothing could be sent, for lack of credentials say.
        """
        call = self._calls[region]
        asked_at = self._clock.wall()
        answer: dict[str, Any] = {}
        minting = _minting.set(answer)
        try:
            return _checked(await call(request), asked_at)
        except (ConnectionFailed, MalformedResponse) as error:
            failure: Exception = error
        except Exception as error:
            failure = _translated(error, request, answer)
        finally:
            _minting.reset(minting)
            answer.clear()  # out of tracebacks that show locals
        # Raised out here, without context: botocore's frames and messages hold the request.
        raise failure.with_traceback(None)

    async def aclose(self) -> None:
        """Close all clients."""
        self._calls.clear()
        await self._open_clients.aclose()

    def _call(self, region: str, client: Any) -> _Call:
        if self._policy.prepared:
            return PreparedCalls(client, partial(self._on_general, region)).create_chat_token
        return lambda request: client.create_chat_token(**request.as_members())

    def _config(self) -> AioConfig:
        # HTTP_PROXY would carry what is meant to stay on this host to another, in the clear. Not to
        # say anything leaves what the session's own configuration says.
        local = self._endpoint_url is not None and self._endpoint_url.startswith("http:")
        proxies: dict[str, Any] = {"proxies": {}} if local else {}
        return AioConfig(
            **proxies,
            connect_timeout=self._policy.connect_timeout,
            read_timeout=self._policy.read_timeout,
            max_pool_connections=self._policy.max_connections,
            # One request a call, whatever AWS_RETRY_MODE and AWS_MAX_ATTEMPTS say: retries under
            # ours would multiply and go round the limiter. ``max_attempts`` would send two, and
            # ``adaptive`` would pace.
            retries={"total_max_attempts": 1, "mode": "standard"},
        )


def _client_factory(session: Any) -> Callable[..., Any]:
    if session is None:
        session = get_session()
    create_client: Callable[..., Any]
    if isinstance(session, AioSession):
        create_client = session.create_client
        return create_client
    # An aioboto3.Session, known by what it wraps: its package is an extra.
    if isinstance(getattr(session, "_session", None), AioSession):
        create_client = session.client
        return create_client
    raise InvalidConfiguration(
        "session", "an AioSession, an aioboto3.Session or None", type(session).__qualname__
    )


def _check_endpoint(option: str, url: str) -> None:
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    del url  # it may hold a password
    safe = scheme == "https" or (scheme == "http" and _is_loopback(host or ""))
    require(safe, option, "an HTTPS URL, or an HTTP one on this host", f"{scheme}://{host}")


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _checked(reply: Mapping[str, Any], asked_at: float) -> Minted:
    metadata = reply.get("ResponseMetadata", {})
    request_id = metadata.get("RequestId")
    token = reply.get("token")
    if not isinstance(token, str) or not token:
        raise MalformedResponse("no token", request_id)
    # Expiry and Date are both by AWS's clock, so a wrong clock of ours does no harm.
    answered = _date(metadata) or datetime.fromtimestamp(asked_at, UTC)
    token_end = _future(reply, "tokenExpirationTime", answered, request_id)
    session_end = _future(reply, "sessionExpirationTime", answered, request_id)
    # Date has whole seconds, so the difference can be up to one too long.
    life = min((token_end - answered).total_seconds(), TOKEN_LIFE)
    return Minted(ChatToken(token, token_end.astimezone(UTC), session_end.astimezone(UTC)), life)


def _future(
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


def _headers(metadata: Mapping[str, Any]) -> Mapping[str, str]:
    headers: Mapping[str, str] = metadata.get("HTTPHeaders") or {}
    return headers


def _date(metadata: Mapping[str, Any]) -> datetime | None:
    return _http_date(_headers(metadata).get("date", ""))


# Answers of the same second have the same date.
@lru_cache(maxsize=64)
def _http_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _retry_after(metadata: Mapping[str, Any]) -> float | None:
    """Return the seconds that ``Retry-After`` asks for: a number, or a date."""
    text = _headers(metadata).get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _RETRY_AFTER_MOST)
    until, answered = _http_date(text), _date(metadata)
    if until is None or answered is None:
        return None
    return min(max(0.0, (until - answered).total_seconds()), _RETRY_AFTER_MOST)


def _translated(error: Exception, request: TokenRequest, answer: Mapping[str, Any]) -> Exception:
    """Return what to raise instead of an error of botocore, aiohttp or the parser.

    Args:
        error: theirs.
        request: what was asked for.
        answer: status and headers of what botocore was about to read, if anything came.
    """
    if isinstance(error, botocore_errors.ClientError):
        return _refusal(error, request)
    if isinstance(error, botocore_errors.HTTPClientError | botocore_errors.ConnectionError):
        return ConnectionFailed(type(error).__name__)
    if isinstance(error, botocore_errors.BotoCoreError):
        if not isinstance(error, ResponseParserError):
            error.__cause__ = error.__context__ = None
            return error
    elif isinstance(error, OSError):
        return ConnectionFailed(type(error).__name__)
    # A timestamp that is none, nesting without end: the parser lets many kinds through.
    if answer and answer["status_code"] >= 301:  # from here on it is an error to botocore
        return _refusal(_unread(answer), request)
    return MalformedResponse(f"it cannot be parsed ({type(error).__name__})")


def _unread(answer: Mapping[str, Any]) -> botocore_errors.ClientError:
    """Return the error of an answer that tells nothing but its status."""
    headers, status = answer["headers"], answer["status_code"]
    metadata = {
        "RequestId": headers.get("x-amzn-requestid"),
        "HTTPStatusCode": status,
        "HTTPHeaders": headers,
    }
    response: Any = {"Error": {"Code": str(status)}, "ResponseMetadata": metadata}
    return botocore_errors.ClientError(response, "CreateChatToken")


def _refusal(error: botocore_errors.ClientError, request: TokenRequest) -> AwsError:
    response: Mapping[str, Any] = error.response
    metadata = response.get("ResponseMetadata", {})
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(metadata.get("HTTPStatusCode", 0))
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if kind is None:
        kind = ServerFault if status >= 500 else AwsError
    refusal = _mixed(kind, type(error))(_without_secrets(response, kind, request))
    if isinstance(refusal, Throttled | ServerFault):
        refusal.retry_after = _retry_after(metadata)
    return refusal


def _mixed(kind: type[AwsError], theirs: type[Exception]) -> type[AwsError]:
    """Return a class that is caught as ours and as the session's own, such as
    ``client.exceptions.ResourceNotFoundException``."""
    if theirs is botocore_errors.ClientError:
        return kind
    mixed: type[AwsError] | None = _mixtures.get((kind, theirs))
    if mixed is None:
        mixed = _mixtures[kind, theirs] = type(kind.__name__, (kind, theirs), {})
    return mixed


# As many as a session has modelled errors; sessions are few.
_mixtures: dict[tuple[type[AwsError], type[Exception]], type[AwsError]] = {}


def _without_secrets(
    response: Mapping[str, Any], kind: type[AwsError], request: TokenRequest
) -> dict[str, Any]:
    error = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    message = str(error.get("Message", ""))
    secrets = (request.user, *request.attributes, *request.attributes.values())
    # Validation messages quote values, signature errors the canonical request.
    quotes = kind is ValidationFailed or "Signature" in str(error.get("Code", ""))
    if quotes or _names_any(message, secrets):
        message = _WITHHELD
    kept: dict[str, Any] = {
        "Error": {"Code": error.get("Code"), "Message": message},
        "ResponseMetadata": {
            key: metadata[key]
            for key in ("RequestId", "HTTPStatusCode", "RetryAttempts")
            if key in metadata
        },
    }
    if kind in (ResourceNotFound, Throttled):
        # The resource is the room, or what the quota belongs to.
        for member in ("resourceId", "resourceType", "limit"):
            if member in response and not _names_any(str(response[member]), secrets):
                kept[member] = response[member]
    return kept


def _names_any(message: str, secrets: Iterable[str]) -> bool:
    """Tell whether a message holds a secret, however it is spelled."""
    folded = message.casefold()
    return any(
        _names(folded, spelled.casefold()) for secret in secrets for spelled in _spellings(secret)
    )


def _spellings(secret: str) -> set[str]:
    """Return how a message may spell a secret."""
    spelled = {secret, json.dumps(secret)[1:-1], quote(secret), quote(secret, safe="")}
    spelled.add(quote_plus(secret))
    if len(secret) > 3:  # in fewer letters, anything may look like it
        spelled |= {secret.encode().hex(), b64encode(secret.encode()).decode().rstrip("=")}
    return spelled


def _names(message: str, secret: str) -> bool:
    """Tell whether a message holds a secret; one of few letters only as a word of its own."""
    if len(secret) > 3:
        return secret in message
    return bool(secret) and re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", message) is not None


_minting: ContextVar[dict[str, Any] | None] = ContextVar("aioivschat_minting", default=None)
"""While a request is made: the status and headers of the answer, once it is there."""


def _note_answer(response_dict: Mapping[str, Any], **_: object) -> None:
    """Note what an answer tells without its body, which botocore may not be able to read."""
    answer = _minting.get()
    if answer is not None:
        answer |= {name: response_dict[name] for name in ("status_code", "headers")}


class _SecretsFilter(logging.Filter):
    """Drops what botocore logs of our requests below INFO: it shows token, user and signature."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.INFO or _minting.get() is None


_secrets_filter = _SecretsFilter()


def _keep_secrets_out_of_debug_logs() -> None:
    # A filter holds for its own logger only, not for those below it.
    for name in tuple(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
            logging.getLogger(name).addFilter(_secrets_filter)
