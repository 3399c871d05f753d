"""Signatures that a server accepts and refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping

import aiohttp
import botocore.exceptions
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from aioivschat.emulator import Emulator, EmulatorServer
from support.emulators import ROOM, TOKEN_REQUEST, client_of


@pytest.mark.parametrize("session_token", [None, "a/session+token=="])
async def test_good_signature_is_accepted(session_token: str | None) -> None:
    """A good signature is accepted with and without a session token."""
    async with (
        EmulatorServer(verify_signatures=True) as server,
        client_of(server.url, aws_session_token=session_token) as client,
    ):
        reply = await client.create_chat_token(roomIdentifier=ROOM, userId="ü/+ é")
        assert reply["token"]


async def test_keys_can_be_chosen() -> None:
    """If keys are chosen, the usual ones are unknown."""
    async with (
        EmulatorServer(verify_signatures=True, access_keys={"mine": "own"}) as server,
        client_of(server.url) as client,
    ):
        with pytest.raises(botocore.exceptions.ClientError, match="UnrecognizedClientException"):
            await client.create_room()


async def test_wrong_secret_is_refused() -> None:
    """A wrong secret gives AWS's error, and is counted as refused."""
    async with (
        EmulatorServer(verify_signatures=True) as server,
        client_of(server.url, secret="wrong") as client,
    ):
        with pytest.raises(botocore.exceptions.ClientError) as refused:
            await client.create_chat_token(**TOKEN_REQUEST)
        assert "InvalidSignatureException" == refused.value.response["Error"]["Code"]
        assert (1, 0) == (server.emulator.counts().refused, server.emulator.counts().minted)


@pytest.mark.parametrize("skew", [-400.0, 400.0])
async def test_signature_of_another_time_is_refused(skew: float) -> None:
    """A signature more than 5 minutes from the service's clock is refused."""
    emulator = Emulator(clock_skew=skew)
    async with (
        EmulatorServer(emulator, verify_signatures=True) as server,
        client_of(server.url) as client,
    ):
        with pytest.raises(botocore.exceptions.ClientError, match=r"Signature (expired|not yet)"):
            await client.create_room()


def signed(
    url: str, body: bytes, *, service: str = "ivschat", token: str | None = None
) -> dict[str, str]:
    """Return the headers of a signed CreateChatToken request."""
    request = AWSRequest("POST", f"{url}/CreateChatToken", data=body)
    SigV4Auth(Credentials("testing", "testing", token), service, "us-east-1").add_auth(request)
    return dict(request.headers.items())


def without(headers: Mapping[str, str], name: str) -> dict[str, str]:
    """Return the headers but one."""
    return {key: value for key, value in headers.items() if key != name}


async def test_tampered_request_is_refused() -> None:
    """A request whose body, header or scope is not what was signed is refused."""
    body = json.dumps(TOKEN_REQUEST).encode()
    other = body.replace(b"alice", b"mallory")
    async with (
        EmulatorServer(verify_signatures=True) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        good = signed(server.url, body)
        authorization = good["Authorization"]
        cases: list[tuple[Mapping[str, str], bytes, str]] = [
            (good, other, "InvalidSignatureException"),
            ({**good, "X-Amz-Security-Token": "unsigned"}, body, "InvalidSignatureException"),
            ({**good, "X-Amz-Content-SHA256": "0" * 64}, body, "InvalidSignatureException"),
            ({**good, "X-Amz-Date": "yesterday"}, body, "InvalidSignatureException"),
            (signed(server.url, body, service="s3"), body, "InvalidSignatureException"),
            (
                {**good, "Authorization": authorization[:-8]},
                body,
                "IncompleteSignatureException",
            ),
            (without(good, "Authorization"), body, "MissingAuthenticationTokenException"),
        ]
        for headers, sent, code in cases:
            async with http.post("/CreateChatToken", data=sent, headers=headers) as response:
                assert (403, code) == (response.status, response.headers["x-amzn-errortype"])
        async with http.post("/CreateChatToken", data=body, headers=good) as response:
            assert 200 == response.status
