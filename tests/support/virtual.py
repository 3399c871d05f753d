"""Virtual time: it passes only when nothing is left to run."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from aioivschat import Clock
from aioivschat.planning._virtual_time import EPOCH, VirtualLoop
from support.tasks import with_factory

__all__ = ["EPOCH", "VirtualClock", "VirtualLoop", "settle", "virtual_time"]

P = ParamSpec("P")
T = TypeVar("T")


class VirtualClock(Clock):
    """The clock of a virtual loop; the wall clock can be stepped, the monotonic one stalled.

    Attributes:
        step: seconds by which an administrator set the wall clock off.
        stalled: seconds that the monotonic clock missed while the host was suspended.
    """

    def __init__(self) -> None:
        self.step = 0.0
        self.stalled = 0.0

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return EPOCH + asyncio.get_event_loop().time() + self.step

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return asyncio.get_event_loop().time() - self.stalled


def virtual_time(
    test: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, T]:
    """Run an async test on a loop in virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(with_factory(test)(*args, **kwargs))

    # pytest-asyncio would take the wrapped coroutine function for its own; pytest needs its
    # parameters all the same.
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]  # pytest reads it
    del run.__wrapped__
    return run


async def settle() -> None:
    """Run everything that is ready, without letting time pass."""
    for _ in range(20):
        await asyncio.sleep(0)
