"""Options of another kind or form than is meant: an error that names them, where they are said."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from aioivschat import (
    AsyncTokenService,
    CachePolicy,
    InvalidConfiguration,
    InvalidRequest,
    PoolPolicy,
    Priority,
    Quota,
    RetryPolicy,
    TokenRequest,
)
from aioivschat._endpoint.rate_limits import EndpointPolicy, Share
from aioivschat.onboarding import onboard
from aioivschat.planning import LiveEvent
from support.services import ROOM, OpenService


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    "quota",
    [
        100,
        "200",
        None,
        {("us-east-1", "123456789012"): Quota()},
        {(123456789012, "us-east-1"): Quota()},
        {("123456789012", "us-east-1"): 100},
        {("12345678901", "us-east-1"): Quota()},
        {("123456789012", "US-EAST-1"): Quota()},
        {("123456789012", "us_east_1"): Quota()},
        {("123456789012", ""): Quota()},
        {"us-east-1": Quota()},
        {"123456789012": Quota()},
        {ROOM: Quota()},
        {("123456789012",): Quota()},
        {("123456789012", "us-east-1", "room"): Quota()},
    ],
)
def test_a_quota_of_another_form_is_refused_when_the_service_is_made(quota: Any) -> None:
    """The error shows the form that is meant; nothing is silently 200 a second."""
    with pytest.raises(InvalidConfiguration, match=r"quota: .*\('123456789012', 'us-east-1'\)"):
        AsyncTokenService(quota=quota)


@pytest.mark.fault(32)
@pytest.mark.parametrize("priority", [7, -1, 3, 1.5, "HIGH", None, True, [1]])
async def test_a_priority_that_is_none_is_refused(open_service: OpenService, priority: Any) -> None:
    """By every method that takes one, before any I/O, also where a token is there already."""
    tokens, request = open_service(), TokenRequest(ROOM, "u")
    await tokens.issue(request)
    calls: list[Callable[[], Any]] = [
        lambda: tokens.issue(request, priority=priority),
        lambda: tokens.issue(TokenRequest(ROOM, "other"), priority=priority),
        lambda: tokens.create_chat_token(roomIdentifier=ROOM, userId="u", priority=priority),
        lambda: onboard(tokens, [request], priority=priority).__anext__(),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest, match="priority: must be Priority"):
            await call()
    with pytest.raises(InvalidRequest, match="priority: must be"):
        tokens.estimate(ROOM, priority=priority)
    assert 1 == tokens.stats().requests


@pytest.mark.fault(32)
async def test_a_priority_may_be_told_by_its_number(open_service: OpenService) -> None:
    """What comes from a configuration file, say."""
    tokens = open_service()
    for priority in Priority:
        number: Any = int(priority)
        assert await tokens.issue(TokenRequest(ROOM, str(priority)), priority=number)
    assert 0.0 == tokens.estimate(ROOM, priority=number)


@pytest.mark.fault(32)
@pytest.mark.parametrize("timeout", ["5", 0, -1.0, math.nan, True, [1], -(10**400)])
async def test_a_timeout_that_is_none_is_refused(open_service: OpenService, timeout: Any) -> None:
    """Before any I/O."""
    tokens = open_service()
    with pytest.raises(InvalidRequest, match="timeout: must be a number above 0 s, or None"):
        await tokens.issue(TokenRequest(ROOM, "u"), timeout=timeout)
    assert 0 == tokens.stats().requests


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    "policy", [RetryPolicy, CachePolicy, PoolPolicy, EndpointPolicy, Share, LiveEvent]
)
def test_a_policy_takes_numbers_only(policy: Any) -> None:
    """Text, a flag or a number of 400 digits in place of any number is refused by its name."""
    needed: dict[Any, dict[str, Any]] = {
        Share: {"tokens": 1, "seconds": 1.0},
        LiveEvent: {"attendees": 9},
    }
    given = needed.get(policy, {})
    made = policy(**given)
    numbers = [
        field.name for field in fields(made) if type(getattr(made, field.name)) in (int, float)
    ]
    assert numbers
    for name in numbers:
        for value in ("5", True, None, 10**400, -(10**5_000), math.nan):
            with pytest.raises(InvalidConfiguration, match=f"{name}: must be"):
                policy(**given | {name: value})


@pytest.mark.fault(32)
@pytest.mark.parametrize("user", [5, "", "x" * 129, b"u", True, 1.5, ["u"], "\ud800"])
async def test_a_ban_of_nobody_is_refused(open_service: OpenService, user: Any) -> None:
    """What cannot be anybody's id would ban nobody, and nobody would be told."""
    tokens = open_service()
    await tokens.issue(TokenRequest(ROOM, "5"))
    for named in ({"user": user}, {"user": user, "room": ROOM}):
        with pytest.raises(InvalidRequest, match="userId: must be"):
            tokens.invalidate(**named)
    with pytest.raises(InvalidRequest, match="roomIdentifier: must be"):
        tokens.invalidate(room=user, user="5")
    assert tokens.ready(TokenRequest(ROOM, "5")) is not None
    tokens.invalidate(user="5")
    assert tokens.ready(TokenRequest(ROOM, "5")) is None


@pytest.mark.fault(32)
@pytest.mark.parametrize("request_", ["alice", 5, None, {"userId": "u"}])
async def test_what_is_no_request_is_refused(open_service: OpenService, request_: Any) -> None:
    """By its type, before and after the first use."""
    tokens = open_service()
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="request: must be a TokenRequest"):
            await tokens.issue(request_)
        with pytest.raises(InvalidRequest, match="request: must be a TokenRequest"):
            tokens.ready(request_)
        with pytest.raises(InvalidRequest, match="requests: must be of TokenRequest"):
            await tokens.prewarm([request_])
        await tokens.issue(TokenRequest(ROOM, "u"))


@pytest.mark.fault(32)
@pytest.mark.parametrize("value", ["40", True, [1], 0, -1.0, math.nan, math.inf, 10**400])
async def test_doors_and_budget_are_numbers(open_service: OpenService, value: Any) -> None:
    """Before anything is read."""
    with pytest.raises(InvalidRequest, match="doors: must be a number"):
        await open_service().prewarm([], doors=value)
    with pytest.raises(InvalidRequest, match="budget: must be a number"):
        await open_service().prewarm([], budget=value)
