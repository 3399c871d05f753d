"""Whatever a file holds: every row is read or told, and nothing else ever comes of it."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aioivschat import InvalidConfiguration, InvalidRequest, TokenRequest
from aioivschat.cli.checkpoint import Checkpoint
from aioivschat.onboarding._attendees import COLUMNS, Attendee, Format, read_attendees
from aioivschat.planning import Arrivals
from support.fuzzing import Target, bounded
from support.services import ROOM

CANARY = "canary-7Qd1"
_MARK = b"\xef\xbb\xbf"


def _read(raw: bytes, file_format: Format | None, room: str | None) -> list[Attendee]:
    return list(read_attendees(io.BytesIO(raw), file_format, room=room))


def _numbered(raw: bytes) -> dict[int, bytes]:
    """Return the lines that are not blank, by their numbers."""
    lines = raw.removeprefix(_MARK).split(b"\n")
    return {number: line for number, line in enumerate(lines, 1) if line.strip(b" \t\r\v\f")}


def _is_blank_row(line: bytes) -> bool:
    """Tell whether a line of CSV has no cell with anything in it."""
    text = line.decode(errors="replace").rstrip("\r")
    try:
        return not any(next(csv.reader([text], strict=True), []))
    except csv.Error:
        return False


def check_attendees(raw: bytes, file_format: Format | None, room: str | None) -> None:
    """Check that no row is lost, and none is there twice or made up."""
    rows = _read(raw, file_format, room)
    for row in rows:
        assert (row.request is None) != (row.error is None)
    found, lines = [row.line for row in rows], _numbered(raw)
    there = [number for number, line in lines.items() if not _is_blank_row(line)]
    if file_format != "jsonl" and not there:
        assert ([1], True) == (found, "an empty file" in str(rows[0].error))
    elif rows and "no row was read" in str(rows[0].error):
        # No row means anything without a header, or if the file is no text.
        assert there[:1] == found or (file_format == "jsonl" and [1] == found)
    elif file_format == "jsonl":
        assert list(lines) == found
    elif file_format is None and lines[there[0]].lstrip().startswith(b"{"):
        assert [number for number in lines if number >= there[0]] == found
    else:
        assert there[1:] == found


_SHAPES: list[tuple[Format | None, str | None]] = [
    (None, None),
    ("csv", None),
    ("csv", ROOM),
    ("jsonl", ROOM),
]

_PIECES = st.sampled_from(
    [ROOM, *COLUMNS, ",", '"', '""', "\n", "\r", "\r\n", "\0", "{", "}", "[", ":", "NaN", "\ufeff"]
)
_LIKELY = st.lists(_PIECES | st.text(max_size=5), max_size=30).map(
    lambda pieces: "".join(pieces).encode("utf-8", "surrogatepass")
)


@pytest.mark.fault(28)
@bounded
@given(raw=st.binary(max_size=200) | _LIKELY, shape=st.sampled_from(_SHAPES))
@example(raw=_MARK + b"\n" + _MARK + b"user\nalice", shape=("csv", ROOM))
@example(raw=b"user\n\x1c\n \x85\n", shape=("csv", ROOM))
@example(raw=b"\x1f{}\n{}", shape=(None, None))
@example(raw=b',\n,""\nuser\n""\nalice', shape=(None, ROOM))
@example(raw=b",\n{}\n,\n{}", shape=(None, ROOM))
@example(raw=b"\xff\xfe\n{}", shape=("jsonl", ROOM))
@example(raw=b'"', shape=("csv", ROOM))
def test_every_line_of_any_attendee_file_is_told(
    raw: bytes, shape: tuple[Format | None, str | None]
) -> None:
    """Every line of any bytes is a row or an error, with a header before them or without."""
    check_attendees(raw, *shape)
    check_attendees(",".join(COLUMNS).encode() + b"\n" + raw, "csv", shape[1])


_CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), max_size=20)
_OBJECTS = st.dictionaries(_CELLS, _CELLS, max_size=3).map(json.dumps)
_ROWS = st.fixed_dictionaries(
    {
        "room": st.sampled_from([ROOM, ROOM, ROOM + "2", "", CANARY]),
        "user": _CELLS.map(lambda text: CANARY + text) | _CELLS,
        "capabilities": st.sampled_from(["", "SEND_MESSAGE", "SEND_MESSAGE  DELETE_MESSAGE", "X"]),
        "attributes": st.just("") | _OBJECTS | _CELLS,
        "session_minutes": st.sampled_from(["", "1", "180", "181", "060", "x", "٣", "-1"]),
    }
)


def _expected(row: dict[str, str]) -> TokenRequest | None:
    """Return what the columns of a row mean, by Python's own readers."""
    edges = "".join(cell[:1] + cell[-1:] for cell in row.values())
    if any(unicodedata.category(edge) in ("Cc", "Cf", "Zl", "Zp", "Zs") for edge in edges):
        return None
    try:
        attributes = json.loads(row["attributes"], object_pairs_hook=_once) or None
        if row["attributes"] and not isinstance(attributes, dict | None):
            return None
    except ValueError:
        if row["attributes"]:
            return None
        attributes = None
    minutes = row["session_minutes"] or "60"
    if not (minutes.isascii() and minutes.isdigit()):
        return None
    try:
        return TokenRequest(
            row["room"], row["user"], row["capabilities"].split(), attributes, int(minutes)
        )
    except InvalidRequest:
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError
    return dict(pairs)


def _check_rows(rows: list[Attendee], expected: list[TokenRequest | None]) -> None:
    """Check rows against what they mean, of which the same attendee counts once."""
    seen: set[tuple[str, str]] = set()
    for row, request in zip(rows, expected, strict=True):
        assert CANARY not in f"{row!r} {row.error}"
        is_again = request is not None and (request.room, request.user) in seen
        assert (None if is_again else request) == row.request
        if request is not None:
            seen.add((request.room, request.user))


@pytest.mark.fault(28)
@bounded
@given(
    rows=st.lists(_ROWS, max_size=4),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    order=st.permutations(COLUMNS),
)
def test_what_a_spreadsheet_writes_is_read_as_python_reads_it(
    rows: list[dict[str, str]], end: str, quoting: int, order: list[str]
) -> None:
    """Each row is its request, or an error; and no error shows what is in it."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, order, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]  # the stubs list the constants
    writer.writeheader()
    writer.writerows(rows)
    written = list(csv.DictReader(io.StringIO(text.getvalue(), newline="")))
    assert rows == written
    expected = [_expected(row) for row in rows if any(row.values())]
    _check_rows(_read(text.getvalue().encode(), "csv", None), expected)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
_MEMBERS = st.fixed_dictionaries(
    {"user": st.text(max_size=8).map(lambda text: CANARY + text)},
    optional={
        "room": st.sampled_from([ROOM, "", None]) | _JSON,
        "capabilities": st.lists(st.sampled_from(["SEND_MESSAGE", "X"]), max_size=2) | _JSON,
        "attributes": st.dictionaries(st.text(max_size=5), st.text(max_size=5)) | _JSON,
        "session_minutes": st.integers(0, 181) | _JSON,
        "more": _JSON,
    },
)


def _meant(value: Any) -> TokenRequest | None:
    """Return what a line of JSON means, as TokenRequest has it."""
    if not isinstance(value, dict) or not value.keys() <= set(COLUMNS):
        return None
    members = {name: member for name, member in value.items() if member is not None}
    if not isinstance(members.get("capabilities", []), list):
        return None
    try:
        return TokenRequest(
            **({"room": ROOM, "user": ""} | members | {"room": members.get("room") or ROOM})
        )
    except InvalidRequest:
        return None


@pytest.mark.fault(28)
@bounded
@given(lines=st.lists(_MEMBERS | _JSON, max_size=4), plain=st.booleans())
def test_json_lines_are_read_as_python_reads_them(lines: list[Any], plain: bool) -> None:
    """Whatever the values are; NaN and lone surrogates are errors of their lines."""
    text = "".join(json.dumps(line, ensure_ascii=not plain) + "\n" for line in lines)
    raw = text.encode("utf-8", "surrogatepass")
    expected = []
    for line, dumped in zip(lines, text.split("\n"), strict=False):
        readable = "NaN" not in dumped and "Infinity" not in dumped
        expected.append(_meant(line) if readable and _encodable(dumped) else None)
    _check_rows(_read(raw, "jsonl", ROOM), expected)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# Checkpoints.

_BEGIN = b'{"checkpoint": 1, "output": "a file", "started": 1.5}\n'


def check_checkpoint(raw: bytes) -> None:
    """Check that a file is taken for a checkpoint or left alone, and means the same again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        path.write_bytes(raw)
        states = []
        for _ in range(2):
            try:
                with Checkpoint(str(path), "a file") as opened:
                    counts = (opened.tokens, opened.failed, opened.again, opened.output_bytes)
                    states.append(
                        (opened.job_started, *counts, bytes(opened._done), opened._last_begun)
                    )
            except OSError:
                assert raw == path.read_bytes()
                return
        assert states[0] == states[1]
        assert all(count >= 0 for count in states[0][1:5])
        assert len(states[0][5]) <= states[0][6] + 1
        # A torn end is dropped; nothing before it is changed.
        if raw:
            assert raw.startswith(path.read_bytes())


_NUMBERS = st.one_of(
    st.integers(-1, 30), st.sampled_from([10**12, 10**30, 1e999, -1e999, 0.5]), _JSON
)
_ENTRIES = st.one_of(
    st.fixed_dictionaries({"begun": _NUMBERS, "input": st.text(max_size=3)}),
    st.fixed_dictionaries({"again": _NUMBERS}),
    st.fixed_dictionaries(
        {
            "done": st.lists(st.tuples(_NUMBERS, _NUMBERS), max_size=3) | _JSON,
            "tokens": _NUMBERS,
            "failed": _NUMBERS,
            "output": _NUMBERS,
        }
    ),
    st.fixed_dictionaries({"checkpoint": _JSON, "output": _JSON, "started": _NUMBERS}),
    _JSON,
)


@bounded
@given(
    st.binary(max_size=100)
    | st.builds(
        lambda begin, entries, torn: begin + b"".join(entries) + torn,
        st.sampled_from([_BEGIN, b""]),
        st.lists(_ENTRIES.map(lambda entry: json.dumps(entry).encode() + b"\n"), max_size=5),
        st.binary(max_size=10),
    )
)
@example(_BEGIN + b'{"begun": 1e999, "input": ""}\n')
@example(_BEGIN + b'{"again": -1e999}\n')
@example(_BEGIN + b'{"done": [], "tokens": 0, "failed": 0, "output": 1e999}\n')
@example(_BEGIN + b"[" * 100_000 + b"\n")
@example(_BEGIN.replace(b"1.5", b"NaN"))
@example(_BEGIN + b'{"begun": 1000000000000, "input": ""}\n')
@example(
    _BEGIN + b'{"begun": 9, "input": ""}\n'
    b'{"done": [[1, 2], [3, "x"]], "tokens": 0, "failed": 0, "output": 0}\n'
)
def test_any_file_is_a_checkpoint_or_left_alone(raw: bytes) -> None:
    """It says what it said before, whatever was torn off."""
    check_checkpoint(raw)


# The arrivals of an event.


def check_arrivals(raw: bytes) -> None:
    """Check that all who are in a file of arrivals come, or that a line is complained of."""
    lines = list(io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8-sig", errors="replace"))
    try:
        arrivals = Arrivals.read(lines)
    except InvalidConfiguration as error:
        assert "arrivals" in error.option
        return
    rows = [line.split(",") for line in lines if line.replace(",", "").strip()]
    try:
        _ = [int(cell) for cell in rows[0]]
    except ValueError:
        rows = rows[1:]
    assert sum(int(row[-1]) for row in rows) == sum(arrivals.counts)


@bounded
@given(
    st.binary(max_size=60)
    | st.lists(
        st.lists(
            st.integers(-1, 90_000).map(str) | st.text("0123456789_- .e٣,", max_size=6),
            min_size=1,
            max_size=3,
        ),
        max_size=6,
    ).map(lambda rows: "\n".join(map(",".join, rows)).encode())
)
@example(b"9" * 4300 + b"\n" + b"9" * 4300)
@example(b"9" * 5000 + b"\n1")
@example(b"0,0,1\n1")
def test_everybody_in_a_file_of_arrivals_comes_or_a_line_is_told(raw: bytes) -> None:
    """Arrivals add up to the numbers in the file, or an error names a line."""
    check_arrivals(raw)


def _attendees(data: bytes) -> None:
    check_attendees(data[1:], *_SHAPES[data[0] % len(_SHAPES)] if data else (None, None))


TARGETS = {
    "attendees": Target(
        _attendees,
        (
            b'\1room,user,attributes\r\nr,"a""b,","{""x"":""y""}"\n',
            f"\2user,session_minutes\nalice,60\n{CANARY},\n".encode(),
            b'\3{"user": "a", "capabilities": ["SEND_MESSAGE"], "session_minutes": 60}\n{}\n',
        ),
    ),
    "spreadsheets": Target(test_what_a_spreadsheet_writes_is_read_as_python_reads_it),
    "json-lines": Target(test_json_lines_are_read_as_python_reads_them),
    "checkpoints": Target(
        check_checkpoint,
        (
            _BEGIN + b'{"begun": 9, "input": "x"}\n{"again": 1}\n',
            _BEGIN + b'{"begun": 9, "input": ""}\n'
            b'{"done": [[1, 2]], "tokens": 1, "failed": 1, "output": 9}\n',
        ),
    ),
    "checkpoint-entries": Target(test_any_file_is_a_checkpoint_or_left_alone),
    "arrivals": Target(check_arrivals, (b"second,arrivals\n0,10\n2,5\n", b"3\n4\n")),
}
