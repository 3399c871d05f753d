"""Runs random programs, or one that a failure printed; ``python -m search.simulation -h``."""

from __future__ import annotations

import argparse
import random
import sys

from search.simulation.search import Found, read, search
from search.simulation.world import run


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m search.simulation", description=__doc__)
    parser.add_argument("program", nargs="?", help="one that a failure printed")
    parser.add_argument("--programs", type=int, default=1_000, metavar="N", help="random ones")
    parser.add_argument("--seed", type=int, help="of the random ones; default: another each time")
    parser.add_argument("--as-found", action="store_true", help="do not make a failing one smaller")
    options = parser.parse_args()
    if options.program:
        for line in run(read(options.program)).trace:
            print(*line)
        return 0
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"{options.programs} programs, seed {seed}", flush=True)
    try:
        reached = search(
            options.programs,
            seed,
            as_found=options.as_found,
            progress=lambda ran: print(f"{ran} programs", file=sys.stderr, flush=True),
        )
    except Found as found:
        print(found)
        return 1
    for what, times in sorted(reached.items()):
        print(f"{times:>9} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
