"""A loop in virtual time that wakes those tasks that can go on in random order.

asyncio runs callbacks in the order in which they were given to it, and so wakes tasks in the order
in which what they wait for happened. Still, code must not rely on it: in a busier process answers
and timers come in another order. So tasks that wake in the same turn of the loop are shuffled here,
and some wake a turn later. What asyncio promises stays: all other callbacks, those of finished
futures and tasks above all, keep their order and their turn.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import count
from random import Random
from typing import Any

from aioivschat.planning._virtual_time import VirtualLoop

_OVERSLEEPING = 0.1
"""Share of the wake-ups that come a turn later."""

_MOST_TURNS = 200_000
"""Far more than any program takes: ends a program in which something polls for ever."""


class ShuffledLoop(VirtualLoop):
    """A virtual loop that wakes tasks in random order.

    Args:
        rng: where the order comes from.

    Attributes:
        after_turn: called after each turn.
        complaints: what tasks and futures complained of, such as an exception that nobody saw.
    """

    _ready: deque[asyncio.Handle]

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self._rng = rng
        self._numbers = count()
        self._turns = 0
        self.after_turn: Callable[[], None] = lambda: None
        self.complaints: list[str] = []
        self.set_exception_handler(lambda _, context: self.complaints.append(context["message"]))

    def create_task(  # type: ignore[override]  # the stubs' differ from version to version
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        """Create a task with a number as its name, whatever its name was to be."""
        return super().create_task(coro, name=f"{next(self._numbers):06}", context=context)

    def timers(self) -> int:
        """Return how many timers are set."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return sum(not timer.cancelled() for timer in scheduled)

    def give_up(self) -> None:
        """Cancel what still runs, and close the loop."""
        self.after_turn = lambda: None
        self._turns = 0
        left = asyncio.all_tasks(self)
        for task in left:
            task.cancel()
        if left:
            with suppress(RuntimeError):  # something goes on even then
                self.run_until_complete(asyncio.wait(left, timeout=1.0))
        self.close()

    def _run_once(self) -> None:
        late = self._shuffle()
        super()._run_once()  # type: ignore[misc]  # what the stubs leave out
        self._ready.extend(late)
        self._turns += 1
        if self._turns == _MOST_TURNS:
            raise RuntimeError("something goes on for ever")
        self.after_turn()

    def _shuffle(self) -> list[asyncio.Handle]:
        """Shuffle the tasks that are ready, and return those that wake a turn later."""
        ready = list(self._ready)
        places = [place for place, handle in enumerate(ready) if _task(handle) is not None]
        if len(places) < 2:
            return []
        # Sorted first: the order of sets depends on addresses, and would differ from run to run.
        waking = sorted((ready[place] for place in places), key=_number)
        self._rng.shuffle(waking)
        for place, handle in zip(places, waking, strict=True):
            ready[place] = handle
        late = [handle for handle in waking[1:] if self._rng.random() < _OVERSLEEPING]
        self._ready.clear()
        self._ready.extend(handle for handle in ready if handle not in late)
        return late


def _task(handle: asyncio.Handle) -> asyncio.Task[Any] | None:
    """Return the task that a handle wakes, if it does."""
    owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    return owner if isinstance(owner, asyncio.Task) else None


def _number(handle: asyncio.Handle) -> str:
    task = _task(handle)
    assert task is not None
    return task.get_name()
