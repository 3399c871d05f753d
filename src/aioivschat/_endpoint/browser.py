"""What is served for browsers: ``token-provider.js``, and the OpenAPI description."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from aioivschat._endpoint.exchange import Reply

PATH = "/chat/token"
"""Where the endpoint is by default; the module for browsers is at :func:`provider_path`."""


def provider_path(path: str) -> str:
    """Return where the module for browsers is served, given the endpoint's path."""
    return f"{path}-provider.js"


class BrowserModule:
    """Serves the module for browsers, ``token-provider.js``."""

    def __init__(self) -> None:
        self._body = _read_static("token-provider.js")
        self._headers = {
            "Content-Type": "text/javascript; charset=utf-8",
            "Cache-Control": "public, max-age=3600",
            "ETag": f'"{hashlib.sha256(self._body).hexdigest()[:32]}"',
        }

    def respond(self, headers: Mapping[str, str]) -> Reply:
        """Answer a request: the module, or 304 if the client has it."""
        known = headers.get("If-None-Match", "")
        tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
        if "*" in tags or self._headers["ETag"] in tags:
            return Reply(304, self._headers, b"")
        return Reply(200, self._headers, self._body)


def openapi(path: str = PATH) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the endpoint.

    Args:
        path: where the endpoint is.
    """
    description: dict[str, Any] = json.loads(_read_static("openapi.json"))
    described = description["paths"]
    description["paths"] = {
        path: described[PATH],
        provider_path(path): described[provider_path(PATH)],
    }
    return description


def _read_static(name: str) -> bytes:
    return (resources.files("aioivschat._endpoint") / "static" / name).read_bytes()
