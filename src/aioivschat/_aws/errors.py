"""Translates errors of botocore, aiohttp and the parser into the library's own."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from traceback import walk_tb
from typing import Any, TypeVar

import aiohttp
from botocore import exceptions as botocore_errors
from botocore.client import BaseClient
from botocore.parsers import ResponseParserError

from aioivschat._aws.redaction import current_answer, redacted_response
from aioivschat._models import TokenRequest
from aioivschat.errors import (
    AccessDenied,
    AwsError,
    ChatTokenError,
    ConnectionFailed,
    CredentialsFailed,
    InvalidConfiguration,
    MalformedResponse,
    PendingVerification,
    ResourceNotFound,
    ServerFault,
    Throttled,
    ValidationFailed,
)

E = TypeVar("E", bound=ChatTokenError)

_THROTTLES = (
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
)
"""Codes of errors that mean a quota is used up."""

_BAD_CREDENTIALS = (
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "InvalidToken",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "OptInRequired",
    "RequestExpired",
    "RequestInTheFuture",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "SubscriptionRequiredException",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
)
"""Codes of errors that say of the credentials or of the signature that AWS takes neither for
anything: those that AWS's services share (IVS Chat API reference, "Common Errors")."""

_CLASS_BY_CODE: dict[str, type[AwsError]] = {
    "AccessDeniedException": AccessDenied,
    "PendingVerification": PendingVerification,
    "NotAuthorized": AccessDenied,
    "ResourceNotFoundException": ResourceNotFound,
    "ValidationException": ValidationFailed,
    **dict.fromkeys(_BAD_CREDENTIALS, AccessDenied),
    **dict.fromkeys(_THROTTLES, Throttled),
}

_CLASS_BY_STATUS: dict[int, type[AwsError]] = {
    400: ValidationFailed,
    401: AccessDenied,
    403: AccessDenied,
    404: ResourceNotFound,
    429: Throttled,
}

_RETRY_AFTER_MAX_SECONDS = 10.0
"""The longest wait that a server is believed to mean. AWS counts this quota by the second: whatever
its shape, it is whole again after one second without requests. A server that asks for more than ten
of them is mistaken, speaks of another quota, or sent no number."""

_CONNECTION_FAILURES: dict[type[Exception], str] = {
    aiohttp.ClientSSLError: "SSLError",
    aiohttp.ServerDisconnectedError: "ConnectionClosedError",
    aiohttp.ClientPayloadError: "ConnectionClosedError",
    aiohttp.http_exceptions.BadStatusLine: "ConnectionClosedError",
    aiohttp.ServerTimeoutError: "ReadTimeoutError",
    aiohttp.ClientConnectionError: "EndpointConnectionError",
    socket.gaierror: "EndpointConnectionError",
    TimeoutError: "ReadTimeoutError",
}
"""What botocore calls aiohttp's errors without a whole answer; the first that fits."""

_PASSING = (
    botocore_errors.HTTPClientError,
    botocore_errors.ConnectionError,
    botocore_errors.CredentialRetrievalError,
    botocore_errors.MetadataRetrievalError,
    aiohttp.ClientError,
    OSError,
)
"""Errors of whoever was asked for credentials that a second try may not meet."""

_LASTING = (botocore_errors.SSLError, FileNotFoundError, PermissionError, IsADirectoryError)

_PASSING_CODES = {*_THROTTLES, "IDPCommunicationError", "InternalFailure", "ServiceUnavailable"}

# As many as a session has modelled errors; sessions are few.
_mixed_classes: dict[tuple[type[Exception], type[Exception]], Any] = {}


def note_answer(response_dict: Mapping[str, Any], **_: object) -> None:
    """Note, at botocore's ``before-parse``, status and headers of an answer it may fail to read."""
    answer = current_answer.get()
    if answer is not None:
        answer |= {name: response_dict[name] for name in ("status_code", "headers")}


def translate_error(
    error: Exception, request: TokenRequest, answer: Mapping[str, Any]
) -> Exception:
    """Return what to raise instead of an error of botocore, aiohttp or the parser.

    ``answer`` holds what :func:`note_answer` noted, if anything came.
    """
    if answer and 300 <= answer["status_code"] < 400:
        # Anything in the answer of a redirect may name its target.
        return _to_aws_error(_error_without_body(answer), request)
    if isinstance(error, botocore_errors.ClientError):
        return _to_aws_error(error, request)
    if isinstance(error, botocore_errors.HTTPClientError | botocore_errors.ConnectionError):
        return connection_failure(error, type(error).__name__)
    if isinstance(error, OSError):
        return ConnectionFailed(type(error).__name__)
    if isinstance(error, botocore_errors.BotoCoreError) and not (
        answer or isinstance(error, ResponseParserError)
    ):
        return credentials_failure(error)
    if _was_answered_in_process(error):
        made = "an answer made in this process for clients that are not async, as by mock_aws"
        found = f"{made}: use moto's server, as the pytest fixture ivschat_moto does"
        return InvalidConfiguration("session", "of clients that are answered over HTTP", found)
    # The parser lets many kinds through: of a timestamp that is none, of nesting without end.
    if answer and answer["status_code"] >= 400:
        return _to_aws_error(_error_without_body(answer), request)
    return MalformedResponse(f"it cannot be parsed ({type(error).__name__})")


def _was_answered_in_process(error: Exception) -> bool:
    """Tell whether a listener gave aiobotocore an answer that cannot be awaited."""
    frames = (frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__))
    is_of_kind = isinstance(error, AttributeError | TypeError)
    return is_of_kind and "convert_to_response_dict" in frames


def connection_failure(error: Exception, name: str | None = None) -> ConnectionFailed:
    """Return what to raise instead of an error that came instead of a whole answer.

    ``name`` is botocore's for it, if the error is botocore's; else it is of aiohttp.
    """
    if name is None:
        names = (name for kind, name in _CONNECTION_FAILURES.items() if isinstance(error, kind))
        name = next(names, "HTTPClientError")
        # Not by its class, which not all versions of aiohttp that aiobotocore allows have.
        if isinstance(error, aiohttp.ServerTimeoutError) and str(error).startswith("Connect"):
            name = "ConnectTimeoutError"
    cause, may_pass = _why_not_connected(error)
    return ConnectionFailed(name, cause=cause, may_pass=may_pass)


def _why_not_connected(error: Exception) -> tuple[str | None, bool]:
    """Return the cause in words, if it is one of those, and whether it may pass."""
    found: BaseException | None = error
    while found is not None:  # botocore's error came of aiohttp's, and that of the system's
        match found:
            case aiohttp.ClientConnectorCertificateError():
                why = getattr(found.certificate_error, "verify_message", "")
                return f"its certificate is not valid: {why}", False
            case socket.gaierror():
                # Where no name server answers it is another code.
                return "its name does not resolve", found.errno != socket.EAI_NONAME
            case ConnectionRefusedError():
                return "it refuses connections", True
        found = found.__cause__ or found.__context__
    return None, True


def credentials_failure(error: Exception) -> CredentialsFailed:
    """Return what to raise instead of an error that came before anything was sent to IVS Chat."""
    service, operation = _asked_of(error)
    may_pass = isinstance(error, _PASSING) and not isinstance(error, _LASTING)
    reason = type(error).__name__
    state: dict[str, Any] = {}
    if isinstance(error, botocore_errors.ClientError):
        operation = error.operation_name
        response: Mapping[str, Any] = error.response
        code = str(response.get("Error", {}).get("Code", "Unknown"))
        # What is quoted of a request would be a token of an identity provider's, or a signature's.
        quotes = "Signature" in code or "Validation" in code
        shown = redacted_response(response, quotes=quotes)
        status = int(shown["ResponseMetadata"].get("HTTPStatusCode", 0))
        may_pass = code in _PASSING_CODES or status == 429 or status >= 500
        reason = f"{code} ({status}): {shown['Error']['Message'] or 'no message'}"
        state = {"response": shown, "operation_name": operation}
    elif isinstance(error, botocore_errors.BotoCoreError):
        reason = f"{reason}: {error}"
        # Requests, answers and other errors among them hold more than is shown.
        kwargs = {key: each for key, each in error.kwargs.items() if isinstance(each, str | int)}
        state = {"kwargs": kwargs}
    # The messages of others may hold what they failed to read.
    kind = type(error) if state else Exception
    failure = _mixed_class(CredentialsFailed, kind)(reason, service, operation, may_pass=may_pass)
    vars(failure).update(state)
    return failure


def _asked_of(error: Exception) -> tuple[str | None, str | None]:
    """Return the service and the operation that an error comes from, by its traceback."""
    service = operation = None
    for frame, _ in walk_tb(error.__traceback__):
        client = frame.f_locals.get("self")
        if isinstance(client, BaseClient) and frame.f_code.co_name == "_make_api_call":
            service = client.meta.service_model.service_id
            operation = frame.f_locals["operation_name"]
    return (None, None) if service == "ivschat" else (service, operation)


def answer_date(metadata: Mapping[str, Any]) -> datetime | None:
    """Return the ``Date`` of an answer by its ``ResponseMetadata``, aware, if it has one."""
    return _parse_http_date(_header(metadata, "date"))


def _error_without_body(answer: Mapping[str, Any]) -> botocore_errors.ClientError:
    headers, status = answer["headers"], answer["status_code"]
    response: Any = {
        "Error": {"Code": str(status)},
        "ResponseMetadata": {
            "RequestId": headers.get("x-amzn-requestid"),
            "HTTPStatusCode": status,
            "HTTPHeaders": headers,
            "RetryAttempts": 0,
        },
    }
    return botocore_errors.ClientError(response, "CreateChatToken")


def _to_aws_error(error: botocore_errors.ClientError, request: TokenRequest) -> AwsError:
    response: Mapping[str, Any] = error.response
    metadata = response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    code = str(response.get("Error", {}).get("Code", ""))
    kind = _CLASS_BY_CODE.get(code) or _CLASS_BY_STATUS.get(status)
    if kind is None:
        kind = ServerFault if status >= 500 else AwsError
    # Validation messages quote values, signature errors the canonical request.
    quotes = kind is ValidationFailed or "Signature" in code
    resource = kind in (ResourceNotFound, Throttled)
    shown = redacted_response(response, request, quotes=quotes, resource=resource)
    translated = _mixed_class(kind, type(error))(shown)
    if code in _BAD_CREDENTIALS:
        translated.scope = "account"
    if isinstance(translated, Throttled | ServerFault):
        translated.retry_after = _parse_retry_after(metadata)
    return translated


def _mixed_class(kind: type[E], foreign: type[Exception]) -> type[E]:
    """Return a class that is caught as ours and as the session's own, such as
    ``client.exceptions.ResourceNotFoundException``."""
    if issubclass(kind, foreign):
        return kind
    mixed: type[E] | None = _mixed_classes.get((kind, foreign))
    if mixed is None:
        mixed = _mixed_classes[kind, foreign] = type(kind.__name__, (kind, foreign), {})
    return mixed


def _header(metadata: Mapping[str, Any], name: str) -> str:
    return str((metadata.get("HTTPHeaders") or {}).get(name, ""))


# Answers of the same second have the same date.
@lru_cache(maxsize=64)
def _parse_http_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _parse_retry_after(metadata: Mapping[str, Any]) -> float | None:
    # A number of seconds, or a date.
    text = _header(metadata, "retry-after").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _RETRY_AFTER_MAX_SECONDS)
    until, answered = _parse_http_date(text), answer_date(metadata)
    if until is None or answered is None:
        return None
    return min(max(0.0, (until - answered).total_seconds()), _RETRY_AFTER_MAX_SECONDS)
