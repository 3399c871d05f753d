"""The demo's page in Chromium: what its two people can do, and what it shows of their tokens."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page

pytestmark = pytest.mark.e2e

SOON = 20_000  # milliseconds; far more than anything here takes
MARKUP = "<img src=x onerror=\"document.title='harmed'\"> <b>bold</b> &amp; more"

_CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Run the command; give its page's URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aioivschat", "demo", "--no-open"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())["url"]
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert 130 == process.returncode


@pytest.fixture
async def page(url: str) -> AsyncIterator[Page]:
    """Open the page, as wide as a phone; it has nothing to complain of, and never scrolls aside."""
    from playwright.async_api import async_playwright

    wrong: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=_CHROMIUM_OPTIONS
        )
        context = await browser.new_context(viewport={"width": 390, "height": 844})
        context.set_default_timeout(SOON)
        page = await context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        await page.goto(url)
        for who in ("host", "viewer"):
            await status(page, who, "Connected")
        yield page
        assert not await scrolls_aside(page)
        await browser.close()
    assert [] == wrong


async def status(page: Page, who: str, text: str) -> None:
    """Wait until somebody's status is this."""
    await page.locator(f"#{who} .state", has_text=re.compile(f"^{text}$")).wait_for()


async def say(page: Page, who: str, text: str) -> None:
    """Send a message as somebody would who has a keyboard only."""
    field = page.get_by_role("textbox", name=f"Message from the {who}")
    await field.fill(text)
    await field.press("Enter")


def press(page: Page, who: str, name: str) -> Locator:
    """Return somebody's button."""
    return page.locator(f"#{who}").get_by_role("button", name=name)


def heard(page: Page, who: str, text: str) -> Locator:
    """Return a line of what somebody sees."""
    return page.locator(f"#{who} .log li").filter(has_text=text)


async def figure(page: Page, name: str) -> int:
    """Return one of the figures."""
    return int(await page.locator(f"#{name}").inner_text())


async def reaches(page: Page, name: str, least: int) -> None:
    """Wait until a figure is at least so much."""
    await page.wait_for_function(
        "([name, least]) => Number(document.getElementById(name).textContent) >= least",
        arg=[name, least],
    )


async def scrolls_aside(page: Page) -> bool:
    """Tell whether something is wider than the page."""
    wider: bool = await page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return wider


async def test_the_two_chat(page: Page) -> None:
    """Each sees what both wrote, once."""
    await say(page, "host", "Welcome")
    await say(page, "viewer", "Hello")
    for who in ("host", "viewer"):
        for text in ("Welcome", "Hello"):
            line = heard(page, who, text)
            await line.wait_for()
            assert 1 == await line.count()
    assert "Viewer" == await heard(page, "host", "Hello").locator("b").inner_text()
    assert "You" == await heard(page, "viewer", "Hello").locator("b").inner_text()
    await reaches(page, "issued", 2)
    assert 2 == await figure(page, "issued")


async def test_markup_is_shown_as_it_was_written(page: Page) -> None:
    """No message makes an element, and none widens the page."""
    await say(page, "viewer", MARKUP)
    await say(page, "viewer", "w" * 500)
    for who in ("host", "viewer"):
        await heard(page, who, "wwww").wait_for()
        assert MARKUP == await heard(page, who, "<img").locator("span").inner_text()
        assert 0 == await page.locator(f"#{who} .log img").count()
    assert "aioivschat demo" == await page.title()
    for width in (320, 390, 820, 1280):
        await page.set_viewport_size({"width": width, "height": 800})
        assert not await scrolls_aside(page), width


async def test_the_host_deletes_a_message(page: Page) -> None:
    """It goes from both; the viewer has no button for it."""
    await say(page, "viewer", "Better unsaid")
    await heard(page, "host", "Better unsaid").wait_for()
    assert 0 == await press(page, "viewer", "Delete").count()
    await press(page, "host", "Delete the message “Better unsaid”").click()
    for who in ("host", "viewer"):
        await heard(page, who, "Deleted by the host").wait_for()
        assert 0 == await heard(page, who, "Better unsaid").count()
    assert 0 == await press(page, "host", "Delete").count()


async def test_the_host_disconnects_the_viewer_who_comes_back_when_they_wish(page: Page) -> None:
    """Not before; what is written meanwhile passes them by."""
    await press(page, "host", "Disconnect viewer").click()
    await status(page, "viewer", "Not connected")
    await heard(page, "host", "The viewer was disconnected").wait_for()
    await say(page, "host", "Behind your back")
    await heard(page, "host", "Behind your back").wait_for()
    await say(page, "viewer", "Let me in")
    assert 0 == await heard(page, "viewer", "Behind your back").count()
    # What could not be sent is still there to be sent.
    field = page.get_by_role("textbox", name="Message from the viewer")
    assert "Let me in" == await field.input_value()
    await press(page, "viewer", "Connect").click()
    await status(page, "viewer", "Connected")
    await heard(page, "viewer", "Connected with token 2").wait_for()
    await field.press("Enter")
    await heard(page, "host", "Let me in").wait_for()


@pytest.mark.parametrize("who", ["host", "viewer"])
async def test_a_dropped_connection_comes_back_with_a_new_token(page: Page, who: str) -> None:
    """By itself, and only that person's."""
    await press(page, who, "Drop connection").click()
    await heard(page, who, "Connection lost").wait_for()
    await heard(page, who, "Connected with token 2").wait_for()
    await status(page, who, "Connected")
    await reaches(page, "issued", 3)
    await say(page, who, "Back again")
    for each in ("host", "viewer"):
        await heard(page, each, "Back again").wait_for()
    assert 1 == await page.get_by_text("Connection lost").count()


async def test_a_crowd_waits_and_so_does_who_comes_after_it(page: Page) -> None:
    """All are served by the quota and none is throttled; then they leave."""
    come = page.get_by_role("button", name="Connect 50 viewers")
    away = page.get_by_role("button", name="Send them away")
    assert "true" == await away.get_attribute("aria-disabled")
    await come.click()
    await reaches(page, "waiting", 20)
    await press(page, "viewer", "Drop connection").click()
    await status(page, "viewer", "Waiting for a token")
    await page.get_by_text("All 50 viewers are in.").wait_for()
    await heard(page, "viewer", "Connected with token 2").wait_for()
    await reaches(page, "connections", 52)
    shown = [
        await figure(page, name)
        for name in ("issued", "coalesced", "refused", "throttled", "waiting", "connections")
    ]
    assert [53, 10, 0, 0, 0, 52] == shown
    await away.click()
    await page.get_by_text("Nobody yet.").wait_for()
    await page.wait_for_function("document.getElementById('connections').textContent === '2'")


async def test_what_can_be_used_has_a_name_and_can_be_reached_by_keyboard(page: Page) -> None:
    """In the order in which it is shown."""
    reached = []
    for _ in range(9):
        await page.keyboard.press("Tab")
        reached.append(
            await page.evaluate(
                """() => {
                  const one = document.activeElement;
                  const visible = getComputedStyle(one).outlineStyle !== "none";
                  const name = one.labels?.[0]?.textContent.trim() || one.ariaLabel;
                  return [name || one.textContent, visible];
                }"""
            )
        )
    names = [
        *("What the host sees", "Message from the host", "Send"),
        *("Drop connection", "Disconnect viewer"),
        *("What the viewer sees", "Message from the viewer", "Send", "Drop connection"),
    ]
    assert [[name, True] for name in names] == reached
