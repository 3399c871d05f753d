"""How long it takes until a program can begin: the library's import, and the command's help.

Whole processes are timed, from their start to their end, and each is compared with the process of
the same round that does the least it could do.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import harness

IMPORT = (harness.Limit("of base", at_most=1.3),)
HELP = (harness.Limit("of base", at_most=1.5),)

_EMPTY = "from argparse import ArgumentParser; ArgumentParser().parse_args(['--help'])"


@dataclass(frozen=True, slots=True)
class Program:
    """A program to start.

    Args:
        code: what it is to do.
        base: the program that does the least; ``None``: it is one itself.
        limits: what is promised.
    """

    code: str
    base: str | None = None
    limits: Sequence[harness.Limit] = ()

    def run(self) -> float:
        """Return the milliseconds from its start to its end."""
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", self.code], stdout=subprocess.DEVNULL, check=True)
        return 1e3 * (time.perf_counter() - started)


PROGRAMS: Mapping[str, Program] = {
    "python": Program("pass"),
    "import aiobotocore": Program("import aiobotocore.session"),
    # Names are loaded at their first use, so the import alone would say nothing.
    "import aioivschat": Program(
        "from aioivschat import AsyncTokenService", "import aiobotocore", IMPORT
    ),
    "argparse --help": Program(_EMPTY),
    "aioivschat --help": Program(
        "from aioivschat.cli import main; main(['--help'])", "argparse --help", HELP
    ),
    "aioivschat onboard --help": Program(
        "from aioivschat.cli import main; main(['onboard', '--help'])", "argparse --help", HELP
    ),
}


def main() -> int:
    """Run what the command line asks for."""
    options = harness.parsed(harness.arguments(__doc__, repeats=41))
    for program in PROGRAMS.values():
        program.run()  # which compiles what has not been compiled yet
    runs: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for name in harness.rounds(PROGRAMS, options.repeats):
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
