"""The admin surface of a running emulator."""

from __future__ import annotations

import aiohttp
import pytest

from aioivschat.emulator import EmulatorServer
from support.emulators import TOKEN_REQUEST


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
    """An unknown admin request is refused with a message that says what is wrong."""
    async with http.request(method, path, json=body) as response:
        assert status == response.status
        assert (await response.json())["message"]
