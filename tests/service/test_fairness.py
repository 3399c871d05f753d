"""Rooms that wait for the same quota take turns, and in each the first come is served first."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioivschat import LocalLimiter, Priority, Quota, Reservation
from support.permits import use_permit
from support.virtual import VirtualClock, VirtualLoop, settle, virtual_time

RATE = 100.0
"""A permit every 10 ms."""


def now() -> float:
    """Return the virtual time."""
    return cast("VirtualLoop", asyncio.get_running_loop()).time()


class Lobby:
    """A limiter with a bucket of one, and a record of whose permit was granted when."""

    def __init__(self) -> None:
        self.limiter = LocalLimiter(Quota(rate=RATE, burst=1), VirtualClock())
        self.order: list[tuple[str, int]] = []
        self.at: dict[tuple[str, int], float] = {}
        self._callers: list[asyncio.Task[None]] = []
        self._start = now()

    def come(
        self,
        room: str,
        numbers: Sequence[int],
        priority: Priority = Priority.NORMAL,
        *,
        again: bool = False,
    ) -> list[asyncio.Task[None]]:
        """Reserve a permit for each of a room's callers, in order."""

        async def wait(reservation: Reservation, who: tuple[str, int]) -> None:
            await use_permit(reservation)
            self.order.append(who)
            self.at[who] = now() - self._start

        tasks = [
            asyncio.create_task(
                wait(self.limiter.reserve(priority, room=room, again=again), (room, number))
            )
            for number in numbers
        ]
        self._callers += tasks
        return tasks

    async def empty(self) -> None:
        """Wait until no caller waits any more."""
        await asyncio.gather(*self._callers, return_exceptions=True)

    def rooms(self) -> list[str]:
        """Return the rooms in the order of their permits."""
        return [room for room, _ in self.order]


@virtual_time
async def test_a_storm_in_one_room_delays_another_by_one_permit_each() -> None:
    """A thousand wait for one room; ten come for another, and every second permit is theirs."""
    lobby = Lobby()
    lobby.come("storm", range(1_000))
    await asyncio.sleep(1.0)
    came = now()
    calm = lobby.come("calm", range(10))
    await asyncio.gather(*calm)
    assert now() - came == pytest.approx(20 / RATE, abs=1.5 / RATE)
    since = lobby.rooms()[-20:]
    assert 10 == since.count("calm")
    await lobby.empty()


@virtual_time
async def test_rooms_take_turns() -> None:
    """Each gets a permit in turn, however many wait for it, until nobody does."""
    lobby = Lobby()
    lobby.come("a", range(6))
    lobby.come("b", range(3))
    lobby.come("c", range(1))
    await lobby.empty()
    # The very first caller got its permit at once.
    assert ["a", *"abc", *"ab", *"ab", *"aa"] == lobby.rooms()


@virtual_time
async def test_within_a_room_the_first_come_is_first() -> None:
    """Callers of two rooms come alternately; each room's are served in their order."""
    lobby = Lobby()
    for number in range(20):
        lobby.come("a", [number])
        lobby.come("b", [number])
    await lobby.empty()
    for room in "ab":
        assert list(range(20)) == [number for name, number in lobby.order if name == room]


@virtual_time
async def test_moderators_go_before_viewers_of_every_room() -> None:
    """A room's turn counts among callers of one priority only."""
    lobby = Lobby()
    lobby.come("a", range(5))
    lobby.come("b", range(5, 10), Priority.BACKGROUND)
    lobby.come("b", range(2), Priority.HIGH)
    lobby.come("a", range(10, 12), Priority.HIGH)
    await lobby.empty()
    expected = [("a", 0), ("b", 0), ("a", 10), ("b", 1), ("a", 11)]
    expected += [("a", number) for number in range(1, 5)]
    expected += [("b", number) for number in range(5, 10)]
    assert expected == lobby.order


@virtual_time
async def test_a_retry_is_the_next_of_all_rooms() -> None:
    """It passes all who wait with its priority, as it has waited already."""
    lobby = Lobby()
    lobby.come("a", range(3))
    lobby.come("b", range(3))
    lobby.come("b", [9], again=True)
    await lobby.empty()
    assert [("a", 0), ("b", 9)] == lobby.order[:2]


@virtual_time
async def test_a_caller_that_leaves_ends_its_rooms_turn_only_if_it_was_alone() -> None:
    """The next of the room moves up; a room where nobody waits any more is passed over."""
    lobby = Lobby()
    lobby.come("a", range(3))
    first, _ = lobby.come("b", range(2))
    (alone,) = lobby.come("c", [0])
    await settle()
    for caller in (first, alone):
        caller.cancel()
    await lobby.empty()
    assert [("a", 0), ("a", 1), ("b", 1), ("a", 2)] == lobby.order
    assert 0 == lobby.limiter.waiting


@pytest.mark.parametrize(
    "crowd",
    [
        {"a": 50},
        {"a": 50, "b": 3},
        {"a": 5, "b": 200, "c": 40},
        dict(zip("abcdefgh", (1, 2, 2, 3, 5, 5, 6, 30), strict=True)),
    ],
)
@virtual_time
async def test_the_predicted_wait_is_kept_and_hardly_too_long(crowd: dict[str, int]) -> None:
    """A newcomer of any room waits no longer than predicted, and at most a turn less."""
    for room in (*crowd, "new"):
        lobby = Lobby()
        for name, many in crowd.items():
            lobby.come(name, range(many))
        await settle()
        predicted = lobby.limiter.predicted_wait(Priority.NORMAL, room)
        came = now()
        await asyncio.gather(*lobby.come(room, [-1]))
        waited = now() - came
        assert waited <= predicted + 1e-6
        assert predicted - waited <= len(crowd) / RATE + 1e-6
        await lobby.empty()


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), rooms=st.integers(1, 6), callers=st.integers(1, 120))
def test_whoever_comes_and_leaves_each_room_keeps_its_order(
    seed: int, rooms: int, callers: int
) -> None:
    """All who stay get one permit; a newcomer of a new room waits for one of each other room."""

    @virtual_time
    async def crowd() -> None:
        rng, lobby = random.Random(seed), Lobby()
        tasks: list[asyncio.Task[None]] = []
        room_of: dict[asyncio.Task[None], str] = {}
        for number in range(callers):
            room = f"room-{rng.randrange(rooms)}"
            (task,) = lobby.come(room, [number])
            tasks.append(task)
            room_of[task] = room
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 3 / RATE)
            if rng.random() < 0.2:
                await settle()  # only a caller that has begun to wait gives its reservation up
                rng.choice(tasks).cancel()
        await settle()
        crowded = {room for task, room in room_of.items() if not task.done()}
        predicted = lobby.limiter.predicted_wait(Priority.NORMAL, "new") * RATE
        assert len(crowded) <= predicted + 1e-6 <= len(crowded) + 1 + 1e-5
        await lobby.empty()
        assert 0 == lobby.limiter.waiting
        for name in {room for room, _ in lobby.order}:
            numbers = [number for room, number in lobby.order if room == name]
            assert sorted(numbers) == numbers
        assert len(set(lobby.order)) == len(lobby.order)
        left = sum(task.cancelled() for task in tasks)
        assert callers == len(lobby.order) + left

    crowd()


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_rooms_that_wait_together_get_equal_shares(sizes: list[int]) -> None:
    """At every moment, rooms that still wait have had equally many permits, give or take one."""

    @virtual_time
    async def crowd() -> None:
        lobby = Lobby()
        lobby.come("first", [0])  # it takes the permit that is due
        await settle()
        for number, size in enumerate(sizes):
            lobby.come(str(number), range(size))
        await lobby.empty()
        had: Counter[str] = Counter()
        for room in lobby.rooms()[1:]:
            had[room] += 1
            still = [had[str(n)] for n, size in enumerate(sizes) if had[str(n)] < size]
            assert not still or max(still) - min(still) <= 1

    crowd()
