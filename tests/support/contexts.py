"""Callers whose contexts hold objects that nobody else holds."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar

_LOOP_TURNS = 20

_TICK_SECONDS = 0.02


class Held:
    """An object of a caller."""


holding: ContextVar[Held | None] = ContextVar("holding", default=None)


class Callers:
    """Calls, each with an object that only its context holds.

    Until it is closed it has a timer that is due before all others: else the loop might happen to
    drop a timer that was cancelled, which it need not do, and with it the context.
    """

    def __init__(self) -> None:
        self._objects: list[weakref.ref[Held]] = []
        self._tick()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_TICK_SECONDS, self._tick, context=Context())

    def close(self) -> None:
        """End the timer."""
        self._timer.cancel()

    def start(self, call: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
        """Start a call in a task; whoever keeps the task keeps its context."""

        async def run() -> None:
            self.hold()
            await call()

        return asyncio.get_running_loop().create_task(run())

    def hold(self) -> None:
        """Give the current context an object to hold."""
        held = Held()
        self._objects.append(weakref.ref(held))
        holding.set(held)

    async def run(self, call: Callable[[], Awaitable[object]]) -> None:
        """Make a call and wait for it."""
        await self.start(call)

    async def assert_gone(self) -> None:
        """Assert that nothing keeps the context of a call that has ended."""
        assert self._objects
        for _ in range(_LOOP_TURNS):
            await asyncio.sleep(0)
        gc.collect()
        assert [] == [number for number, held in enumerate(self._objects) if held() is not None]
