"""Attendee files: who is to get a token, one attendee a line, as CSV or as JSON lines.

CSV begins with a header; JSON lines have the same names as keys:

=================== ======== ============================== ================================
column              required CSV                            JSON lines
=================== ======== ============================== ================================
``room``            yes      the room's ARN                 the same
``user``            yes      1 to 128 characters            the same
``capabilities``    no       names separated by spaces      list of names
``attributes``      no       a JSON object in the cell      object, text to text
``session_minutes`` no       1 to 180; empty: 60            number; absent or null: 60
=================== ======== ============================== ================================

The text is UTF-8, with or without a byte order mark; blank lines are skipped. **A row is one
line**, also where a cell is quoted: a quote that is not closed on its line is an error of that
line, and the next line is read as a row of its own, so that one stray quote cannot swallow the
rows behind it. A user id with a line break in it therefore needs JSON lines, where it is written
``\\n``.

A line that cannot be read becomes an :class:`Attendee` with an error, in its place, and the others
are read all the same. Only a header that cannot be read ends the file: no row means anything then.
No error shows a user id or an attribute.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import chain
from typing import Any, BinaryIO, Literal

from aioivschat._models import SESSION_MAX_MINUTES, RoomArn, TokenRequest
from aioivschat._secrets import Secret
from aioivschat.errors import InvalidRequest

LINE_MAX_BYTES = 65_536
"""The longest line that is read, its end included. A request has at most about 8 KB, however it is
escaped; what is longer is not parsed, so that no input needs more memory than this."""

COLUMNS = ("room", "user", "capabilities", "attributes", "session_minutes")

Format = Literal["csv", "jsonl"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_Members = dict[str, Any]
"""A row by column. A value is an error where the cell could not be read."""


@dataclass(frozen=True, slots=True, repr=False)
class Attendee(Secret):
    """One row of an attendee file: somebody who is to get a token, or why nobody can.

    Args:
        line: the line in the file, counted from 1.
        request: what to ask for; ``None`` if the row has an error.
        error: what is wrong with the row; ``None`` if nothing is.
        room: the room of a row with an error, if room and user could be read.
        user: the user of a row with an error, if room and user could be read.
    """

    line: int
    request: TokenRequest | None = None
    error: InvalidRequest | None = None
    room: str | None = None
    user: str | None = None

    def __repr__(self) -> str:
        return f"Attendee(line={self.line}, request={self.request!r}, error={self.error!r})"


def read_attendees(
    stream: BinaryIO, file_format: Format | None = None, *, room: str | None = None
) -> Iterator[Attendee]:
    """Read an attendee file lazily, line by line.

    To tell that an attendee is listed twice it remembers about 30 bytes for each.

    Args:
        stream: the file, opened in binary mode.
        file_format: ``csv`` or ``jsonl``; by default a file whose first character is ``{`` is JSON
            lines and any other is CSV.
        room: ARN of the room of those rows that name none.

    Returns:
        The attendees in the file's order, those that cannot be served among them.

    Raises:
        InvalidRequest: if ``room`` is not the ARN of a room. Nothing that is in the file raises.
    """
    if room is not None:
        RoomArn.parse(room)
    return _read(stream, file_format, room)


def _read(stream: BinaryIO, file_format: Format | None, room: str | None) -> Iterator[Attendee]:
    lines: Iterator[tuple[int, bytes]] = _lines(stream)
    first = next(lines, None)
    if first is None:
        if file_format != "jsonl":
            yield Attendee(1, error=_bad_header("an empty file"))
        return
    if file_format is None:
        file_format = "jsonl" if first[1].lstrip().startswith(b"{") else "csv"
    members: Callable[[bytes], _Members | InvalidRequest]
    if file_format == "csv":
        header = _header(first[1], room_required=room is None)
        if isinstance(header, InvalidRequest):
            yield Attendee(first[0], error=header)
            return
        members = partial(_csv_members, header)
    else:
        lines = chain([first], lines)
        members = _json_members
    seen = Seen()
    for number, line in lines:
        yield _attendee(number, members(line), room or "", seen)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Number the lines that are not blank, each cut just past the longest that is allowed."""
    number = 0
    while line := stream.readline(LINE_MAX_BYTES + 1):
        number += 1
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(LINE_MAX_BYTES)
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line and not line.isspace():
            yield number, line


class Seen:
    """The line of each attendee so far, in little memory for a million of them.

    What is kept of an attendee is a digest and the line, side by side with others whose digests
    begin alike. Objects of Python's for each of them would take six times as much.
    """

    _SHELF, _REST, _LINE = 2, 14, 5  # bytes

    def __init__(self) -> None:
        self._shelves: dict[bytes, bytearray] = {}

    def first(self, room: str, user: str, line: int) -> int:
        """Return the line where an attendee was seen first, which may be this one."""
        # A room has no NUL, so no two pairs join to the same text.
        digest = blake2b(f"{room}\0{user}".encode(), digest_size=self._SHELF + self._REST).digest()
        shelf = self._shelves.setdefault(digest[: self._SHELF], bytearray())
        rest = digest[self._SHELF :]
        at = shelf.find(rest)
        # It may begin in the middle of another by chance.
        while at % (self._REST + self._LINE) and at >= 0:
            at = shelf.find(rest, at + 1)
        if at < 0:
            shelf += rest + line.to_bytes(self._LINE)
            return line
        at += self._REST
        return int.from_bytes(shelf[at : at + self._LINE])


def _attendee(
    line: int, members: _Members | InvalidRequest, default_room: str, seen: Seen
) -> Attendee:
    if isinstance(members, InvalidRequest):
        return Attendee(line, error=members)
    room, user = (_given(members.pop(name, None)) for name in ("room", "user"))
    room = room or default_room
    wrong = (value for value in members.values() if isinstance(value, InvalidRequest))
    request = next(wrong, None) or _request(room, user, **members)
    if isinstance(request, InvalidRequest):
        # Told to whom it concerns, where that can be read.
        who = _request(room, user)
        if isinstance(who, InvalidRequest):
            return Attendee(line, error=who)
        return Attendee(line, error=request, room=room, user=user)
    earlier = seen.first(room, user, line)
    if earlier != line:
        found = f"the user of line {earlier} again"
        error = InvalidRequest("userId", "listed once for a room", found)
        return Attendee(line, error=error, room=room, user=user)
    return Attendee(line, request)


def _given(value: Any) -> Any:
    return "" if value is None else value


def _request(room: Any, user: Any, **members: Any) -> TokenRequest | InvalidRequest:
    try:
        return TokenRequest(
            room, user, **{name: value for name, value in members.items() if value is not None}
        )
    except InvalidRequest as error:
        if error.member == "capabilities":
            # It shows the name it does not know, which in swapped columns is a user id.
            return InvalidRequest(error.member, error.limit, "something else")
        # The traceback's frames hold the whole row.
        return error.with_traceback(None)


def _text(line: bytes) -> str | InvalidRequest:
    if len(line) > LINE_MAX_BYTES:
        return InvalidRequest("line", f"at most {LINE_MAX_BYTES:,} bytes", "more")
    if b"\0" in line:
        return InvalidRequest("line", "text without NUL", "NUL")
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        return InvalidRequest("line", "UTF-8", f"other bytes at byte {error.start + 1}")


def _cells(line: bytes) -> list[str] | InvalidRequest:
    text = _text(line)
    if isinstance(text, InvalidRequest):
        return text
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        unclosed = "end of data" in str(error)
        found = "a quote that is not closed" if unclosed else "a misplaced quote or line break"
    return InvalidRequest("line", "CSV, a row on one line", found)


def _bad_header(found: str) -> InvalidRequest:
    limit = f"a header of {', '.join(COLUMNS)} (room and user are required)"
    return InvalidRequest("line", limit, f"{found}; no row was read")


def _header(line: bytes, *, room_required: bool) -> list[str] | InvalidRequest:
    names = _cells(line)
    if isinstance(names, InvalidRequest):
        return _bad_header(str(names))
    for position, name in enumerate(names, 1):
        # In a file without a header this is a user id: it is not shown.
        if name not in COLUMNS:
            return _bad_header(f"another name in column {position}")
        if name in names[: position - 1]:
            return _bad_header(f"{name} twice")
    for name in ("room", "user") if room_required else ("user",):
        if name not in names:
            return _bad_header(f"no {name}")
    return names


def _csv_members(header: list[str], line: bytes) -> _Members | InvalidRequest:
    cells = _cells(line)
    if isinstance(cells, InvalidRequest):
        return cells
    if len(cells) != len(header):
        return InvalidRequest("line", f"{len(header)} cells, as the header", f"{len(cells)}")
    members: _Members = dict(zip(header, cells, strict=True))
    for name, parse in _CELL_PARSERS.items():
        if name in members:
            members[name] = parse(members[name]) if members[name] else None
    return members


def _minutes(cell: str) -> int | InvalidRequest:
    if re.fullmatch("[0-9]{1,3}", cell):
        return int(cell)
    limit = f"a whole number from 1 to {SESSION_MAX_MINUTES}"
    return InvalidRequest("sessionDurationInMinutes", limit, "other text")


def _json_members(line: bytes) -> _Members | InvalidRequest:
    text = _text(line)
    members = text if isinstance(text, InvalidRequest) else _object("line", text)
    if isinstance(members, InvalidRequest):
        return members
    if not members.keys() <= set(COLUMNS):
        return InvalidRequest("line", f"an object with {', '.join(COLUMNS)}", "another key")
    capabilities = members.get("capabilities")
    if capabilities is not None and not isinstance(capabilities, list):
        found = "another JSON value"
        members["capabilities"] = InvalidRequest("capabilities", "a list of names", found)
    return members


class _Refused(Exception):
    """JSON that is well-formed to Python, and yet not taken."""


def _object(member: str, text: str) -> dict[str, Any] | InvalidRequest:
    # The error is made here and not raised: JSONDecodeError holds the text, and a raised one would
    # carry it along as its context.
    try:
        value = _DECODER.decode(text)
    except _Refused as error:
        found = str(error)
    except RecursionError:
        found = "one that is nested too deep"
    except json.JSONDecodeError as error:
        found = f"no JSON at character {error.pos + 1}"
    except ValueError:
        found = "a number with too many digits"
    else:
        if isinstance(value, dict):
            return value
        found = "another JSON value"
    return InvalidRequest(member, "a JSON object", found)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refused("one with a key twice")
    return members


def _not_a_number(name: str) -> Any:
    raise _Refused(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_not_a_number)

_CELL_PARSERS: dict[str, Callable[[str], Any]] = {
    "capabilities": str.split,
    "attributes": partial(_object, "attributes"),
    "session_minutes": _minutes,
}
