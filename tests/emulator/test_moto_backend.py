"""IVS Chat in moto: the same answers as from the emulator's own server."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import botocore.exceptions
import pytest
from aiobotocore.session import get_session
from moto import mock_aws
from moto.server import ThreadedMotoServer

from aioivschat import InvalidConfiguration, PoolPolicy, TokenRequest
from aioivschat.emulator import Emulator, EmulatorServer, Fault, FaultKind, ThreadedEmulatorServer
from aioivschat.emulator.moto_backend import MotoServer, install
from support.emulators import ROOM, client_of
from support.services import OpenService, until


@pytest.fixture(scope="module")
def running_server() -> Iterator[MotoServer]:
    """A running moto server: its start and its end take a second."""
    with MotoServer() as running:
        yield running


@pytest.fixture
def server(running_server: MotoServer) -> MotoServer:
    """A running moto server whose model is as new."""
    running_server.emulator.reset()
    install(running_server.emulator)
    return running_server


async def test_moto_serves_every_operation(server: MotoServer) -> None:
    """moto serves rooms and tokens in the region of the client's signature."""
    async with client_of(server.url, region="eu-west-1") as client:
        room = await client.create_room(name="lobby")
        assert room["arn"].startswith("arn:aws:ivschat:eu-west-1:123456789012:room/")
        assert "lobby" == (await client.get_room(identifier=room["arn"]))["name"]
        assert [room["arn"]] == [each["arn"] for each in (await client.list_rooms())["rooms"]]
        reply = await client.create_chat_token(roomIdentifier=room["arn"], userId="alice")
        assert isinstance(reply["tokenExpirationTime"], datetime)
        assert "alice" == server.emulator.redeem(reply["token"]).user_id
        await client.delete_room(identifier=room["arn"])
        with pytest.raises(client.exceptions.ResourceNotFoundException):
            await client.get_room(identifier=room["arn"])


async def test_moto_reaches_chat_connections(server: MotoServer) -> None:
    """moto's chat operations act on whoever is connected to the model."""
    chat = server.emulator.chat
    async with client_of(server.url) as client:
        token = (await client.create_chat_token(roomIdentifier=ROOM, userId="alice"))["token"]
        connection = chat.connect(token, lambda _: None)
        reply = await client.send_event(roomIdentifier=ROOM, eventName="app:go")
        assert reply["id"] in str(connection.take())
        await client.disconnect_user(roomIdentifier=ROOM, userId="alice")
        assert connection.ending is not None
        with pytest.raises(client.exceptions.ResourceNotFoundException):
            await client.delete_message(roomIdentifier=ROOM, id="AbCdEf123456")


async def test_moto_serves_other_services_beside(server: MotoServer) -> None:
    """IVS itself is still moto's own."""
    async with get_session().create_client(
        "ivs",
        region_name="us-east-1",
        endpoint_url=server.url,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    ) as client:
        assert "stage" == (await client.create_channel(name="stage"))["channel"]["name"]


async def test_moto_checks_signatures(server: MotoServer) -> None:
    """moto refuses a request signed with a wrong secret."""
    async with client_of(server.url, secret="wrong") as client:
        with pytest.raises(botocore.exceptions.ClientError, match="InvalidSignatureException"):
            await client.create_chat_token(roomIdentifier=ROOM, userId="alice")


async def outcome(url: str, read_timeout: float = 2.0, **members: Any) -> object:
    """Return all that a client can see of one answer, but for what differs from one to the next."""
    async with client_of(url, read_timeout=read_timeout) as client:
        try:
            reply = await client.create_chat_token(
                **{"roomIdentifier": ROOM, "userId": "alice", **members}
            )
        except botocore.exceptions.ClientError as error:
            reply = error.response
        except botocore.exceptions.BotoCoreError as error:
            return isinstance(error, botocore.exceptions.ReadTimeoutError)
    metadata = reply.pop("ResponseMetadata")
    headers = metadata["HTTPHeaders"]
    seen = {name: headers.get(name) for name in ("content-type", "content-length", "retry-after")}
    shape = {
        name: type(value) if name in ("token", "sessionExpirationTime") else value
        for name, value in reply.items()
    }
    shape["tokenExpirationTime"] = str(reply.get("tokenExpirationTime"))[:4]
    date = re.sub(r"\d\d:\d\d:\d\d", "TIME", str(headers.get("date")))
    return metadata["HTTPStatusCode"], seen, shape, headers.get("x-amzn-errortype"), date


@pytest.mark.parametrize("kind", list(FaultKind))
async def test_moto_answers_faults_as_the_server_does(server: MotoServer, kind: FaultKind) -> None:
    """A client sees the same of each fault from moto as from the emulator's server."""
    async with EmulatorServer(verify_signatures=True) as own:
        for emulator in (own.emulator, server.emulator):
            emulator.fail_next(Fault(kind, retry_after="3"))
        # What is never answered need not be waited for as long as a busy machine's answer.
        patience = 0.2 if kind is FaultKind.BLACK_HOLE else 2.0
        assert await outcome(own.url, patience) == await outcome(server.url, patience)
    await until(lambda: server.emulator.counts().requests > 0)
    assert 1 == server.emulator.counts().requests


@pytest.mark.parametrize(
    "settings",
    [
        {"quota": "bucket:0.001:1"},  # one request in 1,000 s: the second one is always throttled
        {"any_room": False},
        {"clock_skew": 200.0},
        {"date_header": "absent"},
        {"date_header": "garbled"},
    ],
)
async def test_moto_follows_settings_as_the_server_does(
    server: MotoServer, settings: dict[str, Any]
) -> None:
    """Throttles, unknown rooms and the Date header of moto are the model's."""
    async with EmulatorServer(verify_signatures=True) as own:
        for emulator in (own.emulator, server.emulator):
            emulator.configure(**settings)
        members: dict[str, Any]
        for members in (
            {},
            {},
            {"sessionDurationInMinutes": 181},
            {"attributes": {"k": "v" * 1024}},
        ):
            assert await outcome(own.url, **members) == await outcome(server.url, **members)


async def test_black_hole_in_moto_holds_up_nobody_else(server: MotoServer) -> None:
    """moto answers other requests while one is never answered."""
    server.emulator.fail_next(Fault(FaultKind.BLACK_HOLE))
    first = asyncio.create_task(outcome(server.url, read_timeout=60.0))
    await until(lambda: server.emulator.counts().dropped > 0)
    second = await outcome(server.url)
    assert isinstance(second, tuple)
    assert 200 == second[0]
    assert not first.done()
    first.cancel()


async def test_installing_twice_keeps_one_backend() -> None:
    """Installing again keeps the emulator unless another is given; moto's server serves it."""
    emulator = Emulator(any_room=False)
    assert emulator is install(emulator)
    assert emulator is install()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    arn = emulator.create_room()["arn"]
    async with client_of(f"http://{host}:{port}") as client:
        assert (await client.create_chat_token(roomIdentifier=arn, userId="alice"))["token"]
    server.stop()


def test_decorator_of_moto_works_for_clients_that_are_not_async() -> None:
    """Within ``mock_aws`` there is no server; what needs a connection is refused clearly."""
    boto3 = pytest.importorskip("boto3")
    emulator = install(Emulator())
    with mock_aws():
        client = boto3.client("ivschat", region_name="us-east-1")
        room = client.create_room()["arn"]
        assert client.create_chat_token(roomIdentifier=room, userId="alice")["token"]
        emulator.fail_next(Fault(FaultKind.RESET))
        with pytest.raises(NotImplementedError, match="connection"):
            client.create_chat_token(roomIdentifier=room, userId="alice")


def test_server_that_does_not_run_has_no_url() -> None:
    """Before and after its context a server has no URL."""
    server = MotoServer()
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_emulator_does_not_import_moto() -> None:
    """The emulator's package and server do not import moto, which is an extra."""
    code = "import sys, aioivschat.emulator.server; sys.exit('moto' in sys.modules)"
    assert 0 == python(code).returncode


def test_missing_moto_names_the_extra() -> None:
    """The error without moto says what to install."""
    code = "import sys; sys.modules['moto'] = None; import aioivschat.emulator.moto_backend"
    assert "aioivschat[moto]" in python(code).stderr.splitlines()[-1]


@pytest.mark.fault(44)
@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "general"])
async def test_mock_aws_around_an_async_client_is_told_at_once(
    open_service: OpenService, prepared: bool
) -> None:
    """No retry, nothing unreadable: it says what answered, and what to use."""
    with mock_aws():
        service = open_service(session=None, endpoint_url=None, pool=PoolPolicy(prepared=prepared))
        for _ in range(2):
            with pytest.raises(InvalidConfiguration, match="mock_aws: use moto's server") as caught:
                await service.issue(TokenRequest(ROOM, "alice"))
        assert "session" == caught.value.option
        assert 2 == service.stats().requests


@pytest.mark.fault(44)
async def test_an_emulator_serves_within_mock_aws(
    open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """What goes to an endpoint of its own is not moto's."""
    with mock_aws():
        await open_service(session=None).issue(TokenRequest(ROOM, "alice"))
    assert 1 == ivschat_emulator.emulator.counts().requests


@pytest.mark.fault(44)
def test_a_server_for_one_test_gives_back_what_one_for_a_session_serves(
    server: MotoServer,
) -> None:
    """moto has one model of each service in a process."""
    from aioivschat.emulator import moto_backend

    with MotoServer() as other:
        assert other.emulator is moto_backend._emulator is not server.emulator
    assert server.emulator is moto_backend._emulator
