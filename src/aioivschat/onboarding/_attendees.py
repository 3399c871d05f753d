"""Attendee files: CSV or JSON lines, one attendee a line.

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

The text is UTF-8, with or without a byte order mark; blank lines are skipped, and rows of commas
alone, which spreadsheets leave behind a table. **A row is one line**, also where a cell is quoted:
a quote that is not closed on its line is an error of that line, so that one stray quote cannot
swallow the rows after it. So is a cell of CSV with white space or an invisible character at its
edge: nobody sees that it is another user. A user id with a line break in it, or with such an edge,
therefore needs JSON lines.

A line that cannot be read becomes an :class:`Attendee` with an error, and the next line is read
all the same. Only a header that cannot be read ends the file: without it no cell has a name. The
error names what other programs write in its place. No error shows a user id or an attribute.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import chain
from typing import Any, BinaryIO, Literal

from aioivschat._models import SESSION_MAX_MINUTES, RoomArn, TokenRequest
from aioivschat._secrets import Secret, hides
from aioivschat.errors import InvalidRequest

LINE_MAX_BYTES = 65_536
"""The longest line that is read, its end included. A request has at most about 8 KB, however it is
escaped. A longer line is not parsed, so that memory is bounded for any input."""

COLUMNS = ("room", "user", "capabilities", "attributes", "session_minutes")

Format = Literal["csv", "jsonl"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_OTHER_FORMATS = {
    b"\x1f\x8b": "a gzip'd file",
    b"BZh": "a bzip2'd file",
    b"\xfd7zXZ\0": "an xz'd file",
    b"(\xb5/\xfd": "a zstd'd file",
    b"PK\3\4": "a spreadsheet (xlsx, ods) or another zip file",
    b"\xd0\xcf\x11\xe0": "a spreadsheet (xls)",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""What a file is that begins with these bytes."""

_BLANK_ROW = re.compile(rb'(?:"")?(?:,(?:"")?)*[\r\n]*')

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}

_OTHER_NAMES = {
    **{name.replace("_", ""): name for name in COLUMNS},
    "roomidentifier": "room",
    "roomarn": "room",
    "userid": "user",
    "username": "user",
    "sessiondurationinminutes": "session_minutes",
}
"""Columns by what else they are called, AWS's names too: letters alone, and all of them small."""

_INVISIBLE = {"Cc", "Cf", "Zl", "Zp", "Zs"}
"""Categories of characters that nobody sees, white space included."""

_Row = dict[str, Any]
"""A row by column. A value is an error where the cell could not be read."""


@hides("user")
@dataclass(frozen=True, slots=True, repr=False)
class Attendee(Secret):
    """One row of an attendee file: the request for a token, or why there can be none.

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

    Finding attendees that are listed twice takes about 30 bytes of memory for each.

    Args:
        stream: the file, opened in binary mode.
        file_format: ``csv`` or ``jsonl``; by default a file whose first character is ``{`` is JSON
            lines and any other is CSV.
        room: ARN of the room for rows that name none.

    Returns:
        The attendees in the file's order, those with an error included.

    Raises:
        InvalidRequest: if ``room`` is not the ARN of a room. No content of the file raises.
    """
    if room is not None:
        RoomArn.parse(room)
    return _read_rows(stream, file_format, room)


def _read_rows(
    stream: BinaryIO, file_format: Format | None, room: str | None
) -> Iterator[Attendee]:
    lines: Iterator[tuple[int, bytes]] = (
        (number, line)
        for number, line in _number_lines(stream)
        if file_format == "jsonl" or not _BLANK_ROW.fullmatch(line)
    )
    first = next(lines, None)
    if first is None:
        if file_format != "jsonl":
            yield Attendee(1, error=_header_error("an empty file"))
        return
    for mark, found in _OTHER_FORMATS.items():
        if first[1].startswith(mark):
            error = InvalidRequest(
                "line", "CSV or JSON lines, in UTF-8", f"{found}; no row was read"
            )
            yield Attendee(first[0], error=error)
            return
    if file_format is None:
        file_format = "jsonl" if first[1].lstrip().startswith(b"{") else "csv"
    parse_row: Callable[[bytes], _Row | InvalidRequest]
    if file_format == "csv":
        header = _parse_header(first[1], room_required=room is None)
        if isinstance(header, InvalidRequest):
            yield Attendee(first[0], error=header)
            return
        parse_row = partial(_parse_csv_row, header)
    else:
        lines = chain([first], lines)
        parse_row = _parse_json_row
    seen = SeenAttendees()
    for number, line in lines:
        yield _make_attendee(number, parse_row(line), room or "", seen)


def _number_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line that is not blank, cut to one byte over the limit."""
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


class SeenAttendees:
    """The line at which each attendee was listed first: 37 MB for a million of them.

    An entry is a digest's rest and a line number; entries whose digests have the same prefix stand
    in one array. A dictionary with a digest and an integer for each takes 117 MB at least.
    """

    _PREFIX_BYTES, _REST_BYTES, _LINE_BYTES = 2, 14, 5

    def __init__(self) -> None:
        self._entries: dict[bytes, bytearray] = {}  # by the digests' prefix

    def first_line(self, room: str, user: str, line: int) -> int:
        """Return the line at which an attendee was listed first: this one, if it is new."""
        # A room has no NUL, so no two pairs join to the same text.
        size = self._PREFIX_BYTES + self._REST_BYTES
        digest = blake2b(f"{room}\0{user}".encode(), digest_size=size).digest()
        entries = self._entries.setdefault(digest[: self._PREFIX_BYTES], bytearray())
        rest = digest[self._PREFIX_BYTES :]
        at = entries.find(rest)
        # The same bytes may stand across two entries by chance: only the start of one counts.
        while at % (self._REST_BYTES + self._LINE_BYTES) and at >= 0:
            at = entries.find(rest, at + 1)
        if at < 0:
            entries += rest + line.to_bytes(self._LINE_BYTES)
            return line
        at += self._REST_BYTES
        return int.from_bytes(entries[at : at + self._LINE_BYTES])


def _make_attendee(
    line: int, members: _Row | InvalidRequest, default_room: str, seen: SeenAttendees
) -> Attendee:
    if isinstance(members, InvalidRequest):
        return Attendee(line, error=members)
    room, user = (_or_empty(members.pop(name, None)) for name in ("room", "user"))
    room = room or default_room
    wrong = (value for value in members.values() if isinstance(value, InvalidRequest))
    request = next(wrong, None) or _make_request(room, user, **members)
    if isinstance(request, InvalidRequest):
        # Room and user go with the error, unless they cannot be read either.
        who = _make_request(room, user)
        if isinstance(who, InvalidRequest):
            return Attendee(line, error=who)
        return Attendee(line, error=request, room=room, user=user)
    earlier = seen.first_line(room, user, line)
    if earlier != line:
        found = f"the user of line {earlier} again"
        error = InvalidRequest("userId", "listed once for a room", found)
        return Attendee(line, error=error, room=room, user=user)
    return Attendee(line, request)


def _or_empty(value: Any) -> Any:
    return "" if value is None else value


def _make_request(room: Any, user: Any, **members: Any) -> TokenRequest | InvalidRequest:
    try:
        return TokenRequest(
            room, user, **{name: value for name, value in members.items() if value is not None}
        )
    except InvalidRequest as error:
        if error.member == "capabilities":
            # The error shows the unknown name, which is a user id if columns are swapped.
            return InvalidRequest(error.member, error.limit, "something else")
        # The traceback's frames hold the whole row.
        return error.with_traceback(None)


def _decode_line(line: bytes) -> str | InvalidRequest:
    if len(line) > LINE_MAX_BYTES:
        return InvalidRequest("line", f"at most {LINE_MAX_BYTES:,} bytes", "more")
    if b"\0" in line:
        return InvalidRequest("line", "text without NUL", "NUL")
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        return InvalidRequest("line", "UTF-8", f"other bytes at byte {error.start + 1}")


def _split_cells(line: bytes) -> list[str] | InvalidRequest:
    text = _decode_line(line)
    if isinstance(text, InvalidRequest):
        return text
    try:
        cells = next(csv.reader([text], strict=True))
        if '"' not in text or _is_each_quote_begun(text, cells):
            return cells
        found = "a quote at the end of a cell that does not begin with one"
    except csv.Error as error:
        unclosed = "end of data" in str(error)
        found = "a quote that is not closed" if unclosed else "a misplaced quote or line break"
        if "\r" in text:
            found = "a line break of CR alone"
    return InvalidRequest("line", "CSV, a row on one line", found)


def _is_each_quote_begun(text: str, cells: list[str]) -> bool:
    if not any(cell.endswith('"') for cell in cells):
        return True
    raw_cells = re.findall(r'(?:^|,)("(?:[^"]|"")*"|[^,]*)', text)
    return all(cell.startswith('"') or not cell.endswith('"') for cell in raw_cells)


def _header_error(found: str) -> InvalidRequest:
    limit = f"a header of {', '.join(COLUMNS)} (room and user are required)"
    return InvalidRequest("line", limit, f"{found}; no row was read")


def _parse_header(line: bytes, *, room_required: bool) -> list[str] | InvalidRequest:
    found = _find_other_format(line)
    if found is not None:
        return _header_error(found)
    names = _split_cells(line)
    if isinstance(names, InvalidRequest):
        return _header_error(str(names))
    for position, name in enumerate(names, 1):
        if name not in COLUMNS:
            return _header_error(f"{_describe_name(name)} in column {position}")
        if name in names[: position - 1]:
            return _header_error(f"{name} twice")
    for name in ("room", "user") if room_required else ("user",):
        if name not in names:
            return _header_error(f"no {name}")
    return names


def _find_other_format(line: bytes) -> str | None:
    """Say what a first line is, if it is no header of cells between commas."""
    text = line.decode(errors="replace").strip()
    if text.startswith(("{", "[")):
        return "JSON (JSON lines, an object on each, are named .jsonl)"
    if re.match('"?sep=', text, re.IGNORECASE):
        return "the line sep= of a spreadsheet's own, which has to go"
    for separator, word in _SEPARATORS.items():
        cells = text.replace('"', "").split(separator)
        if len(cells) > 1 and ("," not in text or any(map(_column_of, cells))):
            return f"{word} between cells, not commas"
    return None


def _column_of(name: str) -> str | None:
    """Return the column that goes by a name, or by one that is written in another way."""
    return _OTHER_NAMES.get(re.sub(r"[\W_]", "", name).lower())


def _describe_name(name: str, kind: str = "name") -> str:
    if column := _column_of(name):
        return f"{name!r} (here {column!r})"
    # The name is not shown: in a file without a header it is a user id.
    return f"another {kind}" if name else f"no {kind}"


def _parse_csv_row(header: list[str], line: bytes) -> _Row | InvalidRequest:
    cells = _split_cells(line)
    if isinstance(cells, InvalidRequest):
        return cells
    if len(cells) != len(header):
        return InvalidRequest("line", f"{len(header)} cells, as the header", f"{len(cells)}")
    if cells == header:
        return InvalidRequest("line", "a row", "the header again")
    text = "".join(cells)
    if " " in text or not text.isprintable():
        for name, cell in zip(header, cells, strict=True):
            # Python knows fewer characters than there are: a new one is no reason to refuse a row.
            if not _INVISIBLE.isdisjoint(map(unicodedata.category, cell[:1] + cell[-1:])):
                limit = "cells with no white space or invisible character at an edge"
                return InvalidRequest(
                    "line", f"{limit}; JSON lines may have them", f"one in {name}"
                )
    members: _Row = dict(zip(header, cells, strict=True))
    for name, parse in _CELL_PARSERS.items():
        if name in members:
            members[name] = parse(members[name]) if members[name] else None
    return members


def _parse_minutes(cell: str) -> int | InvalidRequest:
    if re.fullmatch("[0-9]{1,3}", cell):
        return int(cell)
    limit = f"a whole number from 1 to {SESSION_MAX_MINUTES}"
    return InvalidRequest("sessionDurationInMinutes", limit, "other text")


def _parse_json_row(line: bytes) -> _Row | InvalidRequest:
    text = _decode_line(line)
    members = text if isinstance(text, InvalidRequest) else _parse_object("line", text)
    if isinstance(members, InvalidRequest):
        return members
    for key in members.keys() - set(COLUMNS):
        limit = f"an object with {', '.join(COLUMNS)}"
        return InvalidRequest("line", limit, _describe_name(key, "key"))
    capabilities = members.get("capabilities")
    if capabilities is not None and not isinstance(capabilities, list):
        found = "another JSON value"
        members["capabilities"] = InvalidRequest("capabilities", "a list of names", found)
    return members


class _Refused(Exception):
    """Python's parser accepts the JSON, this module does not."""


def _parse_object(member: str, text: str) -> dict[str, Any] | InvalidRequest:
    # The error is returned and not raised: JSONDecodeError holds the text, and would be the context
    # of an error that is raised here.
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


def _refuse_equal_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refused("one with a key twice")
    return members


def _refuse_constant(name: str) -> Any:
    raise _Refused(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_equal_keys, parse_constant=_refuse_constant)

_CELL_PARSERS: dict[str, Callable[[str], Any]] = {
    "capabilities": str.split,
    "attributes": partial(_parse_object, "attributes"),
    "session_minutes": _parse_minutes,
}
