"""What is said of a region or a host that gives no answer, though nothing of a request is shown."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from aioivschat import (
    AccessDenied,
    AsyncTokenService,
    ConnectionFailed,
    InvalidRequest,
    RetryPolicy,
    TokenRequest,
)
from aioivschat.emulator import ThreadedEmulatorServer
from support.raw_servers import certificate, http, raw_server, tls
from support.services import ROOM, OpenService, local_session

QUICK = RetryPolicy(max_attempts=3, base_delay=0.001, max_delay=0.001)
REQUEST = TokenRequest(ROOM, "canary-user")


def in_region(region: str) -> TokenRequest:
    """Return a request for a room of a region."""
    return TokenRequest(ROOM.replace("us-east-1", region), "canary-user")


async def failure(tokens: AsyncTokenService, request: TokenRequest = REQUEST) -> ConnectionFailed:
    """Return how a call fails."""
    with pytest.raises(ConnectionFailed) as caught:
        await tokens.issue(request)
    assert "canary" not in str(caught.value)
    return caught.value


def resolve(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Have no name resolve, with an error of this number; return the names that are looked up."""
    asked: list[str] = []

    def fail(host: Any, *_: object, **__: object) -> Any:
        asked.append(str(host))
        raise socket.gaierror(number, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    return asked


@pytest.mark.fault(41)
async def test_a_refused_connection_names_region_and_host(open_service: OpenService) -> None:
    """It may pass, so it is tried again."""
    tokens = open_service(endpoint_url="http://127.0.0.1:9", retry=QUICK)
    error = await failure(tokens)
    assert ("us-east-1", "127.0.0.1") == (error.region, error.host)
    assert "in us-east-1, at 127.0.0.1 (EndpointConnectionError: it refuses connections)" in str(
        error
    )
    assert 3 == tokens.stats().requests


@pytest.mark.fault(41)
@pytest.mark.parametrize(("number", "requests"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)])
async def test_a_name_that_does_not_resolve_is_named(
    open_service: OpenService, monkeypatch: pytest.MonkeyPatch, number: int, requests: int
) -> None:
    """At once if no such name exists; after retries if nobody could say so."""
    tokens = open_service(endpoint_url="https://ivschat.invalid", retry=QUICK)
    resolve(monkeypatch, number)
    error = await failure(tokens)
    assert ("us-east-1", "ivschat.invalid") == (error.region, error.host)
    assert "at ivschat.invalid (EndpointConnectionError: its name does not resolve)" in str(error)
    assert requests == tokens.stats().requests


@pytest.mark.fault(41)
async def test_a_bad_certificate_is_named_at_once(
    open_service: OpenService, tmp_path: Path
) -> None:
    """With what is wrong with it."""
    async with raw_server(tls=tls(certificate(tmp_path))) as server:
        tokens = open_service(endpoint_url=server.url, retry=QUICK)
        error = await failure(tokens)
    assert ("us-east-1", "127.0.0.1", "SSLError") == (error.region, error.host, error.reason)
    assert "certificate is not valid: self" in str(error)
    assert 1 == tokens.stats().requests


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("status", "code", "scope"),
    [
        (403, "ExpiredTokenException", "account"),
        (400, "ExpiredTokenException", "account"),
        (400, "UnrecognizedClientException", "account"),
        (403, "InvalidClientTokenId", "account"),
        (400, "IncompleteSignature", "account"),
        (403, "AccessDeniedException", "room"),
        (400, "NotAuthorized", "room"),
        (401, "SomethingElse", "room"),
    ],
)
async def test_a_refusal_says_whether_the_credentials_are_known(
    open_service: OpenService, status: int, code: str, scope: str
) -> None:
    """What AWS says of credentials is of the account, at any status; a lack of rights is not."""
    answer = http(b'{"message": "No."}', f"x-amzn-ErrorType: {code}", status=f"{status} No")
    async with raw_server(answer) as server:
        with pytest.raises(AccessDenied) as caught:
            await open_service(endpoint_url=server.url, retry=QUICK).issue(REQUEST)
        assert 1 == len(server.seen)
    assert (code, status, scope) == (caught.value.code, caught.value.status, caught.value.scope)


@pytest.mark.fault(42)
@pytest.mark.parametrize(
    ("region", "nearest"),
    [
        ("us-esat-1", "us-east-1"),
        ("eu-wset-1", "eu-west-1"),
        ("useast-1", "us-east-1"),
        ("eu-central-", "eu-central-1"),
        ("ap-south-12", "ap-south-1"),
    ],
)
async def test_a_mistyped_region_is_told_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, region: str, nearest: str
) -> None:
    """With the nearest one that is known, to each call."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_IVSCHAT", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    asked = resolve(monkeypatch, socket.EAI_NONAME)
    async with AsyncTokenService(session=local_session()) as tokens:
        for _ in range(2):
            with pytest.raises(InvalidRequest) as caught:
                await tokens.issue(in_region(region))
            assert f"found {region}, to which {nearest} is the nearest" in str(caught.value)
            assert ("roomIdentifier", "room") == (caught.value.member, caught.value.scope)
        assert ([], 0) == (asked, tokens.stats().requests)
        # A region that botocore knows is asked, whether it has IVS Chat or not.
        for known in ("us-east-1", "us-east-2", "cn-north-1"):
            assert known == (await failure(tokens, in_region(known))).region


@pytest.mark.fault(42)
async def test_an_endpoint_may_be_of_any_region(
    ivschat_emulator: ThreadedEmulatorServer,
    open_service: OpenService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one that is newer than this botocore, say: by the option or by the environment."""
    await open_service().issue(in_region("eu-new-1"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_IVSCHAT", ivschat_emulator.url)
    await open_service(endpoint_url=None).issue(in_region("eu-new-1"))


@pytest.mark.fault(42)
async def test_what_is_no_region_is_not_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be anything that somebody put in its place."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_IVSCHAT", raising=False)
    async with AsyncTokenService(session=local_session()) as tokens:
        async with asyncio.timeout(30.0):
            with pytest.raises(InvalidRequest) as caught:
                await tokens.issue(in_region(f"{'a' * 32}canary"))
    assert "canary" not in str(caught.value)
