"""Withholds what AWS's errors and the logs of its libraries would show of a request."""

from __future__ import annotations

import json
import logging
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote, quote_plus

from aioivschat._models import TokenRequest

_WITHHELD = "(message withheld: it may repeat the request)"

_SUBSTRING_MIN_CHARACTERS = 4
"""A shorter secret is part of many words, so it is looked for as a word only."""

current_answer: ContextVar[dict[str, Any] | None] = ContextVar(
    "aioivschat_current_answer", default=None
)
"""While a request is made, its answer's status and headers: empty until they are there."""


def redacted_response(
    response: Mapping[str, Any],
    request: TokenRequest | None = None,
    *,
    quotes: bool,
    resource: bool = False,
) -> dict[str, Any]:
    """Return an error's parsed response without anything of the request but its room.

    Messages of the error may quote the request (``quotes``), and its members may name a
    ``resource``: a room, or what a quota belongs to.
    """
    error, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
    message = str(error.get("Message", ""))
    secrets: tuple[str, ...] = ()
    if request is not None:
        secrets = (request.user, *request.attributes, *request.attributes.values())
    if quotes or _holds_any(message, secrets):
        message = _WITHHELD
    kept: dict[str, Any] = {
        "Error": {"Code": error.get("Code"), "Message": message},
        "ResponseMetadata": {
            key: metadata[key]
            for key in ("RequestId", "HTTPStatusCode", "RetryAttempts")
            if key in metadata
        },
    }
    for member in ("resourceId", "resourceType", "limit") if resource else ():
        if member in response and not _holds_any(str(response[member]), secrets):
            kept[member] = response[member]
    return kept


def _holds_any(text: str, secrets: Iterable[str]) -> bool:
    folded, spellings = text.casefold(), map(_possible_spellings, secrets)
    return any(_holds(folded, each.casefold()) for spelled in spellings for each in spelled)


def _possible_spellings(secret: str) -> set[str]:
    spelled = {secret, json.dumps(secret)[1:-1], quote(secret), quote(secret, safe="")}
    spelled.add(quote_plus(secret))
    if len(secret) >= _SUBSTRING_MIN_CHARACTERS:
        spelled |= {secret.encode().hex(), b64encode(secret.encode()).decode().rstrip("=")}
    return spelled


def _holds(text: str, secret: str) -> bool:
    if len(secret) >= _SUBSTRING_MIN_CHARACTERS:
        return secret in text
    return bool(secret) and re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text) is not None


def _shows_no_request(record: logging.LogRecord) -> bool:
    # Debug records of our requests show token, user and signature.
    return record.levelno >= logging.INFO or current_answer.get() is None


def filter_debug_logs() -> None:
    """Drop what AWS's libraries log of our requests below INFO, by all loggers that exist now."""
    # A filter holds for its own logger only, not for those below it.
    for name in tuple(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp"):
            logging.getLogger(name).addFilter(_shows_no_request)
