"""The demo: the command's beginning and end, and what its web server answers to whom."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.commands import SOON, Command
from support.hostile import hostile_environment

Process = Command | subprocess.Popen[bytes]

DEMO = ("demo", "--no-open")


class Demo:
    """A running demo.

    Args:
        process: the command.
        url: the page's.
        http: a client that resolves against it.
    """

    def __init__(self, process: Process, url: str, http: aiohttp.ClientSession) -> None:
        self.process = process
        self.url = url
        self.http = http

    async def token(self, who: str | None, **body: Any) -> tuple[int, dict[str, Any]]:
        """Ask for a token; return the status and the answer."""
        headers = {} if who is None else {"Demo-Person": who}
        async with self.http.post("/chat/token", json=body, headers=headers) as response:
            return response.status, json.loads(await response.read())

    async def state(self) -> dict[str, Any]:
        """Return what the page shows."""
        async with self.http.get("/demo/state") as response:
            state: dict[str, Any] = await response.json()
            return state

    async def until(self, name: str, value: object) -> None:
        """Wait until a member of the state has a value."""
        async with asyncio.timeout(SOON):
            while (await self.state())[name] != value:
                await asyncio.sleep(0.02)

    async def connect(self, token: str) -> aiohttp.ClientWebSocketResponse:
        """Open a chat connection."""
        return await self.http.ws_connect("/edge", protocols=[token])


def start(*arguments: str) -> Command:
    """Run the command with both outputs in pipes."""
    return Command([*DEMO, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def start_afresh(environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Run it as a process of its own from the beginning, which takes longer."""
    command = [sys.executable, "-m", "aioivschat", *DEMO]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe)


async def url_of(process: Process) -> str:
    """Return the URL that a command tells."""
    assert process.stdout is not None
    async with asyncio.timeout(SOON):
        url: str = json.loads(await asyncio.to_thread(process.stdout.readline))["url"]
    return url


async def end_of(process: Process) -> tuple[bytes, bytes]:
    """Return the rest of what a command writes, and what it says, to its end."""
    rest, messages = await asyncio.to_thread(process.communicate, timeout=SOON)
    return rest, messages


@pytest.fixture
async def demo() -> AsyncIterator[Demo]:
    """A demo that has nothing to complain of to its end, and a client of it."""
    process = start("--rate", "20")
    try:
        url = await url_of(process)
        async with aiohttp.ClientSession(url) as http:
            yield Demo(process, url, http)
    finally:
        process.send_signal(signal.SIGINT)
        _, messages = await end_of(process)
    assert 130 == process.returncode
    assert 1 == len(messages.splitlines()), messages


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
async def test_it_tells_the_url_and_ends_by_a_signal(number: signal.Signals, status: int) -> None:
    """One line for people, one for programs, and the status of the other commands."""
    process = start()
    url = await url_of(process)
    process.send_signal(number)
    rest, messages = await end_of(process)
    assert (status, b"") == (process.returncode, rest)
    told = re.escape(url).encode()
    assert re.fullmatch(rb"aioivschat: the demo is at " + told + rb" \(.+\)\n", messages)


async def test_it_ends_in_the_midst_of_things(demo: Demo) -> None:
    """With people connected, a crowd half inside, and somebody waiting for a token."""
    _, granted = await demo.token("host")
    websocket = await demo.connect(granted["token"])
    async with demo.http.post("/demo/crowd", json={"viewers": 100}) as response:
        assert {"coming": 100} == await response.json()
    waiting = asyncio.create_task(demo.token("viewer"))
    while (await demo.state())["waiting"] < 50:
        await asyncio.sleep(0.02)
    demo.process.send_signal(signal.SIGINT)
    async with asyncio.timeout(SOON):
        assert aiohttp.WSMsgType.CLOSE == (await websocket.receive()).type
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.to_thread(demo.process.wait)


@pytest.mark.fault(48)
async def test_it_reads_no_configuration_of_aws(tmp_path: Path) -> None:
    """The demo works whatever the user's AWS configuration and proxies are."""
    elsewhere = {**os.environ, **hostile_environment(tmp_path)}
    process = start_afresh(elsewhere)
    async with aiohttp.ClientSession(await url_of(process)) as http:
        status, _ = await Demo(process, "", http).token("host")
    assert 200 == status
    process.send_signal(signal.SIGINT)
    assert b"" != (await end_of(process))[1]


async def test_a_port_that_is_taken_is_a_failure(demo: Demo) -> None:
    """A port in use is reported in one line, with status 1."""
    taken = demo.url.rstrip("/").rpartition(":")[2]
    process = start("--port", taken)
    rest, messages = await end_of(process)
    assert (1, b"") == (process.returncode, rest)
    assert 1 == len(messages.splitlines())
    assert b"in use" in messages


@pytest.mark.parametrize(
    "arguments", [("--port", "65536"), ("--port", "http"), ("--rate", "0"), ("page",)]
)
async def test_wrong_use_is_status_2(arguments: tuple[str, ...]) -> None:
    """Arguments that cannot be used end the demo with status 2."""
    process = start(*arguments)
    await end_of(process)
    assert 2 == process.returncode


@pytest.mark.parametrize(
    ("who", "may"),
    [
        ("host", {"SEND_MESSAGE", "DELETE_MESSAGE", "DISCONNECT_USER"}),
        ("viewer", {"SEND_MESSAGE"}),
    ],
)
async def test_the_two_get_tokens_for_what_each_may(demo: Demo, who: str, may: set[str]) -> None:
    """Host and viewer get tokens with their own capabilities, which the edge accepts."""
    status, granted = await demo.token(who, capabilities=sorted(may))
    assert 200 == status
    websocket = await demo.connect(granted["token"])
    await websocket.send_json({"Action": "SEND_MESSAGE", "RequestId": "1", "Content": "hello"})
    heard = await websocket.receive_json()
    assert ("hello", who) == (heard["Content"], heard["Sender"]["UserId"])
    for action, capability in (
        ({"Action": "DELETE_MESSAGE", "Id": heard["Id"]}, "DELETE_MESSAGE"),
        ({"Action": "DISCONNECT_USER", "UserId": "nobody"}, "DISCONNECT_USER"),
    ):
        await websocket.send_json(action)
        answer = await websocket.receive_json()
        expected = "EVENT" if capability in may else "ERROR"
        assert expected == answer["Type"]
    await websocket.close()


@pytest.mark.parametrize("who", [None, "", "crowd-1", "Host", "admin"])
async def test_nobody_else_gets_a_token(demo: Demo, who: str | None) -> None:
    """Without the header of a known person there is no token, whatever the body says."""
    status, problem = await demo.token(who, user="host")
    assert 403 == status
    assert "token" not in problem
    assert 1 == (await demo.state())["refused"]
    assert 0 == (await demo.state())["issued"]


@pytest.mark.parametrize(
    "body",
    [
        {"user": "host"},
        {"room": "arn:aws:ivschat:us-east-1:123456789012:room/Other"},
        {"capabilities": ["SEND_MESSAGE", "DELETE_MESSAGE"]},
        {"attributes": {"displayName": "Host"}},
    ],
)
async def test_the_viewer_gets_no_more_than_their_own(demo: Demo, body: dict[str, Any]) -> None:
    """The viewer is refused another's name or room, and more rights."""
    status, _ = await demo.token("viewer", **body)
    assert 403 == status


async def test_the_state_tells_what_became_of_the_tokens(demo: Demo) -> None:
    """A crowd waits and coalesces, is never throttled, and goes when it is sent away."""
    empty = await demo.state()
    assert {
        "quota": 20.0,
        "rate": 0,
        "issued": 0,
        "waiting": 0,
        "wait": empty["wait"],
        "coalesced": 0,
        "refused": 0,
        "throttled": 0,
        "connections": 0,
        "crowd": {"all": 0, "in": 0, "max": 200},
    } == empty
    async with demo.http.post("/demo/crowd", json={"viewers": 30}) as response:
        assert {"coming": 30} == await response.json()
    most = {"waiting": 0, "wait": 0.0, "rate": 0.0}
    async with asyncio.timeout(SOON):
        while (state := await demo.state())["crowd"]["in"] < 30:
            most = {name: max(value, state[name]) for name, value in most.items()}
            await asyncio.sleep(0.02)
    assert 20 < most["waiting"] <= 30
    assert 1.0 < most["wait"] < 2.0
    assert 15 < most["rate"] <= 20
    assert (30, 6, 0, 0) == tuple(
        state[name] for name in ("issued", "coalesced", "refused", "throttled")
    )
    assert 30 == state["connections"]
    async with demo.http.delete("/demo/crowd") as response:
        assert 204 == response.status
    await demo.until("connections", 0)


async def test_a_crowd_has_a_limit(demo: Demo) -> None:
    """What is over it does not come, and those who would wait too long are refused."""
    coming = []
    for _ in range(3):
        async with demo.http.post("/demo/crowd", json={"viewers": 100}) as response:
            coming.append((await response.json())["coming"])
    assert [100, 100, 0] == coming
    async with asyncio.timeout(SOON):
        while not (await demo.state())["refused"]:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        ('{"viewers": 1}', "text/plain", 415),
        ("no JSON", "application/json", 400),
        ("[]", "application/json", 400),
        ("{}", "application/json", 400),
        ('{"viewers": 0}', "application/json", 400),
        ('{"viewers": 1000000}', "application/json", 400),
        ('{"viewers": true}', "application/json", 400),
    ],
)
async def test_a_crowd_that_makes_no_sense_does_not_come(
    demo: Demo, body: str, content_type: str, status: int
) -> None:
    """A malformed request for a crowd, or one from another origin, starts nobody."""
    headers = {"Content-Type": content_type}
    async with demo.http.post("/demo/crowd", data=body, headers=headers) as response:
        assert status == response.status
    assert 0 == (await demo.state())["crowd"]["all"]


async def test_a_connection_is_dropped_without_a_good_bye(demo: Demo) -> None:
    """The other's stays, and the token that was used is of no use any more."""
    websockets = {}
    for who in ("host", "viewer"):
        _, granted = await demo.token(who)
        websockets[who] = await demo.connect(granted["token"])
    async with demo.http.post("/demo/drop", headers={"Demo-Person": "viewer"}) as response:
        assert {"dropped": 1} == await response.json()
    async with asyncio.timeout(SOON):
        lost = await websockets["viewer"].receive()
    assert lost.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
    await demo.until("connections", 1)
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await demo.connect(granted["token"])
    async with demo.http.post("/demo/drop") as response:
        assert 403 == response.status
    await websockets["host"].close()


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html"),
        ("/demo.css", "text/css"),
        ("/demo.js", "text/javascript"),
        ("/demo.svg", "image/svg+xml"),
        ("/chat/token-provider.js", "text/javascript"),
        ("/demo/state", "application/json"),
    ],
)
async def test_the_page_may_load_nothing_from_elsewhere(
    demo: Demo, path: str, content_type: str
) -> None:
    """By its policy; and no type is guessed."""
    async with demo.http.get(path) as response:
        assert (200, content_type) == (response.status, response.content_type)
        policy = response.headers["Content-Security-Policy"].split("; ")
        assert "default-src 'self'" in policy
        assert "unsafe" not in str(policy)
        assert "nosniff" == response.headers["X-Content-Type-Options"]


def test_the_files_are_in_the_package_and_name_no_other_place() -> None:
    """They hold neither an address nor code within the HTML, which the policy would forbid."""
    static = resources.files("aioivschat.demo") / "static"
    for name in ("demo.html", "demo.css", "demo.js", "demo.svg"):
        text = (static / name).read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^ *//.*$|; // .*$", "", text, flags=re.MULTILINE), name
    page = (static / "demo.html").read_text("utf-8")
    assert not re.search(r"<style|\bstyle=|\bon\w+=|<script(?! type=\"module\" src)", page)
    assert "innerHTML" not in (static / "demo.js").read_text("utf-8")
