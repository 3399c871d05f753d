"""Endpoints and the shell: which may be asked, past which proxies, with which files."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiohttp.abc import AbstractResolver, ResolveResult

from aioivschat import AsyncTokenService, InvalidConfiguration, TokenRequest
from aioivschat._aws.endpoints import is_direct
from aioivschat.emulator import ThreadedEmulatorServer
from support.raw_servers import RawServer, certificate, raw_server, tls, tunnelling_proxy
from support.services import ROOM, bare_session

REQUEST = TokenRequest(ROOM, "u")

PROXIES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the host's own proxies and AWS configuration play no part."""
    for name in os.environ:
        if name.startswith("AWS_") or name.upper() in (*PROXIES, "NO_PROXY", "REQUESTS_CA_BUNDLE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


async def mint(url: str | None = None, session: Any = None, **options: Any) -> None:
    """Issue one token by a service of its own."""
    session = session or bare_session("testing", "testing")
    async with AsyncTokenService(session=session, endpoint_url=url, **options) as tokens:
        assert (await tokens.issue(REQUEST)).token


@pytest.mark.fault(48)
@pytest.mark.parametrize(
    ("url", "direct"),
    [
        ("http://localhost", True),
        ("HTTP://LocalHost:80", True),
        ("https://localhost", True),
        ("https://localhost.", True),
        ("https://api.localhost", True),
        ("https://127.0.0.1", True),
        ("https://127.9.8.7:80", True),
        ("https://[::1]:80", True),
        ("http://emulator:8000", True),
        ("https://emulator:8000", False),
        ("https://128.0.0.1", False),
        ("https://[::2]", False),
        ("https://localhost.example.com", False),
        ("https://ivschat.us-east-1.amazonaws.com", False),
    ],
)
def test_this_host_and_what_is_in_the_clear_are_asked_directly(url: str, direct: bool) -> None:
    """Whatever form the host's name or address has."""
    assert direct is is_direct(url)


@pytest.mark.fault(48)
@pytest.mark.parametrize("with_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("proxy", [*PROXIES, *map(str.lower, PROXIES), "session"])
@pytest.mark.parametrize("endpoint", ["constructor", "environment", "all services", "profile"])
async def test_this_host_is_never_behind_a_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str, proxy: str, with_tls: bool
) -> None:
    """Wherever the endpoint and the proxy were configured."""
    session = bare_session("testing", "testing")
    if proxy == "session":
        session.set_default_client_config(AioConfig(proxies={"http": NOWHERE, "https": NOWHERE}))
    else:
        monkeypatch.setenv(proxy, NOWHERE)
    file = certificate(tmp_path)
    if with_tls:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    async with raw_server(tls=tls(file) if with_tls else None) as server:
        if endpoint == "environment":
            monkeypatch.setenv("AWS_ENDPOINT_URL_IVSCHAT", server.url)
        elif endpoint == "all services":
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        elif endpoint == "profile":
            section = f"[services local]\nivschat =\n  endpoint_url = {server.url}\n"
            (tmp_path / "config").write_text(f"[default]\nservices = local\n{section}")
        await mint(server.url if endpoint == "constructor" else None, session)
        assert 1 == len(server.seen)


@pytest.mark.fault(48)
async def test_another_host_is_behind_the_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And NO_PROXY takes it out again, as for boto3."""
    file = certificate(tmp_path, "ivschat.example.com")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    async with raw_server(tls=tls(file)) as server, tunnelling_proxy(server) as (proxy, asked):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL_IVSCHAT", "https://ivschat.example.com")
        await mint()
        assert ["CONNECT ivschat.example.com:443 HTTP/1.1"] == asked
        port = server.url.rpartition(":")[2]
        monkeypatch.setenv("AWS_ENDPOINT_URL_IVSCHAT", f"https://ivschat.example.com:{port}")
        monkeypatch.setenv("NO_PROXY", "example.com")
        await mint(session=_resolving_session("ivschat.example.com"))
        assert (1, 2) == (len(asked), len(server.seen))


@pytest.mark.fault(48)
async def test_an_ignored_endpoint_of_the_environment_is_no_reason_to_go_past_a_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """AWS itself is asked then, by way of the proxy."""
    file = certificate(tmp_path, "ivschat.us-east-1.amazonaws.com")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    monkeypatch.setenv("AWS_ENDPOINT_URL_IVSCHAT", NOWHERE)
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    async with raw_server(tls=tls(file)) as server, tunnelling_proxy(server) as (proxy, asked):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        await mint()
        assert ["CONNECT ivschat.us-east-1.amazonaws.com:443 HTTP/1.1"] == asked


@pytest.mark.fault(48)
@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle"])
async def test_in_the_clear_no_file_of_certificates_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """One that is gone, or holds something else, plays no part over plain HTTP."""
    (tmp_path / "other.pem").write_text("nothing of the kind")
    async with raw_server() as server:
        for path in ("gone.pem", "other.pem"):
            if name.isupper():
                monkeypatch.setenv(name, str(tmp_path / path))
            else:
                (tmp_path / "config").write_text(f"[default]\n{name} = {tmp_path / path}\n")
            await mint(server.url)


@pytest.mark.fault(48)
@pytest.mark.parametrize("what", ["missing", "a folder", "something else"])
@pytest.mark.parametrize("setting", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle"])
async def test_a_file_of_certificates_that_cannot_be_used_is_one_error_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, what: str
) -> None:
    """It names the setting and the file, and nothing is sent or tried again."""
    path = tmp_path / "authorities.pem"
    if what == "a folder":
        path.mkdir()
    elif what == "something else":
        path.write_text("nothing of the kind")
    if setting.isupper():
        monkeypatch.setenv(setting, str(path))
    else:
        (tmp_path / "config").write_text(f"[default]\nca_bundle = {path}\n")
    async with raw_server(tls=tls(certificate(tmp_path))) as server:
        with pytest.raises(InvalidConfiguration, match=rf"^{setting}: .*authorities\.pem"):
            await mint(server.url)
        assert [] == server.seen


@pytest.mark.fault(48)
@pytest.mark.parametrize("setting", ["client_cert", "proxy_ca_bundle", "proxy_client_cert"])
async def test_a_missing_file_of_the_sessions_configuration_is_named(
    tmp_path: Path, setting: str
) -> None:
    """Those of a proxy only if one is used."""
    missing = str(tmp_path / "gone.pem")
    config: dict[str, Any] = {"client_cert": missing}
    if setting != "client_cert":
        config = {"proxies": {"https": NOWHERE}, "proxies_config": {setting: missing}}
    session = bare_session("testing", "testing")
    session.set_default_client_config(AioConfig(**config))
    with pytest.raises(InvalidConfiguration, match=rf"^{setting}: .*gone\.pem"):
        await mint("https://ivschat.example.com", session)
    async with raw_server() as server:
        if setting != "client_cert":
            await mint(server.url, session)


@pytest.mark.fault(48)
@pytest.mark.parametrize(
    ("setting", "profile", "environment"),
    [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "", {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/r"}),
        (
            "web_identity_token_file",
            "role_arn = arn:aws:iam::123456789012:role/r\nweb_identity_token_file = {missing}\n",
            {},
        ),
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            "",
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/"},
        ),
        ("the AWS configuration", "credential_process = {missing}\n", {}),
    ],
)
async def test_a_missing_file_that_credentials_need_is_named(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    setting: str,
    profile: str,
    environment: dict[str, str],
) -> None:
    """One error at once, before anything is sent; with other credentials it is not needed."""
    missing = str(tmp_path / "gone")
    (tmp_path / "config").write_text(
        "[default]\nregion = us-east-1\n" + profile.format(missing=missing)
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if setting.isupper():
        monkeypatch.setenv(setting, missing)
    async with raw_server() as server:
        with pytest.raises(InvalidConfiguration, match=rf"^{setting}: .*gone"):
            await mint(server.url, bare_session())
        assert [] == server.seen
        await mint(server.url)


class _Resolver(AbstractResolver):
    """Finds one host, here."""

    def __init__(self, host: str) -> None:
        self._host = host

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host != self._host:
            raise OSError(f"{host} is nowhere")
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass


def _resolving_session(host: str) -> Any:
    """Return a session for which a host is this one, as a network of containers has it."""
    session = bare_session("testing", "testing")
    session.set_default_client_config(AioConfig(connector_args={"resolver": _Resolver(host)}))
    return session


def _elsewhere(server: RawServer | ThreadedEmulatorServer, host: str) -> str:
    return server.url.replace("127.0.0.1", host)


@pytest.mark.fault(48)
@pytest.mark.parametrize("allow_http", ["Emulator", ("other", "emulator"), {"emulator"}])
@pytest.mark.parametrize("configured", ["constructor", "environment"])
async def test_a_named_host_may_be_asked_in_the_clear(
    monkeypatch: pytest.MonkeyPatch, configured: str, allow_http: Any
) -> None:
    """By its name or several, wherever the endpoint was configured, and past a proxy."""
    monkeypatch.setenv("HTTP_PROXY", NOWHERE)
    async with raw_server() as server:
        url = _elsewhere(server, "emulator")
        if configured == "environment":
            monkeypatch.setenv("AWS_ENDPOINT_URL_IVSCHAT", url)
        await mint(
            url if configured == "constructor" else None,
            _resolving_session("emulator"),
            allow_http=allow_http,
        )
        assert 1 == len(server.seen)


@pytest.mark.fault(48)
@pytest.mark.parametrize("allow_http", [(), None, "other", "emulator.example.com"])
async def test_no_other_host_may_be_asked_in_the_clear(
    monkeypatch: pytest.MonkeyPatch, allow_http: Any
) -> None:
    """The error names the option, and shows no password."""
    url = "http://user:password@emulator:8000"
    with pytest.raises(InvalidConfiguration, match="allow_http=") as caught:
        AsyncTokenService(endpoint_url=url, allow_http=allow_http)
    assert "password" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_IVSCHAT", url)
    with pytest.raises(InvalidConfiguration, match="allow_http=") as caught:
        await mint(allow_http=allow_http)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    "allow_http",
    [True, b"emulator", "", "*", "http://emulator", "emulator:8000", "a b", [7], ["emulator", ""]],
)
def test_what_names_no_host_is_refused(allow_http: Any) -> None:
    """Neither everything nor a URL can be allowed."""
    with pytest.raises(InvalidConfiguration, match=r"^allow_http: must be the name of a host"):
        AsyncTokenService(allow_http=allow_http)


@pytest.mark.parametrize(
    "url", ["http://[::1", "localhost:8000", "//localhost", 7, b"http://localhost"]
)
def test_what_is_no_url_is_refused_as_an_endpoint(url: Any) -> None:
    """By an error that names the option, whatever it is."""
    with pytest.raises(InvalidConfiguration, match=r"^endpoint_url: must be an HTTPS URL"):
        AsyncTokenService(endpoint_url=url)
