"""The event that the options of ``plan`` and ``rehearse`` describe."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from aioivschat._models import RoomArn
from aioivschat._service.pace import Quota
from aioivschat.planning import Arrivals, LiveEvent, Renewal


def event_from_options(options: argparse.Namespace, arns: tuple[str, ...] = ()) -> LiveEvent:
    """Return the event that options describe; ``arns`` are its rooms, if they are known."""
    arrivals = _read_arrivals(options.arrivals)
    attendees = options.attendees or sum(arrivals.counts)
    if not attendees:
        options.parser.error("--attendees is needed, unless --arrivals names a file")
    regions = len({RoomArn.parse(arn).region for arn in arns}) or options.regions
    return LiveEvent(
        attendees=attendees,
        arrivals=arrivals,
        quota=Quota(rate=options.rate, burst=options.burst, learnt=options.learnt),
        prewarm=options.prewarm,
        rooms=len(arns) or options.rooms or regions,
        regions=regions,
        session_minutes=options.session_minutes,
        reconnects=options.reconnects,
        renewal=Renewal(options.renew),
        patience=options.patience,
        latency=options.latency,
    )


def _read_arrivals(text: str) -> Arrivals:
    if not text.endswith(".csv"):
        return Arrivals.parse(text)
    # Bytes that are no text become characters that are no number: the error names their line.
    with Path(text).open(encoding="utf-8-sig", errors="replace") as lines:
        return Arrivals.read(lines)


def check_plot_option(options: argparse.Namespace) -> None:
    """End the process, as the parser does, if ``--plot`` cannot be drawn."""
    if options.plot is None:
        return
    if Path(options.plot).suffix.lower() not in (".svg", ".png"):
        options.parser.error("--plot: the file's name must end in .svg or .png")
    if find_spec("matplotlib") is None:
        options.parser.error("--plot needs matplotlib: pip install 'aioivschat[plot]'")
