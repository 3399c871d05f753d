"""How the loops of tests make tasks: ``--tasks``.

Users set task factories. ``asyncio.eager_task_factory`` (Python 3.12) runs a task up to its first
wait before ``create_task`` returns; a factory of the old form takes a loop and a coroutine alone.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pytest

P = ParamSpec("P")
T = TypeVar("T")

KINDS = ("lazy", "eager", "old")

_factory: Callable[..., Any] | None = None


def make_task_as_of_old(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]
) -> asyncio.Task[Any]:
    """Make a task, as factories do that know no ``context``."""
    return asyncio.Task(work, loop=loop)


def make_wrapped_task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]
) -> asyncio.Task[Any]:
    """Make a task of work around the work by another factory, as tracers do."""

    async def run() -> Any:
        return await work

    return make_task_as_of_old(loop, run())


FACTORIES: dict[str, Callable[..., Any]] = {
    "old form": make_task_as_of_old,
    "wrapping": make_wrapped_task,
}
"""Task factories that users may set."""

if hasattr(asyncio, "eager_task_factory"):
    FACTORIES["eager"] = asyncio.eager_task_factory


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--tasks",
        choices=KINDS,
        default=KINDS[0],
        help="how async tests make tasks: as loops do by themselves, eagerly (Python 3.12), or by "
        "a factory of the old form, (loop, coroutine)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep the factory of the option."""
    global _factory
    kind = config.getoption("--tasks")
    if kind == "old":
        _factory = make_task_as_of_old
    elif kind == "eager":
        _factory = getattr(asyncio, "eager_task_factory", None)
        if _factory is None:
            raise pytest.UsageError("eager tasks need Python 3.12")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Have async tests make their tasks by the factory."""
    if item.config.getoption("--tasks") == "eager" and item.get_closest_marker("lazy_tasks"):
        item.add_marker(pytest.mark.skip(reason="the test itself needs tasks that begin later"))
    if isinstance(item, pytest.Function) and asyncio.iscoroutinefunction(item.obj):
        item.obj = with_factory(item.obj)


def with_factory(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make an async test use the factory that the option names, if it names one."""
    if _factory is None:
        return test

    @functools.wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        # Not before the test: what runs it may pass a context, which the old form does not take.
        loop = asyncio.get_running_loop()
        loop.set_task_factory(_factory)
        try:
            return await test(*args, **kwargs)
        finally:
            loop.set_task_factory(None)

    return run
