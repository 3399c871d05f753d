"""When attendees come: a shape, or a curve read from a file."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Self

from aioivschat.errors import InvalidConfiguration, require

MAX_ATTENDEES = 10_000_000
_DAY_SECONDS = 86_400

Shape = Literal["at-once", "uniform", "ramp", "curve"]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When attendees come, counted from the doors.

    Args:
        shape: ``at-once``; ``uniform``, evenly over ``seconds``; ``ramp``, at a rate that grows
            evenly over ``seconds`` to twice the mean; ``curve``, as in ``counts``.
        seconds: for ``uniform`` and ``ramp``, above 0 and at most a day.
        counts: for ``curve``, arrivals in each second from the doors on, not all 0; scaled to the
            number of attendees.

    Raises:
        InvalidConfiguration: an argument is out of its range.
    """

    shape: Shape = "at-once"
    seconds: float = 0.0
    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.shape in ("uniform", "ramp"):
            limit = "over more than 0 s, at most a day"
            require(0 < self.seconds <= _DAY_SECONDS, "arrivals", limit, self.seconds)
        if self.shape == "curve":
            limit = "0 or more in each second of at most a day"
            fits = 0 < len(self.counts) <= _DAY_SECONDS and min(self.counts) >= 0
            require(fits, "arrivals", limit, len(self.counts))
            attendees = sum(self.counts)
            # Python refuses to print thousands of digits.
            found = f"{attendees:,}" if attendees < 10**12 else "far more"
            limit = f"1 to {MAX_ATTENDEES:,} in all"
            require(1 <= attendees <= MAX_ATTENDEES, "arrivals", limit, found)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``at-once``, ``uniform:SECONDS`` or ``ramp:SECONDS``.

        Raises:
            InvalidConfiguration: ``text`` is none of these.
        """
        shape, colon, seconds = text.partition(":")
        try:
            if shape == "at-once" and not colon:
                return cls()
            if shape == "uniform":
                return cls("uniform", float(seconds))
            if shape == "ramp":
                return cls("ramp", float(seconds))
        except ValueError as error:
            if isinstance(error, InvalidConfiguration):
                raise
        raise InvalidConfiguration("arrivals", "at-once, uniform:SECONDS or ramp:SECONDS", text)

    @classmethod
    def read(cls, lines: Iterable[str]) -> Self:
        """Read a CSV of arrivals per second.

        Args:
            lines: an optional header; then rows of a second, counted from the doors, and its
                arrivals; or of arrivals only, one row a second.

        Raises:
            InvalidConfiguration: a row cannot be read, or the counts make no curve.
        """
        counts: dict[int, int] = {}
        for number, line in enumerate(lines, 1):
            if not line.replace(",", "").strip():
                continue  # spreadsheets leave rows of commas
            try:
                *second, arrivals = map(int, line.split(","))
            except ValueError:
                if number == 1:
                    continue  # the header
                second, arrivals = [], -1
            at = second[0] if second else len(counts)
            fits = len(second) <= 1 and 0 <= at < _DAY_SECONDS and arrivals >= 0
            limit = "a second of at most a day and its arrivals, or arrivals only"
            require(fits, f"arrivals, line {number}", limit, "something else")
            counts[at] = counts.get(at, 0) + arrivals
        seconds = max(counts, default=-1) + 1
        return cls("curve", counts=tuple(counts.get(at, 0) for at in range(seconds)))

    def times(self, attendees: int) -> Sequence[float]:
        """Return when each of ``attendees`` comes, in seconds from the doors, in order."""
        if self.shape == "at-once":
            return array("d", [0.0]) * attendees
        if self.shape == "uniform":
            return array("d", (each * self.seconds / attendees for each in range(attendees)))
        if self.shape == "ramp":
            # The share of attendees who have come is the square of the share of time passed.
            shares = (math.sqrt((each + 0.5) / attendees) for each in range(attendees))
            return array("d", (share * self.seconds for share in shares))
        return array("d", self._follow_curve(attendees))

    def _follow_curve(self, attendees: int) -> Iterator[float]:
        before = [0, *accumulate(self.counts)]
        for each in range(attendees):
            position = each * before[-1] / attendees
            second = bisect_right(before, position) - 1
            yield second + (position - before[second]) / self.counts[second]
