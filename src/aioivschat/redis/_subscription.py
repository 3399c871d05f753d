"""How a process hears what is published on a channel of the engine, for as long as it likes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from aioivschat._contexts import start_task
from aioivschat.redis._connecting import open_pubsub

_PAUSE_SECONDS = 0.25, 0.75
"""Bounds of the random time between a lost subscription and the next one."""


class Subscription:
    """Receives what is published on a channel, until it is closed.

    Args:
        client: returns the client of redis-py or valkey-py to subscribe with.
        channel: its name.
        on_message: called with each message.
        on_subscribed: called after each subscription, the first one and those after a lost
            connection: messages published before it may have been missed.
        rng: where the jitter comes from.
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
        self._task = start_task(self._receive())

    async def aclose(self) -> None:
        """Stop receiving."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _receive(self) -> None:
        while True:
            try:
                async with open_pubsub(self._client()) as pubsub:
                    await pubsub.subscribe(self._channel)
                    while True:
                        self._dispatch(await pubsub.get_message(timeout=None))
            except Exception:
                # Scripts alone decide about the breaker: a lost subscription only begins again.
                await asyncio.sleep(self._rng.uniform(*_PAUSE_SECONDS))

    def _dispatch(self, message: Any) -> None:
        match message and message["type"]:
            case "message":
                self._on_message(message["data"])
            case "subscribe":
                # The client reconnects by itself: then this is the only sign of it.
                self._on_subscribed()
