"""What keeps a request from being signed: no answer of IVS Chat, and one for all who wait."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioRefreshableCredentials
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.handlers import disable_signing

from aioivschat import (
    AttemptFailed,
    ChatTokenError,
    CredentialsFailed,
    Event,
    Quota,
    RateChanged,
    RetryPolicy,
    ServiceClosed,
    TokenRequest,
)
from aioivschat._aws.errors import credentials_failure
from aioivschat.emulator import Emulator, ThreadedEmulatorServer
from support.services import ROOM, OpenService, outcomes, until
from support.sts import Sts, role_by_sts

QUICK = RetryPolicy(max_attempts=4, base_delay=0.01, max_delay=0.01)


def guests(count: int) -> list[TokenRequest]:
    """Return a request for each of so many."""
    return [TokenRequest(ROOM, f"u{number}") for number in range(count)]


@pytest.fixture
def emulator(ivschat_emulator: ThreadedEmulatorServer) -> Emulator:
    """The model of the emulator that is served."""
    return ivschat_emulator.emulator


@pytest.fixture
async def sts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Sts]:
    """Serve an STS that the sessions of a test depend on."""
    async with role_by_sts(monkeypatch, tmp_path) as served:
        yield served


@pytest.mark.fault(39)
async def test_a_throttled_sts_spends_nothing_of_the_quota(
    emulator: Emulator, open_service: OpenService, sts: Sts
) -> None:
    """One asks it again for all, with pauses; the pace of IVS Chat and its counts stay."""
    told: list[Event] = []
    sts.refuse("Throttling", message="Rate exceeded", times=3)
    tokens = open_service(session=AioSession(), observers=[told.append], retry=QUICK)
    await asyncio.gather(*map(tokens.issue, guests(100)))
    stats = tokens.stats()
    assert (100, 0, 0) == (stats.requests, stats.throttled, stats.failed)
    assert 100 == emulator.counts().requests
    assert 4 == len(sts.asked)
    assert [] == [each for each in told if isinstance(each, AttemptFailed | RateChanged)]


@pytest.mark.fault(39)
@pytest.mark.parametrize(
    ("code", "status"), [("AccessDenied", 403), ("ExpiredTokenException", 400)]
)
async def test_a_refusal_of_sts_is_everybodys_at_once(
    emulator: Emulator, open_service: OpenService, sts: Sts, code: str, status: int
) -> None:
    """STS is asked once; each caller has an error of its own that is botocore's and names STS."""
    sts.refuse(code, status=status)
    tokens = open_service(session=AioSession(), retry=QUICK)
    errors = await outcomes(*map(tokens.issue, guests(100)))
    assert 1 == len(sts.asked)
    assert 100 == len({id(error) for error in errors})
    for error in errors:
        assert isinstance(error, CredentialsFailed)
        assert isinstance(error, ClientError)
        assert ("AssumeRole", "STS", "AssumeRole") == (
            error.operation,
            error.service,
            error.operation_name,
        )
        assert code == error.response["Error"]["Code"]
        assert f"AssumeRole of STS: {code} ({status})" in str(error)
        assert ("account", False) == (error.scope, error.may_pass)
    assert (0, 0) == (tokens.stats().requests, emulator.counts().requests)


@pytest.mark.fault(39)
async def test_credentials_are_there_again_as_soon_as_sts_is(
    open_service: OpenService, sts: Sts
) -> None:
    """A failure is of those who waited for it: who comes later has it tried once more."""
    sts.refuse("AccessDenied", status=403)
    tokens = open_service(session=AioSession(), retry=QUICK)
    with pytest.raises(CredentialsFailed):
        await tokens.issue(guests(1)[0])
    sts.grant()
    await tokens.issue(guests(1)[0])
    assert 2 == len(sts.asked)


@pytest.mark.fault(39)
async def test_a_refusal_is_asked_for_again_after_a_pause_only(
    open_service: OpenService, sts: Sts
) -> None:
    """Though each call comes after the last has failed: the pauses are those of retries."""
    sts.refuse("AccessDenied", status=403)
    pauses = RetryPolicy(base_delay=0.05, max_delay=0.1)
    tokens = open_service(session=AioSession(), retry=pauses)
    for request in guests(4):
        with pytest.raises(CredentialsFailed):
            await tokens.issue(request)
    gaps = [b - a for a, b in zip(sts.asked, sts.asked[1:], strict=False)]
    assert all(gap > least - 0.01 for gap, least in zip(gaps, (0.05, 0.1, 0.1), strict=True))
    # Who has less time than that is told at once.
    with pytest.raises(CredentialsFailed):
        await tokens.issue(guests(1)[0], timeout=0.001)
    assert 4 == len(sts.asked)


@pytest.mark.fault(39)
async def test_the_reason_is_told_before_the_time_is_up(
    emulator: Emulator, open_service: OpenService, sts: Sts
) -> None:
    """Not that it is up, which would say nothing: there is no time for another try."""
    sts.refuse("Throttling")
    patient = RetryPolicy(base_delay=0.2, max_delay=60.0)
    tokens = open_service(session=AioSession(), retry=patient)
    calls = (tokens.issue(request, timeout=10.0) for request in guests(20))
    async with asyncio.timeout(60.0):
        errors = await outcomes(*calls)
    assert {("CredentialsFailed", "AssumeRole")} == {
        (type(error).__name__, error.operation) for error in errors
    }
    assert 0 == emulator.counts().requests


class Source:
    """Where temporary credentials come from.

    Attributes:
        asked: how often it was.
        latency: seconds before it answers.
        failure: what it raises instead.
        life: seconds that its credentials have.
        hangs_from: the number of the try that has no end, nor have later ones.
    """

    def __init__(self, *, life: float = 3600.0) -> None:
        self.asked = 0
        self.latency = 0.0
        self.failure: Exception | None = None
        self.life = life
        self.hangs_from = sys.maxsize

    def session(self) -> AioSession:
        """Return a session whose credentials are due to be renewed."""
        session: Any = AioSession()
        session._credentials = AioRefreshableCredentials.create_from_metadata(
            self._metadata(1.0), refresh_using=self._renew, method="test"
        )
        opened: AioSession = session
        return opened

    def _metadata(self, life: float) -> dict[str, Any]:
        return {
            "access_key": "testing",
            "secret_key": "testing",
            "token": "session token",
            "expiry_time": (datetime.now(UTC) + timedelta(seconds=life)).isoformat(),
        }

    async def _renew(self) -> dict[str, Any]:
        self.asked += 1
        await asyncio.sleep(self.latency if self.asked < self.hangs_from else 3600.0)
        if self.failure is not None:
            raise self.failure
        return self._metadata(self.life)


@pytest.mark.fault(39)
async def test_a_renewal_goes_on_when_its_callers_leave(open_service: OpenService) -> None:
    """Callers without the patience for it would else begin it anew for ever."""
    source = Source()
    source.latency = 0.3
    tokens = open_service(session=source.session())
    got = await outcomes(*(tokens.issue(each, timeout=0.05) for each in guests(5)))
    assert all(isinstance(each, ChatTokenError) for each in got)
    await tokens.issue(guests(1)[0])
    assert 1 == source.asked


@pytest.mark.fault(39)
@pytest.mark.parametrize(
    ("failure", "asked"),
    [
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), 4),
        (ConnectTimeoutError(endpoint_url="http://127.0.0.1:1"), 4),
        (CredentialRetrievalError(provider="process", error_msg="exit 1"), 4),
        (TimeoutError(), 4),
        (PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), 1),
        (FileNotFoundError("a secret path"), 1),
        (ValueError("a secret that could not be read"), 1),
        (RuntimeError("still expired"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_only_what_may_pass_is_tried_again(
    emulator: Emulator, open_service: OpenService, failure: Exception, asked: int
) -> None:
    """And every kind is ``CredentialsFailed``; botocore's stay what they were too."""
    source = Source()
    source.failure = failure
    tokens = open_service(session=source.session(), retry=QUICK)
    errors = await outcomes(*map(tokens.issue, guests(10)))
    assert asked == source.asked
    for error in errors:
        assert isinstance(error, CredentialsFailed)
        assert (asked > 1) == error.may_pass
        assert type(failure).__name__ in str(error)
        assert "secret" not in str(error)
        if isinstance(failure, BotoCoreError):
            assert isinstance(error, type(failure))
            assert str(failure) in str(error)
    assert (0, 0) == (tokens.stats().requests, emulator.counts().requests)


@pytest.mark.fault(39)
async def test_the_reason_is_told_when_the_time_is_up(open_service: OpenService) -> None:
    """Even in the middle of the next try."""
    source = Source()
    source.failure = TimeoutError()
    tokens = open_service(session=source.session(), retry=QUICK)
    source.hangs_from = 2
    errors = await outcomes(*(tokens.issue(each, timeout=3.0) for each in guests(5)))
    assert ["CredentialsFailed"] * 5 == [type(error).__name__ for error in errors]
    assert "TimeoutError" in str(errors[0])


@pytest.mark.fault(39)
async def test_credentials_that_never_live_long_are_no_reason_to_wait(
    open_service: OpenService,
) -> None:
    """A life shorter than botocore renews ahead of its end: each request is signed all the same."""
    tokens = open_service(session=Source(life=120.0).session())
    async with asyncio.timeout(30.0):
        await asyncio.gather(*map(tokens.issue, guests(10)))


@pytest.mark.fault(39)
async def test_closing_ends_a_renewal(open_service: OpenService) -> None:
    """Whoever waits for it is told that the service is closed, at once."""
    source = Source()
    source.latency = 3600.0
    tokens = open_service(session=source.session())
    waiting = [asyncio.create_task(tokens.issue(request)) for request in guests(3)]
    await until(lambda: source.asked == 1)
    async with asyncio.timeout(30.0):
        await tokens.aclose()
        assert [ServiceClosed] * 3 == [type(error) for error in await outcomes(*waiting)]


@pytest.mark.fault(39)
async def test_credentials_may_end_in_the_queue(
    emulator: Emulator, open_service: OpenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that wait for permits when the credentials end fail with one try, and send nothing."""
    source = Source(life=3600.0)
    session: Any = source.session()
    tokens = open_service(session=session, quota=Quota(rate=20.0, burst=1), retry=QUICK)
    await tokens.issue(TokenRequest(ROOM, "first"))
    calls = [asyncio.create_task(tokens.issue(request)) for request in guests(10)]
    await until(lambda: tokens.stats().waiting >= 8)
    source.failure = PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY")
    held = session._credentials
    before = source.asked
    monkeypatch.setattr(held, "refresh_needed", lambda refresh_in=None: True)
    errors = [each for each in await outcomes(*calls) if isinstance(each, Exception)]
    assert len(errors) >= 7
    assert {"CredentialsFailed"} == {type(error).__name__ for error in errors}
    assert 1 == source.asked - before
    assert tokens.stats().requests == emulator.counts().requests == 11 - len(errors)


@pytest.mark.fault(39)
async def test_whoever_does_not_sign_needs_no_credentials(
    emulator: Emulator, open_service: OpenService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An unsigned client sends as it always did, and a listener may choose so too."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    unsigned, chosen = AioSession(), AioSession()
    unsigned.set_default_client_config(AioConfig(signature_version=UNSIGNED))
    chosen.register("choose-signer.ivschat", disable_signing)
    for session in (unsigned, chosen):
        await open_service(session=session).issue(guests(1)[0])
    assert 2 == emulator.counts().requests


@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize(
    "foreign",
    [
        NoCredentialsError(),
        ConnectTimeoutError(endpoint_url="http://127.0.0.1:1", error=OSError()),
        ClientError({"Error": {"Code": "AccessDenied", "Message": "No."}}, "AssumeRole"),
        OSError("anything"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_error_stays_whole(foreign: Exception, duplicate: Any) -> None:
    """A copy keeps class, message and attributes; a pickle all but botocore's class."""
    error = credentials_failure(foreign)
    twin = duplicate(error)
    assert isinstance(twin, CredentialsFailed)
    assert (str(error), vars(error)) == (str(twin), vars(twin))
    assert twin.__traceback__ is None


def test_what_sts_quotes_is_withheld() -> None:
    """An identity provider's token that breaks a limit, or what was signed, is not shown."""
    for code in ("ValidationError", "SignatureDoesNotMatch"):
        answer: Any = {"Error": {"Code": code, "Message": "Value 'canary' at 'webIdentityToken'"}}
        error: Any = credentials_failure(ClientError(answer, "AssumeRoleWithWebIdentity"))
        assert "canary" not in f"{error} {vars(error)}"
        assert code in str(error)
