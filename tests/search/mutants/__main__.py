"""Puts each fault of the table into a copy of the library and runs the tests that should find it.

``cd tests && python -m search.mutants [names] [--programs N] [--seed N]``, or ``nox -s mutants``.
It copies the library that Python imports. The status is 0 if every fault was found, 1 if one was
not, and 2 if the tests do not run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import aioivschat
from search.mutants.table import MUTANTS, Mutant
from support.paths import TESTS

PACKAGE = Path(aioivschat.__file__).parent

SIMULATION = "search.simulation"

HANG_FACTOR, HANG_SECONDS = 5.0, 60.0
"""Tests hang if they take longer than so many times as without a fault, and so much more."""

_COMPLAINT = re.compile(r"after (\d+) programs \(.*?\): (.*)$", re.MULTILINE)
_OUTCOME = re.compile(r"^(\S+\.py::.+?) (PASSED|FAILED|ERROR|$)", re.MULTILINE)


class TestsDoNotRun(Exception):
    """The tests do not run, so nothing is known about a fault."""


@dataclass(frozen=True, slots=True)
class Run:
    """The outcome of running tests.

    Args:
        found: the test that failed, or the simulation's complaint; ``None`` if nothing failed.
        programs: the random programs that the simulation had run by then.
        seconds: how long the tests ran.
    """

    found: str | None
    programs: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs tests against copies of the library.

    Args:
        programs: the most random programs for each copy.
        seed: of the random programs.
    """

    programs: int
    seed: int

    def run(self, by: str, mutant: Mutant | None = None, limit: float | None = None) -> Run:
        """Run tests against the library, with a fault or without, up to the first that fails.

        Args:
            by: the simulation, or a file of tests.
            mutant: the fault.
            limit: seconds after which the tests hang.

        Raises:
            TestsDoNotRun: no test was run, or something other than a test failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder, "library", "aioivschat")
            shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
            if mutant is not None:
                mutant.put_into(package)
            environment = {
                "PYTHONPATH": str(package.parent),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONUNBUFFERED": "1",
                # A database of its own: examples that failed for another mutant would come first.
                "HYPOTHESIS_STORAGE_DIRECTORY": str(Path(folder, "hypothesis")),
            }
            started = time.monotonic()
            status, output = _run_command(self._make_command(by), environment, limit)
            seconds = time.monotonic() - started
        found, after = None, None
        if by == SIMULATION:
            complaint = _COMPLAINT.search(output)
            if status is None:
                found = "simulation (hangs)"
            elif complaint is not None:
                found, after = f"simulation: {complaint[2]}", int(complaint[1])
        else:
            tests = _OUTCOME.findall(output)
            failed = [test for test, outcome in tests if outcome in ("FAILED", "ERROR")]
            if status is None:
                found = f"{tests[-1][0] if tests else by} (hangs)"
            elif failed:
                found = failed[0]
        if status not in (0, 1, None) or (found is None) != (status == 0):
            raise TestsDoNotRun(f"{by} ended with {status}:\n{output}")
        return Run(found, after, seconds)

    def _make_command(self, by: str) -> list[str]:
        if by == SIMULATION:
            options = ["--programs", f"{self.programs}", "--seed", f"{self.seed}", "--as-found"]
            return [sys.executable, "-m", SIMULATION, *options]
        options = ["-x", "-v", "--tb=short", "-p", "no:cacheprovider"]
        return [sys.executable, "-m", "pytest", *options, f"--hypothesis-seed={self.seed}", by]


def _run_command(
    command: list[str], environment: dict[str, str], limit: float | None
) -> tuple[int | None, str]:
    """Run a command in the folder of tests; return its status, or ``None`` if it hangs."""
    try:
        done = subprocess.run(
            command,
            cwd=TESTS,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit,
        )
    except subprocess.TimeoutExpired as error:
        return None, (error.stdout or b"").decode(errors="replace")
    return done.returncode, done.stdout.decode(errors="replace")


def try_mutants(mutants: Iterable[Mutant], runner: Runner) -> list[str]:
    """Run the tests against each mutant, and print which test finds it.

    Returns:
        The names of the mutants that no test found.

    Raises:
        TestsDoNotRun: tests fail without a fault, or do not run.
    """
    survivors = []
    without: dict[str, Run] = {}
    print(f"{'fault':<37} {'programs':>8} {'seconds':>7}  found by")
    for mutant in mutants:
        for by in _tests_for(mutant):
            if by not in without:
                without[by] = runner.run(by)
                _print_run("none", without[by], by)
                if without[by].found is not None:
                    raise TestsDoNotRun(f"{by} finds something without a fault")
            run = runner.run(by, mutant, HANG_FACTOR * without[by].seconds + HANG_SECONDS)
            _print_run(mutant.name, run, by)
            if run.found is not None:
                break
        else:
            survivors.append(mutant.name)
    return survivors


def _tests_for(mutant: Mutant) -> list[str]:
    """Return the tests that should find a mutant, in the order in which they run."""
    finders = [SIMULATION] if mutant.simulated else []
    return finders if mutant.tests is None else [*finders, mutant.tests]


def _print_run(name: str, run: Run, by: str) -> None:
    after = "" if run.programs is None else f"{run.programs}"
    found_by = run.found or f"nothing: {by} is content"
    shown = textwrap.shorten(found_by, 100, placeholder=" …")
    print(f"{name:<37} {after:>8} {run.seconds:>7.1f}  {shown}", flush=True)


def main() -> int:
    """Run the command."""
    names = [mutant.name for mutant in MUTANTS]
    parser = argparse.ArgumentParser(
        prog="python -m search.mutants", description="Shows what finds each fault of the table."
    )
    parser.add_argument("names", nargs="*", metavar="name", help="of a fault; default: all")
    parser.add_argument("--programs", type=int, default=1_000, metavar="N", help="for each fault")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the programs")
    options = parser.parse_args()
    unknown = sorted({*options.names} - {*names})
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = [mutant for mutant in MUTANTS if mutant.name in (options.names or names)]
    try:
        survivors = try_mutants(chosen, Runner(options.programs, options.seed))
    except TestsDoNotRun as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} found")
    for name in survivors:
        print(f"nothing finds {name}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
