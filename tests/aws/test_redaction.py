"""Redaction: error messages and debug logs that would show a request are withheld."""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from aioivschat import TokenRequest
from aioivschat._aws.redaction import current_answer, filter_debug_logs, redacted_response
from support.services import ROOM

USER = 'Zoë "the user" /1'
NAME = "Some Name"
REQUEST = TokenRequest(ROOM, USER, (), {"displayName": NAME, "seat": "b1"})


def shown_message(message: str, *, quotes: bool = False) -> str:
    """Return the message that an error of AWS has after redaction."""
    response = {"Error": {"Code": "SomeException", "Message": message}}
    kept = redacted_response(response, REQUEST, quotes=quotes, resource=False)
    return str(kept["Error"]["Message"])


@pytest.mark.fault(30)
@pytest.mark.parametrize(
    "spell",
    [
        str,
        str.upper,
        json.dumps,
        quote,
        quote_plus,
        lambda text: text.encode().hex(),
        lambda text: b64encode(text.encode()).decode(),
    ],
)
@pytest.mark.parametrize("secret", [USER, NAME, "displayName"])
def test_a_message_with_a_secret_is_withheld(secret: str, spell: Callable[[str], str]) -> None:
    """User, attribute or its key, as text, JSON, URL, hexadecimal or Base64, in any case."""
    assert shown_message(f"no, {spell(secret)}!").startswith("(message withheld")


@pytest.mark.parametrize(
    ("message", "kept"), [("seat b1 is taken", False), ("web1 is down", True), ("no", True)]
)
def test_a_short_secret_is_looked_for_as_a_word(message: str, kept: bool) -> None:
    """``b1``, an attribute's value, is found in ``seat b1`` but not in ``web1``."""
    assert kept == (message == shown_message(message))


def test_a_message_that_quotes_requests_is_withheld_whatever_it_holds() -> None:
    """Messages of validation and signature errors are withheld by their kind."""
    assert "no" != shown_message("no", quotes=True)


def test_a_resource_is_kept_unless_it_holds_a_secret() -> None:
    """The room stays in the response, members that are not known and secrets do not."""
    response: dict[str, Any] = {"resourceId": ROOM, "resourceType": NAME, "other": "x"}
    kept = redacted_response(response, REQUEST, quotes=False, resource=True)
    assert {"Error", "ResponseMetadata", "resourceId"} == set(kept)
    assert ROOM == kept["resourceId"]
    assert "resourceId" not in redacted_response(response, REQUEST, quotes=False, resource=False)


@pytest.mark.fault(30)
def test_debug_records_of_requests_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Loggers of botocore keep debug records only while no request of ours is made."""
    logger = logging.getLogger("botocore.test_redaction")
    filter_debug_logs()
    caplog.set_level(logging.DEBUG, logger.name)
    previous = current_answer.set({})
    logger.debug("of a request")
    logger.info("for everybody")
    current_answer.reset(previous)
    logger.debug("of another's request")
    assert ["for everybody", "of another's request"] == caplog.messages
