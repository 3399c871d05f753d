"""Requests are prepared where nobody would miss what is left out, and only there."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiobotocore.client import AioBaseClient
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentials
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore import UNSIGNED

from aioivschat import (
    AsyncTokenService,
    Event,
    NotPrepared,
    PoolPolicy,
    TokenRequest,
)
from aioivschat.emulator import ThreadedEmulatorServer
from support.raw_servers import REGION, certificate, open_pool, raw_server, series, tls
from support.services import ROOM, UNLIMITED, bare_session

REQUEST = TokenRequest(ROOM, "u")
CALLS = 5

LISTENED = "something else listens to its events"
INTERCEPTED = "its calls are intercepted"


def _session() -> AioSession:
    return bare_session("testing", "testing")


async def _after_calls(session: AioSession) -> list[str]:
    """Make calls; return why they went the general way, if they did."""
    async with raw_server() as server, open_pool(server.url, session) as (pool, reasons):
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        assert CALLS == len(server.seen)
        # The first is general anyway; nothing but the pattern numbers its requests.
        prepared = 1 == len(set(series(server.seen[1:])))
        assert prepared is (reasons == [])
    return reasons


async def test_requests_are_prepared_in_the_ordinary_case() -> None:
    """From the second on, as long as nothing stands in the way."""
    assert [] == await _after_calls(_session())


async def test_nothing_is_said_where_nothing_was_to_be_prepared() -> None:
    """Whoever switched it off need not be told."""
    session = _session()
    session.register("before-call.ivschat", lambda **_: None)
    policy = PoolPolicy(prepared=False)
    async with raw_server() as server, open_pool(server.url, session, policy) as (pool, reasons):
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        assert CALLS == len(set(series(server.seen)))
    assert [] == reasons


class _SlowCredentials(AioCredentials):
    """Credentials that let others go first, as those do that are refreshed."""

    async def get_frozen_credentials(self) -> Any:  # type: ignore[override]  # async, unlike botocore's
        await asyncio.sleep(0)
        return await super().get_frozen_credentials()


async def test_concurrent_first_calls_say_it_once() -> None:
    """The service tells its observers, with the region."""
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
    """Registered with the session, on any event of a call, by any name."""
    heard: list[str] = []

    def listen(event_name: str, **_: object) -> None:
        heard.append(event_name)

    session = _session()
    session.register(event, listen)
    assert [LISTENED] == await _after_calls(session)
    # A successful call has no error.
    assert event == "after-call-error" or len(heard) >= CALLS


@pytest.mark.parametrize(
    "event", ["before-call.s3", "before-send.ivschat.ListRooms", "creating-client-class.ivschat"]
)
async def test_who_listens_to_something_else_misses_nothing(event: str) -> None:
    """Other services, other operations, and what happens once."""
    session = _session()
    session.register(event, lambda **_: None)
    assert [] == await _after_calls(session)


@pytest.mark.parametrize(
    "listener", [SimpleNamespace, functools.partial(dict)], ids=["a class", "a partial"]
)
async def test_a_listener_may_be_any_callable(listener: Callable[..., Any]) -> None:
    """It need not be a function of a module."""
    session = _session()
    session.register("after-call", listener)
    assert [LISTENED] == await _after_calls(session)


class _Opened:
    """A session that keeps its clients, as a user's own session may."""

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


async def _changed_while_open(change: Callable[[Any], object]) -> list[str]:
    """Make calls before and after a change; return why they go the general way."""
    opened = _Opened()
    async with raw_server() as server, open_pool(server.url, opened.session) as (pool, reasons):
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        assert [] == reasons
        change(opened.client)
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        assert 2 * CALLS == len(server.seen)
        assert CALLS == len(set(series(server.seen[CALLS:])))
    return reasons


async def test_a_listener_may_come_while_the_client_is_open() -> None:
    """It hears of every call from then on."""
    heard: list[str] = []

    def change(client: Any) -> None:
        client.meta.events.register("before-call", lambda event_name, **_: heard.append(event_name))

    assert [LISTENED] == await _changed_while_open(change)
    assert CALLS == len(heard)


async def test_a_listener_that_comes_and_goes_leaves_the_way_open() -> None:
    """As long as no call met it; a pattern is learnt anew then."""

    def listen(**_: object) -> None:
        raise AssertionError

    opened = _Opened()
    async with raw_server() as server, open_pool(server.url, opened.session) as (pool, reasons):
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        events = opened.client.meta.events
        events.register("before-call", listen)
        events.unregister("before-call", listen)
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        kinds = series(server.seen)
        assert 1 == len(set(kinds[1:CALLS])) == len(set(kinds[CALLS + 1 :]))
        assert 4 == len(set(kinds))
    assert [] == reasons


class _Tracer:
    """Wraps a method as tracing does, and counts its calls."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        self.calls = 0

    def as_function(self) -> Any:
        """Return a function that looks like the one it wraps."""

        @functools.wraps(self.wrapped)
        def traced(*args: Any, **options: Any) -> Any:
            self.calls += 1
            return self.wrapped(*args, **options)

        return traced

    def as_object(self) -> Any:
        """Return an object that does, and that binds as a function would."""
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
    (AioBaseClient, "_make_api_call", INTERCEPTED),
    (AIOHTTPSession, "send", "its requests are intercepted"),
]


@pytest.mark.parametrize("form", [_Tracer.as_function, _Tracer.as_object])
@pytest.mark.parametrize(("kind", "method", "reason"), INTERCEPTIONS)
async def test_whoever_intercepts_calls_sees_every_one(
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    method: str,
    reason: str,
    form: Callable[[_Tracer], Any],
) -> None:
    """Tracing that is put on before the client is opened."""
    tracer = _Tracer(getattr(kind, method))
    monkeypatch.setattr(kind, method, form(tracer))
    assert [reason] == await _after_calls(_session())
    assert CALLS == tracer.calls


@pytest.mark.parametrize("form", [_Tracer.as_function, _Tracer.as_object])
@pytest.mark.parametrize(("kind", "method", "reason"), INTERCEPTIONS)
async def test_whoever_intercepts_calls_may_come_later(
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    method: str,
    reason: str,
    form: Callable[[_Tracer], Any],
) -> None:
    """Tracing that is put on while the client is open."""
    tracer = _Tracer(getattr(kind, method))

    def change(_: object) -> None:
        monkeypatch.setattr(kind, method, form(tracer))

    assert [reason] == await _changed_while_open(change)
    assert CALLS == tracer.calls


async def test_a_client_may_have_methods_of_its_own() -> None:
    """Put into its class, or hung on the client itself."""
    tracers: list[_Tracer] = []

    def intercept(class_attributes: dict[str, Any], **_: object) -> None:
        tracers.append(_Tracer(class_attributes["create_chat_token"]))
        class_attributes["create_chat_token"] = tracers[-1].as_function()

    session = _session()
    session.register("creating-client-class.ivschat", intercept)
    assert [INTERCEPTED] == await _after_calls(session)
    assert [CALLS] == [tracer.calls for tracer in tracers]


@pytest.mark.parametrize("method", ["_make_api_call", "create_chat_token"])
async def test_a_client_itself_may_be_wrapped(method: str) -> None:
    """By whoever opened it."""
    tracers: list[_Tracer] = []

    def change(client: Any) -> None:
        tracers.append(_Tracer(getattr(client, method)))
        setattr(client, method, tracers[-1].as_function())

    assert [INTERCEPTED] == await _changed_while_open(change)
    assert [CALLS] == [tracer.calls for tracer in tracers]


class _OtherHttp(AIOHTTPSession):
    """Another HTTP client."""


def _configured(**options: Any) -> AioSession:
    session = _session()
    session.set_default_client_config(AioConfig(**options))
    return session


async def test_another_http_client_is_used() -> None:
    """Whatever it does, and whoever has chosen it."""
    session = _session()
    create_client: Callable[..., Any] = session.create_client

    def choosing(*args: Any, config: Any, **options: Any) -> Any:
        config.http_session_cls = _OtherHttp
        return create_client(*args, config=config, **options)

    vars(session)["create_client"] = choosing
    assert ["it has another HTTP client"] == await _after_calls(session)


@pytest.mark.parametrize("configured", ["environment", "session"])
async def test_a_proxy_is_used(monkeypatch: pytest.MonkeyPatch, configured: str) -> None:
    """For an endpoint that the constructor does not keep on this host."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_IVSCHAT", "http://localhost:9")
    session = _session()
    async with raw_server() as proxy:
        if configured == "environment":
            monkeypatch.setenv("http_proxy", proxy.url)
        else:
            session.set_default_client_config(AioConfig(proxies={"http": proxy.url}))
        async with open_pool(None, session) as (pool, reasons):
            for _ in range(CALLS):
                await pool.mint(REGION, REQUEST)
        assert ["POST http://localhost:9/CreateChatToken HTTP/1.1"] * CALLS == [
            one.line for one in proxy.seen
        ]
    assert ["it uses a proxy"] == reasons


async def test_a_header_that_is_not_known_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore's own handlers add one in a Lambda function, another for each invocation."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "f")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1;Sampled=1")
    assert ["an unknown header, x-amzn-trace-id"] == await _after_calls(_session())


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (UNSIGNED, "its requests are not signed"),
        ("v3", "an unknown header, date"),
        ("v4-query", "another kind of signature"),
    ],
)
async def test_another_kind_of_signature_is_used(version: Any, reason: str) -> None:
    """Whatever the configuration asks for."""
    assert [reason] == await _after_calls(_configured(signature_version=version))


async def test_a_key_that_looks_like_part_of_the_signature_is_used() -> None:
    """An access key with a slash is none of AWS's."""
    assert ["another kind of signature"] == await _after_calls(bare_session("a/b", "testing"))


@pytest.mark.parametrize("missing", ["_request_signer", "_endpoint", "meta"])
async def test_without_an_internal_that_is_needed_calls_go_on(missing: str) -> None:
    """As with a client that is none of aiobotocore's."""
    parts: dict[str, Any] = {
        "_request_signer": object(),
        "_endpoint": SimpleNamespace(http_session=object()),
    }
    parts["meta"] = SimpleNamespace(endpoint_url="http://127.0.0.1")
    heard: list[str] = []
    if missing != "meta":
        register: Callable[[str, object], None] = lambda event, _: heard.append(event)  # noqa: E731 (one line)
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
    assert not any(event.startswith("before-send") for event in heard)


async def test_an_internal_that_breaks_later_is_told_by_its_kind() -> None:
    """Calls go on."""
    opened = _Opened()
    async with raw_server() as server, open_pool(server.url, opened.session) as (pool, reasons):
        # It fails for whoever looks, and not for whoever sends.
        opened.client._endpoint.http_session._proxy_config = SimpleNamespace(
            proxy_url_for=lambda url: None if reasons else {}[url], proxy_headers_for=lambda _: None
        )
        for _ in range(CALLS):
            await pool.mint(REGION, REQUEST)
        assert CALLS == len(set(series(server.seen)))
    assert ["aiobotocore is not as expected (KeyError)"] == reasons


@pytest.mark.parametrize("asked", [True, False])
async def test_a_client_certificate_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: bool
) -> None:
    """Connections are aiobotocore's own, so requests can be prepared all the same."""
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
    """It checks their signatures, and mints for each."""
    async with open_pool(ivschat_emulator.url) as (pool, reasons):
        minted = await asyncio.gather(*(pool.mint(REGION, REQUEST) for _ in range(100)))
    assert 100 == len({one.token.token for one in minted})
    assert 100 == ivschat_emulator.emulator.counts().requests
    assert [] == reasons
