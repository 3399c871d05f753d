"""``aioivschat fleet check``: whether an engine suits a fleet, and what to change."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from aioivschat.cli import FAILED, OK
from aioivschat.cli.process import (
    check_standard_output,
    run_to_end,
    say_failure,
    write_to_standard_output,
)

if TYPE_CHECKING:
    from aioivschat.redis.check import Finding


def run(options: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    try:
        from aioivschat.redis.check import check
    except ImportError:
        return say_failure("fleet check needs more: pip install 'aioivschat[redis]'")
    check_standard_output()
    url = sys.stdin.readline().strip() if options.url == "-" else options.url
    return run_to_end(_print_findings(check(url, namespace=options.namespace)))


async def _print_findings(findings: AsyncIterator[Finding]) -> int:
    status = OK
    async for finding in findings:
        advice = f": {finding.advice}" if finding.advice else ""
        line = f"{finding.grade:<7} {finding.topic:<12} {finding.found}{advice}"
        write_to_standard_output(line + "\n")
        if finding.grade == "fail":
            status = FAILED
    return status
