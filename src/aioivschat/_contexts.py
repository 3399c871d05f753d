"""What outlives a call begins in an empty context, so that it keeps nothing of its caller alive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def start_task(
    work: Awaitable[T], on_done: Callable[[asyncio.Task[T]], object] | None = None
) -> asyncio.Task[T]:
    """Start a task; unlike ``create_task(context=…)``, every task factory can make it.

    Args:
        work: what it does.
        on_done: called with it when it is done; a task keeps the context of its callbacks too.
    """
    task: Any = Context().run(asyncio.ensure_future, work)
    started: asyncio.Task[T] = task
    if on_done is not None:
        started.add_done_callback(on_done, context=Context())
    return started


def call_later(seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
    """Have a function called in so many seconds."""
    return asyncio.get_running_loop().call_later(seconds, callback, context=Context())


def time_limit(seconds: float | None) -> asyncio.Timeout:
    """Limit a block as ``asyncio.timeout`` does, keeping no context alive."""
    return _Timeout(None if seconds is None else asyncio.get_running_loop().time() + seconds)


class _Timeout(asyncio.Timeout):  # type: ignore[misc]  # final to type checkers only
    # The loop keeps a timer until it is due, and with it the context, even if it was cancelled.
    def reschedule(self, when: float | None) -> None:
        Context().run(super().reschedule, when)


@coroutine
def run_detached(work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Run work in the current task, but not in its context."""
    context = Context()
    step: Callable[[Any], Any] = work.send
    value: BaseException | None = None
    try:
        while True:
            try:
                awaited = context.run(step, value)
            except StopIteration as end:
                result: T = end.value
                return result
            try:
                yield awaited
            except GeneratorExit:
                raise
            except BaseException as error:
                step, value = work.throw, error
            else:
                step, value = work.send, None
    finally:
        value = None  # it holds a traceback that holds this frame
        work.close()
