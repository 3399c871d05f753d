"""Sends CreateChatToken, by aiobotocore or without it.

aiobotocore resolves the endpoint, serializes, composes headers and signs for every call: five times
the work of sending it. Yet the requests of one client differ only in body, time, an id and
signature. So a client's first call goes the general way, through aiobotocore, and its request
becomes a pattern as it is sent. Later requests are made from the pattern, and go the prepared way:
to the same HTTP session, with the client's own credentials.

A pattern is used only if it reproduces the signature that botocore gave to the request it was made
from, and only while nobody watches what the prepared way leaves out. An answer that is no plain
success is read by aiobotocore: the call is made once more in the general way, where the answer
takes the place of sending.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime
from itertools import count
from typing import Any, cast

import aiohttp
from aiobotocore.awsrequest import AioAWSResponse
from botocore.handlers import add_recursion_detection_header
from botocore.utils import parse_timestamp
from multidict import CIMultiDict
from yarl import URL

from aioivschat._aws.errors import connection_failure, credentials_failure
from aioivschat._aws.interception import OPERATION, Watchers
from aioivschat._aws.internals import (
    CannotPrepare,
    credentials_of,
    describe,
    http_session_of,
    proxy_for,
)
from aioivschat._aws.redaction import current_answer
from aioivschat._aws.signing import (
    DATE,
    INVOCATION,
    TOKEN,
    SigningClock,
    SigningForm,
    header_texts,
    signing_date,
)
from aioivschat._models import CAPABILITY_NAMES, TokenRequest
from aioivschat._secrets import Unpickled

_CONSTANT_HEADERS = {"content-type", "user-agent", "amz-sdk-request"}
_TRACE = "x-amzn-trace-id"
_MADE_HEADERS = {DATE, TOKEN, INVOCATION, "authorization", "content-length", _TRACE}

_INVOCATION_MASK = 0xFFFF_FFFF_FFFF
"""An invocation id ends with twelve hexadecimal digits, which count the requests of a client."""

_TIMESTAMP_FORM = re.compile(r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d(?:\.\d{1,6})?Z")
"""Times that ``datetime.fromisoformat`` reads as botocore does, on every version of Python."""

_Answer = tuple[aiohttp.ClientResponse, dict[str, str]]
"""An answer that was read to its end, and its headers, by names in lower case."""

_answer_to_read: ContextVar[_Answer | None] = ContextVar("aioivschat_answer_to_read", default=None)
"""The answer that aiobotocore is to read: it sends nothing where this is set."""

_sent: ContextVar[list[bool]] = ContextVar("aioivschat_sent")
"""While aiobotocore makes a request: not empty once it is about to be sent."""


class ClientCalls:
    """``create_chat_token`` of an open client.

    Args:
        client: of aiobotocore's.
        clock: the time of signing.
        prepared: whether requests may go the prepared way.
        on_change: called with the reason when they have to go the general way from now on, and
            with ``None`` when they need not any more.
    """

    def __init__(
        self,
        client: Any,
        clock: SigningClock,
        *,
        prepared: bool,
        on_change: Callable[[str | None], None],
    ) -> None:
        self._client = client
        self._clock = clock
        self._on_change = on_change
        self._pattern: RequestPattern | None = None
        self._watchers = Watchers(client) if prepared else None
        self._lasting_reason: str | None = None
        self._reported_reason: str | None = None
        client.meta.events.register(f"before-send.{OPERATION}", self._on_before_send)

    async def create_chat_token(self, request: TokenRequest) -> Mapping[str, Any]:
        """Return or raise what the client's own method does, once something was sent.

        Raises:
            ConnectionFailed: no whole answer came.
            CredentialsFailed: nothing was sent.
        """
        if self._may_be_prepared() and (pattern := self._pattern) is not None:
            credentials = await self._get_credentials()
            if pattern.fits(credentials):
                answer = await self._post_request(pattern, serialize(request), credentials)
                response, headers = answer
                reply = None
                if response.status == 200:
                    reply = parse_success(await response.read(), headers)
                return reply or await self._call_in_general_way(request, answer)
            # Credentials with a session token replaced some without, or the reverse.
            self._pattern = None
        return await self._call_in_general_way(request)

    async def _get_credentials(self) -> Any:
        try:
            return await credentials_of(self._client).get_frozen_credentials()
        except Exception as error:
            failure = credentials_failure(error)
        raise failure

    async def _post_request(
        self, pattern: RequestPattern, body: bytes, credentials: Any
    ) -> _Answer:
        sender = await http_session_of(self._client).get_sender()
        headers = pattern.compose_headers(body, credentials, self._clock.now())
        try:
            answer = await sender.request("POST", url=pattern.url, headers=headers, data=body)
            return answer, {
                name.decode().lower(): value.decode() for name, value in answer.raw_headers
            }
        except Exception as error:
            failure = connection_failure(error)
        raise failure

    async def _call_in_general_way(
        self, request: TokenRequest, answer: _Answer | None = None
    ) -> Mapping[str, Any]:
        general_call: Callable[..., Awaitable[Mapping[str, Any]]] = self._client.create_chat_token
        sent: list[bool] = []
        previous, previous_sent = _answer_to_read.set(answer), _sent.set(sent)
        try:
            return await general_call(**request.as_members())
        except Exception as error:
            # Whoever answers in the place of AWS (moto) may do so before it is said to be sent.
            if sent or current_answer.get():
                raise
            failure = credentials_failure(error)
        finally:
            _answer_to_read.reset(previous)
            _sent.reset(previous_sent)
        raise failure

    def _may_be_prepared(self) -> bool:
        """Tell whether requests may go the prepared way; report it if that has changed."""
        if self._watchers is None:
            return False
        if self._lasting_reason is None and self._watchers.have_changed():
            self._pattern = None
        reason = self._lasting_reason or self._watchers.found
        if reason != self._reported_reason:
            self._reported_reason = reason
            self._on_change(reason)
        return reason is None

    async def _on_before_send(self, request: Any, **_: object) -> AioAWSResponse | None:
        """Return the answer of a call that has one already; learn the pattern from another."""
        _sent.get([]).append(True)
        answer = _answer_to_read.get()
        if answer is not None:
            response, headers = cast(tuple[Any, Any], answer)
            return AioAWSResponse(str(response.url), response.status, headers, response)
        learns = self._may_be_prepared() and self._pattern is None
        if not (learns or self._clock.offset):
            return None
        survey = self._watchers and self._watchers.survey
        try:
            held = credentials_of(self._client)
            credentials = held and await held.get_frozen_credentials()
        except Exception:
            return None  # renewing them failed: learn from a later request
        try:
            form = SigningForm(request)
            if not form.is_of(credentials):
                return None
            self._clock.sign_again(request, form, credentials)
            if learns and self._watchers and self._watchers.survey is survey:
                if proxy_for(self._client, request.url):
                    raise CannotPrepare("it uses a proxy")
                self._pattern = RequestPattern(request, form, credentials)
        except Exception as error:
            if learns:
                self._lasting_reason = describe(error)
                self._may_be_prepared()  # to report it
        return None


class RequestPattern(Unpickled):
    """What all requests of one client have in common.

    Args:
        request: as botocore is about to send it.
        form: how it was signed.
        credentials: with which.

    Raises:
        CannotPrepare: it has a header of another kind than are known, or a signature of its own.
    """

    def __init__(self, request: Any, form: SigningForm, credentials: Any) -> None:
        sent = header_texts(request)
        if unknown := sent.keys() - _CONSTANT_HEADERS - _MADE_HEADERS:
            raise CannotPrepare(f"an unknown header, {min(unknown)}")
        signature = form.sign(request.body, credentials, sent[DATE], sent[INVOCATION])
        if signature != sent["authorization"]:
            raise CannotPrepare("a signature that cannot be reproduced")
        self.url = URL(request.url, encoded=True)
        self.fits = form.fits
        self._form = form
        self._names = {name.lower(): name for name in request.headers}
        self._constant = {self._names[low]: sent[low] for low in sent.keys() & _CONSTANT_HEADERS}
        self._constant["Accept-Encoding"] = "identity"  # aiobotocore's HTTP session adds it
        # Ids of botocore's form, cheaper than a random one for each request.
        self._invocation_prefix, self._invocation_numbers = f"{uuid.uuid4()}"[:24], count()
        self._is_in_lambda = "AWS_LAMBDA_FUNCTION_NAME" in os.environ
        self._second = -1
        self._date = ""

    def compose_headers(self, body: bytes, credentials: Any, now: float) -> CIMultiDict[str]:
        """Return the headers of a request signed ``now``, in seconds since the epoch."""
        second = int(now)
        if second != self._second:
            self._second, self._date = second, signing_date(second)
        number = next(self._invocation_numbers) & _INVOCATION_MASK
        invocation = f"{self._invocation_prefix}{number:012x}"
        headers = CIMultiDict(self._constant)
        names = self._names
        headers[names[DATE]] = self._date
        headers[names[INVOCATION]] = invocation
        if TOKEN in names:
            headers[names[TOKEN]] = credentials.token
        headers["Authorization"] = self._form.sign(body, credentials, self._date, invocation)
        if self._is_in_lambda:
            # botocore adds a header by itself where Lambda traces a call.
            add_recursion_detection_header({"headers": headers})
        return headers


def serialize(request: TokenRequest) -> bytes:
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


def parse_success(body: bytes, headers: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the reply of an answer with status 200; ``None``: aiobotocore has to read it."""
    try:
        reply = json.loads(body.decode())
        # Times of one form only: dateutil, with which aiobotocore parses, knows many others.
        ends = reply["tokenExpirationTime"], reply["sessionExpirationTime"]
        if not (_TIMESTAMP_FORM.fullmatch(ends[0]) and _TIMESTAMP_FORM.fullmatch(ends[1])):
            return None
        token_end, session_end = map(datetime.fromisoformat, ends)
        token = reply["token"]
        request_id = headers["x-amzn-requestid"]
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
            "HTTPStatusCode": 200,
            "HTTPHeaders": headers,
            "RetryAttempts": 0,
        },
    }


def parse_time(text: Any) -> datetime:
    """Read a time as botocore does, at a fraction of the cost for the form that AWS sends."""
    if isinstance(text, str) and _TIMESTAMP_FORM.fullmatch(text):
        with suppress(ValueError):  # the 30th of February, say
            return datetime.fromisoformat(text)
    parsed: datetime = parse_timestamp(text)
    return parsed
