"""Calls to an engine, as the tests of the breaker and of connecting make them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aioivschat.redis._engine import Engine, EngineAway, EngineState, Script
from support.services import until

OpenEngine = Callable[..., Engine]

INCREMENT = Script("return redis.call('INCR', KEYS[1])")
COUNTER = ["{tests}:counter"]


async def try_call(engine: Engine, script: Script = INCREMENT) -> tuple[float, EngineAway | None]:
    """Make a call; return how many seconds it took, and its failure if it failed."""
    start = time.perf_counter()
    try:
        await engine.run_script(script, COUNTER)
    except EngineAway as away:
        return time.perf_counter() - start, away
    return time.perf_counter() - start, None


async def until_away(engine: Engine) -> EngineAway:
    """Make calls until the breaker is open; return the failure of the next call."""
    while engine.state is not EngineState.AWAY:
        await try_call(engine)
        await asyncio.sleep(0)  # a call fails without waiting while the engine is connecting
    _, away = await try_call(engine)
    assert away is not None
    return away


async def until_back(engine: Engine) -> None:
    """Wait until the probe has closed the breaker, and make a call."""
    await engine.open()
    await until(lambda: engine.state is EngineState.SHARED, within=5.0)
    await engine.run_script(INCREMENT, COUNTER)
