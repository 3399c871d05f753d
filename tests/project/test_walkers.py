"""What walks values instead of asking their ``repr`` finds no secret in them.

Crash reporters, differs and serializers do. That no locals of a traceback hold one, on any path, is
the surface "walked locals" of test_canary.py; what real crash reporters show is in ``tracers/``.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import pprint
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydantic
import pytest
from fastapi.encoders import jsonable_encoder

from aioivschat import ChatToken, TokenRequest
from aioivschat._endpoint.exchange import Received
from aioivschat._endpoint.exchange import Reply as EndpointReply
from aioivschat._models import Attempt, Reply
from aioivschat._secrets import Hidden
from aioivschat._service.admission import NEVER, Call
from aioivschat.emulator import ThreadedEmulatorServer
from aioivschat.onboarding import Attendee, Outcome, onboard
from aioivschat.redis import RedisTier
from aioivschat.starlette import Ask
from support.canary import (
    KEY,
    NAME,
    PASSWORD,
    SEALING,
    SECRET,
    SESSION,
    TOKEN,
    USER,
    SingingEmulator,
    heard_in,
    texts_within,
)
from support.engine import EngineServer
from support.services import ROOM, OpenService, bare_session

pytestmark = pytest.mark.fault(43)

NOW = datetime(2027, 1, 15, 8, 1, tzinfo=UTC)
REQUEST = TokenRequest(ROOM, USER, ["SEND_MESSAGE"], {"displayName": NAME}, 30)
ATTEMPT = Attempt((REQUEST.identity, KEY))
CHAT_TOKEN = ChatToken(TOKEN, NOW, NOW)
ASK = Ask(user=USER, attributes={"displayName": NAME})
ROW = Attendee(1, room=ROOM, user=USER)

VALUES: dict[str, Any] = {
    "request": REQUEST,
    "token": CHAT_TOKEN,
    "identity": REQUEST.identity,
    "attempt": ATTEMPT,
    "key": Hidden((ROOM, USER)),
    "ask": ASK,
    "row": ROW,
    "outcome": Outcome(Attendee(1, REQUEST), CHAT_TOKEN),
    "call": Call(REQUEST, None, ATTEMPT, None, NEVER),  # type: ignore[arg-type]  # of no interest
    "received": Received({"Idempotency-Key": KEY, "Cookie": SESSION}, USER.encode()),
    "answer": EndpointReply(200, {}, TOKEN.encode()),
}


def _take_slots(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _take_compared_fields(value: Any) -> dict[str, Any]:
    # As pytest 8 does, of whatever kind the fields are.
    fields = value.__dataclass_fields__.values()
    return {field.name: getattr(value, field.name) for field in fields if field.compare}


WALKERS: dict[str, Callable[[Any], Any]] = {
    "items": lambda value: [*value],
    "parts": lambda value: [value[index] for index in range(len(value))],
    "fields": dataclasses.asdict,
    "fields in order": dataclasses.astuple,
    "compared fields": _take_compared_fields,
    "slots": _take_slots,
    "attributes": vars,
    "state": lambda value: value.__getstate__(),
    "new arguments": lambda value: value.__getnewargs__(),
    "pickle": lambda value: pickle.dumps([value]),
    "parts of a pickle": lambda value: value.__reduce_ex__(2),
    "json of slots": lambda value: json.dumps(value, default=_take_slots),
    "json of attributes": lambda value: json.dumps(value, default=vars),
    "pprint": lambda value: pprint.pformat([value], width=1),
    "fastapi": jsonable_encoder,
    "deep copy": lambda value: copy.deepcopy({"x": [value]}),
    "a set": lambda value: {value},
    "sentry": lambda value: value.__sentry_repr__(),
}


@pytest.mark.parametrize("walk", WALKERS.values(), ids=WALKERS)
@pytest.mark.parametrize("name", VALUES)
def test_no_walker_finds_a_secret_in_a_value(name: str, walk: Callable[[Any], Any]) -> None:
    """Whatever it makes of the value, an error included, shows none by texts or ``repr``."""
    try:
        found = walk(VALUES[name])
    except Exception as refusal:
        found = refusal
    assert [] == heard_in(repr(found))
    assert [] == [text for _, text in texts_within([found]) if heard_in(text)]


def test_the_walker_of_the_tests_finds_what_is_not_hidden() -> None:
    """In items, keys, slots, attributes and fields, at any depth."""

    @dataclasses.dataclass(slots=True)
    class Holder:
        held: Any

    Holder.__module__ = "aioivschat.test"
    value = {"x": [({USER: 1}, Holder({(NAME,)}))], "y": Holder(TOKEN.encode())}
    assert {"x", "y", USER, NAME, TOKEN} == {text for _, text in texts_within(value)}


@pytest.mark.parametrize("fleet", [False, True], ids=["alone", "fleet"])
async def test_no_walker_finds_a_secret_in_a_service(
    open_service: OpenService, tmp_path: Path, fleet: bool
) -> None:
    """Nor in all that it holds: delivered tokens, stock, fences, flights, what it shares."""
    with (
        EngineServer(tmp_path, requirepass=PASSWORD) if fleet else nullcontext() as engine,
        ThreadedEmulatorServer(SingingEmulator()) as emulator,
    ):
        url = engine and f"redis://:{PASSWORD}@{engine.address}"
        service = open_service(
            session=bare_session("canary-id", SECRET, SESSION),
            endpoint_url=emulator.url,
            shared=url and RedisTier(url, keys=[SEALING], timeout=5.0),
        )
        reply: dict[str, Any] = {}
        for _ in range(3):
            reply = await service.create_chat_token(**REQUEST.as_members())
        await service.issue(REQUEST, idempotency_key=KEY)
        service.invalidate(user=USER, room=ROOM)
        await service.prewarm([REQUEST] * 3)
        outcomes = [outcome async for outcome in onboard(service, [REQUEST])]
        await service.issue(REQUEST, idempotency_key=KEY)
        assert reply["token"].startswith(TOKEN)
        assert 2 == service.stats().tokens_held
        assert fleet or 1 == service.stats().stock_held
        found = [*texts_within([service, outcomes, [ASK]])]
        assert any(ROOM == text for _, text in found)
        assert [] == [way for way, text in found if heard_in(text)]
        await service.aclose()


# Keys.


def test_a_hidden_key_looks_empty_and_compares_as_a_tuple() -> None:
    """A plain tuple finds it in a dictionary; it gives its members to who asks for them."""
    members = (ROOM, USER, (), 1)
    key = Hidden(members)
    by_key: dict[tuple[Any, ...], int] = {key: 1}
    assert by_key[members] == {members: 1}[key] == 1
    assert (0, [], ()) == (len(key), [*key], tuple(key))
    assert members == tuple(key.members())
    assert USER == key.at(1)
    with pytest.raises(IndexError, match="hidden"):
        key[0]


# What is still possible.


def test_parts_of_a_request_can_be_replaced() -> None:
    """By ``dataclasses.replace``, checked anew, with all that it was not told to replace."""
    replaced = dataclasses.replace(REQUEST, user="bob")
    expected = TokenRequest(ROOM, "bob", ["SEND_MESSAGE"], {"displayName": NAME}, 30)
    assert expected == replaced != REQUEST
    assert expected.as_members() == replaced.as_members()
    assert REQUEST == dataclasses.replace(replaced, user=USER)
    with pytest.raises(ValueError, match="userId"):
        dataclasses.replace(REQUEST, user="")
    if sys.version_info >= (3, 13):
        assert expected == copy.replace(REQUEST, user="bob")


def test_parts_of_other_values_can_be_replaced() -> None:
    """Of a token, of what a client asks for, of a row."""
    assert CHAT_TOKEN.as_reused() == dataclasses.replace(CHAT_TOKEN, reused=True)
    assert Ask(ROOM, USER, None, ASK.attributes) == dataclasses.replace(ASK, room=ROOM)
    assert (2, USER) == (dataclasses.replace(ROW, line=2).line, ROW.user)


def test_members_are_found_by_position_and_by_signature() -> None:
    """A ``match`` statement takes them, and help shows them."""
    match REQUEST:
        case TokenRequest(room, user, capabilities, attributes, minutes):
            assert TokenRequest(room, user, capabilities, attributes, minutes) == REQUEST
    match CHAT_TOKEN:
        case ChatToken(token, _, _, reused):
            assert (TOKEN, False) == (token, reused)
    assert ["token", "token_expires", "session_expires", "reused"] == [
        *inspect.signature(ChatToken).parameters
    ]


class _Job(pydantic.BaseModel):
    request: TokenRequest
    more: list[TokenRequest] = []
    token: ChatToken | None = None


def test_a_model_of_pydantic_holds_requests_and_tokens() -> None:
    """As they are; what it shows, dumps, copies and describes holds no secret."""
    job = _Job(request=REQUEST, more=[REQUEST], token=CHAT_TOKEN)
    assert job.request is job.more[0] is job.model_copy(deep=True).request is REQUEST
    assert job == _Job.model_validate({"request": REQUEST, "more": [REQUEST], "token": CHAT_TOKEN})
    shown = (repr(job), repr(job.model_dump()), job.model_dump_json(), repr(jsonable_encoder(job)))
    for text in shown:
        assert "user=<redacted>" in text
        assert [] == heard_in(text)
    assert "string" in repr(_Job.model_json_schema(mode="serialization"))
    with pytest.raises(pydantic.ValidationError, match="instance of TokenRequest"):
        _Job(request=ROOM)  # type: ignore[arg-type]  # it must fail


@pytest.mark.parametrize(
    ("value", "instead"),
    [
        (REQUEST, r"as_members\(\), the arguments of create_chat_token"),
        (CHAT_TOKEN, r"token\.token"),
        (CHAT_TOKEN.reply(), r"dict\(reply\)"),
        (REQUEST.identity, "what is needed of it"),
        (EndpointReply(200, {}, b""), "what is needed of it"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_refusal_to_pickle_says_what_to_send(value: object, instead: str) -> None:
    """Whatever the protocol, and for a list of them."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match=f"is not pickled: send {instead}$"):
            pickle.dumps([value], protocol)


async def test_what_is_sent_instead_of_a_pickle_works(open_service: OpenService) -> None:
    """At the other end, the members are the arguments of the call that means the same."""
    service = open_service()
    members = pickle.loads(pickle.dumps(REQUEST.as_members()))
    reply = await service.create_chat_token(**members)
    assert reply["token"] == (await service.issue(REQUEST)).token
    assert reply == pickle.loads(pickle.dumps(dict(reply)))


# Replies, which are dicts.


def test_a_merged_reply_shows_no_token() -> None:
    """Whatever it is merged with, and on which side."""
    reply = CHAT_TOKEN.reply()
    changed = CHAT_TOKEN.reply()
    changed |= {"room": ROOM}
    assert {**reply, "room": ROOM} == changed == reply | {"room": ROOM} == {"room": ROOM} | reply
    for merged in (reply | {}, {} | reply, reply | reply, changed, reply.copy()):
        assert type(merged) is Reply
        assert TOKEN == merged["token"]
        assert [] == heard_in(f"{merged} {merged!r} {pprint.pformat(merged, width=1)}")
    with pytest.raises(TypeError, match="unsupported operand"):
        reply | None


# pytest's own explanation of a failed comparison.

COMPARISONS = {
    "tokens": "token('1') == token('2')",
    "replies": "token('1').reply() == token('2').reply()",
    "reply and dict": "token('1').reply() == {}",
    "dict and reply": "{} == token('1').reply()",
    "replies in lists": "[token('1').reply()] == [token('2').reply()]",
    "replies in dicts": "{'a': token('1').reply()} == {'a': token('2').reply()}",
    "requests": "request('1') == request('2')",
    "identities": "request('1').identity == request('2').identity",
    "attempts": "attempt('1') == attempt('2')",
    "rows": "Attendee(1, user=USER) == Attendee(2, user=USER + 'x')",
    "asks": "Ask(user=USER) == Ask(user=USER + 'x')",
    "a token in a set": "token('1') in {token('2')}",
}


@pytest.mark.parametrize("verbosity", ["-q", "-vv"])
def test_pytest_explains_a_difference_without_secrets(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, verbosity: str
) -> None:
    """Locals shown, at any verbosity; and it says what was compared."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("CI", "true")  # which leaves out nothing of an explanation
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini("[pytest]")
    tests = "".join(
        f"def test_{number}():\n    assert {comparison}\n\n"
        for number, comparison in enumerate(COMPARISONS.values())
    )
    pytester.makeconftest(f"USER, NAME, KEY, TOKEN = {USER!r}, {NAME!r}, {KEY!r}, {TOKEN!r}")
    pytester.makepyfile(
        f"""
from datetime import UTC, datetime
from aioivschat import ChatToken, TokenRequest
from aioivschat._models import Attempt
from aioivschat.onboarding import Attendee
from aioivschat.starlette import Ask
from conftest import USER, NAME, KEY, TOKEN

NOW = datetime(2027, 1, 15, tzinfo=UTC)

def token(end):
    return ChatToken(TOKEN + end, NOW, NOW)

def request(end):
    return TokenRequest("{ROOM}", USER + end, (), {{NAME + end: NAME}})

def attempt(end):
    return Attempt((request(end).identity, KEY + end))

{tests}"""
    )
    plugin = ("-p", "aioivschat.emulator.pytest_plugin", "-p", "no:cacheprovider")
    result = pytester.runpytest_subprocess(*plugin, verbosity, "--showlocals", "--tb=long")
    result.assert_outcomes(failed=len(COMPARISONS))
    assert [] == heard_in(result.stdout.str())
    result.stdout.fnmatch_lines(["*'token': <redacted>* == *'token': <redacted>*"])
