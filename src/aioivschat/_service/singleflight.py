"""One piece of work for all who ask for the same at the same time.

A flight belongs to nobody: callers come and go, each with its own cancellation and deadline. The
last one to leave before the work is committed cancels it; after that the work runs on, and the
owner of the flights is told if nobody took its value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterator
from typing import Any, Generic, TypeVar

from aioivschat.errors import own_copy

V = TypeVar("V")
T = TypeVar("T")
F = TypeVar("F", bound="Flight[Any]")


class FlightStopped(Exception):
    """The owner stopped the flight; its caller was not cancelled."""


class Flight(Generic[V]):
    """Work for any number of callers; it begins when the first of them joins.

    Args:
        key: what callers agree on when they share it.

    Attributes:
        committed: whether the work must not be cancelled for lack of callers.
        leaving: whether it is being cancelled.
    """

    __slots__ = ("_claimed", "_task", "_waiters", "committed", "key", "leaving")

    _task: asyncio.Task[V]  # from the moment when the work has begun

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.committed = False
        self.leaving = False
        self._claimed = False
        # In the order of their coming, in which they are told: they may queue for something next.
        self._waiters: dict[asyncio.Future[None], None] = {}

    @property
    def callers(self) -> int:
        """How many wait for it now."""
        return len(self._waiters)

    @property
    def begun(self) -> bool:
        """Whether the work has begun."""
        return hasattr(self, "_task")

    @property
    def done(self) -> bool:
        """Whether the work has ended."""
        return self.begun and self._task.done()

    @property
    def failed(self) -> bool:
        """Whether the work has ended without a value."""
        return self.done and (self._task.cancelled() or self._task.exception() is not None)

    def commit(self) -> None:
        """Keep the work from being cancelled for lack of callers; called by the work."""
        self.committed = True

    def uncommit(self) -> None:
        """Undo `commit`."""
        self.committed = False

    def stop(self) -> None:
        """Cancel the work; those who wait for it get :class:`FlightStopped`."""
        self.leaving = True
        self._task.cancel()

    async def ended(self) -> None:
        """Wait until the work has ended, whatever came of it."""
        await asyncio.wait((self._task,))


class SingleFlight(Generic[V, F]):
    """The flights under way, never two live ones for a key.

    Args:
        work: called with a flight to begin its work.
        unclaimed: called once with a flight and its value when the work succeeded and nobody
            took the value.
    """

    def __init__(
        self,
        work: Callable[[F], Coroutine[Any, Any, V]],
        unclaimed: Callable[[F, V], None],
    ) -> None:
        self._work = work
        self._unclaimed = unclaimed
        self._by_key: dict[Hashable, F] = {}
        self._all: dict[asyncio.Task[V], F] = {}
        self._landed = self._end_flight

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[F]:
        return iter(tuple(self._all.values()))

    def find(self, key: Hashable) -> F | None:
        """Return the flight under way for a key.

        The flight may be one that is being cancelled: its successor must wait for its end.
        """
        flight = self._by_key.get(key)
        return None if flight is None or flight.done else flight

    def share(self, flight: F, key: Hashable) -> None:
        """Let others join a flight by a key; it takes the place of an earlier one."""
        flight.key = key
        self._by_key[key] = flight

    async def join(self, flight: F, take: Callable[[V], T]) -> T:
        """Wait for a flight and take its value; a new flight begins.

        Args:
            flight: a new flight, or one that is not done.
            take: called with the value at the moment this caller gets it.

        Returns:
            What ``take`` returned.

        Raises:
            FlightStopped: the owner stopped the flight.
            Exception: this caller's own copy of the work's failure, with the failure as cause.
        """
        waiter = self._add_caller(flight)
        try:
            await waiter
            if flight._task.cancelled():
                raise FlightStopped
            failure = flight._task.exception()
            if failure is None:
                flight._claimed = True
                return take(flight._task.result())
        finally:
            flight._waiters.pop(waiter, None)
            if not flight._waiters:
                self._abandon_flight(flight)
        own = own_copy(failure)
        if own is failure:
            raise own
        raise own from failure

    def attend(
        self, flight: F, landed: Callable[[BaseException | None], None]
    ) -> asyncio.Future[None]:
        """Be a caller of a flight without waiting for it, and leave its value to others.

        Args:
            flight: a new flight, or one that is not done.
            landed: called when it has landed, with its failure or ``None``.

        Returns:
            A future: to cancel it is to leave, and then ``landed`` is not called.
        """
        waiter = self._add_caller(flight)

        def leave(_: asyncio.Future[None]) -> None:
            flight._waiters.pop(waiter, None)
            if not flight._waiters:
                self._abandon_flight(flight)
            if not waiter.cancelled():
                stopped = flight._task.cancelled()
                landed(FlightStopped() if stopped else flight._task.exception())

        waiter.add_done_callback(leave)
        return waiter

    def _add_caller(self, flight: F) -> asyncio.Future[None]:
        """Add a caller to a flight, and begin its work with the first one."""
        waiter = asyncio.get_running_loop().create_future()
        flight._waiters[waiter] = None
        if not flight.begun:
            self._begin_work(flight)
        return waiter

    def _begin_work(self, flight: F) -> None:
        """Make the task, in a copy of the first caller's context, so that its traces are theirs.

        A task may run at once (`asyncio.eager_task_factory`), so all that it reads is there before.
        """
        task = asyncio.get_running_loop().create_task(self._work(flight))
        flight._task = task
        self._all[task] = flight
        task.add_done_callback(self._landed)

    def _abandon_flight(self, flight: F) -> None:
        if flight._task in self._all:
            if not flight.committed and not flight.done:
                flight.stop()
        else:
            self._offer(flight)

    def _end_flight(self, task: asyncio.Task[V]) -> None:
        flight = self._all.pop(task)
        if task.cancelled():
            flight.stop()  # cancelled from outside perhaps, and before it began
        # A later flight may have been shared under its key.
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]
        if not flight._waiters:
            self._offer(flight)
        for waiter in flight._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _offer(self, flight: F) -> None:
        # To read the exception also keeps asyncio from reporting it as never retrieved.
        if flight._claimed or flight._task.cancelled() or flight._task.exception() is not None:
            return
        flight._claimed = True
        self._unclaimed(flight, flight._task.result())
