"""A plan or a rehearsal as a picture, by matplotlib."""

from __future__ import annotations

from io import BytesIO
from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from aioivschat.cli.terminal_report import event_title
from aioivschat.planning import CrowdOutcome, LiveEvent

# Colours by Okabe and Ito, distinct in every kind of colour vision.
_ARRIVED_COLOUR, _ADMITTED_COLOUR, _WAITING_COLOUR = "#0072b2", "#009e73", "#d55e00"
_QUOTA_COLOUR = "#666666"


def plot(
    path: str, event: LiveEvent, planned: CrowdOutcome, measured: CrowdOutcome | None = None
) -> None:
    """Write a picture: viewers over time above, tokens a second against the quota below.

    The outcome of a rehearsal, if there is one, has that of the plan broad and pale behind it.
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    viewers, tokens = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    if measured is None:
        _draw_curves(viewers, tokens, planned)
    else:
        # Broad and pale, so that both are seen where they agree.
        _draw_curves(viewers, tokens, planned, "plan: ", linewidth=6, alpha=0.3)
        _draw_curves(viewers, tokens, measured)
    quota = event.quota.rate * event.regions
    tokens.axhline(
        quota, color=_QUOTA_COLOUR, linestyle="dotted", label=f"quota, {quota:g} a second"
    )
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
            axes.axvline(0, color=_QUOTA_COLOUR, linewidth=0.8)
    viewers.set_title(event_title(event), loc="left", fontsize="medium")
    # In memory first, as drawing may fail: the file is complete or absent.
    drawn = BytesIO()
    figure.savefig(drawn, format=Path(path).suffix[1:].lower(), dpi=150)
    Path(path).write_bytes(drawn.getvalue())


def _draw_curves(
    viewers: Axes,
    tokens: Axes,
    outcome: CrowdOutcome,
    prefix: str = "",
    *,
    linewidth: float = 1.5,
    alpha: float = 1.0,
) -> None:
    timeline = outcome.timeline
    # A count is of a whole second and drawn at its end; before the first second it is 0.
    ends = [timeline.start + each for each in range(len(timeline.arrived) + 1)]
    for values, name, colour in (
        ([0, *accumulate(timeline.arrived)], "arrived", _ARRIVED_COLOUR),
        ([0, *accumulate(timeline.admitted)], "admitted", _ADMITTED_COLOUR),
        ([0, *timeline.waiting], "waiting", _WAITING_COLOUR),
    ):
        viewers.plot(
            ends, values, color=colour, linewidth=linewidth, alpha=alpha, label=prefix + name
        )
    # A step for each second, over the whole of it.
    tokens.step(
        ends,
        [timeline.tokens[0], *timeline.tokens],
        color=_ADMITTED_COLOUR,
        linewidth=linewidth,
        alpha=alpha,
        label=f"{prefix}tokens minted",
    )
