"""Search for inputs that break something, by atheris: the properties of ``test_*.py`` beside this.

Run it in ``tests``::

    python -m search.fuzz.run --seconds 300            # every target
    python -m search.fuzz.run attendees replies        # some
    python -m search.fuzz.run attendees FILE           # one input again

What was of interest is kept under ``--corpus`` and searched on from there. The first input that
breaks something ends its target and is left beside it: it belongs into the tests as an example.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import atheris

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))


def targets() -> dict[str, Any]:
    """Return what is searched, by name."""
    with atheris.instrument_imports(include=["aioivschat"]):
        modules = [import_module(f"search.fuzz.{name}") for name in MODULES]
    return {name: target for module in modules for name, target in module.TARGETS.items()}


def main() -> int:
    """Search one target here, or each of several in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("chosen", nargs="*", metavar="TARGET", help="by default all of them")
    parser.add_argument("--seconds", type=int, default=60, help="for each (default: 60)")
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz"), help="where inputs are kept")
    options = parser.parse_args()
    found = targets()
    chosen = options.chosen or list(found)
    inputs = [name for name in chosen if Path(name).is_file()]
    if inputs:
        for name in inputs:
            found[chosen[0]](Path(name).read_bytes())
        return 0
    unknown = set(chosen) - set(found)
    if unknown:
        parser.error(f"no target {min(unknown)}; there are {', '.join(found)}")
    if len(chosen) > 1:
        again = [
            sys.executable,
            "-m",
            "search.fuzz.run",
            f"--seconds={options.seconds}",
            "--corpus",
        ]
        ended = {
            name: subprocess.run([*again, str(options.corpus), name], check=False).returncode
            for name in chosen
        }
        broken = [name for name, status in ended.items() if status]
        print(f"{len(ended)} targets; broken: {', '.join(broken) or 'none'}")
        return 1 if broken else 0
    (name,) = chosen
    logging.disable()  # the server's words about thousands of bad requests a second
    corpus = options.corpus / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(found[name].seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    print(f"{name}: {options.seconds} s", flush=True)

    def check(data: bytes) -> None:
        try:
            found[name](data)
        except Exception:
            # What atheris leaves does not survive every end of an event loop.
            (options.corpus / f"{name}-broken").write_bytes(data)
            raise

    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={options.seconds}",
            f"-artifact_prefix={options.corpus}/{name}-",
            "-max_len=8192",
            "-timeout=30",
            "-print_final_stats=1",
            "-verbosity=0",
            str(corpus),
        ],
        check,
    )
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
