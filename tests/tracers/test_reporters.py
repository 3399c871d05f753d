"""Real crash reporters, with their defaults, show nobody's secrets when a call fails."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from aioivschat import (
    AsyncTokenService,
    ChatToken,
    ChatTokenError,
    Quota,
    RetryPolicy,
    TokenRequest,
)
from support.canary import KEY, NAME, TOKEN, USER, heard_in
from support.raw_servers import http, raw_server
from support.services import ROOM, OpenService

pytestmark = [
    pytest.mark.tracers,
    pytest.mark.fault(43),
    pytest.mark.filterwarnings("ignore:'cgi':DeprecationWarning"),  # rollbar's, on Python 3.11
]

MEMBERS: dict[str, Any] = {
    "roomIdentifier": ROOM,
    "userId": USER,
    "capabilities": ["SEND_MESSAGE"],
    "attributes": {"displayName": NAME},
}
LONG = 5_000
"""Characters of a value that are shown: all there are."""


def _report_by_sentry(error: BaseException) -> str:
    import sentry_sdk
    from sentry_sdk.transport import Transport

    sent: list[str] = []

    class Kept(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            sent.extend(item.get_bytes().decode() for item in envelope.items)

    with sentry_sdk.isolation_scope() as scope:
        scope.set_client(sentry_sdk.Client(dsn="http://a@127.0.0.1:9/1", transport=Kept))
        sentry_sdk.capture_exception(error)
    return "".join(sent)


def _report_by_elastic(error: BaseException) -> str:
    from elasticapm.utils import json_encoder, varmap
    from elasticapm.utils.encoding import shorten
    from elasticapm.utils.stacks import get_stack_info, iter_traceback_frames

    def shorten_all(values: Any) -> Any:
        return varmap(lambda _, value: shorten(value, string_length=LONG), values)

    frames = iter_traceback_frames(error.__traceback__)
    shown = get_stack_info(frames, with_locals=True, locals_processor_func=shorten_all)
    return str(json_encoder.dumps(shown))


def _report_by_rollbar(error: BaseException) -> str:
    import rollbar

    shown = {**rollbar.SETTINGS["locals"], "safe_repr": False}
    sent: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollbar, "_initialized", False)
        patch.setattr(rollbar, "send_payload", lambda payload, _: sent.append(repr(payload)))
        rollbar.init("0" * 32, "test", handler="blocking", locals=shown)
        rollbar.report_exc_info((type(error), error, error.__traceback__))
    return "".join(sent)


def _report_by_rich(error: BaseException) -> str:
    from rich.console import Console
    from rich.traceback import Traceback

    written = io.StringIO()
    kind, traceback = type(error), error.__traceback__
    shown = Traceback.from_exception(kind, error, traceback, show_locals=True)
    Console(file=written, width=500).print(shown)
    return written.getvalue()


def _report_by_stackprinter(error: BaseException) -> str:
    import stackprinter

    # Every name and attribute in the source of a frame, evaluated.
    return str(stackprinter.format(error, source_lines="all", truncate_vals=LONG))


REPORTERS: dict[str, Callable[[BaseException], str]] = {
    "sentry": _report_by_sentry,
    "elastic": _report_by_elastic,
    "rollbar": _report_by_rollbar,
    "rich": _report_by_rich,
    "stackprinter": _report_by_stackprinter,
}


def _request() -> TokenRequest:
    return TokenRequest(ROOM, USER, ["SEND_MESSAGE"], {"displayName": NAME})


Call = Callable[[AsyncTokenService], Coroutine[Any, Any, object]]
CALLS: dict[str, Call] = {
    "plain": lambda service: service.issue(_request()),
    "with a key": lambda service: service.issue(_request(), idempotency_key=KEY),
    "in time": lambda service: service.issue(_request(), idempotency_key=KEY, timeout=20.0),
    "too late": lambda service: service.issue(_request(), idempotency_key=KEY, timeout=1e-9),
    "by boto3's name": lambda service: service.create_chat_token(**MEMBERS, idempotency_key=KEY),
    "a bad timeout": lambda service: service.issue(_request(), timeout=-1.0),
    "a bad key": lambda service: service.issue(_request(), idempotency_key=KEY * 99),
    "a bad user": lambda service: service.create_chat_token(**MEMBERS | {"userId": USER * 99}),
}
ANSWERS = {
    "throttled": http(b'{"message":"Rate exceeded"}', status="429 Slow"),
    "malformed": http(json.dumps({"token": TOKEN}).encode()),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("report", REPORTERS.values(), ids=REPORTERS)
async def test_a_reporter_shows_no_secret_of_a_failed_call(
    open_service: OpenService,
    report: Callable[[BaseException], str],
    call: Call,
    answer: bytes,
) -> None:
    """The frames of the library are in its report, and what they are about is not."""
    async with raw_server(answer, successes_first=1) as server:
        service = open_service(
            endpoint_url=server.url,
            quota=Quota(rate=1000.0),
            retry=RetryPolicy(max_attempts=2, base_delay=0.001, max_delay=0.001),
        )
        await service.issue(TokenRequest(ROOM, "first"), fresh=True)
        with pytest.raises(ChatTokenError) as caught:
            await call(service)
        # Not the frame of this test: what a caller has in its own is its own.
        traceback = caught.value.__traceback__
        assert traceback is not None
        told = report(caught.value.with_traceback(traceback.tb_next))
        assert "AsyncTokenService" in told
        assert [] == heard_in(told)


@pytest.mark.parametrize("report", REPORTERS.values(), ids=REPORTERS)
def test_a_reporter_shows_no_secret_of_a_value_that_a_caller_has(
    report: Callable[[BaseException], str],
) -> None:
    """Of a request, a token and an identity in locals, within collections too."""

    def fail(request: TokenRequest, token: ChatToken) -> None:
        within = {"all": [request, (token, {request.identity: token})]}
        raise LookupError(len(within))

    with pytest.raises(LookupError) as caught:
        fail(_request(), ChatToken(TOKEN, *[None] * 2))  # type: ignore[arg-type]  # of no interest
    assert caught.value.__traceback__ is not None
    told = report(caught.value.with_traceback(caught.value.__traceback__.tb_next))
    assert "within" in told
    assert [] == heard_in(told)


@pytest.mark.parametrize("report", REPORTERS.values(), ids=REPORTERS)
def test_a_reporter_would_show_what_is_not_hidden(report: Callable[[BaseException], str]) -> None:
    """A token in a dict: it does walk values."""

    def fail() -> None:
        within = {"all": ["".join(("canary", "-token-4Kf2Wb9x"))]}
        raise LookupError(len(within))

    with pytest.raises(LookupError) as caught:
        fail()
    assert heard_in(report(caught.value))


def test_sentry_shows_no_token_of_a_reply() -> None:
    """Which is a dict, as boto3's is: other reporters that walk one do find its token."""

    def fail(reply: dict[str, Any]) -> None:
        raise LookupError(len([reply]))

    with pytest.raises(LookupError) as caught:
        fail(ChatToken(TOKEN, *[None] * 2).reply())  # type: ignore[arg-type]  # of no interest
    told = _report_by_sentry(caught.value)
    assert "redacted" in told
    assert [] == heard_in(told)
