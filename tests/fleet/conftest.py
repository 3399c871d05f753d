"""What the tests of the breaker and of connecting share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from aioivschat.redis._engine import Engine
from support.engine_calls import OpenEngine


@pytest.fixture
async def open_engine() -> AsyncIterator[OpenEngine]:
    """A factory of engines that are closed after the test."""
    async with AsyncExitStack() as stack:

        def make(address: Any, **options: Any) -> Engine:
            engine = Engine(address, **options)
            stack.push_async_callback(engine.aclose)
            return engine

        yield make
