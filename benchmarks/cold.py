"""The cost of a new token: distinct users without a quota, through each client.

``CPU µs`` is the processor time of the client's process per call, ``server µs`` that of the
server's. Two contestants are floors: raw aiohttp with a signature made by hand, and a bare protocol
with no HTTP client at all, whose requests are signed in advance. Ratios are to another contestant
in the same round, under the same load.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import hmac
import itertools
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
from aiobotocore.config import AioConfig
from yarl import URL

import harness
from aioivschat import AsyncTokenService, PoolPolicy, Quota, TokenRequest

KEY, SECRET = "testing", "testing"  # those of harness.make_session
CAPABILITIES = ["SEND_MESSAGE"]
_UNLIMITED = 1_000_000

Call = Callable[[str], Awaitable[object]]
"""Gets a token for a user."""


@asynccontextmanager
async def with_service(url: str, connections: int, **options: Any) -> AsyncIterator[Call]:
    """Issue through the whole library.

    Args:
        url: the server's.
        connections: the most to keep open.
        options: further fields of :class:`aioivschat.PoolPolicy`.
    """
    async with AsyncTokenService(
        session=harness.make_session(),
        endpoint_url=url,
        quota=Quota(rate=_UNLIMITED, burst=_UNLIMITED),
        pool=PoolPolicy(max_connections=connections, **options),
    ) as service:
        yield lambda user: service.issue(TokenRequest(harness.ROOM, user, CAPABILITIES))


def _make_client_options(url: str, connections: int) -> dict[str, Any]:
    return {
        "region_name": harness.REGION,
        "endpoint_url": url,
        "config": AioConfig(max_pool_connections=connections, proxies={}),
    }


def _make_members(user: str) -> dict[str, Any]:
    return {"roomIdentifier": harness.ROOM, "userId": user, "capabilities": CAPABILITIES}


@asynccontextmanager
async def with_aiobotocore(url: str, connections: int) -> AsyncIterator[Call]:
    """Call a bare client."""
    options = _make_client_options(url, connections)
    async with harness.make_session().create_client("ivschat", **options) as client:
        yield lambda user: client.create_chat_token(**_make_members(user))


@asynccontextmanager
async def with_aioboto3(url: str, connections: int) -> AsyncIterator[Call]:
    """Call a bare client of aioboto3."""
    session = harness.import_peer("aioboto3").Session(KEY, SECRET)
    async with session.client("ivschat", **_make_client_options(url, connections)) as client:
        yield lambda user: client.create_chat_token(**_make_members(user))


@asynccontextmanager
async def with_boto3(url: str, connections: int) -> AsyncIterator[Call]:
    """Call a bare client of boto3, each call in a thread."""
    session = harness.import_peer("boto3").Session(KEY, SECRET)
    client = session.client("ivschat", **_make_client_options(url, connections))
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(connections) as executor:
        yield lambda user: loop.run_in_executor(
            executor, partial(client.create_chat_token, **_make_members(user))
        )
    client.close()


@asynccontextmanager
async def with_capo(url: str, connections: int) -> AsyncIterator[Call]:
    """Call a client of capo, generated from the service model."""
    handler = harness.import_peer("zapros").AsyncStdNetworkHandler(
        http1={
            "max_connections_per_host": connections,
            "max_idle_connections_per_host": connections,
        }
    )
    async with harness.import_peer("capo_ivschat").AsyncivschatClient(
        handler,
        region=harness.REGION,
        endpoint=url,
        credentials={"access_key": KEY, "secret_key": SECRET},
    ) as client:
        yield lambda user: client.create_chat_token(harness.ROOM, user, capabilities=CAPABILITIES)


class Signer:
    """Signs requests with Signature Version 4: only the headers that AWS requires.

    Args:
        host: the server's name and port.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._day = ""
        self._key = b""

    def headers(self, body: bytes) -> dict[str, str]:
        """Return the headers to send with a body."""
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        day = now[:8]
        if day != self._day:
            self._day, self._key = day, _make_signing_key(day)
        canonical = (
            f"POST\n/CreateChatToken\n\nhost:{self._host}\nx-amz-date:{now}\n\n"
            f"host;x-amz-date\n{hashlib.sha256(body).hexdigest()}"
        )
        scope = f"{day}/{harness.REGION}/ivschat/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}"
        signature = _hmac_sha256(self._key, text).hex()
        return {
            "Content-Type": "application/json",
            "X-Amz-Date": now,
            "Authorization": (
                f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, "
                f"SignedHeaders=host;x-amz-date, Signature={signature}"
            ),
        }


def _make_signing_key(day: str) -> bytes:
    key = f"AWS4{SECRET}".encode()
    for part in (day, harness.REGION, "ivschat", "aws4_request"):
        key = _hmac_sha256(key, part)
    return key


def _hmac_sha256(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


@asynccontextmanager
async def with_aiohttp(url: str, connections: int) -> AsyncIterator[Call]:
    """Send requests through aiohttp: the least that an HTTP client library costs."""
    signer = Signer(urlsplit(url).netloc)
    target = URL(url) / "CreateChatToken"
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections), cookie_jar=aiohttp.DummyCookieJar()
    ) as session:

        async def call(user: str) -> object:
            body = json.dumps(_make_members(user)).encode()
            async with session.post(target, data=body, headers=signer.headers(body)) as response:
                if response.status != 200:
                    raise RuntimeError(f"the server answered {response.status}")
                return json.loads(await response.read())

        yield call


class FloorConnection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    _transport: asyncio.Transport
    _answer: asyncio.Future[bytes]

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # A cast, as uvloop's transport is not an instance of the class.
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> asyncio.Future[bytes]:
        """Send a request; the future is its answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Set the future's result once the answer is complete."""
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        start = head.find(b"Content-Length: ") + len(b"Content-Length: ")
        if len(body) == int(head[start : head.find(b"\r\n", start)]):
            answer, self._received = self._received, b""
            self._answer.set_result(answer)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


@asynccontextmanager
async def with_protocol(url: str, connections: int) -> AsyncIterator[Call]:
    """Write ready bytes to sockets: the least that an event loop costs."""
    host = urlsplit(url)
    loop = asyncio.get_running_loop()
    # User ids of one length, so that all requests have the same headers.
    longest = "user-000000000"
    head = "".join(
        f"{name}: {value}\r\n"
        for name, value in {
            "Host": host.netloc,
            "Content-Length": len(json.dumps(_make_members(longest))),
            **Signer(host.netloc).headers(b""),
        }.items()
    )
    before, after = json.dumps(_make_members(longest)).split(longest)
    before = f"POST /CreateChatToken HTTP/1.1\r\n{head}\r\n{before}"
    assert host.hostname is not None
    assert host.port is not None
    idle = [
        (await loop.create_connection(FloorConnection, host.hostname, host.port))[1]
        for _ in range(connections)
    ]
    opened = list(idle)

    async def call(user: str) -> object:
        connection = idle.pop()
        answer = await connection.send(f"{before}{user.ljust(len(longest), '-')}{after}".encode())
        idle.append(connection)
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"the server answered {answer[:15]!r}")
        return answer

    yield call
    for connection in opened:
        connection.close()


@dataclass(frozen=True, slots=True)
class Contestant:
    """A client that gets tokens.

    Args:
        open: opens the client for a server's URL and a number of connections.
        needs: the optional package that the client needs, if any.
    """

    open: Callable[[str, int], AbstractAsyncContextManager[Call]]
    needs: str | None = None

    @property
    def is_installed(self) -> bool:
        """Whether the client can be run."""
        return self.needs is None or harness.import_peer(self.needs) is not None


ISSUE, BARE, CAPO = "issue", "aiobotocore", "capo-ivschat"
AIOHTTP, PROTOCOL = "floor: aiohttp", "floor: protocol"
CONTESTANTS = {
    ISSUE: Contestant(with_service),
    "issue, general way": Contestant(partial(with_service, prepared=False)),
    BARE: Contestant(with_aiobotocore),
    "aioboto3": Contestant(with_aioboto3, "aioboto3"),
    "boto3 in threads": Contestant(with_boto3, "boto3"),
    CAPO: Contestant(with_capo, "capo_ivschat"),
    AIOHTTP: Contestant(with_aiohttp),
    PROTOCOL: Contestant(with_protocol),
}


@dataclass(frozen=True, slots=True)
class Load:
    """How many calls are made at once, and how slow the server is.

    Args:
        in_flight: calls under way at once.
        latency: seconds that the server waits before it answers.
        limits: those of ``issue`` under this load.
    """

    in_flight: int
    latency: float = 0.0
    limits: Sequence[harness.Limit] = ()

    @property
    def labels(self) -> dict[str, str]:
        """The load in the table."""
        return {"in flight": str(self.in_flight), "latency": f"{1e3 * self.latency:g} ms"}


_MAIN_LIMITS = (
    harness.Limit("rate of aiobotocore", at_least=3.5),
    harness.Limit("rate of capo-ivschat", at_least=1.0),
    harness.Limit("CPU of aiohttp", at_most=1.6),
)
FEW_CALLS = Load(16, limits=_MAIN_LIMITS)
LOADS = (
    FEW_CALLS,
    Load(64, limits=_MAIN_LIMITS),
    Load(256, limits=(harness.Limit("rate at 16", at_least=0.9),)),
    Load(64, 0.02, limits=(harness.Limit("rate of aiohttp", at_least=0.95),)),
)
SERVER_LIMITS = (harness.Limit("of fastest", at_least=3.0),)

Case = tuple[str, Load]
Figures = dict[str, float]


async def measure_load(
    load: Load, call: Call, users: Iterator[str], server: harness.Server, seconds: float
) -> Figures:
    """Make calls under a load for so many seconds."""
    waits: list[float] = []
    # Warm up every connection that the load needs: connections that were idle during the turns of
    # other contestants have been closed.
    await _make_calls(load, call, users, seconds / 4, [])
    counted, servers = server.counts()["requests"], server.processor_seconds()
    processor, started = time.process_time(), time.perf_counter()
    await _make_calls(load, call, users, seconds, waits)
    elapsed, processor = time.perf_counter() - started, time.process_time() - processor
    servers = server.processor_seconds() - servers
    if server.counts()["requests"] - counted != len(waits):
        raise RuntimeError("not every call was a request")
    centiles = statistics.quantiles(waits, n=100)
    return {
        "calls/s": len(waits) / elapsed,
        "CPU µs": 1e6 * processor / len(waits),
        "p50 ms": 1e3 * centiles[49],
        "p99 ms": 1e3 * centiles[98],
        "server µs": 1e6 * servers / len(waits),
    }


async def _make_calls(
    load: Load, call: Call, users: Iterator[str], seconds: float, waits: list[float]
) -> None:
    clock = time.perf_counter
    end = clock() + seconds

    async def visit() -> None:
        now = clock()
        while True:  # once at least, however slow the machine is
            await call(next(users))
            started, now = now, clock()
            waits.append(now - started)
            if now >= end:
                return

    await asyncio.gather(*(visit() for _ in range(load.in_flight)))


async def measure(
    server: harness.Server, cases: Sequence[Case], options: argparse.Namespace
) -> dict[Case, list[Figures]]:
    """Run the cases in turns, with all clients open."""
    users = (f"user-{number}" for number in itertools.count())
    connections = max(load.in_flight for _, load in cases)
    runs: dict[Case, list[Figures]] = {case: [] for case in cases}
    async with AsyncExitStack() as stack:
        calls = {
            name: await stack.enter_async_context(CONTESTANTS[name].open(server.url, connections))
            for name in dict.fromkeys(name for name, _ in cases)
        }
        for call in calls.values():
            await call(next(users))
        # The garbage collector must not walk through the objects of the other contestants while
        # one runs, but through its own garbage.
        gc.collect()
        gc.freeze()
        for name, load in harness.take_turns(cases, options.repeats):
            server.prepare("unlimited", load.latency)
            runs[name, load].append(
                await measure_load(load, calls[name], users, server, options.seconds)
            )
        gc.unfreeze()
    return runs


def add_ratios(runs: Mapping[Case, Sequence[Figures]], case: Case) -> list[Figures]:
    """Return the figures of a case, with ratios to other contestants in the same round."""
    name, load = case
    ratios: dict[str, tuple[str, Case]] = {
        "rate of aiobotocore": ("calls/s", (BARE, load)),
        "rate of capo-ivschat": ("calls/s", (CAPO, load)),
        "rate of aiohttp": ("calls/s", (AIOHTTP, load)),
        "CPU of aiohttp": ("CPU µs", (AIOHTTP, load)),
    }
    if not load.latency:
        ratios["rate at 16"] = ("calls/s", (name, FEW_CALLS))
    return [
        own
        | {
            ratio: own[figure] / runs[base][number][figure]
            for ratio, (figure, base) in ratios.items()
            if base in runs
        }
        for number, own in enumerate(runs[case])
    ]


def make_rows(loop: str, runs: Mapping[Case, Sequence[Figures]]) -> list[harness.Row]:
    """Return the rows of one event loop."""
    rows = []
    for name, load in runs:
        figures = add_ratios(runs, (name, load))
        limits = [limit for limit in load.limits if name == ISSUE and limit.figure in figures[0]]
        labels = {"contestant": name, "loop": loop, **load.labels}
        rows.append(harness.Row.of(labels, figures, limits))
    return rows


def make_server_row(loop: str, runs: Mapping[Case, Sequence[Figures]]) -> list[harness.Row]:
    """Return how fast the server can answer, relative to the fastest contestant but the floors."""
    loads = [load for name, load in runs if name == PROTOCOL and not load.latency]
    if not loads:
        return []
    load = max(loads, key=lambda load: _median_rate(runs[PROTOCOL, load]))
    clients = [name for name, _ in runs if name not in (AIOHTTP, PROTOCOL)]
    if not clients:
        return []
    fastest = max(clients, key=lambda name: _median_rate(runs[name, load]))
    figures = [
        {
            "calls/s": server["calls/s"],
            "server µs": server["server µs"],
            "of fastest": server["calls/s"] / client["calls/s"],
        }
        for server, client in zip(runs[PROTOCOL, load], runs[fastest, load], strict=True)
    ]
    labels = {"contestant": "server", "loop": loop, **load.labels}
    return [harness.Row.of(labels, figures, SERVER_LIMITS)]


def _median_rate(figures: Sequence[Figures]) -> float:
    return statistics.median(run["calls/s"] for run in figures)


def main() -> int:
    """Run the benchmark as the command line says."""
    options = _options()
    installed = [name for name in options.contestants if CONTESTANTS[name].is_installed]
    loads = [load for load in LOADS if load.in_flight in options.in_flight]
    cases = [(name, load) for load in loads for name in installed]
    rows = []
    with harness.run_server(harness.FAST_SERVER) as server:
        for loop in options.loop:
            runs = harness.run(measure(server, cases, options), loop)
            rows += [*make_rows(loop, runs), *make_server_row(loop, runs)]
    left_out = [name for name in options.contestants if name not in installed]
    return harness.report(options, rows, left_out)


def _options() -> argparse.Namespace:
    parser = harness.make_parser(__doc__, repeats=7)
    add = parser.add_argument
    add("--seconds", type=float, default=0.5, help="of each load (default: %(default)s)")
    most = sorted({load.in_flight for load in LOADS})
    add(
        "--in-flight",
        nargs="+",
        type=int,
        choices=most,
        default=most,
        metavar="CALLS",
        help="of the loads to run, any of %(choices)s (default: all)",
    )
    add(
        "--loop",
        nargs="+",
        choices=harness.event_loops(),
        default=harness.event_loops(),
        metavar="LOOP",
        help=f"any of {', '.join(harness.event_loops())} (default: all)",
    )
    add(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        default=list(CONTESTANTS),
        metavar="NAME",
        help=f"any of {', '.join(CONTESTANTS)} (default: all)",
    )
    return harness.parse_options(parser, seconds=0.02, loop=["asyncio"], in_flight=most[:-1])


if __name__ == "__main__":
    sys.exit(main())
