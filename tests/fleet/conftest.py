"""What the tests of the breaker and of connecting share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from aioivschat.redis._engine import Engine
from support.engine import EngineServer, cluster
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


@pytest.fixture(scope="session")
def _cluster_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EngineServer]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.fixture
def cluster_nodes(_cluster_nodes: list[EngineServer]) -> list[EngineServer]:
    """The nodes of a running cluster with nothing in it; to start one takes two seconds."""
    for node in _cluster_nodes:
        with node.client() as client:
            client.flushall()
            client.script_flush()
    return _cluster_nodes
