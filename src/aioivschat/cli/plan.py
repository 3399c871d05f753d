"""``aioivschat plan``: tell beforehand whether an event fits the quota."""

from __future__ import annotations

import argparse
import json

from aioivschat.cli import OK
from aioivschat.cli.event_options import check_plot_option, event_from_options
from aioivschat.cli.process import check_standard_output, write_to_standard_output
from aioivschat.cli.terminal_report import plan_report
from aioivschat.planning import plan, plan_as_json


def run(options: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    check_plot_option(options)
    check_standard_output()
    made = plan(event_from_options(options))
    if options.plot:
        from aioivschat.cli.plot import plot

        plot(options.plot, made.event, made.outcome)
    if options.json:
        write_to_standard_output(json.dumps(plan_as_json(made)) + "\n")
    else:
        write_to_standard_output(plan_report(made))
    return OK
