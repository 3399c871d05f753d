"""Whom the failures of a job concern: a request, a room, or all that is left of it.

A single failure says little: one room may be closed to the credentials, one answer lost. What lasts
shows within a handful of requests, and the rest of the job need not be spent on it.
"""

from __future__ import annotations

from collections import Counter
from copy import copy

from aioivschat.errors import AccessDenied, ChatTokenError, ConnectionFailed

ENOUGH = 5
"""So many failures in a row, with nothing served among them, are no accident."""

FIRST_LOOK_SECONDS = 2.0
"""So long, or until a token has come, a job waits for the fate of its first ``ENOUGH`` requests:
all of them may be refused."""

_SEVERAL_ROOMS = 3
"""So many rooms that are refused, with nothing served meanwhile, are not refused one by one."""


class Refusals:
    """What one job has learnt from its failures.

    Attributes:
        has_served: whether a token has come yet.
    """

    def __init__(self) -> None:
        self.has_served = False
        self._of_all: ChatTokenError | None = None
        self._of_rooms: dict[str, ChatTokenError] = {}
        self._in_room = Counter[str]()  # refusals, since its room was served
        self._in_a_row = Counter[str]()  # by their room, since any was served
        self._unanswered = 0  # since any was served

    @property
    def of_all(self) -> ChatTokenError | None:
        """What ends the whole job, if anything does."""
        return copy(self._of_all)

    def is_refused(self, room: str) -> bool:
        """Tell whether it is known that a request for a room would fail."""
        return self._of_all is not None or room in self._of_rooms

    def find(self, room: str) -> ChatTokenError | None:
        """Return what a request for a room would end with, if that is known."""
        return copy(self._of_all or self._of_rooms.get(room))

    def note_served(self, room: str) -> None:
        """Take note of a token that came."""
        self.has_served = True
        self._in_room.pop(room, None)
        self._in_a_row.clear()
        self._unanswered = 0

    def note_failed(self, room: str, error: BaseException) -> bool:
        """Take note of a failure; return whether it now ends the room's requests, or all."""
        if not isinstance(error, ChatTokenError) or error.scope in ("request", "user"):
            return False
        if self.is_refused(room):
            return False  # it was under way when that became known
        if error.scope == "room":
            self._in_room[room] += 1
            if self._in_room[room] >= ENOUGH:
                self._of_rooms[room] = copy(error)
            if isinstance(error, AccessDenied):
                self._in_a_row[room] += 1
            in_a_row = self._in_a_row
            ends_all = len(in_a_row) >= _SEVERAL_ROOMS and in_a_row.total() >= ENOUGH
        elif error.may_pass or isinstance(error, ConnectionFailed):
            self._unanswered += 1
            ends_all = self._unanswered >= ENOUGH
        else:
            ends_all = True
        if ends_all:
            self._of_all = copy(error)
        return self.is_refused(room)
