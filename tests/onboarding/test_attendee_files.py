"""Attendee files: what is read, and how a line that cannot be read is reported."""

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aioivschat._models import TokenRequest
from aioivschat.errors import InvalidRequest
from aioivschat.onboarding._attendees import (
    LINE_MAX_BYTES,
    Attendee,
    Format,
    SeenAttendees,
    read_attendees,
)
from support.paths import ROOT

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Lobby"
OTHER_ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Stage"
CANARY = "canary-4711"
HEADER = "room,user,capabilities,attributes,session_minutes\n"
EXAMPLE = ROOT / "examples" / "attendees.csv"


def read(
    text: str | bytes, file_format: Format | None = None, room: str | None = None
) -> list[Attendee]:
    """Read a file that holds the text."""
    raw = text if isinstance(text, bytes) else text.encode()
    return list(read_attendees(io.BytesIO(raw), file_format, room=room))


def errors(rows: Iterable[Attendee]) -> dict[int, str]:
    """Return the errors' messages by line."""
    return {row.line: str(row.error) for row in rows if row.error is not None}


def users(rows: Iterable[Attendee]) -> list[str]:
    """Return the users of the rows that can be done."""
    return [row.request.user for row in rows if row.request is not None]


def assert_nothing_shows(rows: Iterable[Attendee]) -> None:
    """Check that neither a repr nor what hangs on an error holds anything of a row."""
    for row in rows:
        assert CANARY not in repr(row)
        if row.error is not None:
            chain = (row.error.__cause__, row.error.__context__, row.error.__traceback__)
            assert chain == (None, None, None)


def test_a_csv_row_becomes_a_request() -> None:
    """All five columns are read; lines count from 1, the header included."""
    row = f'{ROOM},viewer-1,SEND_MESSAGE DELETE_MESSAGE,"{{""displayName"":""Viewer 1""}}",30\n'
    expected = TokenRequest(
        ROOM, "viewer-1", {"SEND_MESSAGE", "DELETE_MESSAGE"}, {"displayName": "Viewer 1"}, 30
    )
    assert [Attendee(2, expected)] == read(HEADER + row)


def test_empty_cells_mean_the_defaults() -> None:
    """No capabilities, no attributes, 60 minutes."""
    assert [Attendee(2, TokenRequest(ROOM, "viewer-1"))] == read(f"{HEADER}{ROOM},viewer-1,,,\n")


def test_columns_may_come_in_any_order_and_optional_ones_be_left_out() -> None:
    """Columns may stand in any order, and only room and user are required."""
    assert [Attendee(2, TokenRequest(ROOM, "viewer-1"))] == read(f"user,room\nviewer-1,{ROOM}\n")


def test_json_lines_have_the_same_names() -> None:
    """Capabilities are a list, attributes an object, and null is as good as absent."""
    full = {
        "room": ROOM,
        "user": "viewer-1",
        "capabilities": ["SEND_MESSAGE"],
        "attributes": {"displayName": "Viewer 1"},
        "session_minutes": 30,
    }
    nulls = {
        "room": ROOM,
        "user": "viewer-2",
        "capabilities": None,
        "attributes": None,
        "session_minutes": None,
    }
    expected = [
        Attendee(
            1,
            TokenRequest(ROOM, "viewer-1", ["SEND_MESSAGE"], {"displayName": "Viewer 1"}, 30),
        ),
        Attendee(2, TokenRequest(ROOM, "viewer-2")),
    ]
    assert expected == read(f"{json.dumps(full)}\n{json.dumps(nulls)}\n")


def test_the_example_is_a_thousand_attendees_in_one_account_and_region() -> None:
    """The example that is shipped has no error."""
    with EXAMPLE.open("rb") as file:
        rows = list(read_attendees(file, "csv"))
    assert errors(rows) == {}
    assert len(rows) == 1000
    rooms = {row.request.room for row in rows if row.request}
    assert {tuple(room.split(":")[3:5]) for room in rooms} == {("us-east-1", "123456789012")}
    assert 2 <= len(rooms) <= 3


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    "text", [f"{HEADER}{ROOM},viewer-1,,,\n", json.dumps({"room": ROOM, "user": "viewer-1"})]
)
def test_a_byte_order_mark_is_accepted(text: str) -> None:
    """Spreadsheets put one at the start of what they export."""
    assert users(read(b"\xef\xbb\xbf" + text.encode())) == ["viewer-1"]


def test_blank_lines_are_skipped_and_counted() -> None:
    """Windows' line ends, a missing last one and blank lines do no harm."""
    rows = read(f"\r\n{HEADER.strip()}\r\n\r\n{ROOM},viewer-1,,,\r\n  \r\n{ROOM},viewer-2,,,")
    assert [(row.line, row.request.user) for row in rows if row.request] == [
        (4, "viewer-1"),
        (6, "viewer-2"),
    ]
    assert errors(rows) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  " + json.dumps({"room": ROOM, "user": "viewer-1"}), ["viewer-1"]),
        (f"room,user\n{ROOM},viewer-1\n", ["viewer-1"]),
    ],
)
def test_the_format_is_told_from_the_first_character(text: str, expected: list[str]) -> None:
    """Standard input has no extension."""
    assert expected == users(read(text))


def test_rows_without_a_room_get_the_one_that_was_given() -> None:
    """The column may be missing, a cell be empty, and a row name its own."""
    assert [Attendee(2, TokenRequest(ROOM, "viewer-1"))] == read("user\nviewer-1\n", room=ROOM)
    rows = read(f"room,user\n,viewer-1\n{OTHER_ROOM},viewer-1\n", room=ROOM)
    assert [row.request.room for row in rows if row.request] == [ROOM, OTHER_ROOM]
    assert users(read('{"user": "viewer-1"}\n', room=ROOM)) == ["viewer-1"]


def test_a_bad_default_room_is_refused_at_once() -> None:
    """A default room that is no ARN is refused before the first row is pulled."""
    with pytest.raises(InvalidRequest, match="roomIdentifier"):
        read_attendees(io.BytesIO(), room="lobby")


BAD_CSV_ROWS = {
    "NUL": f"{ROOM},a\0{CANARY},,,",
    "ragged, short": f"{ROOM},{CANARY},,",
    "ragged, long": f"{ROOM},{CANARY},,,,",
    "unclosed quote": f'{ROOM},"{CANARY},,,',
    "text behind a quote": f'{ROOM},"{CANARY}"x,,,',
    "huge line": f"{ROOM},{CANARY}{'x' * LINE_MAX_BYTES},,,",
    "huge cell": f"{ROOM},{CANARY}{'x' * 1000},,,",
    "invalid UTF-8": f"{ROOM},{CANARY}".encode() + b"\xff,,,",
    "lone surrogate": f"{ROOM},{CANARY}".encode() + b"\xed\xa0\x80,,,",
    "escaped lone surrogate": f'{ROOM},{CANARY},,"{{""a"": ""\\ud800""}}",',
    "NaN": f'{ROOM},{CANARY},,"{{""a"": NaN}}",',
    "Infinity": f'{ROOM},{CANARY},,"{{""a"": -Infinity}}",',
    "deep JSON": f"{ROOM},{CANARY},,{'[' * 60_000},",
    "duplicate key": f'{ROOM},{CANARY},,"{{""a"": ""1"", ""a"": ""2""}}",',
    "attribute that is no text": f'{ROOM},{CANARY},,"{{""a"": 1}}",',
    "attributes that are no object": f'{ROOM},{CANARY},,"[""a""]",',
    "attributes that are no JSON": f"{ROOM},{CANARY},,{CANARY},",
    "attributes too large": f'{ROOM},{CANARY},,"{{""a"": ""{"x" * 1024}""}}",',
    "unknown capability": f"{ROOM},{CANARY},{CANARY},,",
    "minutes that are no number": f"{ROOM},{CANARY},,,{CANARY}",
    "minutes out of range": f"{ROOM},{CANARY},,,181",
    "minutes in other digits": f"{ROOM},{CANARY},,,٣٠",
    "no user": f"{ROOM},,,,",
    "no room": f",{CANARY},,,",
    "user in the place of the room": f"{CANARY},{ROOM},,,",
}


@pytest.mark.fault(28)
@pytest.mark.parametrize("bad", BAD_CSV_ROWS.values(), ids=BAD_CSV_ROWS)
def test_a_bad_csv_row_is_an_error_in_its_place(bad: str | bytes) -> None:
    """The rows before and behind it are read, and the error shows nothing of the row."""
    raw = bad if isinstance(bad, bytes) else bad.encode()
    good = [f"{ROOM},viewer-{number},,,\n".encode() for number in (1, 2)]
    rows = read(HEADER.encode() + good[0] + raw + b"\n" + good[1])
    assert [row.line for row in rows] == [2, 3, 4]
    assert users(rows) == ["viewer-1", "viewer-2"]
    assert list(errors(rows)) == [3]
    assert CANARY not in repr(rows)
    assert "xxxx" not in repr(rows)


BAD_JSON_ROWS = {
    "NUL": '{"room": "%s", "user": "\0"}',
    "no JSON": '{"room": "%s", "user": canary-4711}',
    "cut off": '{"room": "%s", "user": "canary-4711"',
    "two values": '{"room": "%s", "user": "canary-4711"} {}',
    "another value": '["%s"]',
    "duplicate key": '{"room": "%s", "user": "canary-4711", "user": "b"}',
    "duplicate attribute": (
        '{"room": "%s", "user": "canary-4711", "attributes": {"a": "1", "a": "1"}}'
    ),
    "unknown key": '{"room": "%s", "user": "canary-4711", "canary-4711": 1}',
    "lone surrogate": '{"room": "%s", "user": "canary-4711\\ud800"}',
    "NaN": '{"room": "%s", "user": "canary-4711", "session_minutes": NaN}',
    "Infinity": '{"room": "%s", "user": "canary-4711", "session_minutes": Infinity}',
    "float": '{"room": "%s", "user": "canary-4711", "session_minutes": 1e999}',
    "true": '{"room": "%s", "user": "canary-4711", "session_minutes": true}',
    "many digits": '{"room": "%s", "user": "canary-4711", "session_minutes": ' + "9" * 5000 + "}",
    "deep": '{"room": "%s", "user": ' + "[" * 60_000,
    "user is a list": '{"room": "%s", "user": ["canary-4711"]}',
    "room is an object": '{"room": {"a": "%s"}, "user": "canary-4711"}',
    "no user": '{"room": "%s"}',
    "capabilities as text": '{"room": "%s", "user": "a", "capabilities": "SEND_MESSAGE"}',
    "capabilities as an object": (
        '{"room": "%s", "user": "a", "capabilities": {"SEND_MESSAGE": 1}}'
    ),
    "capability is a list": '{"room": "%s", "user": "a", "capabilities": [["SEND_MESSAGE"]]}',
    "unknown capability": '{"room": "%s", "user": "a", "capabilities": ["canary-4711"]}',
    "attributes are a list": '{"room": "%s", "user": "a", "attributes": ["canary-4711"]}',
    "attribute is no text": '{"room": "%s", "user": "a", "attributes": {"canary-4711": 1}}',
    "huge line": '{"room": "%s", "user": "' + "x" * LINE_MAX_BYTES + '"}',
}


@pytest.mark.fault(28)
@pytest.mark.parametrize("bad", BAD_JSON_ROWS.values(), ids=BAD_JSON_ROWS)
def test_a_bad_json_line_is_an_error_in_its_place(bad: str) -> None:
    """The lines before and behind it are read, and the error shows nothing of the line."""
    good = [json.dumps({"room": ROOM, "user": f"viewer-{number}"}) for number in (1, 2)]
    rows = read("\n".join([good[0], bad % ROOM, good[1]]), "jsonl")
    assert users(rows) == ["viewer-1", "viewer-2"]
    assert list(errors(rows)) == [2]
    assert CANARY not in repr(rows)
    assert "xxxx" not in repr(rows)


@pytest.mark.fault(28)
def test_an_unclosed_quote_swallows_no_later_row() -> None:
    """Both lines of a cell with a line break are errors, and the row behind them is read."""
    text = f'{HEADER}{ROOM},"two\nlines",,,\n{ROOM},viewer-2,,,\n'
    rows = read(text)
    assert list(errors(rows)) == [2, 3]
    assert "a quote that is not closed" in errors(rows)[2]
    assert users(rows) == ["viewer-2"]


@pytest.mark.fault(28)
def test_an_attendee_listed_twice_is_an_error_that_names_the_first_line() -> None:
    """The same user in another room is another attendee, and a row with an error is none."""
    rows = read(
        f"room,user,capabilities\n{ROOM},viewer-1,\n{OTHER_ROOM},viewer-1,\n"
        f"{ROOM},viewer-1,SEND_MESSAGE\n{ROOM},viewer-2,ROOT\n{ROOM},viewer-2,\n"
    )
    assert list(errors(rows)) == [4, 5]
    assert "line 2" in errors(rows)[4]
    assert users(rows) == ["viewer-1", "viewer-1", "viewer-2"]


@pytest.mark.fault(28)
def test_duplicates_are_told_among_many() -> None:
    """Of 30,000 attendees exactly those listed twice are errors."""
    names = [f'{{"user": "viewer-{number}"}}\n' for number in range(30_000)]
    rows = read("".join([*names, *names[::7]]), "jsonl", room=ROOM)
    expected = {
        30_001 + place: f"the user of line {1 + 7 * place} again"
        for place in range(len(names[::7]))
    }
    assert expected == {line: text.rpartition("found ")[2] for line, text in errors(rows).items()}


def test_an_attendee_is_remembered_in_little_memory() -> None:
    """Remembering an attendee takes less than 90 bytes."""
    seen = SeenAttendees()
    tracemalloc.start()
    try:
        for number in range(1, 200_001):
            assert number == seen.first_line(ROOM, f"viewer-{number}", number)
            if number == 100_000:
                half, _ = tracemalloc.get_traced_memory()
        whole, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (whole - half) / 100_000 < 90


def test_a_digest_within_two_others_is_nobodys() -> None:
    """Bytes of a digest that stand across two entries are not taken for an attendee."""
    seen = SeenAttendees()
    assert 1 == seen.first_line(ROOM, "viewer-1", 1)
    ((_, entries),) = seen._entries.items()
    entries[:0] = b"x" + entries + bytes(18)
    del entries[38:]
    assert 2 == seen.first_line(ROOM, "viewer-1", 2)
    assert 2 == seen.first_line(ROOM, "viewer-1", 3)


def test_room_and_user_are_kept_where_they_were_read_well() -> None:
    """A row with an error keeps room and user if both could be read."""
    rows = read(f"room,user,session_minutes\n{ROOM},viewer-1,0\nlobby,viewer-2,\n")
    assert [(row.room, row.user) for row in rows] == [(ROOM, "viewer-1"), (None, None)]
    assert "viewer-1" not in repr(rows)


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("room,user,room", "room twice"),
        ("room,user,canary-4711", "another name in column 3"),
        ("room,capabilities", "no user"),
        ("user,capabilities", "no room"),
        (f"{ROOM},canary-4711,,,", "another name in column 1"),
        ('room,"user', "a quote that is not closed"),
        ("room,user\0", "NUL"),
        ("room;user", "semicolons between cells"),
        ("room," + "x" * LINE_MAX_BYTES, "more"),
    ],
)
def test_a_bad_header_is_one_error_and_ends_the_file(header: str, found: str) -> None:
    """Without a header no row means anything; a missing one shows no user."""
    rows = read(f"{header}\n{ROOM},viewer-1,\n", "csv")
    assert [row.line for row in rows] == [1]
    assert found in errors(rows)[1]
    assert CANARY not in repr(rows)


@pytest.mark.fault(28)
def test_utf_16_is_an_error() -> None:
    """UTF-16, which spreadsheets export as Unicode text, is one error."""
    assert list(errors(read(HEADER.encode("utf-16")))) == [1]


@pytest.mark.fault(50)
@pytest.mark.parametrize("blank", [",", ",,,,", '"",""', ",,", '""'])
def test_rows_of_commas_are_blank_lines(blank: str) -> None:
    """Spreadsheets leave them behind a table; they are counted as lines."""
    row = f"{blank}\r\n"
    rows = read(f"{row}user,capabilities\r\n{row}viewer-1,\r\n{row}{blank}", room=ROOM)
    assert [(4, "viewer-1")] == [(row.line, row.request.user) for row in rows if row.request]
    assert {} == errors(rows)


INVISIBLE_EDGES = [
    *(" ", "\t", "\v", "\x85", "\xa0", "\u2003", "\u2028", "\u3000"),
    *("\xad", "\u200b", "\u200d", "\u200e", "\u2060", "\ufeff", "\x7f"),
]


@pytest.mark.fault(50)
@pytest.mark.parametrize("edge", INVISIBLE_EDGES, ids=ascii)
@pytest.mark.parametrize("cell", ["{}viewer-1", "viewer-1{}", '"{}viewer-1"', "{}"])
def test_what_nobody_sees_at_the_edge_of_a_cell_is_an_error(edge: str, cell: str) -> None:
    """It is another user than the one that is meant; the row behind it is read."""
    text = f"capabilities,user,room\n,{cell.format(edge)},\n,viewer-2,\n"
    rows = read(text, room=ROOM)
    assert ["viewer-2"] == users(rows)
    assert [2] == list(errors(rows))
    assert "at an edge; JSON lines may have them; found one in user" in errors(rows)[2]


@pytest.mark.fault(50)
@pytest.mark.parametrize("row", [" , ", "viewer-1, SEND_MESSAGE", "viewer-1,SEND_MESSAGE "])
def test_a_blank_at_the_edge_of_any_cell_is_an_error(row: str) -> None:
    """Blanks and commas are no blank line, and no user."""
    rows = read(f"user,capabilities\n{row}\nviewer-2,\n", room=ROOM)
    assert (["viewer-2"], [2]) == (users(rows), list(errors(rows)))


@pytest.mark.fault(50)
def test_what_is_within_a_cell_or_in_json_lines_is_meant() -> None:
    """Names have blanks, emoji are joined, and JSON says where a text ends."""
    inside = ["Viewer One", "a\u200db", "\U0001f468\u200d\U0001f469", "\U0001fae9", 'say "hi', "ü"]
    text = "user\n" + "".join(f"{user}\n" for user in inside)
    assert inside == users(read(text, "csv", ROOM))
    edges = [f"viewer{edge}" for edge in INVISIBLE_EDGES]
    assert edges == users(read("".join(json.dumps({"user": e}) + "\n" for e in edges), room=ROOM))


@pytest.mark.fault(50)
@pytest.mark.parametrize("cell", ['viewer-1"', '5"', '"', 'a"b"', 'a,viewer-1"'])
def test_a_quote_that_ends_a_cell_it_did_not_begin_is_an_error(cell: str) -> None:
    """It is the rest of a cell with a line break in it; a quote that was meant is doubled."""
    header = "user,capabilities\n" if "," in cell else "user\n"
    more = "," if "," in cell else ""
    rows = read(f"{header}{cell}\nviewer-2{more}\n", room=ROOM)
    assert (["viewer-2"], [2]) == (users(rows), list(errors(rows)))
    assert "quote" in errors(rows)[2]
    doubled = ['5"', 'say "hi"', '"', ',"', '","']
    text = "user\n" + "".join('"{}"\n'.format(each.replace('"', '""')) for each in doubled)
    assert doubled == users(read(text, "csv", ROOM))


@pytest.mark.fault(50)
@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("user;capabilities", "semicolons between cells, not commas"),
        ('"user";"capabilities"', "semicolons between cells, not commas"),
        ("user;", "semicolons between cells, not commas"),
        ("canary-4711;canary-4711", "semicolons between cells, not commas"),
        ("user\tcapabilities", "tabs between cells, not commas"),
        ("user|capabilities", "bars between cells, not commas"),
        ("user;room,capabilities", "semicolons between cells, not commas"),
        ("sep=;", "the line sep= of a spreadsheet's own, which has to go"),
        ("SEP=,", "the line sep= of a spreadsheet's own, which has to go"),
        ('"sep=\t"', "the line sep= of a spreadsheet's own, which has to go"),
        ("room,User", "'User' (here 'user') in column 2"),
        ("ROOM,user", "'ROOM' (here 'room') in column 1"),
        ("room, user", "' user' (here 'user') in column 2"),
        ("room,\ufeffuser", "'\\ufeffuser' (here 'user') in column 2"),
        ("room,User ID", "'User ID' (here 'user') in column 2"),
        ("room,user,sessionMinutes", "'sessionMinutes' (here 'session_minutes') in"),
        ("roomIdentifier,userId", "'roomIdentifier' (here 'room') in column 1"),
        ("room,userId", "'userId' (here 'user') in column 2"),
        ("room,user,sessionDurationInMinutes", "(here 'session_minutes') in column 3"),
        ("room,user,,", "no name in column 3"),
        ("room,user\rcanary-4711,", "a line break of CR alone"),
        ('{"room": "canary-4711"}', "JSON (JSON lines, an object on each, are named .jsonl)"),
        ('[{"room": "canary-4711"}]', "JSON (JSON lines, an object on each, are named .jsonl)"),
        ("room,canary-4711", "another name in column 2"),
    ],
)
def test_what_other_programs_write_in_place_of_a_header_is_named(header: str, found: str) -> None:
    """One error says what to change, and shows no name that may be a user's."""
    rows = read(f"{header}\n{ROOM},viewer-1\n", "csv")
    assert [1] == list(errors(rows))
    assert found in errors(rows)[1]
    assert [] == users(rows)
    assert CANARY not in repr(rows)


@pytest.mark.fault(50)
@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("userId", "'userId' (here 'user')"),
        ("Session_Minutes", "'Session_Minutes' (here 'session_minutes')"),
        ("username", "'username' (here 'user')"),
        (CANARY, "another key"),
        ("", "no key"),
    ],
)
def test_keys_by_other_names_are_named(key: str, found: str) -> None:
    """In JSON lines too, each on its line."""
    rows = read(json.dumps({"room": ROOM, key: "viewer-1"}) + "\n", "jsonl")
    assert errors(rows)[1].endswith(f"found {found}")
    assert CANARY not in repr(rows)


@pytest.mark.fault(50)
@pytest.mark.parametrize("file_format", [None, "csv", "jsonl"])
@pytest.mark.parametrize(
    ("start", "found"),
    [
        (gzip.compress(HEADER.encode(), mtime=0), "a gzip'd file"),
        (bz2.compress(HEADER.encode()), "a bzip2'd file"),
        (lzma.compress(HEADER.encode()), "an xz'd file"),
        (bytes.fromhex("28b52ffd2405"), "a zstd'd file"),
        (b"PK\x03\x04\x14\0\6\0", "a spreadsheet (xlsx, ods) or another zip file"),
        (bytes.fromhex("d0cf11e0a1b11ae1"), "a spreadsheet (xls)"),
        (HEADER.encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + HEADER.encode("utf-16-be"), "UTF-16"),
        (HEADER.encode("utf-32"), "UTF-16"),
    ],
)
def test_a_file_that_is_no_text_is_told_as_what_it_is(
    start: bytes, found: str, file_format: Format | None
) -> None:
    """One error for the file, whatever it is said to be, instead of one for each line."""
    rows = read(start + b"\n" + bytes(range(256)) * 8, file_format, ROOM)
    assert [1] == list(errors(rows))
    assert f"found {found}; no row was read" in errors(rows)[1]
    assert 1 == len(rows)


@pytest.mark.fault(50)
def test_a_header_that_comes_again_is_no_user() -> None:
    """Two files were joined: its line is an error, and the rows on both sides are read."""
    rows = read("user\nviewer-1\nuser\nviewer-2\n", room=ROOM)
    assert (["viewer-1", "viewer-2"], [3]) == (users(rows), list(errors(rows)))
    assert "the header again" in errors(rows)[3]


def test_an_empty_file_has_no_header() -> None:
    """Empty CSV is an error; empty JSON lines, and a header alone, are nobody."""
    assert "an empty file" in errors(read(""))[1]
    assert "an empty file" in errors(read("", "csv"))[1]
    assert read("", "jsonl") == []
    assert read(HEADER) == []


def test_a_line_of_the_greatest_length_is_read() -> None:
    """The limit counts the line's end."""
    start, end = f'{{"room": "{ROOM}", "user": "viewer-1"', "}\n"
    padded = start + " " * (LINE_MAX_BYTES - len(start) - len(end)) + end
    assert len(padded) == LINE_MAX_BYTES
    assert users(read(padded)) == ["viewer-1"]
    assert users(read(padded.replace("}", " }"), "jsonl")) == []


def test_a_line_without_end_needs_no_memory() -> None:
    """A stream of many megabytes without a line break is one error."""

    class Endless(io.RawIOBase):
        left = 64

        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # as io has it
            self.left -= 1
            buffer[:] = b"x" * len(buffer)
            return len(buffer) if self.left > 0 else 0

    rows = list(read_attendees(io.BufferedReader(Endless(), 1 << 20), "jsonl"))
    assert list(errors(rows).values()) == ["line: must be at most 65,536 bytes; found more"]


def test_reading_is_lazy() -> None:
    """A row is there before the next line is read."""

    class Lines(io.BytesIO):
        taken = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            self.taken += 1
            return super().readline(size)

    stream = Lines(f"{HEADER}{ROOM},viewer-1,,,\n{ROOM},viewer-2,,,\n".encode())
    assert users([next(read_attendees(stream))])[0] == "viewer-1"
    assert stream.taken == 2


CSV_LIKE = st.lists(
    st.sampled_from(
        [
            ROOM,
            "user",
            "room",
            ",",
            '"',
            "\n",
            "\r",
            "\0",
            "{",
            "}",
            '{""a"":""b""}',
            "SEND_MESSAGE",
        ]
    )
    | st.text(max_size=5)
).map("".join)


@pytest.mark.fault(28)
@given(
    raw=st.binary(max_size=300)
    | CSV_LIKE.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | CSV_LIKE.map(lambda text: (HEADER + text).encode("utf-8", "surrogatepass")),
    file_format=st.sampled_from([None, "csv", "jsonl"]),
    room=st.sampled_from([None, ROOM]),
)
@example(raw=b"\xef\xbb\xbf", file_format=None, room=None)
@example(raw=b"\n\n", file_format="csv", room=None)
def test_any_bytes_give_rows_or_errors(
    raw: bytes, file_format: Format | None, room: str | None
) -> None:
    """Each non-blank line behind a header is one request or one error, and nothing raises."""
    rows = read(raw, file_format, room)
    lines = [row.line for row in rows]
    assert sorted(set(lines)) == lines
    assert all((row.request is None) != (row.error is None) for row in rows)
    assert lines[-1:] <= [max(raw.count(b"\n") + 1, 1)]


@given(
    st.lists(
        st.fixed_dictionaries(
            {"user": st.text(min_size=1, max_size=128)},
            optional={
                "capabilities": st.lists(st.sampled_from(["SEND_MESSAGE", "DELETE_MESSAGE"])),
                "attributes": st.dictionaries(st.text(max_size=5), st.text(max_size=20)),
                "session_minutes": st.integers(1, 180),
            },
        ),
        unique_by=lambda row: row["user"],
        max_size=5,
    )
)
def test_json_lines_carry_every_request(members: list[dict[str, object]]) -> None:
    """Whatever text a user id or an attribute is."""
    text = "".join(json.dumps(row) + "\n" for row in members)
    expected = [TokenRequest(ROOM, **row) for row in members]  # type: ignore[arg-type]  # of JSON
    assert expected == [row.request for row in read(text, "jsonl", ROOM)]
