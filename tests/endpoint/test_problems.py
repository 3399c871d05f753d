"""What the token endpoint says when there is no token, and what it never says."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.session import AioSession

from aioivschat import (
    TokenRequest,
)
from aioivschat.aiohttp import Ask, EndpointPolicy, Share
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from support.endpoint_servers import (
    ONE_REQUEST,
    Mount,
    Rule,
    assert_problem,
)
from support.services import OpenService
from support.sts import role_by_sts


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    ("kind", "status", "name", "comes_back"),
    [
        (FaultKind.THROTTLE_JSON, 503, "overloaded", True),
        (FaultKind.RESET, 503, "unreachable", True),
        (FaultKind.ERROR_500, 502, "upstream", True),
        (FaultKind.ACCESS_DENIED, 502, "upstream", False),
        (FaultKind.TRUNCATE, 502, "upstream", False),
    ],
)
async def test_upstream_failures_are_told_in_our_own_words(
    mount: Mount,
    ivschat_emulator: ThreadedEmulatorServer,
    kind: FaultKind,
    status: int,
    name: str,
    comes_back: bool,
) -> None:
    """AWS's failures become problems of ours, with Retry-After where repeating may help."""
    ivschat_emulator.emulator.fail_next(Fault(kind, times=None))
    answer = await (await mount()).ask()
    assert_problem(answer, status, name)
    assert comes_back == ("Retry-After" in answer.headers)


async def test_a_wait_without_end_that_aws_asks_for_is_told_as_ten_seconds(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A Retry-After of 400 digits from AWS counts as 10 s; the jitter is as much as half of it."""
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.THROTTLE_EMPTY, retry_after="9" * 400))
    answer = await (await mount()).ask()
    assert_problem(answer, 503, "overloaded")
    assert 10 <= int(answer.headers["Retry-After"]) <= 15


async def test_an_unknown_room_is_404(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A room that the rule grants and AWS does not know is a 404."""
    ivschat_emulator.emulator.configure(any_room=False)
    assert_problem(await (await mount()).ask(), 404, "no-such-room")


@pytest.mark.fault(39)
@pytest.mark.parametrize(("code", "comes_back"), [("Throttling", True), ("AccessDenied", False)])
async def test_missing_credentials_charge_nobody(
    mount: Mount,
    log: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    code: str,
    comes_back: bool,
) -> None:
    """503, and the user's share is as it was; the log names the service that gave none."""
    policy = EndpointPolicy(per_user=Share(tokens=1, seconds=1e6))
    async with role_by_sts(monkeypatch, tmp_path) as sts:
        client = await mount(policy, session=AioSession())
        sts.refuse(code)
        for _ in range(2):
            answer = await client.ask()
            assert_problem(answer, 503, "unreachable")
            assert comes_back == ("Retry-After" in answer.headers)
        assert f"AssumeRole of STS: {code}" in log.getvalue()
        sts.grant()
        assert 200 == (await client.ask()).status
        assert 429 == (await client.ask()).status


@pytest.mark.fault(41)
async def test_the_log_names_a_host_that_does_not_answer(mount: Mount, log: io.StringIO) -> None:
    """And its region; the client learns neither."""
    answer = await (await mount(endpoint_url="http://127.0.0.1:9")).ask()
    assert_problem(answer, 503, "unreachable")
    assert "in us-east-1, at 127.0.0.1" in log.getvalue()
    assert "us-east-1" not in str(answer.body)


async def test_a_closed_service_is_503(mount: Mount, open_service: OpenService) -> None:
    """A server that is shutting down answers 503: another one may serve the request."""
    service = open_service()
    client = await mount(service=service)
    await service.aclose()
    assert_problem(await client.ask(), 503, "overloaded")


async def test_a_black_hole_ends_with_the_patience(
    mount: Mount, open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """AWS never answers; the test would hang if the request did not end with its own wait."""
    service = open_service(retry=ONE_REQUEST)
    client = await mount(EndpointPolicy(patience=1e6, per_user=None), service=service)
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.BLACK_HOLE, times=None))
    assert_problem(await client.ask(headers={"Prefer": "wait=1"}), 503, "overloaded")
    await service.aclose(grace=0.0)


@pytest.mark.fault(30)
async def test_neither_logs_nor_problems_show_a_secret(
    mount: Mount, rule: Rule, log: io.StringIO, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """No user, attribute, key or token is in a problem or a log, the web server's included."""
    user, name, key = "canary-user-7Qd1", "canary-name-Zx93", "canary-key-0Pw2"
    client = await mount(EndpointPolicy(per_user=Share(tokens=12, seconds=1000.0)))
    body = {"attributes": {"displayName": name}, "userId": user}
    answers = [await client.ask(body, user=user, key=key)]
    token = answers[0].json["token"]
    for kind in FaultKind:
        if kind is not FaultKind.BLACK_HOLE:
            ivschat_emulator.emulator.fail_next(Fault(kind))
            answers.append(await client.ask(body, user=user))
    answers += [await client.ask(body, user=user) for _ in range(12)]
    for broken in (
        {"attributes": {name: 5}},
        {"attributes": {name: "x" * 2000}},
        {"room": user},
        {"userId": name},
        {name: 1},
        {"capabilities": [name]},
    ):
        answers.append(await client.ask(body | broken, user=user, key=key))
    answers.append(await client.ask(user=user, key=f"{key} {key}"))
    answers.append(await client.ask(raw=f'{{"{name}'.encode(), user=user))
    rule.capabilities = {user}
    answers.append(await client.ask(body, user=user))
    problems = [answer.body.decode() for answer in answers if answer.status != 200]
    assert len(problems) > 15
    assert "POST /chat/token" in log.getvalue()
    for text in (*problems, log.getvalue()):
        for canary in (user, name, key, token):
            assert canary not in text


async def test_a_problem_is_logged_under_its_id(mount: Mount, log: io.StringIO) -> None:
    """The log has the problem's id, its cause's class, and where an unknown error was raised."""

    async def rule(request: Any, ask: Ask) -> TokenRequest | None:
        raise KeyError("canary")

    problem = (await (await mount(authorize=rule)).ask()).json
    (line,) = [line for line in log.getvalue().splitlines() if problem["instance"] in line]
    assert "KeyError at " in line
    assert __file__ in line
