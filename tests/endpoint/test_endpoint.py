"""What the token endpoint replies, whom it keeps waiting, and how often it asks the rule."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import datetime, timedelta

import pytest

from aioivschat import (
    ChatToken,
    Quota,
)
from aioivschat._endpoint.endpoint import Endpoint
from aioivschat._endpoint.exchange import Reply
from aioivschat.aiohttp import EndpointPolicy
from aioivschat.emulator import ThreadedEmulatorServer
from support.endpoint_servers import (
    Mount,
    Rule,
    assert_problem,
    count_requests,
    open_busy_service,
    open_virtual_endpoint,
)
from support.services import OpenService, outcomes, until
from support.virtual import EPOCH, virtual_time


@pytest.mark.fault(27)
async def test_the_reply_is_safe_for_the_sdk(mount: Mount) -> None:
    """The SDK renews by ``tokenExpirationTime``, so that this is the session's end."""
    before = datetime.now().astimezone()
    answer = await (await mount()).ask()
    reply = answer.json
    assert 200 == answer.status
    assert "application/json" == answer.headers["Content-Type"]
    assert "no-store" == answer.headers["Cache-Control"]
    names = ("tokenExpirationTime", "sessionExpirationTime", "awsTokenExpirationTime", "now")
    assert {"token", *names} == set(reply)
    for name in names:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", reply[name])
    assert reply["sessionExpirationTime"] == reply["tokenExpirationTime"]
    session = datetime.fromisoformat(reply["sessionExpirationTime"]) - before
    aws = datetime.fromisoformat(reply["awsTokenExpirationTime"]) - before
    assert abs(session - timedelta(minutes=60)) < timedelta(seconds=5)
    assert abs(aws - timedelta(minutes=1)) < timedelta(seconds=5)
    assert abs(datetime.fromisoformat(reply["now"]) - before) < timedelta(seconds=5)


async def test_awss_own_expiration_can_be_had(mount: Mount) -> None:
    """``raw_expiration`` gives AWS's minute as ``tokenExpirationTime``."""
    reply = (await (await mount(EndpointPolicy(raw_expiration=True))).ask()).json
    assert reply["awsTokenExpirationTime"] == reply["tokenExpirationTime"]
    assert reply["tokenExpirationTime"] < reply["sessionExpirationTime"]


async def test_each_request_without_a_key_has_its_own_token(mount: Mount) -> None:
    """A token connects once, so requests without a key never share one."""
    client = await mount()
    tokens = {(await client.ask()).json["token"] for _ in range(3)}
    assert 3 == len(tokens)


async def test_an_attempt_repeated_has_the_same_token(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Requests with one key have one token, also while it is being minted."""
    client = await mount()
    answers = await asyncio.gather(*(client.ask(key="attempt-1") for _ in range(5)))
    answers.append(await client.ask(key="attempt-1"))
    assert 1 == len({answer.json["token"] for answer in answers})
    assert 1 == count_requests(ivschat_emulator)
    assert answers[0].json["token"] != (await client.ask(key="attempt-2")).json["token"]


async def test_a_key_belongs_to_its_caller(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Two users with the same key each get a token of their own."""
    client = await mount()
    users = ("alice", "bob")
    for user in users:
        token = (await client.ask(user=user, key="the-same")).json["token"]
        assert user == ivschat_emulator.emulator.redeem(token).user_id


@virtual_time
async def test_who_fits_is_held_and_who_does_not_is_told_at_once() -> None:
    """A request whose predicted wait exceeds the patience is refused before time passes."""
    loop = asyncio.get_running_loop()
    policy = EndpointPolicy(patience=1.2, per_user=None)
    async with open_virtual_endpoint(policy, Quota(rate=2.0)) as ask:
        assert 200 == (await ask("first")).status
        begun = loop.time()

        async def timed() -> tuple[Reply, float]:
            return await ask("alice"), loop.time() - begun

        timings = await asyncio.gather(*(timed() for _ in range(20)))
    held = [wait for reply, wait in timings if reply.status == 200]
    refused = [(reply, wait) for reply, wait in timings if reply.status != 200]
    assert 2 == len(held)
    assert max(held) <= policy.patience
    for reply, wait in refused:
        assert (503, 0.0) == (reply.status, wait)
        assert int(reply.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    ("prefer", "status"),
    [
        ("wait=1", 503),
        ('respond-async, wait="1"', 503),
        ("WAIT = 0; x", 503),
        ("wait=999", 200),
        ("wait=-1", 200),
        ("wait=1x", 200),
        ("await=1", 200),
        (f"wait={'9' * 400}", 200),
    ],
)
@virtual_time
async def test_a_request_may_shorten_the_patience(prefer: str, status: int) -> None:
    """``Prefer: wait`` (RFC 7240) is obeyed where it is well-formed, and ignored otherwise."""
    async with open_virtual_endpoint(EndpointPolicy(per_user=None), Quota(rate=0.7)) as ask:
        await ask("first")
        assert status == (await ask("alice", {"Prefer": prefer})).status


@virtual_time
async def test_no_request_lengthens_the_patience() -> None:
    """The policy's patience is the limit, as the server's proxies may give up beyond it."""
    policy = EndpointPolicy(patience=0.5, per_user=None)
    async with open_virtual_endpoint(policy, Quota(rate=0.2)) as ask:
        await ask("first")
        assert 503 == (await ask("alice", {"Prefer": "wait=60"})).status


async def test_a_client_that_goes_away_gives_up_its_place(
    mount: Mount, open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A disconnected client's reservation is given up, without aiohttp's handler cancellation."""
    service = await open_busy_service(open_service, rate=0.2)
    client = await mount(service=service)
    call = asyncio.create_task(client.ask())
    await until(lambda: service.stats().waiting == 1)
    call.cancel()
    await outcomes(call)
    await until(lambda: (service.stats().waiting, service.stats().flights) == (0, 0))
    assert 1 == count_requests(ivschat_emulator)
    # The next request of a client that stays is not cancelled, but ends with its own patience.
    assert 503 == (await client.ask(headers={"Prefer": "wait=1"})).status


async def test_who_is_banned_while_waiting_gets_nothing(
    mount: Mount, rule: Rule, open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A token minted for a user who was banned meanwhile is handed to nobody."""
    service = await open_busy_service(open_service, rate=2.0)
    client = await mount(service=service)
    call = asyncio.create_task(client.ask(key="attempt"))
    await until(lambda: service.stats().waiting == 1)
    rule.banned.add("alice")
    assert_problem(await call, 403, "forbidden")
    assert 0 == service.stats().stock_held
    assert 200 == (await client.ask(user="bob", key="attempt")).status
    assert_problem(await client.ask(key="attempt"), 403, "forbidden")


async def test_who_may_do_less_after_the_wait_is_asked_to_come_again(
    mount: Mount, rule: Rule, open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A token minted for a larger grant than the current one is not handed out."""
    service = await open_busy_service(open_service, rate=2.0)
    client = await mount(service=service)
    call = asyncio.create_task(client.ask(key="attempt"))
    await until(lambda: service.stats().waiting == 1)
    rule.capabilities = {"SEND_MESSAGE"}
    answer = await call
    assert_problem(answer, 503, "grant-changed")
    assert "Retry-After" in answer.headers
    token = (await client.ask(key="attempt")).json["token"]
    assert {"SEND_MESSAGE"} == set(ivschat_emulator.emulator.redeem(token).capabilities)


async def test_the_rule_runs_once_if_there_is_no_wait(mount: Mount, rule: Rule) -> None:
    """The rule is asked twice for a token that is minted, and once for one that is there."""
    client = await mount()
    await client.ask(key="attempt")
    assert 2 == rule.calls
    await client.ask(key="attempt")
    assert 3 == rule.calls


@pytest.mark.fault(46)
@pytest.mark.parametrize("hours", [-2, 0, 2])
@virtual_time
async def test_the_reply_tells_the_time_by_awss_clock(hours: int) -> None:
    """``now`` is to be compared with the other times, whatever the clock of the host says."""
    loop = asyncio.get_running_loop()
    policy = EndpointPolicy(per_user=None)
    async with open_virtual_endpoint(policy, host_ahead=hours * 3600.0) as ask:
        minute = timedelta(minutes=1)
        for seconds in (0, 20, 20):
            await asyncio.sleep(seconds)
            body = json.loads((await ask("alice", {"Idempotency-Key": "attempt"})).body)
            now = datetime.fromisoformat(body["now"])
            assert (
                timedelta()
                <= datetime.fromisoformat(body["awsTokenExpirationTime"]) - now
                <= minute
            )
            left = datetime.fromisoformat(body["sessionExpirationTime"]) - now
            assert timedelta(minutes=58) < left <= timedelta(minutes=60)
            if hours == 0:
                assert EPOCH + loop.time() == pytest.approx(now.timestamp(), abs=0.001)


def test_the_body_is_json() -> None:
    """The reply is valid JSON for a token with quotes, backslashes and line separators."""
    endpoint = Endpoint(Rule(), EndpointPolicy(), ValueError)
    moment = datetime.now().astimezone()
    token = ChatToken('a"\\\u2028é', moment, moment)
    body = endpoint._make_reply(endpoint._format_token(token)).body
    assert 'a"\\\u2028é' == json.loads(body)["token"]
