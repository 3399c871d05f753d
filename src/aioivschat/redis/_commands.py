"""Commands under way to the engine: who waits for one waits no longer than they may."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aioivschat._contexts import call_later, start_task, time_limit

COMMAND_TIMEOUT_SECONDS = 1.0
"""Seconds that a command may take, also when its caller has given up: cancelled earlier, it would
close its connection, and over a slow network no connection would ever be established."""

_EXTRA_LOOP_TURNS = 5
"""Turns of the event loop granted after a timeout, for what arrived while this process was busy:
asyncio needs one turn to read it, one to parse it and one to deliver it."""


async def let_loop_catch_up(is_done: Callable[[], bool]) -> None:
    """Give the event loop a few turns to deliver what arrived before a timeout, or until done."""
    for _ in range(_EXTRA_LOOP_TURNS):
        if not is_done():
            await asyncio.sleep(0)


def is_a(error: BaseException, *names: str) -> bool:
    """Tell an error by its class: redis-py and valkey-py each have classes of these names."""
    return any(kind.__name__ in names for kind in type(error).__mro__)


def is_answer(error: BaseException) -> bool:
    """Tell whether the engine answered with the error: then the command did not run."""
    return is_a(error, "ResponseError")


class Commands:
    """The commands under way, also those whose callers have given up."""

    def __init__(self) -> None:
        self._clients: dict[asyncio.Task[Any], Any] = {}

    def __len__(self) -> int:
        return len(self._clients)

    async def wait(self, seconds: float, client: Any, command: Awaitable[Any]) -> Any:
        """Wait for the answer to a client's command; when time is up, leave it running.

        Raises:
            TimeoutError: time is up.
            ConnectionAbortedError: the client's commands were cancelled.
            Exception: whatever the client raises.
        """
        task = start_task(command, self._forget)
        self._clients[task] = client
        try:
            with suppress(TimeoutError):
                async with time_limit(seconds):
                    await asyncio.wait((task,))
            await let_loop_catch_up(task.done)
        finally:
            if not task.done():
                call_later(COMMAND_TIMEOUT_SECONDS, task.cancel)
        if not task.done():
            raise TimeoutError
        if task.cancelled():  # not by the caller: the client is being closed
            raise ConnectionAbortedError
        return task.result()

    async def cancel(self, client: Any) -> None:
        """Cancel a client's commands: they would open connections again once it is closed."""
        commands = [task for task, sender in self._clients.items() if sender is client]
        for task in commands:
            task.cancel()
        if commands:
            await asyncio.wait(commands)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._clients.pop(task, None)
        # Reading the exception keeps asyncio from logging it as never retrieved.
        if not task.cancelled():
            task.exception()
