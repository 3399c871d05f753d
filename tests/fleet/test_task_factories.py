"""Whoever makes the tasks of an event loop, a fleet keeps its promises.

A task may begin to run inside `create_task` (`asyncio.eager_task_factory`, Python 3.12 and later),
and a task factory of the old form takes the loop and the work, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aioivschat import Quota, TokenRequest
from support.services import ROOM, OpenService, until
from support.tasks import FACTORIES


@pytest.fixture(params=list(FACTORIES.values()), ids=list(FACTORIES))
def tasks_made_otherwise(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Within it, the tasks of the running loop are made by another factory."""

    @contextmanager
    def use_factory() -> Iterator[None]:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(request.param)
        try:
            yield
        finally:
            loop.set_task_factory(None)

    return use_factory


async def test_a_fleet_sends_nothing_without_a_permit(
    open_member: OpenService, tasks_made_otherwise: Callable[[], Any]
) -> None:
    """Of sixty calls at 2 a second, nearly all wait; none of those has been sent."""
    with tasks_made_otherwise():
        member = open_member(quota=Quota(rate=2.0))
        calls = [
            asyncio.create_task(member.issue(TokenRequest(ROOM, f"viewer-{number}")))
            for number in range(60)
        ]
        await until(lambda: member.stats().waiting > 40)
        assert member.stats().requests < 20
        await member.aclose(grace=0.0)
        await asyncio.gather(*calls, return_exceptions=True)


async def test_an_attempt_has_one_token_at_all_members(
    open_member: OpenService, tasks_made_otherwise: Callable[[], Any]
) -> None:
    """The second member finds what the first one minted."""
    with tasks_made_otherwise():
        one, other = open_member(), open_member()
        request = TokenRequest(ROOM, "viewer")
        first = await one.issue(request, idempotency_key="key")
        second = await other.issue(request, idempotency_key="key")
        assert first.token == second.token
        assert (1, 0) == (one.stats().requests, other.stats().requests)


async def test_stock_of_one_member_serves_another(
    open_member: OpenService, tasks_made_otherwise: Callable[[], Any]
) -> None:
    """A token that was minted ahead is claimed, and no request is sent for it."""
    with tasks_made_otherwise():
        one, other = open_member(), open_member()
        request = TokenRequest(ROOM, "viewer")
        await one.prewarm([request])
        await other.issue(request, fresh=True)
        assert (1, 0) == (one.stats().requests, other.stats().requests)


async def test_an_invalidation_reaches_the_other_members(
    open_member: OpenService, tasks_made_otherwise: Callable[[], Any]
) -> None:
    """What they hold for the user is not given again."""
    with tasks_made_otherwise():
        one, other = open_member(), open_member()
        request = TokenRequest(ROOM, "viewer")
        await one.issue(TokenRequest(ROOM, "somebody else"))
        await other.issue(request)
        assert other.ready(request) is not None
        one.invalidate(user="viewer")
        await until(lambda: other.ready(request) is None)
