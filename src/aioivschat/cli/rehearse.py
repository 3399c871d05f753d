"""``aioivschat rehearse``: let the crowd of an event in for real, beside its plan."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from aioivschat.cli import INTERRUPTED, OK, ROWS_FAILED
from aioivschat.cli.event_options import check_plot_option, event_from_options
from aioivschat.cli.process import (
    calling_on_signals,
    check_standard_output,
    run_to_end,
    write_to_standard_output,
)
from aioivschat.cli.progress import show_progress
from aioivschat.cli.terminal_report import rehearsal_report
from aioivschat.cli.token_source import check_token_source, open_service
from aioivschat.planning import CrowdOutcome, LiveEvent, simulate
from aioivschat.planning._crowd import CrowdRun
from aioivschat.planning._plan import rehearsal_as_json, stock_for

_REFRESH_SECONDS = 0.5


def run(options: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    check_token_source(options)
    check_plot_option(options)
    check_standard_output()
    if options.aws and not options.room:
        options.parser.error("--aws needs the event's rooms: --room ARN, once for each")
    event = event_from_options(options, tuple(options.room))
    if not _confirm_spending(options, event):
        return INTERRUPTED
    rooms = tuple(options.room) or event.arns()
    planned = simulate(event, rooms)
    measured, seconds = run_to_end(_rehearse_event(options, event, rooms))
    interrupted = seconds < math.inf
    if interrupted:
        # Planned up to the same second, to be compared with what was measured until then.
        planned = simulate(event, rooms, until=seconds)
    if options.plot:
        from aioivschat.cli.plot import plot

        plot(options.plot, event, planned, measured)
    if options.json:
        shape = rehearsal_as_json(event, planned, measured, interrupted=interrupted)
        write_to_standard_output(json.dumps(shape) + "\n")
    else:
        write_to_standard_output(rehearsal_report(event, planned, measured, interrupted))
    if interrupted:
        return INTERRUPTED
    return ROWS_FAILED if measured.failed else OK


def _confirm_spending(options: argparse.Namespace, event: LiveEvent) -> bool:
    """Ask before an account's quota is spent: by requests to AWS or another https endpoint."""
    remote = options.aws or (options.endpoint_url or "").startswith("https:")
    if not remote or options.yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty() or sys.stderr is None:
        options.parser.error("this spends the account's quota: say --yes")
    seconds = event.attendees / event.quota.rate / event.regions
    print(
        f"aioivschat: this asks for {event.attendees:,} tokens, {seconds:.0f} s of the account's "
        "whole quota. Go on? [y/N] ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def _rehearse_event(
    options: argparse.Namespace, event: LiveEvent, rooms: Sequence[str]
) -> tuple[CrowdOutcome, float]:
    """Return what was measured, and the second of an interrupt (infinite without one)."""
    async with open_service(options, cache=stock_for(event), latency=event.latency) as service:
        crowd = CrowdRun(event, service, rooms)
        running = asyncio.create_task(crowd.run())

        def end(_: int) -> None:
            if running.cancelling():
                raise KeyboardInterrupt  # a second Ctrl-C ends the process without a report
            running.cancel()

        with calling_on_signals(["SIGINT"], end), _show_crowd(options, event, crowd) as show:
            interrupted = math.inf
            while not running.done():
                await asyncio.wait((running,), timeout=_REFRESH_SECONDS)
                show()
            try:
                running.result()
            except asyncio.CancelledError:
                interrupted = crowd.progress().seconds
        return crowd.outcome(), interrupted


def _show_crowd(
    options: argparse.Namespace, event: LiveEvent, crowd: CrowdRun
) -> AbstractContextManager[Callable[[], None]]:
    quota = event.quota.rate * event.regions

    def describe() -> tuple[int, str, str]:
        now = crowd.progress()
        when = f"doors in {-now.seconds:.0f} s" if now.seconds < 0 else f"{now.seconds:.0f} s"
        state = (
            f"{now.admitted:,} in, {now.waiting:,} wait (p95 {now.p95:.1f} s), "
            f"{now.rate}/s of {quota:g}, {now.throttled:,} throttled"
        )
        if now.failed:
            state += f", {now.failed:,} failed"
        return now.admitted, when, state

    return show_progress(
        describe,
        total=event.attendees,
        bar_width=20,
        quiet=options.quiet,
        without_rich="aioivschat: rehearsing; Ctrl-C ends it (a live view needs aioivschat[cli])",
    )
