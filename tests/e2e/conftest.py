"""Clients with the SDK in Node, and Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from aioivschat.emulator import ThreadedEmulatorServer
from e2e.stage import Clients, Stage, open_clients, open_stage
from support.node import Node

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
