"""Requests are prepared only if nobody depends on the parts of aiobotocore that are skipped."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiobotocore.client import AioBaseClient
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentials
from aiobotocore.endpoint import AioEndpoint
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from aiobotocore.signers import AioRequestSigner
from botocore import UNSIGNED
from botocore.auth import SigV4Auth

from aioivschat import (
    AsyncTokenService,
    Event,
    NotPrepared,
    PoolPolicy,
    Prepared,
    Throttled,
    TokenRequest,
)
from aioivschat.emulator import ThreadedEmulatorServer
from support.raw_servers import (
    REGION,
    certificate,
    http,
    open_pool,
    raw_server,
    series,
    tls,
    tunnelling_proxy,
)
from support.services import ROOM, UNLIMITED, bare_session

REQUEST = TokenRequest(ROOM, "u")
CALLS = 5

LISTENED = "somebody watches before-call"
LOOK_SECONDS = 0.1  # between two looks for whoever watches


def _session() -> AioSession:
    return bare_session("testing", "testing")


async def _reasons_after_calls(session: AioSession) -> list[str]:
    """Make calls; return why they went the general way, if they did."""
    async with raw_server() as server, open_pool(server.url, session) as (pool, reasons):
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        assert CALLS == len(server.seen)
        # The first goes the general way in any case. Only prepared requests are numbered.
        prepared = 1 == len(set(series(server.seen[1:])))
        assert prepared is (reasons == [])
    return reasons


async def test_what_a_client_keeps_of_its_calls_changes_nothing() -> None:
    """After a call that fails, botocore has filled a cache more: no reason for a new pattern."""
    answer = http(b"{}", status="429 Slow")
    async with raw_server(answer, successes_first=2) as server:
        async with open_pool(server.url) as (pool, reasons):
            for _ in range(CALLS):
                with suppress(Throttled):
                    await pool.mint(REGION, REQUEST)
                await asyncio.sleep(LOOK_SECONDS)
        assert 1 == len(set(series(server.seen[1:])))
    assert [] == reasons


async def test_requests_are_prepared_in_the_ordinary_case() -> None:
    """From a client's second call on."""
    assert [] == await _reasons_after_calls(_session())


async def test_nothing_is_reported_where_preparing_is_switched_off() -> None:
    """With ``prepared=False`` nothing is reported, whatever listens to the client."""
    session = _session()
    session.register("before-call.ivschat", lambda **_: None)
    policy = PoolPolicy(prepared=False)
    async with raw_server() as server, open_pool(server.url, session, policy) as (pool, reasons):
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        assert CALLS == len(set(series(server.seen)))
    assert [] == reasons


class _SlowCredentials(AioCredentials):
    """Credentials that suspend the task that asks for them, as refreshed ones do."""

    async def get_frozen_credentials(self) -> Any:  # type: ignore[override]  # async, unlike botocore's
        await asyncio.sleep(0)
        return await super().get_frozen_credentials()


async def test_concurrent_first_calls_report_once() -> None:
    """50 first calls that cannot be prepared are one ``NotPrepared`` event, with the region."""
    told: list[Event] = []
    session: Any = bare_session()
    session._credentials = _SlowCredentials("testing", "testing")
    session.register("before-call", lambda **_: None)
    async with (
        raw_server() as server,
        AsyncTokenService(
            session=session, endpoint_url=server.url, quota=UNLIMITED, observers=[told.append]
        ) as tokens,
    ):
        await asyncio.gather(*(tokens.issue(TokenRequest(ROOM, f"u{n}")) for n in range(50)))
    assert [NotPrepared(REGION, LISTENED)] == [one for one in told if isinstance(one, NotPrepared)]


@pytest.mark.parametrize(
    "event",
    [
        "*",
        "*.ivschat",
        "*.*.CreateChatToken",
        "provide-client-params.ivschat",
        "before-parameter-build",
        "before-endpoint-resolution.ivschat",
        "before-call.*",
        "before-call.*.CreateChatToken",
        "request-created.ivschat",
        "choose-signer.ivschat.CreateChatToken",
        "before-sign",
        "before-send",
        "before-parse.ivschat",
        "response-received.ivschat.*",
        "needs-retry.ivschat",
        "after-call.ivschat.CreateChatToken",
        "after-call-error",
    ],
)
async def test_a_listener_hears_of_every_call(event: str) -> None:
    """A handler of any event of a call, registered with the session under any name for it."""
    heard: list[str] = []

    def listen(event_name: str, **_: object) -> None:
        heard.append(event_name)

    session = _session()
    session.register(event, listen)
    (reason,) = await _reasons_after_calls(session)
    stage = event.partition(".")[0]
    assert reason.startswith("somebody watches " + stage.replace("*", ""))
    # Calls that succeed have no event of an error.
    assert event == "after-call-error" or len(heard) >= CALLS


@pytest.mark.parametrize(
    "event", ["before-call.s3", "before-send.ivschat.ListRooms", "creating-client-class.ivschat"]
)
async def test_listening_to_something_else_prevents_nothing(event: str) -> None:
    """Handlers of other services, other operations or of opening a client prevent nothing."""
    session = _session()
    session.register(event, lambda **_: None)
    assert [] == await _reasons_after_calls(session)


@pytest.mark.parametrize(
    "listener", [SimpleNamespace, functools.partial(dict)], ids=["a class", "a partial"]
)
async def test_a_listener_may_be_any_callable(listener: Callable[..., Any]) -> None:
    """A handler that is a class or a partial is noticed too."""
    session = _session()
    session.register("after-call", listener)
    assert ["somebody watches after-call"] == await _reasons_after_calls(session)


class _RememberingSession:
    """A session that remembers the client it opened, as a user's own session may."""

    def __init__(self) -> None:
        self.session = _session()
        self.client: Any = None
        create_client: Callable[..., Any] = self.session.create_client

        @asynccontextmanager
        async def keeping(*args: Any, **options: Any) -> AsyncIterator[Any]:
            async with create_client(*args, **options) as self.client:
                yield self.client

        # Not a subclass: the signature has an overload for every service of AWS.
        vars(self.session)["create_client"] = keeping


async def _reasons_after_change(change: Callable[[Any], object]) -> list[str]:
    """Make calls before and after a change to the client; return why the later ones are general."""
    opened = _RememberingSession()
    async with raw_server() as server, open_pool(server.url, opened.session) as (pool, reasons):
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        assert [] == reasons
        change(opened.client)
        await asyncio.sleep(LOOK_SECONDS)
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        assert 2 * CALLS == len(server.seen)
        assert CALLS == len(set(series(server.seen[CALLS:])))
    return reasons


async def test_a_listener_may_come_while_the_client_is_open() -> None:
    """A handler that is registered after the first calls hears of every later one."""
    heard: list[str] = []

    def change(client: Any) -> None:
        client.meta.events.register("before-call", lambda event_name, **_: heard.append(event_name))

    assert [LISTENED] == await _reasons_after_change(change)
    assert CALLS == len(heard)


async def test_requests_are_prepared_again_once_nobody_listens() -> None:
    """A listener hears every call that begins 100 ms after it came, and is told to be gone."""
    heard: list[object] = []
    told: list[Event] = []
    listen: Callable[..., None] = lambda **_: heard.append(None)  # noqa: E731 (one line)
    opened = _RememberingSession()
    async with (
        raw_server() as server,
        open_pool(server.url, opened.session, told=told) as (pool, _),
    ):
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        opened.client.meta.events.register("before-call", listen)
        await asyncio.sleep(LOOK_SECONDS)
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        opened.client.meta.events.unregister("before-call", listen)
        await asyncio.sleep(LOOK_SECONDS)
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        kinds = series(server.seen)
    # A pattern is made anew: what had changed might have changed it.
    assert [2, 1 + CALLS, 2] == [len(set(kinds[:CALLS])), len(set(kinds[CALLS:-CALLS])) + 1, 2]
    assert 2 == len(set(kinds[-CALLS:]))
    assert CALLS == len(heard)
    ways = [event for event in told if isinstance(event, NotPrepared | Prepared)]
    assert [NotPrepared(REGION, LISTENED), Prepared(REGION)] == ways


class _Tracer:
    """Wraps a method as tracing libraries do, and counts its calls."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        self.calls = 0

    def as_function(self) -> Any:
        """Return a function with the name and module of the one it wraps."""

        @functools.wraps(self.wrapped)
        def traced(*args: Any, **options: Any) -> Any:
            self.calls += 1
            return self.wrapped(*args, **options)

        return traced

    def as_object(self) -> Any:
        """Return an object with them that binds to instances as a function does."""
        return functools.wraps(self.wrapped)(_Wrapper(self))


class _Wrapper:
    def __init__(self, tracer: _Tracer) -> None:
        self.tracer = tracer

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.tracer.calls += 1
        return self.tracer.wrapped(*args, **options)

    def __get__(self, instance: object, owner: type) -> Any:
        return self if instance is None else functools.partial(self, instance)


INTERCEPTIONS = [
    (AioBaseClient, "_make_api_call"),
    (AioEndpoint, "make_request"),
    (AioEndpoint, "prepare_request"),
    (AioRequestSigner, "sign"),
    (SigV4Auth, "add_auth"),
    (AIOHTTPSession, "send"),
]


@pytest.mark.parametrize("form", [_Tracer.as_function, _Tracer.as_object])
@pytest.mark.parametrize(("kind", "method"), INTERCEPTIONS)
async def test_an_interceptor_sees_every_call(
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    method: str,
    form: Callable[[_Tracer], Any],
) -> None:
    """A method that was wrapped before the client was opened is called for every request."""
    tracer = _Tracer(getattr(kind, method))
    monkeypatch.setattr(kind, method, form(tracer))
    reason = f"somebody watches {kind.__name__}.{method}"
    assert [reason] == await _reasons_after_calls(_session())
    assert CALLS == tracer.calls


@pytest.mark.parametrize("form", [_Tracer.as_function, _Tracer.as_object])
@pytest.mark.parametrize(("kind", "method"), INTERCEPTIONS)
async def test_an_interceptor_may_come_later(
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    method: str,
    form: Callable[[_Tracer], Any],
) -> None:
    """A method that is wrapped while the client is open is called for every later request."""
    tracer = _Tracer(getattr(kind, method))

    def change(_: object) -> None:
        monkeypatch.setattr(kind, method, form(tracer))

    reason = f"somebody watches {kind.__name__}.{method}"
    assert [reason] == await _reasons_after_change(change)
    assert CALLS == tracer.calls


async def test_a_client_may_have_methods_of_its_own() -> None:
    """A method that botocore's ``creating-client-class`` event has replaced sees every call."""
    tracers: list[_Tracer] = []

    def intercept(class_attributes: dict[str, Any], **_: object) -> None:
        tracers.append(_Tracer(class_attributes["create_chat_token"]))
        class_attributes["create_chat_token"] = tracers[-1].as_function()

    session = _session()
    session.register("creating-client-class.ivschat", intercept)
    reason = "somebody watches ivschat.create_chat_token"
    assert [reason] == await _reasons_after_calls(session)
    assert [CALLS] == [tracer.calls for tracer in tracers]


@pytest.mark.parametrize("method", ["_make_api_call", "create_chat_token"])
async def test_a_client_itself_may_be_wrapped(method: str) -> None:
    """A method that is replaced on the client itself sees every later call."""
    tracers: list[_Tracer] = []

    def change(client: Any) -> None:
        tracers.append(_Tracer(getattr(client, method)))
        setattr(client, method, tracers[-1].as_function())

    assert [f"somebody watches ivschat.{method}"] == await _reasons_after_change(change)
    assert [CALLS] == [tracer.calls for tracer in tracers]


class _OtherHttp(AIOHTTPSession):
    """Another HTTP client."""


def _configured(**options: Any) -> AioSession:
    session = _session()
    session.set_default_client_config(AioConfig(**options))
    return session


async def test_another_http_client_is_used() -> None:
    """``http_session_cls`` of the configuration: every request goes through that class."""
    session = _session()
    create_client: Callable[..., Any] = session.create_client

    def choosing(*args: Any, config: Any, **options: Any) -> Any:
        config.http_session_cls = _OtherHttp
        return create_client(*args, config=config, **options)

    vars(session)["create_client"] = choosing
    assert ["it has another HTTP client"] == await _reasons_after_calls(session)


@pytest.mark.parametrize("configured", ["environment", "session"])
async def test_a_proxy_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, configured: str
) -> None:
    """From environment or session, for an endpoint that is not on this host."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    file = certificate(tmp_path, "ivschat.example.com")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    session = _session()
    async with raw_server(tls=tls(file)) as server, tunnelling_proxy(server) as (proxy, asked):
        if configured == "environment":
            monkeypatch.setenv("https_proxy", proxy)
        else:
            session.set_default_client_config(AioConfig(proxies={"https": proxy}))
        async with open_pool("https://ivschat.example.com", session) as (pool, reasons):
            for _ in range(CALLS):
                await pool.mint(REGION, REQUEST)
        assert ["POST /CreateChatToken HTTP/1.1"] * CALLS == [one.line for one in server.seen]
        assert {"CONNECT ivschat.example.com:443 HTTP/1.1"} == set(asked)
    assert ["it uses a proxy"] == reasons


@pytest.mark.parametrize("prepared", [True, False])
async def test_in_a_lambda_function_each_request_has_the_trace_of_its_moment(
    monkeypatch: pytest.MonkeyPatch, prepared: bool
) -> None:
    """botocore adds it by itself, anew for each request: no reason to give up preparing."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "f")
    policy = PoolPolicy(prepared=prepared)
    async with raw_server() as server, open_pool(server.url, policy=policy) as (pool, reasons):
        await pool.mint(REGION, REQUEST)
        for number in range(CALLS):
            monkeypatch.setenv("_X_AMZN_TRACE_ID", f"Root=1-{number};Sampled=1 Größe")
            await pool.mint(REGION, REQUEST)
        monkeypatch.delenv("_X_AMZN_TRACE_ID")
        await pool.mint(REGION, REQUEST)
        first, *traced, last = server.seen
        assert prepared is (1 == len(set(series([*traced, last]))))
    assert [f"Root=1-{number};Sampled=1%20Gr%C3%B6%C3%9Fe" for number in range(CALLS)] == [
        one["X-Amzn-Trace-Id"] for one in traced
    ]
    for one in (first, *traced, last):
        assert "trace" not in one["Authorization"]
    assert "X-Amzn-Trace-Id" not in dict(first.headers) | dict(last.headers)
    assert [] == reasons


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (UNSIGNED, "another kind of signature"),
        ("v3", "another kind of signature"),
        ("v4-query", "another kind of signature"),
    ],
)
async def test_another_kind_of_signature_is_used(version: Any, reason: str) -> None:
    """``signature_version`` of the configuration: requests are signed that way or not at all."""
    assert [reason] == await _reasons_after_calls(_configured(signature_version=version))


async def test_a_key_that_looks_like_part_of_the_signature_is_used() -> None:
    """An access key with a slash, which AWS's never have, could not be told from the scope."""
    assert ["another kind of signature"] == await _reasons_after_calls(
        bare_session("a/b", "testing")
    )


@pytest.mark.parametrize("missing", ["_request_signer", "_endpoint", "meta"])
async def test_without_an_internal_that_is_needed_calls_go_on(missing: str) -> None:
    """A client without an attribute that preparing reads goes the general way, for that reason."""
    parts: dict[str, Any] = {
        "_request_signer": SimpleNamespace(_credentials=None),
        "_endpoint": SimpleNamespace(http_session=object()),
    }
    parts["meta"] = SimpleNamespace(endpoint_url="http://127.0.0.1")
    if missing != "meta":
        register: Callable[[str, object], None] = lambda *_: None  # noqa: E731 (one line)
        parts["meta"].events = SimpleNamespace(register=register, _emitter=object())
        del parts[missing]

    async def create_chat_token(**_: object) -> dict[str, Any]:
        async with raw_server() as server, open_pool(server.url) as (pool, _ignored):
            return dict((await pool.mint(REGION, REQUEST)).token.reply())

    @asynccontextmanager
    async def create_client(*_: object, **options: Any) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(create_chat_token=create_chat_token, **parts)

    session = _session()
    vars(session)["create_client"] = create_client
    async with open_pool("http://127.0.0.1", session) as (pool, reasons):
        for _ in range(CALLS):
            assert "t" == (await pool.mint(REGION, REQUEST)).token.token
    assert [f"no {'events' if missing == 'meta' else missing}"] == reasons


async def test_an_object_in_place_of_an_internal_one_is_reported() -> None:
    """The reason names where it was found, and calls go the general way."""
    opened = _RememberingSession()
    async with raw_server() as server, open_pool(server.url, opened.session) as (pool, reasons):
        opened.client._endpoint.http_session._proxy_config = SimpleNamespace(
            proxy_url_for=lambda _: None, proxy_headers_for=lambda _: None
        )
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        assert CALLS == len(set(series(server.seen)))
    assert ["somebody watches HttpSession._proxy_config"] == reasons


@pytest.mark.parametrize("asked", [True, False])
async def test_a_client_certificate_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: bool
) -> None:
    """Prepared requests go over aiobotocore's connections, with its certificate."""
    file = certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    session = _configured(client_cert=str(file)) if asked else _session()
    async with (
        raw_server(tls=tls(file, ask=asked)) as server,
        open_pool(server.url, session) as (pool, reasons),
    ):
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        assert 1 == len(set(series(server.seen[1:])))
    assert [] == reasons


async def test_the_emulator_takes_prepared_requests(
    ivschat_emulator: ThreadedEmulatorServer,
) -> None:
    """100 prepared requests pass its check of signatures and get a token each."""
    async with open_pool(ivschat_emulator.url) as (pool, reasons):
        minted = await asyncio.gather(*(pool.mint(REGION, REQUEST) for _ in range(100)))
    assert 100 == len({one.token.token for one in minted})
    assert 100 == ivschat_emulator.emulator.counts().requests
    assert [] == reasons
