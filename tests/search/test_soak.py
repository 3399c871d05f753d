"""The soak keeps its books, and tells when something is wrong."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest

from aioivschat import AsyncTokenService, ChatToken, TokenRequest
from support.paths import TESTS

pytestmark = pytest.mark.once


class Sloppy(AsyncTokenService):
    """Does everything wrong that a soak is there to find."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sloppy_calls = 0
        self._kept: list[Any] = []
        self._old: ChatToken | None = None

    async def issue(self, request: TokenRequest, **options: Any) -> ChatToken:
        """Issue a token, or not quite."""
        self._sloppy_calls += 1
        number = self._sloppy_calls
        # Not at once: what is there from the beginning does not grow.
        self._kept += [[number] for _ in range(60)]
        self._kept.append(bytes(100_000))
        if number % 20 == 0:
            self._kept.append(asyncio.create_task(asyncio.Event().wait()))
            self._kept.append(os.dup(0))
        if number == 60:
            await asyncio.Event().wait()
        if number % 31 == 0:
            raise KeyError
        token = await super().issue(request, **options)
        if 10 < number < 20:
            await asyncio.sleep(3.0)
        if number == 41:
            self._counters.minted += 1_000
        if number % 43 == 0 and self._old is not None:
            return self._old
        self._old = token
        return token

    async def aclose(self, *, grace: float = 5.0) -> None:
        """Close, with what was left lying about."""
        for thing in self._kept:
            if isinstance(thing, asyncio.Task):
                thing.cancel()
            elif isinstance(thing, int):
                os.close(thing)
        await super().aclose(grace=grace)


def _soak(seconds: str, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [
            *(sys.executable, "-X", "dev", "-W", "error"),
            *("-m", "search.soak"),
            *("--seconds", seconds, "--seed", "8", *options),
        ],
        check=False,
        cwd=TESTS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.fault(5)
@pytest.mark.fault(18)
def test_a_short_soak_finds_nothing() -> None:
    """The service under load and bad weather, everything accounted for."""
    status, told = _soak("5")
    assert status == 0, told
    assert "soak: nothing wrong" in told
    # It was not idle, and the weather was bad.
    assert " 0 failed" not in told
    assert " 0 minted" not in told


def test_a_soak_tells_everything_that_is_wrong() -> None:
    """A check that cannot fail is none."""
    status, told = _soak("3", "--service", "search.test_soak:Sloppy", "--patience", "5")
    assert status == 1
    for wrong in (
        "WRONG: ended by KeyError",
        "WRONG: files grew by",
        "WRONG: late, ",
        "WRONG: lost: 1 calls never ended",
        "WRONG: objects grew by",
        "WRONG: blocks grew by",
        "WRONG: rss grew by",
        "WRONG: tasks grew by",
        "WRONG: token doubled",
        "WRONG: token of somebody else, or of nobody",
        "tokens missing",
        "tokens came and went nowhere",
    ):
        assert wrong in told, told
