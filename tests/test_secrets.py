"""Tokens, user ids, attributes and credentials show up nowhere."""

from __future__ import annotations

import asyncio
import io
import logging
import pickle
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from aiobotocore.session import AioSession
from botocore.exceptions import ClientError

from aioivschat import (
    AsyncTokenService,
    ChatTokenError,
    Event,
    InvalidRequest,
    LoggingObserver,
    RetryPolicy,
    TokenRequest,
)
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from conftest import ROOM, UNLIMITED, outcomes

USER = "canary-user-7Qd1"
NAME = "canary-name-Zx93"
SECRET = "canary-secret-5Rt8"  # a secret access key of our own making
KEY = "canary-key-0Pw2"  # an idempotency key
CANARIES = (USER, NAME, SECRET, KEY)

pytestmark = pytest.mark.fault(30)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that any logger writes, with the root at DEBUG."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def events() -> list[Event]:
    """Every event that observers are told."""
    return []


@pytest.fixture
def service(ivschat_emulator: ThreadedEmulatorServer, events: list[Event]) -> AsyncTokenService:
    """A service with canaries for credentials, watched in every way it can be."""
    session = AioSession()
    session.set_credentials("canary-id", SECRET, "canary-session-3Lm6")
    return AsyncTokenService(
        session=session,
        endpoint_url=ivschat_emulator.url,
        quota=UNLIMITED,
        retry=RetryPolicy(max_attempts=2, base_delay=0.001, max_delay=0.001),
        observers=[events.append, LoggingObserver()],
    )


def _request() -> TokenRequest:
    return TokenRequest(ROOM, USER, ["SEND_MESSAGE"], {"displayName": NAME})


def _own_frames(error: BaseException) -> str:
    """Render an error with its chain and locals, leaving out the frames of this file."""
    text: list[str] = []
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        pending += [current.__cause__, current.__context__]
        text += [repr(current), str(current), repr(current.args), repr(vars(current))]
        rendered = traceback.TracebackException.from_exception(current, capture_locals=True)
        for frame in rendered.stack:
            if frame.filename != __file__:
                text.append(f"{frame.filename}:{frame.lineno} {frame.locals}")
    return "\n".join(text)


def _assert_clean(*texts: str, tokens: tuple[str, ...] = ()) -> None:
    for text in texts:
        for canary in (*CANARIES, *tokens):
            assert canary not in text


async def test_success_shows_nothing(
    service: AsyncTokenService, log: io.StringIO, events: list[Event]
) -> None:
    """In logs at DEBUG, botocore's included, events, reprs, task reprs, formats and pickles."""
    async with service:
        token_task = asyncio.create_task(service.issue(_request(), idempotency_key=KEY))
        reply_task = asyncio.create_task(
            service.create_chat_token(
                roomIdentifier=ROOM, userId=USER, attributes={"displayName": NAME}
            )
        )
        token, reply = await token_task, await reply_task
        await service.issue(_request(), idempotency_key=KEY)
        await service.prewarm([_request()])
        service.invalidate(user=USER, room=ROOM)
        shown = [
            repr(value)
            for value in (token, reply, token_task, reply_task, service, service.stats(), events)
        ]
        shown += [str(token), f"{token}", f"{reply}", f"{reply!s}", f"{reply}"]
        shown += [repr(_request()), str(_request()), repr(_request().identity)]
        request = _request()
        for secret in (token, reply, request, request.identity):
            with pytest.raises(TypeError):
                pickle.dumps(secret)
    secrets = (token.token, reply["token"])
    assert events
    _assert_clean(log.getvalue(), *shown, tokens=secrets)
    # The log is not silent for lack of a logger.
    assert "Minted" in log.getvalue()


@pytest.mark.parametrize("kind", [kind for kind in FaultKind if kind != FaultKind.BLACK_HOLE])
async def test_no_failure_shows_anything(
    service: AsyncTokenService,
    ivschat_emulator: ThreadedEmulatorServer,
    log: io.StringIO,
    events: list[Event],
    kind: FaultKind,
) -> None:
    """Whatever goes wrong, in whichever call: no error, chain, frame, event or log has it."""
    ivschat_emulator.emulator.fail_next(Fault(kind, times=None))
    async with service:
        results = await outcomes(
            service.issue(_request()),
            service.issue(_request()),
            service.issue(_request(), fresh=True),
            service.issue(_request(), idempotency_key=KEY, timeout=30.0),
            service.create_chat_token(
                roomIdentifier=ROOM, userId=USER, attributes={"displayName": NAME}
            ),
        )
        prewarmed = await service.prewarm([_request()])
    for result in results:
        assert (kind == FaultKind.SLOW) != isinstance(result, ChatTokenError)
        if isinstance(result, ChatTokenError):
            _assert_clean(_own_frames(result), repr(pickle.loads(pickle.dumps(result))))
            _assert_clean(pickle.dumps(result).decode("latin-1"))
            if isinstance(result, ClientError):
                _assert_clean(repr(result.response))
    _assert_clean(log.getvalue(), repr(events), repr(prewarmed))


@pytest.mark.parametrize(
    "broken",
    [
        {"userId": USER * 20},
        {"userId": f"{USER}\ud800"},
        {"attributes": {NAME: "x" * 2000}},
        {"attributes": {NAME: 5}},
        {"attributes": {"x": f"{NAME}\ud800"}},
        {"attributes": [NAME]},
        {"capabilities": ["ROOT"]},
        {"roomIdentifier": USER},
        {"sessionDurationInMinutes": 999},
        {"idempotency_key": KEY * 100},
    ],
    ids=lambda broken: next(iter(broken)),
)
async def test_no_refusal_shows_anything(
    service: AsyncTokenService, log: io.StringIO, broken: dict[str, Any]
) -> None:
    """A bad argument is described, not quoted, also in tracebacks that show locals."""
    call: dict[str, Any] = {
        "roomIdentifier": ROOM,
        "userId": USER,
        "attributes": {"displayName": NAME},
        "idempotency_key": KEY,
    }
    async with service:
        with pytest.raises(InvalidRequest) as caught:
            await service.create_chat_token(**(call | broken))
    _assert_clean(_own_frames(caught.value), log.getvalue())


async def test_a_cancelled_call_and_a_closed_service_show_nothing(
    service: AsyncTokenService, ivschat_emulator: ThreadedEmulatorServer, log: io.StringIO
) -> None:
    """Cancellation, deadline and closing leave no trace of whom they hit."""
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.BLACK_HOLE, times=None))
    async with service:
        cancelled = asyncio.create_task(service.issue(_request()))
        ended = asyncio.create_task(service.issue(_request(), timeout=0.3))
        left = asyncio.create_task(service.issue(_request(), idempotency_key=KEY))
        await asyncio.sleep(0.2)
        shown = [repr(task) for task in asyncio.all_tasks() if "test_" not in repr(task)]
        assert shown
        cancelled.cancel()
        late = (await outcomes(ended))[0]
        await service.aclose(grace=0.0)
        results = [late, *await outcomes(cancelled, left)]
    for result in results:
        assert isinstance(result, BaseException)
        _assert_clean(_own_frames(result))
    _assert_clean(log.getvalue(), *shown)


async def test_asyncio_debug_mode_shows_nothing(
    service: AsyncTokenService, log: io.StringIO
) -> None:
    """Its log lines about slow callbacks show tasks and handles."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0
    async with service:
        reply = await service.create_chat_token(roomIdentifier=ROOM, userId=USER)
    loop.set_debug(False)
    assert "Executing" in log.getvalue()
    _assert_clean(log.getvalue(), tokens=(reply["token"],))
