"""Prepared requests are those that aiobotocore would send, to the last byte."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import count
from typing import Any

import pytest
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentials, AioRefreshableCredentials
from aiobotocore.session import AioSession
from botocore.compat import HTTPHeaders
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict
from yarl import URL

from aioivschat import Capability, PoolPolicy, TokenRequest
from aioivschat._aws.requests import RequestPattern
from aioivschat._aws.signing import SigningForm
from support.raw_servers import REGION, Seen, open_pool, raw_server, series
from support.services import ROOM, bare_session


@dataclass
class Endpoint:
    """Where a client's requests go."""

    region: str
    url: str | None = None
    config: AioConfig | None = None


ENDPOINTS = {
    "us-east-1": Endpoint("us-east-1"),
    "ap-northeast-2": Endpoint("ap-northeast-2"),
    "china": Endpoint("cn-north-1"),
    "fips": Endpoint("us-west-2", config=AioConfig(use_fips_endpoint=True)),
    "dual stack": Endpoint("eu-west-1", config=AioConfig(use_dualstack_endpoint=True)),
    "fips, dual stack": Endpoint(
        "us-east-1", config=AioConfig(use_fips_endpoint=True, use_dualstack_endpoint=True)
    ),
    "http": Endpoint("us-east-1", "http://127.0.0.1"),
    "http, default port": Endpoint("us-east-1", "http://127.0.0.1:80"),
    "http, port and path": Endpoint("eu-central-1", "http://localhost:4566/ivs/chat/"),
    "https, host in capitals": Endpoint("eu-central-1", "https://Chat.Example.com"),
    "https, default port": Endpoint("eu-central-1", "https://chat.example.com:443/"),
    "https, port": Endpoint("us-east-1", "https://chat.example.com:8443"),
    "https, odd path": Endpoint("us-east-1", "https://chat.example.com/100%25/a%20b/~c/%(date)s"),
    "IPv6": Endpoint("us-east-1", "http://[::1]:4566"),
    "IPv6, path": Endpoint("us-east-1", "https://[2001:db8::1]/x"),
    "user agent with percent signs": Endpoint(
        "us-east-1", config=AioConfig(user_agent_extra="event/100% %s %(date)s %(body)s %%")
    ),
    "user agent": Endpoint("us-east-1", config=AioConfig(user_agent="mine/1.0")),
}

GENERAL = PoolPolicy(prepared=False)

# AWS's access keys have no slash. Their secrets may be anything.
_KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/"))
_SECRETS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)
# White space in a session token is sent as it is and signed collapsed.
_TOKENS = st.text(st.sampled_from(" \tab%+/=(s)"), min_size=1)
_TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)

_REQUESTS = st.builds(
    TokenRequest,
    st.just(ROOM),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=128),
    st.sets(st.sampled_from(Capability)),
    st.none() | st.dictionaries(_TEXTS, _TEXTS, max_size=3),
    st.integers(1, 180),
)
PLAIN = TokenRequest(ROOM, "u")


class _Room(str, Enum):  # noqa: UP042 (what users have)
    MAIN = ROOM


class _Length(int, Enum):
    HOUR = 60


class _Can(str, Enum):  # noqa: UP042 (what users have)
    SEND = "SEND_MESSAGE"


class _Shown(str):
    """Text that is shown as another."""

    __slots__ = ()

    def __str__(self) -> str:
        return "shown"

    def __format__(self, _: str) -> str:
        return "formatted"


class _Changing(Mapping[str, str]):
    """Attributes that are others each time they are read."""

    def __init__(self) -> None:
        self._reads = count()

    def __iter__(self) -> Iterator[str]:
        return iter(["name"])

    def __len__(self) -> int:
        return 1

    def __getitem__(self, name: str) -> str:
        return f"{name}-{next(self._reads)}"


ODD = [
    TokenRequest(_Room.MAIN, "u", [_Can.SEND]),
    TokenRequest(_Shown(ROOM), _Shown("u"), attributes={_Shown("name"): _Shown("value")}),
    TokenRequest(ROOM, "u", session_minutes=_Length.HOUR),
    TokenRequest(ROOM, "u", attributes=_Changing()),
]


@pytest.mark.parametrize("request_", ODD)
def test_a_request_keeps_plain_values_of_the_moment(request_: TokenRequest) -> None:
    """What was read once, as text and numbers of no class of their own, is what is sent."""
    members = request_.as_members()
    names, values = list(request_.attributes), list(request_.attributes.values())
    kept = (request_.room, request_.user, *members.get("capabilities", ()), *names, *values)
    assert {str} == set(map(type, kept))
    assert int is type(request_.session_minutes)
    assert members == request_.as_members()
    assert request_.identity == TokenRequest(*_plain_arguments(request_)).identity


def _plain_arguments(request: TokenRequest) -> tuple[Any, ...]:
    members = json.loads(json.dumps(request.as_members()))
    return (
        members["roomIdentifier"],
        members["userId"],
        members.get("capabilities", ()),
        members.get("attributes"),
        members["sessionDurationInMinutes"],
    )


NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)
_MOMENTS = st.floats(1e9, 7e9).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


@st.composite
def _credentials(draw: st.DrawFn, *, token: bool) -> tuple[str, str, str | None]:
    without = st.sampled_from([None, ""])
    return (
        draw(_KEYS.filter(bool)),
        draw(_SECRETS),
        draw(_TOKENS if token else without),
    )


@st.composite
def _calls(draw: st.DrawFn) -> list[tuple[TokenRequest, tuple[str, str, str | None], datetime]]:
    """Return a few calls of one client whose credentials change."""
    token = draw(st.booleans())
    one = st.tuples(_REQUESTS, _credentials(token=token), _MOMENTS)
    return draw(st.lists(one, min_size=2, max_size=4))


class _EmptyBody:
    async def read(self) -> bytes:
        return b"{}"


class CapturingClient:
    """A client whose requests are captured instead of sent, at a time that is set.

    Attributes:
        sent: the last request.
        credentials: what requests are signed with.
        now: when they are signed, UTC.
    """

    def __init__(
        self, runner: asyncio.Runner, endpoint: Endpoint, patch: pytest.MonkeyPatch
    ) -> None:
        self._runner = runner
        self.sent: Any = None
        self.now = NEW_YEAR
        self.credentials = AioCredentials("key", "secret")
        patch.setattr("botocore.auth.get_current_datetime", lambda: self.now)
        session: Any = bare_session()
        session._credentials = self.credentials
        self._context = session.create_client(
            "ivschat",
            region_name=endpoint.region,
            endpoint_url=endpoint.url,
            config=endpoint.config,
        )
        self._client = runner.run(self._context.__aenter__())
        self._client.meta.events.register("before-send.ivschat.CreateChatToken", self._capture)

    def close(self) -> None:
        """Close the client."""
        self._runner.run(self._context.__aexit__(None, None, None))

    def _capture(self, request: Any, **_: object) -> AioAWSResponse:
        self.sent = request
        return AioAWSResponse(request.url, 200, HTTPHeaders(), _EmptyBody())

    def call(
        self, request: TokenRequest, credentials: tuple[str, str, str | None], now: datetime
    ) -> Any:
        """Make the call in the general way; return the frozen credentials that signed it."""
        self.now = now
        held = self.credentials
        held.access_key, held.secret_key, held.token = credentials
        self._runner.run(self._client.create_chat_token(**request.as_members()))
        return self._runner.run(held.get_frozen_credentials())


def _general_headers(request: Any) -> dict[str, str]:
    """Return the headers that aiobotocore's HTTP session would send, without the invocation id."""
    headers = {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in request.headers.items()
    }
    # aiohttp computes the same length.
    assert len(request.body) == int(headers.pop("Content-Length"))
    del headers["amz-sdk-invocation-id"]
    return headers | {"Accept-Encoding": "identity"}


def _prepared_headers(headers: CIMultiDict[str]) -> dict[str, str]:
    """Check the form of the invocation id and return the other headers."""
    assert len(headers) == len(dict(headers))
    invocation = headers.pop("amz-sdk-invocation-id")
    assert re.fullmatch(
        r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", invocation
    )
    return dict(headers)


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS.keys())
def test_a_pattern_gives_what_botocore_would_have_signed(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pattern gives botocore's headers for any later request, credentials and moment."""
    with asyncio.Runner() as runner:
        client = CapturingClient(runner, endpoint, monkeypatch)

        @settings(deadline=None, max_examples=25)
        @given(_calls())
        @example(
            [
                (PLAIN, ("key", "secret", None), NEW_YEAR - timedelta(microseconds=1)),
                (PLAIN, ("key", "secret", None), NEW_YEAR),
            ]
        )
        @example([(PLAIN, ("key", "secret", token), NEW_YEAR) for token in ("t", "  a \t b ")])
        def check(
            calls: list[tuple[TokenRequest, tuple[str, str, str | None], datetime]],
        ) -> None:
            first, *others = calls
            credentials = client.call(*first)
            pattern = RequestPattern(client.sent, SigningForm(client.sent), credentials)
            for request, keys, moment in [*others, first]:
                credentials = client.call(request, keys, moment)
                assert pattern.fits(credentials)
                sent = client.sent
                headers = pattern.compose_headers(sent.body, credentials, moment.timestamp())
                assert _general_headers(sent) == _prepared_headers(headers)
                assert URL(sent.url, encoded=True) == pattern.url
                assert "POST" == sent.method

        try:
            check()
        finally:
            client.close()


@contextmanager
def _at_the_moment_of(sent: Seen, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let botocore sign with the time of a request that was sent."""
    now = datetime.strptime(sent["X-Amz-Date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
    with monkeypatch.context() as patch:
        patch.setattr("botocore.auth.get_current_datetime", lambda: now)
        yield


def _comparable(seen: Seen) -> tuple[str, list[tuple[str, str]], bytes]:
    headers = [pair for pair in seen.headers if pair[0] != "amz-sdk-invocation-id"]
    return seen.line, sorted(headers), seen.body


def test_what_is_sent_is_what_aiobotocore_would_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any request, both ways send the same line, headers and body, names spelled alike."""

    async def both_ways(draws: list[TokenRequest]) -> None:
        async with (
            raw_server() as server,
            open_pool(f"{server.url}/some/path") as (prepared, reasons),
            open_pool(f"{server.url}/some/path", policy=GENERAL) as (general, _),
        ):
            await prepared.mint(REGION, PLAIN)
            for request in [*ODD, *draws]:
                await prepared.mint(REGION, request)
                sent = server.seen[-1]
                with _at_the_moment_of(sent, monkeypatch):
                    await general.mint(REGION, request)
                assert _comparable(server.seen[-1]) == _comparable(sent)
            assert 1 == len(set(series(server.seen[1::2])))
            assert [] == reasons

    @settings(deadline=None, max_examples=3)
    @given(st.lists(_REQUESTS, min_size=20, max_size=40))
    def check(draws: list[TokenRequest]) -> None:
        asyncio.run(both_ways(draws))

    check()


class _RotatingSession:
    """A session with refreshable credentials that a test replaces.

    Attributes:
        now: the time by which they expire.
        next: what the next refresh returns.
    """

    def __init__(self, first: tuple[str, str, str | None]) -> None:
        self.now = datetime.now(UTC)
        self.next = first
        session: Any = bare_session()
        refreshable: Any = AioRefreshableCredentials
        session._credentials = refreshable(
            *first, self.now + timedelta(hours=1), self._renew, "test", lambda: self.now
        )

        self.session: AioSession = session

    def rotate(self, credentials: tuple[str, str, str | None]) -> None:
        """Let the credentials expire; the next refresh returns these."""
        self.now += timedelta(hours=1)
        self.next = credentials

    async def _renew(self) -> dict[str, Any]:
        key, secret, token = self.next
        expiry = (self.now + timedelta(hours=1)).isoformat()
        return {"access_key": key, "secret_key": secret, "token": token, "expiry_time": expiry}


async def test_refreshed_credentials_sign_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pattern outlives new keys, secrets and tokens, but not a token that appears or goes."""
    rotation = _RotatingSession(("key1", "secret1", "token1"))
    async with raw_server() as server, open_pool(server.url, rotation.session) as (pool, reasons):
        expected = []
        for credentials in (
            ("key1", "secret1", "token1"),
            ("key1", "secret1", "token1"),
            ("key2", "secret2", " a  token with %(date)s "),
            ("key2", "secret3", "token1"),
            ("key3", "secret3", None),
            ("key3", "secret3", ""),
            ("key4", "secret4", "token4"),
            ("key4", "secret4", "token5"),
        ):
            rotation.rotate(credentials)
            await pool.mint(REGION, PLAIN)
            with _at_the_moment_of(server.seen[-1], monkeypatch):
                session = _RotatingSession(credentials).session
                async with open_pool(server.url, session, GENERAL) as (general, _):
                    await general.mint(REGION, PLAIN)
            expected.append(_comparable(server.seen.pop()))
        assert expected == [_comparable(sent) for sent in server.seen]
        # The first request made a pattern, the fifth another without a token, the seventh one with.
        kinds = series(server.seen)
        assert [1, 3, 3, 3, 1, 1, 1, 1] == [kinds.count(kind) for kind in kinds]
        assert [] == reasons


async def test_an_empty_session_token_is_none() -> None:
    """It is not sent, and requests are prepared all the same."""
    session = bare_session("testing", "testing", "")
    async with raw_server() as server, open_pool(server.url, session) as (pool, reasons):
        for _ in range(3):
            await pool.mint(REGION, PLAIN)
        assert 1 == len(set(series(server.seen[1:])))
        assert [] == reasons
