"""Tokens and replies: what they hold, and that nothing prints or pickles it."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import pprint
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta

import pytest

from aioivschat import ChatToken
from aioivschat._models import Reply

CANARY = "qzx-AQICAH-7f3a9"
EXPIRES = datetime(2027, 1, 15, 8, 1, tzinfo=UTC)
SESSION = EXPIRES + timedelta(hours=1)
TOKEN = ChatToken(CANARY, EXPIRES, SESSION)


@pytest.mark.fault(30)
def test_a_token_prints_without_its_secret() -> None:
    """``repr``, ``str`` and formats show a token's times and ``reused``, but not its text."""
    expected = (
        "ChatToken(token=<redacted>, token_expires=2027-01-15T08:01:00+00:00, "
        "session_expires=2027-01-15T09:01:00+00:00, reused=False)"
    )
    for shown in (repr(TOKEN), str(TOKEN), f"{TOKEN}", "%s" % TOKEN, ascii(TOKEN)):  # noqa: UP031 (tested)
        assert expected == shown
    assert f"[{expected}]" == str([TOKEN])


@pytest.mark.fault(30)
def test_a_reply_prints_without_its_token() -> None:
    """``repr``, ``str``, formats, containers and ``pprint`` show a reply without its token."""
    reply = TOKEN.reply()
    expected = (
        "{'token': <redacted>, 'tokenExpirationTime': "
        f"{EXPIRES!r}, 'sessionExpirationTime': {SESSION!r}}}"
    )
    for shown in (repr(reply), str(reply), f"{reply}", "%s" % reply, ascii(reply)):  # noqa: UP031 (tested)
        assert expected == shown
    assert f"[{expected}]" == str([reply])
    assert CANARY not in pprint.pformat([reply])


@pytest.mark.fault(30)
async def test_a_task_shows_neither_token_nor_reply_as_its_result() -> None:
    """Debug logs and leak reports print tasks with their results."""

    async def give(value: object) -> object:
        return value

    for value in (TOKEN, TOKEN.reply()):
        task = asyncio.create_task(give(value))
        await task
        # asyncio abridges the result: look for its beginning only.
        assert CANARY[:3] not in repr(task)


@pytest.mark.fault(30)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("secret", [TOKEN, TOKEN.reply()], ids=["token", "reply"])
def test_tokens_and_replies_refuse_to_be_pickled(secret: object, protocol: int) -> None:
    """``pickle`` raises, also for a list of them: pickles end up in stores and queues."""
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps([secret], protocol)


@pytest.mark.fault(30)
def test_the_refusal_to_pickle_shows_nothing() -> None:
    """The error of ``pickle`` holds no token: it may be logged."""
    for secret in (TOKEN, TOKEN.reply()):
        with pytest.raises(TypeError) as caught:
            pickle.dumps(secret)
        assert CANARY not in repr(caught.value)


def test_a_token_gives_its_text_when_asked() -> None:
    """``token.token`` and ``token.reply()["token"]`` are the text."""
    assert CANARY == TOKEN.token
    assert CANARY == TOKEN.reply()["token"]


def test_a_reply_is_the_dict_that_boto3_gives() -> None:
    """A reply equals a plain dict of three members, in boto3's order."""
    expected = {
        "token": CANARY,
        "tokenExpirationTime": EXPIRES,
        "sessionExpirationTime": SESSION,
    }
    reply = TOKEN.reply()
    assert expected == reply
    assert reply == expected
    assert list(expected) == list(reply)
    assert isinstance(reply, dict)
    assert expected == dict(**reply)


def test_a_reply_belongs_to_its_caller() -> None:
    """Changing a reply changes neither the token nor the next reply."""
    reply = TOKEN.reply()
    reply["token"] = "mine"
    reply["extra"] = 1
    assert CANARY == TOKEN.token
    assert ["token", "tokenExpirationTime", "sessionExpirationTime"] == list(TOKEN.reply())


def test_a_reply_serialises_to_json_apart_from_its_times() -> None:
    """As with boto3's reply, only the times need a ``default``."""
    with pytest.raises(TypeError, match="datetime"):
        json.dumps(TOKEN.reply())
    text = json.dumps(TOKEN.reply(), default=datetime.isoformat)
    assert {
        "token": CANARY,
        "tokenExpirationTime": "2027-01-15T08:01:00+00:00",
        "sessionExpirationTime": "2027-01-15T09:01:00+00:00",
    } == json.loads(text)


def test_a_reply_can_be_copied() -> None:
    """Copies of a reply are equal dicts that do not show the token either."""
    reply = TOKEN.reply()
    for twin in (copy.copy(reply), copy.deepcopy(reply), copy.deepcopy([reply])[0], reply.copy()):
        assert reply == twin
        assert reply is not twin
        assert CANARY not in repr(twin)


def test_an_empty_reply_prints_too() -> None:
    """A reply without members has a ``repr`` too."""
    assert "redacted" in repr(Reply())


def test_a_token_handed_out_again_says_so() -> None:
    """``as_reused`` returns an equal token but for ``reused``, and leaves the original as it is."""
    again = TOKEN.as_reused()
    assert ChatToken(CANARY, EXPIRES, SESSION, reused=True) == again
    assert (False, True) == (TOKEN.reused, again.reused)
    assert again == again.as_reused()


def test_a_copy_of_a_token_is_the_token() -> None:
    """Copies of an immutable token are the token itself."""
    assert TOKEN is copy.copy(TOKEN)
    assert TOKEN is copy.deepcopy([TOKEN])[0]


@pytest.mark.parametrize("member", ["token", "token_expires", "session_expires", "reused"])
def test_a_token_cannot_be_changed(member: str) -> None:
    """No attribute of a token can be set or deleted, as callers share it."""
    with pytest.raises(FrozenInstanceError):
        setattr(TOKEN, member, "x")
    with pytest.raises(FrozenInstanceError):
        delattr(TOKEN, member)
