"""Real tracers see the library's calls as they see those of bare aiobotocore."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.paths import TESTS
from support.raw_servers import RawServer, raw_server, series

pytestmark = pytest.mark.tracers

_ORDINARY_HEADERS = {
    *("host", "accept", "accept-encoding", "content-type", "content-length", "user-agent"),
    *("x-amz-date", "amz-sdk-invocation-id", "amz-sdk-request"),
}
_VARYING = re.compile(
    r"\b\d{13}\b|\b\d\.\d{3,}\b|\b[0-9a-f]{16}\b|\brv:[0-9a-f]+|aiobotocore/[^\"]* botocore/[\d.]+"
)
"""Moments, priorities, ids that no span has, and the user agent."""


_SETTINGS = ("AWS_", "DD_", "ELASTIC_APM_", "NEW_RELIC_", "OTEL_", "SENTRY_")
"""What names of the host's settings for clients and tracers begin with."""


@dataclass
class _Run:
    """What came of the calls that one process made.

    Attributes:
        calls: for each call, by the name of its user, the names of the spans above which it lies,
            what the tracer saw of it, and the headers that its request had besides the usual ones.
        directly: for each phase, the number of its calls that went the prepared way.
        told: the events of the library's observers.
        kept: the calls whose context was kept alive while the client was open.
    """

    calls: dict[str, Any]
    directly: dict[str, int]
    told: list[str]
    kept: list[str]


async def _run(tracer: str, way: str, when: str, *, removable: bool) -> _Run:
    settings = {
        **{name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)},
        "NO_PROXY": "127.0.0.1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    async with raw_server() as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tracers.calls"),
            *(tracer, way, when, "yes" if removable else "no", server.url),
            cwd=TESTS,
            env=settings,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(60):
                printed, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert 0 == process.returncode
    found = json.loads(printed)
    return _Run(_calls(found["spans"], server), _directly(server), found["told"], found["kept"])


def _calls(spans: list[dict[str, Any]], server: RawServer) -> dict[str, Any]:
    """Return what was seen of each call, with ids replaced by what they are of."""
    by_id = {span["id"]: span for span in spans}
    names: dict[str, str] = {}

    def owner(span: dict[str, Any]) -> str:
        """Return the name of the caller's span, or of the topmost span, if nobody called."""
        above = by_id.get(span["parent"])
        return span["name"] if above is None else owner(above)

    for span in spans:
        for spelled in _spellings(span["id"]):
            names[spelled] = f"<{span['name']}>"
        if span["parent"] not in by_id:
            for spelled in _spellings(span["trace"]):
                names[spelled] = f"<trace of {span['name']}>"

    port = re.escape(str(urlsplit(server.url).port))

    def plain(value: Any) -> Any:
        text = json.dumps(value)
        for spelled, name in names.items():
            text = text.replace(spelled, name)
        return json.loads(_VARYING.sub("VARYING", re.sub(rf"\b{port}\b", "0", text)))

    calls: dict[str, Any] = defaultdict(lambda: {"spans": [], "headers": {}})
    for span in spans:
        if span["parent"] is not None or not re.match("traced|together|after", span["name"]):
            of = by_id.get(span["parent"], {"name": "nobody"})["name"]
            above = "call" if of == owner(span) else of
            calls[owner(span)]["spans"].append(plain([above, span["name"], span["attributes"]]))
    for request in server.seen:
        headers = calls[json.loads(request.body)["userId"]]["headers"]
        for name, value in request.headers:
            if name.lower() == "authorization":
                value = re.findall("SignedHeaders=(.*),", value)[0]
            elif name.lower() == "newrelic":
                value = base64.b64decode(value).decode()
            if name.lower() not in _ORDINARY_HEADERS:
                headers[name.lower()] = plain(value)
    for call in calls.values():
        call["spans"].sort(key=repr)
    return dict(calls)


def _spellings(number: str) -> list[str]:
    """Return how tracers write an id of 16 or 32 hexadecimal digits."""
    if len(number) == 16:
        return [number, str(int(number, 16))]
    return [number, f"1-{number[:8]}-{number[8:]}", str(int(number[16:], 16))]


def _directly(server: RawServer) -> dict[str, int]:
    """Return how many requests of each phase were made from a pattern of the client's first."""
    prefixes = series(server.seen)
    counts: dict[str, int] = defaultdict(int)
    for request, prefix in zip(server.seen, prefixes, strict=True):
        phase = json.loads(request.body)["userId"].partition("-")[0]
        counts[phase] += prefixes.count(prefix) > 1
    return dict(counts)


@dataclass(frozen=True)
class _Expected:
    """What a tracer sees of a call.

    Attributes:
        spans: the names of its spans, each with that of the span above, ``call`` for the caller's.
        headers: those that it adds to requests.
        sees_open_clients: whether it sees those that were open already when it was put on.
        general: whether requests go the general way while it is on.
        removable: whether the test takes it off.
        leaves_listener: whether clients that it has seen have a listener of its own ever after.
        whens: when it is put on.
    """

    spans: list[list[str]]
    headers: set[str]
    sees_open_clients: bool = True
    general: bool = True
    removable: bool = False
    leaves_listener: bool = False
    whens: tuple[str, ...] = ("import", "opening", "open")


_SENTRY_SPANS = [["call", "POST http://127.0.0.1:0/CreateChatToken"]]
_SENTRY_HEADERS = {"sentry-trace", "baggage"}
_DATADOG = _Expected(
    [
        ["aiohttp.request", "_ProxySSLTCPConnector.connect"],
        ["call", "ivschat.command"],
        ["ivschat.command", "aiohttp.request"],
    ],
    {"traceparent", "tracestate", "x-datadog-trace-id", "x-datadog-parent-id"},
    removable=True,
    leaves_listener=True,
)

EXPECTED = {
    "opentelemetry-botocore": _Expected(
        [["call", "ivschat.CreateChatToken"]], {"x-amzn-trace-id"}, removable=True
    ),
    "opentelemetry-aiohttp": _Expected(
        [["call", "POST"]], {"traceparent"}, sees_open_clients=False, general=False
    ),
    # That of aiohttp is silent in the span of the other.
    "opentelemetry-both": _Expected(
        [["call", "ivschat.CreateChatToken"]], {"x-amzn-trace-id"}, whens=("opening",)
    ),
    "x-ray": _Expected([["call", "ivschat"]], {"x-amzn-trace-id"}),
    "sentry-aiohttp": _Expected(
        _SENTRY_SPANS, _SENTRY_HEADERS, sees_open_clients=False, general=False
    ),
    "sentry": _Expected(_SENTRY_SPANS, _SENTRY_HEADERS, sees_open_clients=False),
    "ddtrace": _DATADOG,
    "ddtrace-auto": replace(_DATADOG, whens=("import",)),
    "elastic": _Expected(
        [["call", "ivschat:CreateChatToken"]],
        {"traceparent", "tracestate", "elastic-apm-traceparent"},
        removable=True,
    ),
    "newrelic": _Expected(
        [["call", "External/127.0.0.1:0/aiobotocore/POST"]], {"traceparent", "tracestate"}
    ),
}


@pytest.mark.parametrize(
    ("tracer", "when"), [(name, when) for name, one in EXPECTED.items() for when in one.whens]
)
async def test_a_tracer_sees_what_it_sees_of_bare_aiobotocore(tracer: str, when: str) -> None:
    """The same spans, below the caller's, and the same headers on the wire.

    Whether it is put on before the import, before a client is opened or while one is open. Requests
    go the prepared way before it is put on, after it is taken off, and if it watches aiohttp alone.
    Of two callers who share a request, it is in the trace of the first. No call's context outlives
    it.
    """
    expected = EXPECTED[tracer]
    bare, library = await asyncio.gather(
        *(_run(tracer, way, when, removable=expected.removable) for way in ("bare", "library"))
    )
    together = {name: library.calls.pop(name, None) for name in ("together-0", "together")}
    assert bare.calls == library.calls

    seen = expected.sees_open_clients or when != "open"
    spans, headers = (expected.spans, expected.headers) if seen else ([], set())
    if when == "open":  # and so are its connections
        spans = [span for span in spans if not span[1].endswith(".connect")]
    for number in range(6):
        call = library.calls[f"traced-{number}"]
        assert spans == [[above, name] for above, name, _ in call["spans"]]
        assert headers <= call["headers"].keys()
    if seen:
        assert "<trace of together-0>" in f"{together['together']}"
        assert library.calls["traced-2"]["spans"] == together["together-0"]["spans"]

    directly = {"traced": 0, "together": 0}
    if not expected.general:
        directly = {"traced": 5 if when != "open" else 6, "together": 1}
    told = ["NotPrepared"] if expected.general else []
    if when == "open":
        directly["before"] = 5
    if expected.removable:
        directly["after"] = 0 if expected.leaves_listener else 5
        told.append("NotPrepared" if expected.leaves_listener else "Prepared")
    assert directly == library.directly
    assert told == [event.partition("(")[0] for event in library.told]
    assert told.count("NotPrepared") == f"{library.told}".count("somebody watches")
    assert [] == library.kept
