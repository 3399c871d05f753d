"""The command ``aioivschat``: tokens for a user, a file or a demo, and the engine of a fleet.

Each command is a module here, imported only when it runs: ``aioivschat onboard`` is ``onboard.py``.

Exit status: 0 if all went well, 2 if a row failed or the command was used wrongly, 1 for any other
failure, 130 after an interrupt (128 and the signal's number after another signal).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from aioivschat.cli.options import parse_options

OK, FAILED, ROWS_FAILED, USED_WRONGLY, INTERRUPTED = 0, 1, 2, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command (by default, the process's own arguments), and return its exit status."""
    options = parse_options(arguments)
    try:
        status: int = import_module(options.module).run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        from aioivschat.cli.process import say_why_it_ended

        return say_why_it_ended(error)
    return status
