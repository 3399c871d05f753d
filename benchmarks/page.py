"""Renders the results of the benchmarks as one page, with plots.

Reads ``*.json`` of a folder, and writes ``README.md`` and the plots into it; the same results make
the same page. Without matplotlib the page has no plots.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

HERE = Path(__file__).parent

OURS, OURS_PLAIN, PEER, FLOOR = "#d9480f", "#f3b197", "#748ca3", "#c3cdd6"
INK = "#343a40"
STYLE = {
    "axes.edgecolor": "#adb5bd",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "legend.frameon": False,
    "svg.hashsalt": "aioivschat",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


SPECIAL = ("aioboto3", "fleet", "outage", "processes")
"""Variants that are left out of the main table."""
_LONG_TABLE_LINES = 25


class Results:
    """The results of one run of a benchmark.

    Args:
        path: the file; its name is the benchmark's, and after a hyphen the variant's.
    """

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text())
        self.benchmark, _, self.variant = path.stem.partition("-")
        self.environment: Mapping[str, str] = content["environment"]
        self.settings: Mapping[str, Any] = content["settings"]
        self.left_out: Sequence[str] = content["left_out"]
        self.rows: Sequence[Mapping[str, Any]] = content["rows"]

    @property
    def python(self) -> str:
        """The interpreter's name and version."""
        return self.environment["python"]

    def where(self, **labels: str) -> list[Mapping[str, Any]]:
        """Return the rows with these labels; underscores stand for blanks."""
        wanted = {name.replace("_", " "): value for name, value in labels.items()}
        return [row for row in self.rows if wanted.items() <= row["labels"].items()]

    def labels(self, name: str) -> list[str]:
        """Return the values of a label, in the order of the rows."""
        return list(dict.fromkeys(row["labels"][name] for row in self.rows))


# Tables.


def make_table(lines: Sequence[Mapping[str, str]]) -> str:
    """Lay lines out as a table of Markdown; a line may lack some columns."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    rows = [
        names,
        ["---"] * len(names),
        *([line.get(name, "") for name in names] for line in lines),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def format_median(figure: Mapping[str, float]) -> str:
    """Return a figure's median, with four digits."""
    return harness.format_figure(figure["median"])


def make_results_table(results: Results) -> str:
    """Return the table of a run: medians, in bold if they have a limit."""
    lines = []
    for row in results.rows:
        promised = {limit["figure"]: limit for limit in row["limits"]}
        line = dict(row["labels"])
        for name, figure in row["figures"].items():
            kept = name not in promised or is_kept(figure, promised[name])
            text = format_median(figure) if kept else f"{format_median(figure)} (not kept)"
            line[name] = f"**{text}**" if name in promised else text
        lines.append(line)
    return make_table(lines)


def is_kept(figure: Mapping[str, float], limit: Mapping[str, Any]) -> bool:
    """Return whether a figure is within its limit."""
    return harness.Limit(**limit).kept_by(harness.Spread(**figure))


def describe_limit(limit: Mapping[str, Any]) -> str:
    """Return a limit in words."""
    least, most = limit.get("at_least"), limit.get("at_most")
    if least == most:
        return f"{least:g}"
    return f"at least {least:g}" if most is None else f"at most {most:g}"


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of the main table.

    Args:
        says: its text there.
        benchmark: the benchmark that measures the ratio.
        labels: those of its row.
        figure: its name in the row.
    """

    says: str
    benchmark: str
    labels: Mapping[str, str]
    figure: str


def _new_token(says: str, in_flight: int, figure: str, latency: int = 0) -> Ratio:
    labels = {
        "contestant": "issue",
        "loop": "asyncio",
        "in flight": str(in_flight),
        "latency": f"{latency} ms",
    }
    return Ratio(says, "cold", labels, figure)


def _hit(says: str, contestant: str) -> Ratio:
    labels = {"contestant": contestant, "entries": "100"}
    return Ratio(says, "hits", labels, "of async-lru")


RATIOS = (
    _new_token("new tokens a second, of a bare aiobotocore client's", 64, "rate of aiobotocore"),
    _new_token("new tokens a second, of capo-ivschat's", 64, "rate of capo-ivschat"),
    _new_token("processor time of a new token, of raw aiohttp's", 64, "CPU of aiohttp"),
    _new_token("new tokens a second with 256 in flight, of those with 16", 256, "rate at 16"),
    _new_token("the same with 64 in flight at 20 ms, of raw aiohttp's", 64, "rate of aiohttp", 20),
    _hit("a hit by `create_chat_token(**kwargs)`, of async-lru's", "create_chat_token, keywords"),
    _hit("a hit by `issue(request)`, of async-lru's by keywords", "issue, request"),
    Ratio(
        "joining one of 1,000 equal calls, of async-lru's",
        "coalesce",
        {"contestant": "issue"},
        "of async-lru",
    ),
    Ratio(
        "2,000 users at once at 200 a second, of 10 s",
        "rush",
        {"contestant": "aioivschat", "shape": "sliding:200"},
        "of ideal",
    ),
    Ratio(
        "the command for 100,000 attendees, of a bare loop's processor time",
        "onboard",
        {"case": "onboard"},
        "of bare",
    ),
    Ratio(
        "importing it, of importing aiobotocore alone",
        "startup",
        {"program": "import aioivschat"},
        "of base",
    ),
    Ratio(
        "the command's `--help`, of an empty program's",
        "startup",
        {"program": "aioivschat --help"},
        "of base",
    ),
)


def make_main_table(runs: Sequence[Results]) -> str:
    """Return the main table, with a column for each Python."""
    columns = {
        each.python: [
            run for run in runs if run.python == each.python and run.variant not in SPECIAL
        ]
        for each in runs
    }
    lines = []
    for ratio in RATIOS:
        line = {"": ratio.says, "promised": ""}
        for python, measured in columns.items():
            for run in measured:
                if run.benchmark != ratio.benchmark:
                    continue
                for row in run.rows:
                    if ratio.labels.items() <= row["labels"].items():
                        limits = [each for each in row["limits"] if each["figure"] == ratio.figure]
                        line["promised"] = "".join(map(describe_limit, limits))
                        if ratio.figure in row["figures"]:
                            line[python] = format_median(row["figures"][ratio.figure])
        if len(line) > 2:
            lines.append(line)
    return make_table(lines)


# Plots.


def _choose_colour(name: str) -> str:
    if name.startswith(("floor", "dict")):
        return FLOOR
    if name == "issue, general way":
        return OURS_PLAIN
    return OURS if name.startswith(("issue", "create_chat_token", "aioivschat")) else PEER


def _mark_ours(axes: Any) -> None:
    axes.tick_params(axis="y", length=0)
    for label in axes.get_yticklabels():
        if _choose_colour(label.get_text()) == OURS:
            label.set(color=OURS, fontweight="bold")


def _whisker_lengths(figures: Sequence[Mapping[str, float]]) -> list[list[float]]:
    return [
        [each["median"] - each["least"] for each in figures],
        [each["most"] - each["median"] for each in figures],
    ]


def _draw_bars(
    axes: Any, rows: Iterable[Mapping[str, Any]], figure: str, form: str = "{:.0f}"
) -> None:
    """Draw a bar and its value for each contestant, the first one on top."""
    kept = list(rows)[::-1]
    names = [row["labels"]["contestant"] for row in kept]
    figures = [row["figures"][figure] for row in kept]
    values = [each["median"] for each in figures]
    places = range(len(names))
    axes.barh(places, values, color=list(map(_choose_colour, names)), height=0.62)
    axes.set_yticks(places, names)
    axes.errorbar(
        values, places, xerr=_whisker_lengths(figures), fmt="none", ecolor=INK, elinewidth=0.8
    )
    for place, each in enumerate(figures):
        _annotate(axes, form.format(each["median"]), (each["most"], place), (5, 0))
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    _mark_ours(axes)


def _annotate(
    axes: Any, text: str, at: tuple[float, float], points: tuple[float, float], **options: Any
) -> None:
    axes.annotate(text, at, points, textcoords="offset points", va="center", **options)


def plot_processor(plt: Any, results: Results) -> Any:
    """Draw the processor time of a new token."""
    loops = results.labels("loop")
    figure, panels = plt.subplots(1, len(loops), figsize=(9, 3), sharex=True, squeeze=False)
    for axes, loop in zip(panels[0], loops, strict=True):
        rows = [
            row
            for row in results.where(loop=loop, in_flight="64", latency="0 ms")
            if "CPU µs" in row["figures"]
        ]
        _draw_bars(
            axes, sorted(rows, key=lambda row: -row["figures"]["CPU µs"]["median"]), "CPU µs"
        )
        axes.set_title(f"{loop}: processor time of a new token, µs")
    return figure


def plot_load(plt: Any, results: Results) -> Any:
    """Draw each contestant's new tokens a second, by the calls in flight."""
    figure, axes = plt.subplots(figsize=(9, 3.6))
    loop = results.labels("loop")[0]
    loads = results.labels("in flight")
    last: list[tuple[float, str]] = []
    for name in results.labels("contestant"):
        rows = results.where(contestant=name, loop=loop, latency="0 ms")
        if name == "server":
            continue
        figures = [row["figures"]["calls/s"] for row in rows]
        values = [each["median"] for each in figures]
        axes.errorbar(
            [row["labels"]["in flight"] for row in rows],
            values,
            yerr=_whisker_lengths(figures),
            color=_choose_colour(name),
            elinewidth=0.8,
            linewidth=2.2 if _choose_colour(name) == OURS else 1.3,
            marker="o",
            markersize=4,
        )
        last.append((values[-1], name))
    level = 0.0
    for value, name in sorted(last):
        # Labels must not overlap: a line of text is as high as a third of the rate.
        level = max(value, 1.35 * level)
        _annotate(axes, name, (len(loads) - 1, level), (8, 0))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(-0.2, len(loads) - 0.4)
    axes.set_xlabel("calls in flight")
    axes.set_title(f"{loop}: new tokens a second")
    return figure


def plot_hits(plt: Any, results: Results) -> Any:
    """Draw the cost of a hit with few and with many entries."""
    sizes = results.labels("entries")
    costs = {
        name: [row["figures"]["µs"]["median"] for row in results.where(contestant=name)]
        for name in results.labels("contestant")
    }
    names = sorted(costs, key=lambda name: -costs[name][0])
    figure, axes = plt.subplots(figsize=(9, 3.6))
    areas = [20 + 25 * number for number in range(len(sizes))]
    for place, name in enumerate(names):
        places = [place] * len(sizes)
        axes.plot(costs[name], places, color=_choose_colour(name), linewidth=2)
        axes.scatter(costs[name], places, s=areas, color=_choose_colour(name), zorder=3)
        _annotate(axes, f"{costs[name][0]:.2g}", (min(costs[name]), place), (-7, 0), ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(x=0.1)
    _mark_ours(axes)
    entries = ", ".join(f"{int(size):,}" for size in sizes)
    axes.set_title(f"a cache hit, µs, with {entries} entries (small to large dots)")
    return figure


def plot_coalesce(plt: Any, results: Results) -> Any:
    """Draw the cost of sharing for each caller."""
    figure, axes = plt.subplots(figsize=(9, 2.2))
    _draw_bars(axes, results.rows, "µs per caller", "{:.1f}")
    callers = f"{results.settings['callers']:,}"
    axes.set_title(f"{callers} equal calls at once: processor time per caller, µs")
    return figure


def plot_rush(plt: Any, results: Results) -> Any:
    """Draw how many users get no token, for each shape of the quota."""
    shapes = results.labels("shape")
    names = [name for name in results.labels("contestant") if name != "aioivschat-burst"]
    figure, panels = plt.subplots(
        1, len(shapes), figsize=(9, 2.3), sharey=True, sharex=True, squeeze=False
    )
    for axes, shape in zip(panels[0], shapes, strict=True):
        rows = [row for name in names for row in results.where(contestant=name, shape=shape)]
        _draw_bars(axes, rows, "failed")
        axes.set_title(shape)
    users = results.settings["users"]
    panels[0][0].set_xlim(0, 1.2 * users)
    figure.suptitle(f"users without a token, of {users:,} at once", x=0.01, ha="left", fontsize=10)
    return figure


Plot = Callable[[Any, Results], Any]


def save_plot(plot: Plot, results: Results, path: Path) -> None:
    """Draw a plot into a file; the same results make the same file."""
    matplotlib = harness.import_peer("matplotlib")
    matplotlib.use("svg")
    with matplotlib.rc_context(STYLE):
        plt = harness.import_peer("matplotlib.pyplot")
        figure = plot(plt, results)
        figure.set_layout_engine("constrained")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


# The page.


@dataclass(frozen=True, slots=True)
class Section:
    """A benchmark's section of the page.

    Args:
        title: its heading.
        plots: those of the benchmark's first run, by the file's name.
    """

    title: str
    plots: Mapping[str, Plot]


SECTIONS = {
    "cold": Section("New tokens", {"processor": plot_processor, "load": plot_load}),
    "hits": Section("Cache hits", {"hits": plot_hits}),
    "coalesce": Section("Equal calls at once", {"coalesce": plot_coalesce}),
    "rush": Section("A rush against the quota", {"rush": plot_rush}),
    "onboard": Section("Onboarding many", {}),
    "memory": Section("Memory and pauses", {}),
    "endpoint": Section("The token endpoint", {}),
    "startup": Section("Until a program can begin", {}),
}

INTRODUCTION = """\
# Benchmarks

What is compared, on which terms and with what came out. `nox -s bench` measures it all again and
writes this page; `python benchmarks/page.py` writes it anew from the JSON beside it.

Everything runs on one machine over loopback, each server in a process of its own. Contestants take
turns, every other round backwards. Figures are medians of the rounds, and so are ratios of what was
measured in the same round; whiskers in plots, and `least` and `most` in the JSON, are the extremes.
What is **bold** has a limit that the project promises.
"""


def make_page(runs: Sequence[Results], with_plots: bool) -> str:
    """Return the page in Markdown.

    Args:
        runs: the results to show.
        with_plots: whether to show plots.
    """
    parts = [INTRODUCTION, "## What matters most\n", make_main_table(runs)]
    for benchmark, section in SECTIONS.items():
        own = [run for run in runs if run.benchmark == benchmark]
        if not own:
            continue
        parts += [f"## {section.title}\n", _read_docstring(benchmark)]
        if with_plots:
            parts += [f"![{section.title}]({name}.svg)\n" for name in section.plots]
        if benchmark == "cold":
            parts.append(_describe_server(own[0]))
        for run in own:
            parts += [f"### {_make_heading(run)}\n", _fold_long_table(make_results_table(run))]
            if run.left_out:
                parts.append(f"Left out, as not installed here: {', '.join(run.left_out)}.\n")
    return "\n".join([*parts, "## Versions\n", _make_versions_table(runs)])


def _fold_long_table(text: str) -> str:
    """Fold a long table, so that a click shows it."""
    if text.count("\n") <= _LONG_TABLE_LINES:
        return text
    return f"<details><summary>all figures</summary>\n\n{text}\n</details>\n"


def _read_docstring(benchmark: str) -> str:
    text = ast.get_docstring(ast.parse((HERE / f"{benchmark}.py").read_text())) or ""
    return re.sub(r":(?:class|func|data|mod):", "", text).replace("``", "`") + "\n"


def _describe_server(run: Results) -> str:
    rows = run.where(contestant="server")
    times = [row["figures"]["of fastest"]["median"] for row in rows]
    rates = [row["figures"]["calls/s"]["median"] for row in rows]
    if not rows:
        return ""
    return (
        f"The server answered {min(rates):,.0f} calls a second to the bare protocol, at least "
        f"{min(times):.1f} times what the fastest contestant that is no floor asked of it.\n"
    )


def _make_heading(run: Results) -> str:
    settings = {
        name: value for name, value in run.settings.items() if name not in ("contestants", "serve")
    }
    told = ", ".join(
        f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in settings.items()
    )
    variant = f", {run.variant}" if run.variant in SPECIAL else ""
    return f"{run.python}{variant}: {told}"


def _make_versions_table(runs: Sequence[Results]) -> str:
    lines = [{"results": f"{_name_run(run)}", **run.environment} for run in runs]
    names = list(dict.fromkeys(name for line in lines for name in line))
    # Transposed: there are more packages than runs.
    return make_table(
        [
            {"": name} | {line["results"]: line.get(name, "") for line in lines}
            for name in names
            if name != "results"
        ]
    )


def _name_run(run: Results) -> str:
    return f"{run.benchmark} {run.variant}".strip()


TABLE_MARKS = (
    "<!-- benchmarks: written by benchmarks/page.py -->\n",
    "<!-- /benchmarks -->\n",
)


def insert_table(text: str, ratios: str) -> str:
    """Return a text with the main table between the marks."""
    start, end = TABLE_MARKS
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"there is no place for the table between {start!r} and {end!r}")
    return f"{before}{start}\n{ratios}\n{end}{after}"


def render(folder: Path, plot: Callable[[Plot, Results, Path], None] | None) -> Sequence[Results]:
    """Write the page and the plots of a folder, and return its results.

    Args:
        folder: where the JSON is.
        plot: draws a plot into a file; ``None`` for no plots.
    """
    order = list(SECTIONS)
    found = [Results(path) for path in sorted(folder.glob("*.json"))]
    runs = sorted(found, key=lambda run: (order.index(run.benchmark), run.variant))
    (folder / "README.md").write_text(make_page(runs, with_plots=plot is not None))
    if plot is not None:
        for benchmark, section in SECTIONS.items():
            own = [run for run in runs if run.benchmark == benchmark]
            for name, draw in section.plots.items() if own else ():
                plot(draw, own[0], folder / f"{name}.svg")
    return runs


def main() -> int:
    """Render what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", default=HERE / "results", help="default: %(default)s"
    )
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="also put the table of what matters most there",
    )
    options = parser.parse_args()
    plot = save_plot if harness.import_peer("matplotlib") else None
    runs = render(options.folder, plot)
    if plot is None:
        print("no plots, as matplotlib is not installed", file=sys.stderr)
    if options.readme is not None:
        options.readme.write_text(insert_table(options.readme.read_text(), make_main_table(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
