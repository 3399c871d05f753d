"""Whatever takes the place of a function that a call runs is found, by its name, and only that."""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import _lru_cache_wrapper
from hashlib import sha256
from inspect import getattr_static
from itertools import cycle
from types import CodeType, FrameType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import botocore.auth
import botocore.serialize
import pytest
import wrapt
from aiobotocore.config import AioConfig
from aiobotocore.hooks import AioHierarchicalEmitter
from botocore import history
from botocore.auth import SigV4Auth
from botocore.utils import CachedProperty

from aioivschat._aws.http_session import HttpSession
from aioivschat._aws.interception import STAGES, _nested_codes, _Survey
from support.raw_servers import REGION, http, raw_server
from support.services import ROOM, bare_session

MEMBERS = {"roomIdentifier": ROOM, "userId": "u"}

CALLED_BY_BOTH_WAYS = {
    "AioCredentials",
    "Credentials",
    "ReadOnlyCredentials",
}
"""Classes whose functions the prepared way runs too, so that nothing has to be looked for there."""


def _is_of_libraries(module: object) -> bool:
    return str(module).partition(".")[0] in ("aiobotocore", "botocore")


@dataclass
class Part:
    """A function that a call ran, where it is looked up.

    Attributes:
        owner: its class or module.
        name: by which it is found there.
        function: itself, without its decorators.
        member: what is found there.
    """

    owner: Any
    name: str
    function: FunctionType
    member: Any


class TracedClient:
    """A client, and what its calls ran."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.called: set[CodeType] = set()
        self.named: dict[str, set[str]] = {}  # by functions of a module, in its namespace
        self.stages: set[str] = set()

    def _note_event(self, event_name: str, **_: object) -> None:
        self.stages.add(event_name.partition(".")[0])

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and _is_of_libraries(module):
            self.called.add(frame.f_code)
            self.named.setdefault(module, set()).update(frame.f_code.co_names)

    async def call(self) -> None:
        """Make a call in the general way."""
        self.client.meta.events.register("*", self._note_event)
        before = sys.getprofile()
        sys.setprofile(self._note)
        try:
            await self.client.create_chat_token(**MEMBERS)
        except self.client.exceptions.ClientError:
            pass
        finally:
            sys.setprofile(before)
            self.client.meta.events.unregister("*", self._note_event)

    def parts(self) -> list[Part]:
        """Return the functions that were called, where they are found."""
        modules = [module for name, module in sys.modules.items() if _is_of_libraries(name)]
        owners: dict[int, Any] = {id(module): module for module in modules}
        for module in modules:
            for member in vars(module).values():
                if isinstance(member, type) and _is_of_libraries(member.__module__):
                    owners[id(member)] = member
        return [
            Part(owner, name, function, member)
            for owner in owners.values()
            for name, member in tuple(vars(owner).items())
            for function in _functions_in(member)
            if function.__code__ in self.called
            if getattr(owner, "__name__", "") not in CALLED_BY_BOTH_WAYS
            # A function may be called by its name in another module than its own.
            if not isinstance(owner, ModuleType) or name in self.named.get(owner.__name__, ())
        ]


def _functions_in(member: Any) -> Iterator[FunctionType]:
    """Return the function of botocore's that a member of a class or a module is, or wraps."""
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    elif isinstance(member, property):
        member = member.fget
    if isinstance(member, CachedProperty):
        member = vars(member)["_fget"]
    while isinstance(member, FunctionType | _lru_cache_wrapper) and hasattr(member, "__wrapped__"):
        member = member.__wrapped__
    if isinstance(member, FunctionType) and _is_of_libraries(member.__module__):
        yield member


@pytest.fixture(scope="module")
def traced() -> Iterator[TracedClient]:
    """A client that has made calls of all outcomes."""
    with asyncio.Runner() as runner:

        async def open_client(stack: AsyncExitStack) -> TracedClient:
            server = await stack.enter_async_context(raw_server(successes_first=2))
            options: Any = {
                "region_name": REGION,
                "endpoint_url": server.url,
                "config": AioConfig(
                    http_session_cls=HttpSession, retries={"total_max_attempts": 1}
                ),
            }
            session = bare_session("testing", "testing", "token")
            client = await stack.enter_async_context(session.create_client("ivschat", **options))
            traced = TracedClient(client)
            await traced.call()
            await traced.call()
            for status in (400, 429, 500):
                server.answer = http(b'{"__type":"SomeException"}', status=f"{status} Some")
                await traced.call()
            return traced

        stack = AsyncExitStack()
        yield runner.run(open_client(stack))
        runner.run(stack.aclose())


def test_all_that_a_call_runs_is_looked_at(traced: TracedClient) -> None:
    """No function of a call in the general way is missing among those that are compared."""
    survey = _Survey(traced.client)
    assert survey.found is None
    looked_at = {code for each in survey.functions for code in _nested_codes(each.__code__)}
    missing = {
        (code.co_qualname, code.co_filename)
        for code in traced.called - looked_at
        if code.co_qualname.partition(".")[0] not in CALLED_BY_BOTH_WAYS
    }
    assert set() == missing
    assert len(traced.called) > 150


def test_listeners_of_every_stage_are_looked_for(traced: TracedClient) -> None:
    """No event of a call, whatever comes of it, is missing among those that are looked at."""
    assert traced.stages == set(STAGES) - {"after-call-error"}  # all had an answer


def _wrap_by_wrapt(part: Part) -> Any:
    return wrapt.FunctionWrapper(part.member, lambda wrapped, _, args, kw: wrapped(*args, **kw))


def _wrap_by_functools(part: Part) -> Any:
    @functools.wraps(part.function)
    def traced(*args: Any, **options: Any) -> Any:
        return part.member(*args, **options)

    return traced


def test_a_wrapper_is_found_by_the_name_of_what_it_wraps(
    traced: TracedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every function of a call: before the first look, later, and no more once it is gone."""
    clean = _Survey(traced.client)
    parts = traced.parts()
    assert len(parts) > 150
    for part, wrap in zip(parts, cycle([_wrap_by_wrapt, _wrap_by_functools])):
        with monkeypatch.context() as patch:
            patch.setattr(part.owner, part.name, wrap(part))
            assert not clean.still_holds(), part
            found = _Survey(traced.client)
            assert str(found.found).endswith(f".{part.name}"), part
        assert not found.still_holds(), part
        assert clean.still_holds(), part


def test_exchanged_code_is_found(traced: TracedClient) -> None:
    """Code in place of a function's own, with its file and name, as some tracers put it there."""
    clean = _Survey(traced.client)
    for number, function in enumerate({part.function for part in traced.parts()}):
        own = function.__code__
        try:
            function.__code__ = own.replace(co_consts=(*own.co_consts, "traced"))
            assert not clean.still_holds(), function
            # A survey takes its time, and none of them knows one function from another.
            found = None if number % 8 else _Survey(traced.client)
            assert found is None or found.found is not None, function
        finally:
            function.__code__ = own
        assert clean.still_holds(), function
        assert found is None or not found.still_holds(), function


def _objects(client: Any) -> dict[str, Any]:
    return {
        "client": client,
        "endpoint": client._endpoint,
        "signer": client._request_signer,
        "HTTP session": client._endpoint.http_session,
        "serializer": client._serializer,
        "parser": client._response_parser,
        "rules": client._ruleset_resolver,
        "emitter": client.meta.events._emitter,
    }


def test_a_function_of_an_object_itself_is_found(traced: TracedClient) -> None:
    """One that is set on client, endpoint, signer, HTTP session and others, as on no class."""
    clean = _Survey(traced.client)
    for place, owner in _objects(traced.client).items():
        for name in dir(type(owner)):
            own = getattr_static(type(owner), name)
            if name.startswith("__") or not isinstance(own, FunctionType):
                continue
            setattr(owner, name, getattr(owner, name))
            try:
                assert not clean.still_holds(), (place, name)
                kind = type(owner).__name__
                assert f"somebody watches {kind}.{name}" == _Survey(traced.client).found
            finally:
                delattr(owner, name)
            assert clean.still_holds(), (place, name)


class _Proxy:
    """Stands for an object, and answers as it does."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


@pytest.mark.parametrize("wrap", [_Proxy, wrapt.ObjectProxy])
@pytest.mark.parametrize(
    "path",
    ["_endpoint.http_session", "_serializer", "_response_parser", "_ruleset_resolver", "meta"],
)
def test_an_object_that_stands_for_another_is_found(
    traced: TracedClient, monkeypatch: pytest.MonkeyPatch, path: str, wrap: Any
) -> None:
    """Also one of wrapt, whose class, functions and equality are those of the other."""
    clean = _Survey(traced.client)
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, traced.client)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wrap(getattr(owner, name)))
        assert not clean.still_holds()
        assert _Survey(traced.client).found is not None
    assert clean.still_holds()
    assert _Survey(traced.client).found is None


def test_a_subclass_in_an_objects_place_is_found(
    traced: TracedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object whose class somebody derived, whatever that class changes."""
    clean = _Survey(traced.client)
    for place, owner in _objects(traced.client).items():
        kind = type("Traced", (type(owner),), {"__module__": "tracer"})
        with monkeypatch.context() as patch:
            patch.setattr(owner, "__class__", kind)
            assert not clean.still_holds(), place
            found = _Survey(traced.client)
            assert found.found is not None, place
        assert not found.still_holds(), place
        assert clean.still_holds(), place


def _decorate_by_context_manager(own: Any) -> Any:
    @contextmanager
    def span() -> Iterator[None]:
        yield

    return span()(own)


def _make_partial_method(own: Any) -> Any:
    def traced(self: Any, *args: Any) -> Any:
        return own(self, *args)

    return functools.partialmethod(traced)


def _compile_with_globals_of_botocore(own: Any) -> Any:
    namespace = {"__name__": "botocore.auth", "own": own}
    exec("def add_auth(*args):\n    return own(*args)", namespace)
    return namespace["add_auth"]


@pytest.mark.parametrize(
    "wrap",
    [_decorate_by_context_manager, _make_partial_method, _compile_with_globals_of_botocore],
)
def test_what_is_made_by_means_of_the_standard_library_is_found(
    traced: TracedClient, monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Any], Any]
) -> None:
    """A wrapper whose class or function is Python's own, with somebody's function inside."""
    clean = _Survey(traced.client)
    with monkeypatch.context() as patch:
        patch.setattr(SigV4Auth, "add_auth", wrap(SigV4Auth.add_auth))
        assert not clean.still_holds()
        assert str(_Survey(traced.client).found).endswith("SigV4Auth.add_auth")
    assert clean.still_holds()


class _HistoryHandler(history.BaseHistoryHandler):
    def emit(self, event_type: str, payload: object, source: str) -> None:
        """Take note."""


def _record_history(client: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(history.get_global_history_recorder(), "_handlers", [_HistoryHandler()])


def _chain_a_map(client: Any, patch: pytest.MonkeyPatch) -> None:
    kinds = botocore.auth.AUTH_TYPE_MAPS
    own = {"v4": type("Traced", (SigV4Auth,), {"__module__": "tracer"})}
    patch.setattr(botocore.auth, "AUTH_TYPE_MAPS", ChainMap(own, kinds))


def _exchange_a_module(client: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(botocore.serialize, "json", SimpleNamespace(dumps=json.dumps))


def _exchange_a_builtin(client: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(botocore.auth, "sha256", lambda *data: sha256(*data))


def _fill_what_is_empty(client: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client._endpoint.http_session._proxy_config, "_proxies_settings", _Proxy({}))


def _wrap_what_our_http_session_inherits(client: Any, patch: pytest.MonkeyPatch) -> None:
    kind = type(client._endpoint.http_session)
    patch.setattr(kind, "send", _Proxy(kind.send))


def _listen_to_the_endpoint_alone(client: Any, patch: pytest.MonkeyPatch) -> None:
    emitter: Any = AioHierarchicalEmitter()
    emitter.register("request-created", lambda **_: None)
    patch.setattr(client._endpoint, "_event_emitter", emitter)


@pytest.mark.parametrize(
    "exchange",
    [
        *(_record_history, _chain_a_map, _exchange_a_module, _exchange_a_builtin),
        *(_fill_what_is_empty, _listen_to_the_endpoint_alone),
        _wrap_what_our_http_session_inherits,
    ],
)
def test_an_object_that_holds_a_watcher_is_found(
    traced: TracedClient,
    monkeypatch: pytest.MonkeyPatch,
    exchange: Callable[[Any, pytest.MonkeyPatch], None],
) -> None:
    """In place of a map, a module, nothing, an emitter, or among those who record history."""
    clean = _Survey(traced.client)
    assert clean.found is None
    with monkeypatch.context() as patch:
        exchange(traced.client, patch)
        assert not clean.still_holds()
        assert _Survey(traced.client).found is not None
    assert _Survey(traced.client).found is None
