"""The cost of the ``onboard`` command, and what remains after it is killed.

``cost``: processor time of the whole command, its start included, against the same calls in a bare
loop, where as many tasks as the command has calls in flight share a list of requests. ``memory``:
the most memory for many lines. ``pace``: the time if the quota is the limit. ``kills``: the command
is killed at random moments and run again until it ends; ``twice`` counts attendees with two lines,
``again`` tokens that were minted but not written, ``again at most`` what the command reports.
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
COST_LIMITS = (harness.Limit("of bare", at_most=1.3),)
MEMORY_LIMITS = (harness.Limit("MB at most", at_most=150.0, always=True),)
NOBODY_LOST = harness.Limit("lost", at_most=0.0, always=True)
PACE_LIMITS = (harness.Limit("of lines / rate", at_most=1.03), NOBODY_LOST)
KILL_LIMITS = (
    NOBODY_LOST,
    harness.Limit("twice", at_most=0.0, always=True),
    harness.Limit("uncounted", at_most=0.0, always=True),
)

_RATE_PER_SECOND = 200.0
_UNLIMITED = 50_000.0  # requests a second, more than a process can send
_IN_FLIGHT = 400
_KILLED_WITHIN = 1 / 3  # of a job's time


def make_user_id(number: int) -> str:
    """Return the id of one of many viewers."""
    return f"viewer-{number}"


def write_attendees(path: Path, lines: int) -> None:
    """Write a file of so many attendees."""
    with path.open("w") as file:
        for number in range(lines):
            row = {"room": harness.ROOM, "user": make_user_id(number), "capabilities": CAPABILITIES}
            file.write(json.dumps(row) + "\n")


class Job:
    """The command on a file of attendees.

    Args:
        folder: for the files.
        url: the endpoint.
        lines: the number of attendees.
        options: further arguments of the command line.
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
        """Run the command to its end; return its messages and the resources that it used."""
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
        """Return how many attendees got no token."""
        return self.lines - len(self.attendees())


# The cost.


async def measure_bare_loop(url: str, lines: int) -> float:
    """Return the processor time of so many calls."""
    async with AsyncTokenService(
        session=harness.make_session(), endpoint_url=url, quota=Quota(rate=_UNLIMITED)
    ) as tokens:
        requests = iter(
            [
                TokenRequest(harness.ROOM, make_user_id(number), CAPABILITIES)
                for number in range(lines)
            ]
        )

        async def visit() -> None:
            for request in requests:
                await tokens.issue(request, fresh=True)

        started = time.process_time()
        await asyncio.gather(*(visit() for _ in range(_IN_FLIGHT)))
        return time.process_time() - started


def measure_command(url: str, lines: int) -> tuple[float, float]:
    """Return the processor time of the command, in seconds, and its memory at most, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        fast = ("--rate", f"{_UNLIMITED:.0f}", "--in-flight", str(_IN_FLIGHT))
        job = Job(Path(folder), url, lines, *fast)
        _, usage = job.run()
        if job.lost():
            raise RuntimeError(f"{job.lost()} attendees have no token")
        kibibytes = usage.ru_maxrss
        return usage.ru_utime + usage.ru_stime, kibibytes * 1024 / 1e6


def measure_costs(url: str, lines: int, repeats: int) -> list[harness.Row]:
    """Measure the bare loop and the command, in turns."""
    runs: dict[str, list[float]] = {BARE: [], COMMAND: []}
    for name in harness.take_turns(runs, repeats):
        seconds = (
            measure_command(url, lines)[0]
            if name == COMMAND
            else asyncio.run(measure_bare_loop(url, lines))
        )
        runs[name].append(seconds)
    limits: Mapping[str, Sequence[harness.Limit]] = {COMMAND: COST_LIMITS}
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


# The time, and the kills.


def measure_pace(url: str, lines: int) -> dict[str, float]:
    """Measure the command's time by its own message, with the quota as the limit."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), url, lines)
        started = time.monotonic()
        said, _ = job.run()
        whole = time.monotonic() - started
        told = re.search(r" failed in ([\d.]+) s", said)
        assert told is not None
        possible = lines / _RATE_PER_SECOND
        return {
            "of lines / rate": float(told[1]) / possible,
            "start included": whole / possible,
            "lost": job.lost(),
        }


def measure_kills(server: harness.Server, lines: int, times: int) -> dict[str, float]:
    """Kill jobs at random moments, ``times`` times in all, and let each job end after its kills."""
    randomly = random.Random(0)
    longest = _KILLED_WITHIN * lines / _RATE_PER_SECOND
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
    """Start a run and kill it after so many seconds; return whether it still ran by then."""
    with job.start() as process:
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


def main() -> int:
    """Run the benchmark as the command line says."""
    options = _options()
    quota = f"bucket:{_RATE_PER_SECOND:g}:{_RATE_PER_SECOND:g}"
    with harness.run_server(harness.FAST_SERVER) as server:
        _, megabytes = measure_command(server.url, options.many)
    paces = []
    with harness.run_server() as server:
        server.prepare("unlimited", 0.0)
        rows = measure_costs(server.url, options.lines, options.repeats)
        for _ in range(options.repeats):
            server.prepare(quota, 0.0)
            paces.append(measure_pace(server.url, options.attendees))
        server.prepare(quota, 0.0)
        survived = measure_kills(server, options.attendees, options.kills)
    labels = {"part": "memory", "case": f"{options.many} lines"}
    rows.append(harness.Row.of(labels, [{"MB at most": megabytes}], MEMORY_LIMITS))
    rows.append(
        harness.Row.of(
            {"part": "pace", "case": f"{_RATE_PER_SECOND:g} a second"}, paces, PACE_LIMITS
        )
    )
    rows.append(harness.Row.of({"part": "kills", "case": "and run again"}, [survived], KILL_LIMITS))
    return harness.report(options, rows)


def _options() -> argparse.Namespace:
    parser = harness.make_parser(__doc__, repeats=3)
    add = parser.add_argument
    add("--lines", type=int, default=100_000, help="whose cost is measured")
    add("--many", type=int, default=1_000_000, help="whose memory is measured")
    add("--attendees", type=int, default=2000, help="for whom there is a quota")
    add("--kills", type=int, default=50, help="over as many jobs as it takes")
    return harness.parse_options(parser, lines=200, many=200, attendees=40, kills=1)


if __name__ == "__main__":
    sys.exit(main())
