"""The emulator as a process: ``python -m aioivschat.emulator``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import aiohttp
import pytest

from support.emulators import TOKEN_REQUEST


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
    """The process prints one line of JSON, uses its options, and exits with 0 on a signal."""
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
    """Bad arguments give exit status 2 and one line that says what is wrong, no traceback."""
    with run(*arguments) as process:
        printed, complaints = process.communicate(timeout=10)
    assert (2, "") == (process.returncode, printed)
    assert "error:" in complaints
    assert "Traceback" not in complaints
