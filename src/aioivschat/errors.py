"""What can go wrong, as one tree.

::

    ChatTokenError
    ├── InvalidRequest            a member of the request breaks a limit; raised before any I/O
    ├── InvalidConfiguration      an option cannot work; raised at construction or at first use
    ├── Overloaded                cannot be served in time; nothing was sent
    ├── DeadlineExceeded          the caller's time ran out (also a TimeoutError)
    ├── ServiceClosed             the service is closing or closed
    ├── Interrupted               somebody cancelled the work that the call waited for
    ├── WrongLoop                 the service belongs to another event loop, thread or process
    ├── CredentialsFailed         there is nothing to sign with; nothing was sent to IVS Chat
    ├── ConnectionFailed          no whole answer came from AWS
    ├── MalformedResponse         an answer came that no token can be taken from
    └── AwsError                  AWS refused (also a botocore ClientError)
        ├── AccessDenied          403, or a bad signature or expired credentials
        ├── PendingVerification   403, the account is not verified yet
        ├── ResourceNotFound      404, no such room
        ├── ValidationFailed      400
        ├── Throttled             429, the quota of the account and region is used up
        └── ServerFault           5xx

Each says whom it concerns, by its ``scope``: whoever shares that would fail in the same way. No
message holds a token, a user id, an attribute or a credential.
"""

from __future__ import annotations

import copy
import math
from numbers import Real
from typing import Any, Literal, TypeVar

from botocore.exceptions import ClientError

E = TypeVar("E", bound=BaseException)

Scope = Literal["request", "user", "room", "account", "service"]
"""Whom an error concerns, from the fewest to all; the service is IVS Chat, or this one of it."""


class ChatTokenError(Exception):
    """The root of every error that the library raises on its own account.

    Attributes:
        scope: whom the error concerns.
        may_pass: whether the very same may succeed in a moment, so that the library itself tries
            again before it raises the error.
    """

    scope: Scope = "request"
    may_pass: bool = False

    # Constructors take what describes the fault, not a message, so copies (every caller of a flight
    # gets its own) and pickles are made from args and attributes without calling them.

    def __copy__(self) -> ChatTokenError:
        return _rebuild(type(self), self.args, self.__dict__)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._portable_type(), self.args, self.__dict__)

    @classmethod
    def _portable_type(cls) -> type[ChatTokenError]:
        return cls


def _rebuild(
    kind: type[ChatTokenError], args: tuple[object, ...], state: dict[str, object]
) -> ChatTokenError:
    error = kind.__new__(kind, *args)
    error.args = args  # OSError, the base of some, sets them in __init__, not in __new__
    error.__dict__.update(state)
    return error


def own_copy(error: E) -> E:
    """Return a copy of an error, or the error itself if its class cannot be copied.

    One object raised in many tasks would gather all their tracebacks.
    """
    try:
        return copy.copy(error)
    except Exception:
        return error


class InvalidRequest(ChatTokenError, ValueError):
    """A member of the request breaks a limit of the API.

    Args:
        member: the member's name in the API, such as ``userId``.
        limit: what is allowed, in words.
        found: what was found, in words that do not show a sensitive value.
        scope: whom it concerns.
    """

    def __init__(self, member: str, limit: str, found: str, scope: Scope = "request") -> None:
        super().__init__(f"{member}: must be {limit}; found {found}")
        self.member = member
        self.limit = limit
        self.scope = scope


class InvalidConfiguration(ChatTokenError, ValueError):
    """An option of the service cannot work.

    Args:
        option: the option's name, such as ``CachePolicy.min_remaining``.
        limit: what is allowed, in words.
        found: what was found, in words.
    """

    scope: Scope = "service"

    def __init__(self, option: str, limit: str, found: object) -> None:
        super().__init__(f"{option}: must be {limit}; found {found}")
        self.option = option
        self.limit = limit


def require(holds: bool, option: str, limit: str, found: object) -> None:
    """Raise :class:`InvalidConfiguration`, with the same arguments, unless ``holds`` is true."""
    if not holds:
        raise InvalidConfiguration(option, limit, found)


def as_number(value: object) -> float:
    """Return a real number as a float, perhaps infinite; NaN for anything else, a flag too."""
    if type(value) is bool or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # of hundreds of digits
        return -math.inf if value < 0 else math.inf


def describe_number(value: object) -> str:
    """Return what stands in place of a number: as text, or its type if it is none."""
    if type(value) is bool or not isinstance(value, Real):
        return type(value).__name__
    # Python refuses to print thousands of digits.
    number = as_number(value)
    return f"{value if math.isfinite(number) else number}"


def require_number(
    option: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    unit: str = "",
    whole: bool = False,
) -> None:
    """Raise :class:`InvalidConfiguration` unless an option is a finite number within its limits."""
    number = as_number(value)
    fits = math.isfinite(number) and least <= number <= most and above < number < below
    if fits and (number.is_integer() or not whole):
        return
    if math.isfinite(least) and math.isfinite(most):
        limit = f"{least:,.12g} to {most:,.12g}{unit}"
    else:
        bounds = (("at least", least), ("above", above), ("at most", most), ("below", below))
        limit = " and ".join(f"{word} {end:,g}{unit}" for word, end in bounds if math.isfinite(end))
    if not math.isfinite(number) or (whole and not number.is_integer()):
        limit = f"a {'whole' if whole else 'finite'} number, {limit}"
    raise InvalidConfiguration(option, limit, describe_number(value))


class Overloaded(ChatTokenError):
    """The call cannot be served in time, so it is refused at once and nothing was sent.

    Args:
        reason: why, in words.
        retry_after: seconds after which a new call has a chance.
    """

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(f"{reason}; try again in {retry_after:.1f} s")
        self.retry_after = retry_after


class DeadlineExceeded(ChatTokenError, TimeoutError):
    """The caller's ``timeout`` ran out before a token came.

    Args:
        timeout: the caller's limit in seconds.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__(f"no token within {timeout:g} s")
        self.timeout = timeout


class ServiceClosed(ChatTokenError, RuntimeError):
    """The service is closing or closed; open a new one."""

    scope: Scope = "service"

    def __init__(self) -> None:
        super().__init__("the token service is closed")


class Interrupted(ChatTokenError, RuntimeError):
    """Somebody cancelled the task that the call waited for, and neither the call nor the service.

    To cancel ``asyncio.all_tasks()`` does that. The service may be asked again.

    Args:
        work: what the task did, in words.
    """

    scope: Scope = "service"

    def __init__(self, work: str) -> None:
        super().__init__(f"{work} was cancelled from outside, by no caller; ask again")


class WrongLoop(ChatTokenError, RuntimeError):
    """The service is used on another event loop, thread or process than it was opened in.

    Args:
        where: ``event loop``, ``thread`` or ``process``.
    """

    scope: Scope = "service"

    def __init__(self, where: str) -> None:
        advice = "open one in each"
        if where == "thread":
            advice = "call it from async code, or by asyncio.run_coroutine_threadsafe"
        super().__init__(f"the token service belongs to another {where}; {advice}")


class CredentialsFailed(ChatTokenError):
    """There are no credentials to sign with: nothing was sent to IVS Chat, and no quota was spent.

    An instance is also of the class of botocore's error that it comes from, so that
    ``except NoCredentialsError`` catches it, and, if another service refused them, ``ClientError``.

    Args:
        reason: what went wrong, in words.
        service: who was asked for them, such as ``STS``; ``None`` if nobody was.
        operation: for what, such as ``AssumeRole``.
        may_pass: as for every error.
    """

    scope: Scope = "account"

    def __init__(
        self,
        reason: str,
        service: str | None = None,
        operation: str | None = None,
        *,
        may_pass: bool = False,
    ) -> None:
        asked = f"{operation} of {service}: " if service else ""
        text = f"{asked}{reason} (there are no credentials to sign CreateChatToken with)"
        # Not by super(): the next class may be botocore's, which is made of something else.
        Exception.__init__(self, text)
        self.reason = reason
        self.service = service
        self.operation = operation
        self.may_pass = may_pass

    @classmethod
    def _portable_type(cls) -> type[ChatTokenError]:
        return CredentialsFailed  # the others are made at run time


class ConnectionFailed(ChatTokenError, ConnectionError):
    """No whole answer came: refused, reset, timed out, or a TLS failure.

    Args:
        reason: the name of the underlying error's class.
        region: that was asked.
        host: that did not answer.
        cause: why there is no connection, in words, if that is known.
        may_pass: as for every error.
    """

    scope: Scope = "service"

    def __init__(
        self,
        reason: str,
        region: str | None = None,
        host: str | None = None,
        cause: str | None = None,
        *,
        may_pass: bool = True,
    ) -> None:
        where = f" in {region}, at {host}" if region else ""
        why = f"{reason}: {cause}" if cause else reason
        super().__init__(f"no answer from IVS Chat{where} ({why})")
        self.reason = reason
        self.region = region
        self.host = host
        self.cause = cause
        self.may_pass = may_pass


class MalformedResponse(ChatTokenError):
    """AWS answered with success but without a usable token.

    Args:
        problem: what is wrong with the answer.
        request_id: AWS's id of the request, if it came.
    """

    scope: Scope = "service"
    may_pass = True

    def __init__(self, problem: str, request_id: str | None = None) -> None:
        super().__init__(f"unusable answer from IVS Chat: {problem} (request id {request_id})")
        self.problem = problem
        self.request_id = request_id


class AwsError(ChatTokenError, ClientError):
    """AWS refused the request.

    An instance is also of the class that the session's clients raise, so that
    ``except client.exceptions.ResourceNotFoundException`` and
    ``except botocore.exceptions.ClientError`` catch it as they would with boto3.

    Attributes:
        code: AWS's error code, such as ``ThrottlingException``.
        status: the HTTP status.
        request_id: AWS's id of the request, if it came.
        response: the parsed answer, as botocore gives it, without anything sensitive.
        operation_name: ``CreateChatToken``.
        clock_corrected: whether AWS refused the time of signing, by this host's clock, and requests
            are signed by AWS's clock from now on.
    """

    clock_corrected: bool = False
    response: Any  # botocore's parsed answer, a TypedDict of the stubs
    operation_name: str

    def __init__(self, response: Any, operation_name: str = "CreateChatToken") -> None:
        error = response.get("Error", {})
        metadata = response.get("ResponseMetadata", {})
        self.code: str = str(error.get("Code", "Unknown"))
        self.status: int = int(metadata.get("HTTPStatusCode", 0))
        self.request_id: str | None = metadata.get("RequestId")
        self.response = response
        self.operation_name = operation_name
        super(ClientError, self).__init__(
            f"{operation_name}: {self.code} ({self.status}): "
            f"{error.get('Message') or 'no message'} (request id {self.request_id})"
        )

    @classmethod
    def _portable_type(cls) -> type[ChatTokenError]:
        # A class mixed with a session's is made at run time, so no pickle could import it.
        return next(
            base
            for base in cls.__mro__
            if issubclass(base, AwsError) and base.__module__ == __name__
        )


class AccessDenied(AwsError):
    """The credentials do not allow ``ivschat:CreateChatToken`` on the room, or are not valid.

    Its scope is the room, or the account if AWS does not take the credentials as such: expired,
    unknown, or no match for the signature.
    """

    scope: Scope = "room"


class PendingVerification(AwsError):
    """The AWS account is still being verified."""

    scope: Scope = "account"


class ResourceNotFound(AwsError):
    """There is no such room in the account and region."""

    scope: Scope = "room"


class ValidationFailed(AwsError):
    """AWS found the request invalid."""


class Throttled(AwsError):
    """The quota of the account and region is used up.

    Attributes:
        retry_after: seconds the server asked to wait, if it did; 10 at most.
    """

    scope: Scope = "account"
    may_pass = True
    retry_after: float | None = None


class ServerFault(AwsError):
    """AWS failed (5xx).

    Attributes:
        retry_after: seconds the server asked to wait, if it did; 10 at most.
    """

    scope: Scope = "service"
    may_pass = True
    retry_after: float | None = None


class Exceptions:
    """The errors of ``CreateChatToken`` under the names that boto3's ``client.exceptions`` has."""

    ClientError = ClientError
    AccessDeniedException = AccessDenied
    InternalServerException = ServerFault
    PendingVerification = PendingVerification
    ResourceNotFoundException = ResourceNotFound
    ThrottlingException = Throttled
    ValidationException = ValidationFailed
