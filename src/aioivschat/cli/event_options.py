"""The event that a command is about, as its options describe it."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from aioivschat._models import RoomArn
from aioivschat._service.limiter import Quota
from aioivschat.planning import Arrivals, LiveEvent, Renewal


def event_of(options: argparse.Namespace, arns: tuple[str, ...] = ()) -> LiveEvent:
    """Return the event.

    Args:
        options: as the parser gives them.
        arns: its rooms, if they are known.

    Raises:
        InvalidConfiguration: something is out of its range, or a row of the arrivals is no row.
        OSError: the file of arrivals cannot be read.
        InvalidRequest: a room is not a room's ARN.
    """
    arrivals = _arrivals(options.arrivals)
    attendees = options.attendees or sum(arrivals.counts)
    if not attendees:
        options.parser.error("--attendees is needed, unless --arrivals names a file")
    regions = len({RoomArn.parse(arn).region for arn in arns}) or options.regions
    return LiveEvent(
        attendees=attendees,
        arrivals=arrivals,
        quota=Quota(rate=options.rate, burst=options.burst),
        prewarm=options.prewarm,
        rooms=len(arns) or options.rooms or regions,
        regions=regions,
        session_minutes=options.session_minutes,
        reconnects=options.reconnects,
        renewal=Renewal(options.renew),
        patience=options.patience,
        latency=options.latency,
    )


def _arrivals(text: str) -> Arrivals:
    if not text.endswith(".csv"):
        return Arrivals.parse(text)
    # What is no text is no number either, and is told by its line.
    with Path(text).open(encoding="utf-8-sig", errors="replace") as lines:
        return Arrivals.read(lines)


def check_plot(options: argparse.Namespace) -> None:
    """Refuse to begin what would end without its picture."""
    if options.plot is None:
        return
    if Path(options.plot).suffix.lower() not in (".svg", ".png"):
        options.parser.error("--plot: the file's name must end in .svg or .png")
    if find_spec("matplotlib") is None:
        options.parser.error("--plot needs matplotlib: pip install 'aioivschat[plot]'")
