"""Calls that may block for ever, made in a thread that the process's end does not wait for."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class BlockingThread:
    """A thread for calls that may block for ever, such as reading a pipe.

    Neither the end of the event loop nor that of the process waits for it, as they do for an
    executor's threads. Calls run one after the other; if the caller of one is cancelled, the call
    goes on and its result is dropped.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._run_calls, name="aioivschat-io", daemon=True).start()

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Make a call in the thread.

        Args:
            call: what to call; must not raise ``StopIteration``.
            args: its arguments.

        Returns:
            What ``call`` returns.

        Raises:
            Exception: what ``call`` raises.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((future, partial(call, *args)))
        return await future

    def close(self) -> None:
        """End the thread after the calls that are queued."""
        self._calls.put(None)

    def _run_calls(self) -> None:
        while (job := self._calls.get()) is not None:
            future, call = job
            try:
                settle: Callable[[], None] = partial(future.set_result, call())
            except BaseException as error:
                settle = partial(future.set_exception, error)
            try:
                future.get_loop().call_soon_threadsafe(_settle_unless_cancelled, future, settle)
            except RuntimeError:
                return  # the loop has been closed


def _settle_unless_cancelled(future: asyncio.Future[Any], settle: Callable[[], None]) -> None:
    if not future.done():
        settle()


async def read_in_thread(rows: Iterator[T]) -> AsyncIterator[T]:
    """Pull an iterator in a thread, for a source that blocks, such as a pipe.

    Args:
        rows: an iterator without ``None``; pulled one row at a time, as needed.

    Returns:
        The same rows.
    """
    thread = BlockingThread()
    try:
        while (row := await thread.run(next, rows, None)) is not None:
            yield row
    finally:
        thread.close()
