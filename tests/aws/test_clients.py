"""Clients: sessions, endpoints, credentials and connections, and what configuration decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.config import Config
from botocore.exceptions import NoCredentialsError

from aioivschat import (
    AsyncTokenService,
    AwsError,
    Event,
    InvalidConfiguration,
    PoolPolicy,
    TokenRequest,
)
from aioivschat.emulator import Emulator, Fault, FaultKind, ThreadedEmulatorServer
from support.raw_servers import REGION, http, open_pool, raw_server
from support.services import ROOM, OpenService, local_session, outcomes

REQUEST = TokenRequest(ROOM, "u")


@pytest.fixture
def emulator(ivschat_emulator: ThreadedEmulatorServer) -> Emulator:
    """The model of the emulator that is served."""
    return ivschat_emulator.emulator


@pytest.mark.usefixtures("ivschat_env")
async def test_unmodified_code_reaches_the_endpoint_of_the_environment(
    emulator: Emulator,
) -> None:
    """``AWS_ENDPOINT_URL_IVSCHAT`` and the credentials are found as boto3 finds them."""
    async with AsyncTokenService() as tokens:
        assert (await tokens.issue(REQUEST)).token
    assert 1 == emulator.counts().minted


@pytest.mark.usefixtures("ivschat_env")
async def test_the_endpoint_of_the_constructor_wins(
    emulator: Emulator, ivschat_emulator: ThreadedEmulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``endpoint_url=`` takes precedence over ``AWS_ENDPOINT_URL_IVSCHAT``."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_IVSCHAT", "http://127.0.0.1:9")
    async with AsyncTokenService(endpoint_url=ivschat_emulator.url) as tokens:
        assert (await tokens.issue(REQUEST)).token
    assert 1 == emulator.counts().minted


async def test_a_configured_profile_is_honoured(
    emulator: Emulator,
    ivschat_emulator: ThreadedEmulatorServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The profile decides credentials and endpoint, but not how often a request is retried."""
    config = tmp_path / "config"
    config.write_text(
        "[profile event]\n"
        "region = eu-west-1\n"
        "aws_access_key_id = testing\n"
        "aws_secret_access_key = testing\n"
        "retry_mode = legacy\n"
        "max_attempts = 9\n"
        "services = local\n"
        "[services local]\n"
        "ivschat =\n"
        f"  endpoint_url = {ivschat_emulator.url}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_IVSCHAT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "event")
    emulator.configure(any_room=False)
    # The room's region decides, not the profile's.
    room = emulator.create_room(region="us-east-1")["arn"]
    emulator.fail_next(Fault(FaultKind.ERROR_500))
    async with AsyncTokenService() as tokens:
        assert (await tokens.issue(TokenRequest(room, "u"))).token
        assert 2 == tokens.stats().requests == emulator.counts().requests


async def test_missing_credentials_are_botocores_own_error(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_service: OpenService
) -> None:
    """``NoCredentialsError``: no retry, no request, and an object of its own for every caller."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    tokens = open_service(session=AioSession())
    errors = await outcomes(tokens.issue(REQUEST), tokens.issue(REQUEST))
    assert all(isinstance(error, NoCredentialsError) for error in errors)
    assert errors[0] is not errors[1]
    assert 0 == emulator.counts().requests


async def test_an_aioboto3_session_will_do(
    emulator: Emulator, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """aioboto3's own where it is installed, or else a stand-in that wraps an ``AioSession``."""
    try:
        import aioboto3
    except ImportError:
        session: Any = _WrappingSession(local_session())
    else:
        session = aioboto3.Session(aws_access_key_id="testing", aws_secret_access_key="testing")
    async with AsyncTokenService(session=session, endpoint_url=ivschat_emulator.url) as tokens:
        assert (await tokens.issue(REQUEST)).token
    assert 1 == emulator.counts().minted


class _WrappingSession:
    """The two members of ``aioboto3.Session`` that the pool uses."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def client(self, *args: Any, **kwargs: Any) -> Any:
        """Return a context manager of a client."""
        return self._session.create_client(*args, **kwargs)


@pytest.mark.parametrize("wrap", [lambda session: session, _WrappingSession])
@pytest.mark.parametrize("kind", [Config, AioConfig])
async def test_a_sessions_default_configuration_holds(kind: Any, wrap: Any) -> None:
    """botocore's or aiobotocore's: it is added to, on the same HTTP session, and not changed."""
    session, default = local_session(), kind(user_agent_extra="event/7")
    session.set_default_client_config(default)
    async with raw_server() as server, open_pool(server.url, wrap(session)) as (pool, _):
        minted = await pool.mint(REGION, REQUEST)
        assert server.seen[0]["User-Agent"].endswith(" event/7")
        server.answer = http(b"", f"Location: {server.url}", status="307 Temporary")
        with pytest.raises(AwsError):
            await pool.mint(REGION, REQUEST)
        assert 2 == len(server.seen)
    assert minted.token.token
    assert session.get_default_client_config() is default
    assert {"user_agent_extra": "event/7"} == vars(default)["_user_provided_options"]


@pytest.mark.parametrize("session", [object(), "default", 7])
def test_another_object_than_a_session_is_refused(session: object) -> None:
    """The constructor raises, and its error names the sessions that are accepted."""
    with pytest.raises(InvalidConfiguration, match="AioSession"):
        AsyncTokenService(session=session)


@pytest.mark.parametrize(
    "url",
    ["http://ivschat.example.com", "http://10.0.0.7:8000", "ftp://127.0.0.1", "127.0.0.1:80", ""],
)
def test_an_endpoint_in_the_clear_is_refused(url: str) -> None:
    """The constructor accepts HTTPS, or HTTP on this host, and nothing else."""
    with pytest.raises(InvalidConfiguration, match="endpoint_url"):
        AsyncTokenService(endpoint_url=url)


@pytest.mark.parametrize(
    "url",
    [
        "https://ivschat.us-east-1.amazonaws.com",
        "http://127.0.0.1:1",
        "http://localhost:1",
        "http://api.localhost",
        "http://[::1]:1",
    ],
)
def test_https_and_this_host_are_fine(url: str) -> None:
    """The constructor accepts these URLs and opens no connection."""
    AsyncTokenService(endpoint_url=url)


@pytest.mark.usefixtures("ivschat_env")
async def test_an_endpoint_in_the_clear_from_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first call raises, as its client is opened, before a request is sent."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_IVSCHAT", "http://user:password@ivschat.example.com")
    async with AsyncTokenService() as tokens:
        with pytest.raises(InvalidConfiguration, match=r"ivschat\.example\.com") as caught:
            await tokens.issue(REQUEST)
    assert "password" not in str(caught.value)


async def test_a_local_endpoint_is_not_reached_through_a_proxy(
    emulator: Emulator, open_service: OpenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``HTTP_PROXY`` is ignored for it: a proxy would see tokens in the clear."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert (await open_service().issue(REQUEST)).token
    assert 1 == emulator.counts().minted


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_connections", 0), ("connect_timeout", 0.0), ("read_timeout", -1.0)],
)
def test_a_pool_that_cannot_work_is_refused(option: str, value: float) -> None:
    """``PoolPolicy`` raises and names the option."""
    with pytest.raises(InvalidConfiguration, match=rf"PoolPolicy\.{option}"):
        PoolPolicy(**{option: value})  # type: ignore[arg-type]  # one is an int


async def test_a_client_is_opened_once_and_connections_are_bounded(
    emulator: Emulator, open_service: OpenService
) -> None:
    """100 concurrent first calls open one client and at most ``max_connections`` connections."""
    opened: list[str] = []

    def observer(event: Event) -> None:
        if type(event).__name__ == "ClientOpened":
            opened.append(type(event).__name__)

    emulator.configure(latency=0.01)
    tokens = open_service(observers=[observer], pool=PoolPolicy(max_connections=7))
    await outcomes(*(tokens.issue(TokenRequest(ROOM, f"u{number}")) for number in range(100)))
    assert ["ClientOpened"] == opened
    assert 100 == emulator.counts().minted
    assert 7 >= emulator.counts().connections
