"""Single flight: one piece of work for all who ask, whichever callers leave."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aioivschat._service.singleflight import Flight, FlightStopped, SingleFlight
from support.virtual import settle, virtual_time

Work = Callable[["Flight[str]"], Coroutine[Any, Any, str]]

thorough = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])


class Broken(Exception):
    """The work failed."""


@dataclass
class Airport:
    """Flights, and a record of what became of their values."""

    unclaimed: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    started: int = 0
    work: dict[Flight[str], Work] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def note(flight: Flight[str], value: str) -> None:
            self.unclaimed.append(value)

        self.flights: SingleFlight[str, Flight[str]] = SingleFlight(self._begin, note)

    def _begin(self, flight: Flight[str]) -> Coroutine[Any, Any, str]:
        return self.work.pop(flight)(flight)

    def take(self, value: str) -> str:
        """Note that a caller got a value."""
        self.taken.append(value)
        return value

    async def call(self, key: str, work: Work) -> str:
        """Join the flight of a key, or start it: what the service does."""
        while (flight := self.flights.find(key)) is not None and flight.leaving:
            await flight.ended()
        if flight is None:
            flight = self.start(key, work)
        return await self.flights.join(flight, self.take)

    async def attend(self, flight: Flight[str]) -> None:
        """Wait for a flight without taking its value."""
        landed = asyncio.Event()
        waiter = self.flights.attend(flight, lambda _: landed.set())
        try:
            await landed.wait()
        finally:
            waiter.cancel()

    def start(self, key: str | None, work: Work) -> Flight[str]:
        """Make a flight, which its first caller starts; with a key others can find it."""
        self.started += 1
        flight: Flight[str] = Flight(key)
        self.work[flight] = work
        if key is not None:
            self.flights.share(flight, key)
        return flight


@contextmanager
def nothing_left(generation: int = 2) -> Iterator[None]:
    """Hold that no task is left and that asyncio reports no forgotten exception."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    baseline = asyncio.all_tasks()
    try:
        yield
    finally:
        assert baseline == asyncio.all_tasks()
        # A task whose exception nobody read is reported when it is collected.
        gc.collect(generation)
        loop.set_exception_handler(None)
        assert [] == complaints


def flies(seconds: float = 1.0, value: str = "value", *, commits_after: float = 0.0) -> Work:
    """Return work that is committed after some seconds and succeeds after some more."""

    async def work(flight: Flight[str]) -> str:
        await asyncio.sleep(commits_after)
        flight.commit()
        await asyncio.sleep(seconds)
        return value

    return work


def fails(error: Exception, seconds: float = 1.0) -> Work:
    """Return work that fails after some seconds, committed from the start."""

    async def work(flight: Flight[str]) -> str:
        flight.commit()
        await asyncio.sleep(seconds)
        raise error

    return work


def cleans_up(seconds: float, log: list[str], name: str) -> Work:
    """Return work that takes some seconds to end when it is cancelled."""

    async def work(flight: Flight[str]) -> str:
        log.append(f"{name} begins")
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            await asyncio.sleep(seconds)
            raise
        finally:
            log.append(f"{name} ends")
        return name

    return work


async def callers(airport: Airport, work: Work, count: int = 100) -> list[asyncio.Task[str]]:
    """Make so many calls for one key."""
    tasks = [asyncio.create_task(airport.call("key", work)) for _ in range(count)]
    await settle()
    return tasks


@pytest.mark.fault(1)
@pytest.mark.parametrize("who", [0, 1, 50, 99])
@virtual_time
async def test_a_cancelled_caller_leaves_the_others_their_flight(who: int) -> None:
    """This holds for the first caller, who started it, and for any other."""
    airport = Airport()
    with nothing_left():
        tasks = await callers(airport, flies(commits_after=1.0))
        tasks[who].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = [n for n, result in enumerate(results) if result != "value"]
        assert [who] == cancelled
        assert isinstance(results[who], asyncio.CancelledError)
        assert (1, ["value"] * 99, []) == (airport.started, airport.taken, airport.unclaimed)
        del results, tasks
    assert 0 == len(airport.flights)


@pytest.mark.fault(1)
@virtual_time
async def test_ninety_nine_cancelled_callers_leave_the_last_one_its_flight() -> None:
    """A flight that is not committed goes on for a single caller, the last to come."""
    airport = Airport()
    with nothing_left():
        tasks = await callers(airport, flies(commits_after=1.0))
        for task in tasks[:-1]:
            task.cancel()
        await settle()
        assert 1 == sum(flight.callers for flight in airport.flights)
        assert "value" == await tasks[-1]


@pytest.mark.fault(2)
@virtual_time
async def test_when_all_leave_before_the_commitment_the_work_is_cancelled() -> None:
    """The work has sent nothing and sends nothing any more; nothing is offered."""
    airport = Airport()
    sent: list[int] = []

    async def work(flight: Flight[str]) -> str:
        await asyncio.sleep(1)
        sent.append(1)
        return "value"

    with nothing_left():
        tasks = await callers(airport, work)
        for task in tasks:
            task.cancel()
        await settle()
        assert 0 == len(airport.flights)
        assert all(task.cancelled() for task in tasks)
        await asyncio.sleep(2)
    assert ([], []) == (sent, airport.unclaimed)


@pytest.mark.fault(2)
@virtual_time
async def test_when_all_leave_before_the_work_began_it_never_does() -> None:
    """A flight that is stopped in the tick of its start leaves no coroutine unawaited."""
    airport = Airport()
    with nothing_left():
        flight = airport.start("key", flies())
        task = asyncio.create_task(airport.flights.join(flight, airport.take))
        await asyncio.sleep(0)
        flight.stop()
        task.cancel()
        await settle()
    assert 0 == len(airport.flights)


@pytest.mark.fault(2)
@virtual_time
async def test_when_all_leave_after_the_commitment_the_value_is_offered_once() -> None:
    """The work goes on for nobody, and its value goes to `unclaimed`."""
    airport = Airport()
    with nothing_left():
        tasks = await callers(airport, flies())
        for task in tasks:
            task.cancel()
        await settle()
        assert (1, []) == (len(airport.flights), airport.unclaimed)
        await asyncio.sleep(2)
    assert (0, ["value"], []) == (len(airport.flights), airport.unclaimed, airport.taken)


@pytest.mark.fault(2)
@virtual_time
async def test_when_all_leave_after_the_commitment_a_newcomer_still_finds_the_flight() -> None:
    """It joins the flight that goes on without callers, and gets its value."""
    airport = Airport()
    with nothing_left():
        for task in await callers(airport, flies()):
            task.cancel()
        await settle()
        assert "value" == await airport.call("key", flies())
    assert (1, ["value"], []) == (airport.started, airport.taken, airport.unclaimed)


@pytest.mark.fault(2)
@virtual_time
async def test_a_failure_that_nobody_waits_for_is_no_complaint() -> None:
    """asyncio reports no exception that was never retrieved, and nothing is offered."""
    airport = Airport()
    with nothing_left():
        for task in await callers(airport, fails(Broken())):
            task.cancel()
        del task
        await asyncio.sleep(2)
    assert (0, []) == (len(airport.flights), airport.unclaimed)


@pytest.mark.fault(2)
@pytest.mark.parametrize("error", [None, Broken()])
@pytest.mark.parametrize("ticks", range(8))
@virtual_time
async def test_whoever_is_cancelled_in_the_tick_of_the_landing_loses_no_value(
    ticks: int, error: Exception | None
) -> None:
    """A value is taken or offered, once, at whichever tick after its coming the callers leave."""
    airport = Airport()
    landing: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work(flight: Flight[str]) -> str:
        flight.commit()
        return await landing

    with nothing_left():
        tasks = await callers(airport, work, 3)
        if error is None:
            landing.set_result("value")
        else:
            landing.set_exception(error)
        for _ in range(ticks):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await settle()
        got = sum(result == "value" for result in results)
        del results, tasks, task
    assert got == len(airport.taken)
    assert (error is None and not got) == (airport.unclaimed == ["value"])
    assert len(airport.unclaimed) <= 1


@pytest.mark.fault(3)
@virtual_time
async def test_a_flight_that_cleans_up_slowly_is_waited_for_by_its_successor() -> None:
    """Two flights of a key never overlap, and the old one's end leaves the new one findable."""
    airport = Airport()
    log: list[str] = []
    with nothing_left():
        first = asyncio.create_task(airport.call("key", cleans_up(5, log, "old")))
        await settle()
        first.cancel()
        await settle()
        second = asyncio.create_task(airport.call("key", cleans_up(5, log, "new")))
        await asyncio.sleep(2)
        third = asyncio.create_task(airport.call("key", cleans_up(5, log, "third")))
        await asyncio.sleep(3.5)
        # The old flight has ended and the new one is under way.
        fourth = asyncio.create_task(airport.call("key", cleans_up(5, log, "fourth")))
        assert ["new"] * 3 == list(await asyncio.gather(second, third, fourth))
    assert ["old begins", "old ends", "new begins", "new ends"] == log


@pytest.mark.fault(3)
@virtual_time
async def test_many_newcomers_at_a_slow_clean_up_share_one_successor() -> None:
    """Of all callers that waited for the old flight's end, one starts the new one."""
    airport = Airport()
    log: list[str] = []
    with nothing_left():
        first = asyncio.create_task(airport.call("key", cleans_up(5, log, "old")))
        await settle()
        first.cancel()
        await settle()
        tasks = await callers(airport, cleans_up(5, log, "new"))
        tasks[0].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert ["new"] * 99 == results[1:]
        del results, tasks
    assert ["old begins", "old ends", "new begins", "new ends"] == log


@pytest.mark.fault(3)
@virtual_time
async def test_a_flight_lands_without_removing_the_one_that_took_its_key() -> None:
    """A later flight was shared under the key while the first was still under way."""
    airport = Airport()
    with nothing_left():
        first = airport.start("key", flies(1.0, "first"))
        second = airport.start("key", flies(3.0, "second"))
        joined = [
            asyncio.create_task(airport.flights.join(flight, airport.take))
            for flight in (first, second)
        ]
        await asyncio.sleep(2)
        assert first.done
        assert second is airport.flights.find("key")
        assert ["first", "second"] == await asyncio.gather(*joined)


@virtual_time
async def test_a_value_that_comes_in_spite_of_cancellation_is_offered() -> None:
    """The work had a value when it was cancelled, though it was not committed."""
    airport = Airport()

    async def work(flight: Flight[str]) -> str:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            return "late"
        return "value"

    with nothing_left():
        (task,) = await callers(airport, work, 1)
        task.cancel()
        await settle()
    assert (["late"], []) == (airport.unclaimed, airport.taken)


@pytest.mark.fault(4)
@virtual_time
async def test_each_caller_gets_a_failure_of_its_own() -> None:
    """Each is a copy of the failure, which is its cause: one object would gather all tracebacks."""
    airport = Airport()
    cause = Broken("no luck", 7)
    cause.__dict__["code"] = 42
    with nothing_left():
        tasks = await callers(airport, fails(cause))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        errors = [result for result in results if isinstance(result, Broken)]
        assert 100 == len({id(error) for error in errors})
        assert all(error is not cause and error.__cause__ is cause for error in errors)
        assert {(Broken, ("no luck", 7), 42)} == {
            (type(error), error.args, error.__dict__["code"]) for error in errors
        }
        assert (1, 0) == (airport.started, len(airport.flights))
        assert None is airport.flights.find("key")
        assert "value" == await airport.call("key", flies())
        assert 2 == airport.started
        del results, errors, tasks


@pytest.mark.fault(6)
@virtual_time
async def test_a_caller_whose_time_is_up_waits_for_nothing() -> None:
    """It waits neither for work that goes on without it, nor for work that cleans up slowly."""
    loop = asyncio.get_running_loop()
    for work in (flies(100.0), flies(100.0, commits_after=1.0), cleans_up(100.0, [], "slow")):
        airport, started = Airport(), loop.time()
        with nothing_left():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await airport.call("key", work)
            assert loop.time() - started < 0.05
            await asyncio.sleep(200.0)


@pytest.mark.fault(18)
@virtual_time
async def test_twenty_thousand_distinct_keys_leave_nothing() -> None:
    """No flight and no memory is left of those that succeeded, failed or were abandoned."""
    airport = Airport()

    async def wave() -> None:
        work = (flies(), fails(Broken()), cleans_up(1.0, [], "left"))
        names = (f"key-{airport.started + number}" for number in range(500))
        calls = [
            asyncio.create_task(airport.call(name, work[number % 3]))
            for number, name in enumerate(names)
        ]
        await settle()
        for call in calls[::3]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(10.0)
        airport.taken.clear()
        airport.unclaimed.clear()
        assert 0 == len(airport.flights)

    for _ in range(2):
        await wave()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(38):
        await wave()
    gc.collect()
    assert 20_000 == airport.started
    # A leftover of each flight would be a block at least; to trace memory takes twice the time.
    assert sys.getallocatedblocks() - before < 2_000


@pytest.mark.fault(8)
@virtual_time
async def test_the_work_runs_in_a_copy_of_its_starters_context() -> None:
    """It sees what its starter has set, not what who joins has, and changes neither."""
    airport = Airport()
    trace = contextvars.ContextVar("trace", default="none")
    seen: list[str] = []

    async def work(flight: Flight[str]) -> str:
        seen.append(trace.get())
        trace.set("the work's")
        await asyncio.sleep(1)
        seen.append(trace.get())
        return "value"

    async def call(own: str) -> str:
        trace.set(own)
        await airport.call("key", work)
        return trace.get()

    starter, joiner = await asyncio.gather(call("starter's"), call("joiner's"))
    assert ("starter's", "joiner's") == (starter, joiner)
    assert ["starter's", "the work's"] == seen
    assert (1, "none") == (airport.started, trace.get())


@virtual_time
async def test_attending_leaves_the_value_to_others() -> None:
    """Who attends a flight, as prewarming does, waits for it, and its value is offered."""
    airport = Airport()
    with nothing_left():
        flight = airport.start(None, flies())
        await airport.attend(flight)
    assert (["value"], []) == (airport.unclaimed, airport.taken)


@pytest.mark.parametrize("attends_first", [True, False])
@virtual_time
async def test_a_value_that_one_takes_and_another_attends_is_not_offered(
    attends_first: bool,
) -> None:
    """Whichever of the two wakes first, the value is taken and not offered as well."""
    airport = Airport()
    with nothing_left():
        flight = airport.start("key", flies())
        waits = [
            airport.attend(flight),
            airport.flights.join(flight, airport.take),
        ]
        await asyncio.gather(*(waits if attends_first else reversed(waits)))
    assert ([], ["value"]) == (airport.unclaimed, airport.taken)


@pytest.mark.lazy_tasks
@virtual_time
async def test_attending_tells_how_the_flight_ended() -> None:
    """`landed` gets the failure, `FlightStopped` or ``None``; it is not called after leaving."""
    airport = Airport()
    told: list[str] = []

    def attend(work: Work) -> tuple[Flight[str], asyncio.Future[None]]:
        flight = airport.start(None, work)
        waiter = airport.flights.attend(flight, lambda failure: told.append(type(failure).__name__))
        return flight, waiter

    with nothing_left():
        attend(fails(Broken()))
        await asyncio.sleep(1.5)
        attend(flies())[0].stop()
        await settle()
        attend(flies())
        await asyncio.sleep(1.5)
        attend(flies())[1].cancel()
        await settle()
        assert 0 == len(airport.flights)
    assert ["Broken", "FlightStopped", "NoneType"] == told


@virtual_time
async def test_callers_of_a_stopped_flight_are_not_cancelled() -> None:
    """Each raises `FlightStopped` instead of `CancelledError`."""
    airport = Airport()
    with nothing_left():
        tasks = await callers(airport, flies(), 3)
        for flight in airport.flights:
            flight.stop()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [FlightStopped] * 3 == [type(result) for result in results]
        del results, tasks
    assert (0, []) == (len(airport.flights), airport.unclaimed)


@virtual_time
async def test_flights_of_different_keys_or_none_are_not_shared() -> None:
    """Calls of two keys and a flight without a key make three flights."""
    airport = Airport()
    with nothing_left():
        alone = airport.start(None, flies(value="alone"))
        results = await asyncio.gather(
            airport.call("a", flies(value="a")),
            airport.call("b", flies(value="b")),
            airport.flights.join(alone, airport.take),
        )
    assert ["a", "b", "alone"] == list(results)
    assert 3 == airport.started


@virtual_time
async def test_a_take_that_fails_fails_for_its_caller_only() -> None:
    """The other caller of the flight gets the value."""
    airport = Airport()

    def drop(value: str) -> str:
        raise LookupError

    with nothing_left():
        flight = airport.start("key", flies())
        results = await asyncio.gather(
            airport.flights.join(flight, drop),
            airport.flights.join(flight, airport.take),
            return_exceptions=True,
        )
        assert ["LookupError", "str"] == [type(result).__name__ for result in results]
        del results


@virtual_time
async def test_a_failure_that_cannot_be_copied_is_raised_all_the_same() -> None:
    """The constructor of some errors does not take what their `args` hold."""

    class Awkward(Exception):
        def __init__(self, first: int, second: int) -> None:
            super().__init__(f"{first} and {second}")

    airport = Airport()
    with pytest.raises(Awkward, match="1 and 2"):
        await airport.call("key", fails(Awkward(1, 2)))


# At random.

KEYS = ("a", "b")

steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("join"),
            st.sampled_from(KEYS),
            # Seconds before and after the commitment, and for cleaning up.
            st.sampled_from([0.0, 1.0, 3.0]),
            st.sampled_from([0.0, 1.0, 3.0]),
            st.sampled_from([None, 0.0, 2.0]),
            st.sampled_from(["succeeds", "fails", "succeeds in spite of cancellation"]),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("attend"), st.sampled_from(KEYS)),
        st.tuples(st.just("tick"), st.integers(1, 4)),
        st.tuples(st.just("pass"), st.sampled_from([0.5, 1.0, 3.0])),
    ),
    max_size=40,
)


@pytest.mark.fault(1)
@pytest.mark.fault(2)
@pytest.mark.fault(3)
@thorough
@given(steps)
@virtual_time
async def test_whatever_callers_do_no_value_is_lost_and_no_key_flies_twice(
    script: list[tuple[Any, ...]],
) -> None:
    """Random calls for two keys, which leave, fail and clean up slowly in any order."""
    airport = Airport()
    live: Counter[str] = Counter()
    crowded: list[str] = []
    produced: list[str] = []

    def plan(key: str, before: float, after: float, cleaning: float | None, end: str) -> Work:
        async def work(flight: Flight[str]) -> str:
            live[key] += 1
            if live[key] > 1:
                crowded.append(key)
            try:
                try:
                    await asyncio.sleep(before)
                    flight.commit()
                    await asyncio.sleep(after)
                except asyncio.CancelledError:
                    if cleaning is not None:
                        await asyncio.sleep(cleaning)
                    if end != "succeeds in spite of cancellation":
                        raise
                if end == "fails":
                    raise Broken(key)
                produced.append(f"{key}-{len(produced)}")
                return produced[-1]
            finally:
                live[key] -= 1

        return work

    async def attend(key: str) -> str:
        flight = airport.flights.find(key)
        if flight is not None:
            await airport.attend(flight)
        return ""

    with nothing_left(generation=0):
        tasks: list[asyncio.Task[str]] = []
        unwanted: set[int] = set()
        for step, *arguments in script:
            if step == "join":
                call = airport.call(arguments[0], plan(*arguments))
                tasks.append(asyncio.create_task(call))
            elif step == "attend":
                tasks.append(asyncio.create_task(attend(*arguments)))
            elif step == "cancel" and arguments[0] < len(tasks):
                unwanted.add(arguments[0])
                tasks[arguments[0]].cancel()
            elif step == "tick":
                for _ in range(arguments[0]):
                    await asyncio.sleep(0)
            elif step == "pass":
                await asyncio.sleep(arguments[0])
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(20)

        assert [] == crowded
        assert 0 == len(airport.flights) == sum(live.values())
        assert sorted(produced) == sorted([*set(airport.taken), *airport.unclaimed])
        failures = [result for result in results if isinstance(result, Broken)]
        assert len(failures) == len({id(failure) for failure in failures})
        cancelled = {
            n for n, result in enumerate(results) if isinstance(result, asyncio.CancelledError)
        }
        assert cancelled <= unwanted
        del results, failures, tasks
