"""What the token endpoint grants, refuses and says: one contract for every web server."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

import aioivschat.aiohttp
import aioivschat.starlette
from aioivschat import (
    AsyncTokenService,
    ChatToken,
    InvalidConfiguration,
    PoolPolicy,
    Quota,
    RetryPolicy,
    TokenRequest,
)
from aioivschat._endpoint.endpoint import Endpoint
from aioivschat._endpoint.exchange import BODY_MAX_BYTES, Received
from aioivschat._endpoint.rate_limits import RateLimits
from aioivschat.aiohttp import Ask, EndpointPolicy, Share
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from aioivschat.planning._outcomes import percentile
from aioivschat.planning._plan import minting_session
from support.endpoint_servers import (
    GENEROUS,
    Answer,
    Client,
    Rule,
    Serve,
    serve_aiohttp,
    serve_starlette,
)
from support.services import ROOM, BentClock, OpenService, outcomes, until
from support.virtual import VirtualClock, virtual_time

OTHER_ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/ZyXwVuTsRqPo"
ONE_TRY = RetryPolicy(max_attempts=1)

Mount = Callable[..., Any]


@pytest.fixture(params=[serve_aiohttp, serve_starlette], ids=["aiohttp", "starlette"])
def serve(request: pytest.FixtureRequest) -> Serve:
    """What serves the endpoint."""
    server: Serve = request.param
    return server


@pytest.fixture
def rule() -> Rule:
    """The application's rule."""
    return Rule()


@pytest.fixture
async def mount(serve: Serve, rule: Rule, open_service: OpenService) -> AsyncIterator[Mount]:
    """Serves the endpoint and gives a client of it."""
    async with AsyncExitStack() as stack:

        async def make(
            policy: EndpointPolicy = GENEROUS,
            *,
            authorize: Any = None,
            service: AsyncTokenService | None = None,
            **options: Any,
        ) -> Client:
            service = service or open_service(**{"retry": ONE_TRY, **options})
            url = await stack.enter_async_context(serve(authorize or rule, service, policy))
            session = await stack.enter_async_context(aiohttp.ClientSession())
            return Client(session, url)

        yield make


def _assert_problem(answer: Answer, status: int, name: str) -> None:
    """Check that an answer is a problem as RFC 9457 has it, and says nothing more."""
    problem = answer.json
    assert status == answer.status
    assert "application/problem+json" == answer.headers["Content-Type"]
    assert "no-store" == answer.headers["Cache-Control"]
    assert {"type", "title", "status", "detail", "instance"} == set(problem) - {"retryAfter"}
    assert f"urn:problem-type:aioivschat:{name}" == problem["type"]
    assert status == problem["status"]
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", problem["instance"])
    assert "Traceback" not in answer.body.decode()
    if "Retry-After" in answer.headers:
        assert str(problem["retryAfter"]) == answer.headers["Retry-After"]
        assert problem["retryAfter"] >= 1


async def _busy(open_service: OpenService, rate: float) -> AsyncTokenService:
    """Return a service that has just used its only permit for a while."""
    service = open_service(quota=Quota(rate=rate), retry=ONE_TRY)
    await service.issue(TokenRequest(ROOM, "first"), fresh=True)
    return service


def _requests(emulator: ThreadedEmulatorServer) -> int:
    return emulator.emulator.counts().requests


# The reply.


@pytest.mark.fault(27)
async def test_the_reply_is_safe_for_the_sdk(mount: Mount) -> None:
    """The SDK renews by ``tokenExpirationTime``, so that this is the session's end."""
    before = datetime.now().astimezone()
    answer = await (await mount()).ask()
    reply = answer.json
    assert 200 == answer.status
    assert "application/json" == answer.headers["Content-Type"]
    assert "no-store" == answer.headers["Cache-Control"]
    for name in ("tokenExpirationTime", "sessionExpirationTime", "awsTokenExpirationTime"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", reply[name])
    assert reply["sessionExpirationTime"] == reply["tokenExpirationTime"]
    session = datetime.fromisoformat(reply["sessionExpirationTime"]) - before
    aws = datetime.fromisoformat(reply["awsTokenExpirationTime"]) - before
    assert abs(session - timedelta(minutes=60)) < timedelta(seconds=5)
    assert abs(aws - timedelta(minutes=1)) < timedelta(seconds=5)


async def test_awss_own_expiration_can_be_had(mount: Mount) -> None:
    """Under its own name, as an option."""
    reply = (await (await mount(EndpointPolicy(raw_expiration=True))).ask()).json
    assert reply["awsTokenExpirationTime"] == reply["tokenExpirationTime"]
    assert reply["tokenExpirationTime"] < reply["sessionExpirationTime"]


async def test_each_request_without_a_key_has_its_own_token(mount: Mount) -> None:
    """A token connects once."""
    client = await mount()
    tokens = {(await client.ask()).json["token"] for _ in range(3)}
    assert 3 == len(tokens)


async def test_an_attempt_repeated_has_the_same_token(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Also when it is repeated while under way."""
    client = await mount()
    answers = await asyncio.gather(*(client.ask(key="attempt-1") for _ in range(5)))
    answers.append(await client.ask(key="attempt-1"))
    assert 1 == len({answer.body for answer in answers})
    assert 1 == _requests(ivschat_emulator)
    assert answers[0].json["token"] != (await client.ask(key="attempt-2")).json["token"]


async def test_a_key_belongs_to_its_caller(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Nobody gets a token by somebody else's key."""
    client = await mount()
    users = ("alice", "bob")
    for user in users:
        token = (await client.ask(user=user, key="the-same")).json["token"]
        assert user == ivschat_emulator.emulator.redeem(token).user_id


# What is granted.


@pytest.mark.parametrize(
    ("body", "capabilities", "attributes"),
    [
        ({}, {"SEND_MESSAGE", "DELETE_MESSAGE"}, {}),
        ({"capabilities": ["SEND_MESSAGE"]}, {"SEND_MESSAGE"}, {}),
        ({"capabilities": []}, set(), {}),
        ({"capabilities": ["DELETE_MESSAGE", "SEND_MESSAGE", "SEND_MESSAGE"]}, None, {}),
        ({"room": ROOM, "user": "alice", "session_minutes": 60}, None, {}),
        ({"roomIdentifier": ROOM, "userId": "alice", "sessionDurationInMinutes": 5.0}, None, {}),
        ({"arn": ROOM, "userId": "alice", "durationInMinutes": 55, "capabilities": []}, set(), {}),
        ({"attributes": {"displayName": "Ål"}}, None, {"displayName": "Ål"}),
    ],
)
async def test_what_is_asked_within_the_grant_is_given(
    mount: Mount,
    ivschat_emulator: ThreadedEmulatorServer,
    body: dict[str, Any],
    capabilities: set[str] | None,
    attributes: dict[str, str],
) -> None:
    """By the library's names, AWS's and those of its demo; what is not asked for is not in it."""
    answer = await (await mount()).ask(body)
    grant = ivschat_emulator.emulator.redeem(answer.json["token"])
    assert (ROOM, "alice") == (grant.room, grant.user_id)
    expected = {"SEND_MESSAGE", "DELETE_MESSAGE"} if capabilities is None else capabilities
    assert expected == set(grant.capabilities)
    assert attributes == dict(grant.attributes)


async def test_a_shorter_session_can_be_asked_for(mount: Mount) -> None:
    """And never a longer one."""
    client = await mount()
    reply = (await client.ask({"session_minutes": 5})).json
    ends = datetime.fromisoformat(reply["sessionExpirationTime"])
    assert abs(ends - datetime.now().astimezone() - timedelta(minutes=5)) < timedelta(seconds=5)
    _assert_problem(await client.ask({"session_minutes": 61}), 403, "forbidden")


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    "body",
    [
        {"room": OTHER_ROOM},
        {"arn": OTHER_ROOM},
        {"roomIdentifier": OTHER_ROOM},
        {"user": "bob"},
        {"userId": "bob"},
        {"userId": "Alice"},
        {"capabilities": ["DISCONNECT_USER"]},
        {"capabilities": ["SEND_MESSAGE", "DISCONNECT_USER"]},
        {"attributes": {"badge": "moderator"}},
        {"attributes": {"displayName": "x", "badge": "moderator"}},
    ],
)
async def test_what_is_not_granted_is_refused(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer, body: dict[str, Any]
) -> None:
    """The body asks and never grants; nothing goes upstream."""
    _assert_problem(await (await mount()).ask(body), 403, "forbidden")
    assert 0 == _requests(ivschat_emulator)


@pytest.mark.fault(26)
async def test_whom_the_rule_refuses_gets_nothing(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Whatever they ask for."""
    client = await mount()
    _assert_problem(await client.ask(user=None), 403, "forbidden")
    _assert_problem(await client.ask({"user": "alice"}, user=None), 403, "forbidden")
    assert 0 == _requests(ivschat_emulator)


@pytest.mark.fault(26)
def test_without_a_rule_the_application_refuses_to_start() -> None:
    """There is no default for who may do what."""
    with pytest.raises(InvalidConfiguration, match="authorize"):
        aioivschat.aiohttp.setup(web.Application())
    with pytest.raises(InvalidConfiguration, match="authorize"):
        aioivschat.starlette.routes()


async def test_a_rule_may_answer_in_its_own_way(mount: Mount) -> None:
    """Such as 401, with a challenge; it is not kept either."""

    async def rule(request: Any, ask: Ask) -> TokenRequest | None:
        if isinstance(request, web.Request):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})

    answer = await (await mount(authorize=rule)).ask()
    assert 401 == answer.status
    assert "Bearer" == answer.headers["WWW-Authenticate"]
    assert "no-store" == answer.headers["Cache-Control"]


@pytest.mark.fault(27)
@pytest.mark.parametrize("returned", [ValueError("secret"), True, {"room": ROOM}])
async def test_a_rule_that_fails_grants_nothing(mount: Mount, returned: Any) -> None:
    """It is an error of the server, without a word about it."""

    async def rule(request: Any, ask: Ask) -> Any:
        if isinstance(returned, Exception):
            raise returned
        return returned

    answer = await (await mount(authorize=rule)).ask()
    _assert_problem(answer, 500, "internal")
    assert "secret" not in answer.body.decode()


async def test_a_rule_may_make_its_request_of_what_is_asked(mount: Mount) -> None:
    """If the body lacks what the rule needs, the member is named."""

    async def rule(request: Any, ask: Ask) -> TokenRequest | None:
        return TokenRequest(ask.room, "alice")  # type: ignore[arg-type]  # may be None

    client = await mount(authorize=rule)
    assert 200 == (await client.ask({"room": ROOM})).status
    answer = await client.ask()
    _assert_problem(answer, 422, "invalid-member")
    assert "roomIdentifier" in answer.json["detail"]


_KEYS = st.sampled_from([None, "k1", "k2"])
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["room", "roomIdentifier", "arn"], st.sampled_from([ROOM, OTHER_ROOM, "x"])),
    **dict.fromkeys(["user", "userId"], st.sampled_from(["alice", "bob", "", "alice\u0000", 5])),
    **dict.fromkeys(
        ["session_minutes", "sessionDurationInMinutes", "durationInMinutes"],
        st.sampled_from([1, 60, 61, 180, True, "60"]),
    ),
    "capabilities": st.lists(
        st.sampled_from(["SEND_MESSAGE", "DELETE_MESSAGE", "DISCONNECT_USER", "ROOT"]), max_size=4
    ),
    "attributes": st.dictionaries(
        st.sampled_from(["displayName", "badge", "userId"]), st.text(max_size=5), max_size=3
    ),
    "X-User": st.just("bob"),
}
_BODIES = st.one_of(
    st.fixed_dictionaries({}, optional=_VALUES),
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=9), lambda x: st.lists(x), max_leaves=3
    ),
)
_HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Prefer": st.sampled_from(["wait=1", "wait=999", "user=bob", "respond-async"]),
        "User": st.just("bob"),
        "X-Amz-User": st.just("bob"),
        "X-HTTP-Method-Override": st.just("PUT"),
    },
)


@pytest.fixture
async def client(mount: Mount) -> Client:
    """A client of an endpoint that limits nobody."""
    client: Client = await mount()
    return client


@pytest.fixture
def redeemed() -> dict[str, Any]:
    """What the tokens seen so far entitled to: each is redeemed once."""
    return {}


@settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(user=st.sampled_from(["alice", "bob"]), body=_BODIES, key=_KEYS, headers=_HEADERS)
async def test_no_request_obtains_more_than_its_caller_is_granted(
    client: Client,
    ivschat_emulator: ThreadedEmulatorServer,
    redeemed: dict[str, Any],
    user: str,
    body: Any,
    key: str | None,
    headers: dict[str, str],
) -> None:
    """No request of A brings a token for B, another room, or a capability not granted."""
    answer = await client.ask(body, user=user, key=key, headers=headers)
    if answer.status != 200:
        assert answer.status in (400, 403, 422)
        return
    token = answer.json["token"]
    if token not in redeemed:
        redeemed[token] = ivschat_emulator.emulator.redeem(token)
    grant = redeemed[token]
    assert (ROOM, user) == (grant.room, grant.user_id)
    assert set(grant.capabilities) <= {"SEND_MESSAGE", "DELETE_MESSAGE"}
    assert set(grant.attributes) <= {"displayName"}


# The form of a request.


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b'"x"', b"5", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 4000],
    ids=["empty", "open", "list", "null", "text", "number", "utf-16", "bom", "deep"],
)
async def test_a_body_that_is_no_json_object_is_400(mount: Mount, raw: bytes) -> None:
    """Also one that is nested too deep to be read."""
    _assert_problem(await (await mount()).ask(raw=raw), 400, "bad-request")


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
async def test_a_malformed_key_is_400(mount: Mount, key: str) -> None:
    """1 to 255 visible ASCII characters."""
    _assert_problem(await (await mount()).ask(key=key), 400, "bad-request")


async def test_the_longest_key_is_a_key(mount: Mount) -> None:
    """All visible characters are."""
    key = "".join(map(chr, range(0x21, 0x7F)))
    assert 200 == (await (await mount()).ask(key=(key * 3)[:255])).status


@pytest.mark.fault(27)
async def test_a_large_body_is_413(mount: Mount, rule: Rule) -> None:
    """Announced or not; the largest allowed one is read."""
    client = await mount()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 512

    for raw in (b" " * (BODY_MAX_BYTES + 1), chunks(), b" " * 1_000_000):
        _assert_problem(await client.ask(raw=raw), 413, "too-large")
    assert 0 == rule.calls
    assert 200 == (await client.ask(raw=b"{}" + b" " * (BODY_MAX_BYTES - 2))).status


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/jsonp"},
        {"Content-Encoding": "gzip"},
    ],
)
async def test_anything_but_json_is_415(mount: Mount, headers: dict[str, str]) -> None:
    """A form of another page could carry the user's cookies."""
    raw = gzip.compress(b"{}") if "Content-Encoding" in headers else b"{}"
    _assert_problem(await (await mount()).ask(raw=raw, headers=headers), 415, "not-json")


async def test_json_may_have_parameters(mount: Mount) -> None:
    """And any case."""
    client = await mount()
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert 200 == (await client.ask(headers=headers)).status


@pytest.mark.parametrize(
    ("body", "member"),
    [
        ({"room": "x"}, "room"),
        ({"arn": ""}, "arn"),
        ({"roomIdentifier": 5}, "roomIdentifier"),
        ({"userId": ""}, "userId"),
        ({"user": "x" * 129}, "user"),
        ({"user": None}, "user"),
        ({"capabilities": ["ROOT"]}, "capabilities"),
        ({"capabilities": "SEND_MESSAGE"}, "capabilities"),
        ({"capabilities": {"SEND_MESSAGE": True}}, "capabilities"),
        ({"attributes": {"a": 5}}, "attributes"),
        ({"attributes": {"a": "x" * 1024}}, "attributes"),
        ({"attributes": {"a": "\ud800"}}, "attributes"),
        ({"session_minutes": 0}, "session_minutes"),
        ({"durationInMinutes": 181}, "durationInMinutes"),
        ({"sessionDurationInMinutes": "60"}, "sessionDurationInMinutes"),
        ({"sessionDurationInMinutes": math.nan}, "sessionDurationInMinutes"),
        ({"sessionDurationInMinutes": 1.5}, "sessionDurationInMinutes"),
        ({"sessionDurationInMinutes": 1e300}, "sessionDurationInMinutes"),
        ({"nothing": 1}, "nothing"),
        ({"room": ROOM, "arn": ROOM}, "arn"),
    ],
)
async def test_a_member_that_breaks_a_limit_is_422(
    mount: Mount, rule: Rule, body: dict[str, Any], member: str
) -> None:
    """By the name that the client gave it."""
    answer = await (await mount()).ask(body)
    _assert_problem(answer, 422, "invalid-member")
    assert re.search(rf"\b{member}\b", answer.json["detail"])
    assert 0 == rule.calls


async def test_only_post_is_allowed(mount: Mount) -> None:
    """The web server says so."""
    client = await mount()
    async with client._session.get(client.url) as response:
        assert 405 == response.status


# What AWS says.


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
    """None of AWS's."""
    ivschat_emulator.emulator.fail_next(Fault(kind, times=None))
    answer = await (await mount()).ask()
    _assert_problem(answer, status, name)
    assert comes_back == ("Retry-After" in answer.headers)


async def test_a_wait_without_end_that_aws_asks_for_is_told_as_a_day(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """More digits than a number has are no reason to fail."""
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.THROTTLE_EMPTY, retry_after="9" * 400))
    answer = await (await mount()).ask()
    _assert_problem(answer, 503, "overloaded")
    assert 86_400 <= int(answer.headers["Retry-After"]) <= 1.5 * 86_400


async def test_an_unknown_room_is_404(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """It was granted, and is not there."""
    ivschat_emulator.emulator.configure(any_room=False)
    _assert_problem(await (await mount()).ask(), 404, "no-such-room")


async def test_a_closed_service_is_503(mount: Mount, open_service: OpenService) -> None:
    """The server is on its way down; another one may answer."""
    service = open_service()
    client = await mount(service=service)
    await service.aclose()
    _assert_problem(await client.ask(), 503, "overloaded")


async def test_a_black_hole_ends_with_the_patience(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Which the request may shorten."""
    client = await mount()
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.BLACK_HOLE, times=None))
    started = time.monotonic()
    answer = await client.ask(headers={"Prefer": "wait=1"})
    _assert_problem(answer, 503, "overloaded")
    assert 0.9 < time.monotonic() - started < 4


# Holding and shedding.


async def test_who_fits_is_held_and_who_does_not_is_told_at_once(
    mount: Mount, open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """By the predicted wait; nothing goes upstream for the others."""
    policy = EndpointPolicy(patience=1.0, per_user=None)
    client = await mount(policy, service=await _busy(open_service, rate=2.0))
    started = time.monotonic()
    answers = await asyncio.gather(*(client.ask() for _ in range(20)))
    assert time.monotonic() - started < 3
    held = [answer for answer in answers if answer.status == 200]
    shed = [answer for answer in answers if answer.status != 200]
    assert len(held) in (1, 2)
    for answer in shed:
        _assert_problem(answer, 503, "overloaded")
        assert int(answer.headers["Retry-After"]) >= 1
    assert 1 + len(held) == _requests(ivschat_emulator)


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
async def test_a_request_may_shorten_the_patience(
    mount: Mount, open_service: OpenService, prefer: str, status: int
) -> None:
    """As RFC 7240 has it; what makes no sense is ignored."""
    client = await mount(service=await _busy(open_service, rate=0.7))
    assert status == (await client.ask(headers={"Prefer": prefer})).status


async def test_no_request_lengthens_the_patience(mount: Mount, open_service: OpenService) -> None:
    """The server knows its proxies."""
    policy = EndpointPolicy(patience=0.5, per_user=None)
    client = await mount(policy, service=await _busy(open_service, rate=0.2))
    assert 503 == (await client.ask(headers={"Prefer": "wait=60"})).status


async def test_a_client_that_goes_away_gives_up_its_place(
    mount: Mount, open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Without a word of the host's about handler cancellation."""
    service = await _busy(open_service, rate=0.2)
    client = await mount(service=service)
    call = asyncio.create_task(client.ask())
    await until(lambda: service.stats().waiting == 1)
    call.cancel()
    await outcomes(call)
    await until(lambda: (service.stats().waiting, service.stats().flights) == (0, 0), within=2)
    assert 1 == _requests(ivschat_emulator)
    # Nothing of the sort befalls who stays: the next request is as good as any.
    assert 503 == (await client.ask(headers={"Prefer": "wait=1"})).status


async def test_who_is_banned_while_waiting_gets_nothing(
    mount: Mount, rule: Rule, open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """The token goes nowhere, neither to them nor to anybody else."""
    service = await _busy(open_service, rate=2.0)
    client = await mount(service=service)
    call = asyncio.create_task(client.ask(key="attempt"))
    await until(lambda: service.stats().waiting == 1)
    rule.banned.add("alice")
    _assert_problem(await call, 403, "forbidden")
    assert 0 == service.stats().stock_held
    assert 200 == (await client.ask(user="bob", key="attempt")).status
    _assert_problem(await client.ask(key="attempt"), 403, "forbidden")


async def test_who_may_do_less_after_the_wait_is_asked_to_come_again(
    mount: Mount, rule: Rule, open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """The token that was made for more does not leave."""
    service = await _busy(open_service, rate=2.0)
    client = await mount(service=service)
    call = asyncio.create_task(client.ask(key="attempt"))
    await until(lambda: service.stats().waiting == 1)
    rule.capabilities = {"SEND_MESSAGE"}
    answer = await call
    _assert_problem(answer, 503, "grant-changed")
    assert "Retry-After" in answer.headers
    token = (await client.ask(key="attempt")).json["token"]
    assert {"SEND_MESSAGE"} == set(ivschat_emulator.emulator.redeem(token).capabilities)


async def test_the_rule_runs_once_if_there_is_no_wait(mount: Mount, rule: Rule) -> None:
    """And twice if there is."""
    client = await mount()
    await client.ask(key="attempt")
    assert 2 == rule.calls
    await client.ask(key="attempt")
    assert 3 == rule.calls


# The caller's own share.


@pytest.mark.fault(27)
async def test_one_users_flood_costs_the_others_nothing(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Its own share goes upstream, the rest is told when to come back."""
    client = await mount(EndpointPolicy(per_user=Share(tokens=5, seconds=1000.0)))
    flood = [client.ask(user="mallory") for _ in range(300)]
    others = [client.ask(user=f"viewer-{number}") for number in range(30)]
    answers = await asyncio.gather(*flood, *others)
    mallory, viewers = answers[:300], answers[300:]
    assert [200] * 30 == [answer.status for answer in viewers]
    refused = [answer for answer in mallory if answer.status != 200]
    assert 295 == len(refused)
    for answer in refused:
        _assert_problem(answer, 429, "own-share")
        assert 200 <= int(answer.headers["Retry-After"]) <= 301
    assert 35 == _requests(ivschat_emulator)


def _stays(leave: Callable[[], None]) -> Callable[[], None]:
    """Watch a client that does not go away."""
    return lambda: None


async def _p99(flood: int) -> tuple[float, int]:
    """Return the p99 wait of 100 viewers a second beside so many requests a second of one user,
    and how many tokens that user got.
    """

    async def rule(user: str, ask: Ask) -> TokenRequest | None:
        return TokenRequest(ROOM, user)

    loop = asyncio.get_running_loop()
    clock, got = VirtualClock(), 0
    endpoint = Endpoint(rule, EndpointPolicy(), ValueError, clock)
    waits: list[float] = []

    async def ask(user: str) -> None:
        nonlocal got
        begun = loop.time()
        received = Received({"Content-Type": "application/json"}, b"{}")
        answer = await endpoint.respond(service, user, received, _stays)
        if user == "mallory":
            got += answer.status == 200
            assert answer.status in (200, 429)
            assert (answer.status == 429) == ("Retry-After" in answer.headers)
        else:
            assert 200 == answer.status
            waits.append(loop.time() - begun)

    async with AsyncTokenService(
        session=minting_session(clock, 0.02),
        endpoint_url="http://127.0.0.1",
        pool=PoolPolicy(prepared=False),
        clock=clock,
    ) as service:
        calls = []
        for tick in range(1000):
            names = [f"viewer-{tick}", *["mallory"] * (flood // 100)]
            calls += [asyncio.create_task(ask(name)) for name in names]
            await asyncio.sleep(0.01)
        await asyncio.gather(*calls)
    return percentile(sorted(waits), 99), got


@pytest.mark.fault(27)
@virtual_time
async def test_one_users_flood_at_most_doubles_the_others_wait() -> None:
    """1,000 requests a second of one user, for ten seconds, and not one beyond its share."""
    alone, _ = await _p99(flood=0)
    beside, got = await _p99(flood=1_000)
    assert 0.02 == pytest.approx(alone)
    assert beside <= 2 * alone
    assert 5 <= got <= 5 + 5


async def test_a_share_grows_again(ivschat_emulator: ThreadedEmulatorServer) -> None:
    """Evenly, and never beyond its size."""
    clock = BentClock()
    policy = EndpointPolicy(per_user=Share(tokens=2, seconds=10.0), per_room=None)
    limits = RateLimits(policy, clock)
    request = TokenRequest(ROOM, "alice")

    def taken() -> int:
        for count in range(10):
            try:
                limits.charge(request)
            except Exception:
                return count
        return 10

    given = [taken()]
    for seconds in (4.9, 0.2, 5.0, 1000.0):
        clock.pass_by(seconds)
        given.append(taken())
    assert [2, 0, 1, 1, 2] == given


async def test_a_room_can_have_a_share(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """For all its users together; who is refused for it keeps the own share."""
    client = await mount(EndpointPolicy(per_room=Share(tokens=3, seconds=1000.0)))
    statuses = [(await client.ask(user=f"viewer-{number}")).status for number in range(5)]
    assert [200, 200, 200, 429, 429] == statuses
    assert 3 == _requests(ivschat_emulator)


async def test_repeating_an_attempt_is_free(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Once it has its token."""
    client = await mount(EndpointPolicy(per_user=Share(tokens=1, seconds=1000.0)))
    statuses = [(await client.ask(key="attempt")).status for _ in range(10)]
    assert [200] * 10 == statuses
    assert 429 == (await client.ask(key="another")).status
    assert 1 == _requests(ivschat_emulator)


async def test_an_attempt_that_failed_upstream_pays_again(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Or one key would be enough for any number of requests."""
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.ERROR_500, times=None))
    client = await mount(EndpointPolicy(per_user=Share(tokens=3, seconds=1000.0)))
    statuses = [(await client.ask(key="attempt")).status for _ in range(5)]
    assert [502, 502, 502, 429, 429] == statuses
    assert 3 == _requests(ivschat_emulator)


async def test_who_was_shed_has_not_paid(mount: Mount, open_service: OpenService) -> None:
    """Nothing was sent for them."""
    policy = EndpointPolicy(patience=0.5, per_user=Share(tokens=2, seconds=1000.0))
    client = await mount(policy, service=await _busy(open_service, rate=0.1))
    statuses = [(await client.ask(key=f"attempt-{number}")).status for number in range(6)]
    assert [503] * 6 == statuses


@pytest.mark.parametrize(
    "make",
    [
        lambda: EndpointPolicy(patience=0),
        lambda: EndpointPolicy(patience=math.inf),
        lambda: Share(tokens=0, seconds=1),
        lambda: Share(tokens=1, seconds=0),
        lambda: Share(tokens=1, seconds=math.nan),
    ],
)
def test_a_policy_that_cannot_work_is_refused(make: Callable[[], object]) -> None:
    """At once, naming the option."""
    with pytest.raises(InvalidConfiguration):
        make()


# Secrets.


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that any logger writes, with the root at DEBUG."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.fault(30)
async def test_neither_logs_nor_problems_show_a_secret(
    mount: Mount, rule: Rule, log: io.StringIO, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Access logs and the web server's own included, whatever happens."""
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
    """With the class of its cause, and where it was raised if it is nobody's."""

    async def rule(request: Any, ask: Ask) -> TokenRequest | None:
        raise KeyError("canary")

    problem = (await (await mount(authorize=rule)).ask()).json
    (line,) = [line for line in log.getvalue().splitlines() if problem["instance"] in line]
    assert "KeyError at " in line
    assert __file__ in line


def test_an_ask_shows_no_secret() -> None:
    """Neither the user nor the attributes."""
    ask = Ask(ROOM, "canary", frozenset({"SEND_MESSAGE"}), {"canary": "canary"}, 5)
    assert "canary" not in repr(ask)
    assert ROOM in repr(ask)
    assert "None" in repr(Ask())


def test_the_body_is_json() -> None:
    """Whatever a token may look like."""
    endpoint = Endpoint(Rule(), EndpointPolicy(), ValueError)
    moment = datetime.now().astimezone()
    body = endpoint._format_token(ChatToken('a"\\\u2028é', moment, moment)).body
    assert 'a"\\\u2028é' == json.loads(body)["token"]
