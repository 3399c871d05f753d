"""What a plan and a rehearsal look like in a terminal: a table, and a chart below it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from aioivschat.planning import CONNECTIONS, Course, Gain, LiveEvent, Plan, Renewal

_Row = tuple[str, ...]
_Line = tuple[str, str]  # text and style

_WAITS = {
    "half wait at most": "p50",
    "95 % wait at most": "p95",
    "99 % wait at most": "p99",
    "last viewer waits": "last",
    "longest wait": "longest",
}

_BARS = " ▁▂▃▄▅▆▇█"
_MAX_WIDTH = 100


def plan_report(plan: Plan) -> str:
    """Return a plan for people to read."""
    event, course = plan.event, plan.course
    rows = [
        ("last viewer in", f"{_seconds(course.finished)} after the doors"),
        ("earliest feasible", _seconds(plan.earliest)),
        *_waits(course),
        *_counts(event, course),
        ("", ""),
        *_afterwards(plan),
        ("", ""),
        *(_gain(course, gain) for gain in plan.gains),
    ]
    lines = [(title(event), "bold"), ("", ""), *_table(("", "plan"), rows)]
    lines += [("", "")] * bool(plan.gains)
    lines += _notes(plan)
    lines += _panel("arrivals a second", course.timeline.arrived, course, height=3, style="cyan")
    lines += _panel(
        "tokens a second",
        course.timeline.tokens,
        course,
        height=4,
        style="green",
        least_top=event.quota.rate * event.regions,
    )
    lines += _panel("viewers waiting", course.timeline.waiting, course, height=6, style="yellow")
    return _rendered([*lines, *_axis(course)])


def rehearsal_report(event: LiveEvent, planned: Course, measured: Course, interrupted: bool) -> str:
    """Return what was measured, and the plan beside it, for people to read.

    Args:
        event: the event.
        planned: the plan; of an interrupted rehearsal, up to the same moment.
        measured: what was measured.
        interrupted: whether somebody stopped it.
    """
    rows = [
        (name, expected, found, _difference(name, planned, measured))
        for (name, expected), (_, found) in zip(
            _measures(event, planned), _measures(event, measured), strict=True
        )
    ]
    lines = [(title(event), "bold"), ("", "")]
    lines += _table(("", "plan", "measured", "difference"), rows)
    lines.append(("", ""))
    if interrupted:
        seconds = measured.timeline.start + len(measured.timeline.waiting)
        note = f"Interrupted in second {seconds:,}: of {event.attendees:,} viewers"
        note += f" {measured.admitted:,} were in. The plan, too, is of those who are in by then."
        lines += [(note, "red"), ("", "")]
    longer = max((planned, measured), key=lambda each: len(each.timeline.waiting))
    lines += _panel(
        "viewers waiting: bars measured, dots planned",
        measured.timeline.waiting,
        longer,
        height=8,
        style="yellow",
        dots=planned.timeline.waiting,
    )
    return _rendered([*lines, *_axis(longer)])


def title(event: LiveEvent) -> str:
    """Return one line about an event."""
    arrivals = event.arrivals
    when = {
        "at-once": "all at once",
        "uniform": f"evenly over {arrivals.seconds:g} s",
        "ramp": f"more and more over {arrivals.seconds:g} s",
        "curve": f"as recorded over {len(arrivals.counts):,} s",
    }[arrivals.shape]
    rooms = f"{event.rooms} room{'s' * (event.rooms > 1)}"
    regions = f"{event.regions} region{'s' * (event.regions > 1)}"
    ahead = f", prewarmed for {event.prewarm:g} s" if event.prewarm else ""
    return (
        f"{event.attendees:,} attendees {when}; {rooms} in {regions}, {event.quota.rate:g} tokens "
        f"a second{' each' * (event.regions > 1)}{ahead}"
    )


def _seconds(number: float) -> str:
    return f"{number:,.2f} s" if number < 10 else f"{number:,.1f} s"


def _waits(course: Course) -> Iterator[_Row]:
    for name, member in _WAITS.items():
        yield name, _seconds(getattr(course.waits, member)) if course.waits else "-"


def _counts(event: LiveEvent, course: Course) -> Iterator[_Row]:
    share = 100 * course.late / course.arrived if course.arrived else 0.0
    yield f"wait over {event.patience:g} s", f"{course.late:,} ({share:.0f} %)"
    yield "in within a second", f"{course.first_second:,}"
    if event.prewarm:
        yield "tokens prewarmed", f"{course.prewarmed:,} ({course.unused:,} unused)"
    if course.returned:
        yield "back before the end", f"{course.returned:,}"
    for name, number in course.failed.items():
        yield f"failed: {name}", f"{number:,}"


def _measures(event: LiveEvent, course: Course) -> Iterator[_Row]:
    yield "last viewer in", _seconds(course.finished)
    yield from _waits(course)
    yield "viewers in", f"{course.admitted:,}"
    yield f"wait over {event.patience:g} s", f"{course.late:,}"
    yield "in within a second", f"{course.first_second:,}"
    if event.prewarm:
        yield "tokens prewarmed", f"{course.prewarmed:,} ({course.unused:,} unused)"
    yield "throttled requests", f"{course.throttled:,}"
    yield "failed", f"{sum(course.failed.values()):,}"


def _difference(name: str, planned: Course, measured: Course) -> str:
    if planned.waits is None or measured.waits is None:
        return ""
    if name == "last viewer in":
        expected, found = planned.finished, measured.finished
    elif name in _WAITS:
        expected = getattr(planned.waits, _WAITS[name])
        found = getattr(measured.waits, _WAITS[name])
    else:
        return ""
    share = f" ({100 * (found - expected) / expected:+.1f} %)" if expected > 0.05 else ""
    return f"{found - expected:+.2f} s{share}"


def _afterwards(plan: Plan) -> Iterator[_Row]:
    after = plan.afterwards
    every = after.renewed_after
    often = f"{every / 60:g} min" if every >= 60 else f"{every:g} s"
    mean = after.reconnects + after.renewals
    yield "then: reconnects", f"{after.reconnects:,.1f} tokens a second"
    yield "then: renewals", f"{after.renewals:,.1f} tokens a second, {often} after each token"
    yield (
        "then: in all",
        f"{100 * mean / after.quota:,.0f} % of the quota, {100 * after.peak / after.quota:,.0f} % "
        "at most",
    )
    yield "the quota carries", f"{after.carried:,} viewers for good"


def _gain(course: Course, gain: Gain) -> _Row:
    sooner = course.finished - gain.finished
    waits = f"95 % wait at most {_seconds(gain.waits.p95)}" if gain.waits else "nobody gets in"
    ending = "no sooner"
    # Less than that is the thinness of the crowd that it was tried on.
    if sooner >= max(1.0, 0.01 * course.finished):
        ending = f"in {_seconds(gain.finished)}, {_seconds(sooner)} sooner"
    return f"with {gain.change}", f"last viewer {ending}; {waits}"


def _notes(plan: Plan) -> list[_Line]:
    event, after = plan.event, plan.afterwards
    notes = []
    if event.attendees > CONNECTIONS * event.regions:
        notes.append(
            f"More viewers than the {CONNECTIONS:,} connections that AWS allows a region unless "
            "asked for more."
        )
    if not after.fits:
        notes.append(
            f"The quota carries {after.carried:,} viewers for good, not {plan.course.admitted:,}."
        )
    if event.renewal is Renewal.TOKEN:
        notes.append("Give clients the session's end as tokenExpirationTime: --renew session.")
    return [(f"! {note}", "red") for note in notes] + [("", "")] * bool(notes)


# Drawing, by rich or without.


def _table(head: _Row, rows: Iterable[_Row]) -> list[_Line]:
    all_rows = [head, *rows]
    widths = [max(len(row[column]) for row in all_rows) for column in range(len(head))]
    # With several columns of numbers, each is right-aligned.
    aligned: Callable[[str, int], str] = str.rjust if len(head) > 2 else str.ljust
    lines = []
    for row in all_rows:
        cells = [row[0].ljust(widths[0])]
        cells += [aligned(cell, width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(("  ".join(cells).rstrip(), "bold" if row is head else ""))
    return lines if len(head) > 2 else lines[1:]


def _panel(
    title: str,
    values: Sequence[int],
    course: Course,
    *,
    height: int,
    style: str,
    least_top: float = 1.0,
    dots: Sequence[int] = (),
) -> list[_Line]:
    """Draw one quantity over time, on the time of a course."""
    seconds, width = len(course.timeline.waiting), _chart_width()
    top = max(least_top, *values, *dots)
    bars = [value / top * height for value in _stretched(values, seconds, width)]
    marks = [int(value / top * (height - 0.01)) for value in _stretched(dots, seconds, width)]
    shades = _BARS if _is_unicode() else "    #####"
    mark, edge = ("•", "┤") if _is_unicode() else ("o", "|")
    lines = [(title, "bold")]
    for level in reversed(range(height)):
        cells = [shades[min(8, max(0, round(8 * (bar - level))))] for bar in bars]
        for column, at in enumerate(marks):
            if at == level:
                cells[column] = mark
        label = f"{top:,.0f}" if level == height - 1 else "0" if level == 0 else ""
        lines.append((f"{label:>9} {edge}{''.join(cells)}".rstrip(), style))
    return lines


def _stretched(values: Sequence[int], seconds: int, width: int) -> list[int]:
    """Return a value for each column: the greatest of its seconds, so that no peak is lost."""
    if not values:
        return []
    columns: list[int] = []
    for column in range(width):
        first = column * seconds // width
        end = max(first + 1, (column + 1) * seconds // width)
        part = values[first:end]
        columns.append(max(part, default=0))
    return columns


def _axis(course: Course) -> list[_Line]:
    width, corner = _chart_width(), ("└", "─") if _is_unicode() else ("+", "-")
    start = course.timeline.start
    end = start + len(course.timeline.waiting)
    left, right = f"{start:g} s", f"{end:,.0f} s"
    middle = f"{(start + end) / 2:,.0f} s after the doors open"
    labels = f"{left}{middle:^{width - len(left) - len(right)}}{right}"
    return [(" " * 10 + corner[0] + corner[1] * width, ""), (" " * 11 + labels, "")]


def _chart_width() -> int:
    return max(40, min(_MAX_WIDTH, shutil.get_terminal_size().columns) - 12)


def _is_unicode() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()


def _rendered(lines: Iterable[_Line]) -> str:
    """Return lines in colour, if the terminal has any and rich is there."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return "".join(f"{text}\n" for text, _ in lines)
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return "".join(f"{text}\n" for text, _ in lines)
    console = Console()
    with console.capture() as captured:
        for text, style in lines:
            console.print(Text(text, style=style), soft_wrap=True)
    return captured.get()
