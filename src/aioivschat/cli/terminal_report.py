"""A plan and a rehearsal in a terminal: a table, and charts below it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from aioivschat.planning import CrowdOutcome, Gain, LiveEvent, Plan, Renewal
from aioivschat.planning._plan import MAX_CONNECTIONS

_Row = tuple[str, ...]
_StyledLine = tuple[str, str]  # its text, and its style for rich

_WAIT_BY_LABEL = {
    "half wait at most": "p50",
    "95 % wait at most": "p95",
    "99 % wait at most": "p99",
    "last viewer waits": "last",
    "longest wait": "longest",
}

_BAR_CHARACTERS = " ▁▂▃▄▅▆▇█"
_MAX_COLUMNS = 100


def plan_report(plan: Plan) -> str:
    """Show a plan, for people to read."""
    event, outcome = plan.event, plan.outcome
    rows = [
        ("last viewer in", f"{_in_seconds(outcome.finished)} after the doors"),
        ("earliest feasible", _in_seconds(plan.earliest)),
        *_wait_rows(outcome),
        *_count_rows(event, outcome),
        ("", ""),
        *_afterwards_rows(plan),
        ("", ""),
        *(_gain_row(outcome, gain) for gain in plan.gains),
    ]
    lines = [(event_title(event), "bold"), ("", ""), *_format_table(("", "plan"), rows)]
    lines += [("", "")] * bool(plan.gains)
    lines += _warning_lines(plan)
    lines += _draw_chart(
        "arrivals a second", outcome.timeline.arrived, outcome, height=3, style="cyan"
    )
    lines += _draw_chart(
        "tokens a second",
        outcome.timeline.tokens,
        outcome,
        height=4,
        style="green",
        least_top=event.quota.rate * event.regions,
    )
    lines += _draw_chart(
        "viewers waiting", outcome.timeline.waiting, outcome, height=6, style="yellow"
    )
    return _render_lines([*lines, *_draw_axis(outcome)])


def rehearsal_report(
    event: LiveEvent, planned: CrowdOutcome, measured: CrowdOutcome, interrupted: bool
) -> str:
    """Show what was measured beside the plan, which ends at the same second if interrupted."""
    rows = [
        (name, expected, found, _format_difference(name, planned, measured))
        for (name, expected), (_, found) in zip(
            _measured_rows(event, planned), _measured_rows(event, measured), strict=True
        )
    ]
    lines = [(event_title(event), "bold"), ("", "")]
    lines += _format_table(("", "plan", "measured", "difference"), rows)
    lines.append(("", ""))
    if interrupted:
        seconds = measured.timeline.start + len(measured.timeline.waiting)
        note = f"Interrupted in second {seconds:,}: of {event.attendees:,} viewers"
        note += f" {measured.admitted:,} were in. The plan, too, is of those who are in by then."
        lines += [(note, "red"), ("", "")]
    longer = max((planned, measured), key=lambda each: len(each.timeline.waiting))
    lines += _draw_chart(
        "viewers waiting: bars measured, dots planned",
        measured.timeline.waiting,
        longer,
        height=8,
        style="yellow",
        dots=planned.timeline.waiting,
    )
    return _render_lines([*lines, *_draw_axis(longer)])


def event_title(event: LiveEvent) -> str:
    """Describe an event in one line."""
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


def _in_seconds(number: float) -> str:
    return f"{number:,.2f} s" if number < 10 else f"{number:,.1f} s"


def _wait_rows(outcome: CrowdOutcome) -> Iterator[_Row]:
    for name, member in _WAIT_BY_LABEL.items():
        yield name, _in_seconds(getattr(outcome.waits, member)) if outcome.waits else "-"


def _count_rows(event: LiveEvent, outcome: CrowdOutcome) -> Iterator[_Row]:
    share = 100 * outcome.late / outcome.arrived if outcome.arrived else 0.0
    yield f"wait over {event.patience:g} s", f"{outcome.late:,} ({share:.0f} %)"
    yield "in within a second", f"{outcome.first_second:,}"
    if event.prewarm:
        yield "tokens prewarmed", f"{outcome.prewarmed:,} ({outcome.unused:,} unused)"
    if outcome.returned:
        yield "back before the end", f"{outcome.returned:,}"
    for name, number in outcome.failed.items():
        yield f"failed: {name}", f"{number:,}"


def _measured_rows(event: LiveEvent, outcome: CrowdOutcome) -> Iterator[_Row]:
    yield "last viewer in", _in_seconds(outcome.finished)
    yield from _wait_rows(outcome)
    yield "viewers in", f"{outcome.admitted:,}"
    yield f"wait over {event.patience:g} s", f"{outcome.late:,}"
    yield "in within a second", f"{outcome.first_second:,}"
    if event.prewarm:
        yield "tokens prewarmed", f"{outcome.prewarmed:,} ({outcome.unused:,} unused)"
    yield "throttled requests", f"{outcome.throttled:,}"
    yield "failed", f"{sum(outcome.failed.values()):,}"


def _format_difference(name: str, planned: CrowdOutcome, measured: CrowdOutcome) -> str:
    if planned.waits is None or measured.waits is None:
        return ""
    if name == "last viewer in":
        expected, found = planned.finished, measured.finished
    elif name in _WAIT_BY_LABEL:
        expected = getattr(planned.waits, _WAIT_BY_LABEL[name])
        found = getattr(measured.waits, _WAIT_BY_LABEL[name])
    else:
        return ""
    share = f" ({100 * (found - expected) / expected:+.1f} %)" if expected > 0.05 else ""
    return f"{found - expected:+.2f} s{share}"


def _afterwards_rows(plan: Plan) -> Iterator[_Row]:
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


def _gain_row(outcome: CrowdOutcome, gain: Gain) -> _Row:
    sooner = outcome.finished - gain.finished
    waits = f"95 % wait at most {_in_seconds(gain.waits.p95)}" if gain.waits else "nobody gets in"
    ending = "no sooner"
    # Gains are tried on a thinned crowd: a smaller difference may be an artefact of that.
    if sooner >= max(1.0, 0.01 * outcome.finished):
        ending = f"in {_in_seconds(gain.finished)}, {_in_seconds(sooner)} sooner"
    return f"with {gain.change}", f"last viewer {ending}; {waits}"


def _warning_lines(plan: Plan) -> list[_StyledLine]:
    event, after = plan.event, plan.afterwards
    notes = []
    if event.attendees > MAX_CONNECTIONS * event.regions:
        notes.append(
            f"More viewers than the {MAX_CONNECTIONS:,} connections that AWS allows a region "
            "unless asked for more."
        )
    if not after.fits:
        notes.append(
            f"The quota carries {after.carried:,} viewers for good, not {plan.outcome.admitted:,}."
        )
    if event.renewal is Renewal.TOKEN:
        notes.append("Give clients the session's end as tokenExpirationTime: --renew session.")
    return [(f"! {note}", "red") for note in notes] + [("", "")] * bool(notes)


# Drawing.


def _format_table(head: _Row, rows: Iterable[_Row]) -> list[_StyledLine]:
    all_rows = [head, *rows]
    widths = [max(len(row[column]) for row in all_rows) for column in range(len(head))]
    # Several columns are numbers, which are aligned to the right.
    aligned: Callable[[str, int], str] = str.rjust if len(head) > 2 else str.ljust
    lines = []
    for row in all_rows:
        cells = [row[0].ljust(widths[0])]
        cells += [aligned(cell, width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(("  ".join(cells).rstrip(), "bold" if row is head else ""))
    return lines if len(head) > 2 else lines[1:]


def _draw_chart(
    title: str,
    values: Sequence[int],
    outcome: CrowdOutcome,
    *,
    height: int,
    style: str,
    least_top: float = 1.0,
    dots: Sequence[int] = (),
) -> list[_StyledLine]:
    """Draw one quantity over the time of an outcome."""
    seconds, width = len(outcome.timeline.waiting), _chart_width()
    top = max(least_top, *values, *dots)
    bars = [value / top * height for value in _fit_to_width(values, seconds, width)]
    marks = [int(value / top * (height - 0.01)) for value in _fit_to_width(dots, seconds, width)]
    shades = _BAR_CHARACTERS if _is_unicode() else "    #####"
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


def _fit_to_width(values: Sequence[int], seconds: int, width: int) -> list[int]:
    """Return the greatest value of each column's seconds: no peak is lost."""
    if not values:
        return []
    columns: list[int] = []
    for column in range(width):
        first = column * seconds // width
        end = max(first + 1, (column + 1) * seconds // width)
        columns.append(max(values[first:end], default=0))
    return columns


def _draw_axis(outcome: CrowdOutcome) -> list[_StyledLine]:
    width, corner = _chart_width(), ("└", "─") if _is_unicode() else ("+", "-")
    start = outcome.timeline.start
    end = start + len(outcome.timeline.waiting)
    left, right = f"{start:g} s", f"{end:,.0f} s"
    middle = f"{(start + end) / 2:,.0f} s after the doors open"
    labels = f"{left}{middle:^{width - len(left) - len(right)}}{right}"
    return [(" " * 10 + corner[0] + corner[1] * width, ""), (" " * 11 + labels, "")]


def _chart_width() -> int:
    return max(40, min(_MAX_COLUMNS, shutil.get_terminal_size().columns) - 12)


def _is_unicode() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()


def _render_lines(lines: Sequence[_StyledLine]) -> str:
    """Join lines, in colour if standard output is a terminal that has any and rich is there."""
    plain = "".join(f"{text}\n" for text, _ in lines)
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return plain
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return plain
    console = Console()
    with console.capture() as captured:
        for text, style in lines:
            console.print(Text(text, style=style), soft_wrap=True)
    return captured.get()
