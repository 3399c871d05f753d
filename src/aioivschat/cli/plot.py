"""A plan or a rehearsal as a picture, by matplotlib."""

from __future__ import annotations

from io import BytesIO
from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from aioivschat.cli.terminal_report import title
from aioivschat.planning import Course, LiveEvent

_ARRIVED, _ADMITTED, _WAITING, _QUOTA = "#0072b2", "#009e73", "#d55e00", "#666666"
"""Colours that people of any colour vision tell apart (Okabe and Ito's)."""


def plot(path: str, event: LiveEvent, planned: Course, measured: Course | None = None) -> None:
    """Write a picture: viewers over time above, tokens a second against the quota below.

    Args:
        path: the file; ``.svg`` or ``.png``.
        event: the event.
        planned: how its doors fare by the plan.
        measured: how they fared; the plan is then drawn in dashes beside it.
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    viewers, tokens = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    if measured is None:
        _draw(viewers, tokens, planned)
    else:
        # Broad and pale behind what was measured, so that both are seen where they agree.
        _draw(viewers, tokens, planned, "plan: ", linewidth=6, alpha=0.3)
        _draw(viewers, tokens, measured)
    quota = event.quota.rate * event.regions
    tokens.axhline(quota, color=_QUOTA, linestyle="dotted", label=f"quota, {quota:g} a second")
    tokens.set_ylim(0, 1.15 * max(quota, *planned.timeline.tokens))
    viewers.set_ylabel("viewers")
    tokens.set_ylabel("tokens a second")
    tokens.set_xlabel("seconds after the doors open")
    for axes in (viewers, tokens):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        if event.prewarm:
            axes.axvline(0, color=_QUOTA, linewidth=0.8)
    viewers.set_title(title(event), loc="left", fontsize="medium")
    # Complete or absent: drawing may fail, writing what is drawn hardly does.
    drawn = BytesIO()
    figure.savefig(drawn, format=Path(path).suffix[1:].lower(), dpi=150)
    Path(path).write_bytes(drawn.getvalue())


def _draw(
    viewers: Axes,
    tokens: Axes,
    course: Course,
    prefix: str = "",
    *,
    linewidth: float = 1.5,
    alpha: float = 1.0,
) -> None:
    timeline = course.timeline
    # Counts are of whole seconds: they hold at the seconds' ends, and nothing was before.
    ends = [timeline.start + each for each in range(len(timeline.arrived) + 1)]
    for values, name, colour in (
        ([0, *accumulate(timeline.arrived)], "arrived", _ARRIVED),
        ([0, *accumulate(timeline.admitted)], "admitted", _ADMITTED),
        ([0, *timeline.waiting], "waiting", _WAITING),
    ):
        viewers.plot(
            ends, values, color=colour, linewidth=linewidth, alpha=alpha, label=prefix + name
        )
    # Drawn as steps, each over its second.
    tokens.step(
        ends,
        [timeline.tokens[0], *timeline.tokens],
        color=_ADMITTED,
        linewidth=linewidth,
        alpha=alpha,
        label=f"{prefix}tokens minted",
    )
