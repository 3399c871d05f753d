"""The emulator's HTTP servers, over real sockets and with real clients."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import threading
from typing import Any

import aiohttp
import botocore.exceptions
import botocore.session
import pytest

from aioivschat.emulator import EmulatorServer, Fault, FaultKind, ThreadedEmulatorServer
from support.emulators import ROOM, TOKEN_REQUEST, client_of

# --- the operations -------------------------------------------------------------------------------


async def test_client_does_every_operation(server: EmulatorServer) -> None:
    """A client does all operations in the region of its signature."""
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
    """Errors are the client's own exception classes, with their members."""
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
    """A modelled fault is one of the client's own exception classes."""
    server.emulator.fail_next(Fault(FaultKind(kind)))
    with pytest.raises(getattr(client.exceptions, name)):
        await client.create_chat_token(**TOKEN_REQUEST)


@pytest.mark.parametrize("path", ["/UpdateRoom", "/", "/CreateChatToken/"])
async def test_unknown_path_is_refused(http: aiohttp.ClientSession, path: str) -> None:
    """A path that is no operation gives a modelled validation error."""
    async with http.post(path, json=TOKEN_REQUEST) as response:
        assert (400, "UNKNOWN_OPERATION") == (response.status, (await response.json())["reason"])


async def test_only_post_is_an_operation(http: aiohttp.ClientSession) -> None:
    """A GET of an operation's path performs nothing."""
    async with http.get("/CreateRoom") as response:
        assert 400 == response.status


# --- faults on the wire ---------------------------------------------------------------------------


async def test_bare_throttles_have_no_json(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """A bare throttle is HTML, or nothing, with the Retry-After that was set."""
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
    """A truncated answer is a whole HTTP response with half of a JSON text."""
    server.emulator.fail_next(Fault(FaultKind.TRUNCATE))
    async with http.post("/CreateChatToken", json=TOKEN_REQUEST) as response:
        body = await response.read()
    assert int(response.headers["Content-Length"]) == len(body)
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)


async def test_reset_connection_gives_no_answer(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """After a reset the client has no answer, and its next request is served."""
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
    """A reset of idle connections ends a pooled one; the server serves the next."""
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
    """A black hole does not answer, and ends on the server when the client leaves."""
    server.emulator.fail_next(Fault(FaultKind.BLACK_HOLE))
    with pytest.raises(botocore.exceptions.ReadTimeoutError):
        await client.create_chat_token(**TOKEN_REQUEST)
    await asyncio.sleep(0.05)
    assert (0, 1) == (server.emulator.counts().in_flight, server.emulator.counts().dropped)


async def test_server_stops_at_once_with_a_black_hole_open() -> None:
    """A server stops at once although a request is never answered."""
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
    """The Date header is the model's, skewed, garbled or absent; no framework adds one."""

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


# --- running it -----------------------------------------------------------------------------------


def test_threaded_server_serves_code_that_is_not_async() -> None:
    """A threaded server serves a plain botocore client without an event loop."""
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
    """A threaded server that ended has no thread, no port and no URL."""
    before = threading.active_count()
    with ThreadedEmulatorServer() as server:
        port = int(server.url.rpartition(":")[2])
    assert before == threading.active_count()
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_port_in_use_is_an_error_for_both_servers(server: EmulatorServer) -> None:
    """A port in use is an error of the context manager, of the threaded server's too."""
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(OSError, match="address"):
        await EmulatorServer(port=port).__aenter__()
    before = threading.active_count()
    with pytest.raises(OSError, match="address"):
        ThreadedEmulatorServer(port=port).__enter__()
    assert before == threading.active_count()
