"""How long a program takes to start: the library's import, and the command's help.

Whole processes are timed, from start to end. Each is compared with a base, the least that such a
program could do, in the same round.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import harness

IMPORT_LIMITS = (harness.Limit("of base", at_most=1.3),)
HELP_LIMITS = (harness.Limit("of base", at_most=1.5),)

_PARSE_HELP = "from argparse import ArgumentParser; ArgumentParser().parse_args(['--help'])"


@dataclass(frozen=True, slots=True)
class Program:
    """A program to start.

    Args:
        code: the program's code.
        base: the name of the program to compare with; ``None`` for one that is a base itself.
        limits: those of its figures.
    """

    code: str
    base: str | None = None
    limits: Sequence[harness.Limit] = ()

    def run(self) -> float:
        """Run the program, and return the milliseconds from its start to its end."""
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", self.code], stdout=subprocess.DEVNULL, check=True)
        return 1e3 * (time.perf_counter() - started)


PROGRAMS: Mapping[str, Program] = {
    "python": Program("pass"),
    "import aiobotocore": Program("import aiobotocore.session"),
    # The package loads a name at its first use: importing the package alone would load little.
    "import aioivschat": Program(
        "from aioivschat import AsyncTokenService", "import aiobotocore", IMPORT_LIMITS
    ),
    "argparse --help": Program(_PARSE_HELP),
    "aioivschat --help": Program(
        "from aioivschat.cli import main; main(['--help'])", "argparse --help", HELP_LIMITS
    ),
    "aioivschat onboard --help": Program(
        "from aioivschat.cli import main; main(['onboard', '--help'])",
        "argparse --help",
        HELP_LIMITS,
    ),
}


def main() -> int:
    """Run the benchmark as the command line says."""
    options = harness.parse_options(harness.make_parser(__doc__, repeats=41))
    if not options.quick:
        for program in PROGRAMS.values():
            program.run()  # compiles modules that are not compiled yet
    runs: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for name in harness.take_turns(PROGRAMS, options.repeats):
        runs[name].append(PROGRAMS[name].run())
    rows = []
    for name, program in PROGRAMS.items():
        figures = [{"ms": ms} for ms in runs[name]]
        if program.base is not None:
            pairs = zip(runs[name], runs[program.base], strict=True)
            figures = [{"ms": ms, "of base": ms / base} for ms, base in pairs]
        labels = {"program": name, "base": program.base or ""}
        rows.append(harness.Row.of(labels, figures, program.limits))
    return harness.report(options, rows)


if __name__ == "__main__":
    sys.exit(main())
