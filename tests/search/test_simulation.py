"""Random programs break nothing; `simulation` says what they are and how to run more."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from aioivschat import Priority
from aioivschat.emulator import FaultKind
from search.simulation.fleet import run_fleet
from search.simulation.loop import ShuffledLoop
from search.simulation.programs import (
    Advance,
    Busy,
    Cancel,
    Close,
    Fail,
    Invalidate,
    Issue,
    Prewarm,
    Program,
    Ready,
    Setting,
    SlowDown,
    Step,
    Suspend,
    Turn,
    Who,
    programs,
)
from search.simulation.search import Found, read, search
from search.simulation.world import Broken, World, run
from support.engine import EngineServer
from support.paths import TESTS

WORTH_REACHING = {
    # How a token comes.
    "from cache",
    "from stock",
    "from flight",
    "flight of prewarming taken over",
    "Joined",
    "Stocked",
    "prewarmed",
    "prewarming made way",
    "prewarming left out",
    # What goes wrong.
    "Retrying",
    "Throttled",
    "ServerFault",
    "AccessDenied",
    "ConnectionFailed",
    "MalformedResponse",
    "CredentialsFailed",
    "prewarming failed",
    "rate changed",
    "burst learnt",
    # Who leaves, and what is given up.
    "caller cancelled",
    "flight being cancelled",
    "DeadlineExceeded",
    "Overloaded",
    "ExpiredUnused",
    "flight invalidated",
    "died or was invalidated on its way",
    "closed with flights under way",
    "ServiceClosed",
}
"""States without which it says little that nothing broke."""

BROKE_SOMETHING = {
    "the stock counted what was not put into it": Program(
        (Issue(Who(), how="fresh"), Advance(0.001), Invalidate(room=0), Cancel())
    ),
    "a slow upstream was asked for ever": Program(
        (Issue(Who()), Advance(60.0)), Setting(min_remaining=59.0, latency=2.0)
    ),
    "a slower pace began with a burst": Program(
        (Issue(Who()), Issue(Who()), Prewarm((Who(),) * 4)), Setting(burst=3, quota="sliding:2")
    ),
    "two lines that waited for the same doors kept time from passing": Program(
        (
            Prewarm((Who(user=1),)),
            Advance(0.1),
            Prewarm((Who(), Who(room=2)) * 2, doors=0.5),
            Prewarm((Who(), Who(room=2)) * 2, doors=0.5),
        ),
        Setting(max_stock=1),
    ),
    "a call whose token died while the service closed flew once more": Program(
        (
            Prewarm((Who(),)),
            Issue(Who()),
            Issue(Who()),
            Ready(Who()),
            Issue(Who()),
            Advance(0.02),
            Prewarm((Who(),)),
            *(Issue(Who()),) * 4,
            SlowDown(4.0),
            Turn(),
            Invalidate(room=0),
            Issue(Who()),
            Prewarm((Who(),)),
            Issue(Who()),
            Ready(Who()),
            Turn(),
            Turn(),
            Advance(3.0),
            Issue(Who()),
            Issue(Who(), callers=5),
            Issue(Who(), how="fresh", timeout=0.05, callers=5),
            Turn(),
            Turn(),
            Busy(1.5),
            Close(),
            Suspend(56.0),
        )
    ),
}
"""Programs that did, once."""

BUSY = Program(
    (
        Issue(Who(), callers=5),
        Prewarm((Who(), Who(user=1), Who(room=2))),
        Turn(),
        Fail(FaultKind.THROTTLE_JSON, times=3),
        Issue(Who(user=1), how="key-1", callers=5, timeout=8.0),
        Issue(Who(), how="fresh", callers=5, priority=Priority.HIGH),
        Cancel(3),
        Advance(0.3),
        Issue(Who(talks=True), how="fresh", callers=5),
        Cancel(2),
    ),
    Setting(rate=10.0, quota="bucket:2:2", jitter=0.5),
)
"""One in which much is chance."""


@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.fault(4)
@pytest.mark.fault(7)
@pytest.mark.fault(15)
@pytest.mark.fault(16)
def test_random_programs_break_nothing(pytestconfig: pytest.Config) -> None:
    """Whatever happens in whatever order: nothing is lost, doubled or leaked, and all ends."""
    count = pytestconfig.getoption("--programs")
    reached = search(
        count,
        pytestconfig.getoption("--hypothesis-seed") or 0,
        as_found=pytestconfig.getoption("--as-found"),
    )
    # Fewer are for somebody who looks for something.
    assert count < 1_000 or set() == WORTH_REACHING - reached.keys()


@pytest.mark.fault(62)
def test_random_programs_of_a_fleet_break_nothing(
    pytestconfig: pytest.Config, engine_server: EngineServer
) -> None:
    """Three services on one engine that is killed, stopped, emptied, failed over, full or locked
    meanwhile; ``--programs`` N runs a hundredth of them.
    """
    first = pytestconfig.getoption("--hypothesis-seed") or 0
    for number in range(first, first + pytestconfig.getoption("--programs") // 100):
        print(f"run_fleet(engine_server, {number})")  # the last one printed is the one that failed
        run_fleet(engine_server, number)


@pytest.mark.parametrize("program", BROKE_SOMETHING.values(), ids=BROKE_SOMETHING.keys())
def test_what_once_broke_something_breaks_nothing(program: Program) -> None:
    """Programs that random search has found, made as small as they go."""
    run(program)


def test_a_program_runs_the_same_each_time() -> None:
    """To the order in which every single task wakes; and in another order with another seed."""
    traces = [run(Program(BUSY.steps, BUSY.setting, seed)).trace for seed in (1, 1, 2)]
    assert traces[0] == traces[1]
    assert traces[0] != traces[2]


def test_a_program_runs_the_same_in_another_process() -> None:
    """Whatever hashes of text are there, and with them the order of sets."""
    command = (sys.executable, "-m", "search.simulation", str(BUSY))
    traces = {
        subprocess.run(
            command,
            cwd=TESTS,
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert 1 == len(traces)
    assert traces.pop().count("\n") == len(run(BUSY).trace)


@seed(0)
@settings(
    max_examples=200,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(programs())
def test_a_program_is_told_so_that_it_can_be_run_again(program: Program) -> None:
    """What is printed is read back as the same."""
    assert program == read(str(program))


def test_a_failure_tells_how_to_run_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After how many programs it was found, which seed it was, and the smallest that fails."""
    perform = World._perform

    async def break_at_a_suspension(world: World, step: Step) -> None:
        if isinstance(step, Suspend):
            raise Broken("a sample fault")
        await perform(world, step)

    monkeypatch.setattr(World, "_perform", break_at_a_suspension)
    told = []
    for _ in range(2):
        with pytest.raises(Found, match=r"after \d+ programs \(of 500, seed 3\): a sample") as it:
            search(500, 3)
        told.append(str(it.value))
    assert told[0] == told[1]
    python, *arguments = shlex.split(told[0].splitlines()[-1])
    assert ("python", ["-m", "search.simulation"]) == (python, arguments[:-1])
    smallest = read(arguments[-1])
    assert len(smallest.steps) <= 3
    with pytest.raises(Broken, match="a sample fault"):
        run(smallest)


@pytest.mark.parametrize("number", range(5))
def test_tasks_that_wake_together_wake_in_random_order(number: int) -> None:
    """All of them, each once; callbacks keep their order."""
    woken: list[int] = []
    called: list[int] = []
    loop = ShuffledLoop(Random(number))

    async def wake(task: int, start: asyncio.Event) -> None:
        await start.wait()
        woken.append(task)

    async def main() -> None:
        start = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for task in range(10):
                group.create_task(wake(task, start))
            await asyncio.sleep(1.0)
            start.set()
            for callback in range(10):
                loop.call_soon(called.append, callback)

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    assert list(range(10)) == sorted(woken) == called
    assert woken != called
