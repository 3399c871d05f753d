"""Node with the SDK, and Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aioivschat.emulator import ThreadedEmulatorServer
from e2e.stage import HERE, Clients, Node, Stage, open_clients, open_stage

if TYPE_CHECKING:
    from playwright.async_api import Browser

OpenStage = Callable[..., AbstractAsyncContextManager[Stage]]
OpenClients = Callable[..., AbstractAsyncContextManager[Clients]]
Show = Callable[[str], None]

_CHROMIUM_OPTIONS = [
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def node() -> Node:
    """Node 20 or later, and the SDK.

    The SDK is installed once, here or in the folder that ``AIOIVSCHAT_E2E_CACHE`` names.
    """
    executable = shutil.which("node")
    npm = shutil.which("npm")
    assert executable is not None, "these tests need Node 20 or later"
    assert npm is not None, "these tests need npm"
    version = subprocess.run(
        [executable, "--version"], capture_output=True, text=True, check=True
    ).stdout
    major = int(version.strip().removeprefix("v").partition(".")[0])
    assert major >= 20, f"these tests need Node 20 or later: this is {version.strip()}"
    # From 22 on, Node has WebSockets without being told.
    options = ["--experimental-websocket", "--no-warnings"] if major < 22 else []
    folder = Path(os.environ.get("AIOIVSCHAT_E2E_CACHE", HERE))
    folder.mkdir(parents=True, exist_ok=True)
    if folder != HERE:
        for name in ("package.json", ".npmrc"):
            shutil.copy(HERE / name, folder)
    installed = Node([executable, *options], folder / "node_modules")
    if not (installed.sdk.exists() and installed.uuid.exists()):
        subprocess.run([npm, "install", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return installed


@pytest.fixture
def stage(ivschat_emulator: ThreadedEmulatorServer) -> OpenStage:
    """Opens a stage; the arguments are those of ``open_stage``, but for the emulator."""
    return partial(open_stage, ivschat_emulator)


@pytest.fixture
def clients(node: Node) -> OpenClients:
    """Runs clients on a stage; the arguments are those of ``open_clients``, but for Node."""
    return partial(open_clients, node)


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    """Prints a line, whether or not the test passes."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n    {text}", end="", flush=True)

    return line


@pytest.fixture(scope="session")
def chromium_executable() -> str:
    """Debian's Chromium, or the one that ``CHROMIUM`` names."""
    named = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    executable = shutil.which(named)
    assert executable is not None, f"these tests need Chromium: there is no {named}"
    return executable


@pytest.fixture
async def chromium(chromium_executable: str) -> AsyncIterator[Browser]:
    """A running Chromium."""
    # Not among the dependencies of other tests.
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium_executable,
            args=_CHROMIUM_OPTIONS,
            chromium_sandbox=False,
        )
        yield browser
        await browser.close()
