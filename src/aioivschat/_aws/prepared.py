"""The prepared way: requests signed and sent by this library instead of by aiobotocore.

aiobotocore resolves the endpoint, serializes, composes headers and signs for every call: four times
the work of sending it. Yet the requests of one client differ only in body, time, an id and
signature. So a client's first call goes the general way, through aiobotocore, and its request
becomes a pattern as it is sent. Later requests are made from the pattern and sent over the same
connections, with the client's own credentials.

A pattern is used only if it reproduces the signature that botocore gave to the request it was made
from. An answer that is no plain success is read by aiobotocore: the call is made once more in the
general way, where the answer takes the place of sending. If somebody listens to the client's calls,
or a part of aiobotocore is not as expected, all calls go the general way.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from hashlib import sha256
from itertools import count
from operator import is_
from types import FunctionType
from typing import Any

import aiohttp
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.httpsession import AIOHTTPSession
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from multidict import CIMultiDict
from yarl import URL

from aioivschat._aws.errors import connection_failure_name, note_answer
from aioivschat._models import CAPABILITY_NAMES, TokenRequest
from aioivschat._secrets import Unpickled
from aioivschat.errors import ConnectionFailed

_OPERATION = "ivschat.CreateChatToken"

_EVENT_STAGES = (
    "provide-client-params",
    "before-parameter-build",
    "before-endpoint-resolution",
    "before-call",
    "request-created",
    "choose-signer",
    "before-sign",
    "before-send",
    "before-parse",
    "response-received",
    "needs-retry",
    "after-call",
    "after-call-error",
)
"""botocore's events of a call, where tracing and users' own hooks listen."""

_CONSTANT_HEADERS = {"content-type", "user-agent", "amz-sdk-request"}
_VARYING_HEADERS = {
    "x-amz-date": "date",
    "x-amz-security-token": "token",
    "amz-sdk-invocation-id": "id",
}
_COMPUTED_HEADERS = {"authorization", "content-length"}

_AUTHORIZATION_FORM = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d{8}/(?P<region>[^/]+)/(?P<service>[^/]+)"
    r"/aws4_request, SignedHeaders=(?P<signed>[a-z0-9;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)

_INVOCATION_MASK = 0xFFFF_FFFF_FFFF
"""An invocation id ends with twelve hexadecimal digits, which count the requests of a client."""

_TIMESTAMP_FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z")


class _CannotPrepare(Exception):
    """A client's requests cannot be prepared; the message says why."""


class PreparedCalls:
    """``create_chat_token`` of an open client, in the prepared way where that is possible.

    ``on_general`` is called once with the reason, if all calls have to go the general way.
    """

    def __init__(self, client: Any, on_general: Callable[[str], None]) -> None:
        self._client = client
        self._on_general = on_general
        self._pattern: _RequestPattern | None = None
        self._skipped: tuple[object, ...] = ()
        self._timeouts: _TimeoutWatch | None = None
        self._can_prepare = True
        try:
            self._signer = client._request_signer
            self._http: Any = client._endpoint.http_session
            self._emitter = client.meta.events._emitter
            client.meta.events.register(f"before-send.{_OPERATION}", self._on_before_send)
        except AttributeError as error:
            self._stop_preparing(f"no {error.name}")

    async def create_chat_token(self, request: TokenRequest) -> Mapping[str, Any]:
        """Return or raise what the client's own method does, or raise :class:`ConnectionFailed`."""
        pattern = self._pattern
        if pattern is not None and not all(map(is_, self._skipped_parts(), self._skipped)):
            # Instrumentation was put on while the client was open: check everything again.
            pattern = self._pattern = None
        if pattern is not None:
            credentials = await self._signer._credentials.get_frozen_credentials()
            if pattern.fits(credentials):
                answer = await self._send(pattern, _serialize(request), credentials)
                reply = _parse_success(answer)
                if reply is not None:
                    return reply
                return await self._call_in_general_way(request, answer)
            # Credentials with a session token replaced some without, or the reverse.
            self._pattern = None
        return await self._call_in_general_way(request)

    async def _send(self, pattern: _RequestPattern, body: bytes, credentials: Any) -> _RawResponse:
        timeouts = self._timeouts
        assert timeouts is not None  # noqa: S101 (it is made with the pattern)
        session = await self._http._get_session(None)
        task = timeouts.watch_current_task()
        try:
            response = await session.request(
                "POST",
                pattern.url,
                data=body,
                headers=pattern.compose_headers(body, credentials, time.time()),
                timeout=timeouts.connect_timeout,
            )
            return _RawResponse(response, await response.read())
        except asyncio.CancelledError:
            if not timeouts.took_back_cancellation(task):
                raise
            name = "ReadTimeoutError"
        except Exception as error:
            name = connection_failure_name(error)
        finally:
            timeouts.unwatch(task)
        raise ConnectionFailed(name)

    async def _call_in_general_way(
        self, request: TokenRequest, answer: _RawResponse | None = None
    ) -> Mapping[str, Any]:
        general_call: Callable[..., Awaitable[Mapping[str, Any]]] = self._client.create_chat_token
        previous = _answer_to_read.set(answer)
        try:
            return await general_call(**request.as_members())
        finally:
            _answer_to_read.reset(previous)

    async def _on_before_send(self, request: Any, **_: object) -> AioAWSResponse | None:
        """Return the answer of a call that has one already; learn the pattern from another."""
        answer = _answer_to_read.get()
        if answer is not None:
            return answer.as_aiobotocore_response()
        if self._can_prepare and self._pattern is None:
            held = self._signer._credentials
            try:
                credentials = held and await held.get_frozen_credentials()
            except Exception:
                return None  # renewing them failed: learn from a later request
            try:
                if credentials is None:
                    raise _CannotPrepare("its requests are not signed")
                self._skipped = self._skipped_parts()
                self._check_skippable(request)
                if self._timeouts is None:
                    self._timeouts = _TimeoutWatch(self._http._timeout)
                self._pattern = _RequestPattern.from_request(request, credentials)
            except _CannotPrepare as error:
                self._stop_preparing(str(error))
            except Exception as error:
                self._stop_preparing(f"aiobotocore is not as expected ({type(error).__name__})")
        return None

    def _skipped_parts(self) -> tuple[object, ...]:
        """Return what the prepared way skips: the same objects unless somebody replaced one."""
        return (
            _underlying_function(self._client.create_chat_token),
            _underlying_function(self._client._make_api_call),
            AIOHTTPSession.send,
            # A new object once a handler is registered or unregistered.
            self._emitter._lookup_cache,
        )

    def _check_skippable(self, request: Any) -> None:
        """Raise _CannotPrepare if somebody depends on the skipped parts or a proxy is used."""
        create, call, send, _ = self._skipped
        if not (_is_botocores_own(create) and _is_botocores_own(call)):
            raise _CannotPrepare("its calls are intercepted")
        if any(not _is_harmless(handler) for handler in self._event_handlers()):
            raise _CannotPrepare("something else listens to its events")
        if type(self._http) is not AIOHTTPSession:
            raise _CannotPrepare("it has another HTTP client")
        if not _is_botocores_own(send):
            raise _CannotPrepare("its requests are intercepted")
        proxies: Any = vars(self._http)["_proxy_config"]
        if proxies.proxy_url_for(request.url) is not None:
            raise _CannotPrepare("it uses a proxy")

    def _event_handlers(self) -> Iterator[Any]:
        for stage in _EVENT_STAGES:
            yield from self._emitter._handlers.prefix_search(f"{stage}.{_OPERATION}")

    def _stop_preparing(self, reason: str) -> None:
        # Concurrent first calls may all find the reason: tell it once.
        if self._can_prepare:
            self._can_prepare = False
            self._on_general(reason)


class _TimeoutWatch:
    """Cancels the tasks of requests whose answer is late.

    One timer serves all: they have equal time, so they become late in the order in which they
    began. aiohttp would set two for each request, which costs as much as signing does; only
    ``connect_timeout`` is left to it.
    """

    def __init__(self, timeout: aiohttp.ClientTimeout) -> None:
        # Waiting for a free connection and opening one count too.
        self._seconds = (timeout.sock_connect or 0.0) + (timeout.sock_read or math.inf)
        self.connect_timeout = aiohttp.ClientTimeout(sock_connect=timeout.sock_connect)
        self._loop = asyncio.get_running_loop()
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._cancelled: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch_current_task(self) -> asyncio.Task[Any]:
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101 (a coroutine runs in one)
        self._deadlines[task] = self._loop.time() + self._seconds
        if self._timer is None and self._seconds < math.inf:
            self._timer = self._loop.call_later(self._seconds, self._cancel_overdue)
        return task

    def unwatch(self, task: asyncio.Task[Any]) -> None:
        del self._deadlines[task]

    def took_back_cancellation(self, task: asyncio.Task[Any]) -> bool:
        """Take back the watch's cancellation of a task; return whether it was the only one."""
        if task not in self._cancelled:
            return False
        self._cancelled.discard(task)
        return task.uncancel() == 0

    def _cancel_overdue(self) -> None:
        self._timer = None
        now = self._loop.time()
        for task, deadline in self._deadlines.items():
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._cancel_overdue)
                return
            self._cancelled.add(task)
            task.cancel()


class _RequestPattern(Unpickled):
    """What all requests of one client have in common."""

    def __init__(
        self,
        url: URL,
        constant: Mapping[str, str],
        template: str,
        names: Mapping[str, str],
        authorization: re.Match[str],
    ) -> None:
        self.url = url
        self._constant = constant  # headers, by their names as sent
        self._template = template  # the canonical request, with placeholders for what varies
        self._names = names  # of the varying headers as sent, by what they hold
        self._region, self._service = authorization["region"], authorization["service"]
        self._signed = authorization["signed"]
        # Ids of botocore's form, cheaper than a random one for each request.
        self._invocation_prefix, self._invocation_numbers = f"{uuid.uuid4()}"[:24], count()
        self._second = -1
        self._date = ""
        self._key_origin: tuple[str, str] = ("", "")
        self._key = b""

    @classmethod
    def from_request(cls, request: Any, credentials: Any) -> _RequestPattern | None:
        """Make a pattern of a request that botocore is about to send.

        ``None``: it was signed with other credentials than these.
        """
        headers = request.headers.items()
        sent = {name: v.decode() if isinstance(v, bytes) else v for name, v in headers}
        by_lower = {name.lower(): name for name in sent}
        unknown = by_lower.keys() - _CONSTANT_HEADERS - _VARYING_HEADERS.keys() - _COMPUTED_HEADERS
        if unknown:
            raise _CannotPrepare(f"an unknown header, {min(unknown)}")
        signature = sent.get(by_lower.get("authorization", ""), "")
        authorization = _AUTHORIZATION_FORM.fullmatch(signature)
        if authorization is None:
            raise _CannotPrepare("another kind of signature")
        token = sent.get(by_lower.get("x-amz-security-token", ""))
        # botocore sends no header for an empty session token.
        if (authorization["key"], token) != (credentials.access_key, credentials.token or None):
            return None
        pattern = cls(
            URL(request.url, encoded=True),
            {name: sent[name] for low, name in by_lower.items() if low in _CONSTANT_HEADERS}
            | {"Accept-Encoding": "identity"},  # aiobotocore's HTTP session adds it
            _canonical_template(request, authorization, {n: sent[by_lower[n]] for n in by_lower}),
            {part: by_lower[low] for low, part in _VARYING_HEADERS.items() if low in by_lower},
            authorization,
        )
        reproduced = pattern._sign_request(
            request.body,
            credentials,
            sent[by_lower["x-amz-date"]],
            sent[by_lower["amz-sdk-invocation-id"]],
        )
        if reproduced != authorization[0]:
            raise _CannotPrepare("a signature that cannot be reproduced")
        return pattern

    def fits(self, credentials: Any) -> bool:
        return ("token" in self._names) == bool(credentials.token)

    def compose_headers(self, body: bytes, credentials: Any, now: float) -> CIMultiDict[str]:
        """Return the headers of a request signed ``now``, in seconds since the epoch."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        number = next(self._invocation_numbers) & _INVOCATION_MASK
        invocation = f"{self._invocation_prefix}{number:012x}"
        headers = CIMultiDict(self._constant)
        names = self._names
        headers[names["date"]] = self._date
        headers[names["id"]] = invocation
        if "token" in names:
            headers[names["token"]] = credentials.token
        headers["Authorization"] = self._sign_request(body, credentials, self._date, invocation)
        return headers

    def _sign_request(self, body: bytes, credentials: Any, date: str, invocation: str) -> str:
        """Return ``Authorization`` by Signature Version 4 ("Create a signed AWS API request")."""
        day = date[:8]
        canonical = self._template % {
            "date": date,
            "token": " ".join((credentials.token or "").split()),
            "id": invocation,
            "body": sha256(body).hexdigest(),
        }
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(
            self._derive_signing_key(credentials.secret_key, day), text.encode(), "sha256"
        )
        return (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={self._signed}, Signature={signature.hex()}"
        )

    def _derive_signing_key(self, secret: str, day: str) -> bytes:
        # AWS derives one for each day from the secret key.
        if self._key_origin != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, self._service, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key, self._key_origin = key, (secret, day)
        return self._key


def _canonical_template(request: Any, authorization: re.Match[str], sent: Mapping[str, str]) -> str:
    signed = authorization["signed"].split(";")
    copy = AWSRequest(
        method=request.method,
        url=request.url,
        headers={name: sent[name] for name in signed if name in sent},
        data=request.body,
    )
    # The canonical form does not depend on the credentials.
    unused = ReadOnlyCredentials("", "", None)
    signer = SigV4Auth(unused, authorization["service"], authorization["region"])
    *lines, _ = signer.canonical_request(copy).replace("%", "%%").split("\n")
    varying = {name: f"{name}:%({part})s" for name, part in _VARYING_HEADERS.items()}
    return "\n".join([*(varying.get(line.partition(":")[0], line) for line in lines), "%(body)s"])


class _RawResponse:
    """The whole answer to a prepared request."""

    __slots__ = ("body", "headers", "status", "url")

    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.url = response.url
        self.status = response.status
        self.headers: Any = {
            name.decode().lower(): value.decode() for name, value in response.raw_headers
        }
        self.body = body

    async def read(self) -> bytes:
        """Return the body; aiobotocore reads it as it reads a stream."""
        return self.body

    def as_aiobotocore_response(self) -> AioAWSResponse:
        return AioAWSResponse(str(self.url), self.status, self.headers, self)


_answer_to_read: ContextVar[_RawResponse | None] = ContextVar(
    "aioivschat_answer_to_read", default=None
)
"""The answer that aiobotocore is to read: it sends nothing where this is set."""


def _serialize(request: TokenRequest) -> bytes:
    """Return what ``json.dumps`` returns for the request's members, in a quarter of its time."""
    rest = _CAPABILITIES_JSON[request.capabilities]
    if request.attributes:
        rest += f', "attributes": {json.dumps(dict(request.attributes))}'
    # A room's ARN has no character that JSON escapes.
    return (
        f'{{"roomIdentifier": "{request.room}", "userId": {json.dumps(request.user)}, '
        f'"sessionDurationInMinutes": {request.session_minutes}{rest}}}'
    ).encode()


_CAPABILITIES_JSON = {
    chosen: f', "capabilities": {json.dumps(names)}' if names else ""
    for chosen, names in CAPABILITY_NAMES.items()
}


def _parse_success(answer: _RawResponse) -> dict[str, Any] | None:
    """Return the reply of a plain success; ``None``: aiobotocore has to read the answer."""
    if answer.status != 200:
        return None
    try:
        reply = json.loads(answer.body.decode())
        # Times of one form only: dateutil, with which aiobotocore parses, knows many others.
        ends = reply["tokenExpirationTime"], reply["sessionExpirationTime"]
        if not (_TIMESTAMP_FORM.fullmatch(ends[0]) and _TIMESTAMP_FORM.fullmatch(ends[1])):
            return None
        token_end, session_end = map(datetime.fromisoformat, ends)
        token = reply["token"]
        request_id = answer.headers["x-amzn-requestid"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(token, str):
        return None
    return {
        "token": token,
        "tokenExpirationTime": token_end,
        "sessionExpirationTime": session_end,
        "ResponseMetadata": {
            "RequestId": request_id,
            "HTTPStatusCode": answer.status,
            "HTTPHeaders": answer.headers,
            "RetryAttempts": 0,
        },
    }


def _underlying_function(method: Any) -> Any:
    return getattr(method, "__func__", method)


def _is_botocores_own(function: Any) -> bool:
    """Tell whether a function is botocore's or aiobotocore's own and not somebody's wrapper."""
    # functools.wraps copies the name of the module, but not the globals.
    return type(function) is FunctionType and _is_of_botocore(function.__globals__["__name__"])


def _is_harmless(handler: Any) -> bool:
    """Tell whether a handler is botocore's, aiobotocore's or this library's."""
    module = getattr(handler, "__module__", None) or type(handler).__module__
    return handler is note_answer or module == __name__ or _is_of_botocore(module)


def _is_of_botocore(module: str) -> bool:
    return module.partition(".")[0] in ("aiobotocore", "botocore")
