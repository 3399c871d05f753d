"""The chat edge, over real sockets and with a real WebSocket client."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import botocore.exceptions
import pytest
from aiobotocore.session import get_session
from aiohttp import ClientWebSocketResponse, WSMsgType
from botocore.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioivschat.emulator import (
    Close,
    Emulator,
    EmulatorServer,
    ThreadedEmulatorServer,
)
from support.emulators import ROOM

EVERYTHING = ["SEND_MESSAGE", "DELETE_MESSAGE", "DISCONNECT_USER"]
ONCE = Config(retries={"total_max_attempts": 1})


@pytest.fixture(autouse=True)
def quiet_server(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which the server, or the loop, complains of anything."""
    yield
    complaints = [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]
    assert [] == complaints


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client of all servers, which ends a test that would hang."""
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield session


Server = EmulatorServer | ThreadedEmulatorServer


def token_of(server: Server, user: str = "alice", **members: Any) -> str:
    """Return a new token."""
    body = {"roomIdentifier": ROOM, "userId": user, "capabilities": EVERYTHING, **members}
    token: str = server.emulator.create_chat_token(body)["token"]
    return token


class Client:
    """One open connection."""

    def __init__(self, websocket: ClientWebSocketResponse) -> None:
        self.websocket = websocket

    async def ask(self, action: str, **members: Any) -> None:
        """Send a request."""
        await self.websocket.send_json({"Action": action, **members})

    async def frame(self) -> dict[str, Any]:
        """Return the next frame."""
        frame: dict[str, Any] = await self.websocket.receive_json(timeout=10)
        return frame

    async def end(self) -> int | None:
        """Return the close code, 1006 for an end without a close; no frame may come before."""
        message = await self.websocket.receive(timeout=10)
        assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR), message
        return self.websocket.close_code


async def connect(
    server: Server, http: aiohttp.ClientSession, user: str = "alice", **members: Any
) -> Client:
    """Connect a user with a new token."""
    token = token_of(server, user, **members)
    return Client(await http.ws_connect(server.edge_url, protocols=[token]))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds; the limit only ends a test that would hang."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


# --- the handshake --------------------------------------------------------------------------------


async def test_token_is_echoed_as_the_protocol(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """The edge echoes the token as the subprotocol, which browsers require, on the same port."""
    assert server.url.removeprefix("http://") == server.edge_url.removeprefix("ws://")
    token = token_of(server)
    async with http.ws_connect(server.edge_url, protocols=[token]) as websocket:
        assert token == websocket.protocol
        assert (1, 1) == (server.emulator.counts().chat_open, server.emulator.counts().redeemed)
    await until(lambda: server.emulator.counts().chat_open == 0)


@pytest.mark.parametrize("path", ["/", "/any/path", "/CreateChatToken", "/_emulator"])
async def test_path_has_no_meaning(
    server: EmulatorServer, http: aiohttp.ClientSession, path: str
) -> None:
    """The token alone says where a connection belongs, whatever the path."""
    async with http.ws_connect(server.edge_url + path, protocols=[token_of(server)]) as websocket:
        await websocket.send_json({"Action": "SEND_MESSAGE", "Content": "x"})
        assert "MESSAGE" == (await websocket.receive_json(timeout=10))["Type"]


async def useless_tokens(server: EmulatorServer, http: aiohttp.ClientSession) -> list[list[str]]:
    """Return protocols to offer: a spent, an expired and a forged token, and none."""
    spent = token_of(server)
    await (await http.ws_connect(server.edge_url, protocols=[spent])).close()
    life = server.emulator.settings.token_life
    server.emulator.configure(token_life=0)
    expired = token_of(server)
    server.emulator.configure(token_life=life)
    return [[spent], [expired], ["forged"], []]


async def test_useless_token_is_refused_in_the_handshake(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """A useless token is refused with 403 by default, and counted."""
    for protocols in await useless_tokens(server, http):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(server.edge_url, protocols=protocols)
        assert 403 == refused.value.status
    counts = server.emulator.counts()
    assert (4, 1) == (counts.chat_refused, counts.chat_opened)


async def test_useless_token_can_be_refused_by_a_close(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """If so set, a useless token's connection opens and is closed with its own code."""
    server.emulator.configure(refusal="close")
    for protocols in await useless_tokens(server, http):
        websocket = await http.ws_connect(server.edge_url, protocols=protocols)
        assert (protocols[0] if protocols else None) == websocket.protocol
        assert 4401 == await Client(websocket).end()
    assert 4 == server.emulator.counts().chat_refused


async def test_useless_token_can_be_refused_by_an_error(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """If so set, a useless token's connection gets an ERROR with 401, then a close."""
    server.emulator.configure(refusal="error")
    for protocols in await useless_tokens(server, http):
        client = Client(await http.ws_connect(server.edge_url, protocols=protocols))
        frame = await client.frame()
        assert ("ERROR", 401) == (frame["Type"], frame["ErrorCode"])
        assert 1000 == await client.end()


async def test_handshake_that_is_none_spends_no_token(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """An invalid handshake, of an unknown version say, spends no token."""
    token = token_of(server)
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "99",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Protocol": token,
    }
    async with http.get(server.url, headers=headers) as response:
        assert 400 == response.status
    async with http.ws_connect(server.edge_url, protocols=[token]) as websocket:
        assert token == websocket.protocol


async def raw_handshake(server: EmulatorServer, protocol: bytes) -> bytes:
    """Return the status line of the answer to a handshake, written by hand."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        b"Sec-WebSocket-Protocol: " + protocol + b"\r\n\r\n"
    )
    status = await reader.readline()
    writer.close()
    return status


@pytest.mark.parametrize("refusal", ["http", "close", "error"])
async def test_protocol_that_is_none_fails_the_handshake(
    server: EmulatorServer, refusal: str
) -> None:
    """A protocol that no header may hold is a malformed request, and never logged."""
    server.emulator.configure(refusal=refusal)
    for protocol in (b"\xff\xfe", b"a b", b'"quoted"', "ü".encode(), b"", b", x"):
        assert b"HTTP/1.1 400 Bad Request\r\n" == await raw_handshake(server, protocol)


async def test_first_protocol_is_the_token(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """The first protocol offered is the token, whatever else the client offers."""
    token = token_of(server)
    async with http.ws_connect(server.edge_url, protocols=[token, "chat"]) as websocket:
        assert token == websocket.protocol


async def test_refused_token_is_not_logged(
    server: EmulatorServer, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    """No refused token is logged at any level, valid or not, however it is refused."""
    caplog.set_level(logging.DEBUG)
    token = token_of(server)
    await (await http.ws_connect(server.edge_url, protocols=[token])).close()
    server.emulator.configure(refusal="close")
    await Client(await http.ws_connect(server.edge_url, protocols=[token])).end()
    assert token not in caplog.text


# --- chatting -------------------------------------------------------------------------------------


async def test_two_users_chat(server: EmulatorServer, http: aiohttp.ClientSession) -> None:
    """Two users both see both messages, in one order, with the sender's attributes."""
    alice = await connect(server, http, attributes={"displayName": "Alice"})
    bob = await connect(server, http, "bob")
    await alice.ask("SEND_MESSAGE", Content="hi", RequestId="r-1")
    heard = [await alice.frame(), await bob.frame()]
    await bob.ask("SEND_MESSAGE", Content="ho", Attributes={"a": "b"})
    heard += [await alice.frame(), await bob.frame()]
    assert [("alice", "hi")] * 2 + [("bob", "ho")] * 2 == [
        (frame["Sender"]["UserId"], frame["Content"]) for frame in heard
    ]
    assert {"displayName": "Alice"} == heard[0]["Sender"]["Attributes"]
    assert ("r-1", {"a": "b"}) == (heard[1]["RequestId"], heard[3]["Attributes"])


async def test_message_is_deleted(server: EmulatorServer, http: aiohttp.ClientSession) -> None:
    """A user with the capability deletes a message, and the others are told."""
    moderator = await connect(server, http, "mod")
    viewer = await connect(server, http, "bob", capabilities=[])
    await moderator.ask("SEND_MESSAGE", Content="x")
    message = await viewer.frame()
    await viewer.ask("DELETE_MESSAGE", Id=message["Id"], RequestId="r-2")
    error = await viewer.frame()
    assert (403, "r-2") == (error["ErrorCode"], error["RequestId"])
    await moderator.ask("DELETE_MESSAGE", Id=message["Id"], Reason="spam")
    event = await viewer.frame()
    assert ("aws:DELETE_MESSAGE", message["Id"]) == (
        event["EventName"],
        event["Attributes"]["MessageID"],
    )


async def test_user_is_disconnected(server: EmulatorServer, http: aiohttp.ClientSession) -> None:
    """A disconnected user gets the event and an orderly close; the moderator stays."""
    moderator, bob = await connect(server, http, "mod"), await connect(server, http, "bob")
    await moderator.ask("DISCONNECT_USER", UserId="bob", Reason="rude")
    for client in (moderator, bob):
        assert "aws:DISCONNECT_USER" == (await client.frame())["EventName"]
    assert 1000 == await bob.end()
    await moderator.ask("SEND_MESSAGE", Content="gone")
    assert "gone" == (await moderator.frame())["Content"]


async def test_connection_that_asks_too_much_is_told(http: aiohttp.ClientSession) -> None:
    """Ten requests within a second are served, by the model's clock, the next refused."""
    async with EmulatorServer(Emulator(monotonic=lambda: 0.0)) as server:
        client = await connect(server, http)
        for _ in range(11):
            await client.ask("SEND_MESSAGE", Content="x")
        codes = [(await client.frame()).get("ErrorCode", 200) for _ in range(11)]
        assert [200] * 10 + [429] == codes


frames = st.text() | st.binary() | st.sampled_from(["{", "[]", "null", "[" * 5_000, b"{}"])


@given(st.lists(frames, min_size=1, max_size=5))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_malformed_frames_get_an_error_each(
    ivschat_emulator: ThreadedEmulatorServer, data: list[str | bytes]
) -> None:
    """Each malformed frame gets an ERROR, never a 500; the connection stays open."""

    async def converse() -> list[int]:
        async with aiohttp.ClientSession() as http:
            client = await connect(ivschat_emulator, http)
            for frame in data:
                await (
                    client.websocket.send_str(frame)
                    if isinstance(frame, str)
                    else client.websocket.send_bytes(frame)
                )
            codes = [(await client.frame())["ErrorCode"] for _ in data]
            await client.websocket.close()
            return codes

    assert [400] * len(data) == asyncio.run(converse())


async def test_text_that_is_no_utf8_closes_the_connection(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """Text that is no UTF-8, or far too large, closes its connection only (RFC 6455)."""
    client = await connect(server, http)
    await client.websocket._writer.send_frame(b"\xff", WSMsgType.TEXT)
    assert 1007 == await client.end()
    client = await connect(server, http)
    await client.websocket.send_str("x" * 200_000)
    assert 1009 == await client.end()
    await until(lambda: server.emulator.counts().chat_open == 0)
    async with http.ws_connect(server.edge_url, protocols=[token_of(server)]) as websocket:
        assert not websocket.closed


async def test_large_frame_gets_an_error(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """A frame beyond the API's limits, but not far beyond, gets an ERROR."""
    client = await connect(server, http)
    await client.ask("SEND_MESSAGE", Content="x" * 100_000, RequestId="r-3")
    error = await client.frame()
    assert (413, "r-3") == (error["ErrorCode"], error["RequestId"])


# --- how connections end --------------------------------------------------------------------------


async def test_session_ends_by_itself(http: aiohttp.ClientSession) -> None:
    """An idle session ends with a 401 and a close, and not before its time."""
    async with EmulatorServer(Emulator(minute=0.2)) as server:
        loop = asyncio.get_running_loop()
        started = loop.time()
        client = await connect(server, http, sessionDurationInMinutes=1)
        frame = await client.frame()
        assert ("ERROR", 401) == (frame["Type"], frame["ErrorCode"])
        assert loop.time() - started >= 0.19
        assert 1000 == await client.end()
        assert 0 == server.emulator.counts().chat_open


async def test_connections_are_dropped_at_once(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """Dropped connections end without a close frame; a new token connects again."""
    alice, bob = await connect(server, http), await connect(server, http, "bob")
    async with http.post(f"{server.url}/_emulator/drop", json={"user": "bob"}) as response:
        assert {"dropped": 1} == await response.json()
    assert 1006 == await bob.end()
    bob = await connect(server, http, "bob")
    async with http.post(f"{server.url}/_emulator/drop") as response:
        assert {"dropped": 2} == await response.json()
    assert [1006, 1006] == [await alice.end(), await bob.end()]
    assert 0 == server.drop_connections()


@pytest.mark.parametrize("body", [{"user": 5}, {"who": "bob"}, []])
async def test_drop_that_names_nobody_is_refused(
    server: EmulatorServer, http: aiohttp.ClientSession, body: object
) -> None:
    """A drop that names nobody is refused, so that no slip drops everybody."""
    async with http.post(f"{server.url}/_emulator/drop", json=body) as response:
        assert 400 == response.status


async def test_reset_closes_connections(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """A reset closes connections in order."""
    client = await connect(server, http)
    await http.post(f"{server.url}/_emulator/reset")
    assert 1001 == await client.end()


async def test_stopping_server_closes_its_connections_only(http: aiohttp.ClientSession) -> None:
    """A server that stops closes its connections; those of another server stay."""
    emulator = Emulator()
    async with EmulatorServer(emulator) as other:
        stays = await connect(other, http)
        async with EmulatorServer(emulator) as server:
            leaves = await connect(server, http, "bob")
            ending = asyncio.create_task(leaves.end())
            await asyncio.sleep(0)
        assert 1001 == await ending
        assert 1 == emulator.counts().chat_open
        await stays.ask("SEND_MESSAGE", Content="still here")
        assert "still here" == (await stays.frame())["Content"]


async def test_client_that_vanishes_is_forgotten(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """A client whose socket ends without a close frame is forgotten."""
    client = await connect(server, http)
    transport = client.websocket.get_extra_info("socket")
    transport.shutdown(socket.SHUT_RDWR)
    await until(lambda: server.emulator.counts().chat_open == 0)


class Deaf:
    """A client that connects, and from then on reads nothing."""

    def __init__(self, server: EmulatorServer, token: str) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self.socket = socket.socket()
        # Small, so that little fits in between.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect((host, int(port)))
        self.socket.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"Sec-WebSocket-Protocol: " + token.encode() + b"\r\n\r\n"
        )


async def test_a_second_connection_overtakes_nothing(server: EmulatorServer) -> None:
    """When a client sees its new connection open, it has what was said before that one joined.

    The SDK drops the old connection in that moment.
    """
    old = Deaf(server, token_of(server))
    await until(lambda: server.emulator.counts().chat_open == 1)
    told: list[str] = []

    async def tell_until_joined() -> None:
        while server.emulator.counts().chat_open == 1:
            told.append(server.emulator.send_event(EVENT | {"attributes": {}})["id"])
            await asyncio.sleep(0)

    async def read_once_open() -> bytes:
        while not select.select([new.socket], [], [], 0)[0]:
            await asyncio.sleep(0)
        return old.socket.recv(1_000_000)

    new = Deaf(server, token_of(server))
    # In this order: the reader looks before the frame of the last turn is sent.
    with contextlib.closing(old.socket), contextlib.closing(new.socket):
        received, _ = await asyncio.wait_for(
            asyncio.gather(read_once_open(), tell_until_joined()), timeout=10
        )
    assert [identifier for identifier in told if identifier.encode() not in received] == []
    assert told


def ticking() -> Emulator:
    """Return an emulator in which every rate has had a second to recover."""
    ticks = itertools.count()
    return Emulator(monotonic=lambda: float(next(ticks)))


EVENT = {"roomIdentifier": ROOM, "eventName": "x", "attributes": {"filler": "x" * 1000}}


async def test_slow_consumer_blocks_nobody_and_is_dropped(http: aiohttp.ClientSession) -> None:
    """A client that does not read is cut off; the others get every event soon."""
    async with EmulatorServer(ticking()) as server:
        quick = await connect(server, http)
        deaf = Deaf(server, token_of(server, "deaf"))
        await until(lambda: server.emulator.counts().chat_open == 2)
        sent = 0
        async with asyncio.timeout(30):
            while server.emulator.counts().chat_open == 2:
                identifier = server.emulator.send_event(EVENT)["id"]
                assert identifier == (await quick.frame())["Id"]
                sent += 1
        assert sent > 1_000
        with pytest.raises(ConnectionResetError):
            while deaf.socket.recv(65536):
                pass
        deaf.socket.close()


async def test_slow_consumer_is_disconnected_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that reads neither the frames nor the close is reset after a while."""
    monkeypatch.setattr("aioivschat.emulator._edge._CLOSE_TIMEOUT_SECONDS", 0.1)
    async with EmulatorServer(ticking()) as server:
        emulator, before = server.emulator, len(asyncio.all_tasks())
        deaf = Deaf(server, token_of(server, "deaf"))
        await until(lambda: emulator.counts().chat_open == 1)
        (connection,) = emulator.chat._open_connections()
        while len(connection._outbox) < 100:  # until nothing fits in between any more
            for _ in range(100):
                emulator.send_event(EVENT)
            await asyncio.sleep(0.01)
        emulator.disconnect_user({"roomIdentifier": ROOM, "userId": "deaf"})
        assert isinstance(connection.ending, Close)
        await until(lambda: len(asyncio.all_tasks()) == before)
        with pytest.raises(ConnectionResetError):
            while deaf.socket.recv(65536):
                pass
        deaf.socket.close()


# --- the control plane ----------------------------------------------------------------------------


async def test_client_of_the_control_plane_reaches_the_room(http: aiohttp.ClientSession) -> None:
    """botocore's own calls, signed and checked, act on the edge's connections."""
    async with EmulatorServer(verify_signatures=True) as server:
        session: Any = get_session()
        options: dict[str, Any] = {
            "region_name": "us-east-1",
            "endpoint_url": server.url,
            "aws_access_key_id": "testing",
            "config": ONCE,
        }
        async with session.create_client(
            "ivschat", aws_secret_access_key="testing", **options
        ) as control:
            viewer = await connect(server, http, "bob")
            reply = await control.send_event(
                roomIdentifier=ROOM, eventName="app:go", attributes={"a": "b"}
            )
            event = await viewer.frame()
            assert (reply["id"], "app:go", {"a": "b"}) == (
                event["Id"],
                event["EventName"],
                event["Attributes"],
            )
            await viewer.ask("SEND_MESSAGE", Content="x")
            message = await viewer.frame()
            reply = await control.delete_message(roomIdentifier=ROOM, id=message["Id"])
            assert reply["id"] == (await viewer.frame())["Id"]
            with pytest.raises(control.exceptions.ResourceNotFoundException):
                await control.delete_message(roomIdentifier=ROOM, id="AbCdEf123456")
            await control.disconnect_user(roomIdentifier=ROOM, userId="bob", reason="rude")
            assert "rude" == (await viewer.frame())["Attributes"]["Reason"]
            assert 1000 == await viewer.end()
        async with session.create_client(
            "ivschat", aws_secret_access_key="wrong", **options
        ) as stranger:
            with pytest.raises(botocore.exceptions.ClientError, match="InvalidSignature"):
                await stranger.send_event(roomIdentifier=ROOM, eventName="x")


async def test_counts_are_on_the_admin_surface(
    server: EmulatorServer, http: aiohttp.ClientSession
) -> None:
    """The admin surface counts connections, refusals, messages and events of the edge."""
    client = await connect(server, http)
    await client.ask("SEND_MESSAGE", Content="x")
    await client.frame()
    server.emulator.send_event(EVENT)
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await http.ws_connect(server.edge_url)
    async with http.get(f"{server.url}/_emulator") as response:
        counts = (await response.json())["counts"]
    names = ("chat_open", "chat_opened", "chat_refused", "messages", "events")
    assert (1, 1, 1, 1, 1) == tuple(counts[name] for name in names)


# --- threads --------------------------------------------------------------------------------------


async def test_model_is_used_from_other_threads(
    ivschat_emulator: ThreadedEmulatorServer, http: aiohttp.ClientSession
) -> None:
    """Events, messages and drops reach the server from other threads; none is lost."""
    server = ivschat_emulator
    client = await connect(server, http)
    for n in range(50):
        server.emulator.send_event({**EVENT, "eventName": f"e{n}"})
    assert [f"e{n}" for n in range(50)] == [(await client.frame())["EventName"] for _ in range(50)]
    assert 1 == server.drop_connections("alice")
    assert 1006 == await client.end()


async def test_fixture_starts_each_test_without_connections(
    ivschat_emulator: ThreadedEmulatorServer, http: aiohttp.ClientSession
) -> None:
    """Each test starts without the connections and counts of the one before."""
    assert ivschat_emulator.edge_url.startswith("ws://127.0.0.1:")
    counts = ivschat_emulator.emulator.counts()
    assert (0, 0) == (counts.chat_open, counts.chat_opened)


def test_server_that_does_not_run_has_no_edge() -> None:
    """A server that does not run has no edge's URL, as it has no endpoint's."""
    with pytest.raises(RuntimeError, match="not running"):
        _ = EmulatorServer().edge_url
