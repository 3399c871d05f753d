"""What the ``onboard`` command costs, and what it survives.

``cost``: processor time of the whole command, its start included, against that of the same calls
in a bare loop: as many tasks as the command has calls in flight take turns at a list of requests
that are ready. ``memory``: the most that it takes for many lines. ``pace``: how long it takes when
the quota is what limits it. ``kills``: it is killed at random moments and run again until it ends;
``twice`` are attendees with two lines, ``again`` are tokens that were minted and not written,
beside what the command says that they are at most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import harness
from aioivschat import AsyncTokenService, Quota, TokenRequest

CAPABILITIES = ("SEND_MESSAGE",)
BARE, COMMAND = "bare loop", "onboard"
COST = (harness.Limit("of bare", at_most=1.3),)
MEMORY = (harness.Limit("MB at most", at_most=150.0, always=True),)
NOBODY = harness.Limit("lost", at_most=0.0, always=True)
PACE = (harness.Limit("of lines / rate", at_most=1.03), NOBODY)
KILLS = (
    NOBODY,
    harness.Limit("twice", at_most=0.0, always=True),
    harness.Limit("uncounted", at_most=0.0, always=True),
)

_RATE = 200.0
_UNLIMITED = 50_000.0  # more than a process can send
_IN_FLIGHT = 400
_KILLED_WITHIN = 1 / 3  # of the time that a job takes


def user(number: int) -> str:
    """Return the id of one of many viewers."""
    return f"viewer-{number}"


def write_attendees(path: Path, lines: int) -> None:
    """Write a file of so many attendees."""
    with path.open("w") as file:
        for number in range(lines):
            row = {"room": harness.ROOM, "user": user(number), "capabilities": CAPABILITIES}
            file.write(json.dumps(row) + "\n")


class Job:
    """The command on a file, in a folder.

    Args:
        folder: where its files are.
        url: the endpoint.
        lines: attendees.
        options: more of the command line.
    """

    def __init__(self, folder: Path, url: str, lines: int, *options: str) -> None:
        self.output = folder / "tokens.jsonl"
        self.lines = lines
        write_attendees(folder / "attendees.jsonl", lines)
        self._command = [
            *(sys.executable, "-m", "aioivschat", "onboard", str(folder / "attendees.jsonl")),
            *("--output", str(self.output), "--stream", "--endpoint-url", url, *options),
        ]
        self._environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }

    def start(self) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            self._command, env=self._environment, stderr=subprocess.PIPE, text=True
        )

    def run(self) -> tuple[str, resource.struct_rusage]:
        """Run the command to its end; return what it said last, and what it used."""
        with self.start() as process:
            assert process.stderr is not None
            said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(said)
        return said, usage

    def attendees(self) -> Counter[str]:
        """Return how many tokens each attendee got."""
        with self.output.open() as file:
            lines = map(json.loads, file)
            return Counter(line["user"] for line in lines if "token" in line)

    def lost(self) -> int:
        """Return how many attendees got none."""
        return self.lines - len(self.attendees())


# What it costs.


async def bare_loop(url: str, lines: int) -> float:
    """Return the processor time of so many calls."""
    async with AsyncTokenService(
        session=harness.session(), endpoint_url=url, quota=Quota(rate=_UNLIMITED)
    ) as tokens:
        requests = iter(
            [TokenRequest(harness.ROOM, user(number), CAPABILITIES) for number in range(lines)]
        )

        async def visit() -> None:
            for request in requests:
                await tokens.issue(request, fresh=True)

        started = time.process_time()
        await asyncio.gather(*(visit() for _ in range(_IN_FLIGHT)))
        return time.process_time() - started


def command(url: str, lines: int) -> tuple[float, float]:
    """Return the processor time of the command, in seconds, and its memory at most, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        fast = ("--rate", f"{_UNLIMITED:.0f}", "--in-flight", str(_IN_FLIGHT))
        job = Job(Path(folder), url, lines, *fast)
        _, usage = job.run()
        if job.lost():
            raise RuntimeError(f"{job.lost()} attendees have no token")
        kibibytes = usage.ru_maxrss
        return usage.ru_utime + usage.ru_stime, kibibytes * 1024 / 1e6


def costs(url: str, lines: int, repeats: int) -> list[harness.Row]:
    """Measure both ways, in turns."""
    runs: dict[str, list[float]] = {BARE: [], COMMAND: []}
    for name in harness.rounds(runs, repeats):
        seconds = command(url, lines)[0] if name == COMMAND else asyncio.run(bare_loop(url, lines))
        runs[name].append(seconds)
    limits: Mapping[str, Sequence[harness.Limit]] = {COMMAND: COST}
    return [
        harness.Row.of(
            {"part": "cost", "case": name},
            [
                {"µs per token": 1e6 * own / lines, "of bare": own / bare}
                for own, bare in zip(seconds, runs[BARE], strict=True)
            ],
            limits.get(name, ()),
        )
        for name, seconds in runs.items()
    ]


# How long it takes, and what it survives.


def pace(url: str, lines: int) -> dict[str, float]:
    """Let the quota limit it; the seconds are those that the command tells."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), url, lines)
        started = time.monotonic()
        said, _ = job.run()
        whole = time.monotonic() - started
        told = re.search(r" failed in ([\d.]+) s", said)
        assert told is not None
        possible = lines / _RATE
        return {
            "of lines / rate": float(told[1]) / possible,
            "start included": whole / possible,
            "lost": job.lost(),
        }


def kills(server: harness.Server, lines: int, times: int) -> dict[str, float]:
    """Kill jobs at random moments, so many times over all of them, and let each one end."""
    randomly = random.Random(0)
    longest = _KILLED_WITHIN * lines / _RATE
    lost = twice = again = counted = uncounted = killed = 0
    while killed < times:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = str(Path(folder) / "checkpoint")
            job = Job(Path(folder), server.url, lines, "--resume", checkpoint)
            before = server.counts()["minted"]
            while killed < times and _was_killed(job, randomly.uniform(0, longest)):
                killed += 1
            said, _ = job.run()
            attendees = job.attendees()
            lost += lines - len(attendees)
            twice += sum(tokens - 1 for tokens in attendees.values())
            minted_again = server.counts()["minted"] - before - lines
            told = re.search(r"at most ([\d,]+) tokens were minted twice", said)
            at_most = int(told[1].replace(",", "")) if told else 0
            again += minted_again
            counted += at_most
            uncounted += max(0, minted_again - at_most)
    return {
        "kills": killed,
        "lost": lost,
        "twice": twice,
        "again": again,
        "again at most": counted,
        "uncounted": uncounted,
    }


def _was_killed(job: Job, seconds: float) -> bool:
    """Start a run and kill it after so many seconds; tell whether that ended it."""
    with job.start() as process:
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


def main() -> int:
    """Run what the command line asks for."""
    options = _options()
    unlimited, quota = ("--quota", "unlimited"), ("--quota", f"bucket:{_RATE:g}:{_RATE:g}")
    rows = []
    with harness.server((*harness.EMULATOR, *unlimited)) as server:
        rows += costs(server.url, options.lines, options.repeats)
    with harness.server(harness.FAST) as server:
        _, megabytes = command(server.url, options.many)
        labels = {"part": "memory", "case": f"{options.many} lines"}
        rows.append(harness.Row.of(labels, [{"MB at most": megabytes}], MEMORY))
    paces = []
    for _ in range(options.repeats):
        with harness.server((*harness.EMULATOR, *quota)) as server:
            paces.append(pace(server.url, options.attendees))
    rows.append(harness.Row.of({"part": "pace", "case": f"{_RATE:g} a second"}, paces, PACE))
    with harness.server((*harness.EMULATOR, *quota)) as server:
        survived = kills(server, options.attendees, options.kills)
    rows.append(harness.Row.of({"part": "kills", "case": "and run again"}, [survived], KILLS))
    return harness.report(options, rows)


def _options() -> argparse.Namespace:
    parser = harness.arguments(__doc__, repeats=3)
    add = parser.add_argument
    add("--lines", type=int, default=100_000, help="whose cost is measured")
    add("--many", type=int, default=1_000_000, help="whose memory is measured")
    add("--attendees", type=int, default=2000, help="for whom there is a quota")
    add("--kills", type=int, default=50, help="over as many jobs as it takes")
    return harness.parsed(parser, lines=200, many=200, attendees=40, kills=2)


if __name__ == "__main__":
    sys.exit(main())
