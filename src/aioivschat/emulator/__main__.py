"""``python -m aioivschat.emulator``: the emulator's server as a process of its own.

When it is ready, it prints one line of JSON,
``{"url": "http://127.0.0.1:PORT", "edge_url": "ws://127.0.0.1:PORT"}``, and serves until SIGINT or
SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import get_args

from ._faults import Fault, FaultKind
from ._model import Emulator
from ._quota import QuotaShape
from ._settings import Refusal
from .server import ThreadedEmulatorServer

_POLL_SECONDS = 1.0
"""On Windows no signal is heard before a wait ends."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM, with the arguments of the process by default; return 0.

    Raises:
        SystemExit: the arguments are not valid, or the address cannot be listened on.
    """
    parser = _make_parser()
    options = vars(parser.parse_args(arguments))
    faults = options.pop("fault")
    names = ("host", "port", "verify_signatures")
    server_options = {name: options.pop(name) for name in names}
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        emulator = Emulator(**options)
        emulator.fail_next(*faults)
        server = ThreadedEmulatorServer(emulator, **server_options)
        with server:
            urls = {"url": server.url, "edge_url": server.edge_url}
            sys.stdout.write(json.dumps(urls) + "\n")
            sys.stdout.flush()
            while not stopped.wait(_POLL_SECONDS):
                pass
    except (ValueError, OSError, OverflowError) as error:  # OverflowError: no such port
        parser.error(str(error))
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aioivschat.emulator", description="A local Amazon IVS Chat."
    )
    add = parser.add_argument
    add_seconds = partial(add, type=float, metavar="SECONDS")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=0, help="port to listen on (default: a free one)")
    add(
        "--quota",
        type=QuotaShape.parse,
        default="bucket:200:200",
        metavar="SHAPE",
        help="bucket:RATE:SIZE, fixed:RATE, sliding:RATE or unlimited (default: %(default)s)",
    )
    add_seconds("--latency", default=0.0, help="before every answer")
    add_seconds("--jitter", default=0.0, help="up to so much more latency")
    add_seconds("--token-life", default=60.0, help="default: %(default)s")
    add_seconds(
        "--minute",
        default=60.0,
        help="how long a minute of session duration lasts (default: %(default)s)",
    )
    add_seconds("--clock-skew", default=0.0, help="how far ahead the service's clock is")
    add(
        "--no-any-room",
        dest="any_room",
        action="store_false",
        help="make tokens only for rooms that were created",
    )
    add(
        "--refusal",
        choices=get_args(Refusal),
        default="http",
        help="how the chat edge refuses a token: 403, a close frame, or an ERROR and a close frame",
    )
    add("--verify-signatures", action="store_true", help="for the credentials testing/testing")
    add(
        "--fault",
        type=Fault.parse,
        action="append",
        default=[],
        metavar="KIND[:TIMES]",
        help=f"queue a fault; 0 times for ever; kinds: {', '.join(FaultKind)}",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
