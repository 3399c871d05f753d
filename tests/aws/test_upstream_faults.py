"""What a caller gets when AWS refuses, answers wrongly, or does not answer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiobotocore.credentials import AioRefreshableCredentials
from aiobotocore.session import AioSession

from aioivschat import (
    AccessDenied,
    AsyncTokenService,
    ConnectionFailed,
    DeadlineExceeded,
    Event,
    MalformedResponse,
    Overloaded,
    PendingVerification,
    PoolPolicy,
    Quota,
    Retrying,
    RetryPolicy,
    ServerFault,
    Throttled,
    TokenRequest,
    ValidationFailed,
)
from aioivschat.emulator import Emulator, Fault, FaultKind, ThreadedEmulatorServer
from support.raw_servers import BODY, http, raw_server
from support.services import ROOM, UNLIMITED, OpenService, local_session, outcomes, until
from support.virtual import VirtualClock

REQUEST = TokenRequest(ROOM, "u")
QUICK = RetryPolicy(max_attempts=4, base_delay=0.001, max_delay=0.001)


@pytest.fixture
def emulator(ivschat_emulator: ThreadedEmulatorServer) -> Emulator:
    """The model of the emulator that is served."""
    return ivschat_emulator.emulator


@pytest.mark.fault(9)
@pytest.mark.parametrize("mode", ["legacy", "standard", "adaptive"])
async def test_a_lasting_throttle_costs_the_policys_requests(
    emulator: Emulator,
    open_service: OpenService,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    """``max_attempts`` requests: botocore adds no retries, whatever ``AWS_RETRY_MODE`` says."""
    monkeypatch.setenv("AWS_RETRY_MODE", mode)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    emulator.fail_next(Fault(FaultKind.THROTTLE_JSON, times=None))
    tokens = open_service(retry=QUICK)
    with pytest.raises(Throttled) as caught:
        await tokens.issue(REQUEST)
    assert ("ThrottlingException", 429) == (caught.value.code, caught.value.status)
    assert (4, 4) == (emulator.counts().requests, tokens.stats().requests)
    assert 4 == tokens.stats().throttled


@pytest.mark.fault(9)
async def test_a_retry_needs_a_permit(emulator: Emulator, open_service: OpenService) -> None:
    """A retry that may be sent at once waits for a known bucket: here for a hundred seconds."""
    emulator.fail_next(Fault(FaultKind.THROTTLE_JSON, times=None))
    tokens = open_service(quota=Quota(rate=0.01, burst=1), retry=QUICK)
    call = asyncio.create_task(tokens.issue(REQUEST))
    await until(lambda: tokens.stats().waiting == 1)
    assert (1, 1) == (emulator.counts().requests, tokens.stats().throttled)
    call.cancel()
    await outcomes(call)


@pytest.mark.fault(10)
@pytest.mark.parametrize(
    "kind",
    [
        FaultKind.TRUNCATE,
        FaultKind.EMPTY_OBJECT,
        FaultKind.MISSING_TOKEN,
        FaultKind.MISSING_EXPIRY,
        FaultKind.NAIVE_EXPIRY,
        FaultKind.PAST_EXPIRY,
        FaultKind.GARBAGE,
    ],
)
async def test_a_malformed_answer_is_an_error_and_never_kept(
    emulator: Emulator, open_service: OpenService, kind: FaultKind
) -> None:
    """botocore accepts such answers. Here they are retried and raised as ``MalformedResponse``."""
    emulator.fail_next(Fault(kind, times=4))
    tokens = open_service(retry=QUICK)
    with pytest.raises(MalformedResponse):
        await tokens.issue(REQUEST)
    assert 4 == emulator.counts().requests
    stats = tokens.stats()
    assert (0, 0, 0) == (stats.tokens_held, stats.stock_held, stats.minted)
    emulator.fail_next(Fault(kind))
    assert (await tokens.issue(REQUEST)).token
    assert 6 == emulator.counts().requests


@pytest.mark.fault(10)
@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        (b'"token":"t"', b'"token":""', "no token"),
        (b"T11:00:00", b"T09:59:59", "sessionExpirationTime is past"),
    ],
    ids=["empty token", "session over"],
)
async def test_a_token_that_connects_to_nothing_is_malformed(
    open_service: OpenService, right: bytes, wrong: bytes, problem: str
) -> None:
    """An answer with an empty token or an expired session is ``MalformedResponse``."""
    async with raw_server(http(BODY.replace(right, wrong))) as server:
        tokens = open_service(endpoint_url=server.url, retry=RetryPolicy(max_attempts=1))
        with pytest.raises(MalformedResponse, match=problem):
            await tokens.issue(REQUEST)


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    "kind", [FaultKind.THROTTLE_JSON, FaultKind.THROTTLE_HTML, FaultKind.THROTTLE_EMPTY]
)
async def test_a_429_is_throttling_whatever_its_body(
    emulator: Emulator, open_service: OpenService, kind: FaultKind
) -> None:
    """A 429 with JSON, HTML or no body is counted as throttled and retried."""
    emulator.fail_next(Fault(kind, times=2))
    tokens = open_service(retry=QUICK)
    assert (await tokens.issue(REQUEST)).token
    assert (3, 2) == (tokens.stats().requests, tokens.stats().throttled)


@pytest.mark.fault(11)
async def test_retry_after_is_honoured(emulator: Emulator, open_service: OpenService) -> None:
    """The delay is what ``Retry-After`` asks for, far above the policy's own."""
    delays: list[float] = []

    def observer(event: Event) -> None:
        if isinstance(event, Retrying):
            delays.append(event.delay)

    emulator.fail_next(Fault(FaultKind.THROTTLE_JSON, retry_after="1"))
    tokens = open_service(retry=QUICK, observers=[observer])
    await tokens.issue(REQUEST)
    assert [1.0] == delays
    first, second = emulator.arrivals
    assert second - first >= 1.0


@pytest.mark.fault(11)
@pytest.mark.parametrize("retry_after", ["3600", "Fri, 31 Dec 2100 23:59:59 GMT"])
async def test_a_retry_after_beyond_the_deadline_ends_the_call_at_once(
    emulator: Emulator, open_service: OpenService, retry_after: str
) -> None:
    """The call ends with ``Throttled`` at once if it cannot be retried before its deadline."""
    emulator.fail_next(Fault(FaultKind.THROTTLE_EMPTY, times=None, retry_after=retry_after))
    tokens = open_service()
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(Throttled) as caught:
        await tokens.issue(REQUEST, timeout=9.0)
    assert loop.time() - started < 8.0
    assert 10.0 == caught.value.retry_after  # no more is believed
    assert 1 == emulator.counts().requests


@pytest.mark.fault(11)
@pytest.mark.parametrize("retry_after", ["soon", "-5", ""])
async def test_a_senseless_retry_after_is_ignored(
    emulator: Emulator, open_service: OpenService, retry_after: str
) -> None:
    """With a ``Retry-After`` that is no time, the policy's own delay holds."""
    emulator.fail_next(Fault(FaultKind.THROTTLE_JSON, retry_after=retry_after))
    assert (await open_service(retry=QUICK).issue(REQUEST)).token


@pytest.mark.fault(12)
async def test_a_reset_on_an_idle_connection_costs_one_more_request(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """A call succeeds though the server has reset the pooled connection since the last one."""
    tokens = open_service(retry=QUICK)
    await tokens.issue(REQUEST)
    ivschat_emulator.reset_connections()
    await tokens.issue(TokenRequest(ROOM, "other"))
    assert ivschat_emulator.emulator.counts().requests <= 3


@pytest.mark.fault(12)
async def test_a_request_whose_connection_breaks_is_retried(
    emulator: Emulator, open_service: OpenService
) -> None:
    """After a reset without an answer the retry succeeds; if all fail: ``ConnectionFailed``."""
    emulator.fail_next(Fault(FaultKind.RESET))
    tokens = open_service(retry=QUICK)
    await tokens.issue(REQUEST)
    emulator.fail_next(Fault(FaultKind.RESET, times=None))
    with pytest.raises(ConnectionFailed):
        await tokens.issue(TokenRequest(ROOM, "other"))
    assert 2 + 4 == tokens.stats().requests


@pytest.mark.fault(13)
async def test_in_a_black_hole_all_callers_end_by_their_deadline(
    emulator: Emulator, open_service: OpenService
) -> None:
    """Four callers of one connection all end: waiting for a connection counts as well."""
    emulator.fail_next(Fault(FaultKind.BLACK_HOLE, times=None))
    tokens = open_service(pool=PoolPolicy(max_connections=1, read_timeout=60.0))
    loop = asyncio.get_running_loop()
    started = loop.time()
    got = await outcomes(
        *(tokens.issue(TokenRequest(ROOM, f"u{number}"), timeout=0.5) for number in range(4))
    )
    # The longer the first one takes, the longer those behind it have to expect to wait.
    kinds = {type(error) for error in got}
    assert {DeadlineExceeded} <= kinds <= {DeadlineExceeded, Overloaded}
    # Far from the read timeout; how far from the deadline depends on the machine.
    assert loop.time() - started < 10.0
    assert isinstance(got[0], TimeoutError)


class _IdleSelector(selectors.DefaultSelector):
    """A selector of real connections; if none is ready, time jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout is not None:
            self.now += max(0.0, timeout)
        return ready


class _IdleLoop(asyncio.SelectorEventLoop):
    """A loop for real servers whose time passes only while the loop is idle."""

    def __init__(self) -> None:
        self._idle = _IdleSelector()
        super().__init__(self._idle)

    def time(self) -> float:
        return self._idle.now


async def _wait_busily(condition: Callable[[], bool]) -> None:
    """Wait for real servers without being idle, so that no time passes."""
    while not condition():
        await asyncio.sleep(0)


@pytest.mark.fault(13)
@pytest.mark.parametrize("prepared", [True, False])
def test_in_a_black_hole_no_caller_is_late(
    ivschat_emulator: ThreadedEmulatorServer, prepared: bool
) -> None:
    """Four callers of one connection end within 100 ms of their deadline, by the loop's time."""
    emulator = ivschat_emulator.emulator

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncTokenService(
            session=local_session(),
            endpoint_url=ivschat_emulator.url,
            quota=UNLIMITED,
            clock=VirtualClock(),
            pool=PoolPolicy(max_connections=1, read_timeout=60.0, prepared=prepared),
        ) as tokens:
            for number in range(2):
                warm = asyncio.create_task(tokens.issue(TokenRequest(ROOM, f"warm-{number}")))
                await _wait_busily(warm.done)
            emulator.fail_next(Fault(FaultKind.BLACK_HOLE, times=None))
            started, ended = loop.time(), []
            calls = [
                asyncio.create_task(tokens.issue(TokenRequest(ROOM, f"u{number}"), timeout=0.5))
                for number in range(4)
            ]
            for call in calls:
                call.add_done_callback(lambda _: ended.append(loop.time() - started))
            await _wait_busily(lambda: emulator.counts().requests == 3)
            assert [] == ended
            got = await outcomes(*calls)
            assert [DeadlineExceeded] * 4 == [type(error) for error in got]
            assert all(0.5 <= seconds <= 0.6 for seconds in ended)
            assert 3 == emulator.counts().requests

    loop = _IdleLoop()
    try:
        loop.run_until_complete(main())
        # No Runner: it waits for threads by the loop's time, which would jump ahead of them.
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


class _Refreshing:
    """A source of temporary credentials that counts how often they are renewed."""

    def __init__(self) -> None:
        self.refreshes = 0

    def metadata(self, life: float) -> dict[str, Any]:
        expiry = datetime.now(UTC) + timedelta(seconds=life)
        return {
            "access_key": "testing",
            "secret_key": "testing",
            "token": "session token",
            "expiry_time": expiry.isoformat(),
        }

    async def renew(self) -> dict[str, Any]:
        self.refreshes += 1
        await asyncio.sleep(0.05)
        return self.metadata(3600.0)


@pytest.mark.fault(14)
async def test_expiring_credentials_are_renewed_once_under_many_callers(
    emulator: Emulator, open_service: OpenService
) -> None:
    """100 concurrent callers cause one refresh, and each gets a token."""
    source = _Refreshing()
    session: Any = AioSession()
    session._credentials = AioRefreshableCredentials.create_from_metadata(
        source.metadata(1.0), refresh_using=source.renew, method="test"
    )
    tokens = open_service(session=session)
    await asyncio.gather(*(tokens.issue(TokenRequest(ROOM, f"u{n}")) for n in range(100)))
    assert (1, 100) == (source.refreshes, emulator.counts().minted)


@pytest.mark.fault(14)
@pytest.mark.parametrize(
    ("kind", "error", "code"),
    [
        (FaultKind.ACCESS_DENIED, AccessDenied, "AccessDeniedException"),
        (FaultKind.BAD_SIGNATURE, AccessDenied, "InvalidSignatureException"),
        (FaultKind.PENDING_VERIFICATION, PendingVerification, "PendingVerification"),
        (FaultKind.ECHO_USER, ValidationFailed, "ValidationException"),
    ],
)
async def test_a_lasting_refusal_is_not_retried(
    emulator: Emulator,
    open_service: OpenService,
    kind: FaultKind,
    error: type[AccessDenied],
    code: str,
) -> None:
    """One request is sent; the error has code, status and request id."""
    emulator.fail_next(Fault(kind))
    tokens = open_service(retry=QUICK)
    with pytest.raises(error) as caught:
        await tokens.issue(REQUEST)
    assert code == caught.value.code
    assert caught.value.status in (400, 403)
    assert caught.value.request_id
    assert 1 == emulator.counts().requests


@pytest.mark.parametrize("kind", [FaultKind.ERROR_500, FaultKind.ERROR_503])
async def test_a_server_fault_passes(
    emulator: Emulator, open_service: OpenService, kind: FaultKind
) -> None:
    """A 5xx is retried; if it lasts, ``ServerFault`` is raised after the last retry."""
    tokens = open_service(retry=QUICK)
    emulator.fail_next(Fault(kind))
    await tokens.issue(REQUEST)
    emulator.fail_next(Fault(kind, times=4))
    with pytest.raises(ServerFault):
        await tokens.issue(TokenRequest(ROOM, "other"))
    assert 6 == emulator.counts().requests


async def test_nobody_listening_is_a_failed_connection(open_service: OpenService) -> None:
    """A refused connection is retried, then raised as ``ConnectionFailed`` with botocore's name."""
    tokens = open_service(endpoint_url="http://127.0.0.1:9", retry=QUICK)
    with pytest.raises(ConnectionFailed) as caught:
        await tokens.issue(REQUEST)
    assert "EndpointConnectionError" == caught.value.reason
    assert 4 == tokens.stats().requests
