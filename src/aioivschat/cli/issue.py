"""``aioivschat issue``: one token."""

from __future__ import annotations

import argparse
import json

from aioivschat._models import TokenRequest
from aioivschat.cli import OK
from aioivschat.cli.process import check_standard_output, run_to_end, write_to_standard_output
from aioivschat.cli.token_source import check_token_source, open_service
from aioivschat.onboarding import token_members


def run(options: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    check_token_source(options)
    check_standard_output()
    return run_to_end(_issue_token(options))


async def _issue_token(options: argparse.Namespace) -> int:
    request = TokenRequest(
        options.room,
        options.user,
        options.capability,
        dict(options.attribute),
        options.session_minutes,
    )
    async with open_service(options) as tokens:
        token = await tokens.issue(request, fresh=True, timeout=options.timeout)
    write_to_standard_output(json.dumps(token_members(request, token)) + "\n")
    return OK
