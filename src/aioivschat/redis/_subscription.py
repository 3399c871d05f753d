"""How a process hears what is published on a channel of the engine, for as long as it likes."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aioivschat._contexts import start_task, time_limit
from aioivschat.redis._commands import is_answer
from aioivschat.redis._connecting import open_pubsub

SILENCE_SECONDS = 4.0
"""Seconds without a message after which a connection counts as dead: networks drop connections
without a word. Whoever listens sees to it that something is published more often."""

_PAUSE_SECONDS = 0.25, 0.75
"""Bounds of the random time between a lost subscription and the next one. It doubles with each
that brought no message."""

_LONGEST_PAUSE_SECONDS = 3.0

_LAST_LOOK_SECONDS = 0.1

_CLOSING_SECONDS = 0.5
"""Seconds that closing a connection may take: TLS says goodbye, also to nobody."""


def name_refused_right(error: str, command: str) -> str:
    """Return which right a user lacks: the command's, or the one to its key or channel.

    Args:
        error: what the engine said; Redis 6.2 and later versions each say it in their words.
        command: what was refused.
    """
    part = re.search(r"(?:access|publish to) [a-z ]*(key|channel)", error)
    return f"no right to the {part[1]}" if part else f"no right to {command}"


class Subscription:
    """Receives what is published on a channel, until it is closed.

    Args:
        client: returns the client of redis-py or valkey-py to subscribe with.
        channel: its name.
        on_message: called with each message.
        on_subscribed: called after each subscription, the first one and those after a lost
            connection: messages published before it may have been missed.
        rng: where the jitter comes from.

    Attributes:
        problem: why there is no subscription now: a right that is lacking, silence, or the name of
            an error's class; empty if there is one.
        is_refused: whether the problem is such a right.
    """

    def __init__(
        self,
        client: Callable[[], Any],
        channel: str,
        on_message: Callable[[bytes], None],
        on_subscribed: Callable[[], None],
        rng: random.Random,
    ) -> None:
        self._client = client
        self._channel = channel
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._rng = rng
        self.problem, self.is_refused = "Connecting", False
        self._fruitless = 0  # subscriptions in a row without a message
        self._retry = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._task = start_task(self._receive())

    async def aclose(self) -> None:
        """Stop receiving."""
        self._task.cancel()
        await asyncio.wait((self._task,))
        for task in self._closing:
            task.cancel()
        if self._closing:
            await asyncio.wait(self._closing)

    def retry_now(self) -> None:
        """Subscribe at once if there is no subscription."""
        if self.problem:
            self._retry.set()

    async def subscribe_anew(self) -> None:
        """Leave the present client, and subscribe with what is the client then."""
        await self.aclose()
        self._task = start_task(self._receive())

    async def _receive(self) -> None:
        while True:
            try:
                await self._receive_until_silent()
            except Exception as error:
                # Scripts alone decide about the breaker: a lost subscription only begins again.
                self.is_refused = is_answer(error) and type(error).__name__ != "AuthenticationError"
                self.problem = (
                    "silence" if isinstance(error, TimeoutError) else type(error).__name__
                )
                if self.is_refused:
                    self.problem = name_refused_right(str(error), "SUBSCRIBE")
            shortest, longest = (pause * 2.0**self._fruitless for pause in _PAUSE_SECONDS)
            pause = min(self._rng.uniform(shortest, longest), _LONGEST_PAUSE_SECONDS)
            self._fruitless = min(self._fruitless + 1, 9)
            with suppress(TimeoutError):
                async with time_limit(pause):
                    await self._retry.wait()
            self._retry.clear()

    async def _receive_until_silent(self) -> None:
        now = asyncio.get_running_loop().time
        pubsub = open_pubsub(self._client())
        try:
            async with time_limit(SILENCE_SECONDS):
                await pubsub.subscribe(self._channel)
            silent_at = now() + SILENCE_SECONDS
            while True:
                left = silent_at - now()
                # Also when time is up: what came while this process was busy is still to be read.
                limit = max(left, _LAST_LOOK_SECONDS)
                # Twice: the client's own limit leaves connecting out.
                async with time_limit(limit + _CLOSING_SECONDS):
                    message = await pubsub.get_message(timeout=limit)
                if message:
                    self._dispatch(message)
                    silent_at = now() + SILENCE_SECONDS
                elif left <= 0:
                    raise TimeoutError
        finally:
            closing = start_task(pubsub.aclose(), self._forget_closing)
            self._closing.add(closing)
            await asyncio.wait((closing,), timeout=_CLOSING_SECONDS)

    def _forget_closing(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled():
            task.exception()  # read, so that asyncio does not log it

    def _dispatch(self, message: Any) -> None:
        match message["type"]:
            case "message":
                self._fruitless = 0
                self._on_message(message["data"])
            case "subscribe":
                # The client reconnects by itself: then this is the only sign of it.
                self.problem, self.is_refused = "", False
                self._retry.clear()
                self._on_subscribed()
