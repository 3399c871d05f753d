"""The upstream of the soak's service, as a process: an emulator behind the fault proxy.

Faults of the network and of the emulator change all the time. Commands are read from standard
input, one a line; each is answered with one line of JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any, TextIO

from aioivschat.emulator import Answer, Emulator, EmulatorServer, Fault, FaultKind
from aioivschat.emulator._wire import Outcome, Request
from support.fault_proxy import HOLE, NONE, End, FaultProxy, Toxics

_SPELL = 0.2, 1.2
"""Seconds from one change of faults to the next."""

_THROTTLES = (FaultKind.THROTTLE_JSON, FaultKind.THROTTLE_HTML, FaultKind.THROTTLE_EMPTY)
_REFUSED = (
    *_THROTTLES,
    FaultKind.ERROR_500,
    FaultKind.ERROR_503,
    FaultKind.RESET,
    FaultKind.BLACK_HOLE,
)
_SPOILT = (
    FaultKind.SLOW,
    FaultKind.TRUNCATE,
    FaultKind.EMPTY_OBJECT,
    FaultKind.MISSING_TOKEN,
    FaultKind.MISSING_EXPIRY,
    FaultKind.NAIVE_EXPIRY,
    FaultKind.PAST_EXPIRY,
    FaultKind.GARBAGE,
)


def digest(token: str) -> str:
    """Return what stands for a token in the logs."""
    return hashlib.blake2b(token.encode(), digest_size=8).hexdigest()


class RecordingEmulator(Emulator):
    """Logs each token that it sends, with its user.

    Args:
        book: the log, a line of JSON for each answer that has a token.
        settings: those of any emulator.
    """

    def __init__(self, book: TextIO, **settings: Any) -> None:
        super().__init__(**settings)
        self._book = book

    def respond(self, request: Request) -> Outcome:
        """Answer as any emulator does, and log the token."""
        outcome = super().respond(request)
        if isinstance(outcome, Answer) and outcome.status == 200:
            try:
                token = json.loads(outcome.body)["token"]
            except (ValueError, KeyError):
                token = None
            if token is not None:
                line = {"token": digest(token), "user": json.loads(request.body)["userId"]}
                self._book.write(json.dumps(line) + "\n")
        return outcome


class Weather:
    """Random faults of network and service, from ``storm`` to ``calm``.

    Args:
        proxy: the network.
        emulator: the service.
        rng: of all that is random.
    """

    def __init__(self, proxy: FaultProxy, emulator: Emulator, rng: random.Random) -> None:
        self._proxy = proxy
        self._emulator = emulator
        self._rng = rng
        self._task: asyncio.Task[None] | None = None

    def storm(self) -> None:
        """Begin to cause faults."""
        self._task = asyncio.create_task(self._change())

    async def calm(self) -> None:
        """End all faults; connections in a black hole are reset."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self._proxy.calm()
        self._emulator.clear_faults()
        self._proxy.end(End.RESET)

    async def _change(self) -> None:
        rng, proxy = self._rng, self._proxy
        while True:
            for way in ("up", "down"):
                setattr(proxy, way, self._toxics() if rng.random() < 0.4 else NONE)
            if rng.random() < 0.1:
                proxy.end(rng.choice(list(End)[:3]))
            if rng.random() < 0.5:
                # Not so many throttles that the limiter takes others for most of the quota's users.
                kind = rng.choice(rng.choice((_REFUSED, _SPOILT)))
                self._emulator.fail_next(
                    Fault(
                        kind,
                        times=rng.randint(1, 3 if kind in _THROTTLES else 8),
                        retry_after=rng.choice((None, None, "0", "1")),
                        latency=rng.choice((0.0, 0.0, 0.3)),
                    )
                )
            await asyncio.sleep(rng.uniform(*_SPELL))

    def _toxics(self) -> Toxics:
        rng = self._rng
        match rng.randrange(5):
            case 0:
                return Toxics(latency=rng.uniform(0, 0.1), jitter=rng.uniform(0, 0.1))
            case 1:
                return Toxics(bandwidth=rng.uniform(5_000, 50_000))
            case 2:
                return Toxics(slice=rng.randint(20, 400), pause=rng.uniform(0, 0.005))
            case 3:
                # Some answers pass before, so that connections end in the middle of one.
                return Toxics(limit=rng.randrange(3_000), end=rng.choice(list(End)))
            case _:
                return HOLE


async def run(book: Path, seed: int, life: float) -> None:
    """Serve until standard input ends.

    Args:
        book: the file to write tokens to.
        seed: of all that is random.
        life: seconds that a token lives.
    """
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    with book.open("w") as file:
        emulator = RecordingEmulator(file, quota="bucket:200:20", latency=0.005, token_life=life)
        async with EmulatorServer(emulator) as server, FaultProxy(server.url, seed) as proxy:
            weather = Weather(proxy, emulator, random.Random(seed))
            print(json.dumps(proxy.url), flush=True)
            while command := (await commands.readline()).decode().strip():
                match command:
                    case "storm":
                        weather.storm()
                    case "calm":
                        await weather.calm()
                    case "cut":
                        proxy.end(End.RESET)
                counts = emulator.counts()
                print(
                    json.dumps({"requests": counts.requests, "minted": counts.minted}), flush=True
                )
            await weather.calm()
    transport.close()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
