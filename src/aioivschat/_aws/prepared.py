"""Requests prepared once per client, for a fraction of what building each anew costs.

aiobotocore resolves the endpoint, serializes, composes headers and signs for every call: four times
the work of sending it. But the requests of one client differ in their body, their time, an id and
the signature, and in nothing else. So the first one goes the general way, through aiobotocore, and
is looked at as it is sent. Those after it are filled into its pattern and sent over the same
connections, with the client's own credentials.

Nothing is taken on trust. The pattern holds only if it gives the request that was seen the very
signature that botocore gave it. Every answer but a plain success is read by aiobotocore itself: the
call is made once more in the general way, and gets the answer instead of being sent. And where
somebody listens to the client's calls, or something is not as expected, all calls go that way.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import re
import socket
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

from aioivschat._models import SORTED_NAMES, TokenRequest
from aioivschat._secrets import Unpickled
from aioivschat.errors import ConnectionFailed

_OPERATION = "ivschat.CreateChatToken"

_STAGES = (
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
"""The events of a call, where tracing and users' own hooks listen."""

_CONSTANT = {"content-type", "user-agent", "amz-sdk-request"}
_VARYING = {
    "x-amz-date": "date",
    "x-amz-security-token": "token",
    "amz-sdk-invocation-id": "id",
}
_COMPUTED = {"authorization", "content-length"}

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d{8}/(?P<region>[^/]+)/(?P<service>[^/]+)"
    r"/aws4_request, SignedHeaders=(?P<signed>[a-z0-9;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)

_LAST = 0xFFFF_FFFF_FFFF
"""As many invocations can be told apart within a series."""

_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z")

_FAILURES: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((aiohttp.ClientSSLError,), "SSLError"),
    (
        (
            aiohttp.ServerDisconnectedError,
            aiohttp.ClientPayloadError,
            aiohttp.http_exceptions.BadStatusLine,
        ),
        "ConnectionClosedError",
    ),
    ((aiohttp.ServerTimeoutError,), "ReadTimeoutError"),
    ((aiohttp.ClientConnectionError, socket.gaierror), "EndpointConnectionError"),
    ((TimeoutError,), "ReadTimeoutError"),
)
"""What botocore calls a failure to get an answer; the first that fits."""


_Call = Callable[..., Awaitable[Mapping[str, Any]]]


class _Unexpected(Exception):
    """Something is not as preparing needs it; the message says what."""


class PreparedCalls:
    """``create_chat_token`` of one client, prepared.

    Args:
        client: an open ``ivschat`` client of aiobotocore that sends a request once.
        on_general: called once with the reason, if all calls have to go the general way.
    """

    def __init__(self, client: Any, on_general: Callable[[str], None]) -> None:
        self._client = client
        self._on_general = on_general
        self._pattern: _Pattern | None = None
        self._seen: tuple[object, ...] = ()
        self._watch: _Watch | None = None
        self._possible = True
        try:
            self._signer = client._request_signer
            self._http: Any = client._endpoint.http_session
            self._emitter = client.meta.events._emitter
            client.meta.events.register(f"before-send.{_OPERATION}", self._about_to_send)
        except AttributeError as error:
            self._go_general(f"no {error.name}")

    async def create_chat_token(self, request: TokenRequest) -> Mapping[str, Any]:
        """Make the call.

        Returns:
            What the client's own method returns.

        Raises:
            ConnectionFailed: no whole answer came to a prepared request.
            Exception: what the client's own method raises.
        """
        pattern = self._pattern
        if pattern is not None and not all(map(is_, self._way(), self._seen)):
            # Instrumentation may be put on while the client is open: look again.
            pattern = self._pattern = None
        if pattern is not None:
            credentials = await self._signer._credentials.get_frozen_credentials()
            if pattern.fits(credentials):
                answer = await self._send(pattern, _body(request), credentials)
                reply = _success(answer)
                if reply is not None:
                    return reply
                return await self._read(answer, request)
            # Credentials with a session token took the place of some without, or the reverse.
            self._pattern = None
        own: _Call = self._client.create_chat_token
        return await own(**request.as_members())

    async def _send(self, pattern: _Pattern, body: bytes, credentials: Any) -> _Answer:
        watch = self._watch
        assert watch is not None  # noqa: S101 (it comes with the pattern)
        session = await self._http._get_session(None)
        watched = watch.begin()
        try:
            response = await session.request(
                "POST",
                pattern.url,
                data=body,
                headers=pattern.headers(body, credentials, time.time()),
                timeout=watch.timeout,
            )
            return _Answer(response, await response.read())
        except asyncio.CancelledError:
            if not watch.ended(watched):
                raise
            name = "ReadTimeoutError"
        except Exception as error:
            name = _failure(error)
        finally:
            watch.end(watched)
        raise ConnectionFailed(name)

    async def _read(self, answer: _Answer, request: TokenRequest) -> Mapping[str, Any]:
        """Let aiobotocore make of an answer whatever it makes of such answers."""
        own: _Call = self._client.create_chat_token
        reading = _answer_read.set(answer)
        try:
            return await own(**request.as_members())
        finally:
            _answer_read.reset(reading)

    async def _about_to_send(self, request: Any, **_: object) -> AioAWSResponse | None:
        """Answer a call that has its answer already; look at one that is really sent."""
        answer = _answer_read.get()
        if answer is not None:
            return answer.as_response()
        if self._possible and self._pattern is None:
            held = self._signer._credentials
            try:
                credentials = held and await held.get_frozen_credentials()
            except Exception:
                return None  # they fail while they are renewed: the next request will do
            try:
                if credentials is None:
                    raise _Unexpected("its requests are not signed")
                self._seen = self._way()
                self._check_way(request)
                if self._watch is None:
                    self._watch = _Watch(self._http._timeout)
                self._pattern = _Pattern.of(request, credentials)
            except _Unexpected as error:
                self._go_general(str(error))
            except Exception as error:
                self._go_general(f"aiobotocore is not as expected ({type(error).__name__})")
        return None

    def _way(self) -> tuple[object, ...]:
        """Return what its calls go through that others may change; the same objects if not."""
        client = self._client
        return (
            _function(client.create_chat_token),
            _function(client._make_api_call),
            AIOHTTPSession.send,
            # Look-ups of handlers are kept until one is registered or taken away.
            self._emitter._lookup_cache,
        )

    def _check_way(self, request: Any) -> None:
        """Check that nobody would miss what is left out, and that there is a direct way."""
        create, call, send, _ = self._seen
        if not (_is_theirs(create) and _is_theirs(call)):
            raise _Unexpected("its calls are intercepted")
        if any(not _is_harmless(handler) for handler in self._handlers()):
            raise _Unexpected("something else listens to its events")
        if type(self._http) is not AIOHTTPSession:
            raise _Unexpected("it has another HTTP client")
        if not _is_theirs(send):
            raise _Unexpected("its requests are intercepted")
        proxies: Any = vars(self._http)["_proxy_config"]
        if proxies.proxy_url_for(request.url) is not None:
            raise _Unexpected("it uses a proxy")

    def _handlers(self) -> Iterator[Any]:
        for stage in _STAGES:
            yield from self._emitter._handlers.prefix_search(f"{stage}.{_OPERATION}")

    def _go_general(self, reason: str) -> None:
        # Calls that were under way together may all find out.
        if self._possible:
            self._possible = False
            self._on_general(reason)


class _Watch:
    """Ends requests whose answer does not come in time.

    One timer for all: they may take equally long, so the order of their beginnings is that of their
    ends. aiohttp would set two for each, which costs as much as signing does.

    Args:
        timeout: the session's.

    Attributes:
        timeout: the same, without what is watched here.
    """

    def __init__(self, timeout: aiohttp.ClientTimeout) -> None:
        # To wait for a free connection, or to open one, may take a while too.
        self._seconds = (timeout.sock_connect or 0.0) + (timeout.sock_read or math.inf)
        self.timeout = aiohttp.ClientTimeout(sock_connect=timeout.sock_connect)
        self._loop = asyncio.get_running_loop()
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._ended: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> asyncio.Task[Any]:
        """Watch what the current task does from now on."""
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101 (a coroutine runs in one)
        self._ends[task] = self._loop.time() + self._seconds
        if self._timer is None and self._seconds < math.inf:
            self._timer = self._loop.call_later(self._seconds, self._look)
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        """Watch it no longer."""
        del self._ends[task]

    def ended(self, task: asyncio.Task[Any]) -> bool:
        """Tell whether a task that was cancelled was so from here, and by nobody else."""
        if task not in self._ended:
            return False
        self._ended.discard(task)
        return task.uncancel() == 0

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for task, end in self._ends.items():
            if end > now:
                self._timer = self._loop.call_at(end, self._look)
                return
            self._ended.add(task)
            task.cancel()


class _Pattern(Unpickled):
    """What all requests of one client have in common.

    Args:
        url: where they go.
        constant: the headers that stay, by their names as sent.
        canonical: botocore's canonical request, with places for what varies.
        names: how the varying headers are spelled, by what they hold.
        authorization: the parts of the ``Authorization`` header.
    """

    def __init__(
        self,
        url: URL,
        constant: Mapping[str, str],
        canonical: str,
        names: Mapping[str, str],
        authorization: re.Match[str],
    ) -> None:
        self.url = url
        self._constant = constant
        self._canonical = canonical
        self._names = names
        self._region, self._service = authorization["region"], authorization["service"]
        self._signed = authorization["signed"]
        # Of the form that botocore's have, and cheaper than a random one for each.
        self._invocations = (f"{uuid.uuid4()}"[:24], count())
        self._second = -1
        self._date = ""
        self._key_of: tuple[str, str] = ("", "")
        self._key = b""

    @classmethod
    def of(cls, request: Any, credentials: Any) -> _Pattern | None:
        """Make a pattern of a request as botocore is about to send it.

        Returns:
            ``None`` if it was signed by other credentials than those that are held now.

        Raises:
            _Unexpected: the request holds something that the pattern would not.
        """
        sent = {name: _text(value) for name, value in request.headers.items()}
        by_lower = {name.lower(): name for name in sent}
        unknown = by_lower.keys() - _CONSTANT - _VARYING.keys() - _COMPUTED
        if unknown:
            raise _Unexpected(f"an unknown header, {min(unknown)}")
        authorization = _AUTHORIZATION.fullmatch(sent.get(by_lower.get("authorization", ""), ""))
        if authorization is None:
            raise _Unexpected("another kind of signature")
        token = sent.get(by_lower.get("x-amz-security-token", ""))
        # A token that is empty is sent as none.
        if (authorization["key"], token) != (credentials.access_key, credentials.token or None):
            return None
        pattern = cls(
            URL(request.url, encoded=True),
            {sent_as: sent[sent_as] for low, sent_as in by_lower.items() if low in _CONSTANT}
            # As aiobotocore sends it.
            | {"Accept-Encoding": "identity"},
            _canonical(request, authorization, {n: sent[by_lower[n]] for n in by_lower}),
            {_VARYING[low]: sent_as for low, sent_as in by_lower.items() if low in _VARYING},
            authorization,
        )
        again = pattern._authorization(
            request.body,
            credentials,
            sent[by_lower["x-amz-date"]],
            sent[by_lower["amz-sdk-invocation-id"]],
        )
        if again != authorization[0]:
            raise _Unexpected("a signature that cannot be reproduced")
        return pattern

    def fits(self, credentials: Any) -> bool:
        """Tell whether credentials make for the same headers."""
        return ("token" in self._names) == bool(credentials.token)

    def headers(self, body: bytes, credentials: Any, now: float) -> CIMultiDict[str]:
        """Return the headers of a request.

        Args:
            body: what it holds.
            credentials: whose it is.
            now: the moment of signing, in seconds since the epoch.
        """
        second = int(now)
        if second != self._second:
            self._second = second
            self._date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        series, numbers = self._invocations
        invocation = f"{series}{next(numbers) & _LAST:012x}"
        headers = CIMultiDict(self._constant)
        names = self._names
        headers[names["date"]] = self._date
        headers[names["id"]] = invocation
        if "token" in names:
            headers[names["token"]] = credentials.token
        headers["Authorization"] = self._authorization(body, credentials, self._date, invocation)
        return headers

    def _authorization(self, body: bytes, credentials: Any, date: str, invocation: str) -> str:
        """Sign, by Signature Version 4 (AWS, "Create a signed AWS API request")."""
        day = date[:8]
        canonical = self._canonical % {
            "date": date,
            "token": " ".join((credentials.token or "").split()),
            "id": invocation,
            "body": sha256(body).hexdigest(),
        }
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(
            self._signing_key(credentials.secret_key, day), text.encode(), "sha256"
        )
        return (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={self._signed}, Signature={signature.hex()}"
        )

    def _signing_key(self, secret: str, day: str) -> bytes:
        # It lasts for a day, as long as the credentials do.
        if self._key_of != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, self._service, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key, self._key_of = key, (secret, day)
        return self._key


def _canonical(request: Any, authorization: re.Match[str], sent: Mapping[str, str]) -> str:
    """Return botocore's canonical form of a request, with places for what varies."""
    signed = authorization["signed"].split(";")
    seen = AWSRequest(
        method=request.method,
        url=request.url,
        headers={name: sent[name] for name in signed if name in sent},
        data=request.body,
    )
    # What is not signed yet does not depend on the credentials.
    nobody = ReadOnlyCredentials("", "", None)
    signer = SigV4Auth(nobody, authorization["service"], authorization["region"])
    *lines, _ = signer.canonical_request(seen).replace("%", "%%").split("\n")
    places = {name: f"{name}:%({place})s" for name, place in _VARYING.items()}
    return "\n".join([*(places.get(line.partition(":")[0], line) for line in lines), "%(body)s"])


class _Answer:
    """The whole answer to a prepared request.

    Args:
        response: as it came.
        body: what it held.
    """

    __slots__ = ("body", "headers", "status", "url")

    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.url = response.url
        self.status = response.status
        self.headers: Any = {
            name.decode().lower(): value.decode() for name, value in response.raw_headers
        }
        self.body = body

    async def read(self) -> bytes:
        """Return the body, as a stream of aiohttp's would."""
        return self.body

    def as_response(self) -> AioAWSResponse:
        """Return it as aiobotocore's HTTP session returns answers."""
        return AioAWSResponse(str(self.url), self.status, self.headers, self)


_answer_read: ContextVar[_Answer | None] = ContextVar("aioivschat_answer_read", default=None)


def _body(request: TokenRequest) -> bytes:
    """Return what ``json.dumps`` makes of the request's members, in a quarter of its time."""
    user = json.dumps(request.user)
    rest = _CAPABILITIES[request.capabilities]
    if request.attributes:
        rest += f', "attributes": {json.dumps(dict(request.attributes))}'
    # A room's ARN has no character that would have to be escaped.
    return (
        f'{{"roomIdentifier": "{request.room}", "userId": {user}, '
        f'"sessionDurationInMinutes": {request.session_minutes}{rest}}}'
    ).encode()


_CAPABILITIES = {
    chosen: f', "capabilities": {json.dumps(names)}' if names else ""
    for chosen, names in SORTED_NAMES.items()
}


def _success(answer: _Answer) -> dict[str, Any] | None:
    """Return the reply that an answer holds, if it is as plain as they nearly all are."""
    if answer.status != 200:
        return None
    try:
        reply = json.loads(answer.body.decode())
        # Of the times that dateutil would parse, those that can be read in one way only.
        ends = reply["tokenExpirationTime"], reply["sessionExpirationTime"]
        if not (_TIMESTAMP.fullmatch(ends[0]) and _TIMESTAMP.fullmatch(ends[1])):
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


def _failure(error: Exception) -> str:
    # Not by its class, which not all versions of aiohttp that aiobotocore allows have.
    if isinstance(error, aiohttp.ServerTimeoutError) and str(error).startswith("Connect"):
        return "ConnectTimeoutError"
    names = (name for kinds, name in _FAILURES if isinstance(error, kinds))
    return next(names, "HTTPClientError")


def _function(method: Any) -> Any:
    return getattr(method, "__func__", method)


def _is_theirs(function: Any) -> bool:
    """Tell whether a function is botocore's or aiobotocore's; what others wrap in theirs is not."""
    # A wrapper takes over the name of the module and the like, and not what it is made of.
    return type(function) is FunctionType and _is_from(function.__globals__["__name__"])


def _is_harmless(handler: Any) -> bool:
    """Tell whether a handler is one of theirs, or of the pool's."""
    module = getattr(handler, "__module__", None) or type(handler).__module__
    return _is_from(module) or module in (__name__, "aioivschat._aws.clients")


def _is_from(module: str) -> bool:
    return module.partition(".")[0] in ("aiobotocore", "botocore")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
