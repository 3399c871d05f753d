"""The emulator's HTTP servers, over real sockets and with real clients."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import botocore.exceptions
import botocore.session
import pytest
from aiobotocore.session import get_session
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from aioivschat.emulator import (
    Emulator,
    EmulatorServer,
    Fault,
    FaultKind,
    ThreadedEmulatorServer,
)

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/AbCdEf123456"
TOKEN_REQUEST = {"roomIdentifier": ROOM, "userId": "alice"}
ONCE = Config(retries={"total_max_attempts": 1}, read_timeout=0.5)


def client_of(url: str, *, secret: str = "testing", region: str = "us-east-1", **more: Any) -> Any:
    """Return a context manager of an aiobotocore client that sends each request once."""
    session: Any = get_session()
    return session.create_client(
        "ivschat",
        region_name=region,
        endpoint_url=url,
        aws_access_key_id="testing",
        aws_secret_access_key=secret,
        config=ONCE,
        **more,
    )


@pytest.fixture
async def server() -> AsyncIterator[EmulatorServer]:
    """A running server with a model of its own."""
    async with EmulatorServer() as running:
        yield running


@pytest.fixture
async def client(server: EmulatorServer) -> AsyncIterator[Any]:
    """An aiobotocore client of that server."""
    async with client_of(server.url) as opened:
        yield opened


@pytest.fixture
async def http(server: EmulatorServer) -> AsyncIterator[aiohttp.ClientSession]:
    """A bare HTTP client of that server."""
    async with aiohttp.ClientSession(server.url) as session:
        yield session


# --- the operations -------------------------------------------------------------------------------


async def test_client_does_every_operation(server: EmulatorServer) -> None:
    """Rooms and tokens, in the region of the client's signature."""
    async with client_of(server.url, region="eu-west-1") as client:
        room = await client.create_room(name="lobby", tags={"event": "final"})
        assert room["arn"].startswith("arn:aws:ivschat:eu-west-1:123456789012:room/")
        found = await client.get_room(identifier=room["arn"])
        assert ("lobby", room["createTime"]) == (found["name"], found["createTime"])

        reply = await client.create_chat_token(
            roomIdentifier=room["arn"],
            userId="alice",
            capabilities=["SEND_MESSAGE"],
            attributes={"displayName": "Alice"},
            sessionDurationInMinutes=60,
        )
        life = reply["sessionExpirationTime"] - reply["tokenExpirationTime"]
        assert 59 * 60 == life.total_seconds()
        assert "alice" == server.emulator.redeem(reply["token"]).user_id

        await client.delete_room(identifier=room["arn"])
        assert [] == (await client.list_rooms())["rooms"]


async def test_client_pages_through_rooms(client: Any) -> None:
    """botocore's own way of paging finds every room."""
    arns = [(await client.create_room())["arn"] for _ in range(5)]
    seen: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = await client.list_rooms(maxResults=2, **token)
        seen += [room["arn"] for room in page["rooms"]]
        if "nextToken" not in page:
            break
        token = {"nextToken": page["nextToken"]}
    assert arns == seen


async def test_client_parses_modelled_errors(server: EmulatorServer, client: Any) -> None:
    """Errors come as the client's own exception classes, with their members."""
    errors = client.exceptions
    with pytest.raises(errors.ResourceNotFoundException) as not_found:
        await client.get_room(identifier=ROOM)
    assert "ROOM" == not_found.value.response["resourceType"]
    assert not_found.value.response["ResponseMetadata"]["RequestId"]

    with pytest.raises(errors.ValidationException) as invalid:
        await client.create_chat_token(roomIdentifier=ROOM, userId="x" * 129)
    assert ["userId"] == [field["name"] for field in invalid.value.response["fieldList"]]

    server.emulator.configure(quota="fixed:1")
    with pytest.raises(errors.ThrottlingException) as throttled:
        await asyncio.gather(*[client.create_chat_token(**TOKEN_REQUEST) for _ in range(2)])
    assert (429, 1) == (
        throttled.value.response["ResponseMetadata"]["HTTPStatusCode"],
        throttled.value.response["limit"],
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("access_denied", "AccessDeniedException"),
        ("pending_verification", "PendingVerification"),
        ("error_500", "InternalServerException"),
    ],
)
async def test_client_parses_fault(
    server: EmulatorServer, client: Any, kind: str, name: str
) -> None:
    """A modelled fault is an exception class too."""
    server.emulator.fail_next(Fault(FaultKind(kind)))
    with pytest.raises(getattr(client.exceptions, name)):
        await client.create_chat_token(**TOKEN_REQUEST)


@pytest.mark.parametrize("path", ["/UpdateRoom", "/", "/CreateChatToken/"])
async def test_unknown_path_is_refused(http: aiohttp.ClientSession, path: str) -> None:
    """Whatever is not an operation is a modelled validation error."""
    async with http.post(path, json=TOKEN_REQUEST) as response:
        assert (400, "UNKNOWN_OPERATION") == (response.status, (await response.json())["reason"])


async def test_only_post_is_an_operation(http: aiohttp.ClientSession) -> None:
    """A GET of an operation's path does nothing."""
    async with http.get("/CreateRoom") as response:
        assert 400 == response.status


# --- faults on the wire ---------------------------------------------------------------------------


async def test_bare_throttles_have_no_json(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """HTML, or nothing, and the Retry-After as it was given."""
    server.emulator.fail_next(
        Fault(FaultKind.THROTTLE_HTML, retry_after="2"),
        Fault(FaultKind.THROTTLE_EMPTY, retry_after="soon"),
    )
    async with http.post("/CreateChatToken", json=TOKEN_REQUEST) as html:
        assert (429, "text/html", "2") == (
            html.status,
            html.content_type,
            html.headers["Retry-After"],
        )
        assert (await html.text()).startswith("<html>")
    async with http.post("/CreateChatToken", json=TOKEN_REQUEST) as empty:
        assert (429, b"", "soon") == (
            empty.status,
            await empty.read(),
            empty.headers["Retry-After"],
        )


async def test_truncated_answer_has_the_length_of_what_is_sent(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """It is a whole HTTP response, of half a JSON text."""
    server.emulator.fail_next(Fault(FaultKind.TRUNCATE))
    async with http.post("/CreateChatToken", json=TOKEN_REQUEST) as response:
        body = await response.read()
    assert int(response.headers["Content-Length"]) == len(body)
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)


async def test_reset_connection_gives_no_answer(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """The client sees a reset, and the next request is served."""
    server.emulator.fail_next(Fault(FaultKind.RESET))
    with pytest.raises(aiohttp.ClientOSError) as reset:
        await http.post("/CreateChatToken", json=TOKEN_REQUEST)
    assert errno.ECONNRESET == reset.value.errno
    async with http.post("/CreateChatToken", json=TOKEN_REQUEST) as response:
        assert 200 == response.status
    assert 2 == server.emulator.counts().connections


async def test_idle_connections_can_be_reset(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """A pooled connection is gone, and the server still serves."""
    async with http.post("/CreateChatToken", json=TOKEN_REQUEST) as response:
        await response.read()
    server.reset_connections()
    await asyncio.sleep(0.05)
    async with http.post("/CreateChatToken", json=TOKEN_REQUEST) as response:
        assert 200 == response.status
    assert 2 == server.emulator.counts().connections


async def test_black_hole_lasts_until_the_client_leaves(
    server: EmulatorServer, client: Any
) -> None:
    """No answer comes, and what waits for it on the server ends with the client's patience."""
    server.emulator.fail_next(Fault(FaultKind.BLACK_HOLE))
    with pytest.raises(botocore.exceptions.ReadTimeoutError):
        await client.create_chat_token(**TOKEN_REQUEST)
    await asyncio.sleep(0.05)
    assert (0, 1) == (server.emulator.counts().in_flight, server.emulator.counts().dropped)


async def test_server_stops_at_once_with_a_black_hole_open() -> None:
    """Leaving the context ends requests that nobody would ever answer."""
    async with EmulatorServer() as server, aiohttp.ClientSession(server.url) as http:
        server.emulator.fail_next(Fault(FaultKind.BLACK_HOLE))
        hanging = asyncio.create_task(http.post("/CreateChatToken", json=TOKEN_REQUEST))
        for _ in range(500):
            if server.emulator.counts().in_flight:
                break
            await asyncio.sleep(0.01)
        async with asyncio.timeout(2):
            await server.__aexit__(None, None, None)
        with pytest.raises(aiohttp.ClientError):
            await hanging


async def test_latency_is_waited_for_by_each_on_its_own(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """Ten requests of 100 ms at once take about as long as one, all in flight together."""
    server.emulator.configure(latency=0.1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    responses = await asyncio.gather(
        *[http.post("/CreateChatToken", json=TOKEN_REQUEST) for _ in range(10)]
    )
    took = loop.time() - began
    for response in responses:
        response.release()
    assert 0.1 <= took < 0.8
    assert 10 == server.emulator.counts().peak_in_flight


async def test_date_header_is_the_models(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """Skewed, garbled or absent: the framework adds none of its own."""

    async def dates() -> list[str]:
        async with http.post("/CreateChatToken", json=TOKEN_REQUEST) as response:
            assert 200 == response.status
            assert "token" in await response.json()
            return response.headers.getall("Date", [])

    server.emulator.configure(clock_skew=-1e9)
    (skewed,) = await dates()
    assert 1995 == int(skewed.split()[3])
    server.emulator.configure(date_header="garbled")
    assert ["yesterday, around noon"] == await dates()
    server.emulator.configure(date_header="absent")
    assert [] == await dates()


# --- administration -------------------------------------------------------------------------------


async def test_admin_shows_settings_and_counts(http: aiohttp.ClientSession) -> None:
    """A GET tells how the emulator is set, and what it saw, admin requests apart."""
    async with http.post("/CreateChatToken", json=TOKEN_REQUEST) as response:
        await response.read()
    async with http.get("/_emulator") as response:
        state = await response.json()
    assert "bucket:200:200" == state["settings"]["quota"]
    assert (1, 1, 0) == (
        state["counts"]["requests"],
        state["counts"]["minted"],
        state["counts"]["in_flight"],
    )


async def test_admin_changes_settings(server: EmulatorServer, http: aiohttp.ClientSession) -> None:
    """A PATCH changes what it names, and what GET gives it takes back."""
    changes = {"quota": "sliding:5", "latency": 0.01, "any_room": False}
    async with http.patch("/_emulator", json=changes) as response:
        assert 200 == response.status
        settings = (await response.json())["settings"]
    assert changes == {name: settings[name] for name in changes}
    async with http.patch("/_emulator", json=settings) as response:
        assert settings == (await response.json())["settings"]
    assert 0.01 == server.emulator.settings.latency


async def test_admin_queues_and_clears_faults(http: aiohttp.ClientSession) -> None:
    """One fault or several are queued by POST; DELETE clears them; a reset does too."""

    async def status() -> int:
        async with http.post("/CreateChatToken", json=TOKEN_REQUEST) as response:
            return response.status

    for fault in ({"kind": "error_503"}, [{"kind": "error_500", "times": None}]):
        async with http.post("/_emulator/faults", json=fault) as response:
            assert 204 == response.status
    assert [503, 500, 500] == [await status() for _ in range(3)]
    await http.delete("/_emulator/faults")
    assert 200 == await status()
    await http.post("/_emulator/faults", json={"kind": "error_500"})
    await http.post("/_emulator/reset")
    assert 200 == await status()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PATCH", "/_emulator", {"latency": -1}, 400),
        ("PATCH", "/_emulator", {"nonsense": 1}, 400),
        ("PATCH", "/_emulator", [], 400),
        ("POST", "/_emulator/faults", {"kind": "nonsense"}, 400),
        ("POST", "/_emulator/faults", "reset", 400),
        ("PUT", "/_emulator", {}, 404),
        ("GET", "/_emulator/more", {}, 404),
    ],
)
async def test_admin_refuses_what_it_does_not_know(
    http: aiohttp.ClientSession, method: str, path: str, body: object, status: int
) -> None:
    """With a message that says what is wrong."""
    async with http.request(method, path, json=body) as response:
        assert status == response.status
        assert (await response.json())["message"]


# --- signatures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("session_token", [None, "a/session+token=="])
async def test_good_signature_is_accepted(session_token: str | None) -> None:
    """With and without a session token."""
    async with (
        EmulatorServer(verify_signatures=True) as server,
        client_of(server.url, aws_session_token=session_token) as client,
    ):
        reply = await client.create_chat_token(roomIdentifier=ROOM, userId="ü/+ é")
        assert reply["token"]


async def test_keys_can_be_chosen() -> None:
    """Then the usual ones are unknown."""
    async with (
        EmulatorServer(verify_signatures=True, access_keys={"mine": "own"}) as server,
        client_of(server.url) as client,
    ):
        with pytest.raises(botocore.exceptions.ClientError, match="UnrecognizedClientException"):
            await client.create_room()


async def test_wrong_secret_is_refused() -> None:
    """The error is AWS's, and counted as refused."""
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
    """More than five minutes either way from the service's clock is too far."""
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
    """A body, header or scope that is not what was signed."""
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


# --- running it -----------------------------------------------------------------------------------


def test_threaded_server_serves_code_that_is_not_async() -> None:
    """A plain botocore client, no event loop around it."""
    with ThreadedEmulatorServer() as server:
        client: Any = botocore.session.Session().create_client(
            "ivschat",
            region_name="us-east-1",
            endpoint_url=server.url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        assert client.create_chat_token(**TOKEN_REQUEST)["token"]
        server.reset_connections()
        assert client.create_chat_token(**TOKEN_REQUEST)["token"]
        client.close()
    assert 2 == server.emulator.counts().minted


def test_threaded_server_leaves_no_thread_and_no_port() -> None:
    """After the context nothing of it runs, and there is no URL."""
    before = threading.active_count()
    with ThreadedEmulatorServer() as server:
        port = int(server.url.rpartition(":")[2])
    assert before == threading.active_count()
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_port_in_use_is_an_error_for_both_servers(server: EmulatorServer) -> None:
    """The error comes out of the context manager, also across the thread."""
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(OSError, match="address"):
        await EmulatorServer(port=port).__aenter__()
    before = threading.active_count()
    with pytest.raises(OSError, match="address"):
        ThreadedEmulatorServer(port=port).__enter__()
    assert before == threading.active_count()


def run(*arguments: str) -> subprocess.Popen[str]:
    """Start the emulator as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "aioivschat.emulator", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_process_says_where_it_is_and_ends_quietly(number: signal.Signals) -> None:
    """One line of JSON, the options in force, and exit status 0 on a signal."""
    options = ["--quota", "sliding:5", "--no-any-room", "--fault", "error_503:2", "--minute", "1"]
    options += ["--refusal", "close"]
    with run(*options) as process:
        assert process.stdout is not None
        urls = json.loads(process.stdout.readline())
        url = urls["url"]
        async with aiohttp.ClientSession(url) as http:
            statuses = []
            for _ in range(3):
                async with http.post("/CreateChatToken", json=TOKEN_REQUEST) as response:
                    statuses.append(response.status)
            async with http.get("/_emulator") as response:
                settings = (await response.json())["settings"]
        process.send_signal(number)
        rest, complaints = process.communicate(timeout=10)
    assert [503, 503, 404] == statuses
    assert ("sliding:5", 1.0) == (settings["quota"], settings["minute"])
    assert ("close", {"url", "edge_url"}) == (settings["refusal"], urls.keys())
    assert url.replace("http", "ws") == urls["edge_url"]
    assert (0, "", "") == (process.returncode, rest, complaints)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--quota", "nonsense"],
        ["--fault", "nonsense"],
        ["--fault", "reset:-1"],
        ["--latency", "-1"],
        ["--port", "99999"],
        ["--refusal", "nonsense"],
    ],
)
def test_process_refuses_bad_arguments(arguments: list[str]) -> None:
    """Exit status 2 and one line that says what is wrong, no traceback."""
    with run(*arguments) as process:
        printed, complaints = process.communicate(timeout=10)
    assert (2, "") == (process.returncode, printed)
    assert "error:" in complaints
    assert "Traceback" not in complaints
