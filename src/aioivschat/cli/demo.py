"""``aioivschat demo``: a page with two people in one chat room."""

from __future__ import annotations

import argparse
import json
import os
import sys
import webbrowser
from threading import Thread

from aioivschat.cli import OK
from aioivschat.cli.process import run_to_end, say, write_to_standard_output
from aioivschat.cli.token_source import session_without_configuration
from aioivschat.demo.server import run_demo


def run(options: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""

    def ready(url: str) -> None:
        say(f"aioivschat: the demo is at {url} (Ctrl-C ends it)")
        # For a program that started the demo: JSON, as the other commands write it.
        if sys.stdout is not None and not sys.stdout.isatty():
            write_to_standard_output(json.dumps({"url": url}) + "\n")
        if not options.no_open and sys.stderr is not None and sys.stderr.isatty():
            _open_in_browser(url)

    session = session_without_configuration()
    run_to_end(
        run_demo(session, host=options.host, port=options.port, rate=options.rate, ready=ready)
    )
    return OK


def _open_in_browser(url: str) -> None:
    # Without a display, the only browser may be one that takes over the terminal.
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        return
    # In a thread, as opening some browsers lasts until they end.
    Thread(target=webbrowser.open, args=[url], daemon=True).start()
