"""What clients may ask the token endpoint for, and in which form."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

import aioivschat.aiohttp
import aioivschat.starlette
from aioivschat import (
    InvalidConfiguration,
    TokenRequest,
)
from aioivschat._endpoint.exchange import BODY_MAX_BYTES
from aioivschat.aiohttp import Ask
from aioivschat.emulator import ThreadedEmulatorServer
from support.endpoint_servers import (
    Client,
    Mount,
    Rule,
    assert_problem,
    count_requests,
)
from support.services import ROOM

OTHER_ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/ZyXwVuTsRqPo"


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
    """The library's names of members, AWS's and those of its demo mean the same."""
    answer = await (await mount()).ask(body)
    grant = ivschat_emulator.emulator.redeem(answer.json["token"])
    assert (ROOM, "alice") == (grant.room, grant.user_id)
    expected = {"SEND_MESSAGE", "DELETE_MESSAGE"} if capabilities is None else capabilities
    assert expected == set(grant.capabilities)
    assert attributes == dict(grant.attributes)


async def test_a_shorter_session_can_be_asked_for(mount: Mount) -> None:
    """A session may be shorter than granted, and never longer."""
    client = await mount()
    reply = (await client.ask({"session_minutes": 5})).json
    ends = datetime.fromisoformat(reply["sessionExpirationTime"])
    assert abs(ends - datetime.now().astimezone() - timedelta(minutes=5)) < timedelta(seconds=5)
    assert_problem(await client.ask({"session_minutes": 61}), 403, "forbidden")


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
    """A body that asks for more than the grant is refused, and AWS is not called."""
    assert_problem(await (await mount()).ask(body), 403, "forbidden")
    assert 0 == count_requests(ivschat_emulator)


@pytest.mark.fault(26)
async def test_whom_the_rule_refuses_gets_nothing(
    mount: Mount, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A user whom the rule refuses gets 403 whatever the body asks for."""
    client = await mount()
    assert_problem(await client.ask(user=None), 403, "forbidden")
    assert_problem(await client.ask({"user": "alice"}, user=None), 403, "forbidden")
    assert 0 == count_requests(ivschat_emulator)


@pytest.mark.fault(26)
def test_without_a_rule_the_application_refuses_to_start() -> None:
    """There is no default for who may do what."""
    with pytest.raises(InvalidConfiguration, match="authorize"):
        aioivschat.aiohttp.setup(web.Application())
    with pytest.raises(InvalidConfiguration, match="authorize"):
        aioivschat.starlette.routes()


async def test_a_rule_may_answer_in_its_own_way(mount: Mount) -> None:
    """The framework's exceptions, such as a 401 with a challenge, pass, with ``no-store``."""

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
    """A rule that raises or returns nonsense is a 500 that does not say what happened."""

    async def rule(request: Any, ask: Ask) -> Any:
        if isinstance(returned, Exception):
            raise returned
        return returned

    answer = await (await mount(authorize=rule)).ask()
    assert_problem(answer, 500, "internal")
    assert "secret" not in answer.body.decode()


async def test_a_rule_may_make_its_request_of_what_is_asked(mount: Mount) -> None:
    """If the body lacks what the rule's TokenRequest needs, a 422 names the member."""

    async def rule(request: Any, ask: Ask) -> TokenRequest | None:
        return TokenRequest(ask.room, "alice")  # type: ignore[arg-type]  # may be None

    client = await mount(authorize=rule)
    assert 200 == (await client.ask({"room": ROOM})).status
    answer = await client.ask()
    assert_problem(answer, 422, "invalid-member")
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
def redeemed() -> dict[str, Any]:
    """What each token seen so far entitles to, as a token can be redeemed once."""
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


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b'"x"', b"5", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 4000],
    ids=["empty", "open", "list", "null", "text", "number", "utf-16", "bom", "deep"],
)
async def test_a_body_that_is_no_json_object_is_400(mount: Mount, raw: bytes) -> None:
    """No body but a JSON object is accepted; deep nesting does not break the parser."""
    assert_problem(await (await mount()).ask(raw=raw), 400, "bad-request")


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
async def test_a_malformed_key_is_400(mount: Mount, key: str) -> None:
    """A key is 1 to 255 visible ASCII characters."""
    assert_problem(await (await mount()).ask(key=key), 400, "bad-request")


async def test_the_longest_key_is_a_key(mount: Mount) -> None:
    """A key of 255 characters, among them each visible one, is accepted."""
    key = "".join(map(chr, range(0x21, 0x7F)))
    assert 200 == (await (await mount()).ask(key=(key * 3)[:255])).status


@pytest.mark.fault(27)
async def test_a_large_body_is_413(mount: Mount, rule: Rule) -> None:
    """A body above the limit is refused, chunked or not; one of exactly the limit is read."""
    client = await mount()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 512

    for raw in (b" " * (BODY_MAX_BYTES + 1), chunks(), b" " * 1_000_000):
        assert_problem(await client.ask(raw=raw), 413, "too-large")
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
    """Other types are refused: a page of another origin may send them with the user's cookies."""
    raw = gzip.compress(b"{}") if "Content-Encoding" in headers else b"{}"
    assert_problem(await (await mount()).ask(raw=raw, headers=headers), 415, "not-json")


async def test_json_may_have_parameters(mount: Mount) -> None:
    """``Content-Type`` may have parameters, and is compared without regard to case."""
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
    """The problem names the member as the client did, and the rule is not asked."""
    answer = await (await mount()).ask(body)
    assert_problem(answer, 422, "invalid-member")
    assert re.search(rf"\b{member}\b", answer.json["detail"])
    assert 0 == rule.calls


async def test_only_post_is_allowed(mount: Mount) -> None:
    """GET of the endpoint is the web server's own 405."""
    client = await mount()
    async with client._session.get(client.url) as response:
        assert 405 == response.status


def test_an_ask_shows_no_secret() -> None:
    """The repr of an Ask has neither the user nor the attributes."""
    ask = Ask(ROOM, "canary", frozenset({"SEND_MESSAGE"}), {"canary": "canary"}, 5)
    assert "canary" not in repr(ask)
    assert ROOM in repr(ask)
    assert "None" in repr(Ask())
