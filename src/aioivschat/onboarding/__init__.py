"""Tokens for many at once: from a list of attendees to a stream of outcomes.

::

    with open("attendees.csv", "rb") as file:
        async with AsyncTokenService() as tokens:
            async for outcome in onboard(tokens, read_attendees(file)):
                ...

A token lives one minute and connects once, so outcomes are to be used as they come. What is
written here is JSON lines and never CSV, so no spreadsheet runs what an attendee's name says.
"""

from aioivschat.onboarding._attendees import (
    COLUMNS,
    LINE_MAX_BYTES,
    Attendee,
    Format,
    read_attendees,
)
from aioivschat.onboarding._blocking_thread import BlockingThread, read_in_thread
from aioivschat.onboarding._bulk import (
    IN_FLIGHT,
    Outcome,
    onboard,
    onboard_in_batches,
    outcome_as_json,
    token_members,
)
from aioivschat.onboarding._private_files import private_output

__all__ = [
    "COLUMNS",
    "IN_FLIGHT",
    "LINE_MAX_BYTES",
    "Attendee",
    "BlockingThread",
    "Format",
    "Outcome",
    "onboard",
    "onboard_in_batches",
    "outcome_as_json",
    "private_output",
    "read_attendees",
    "read_in_thread",
    "token_members",
]
