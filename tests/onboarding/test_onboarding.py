"""Bulk issuing: outcomes as they come, bounded, and nothing left behind."""

import asyncio
import io
import itertools
import json
import os
import stat
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from aiobotocore.session import AioSession
from botocore.exceptions import NoCredentialsError

from aioivschat._models import ChatToken, Priority, TokenRequest
from aioivschat._service.pace import Quota
from aioivschat._service.service import AsyncTokenService
from aioivschat.emulator import EmulatorServer
from aioivschat.errors import (
    ChatTokenError,
    InvalidConfiguration,
    InvalidRequest,
    Overloaded,
    ServiceClosed,
)
from aioivschat.onboarding import (
    Attendee,
    BlockingThread,
    Outcome,
    onboard,
    onboard_in_batches,
    outcome_as_json,
    private_output,
    read_attendees,
    read_in_thread,
)

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Lobby"
TOKEN = ChatToken(
    "canary-token",
    datetime(2026, 1, 2, 3, 4, 5, 678000, UTC),
    datetime(2026, 1, 2, 4, 4, 5, tzinfo=UTC),
)
BAD_ROW = Attendee(7, error=InvalidRequest("line", "UTF-8", "other bytes"))


def request(number: int) -> TokenRequest:
    """Return the request of one of many viewers."""
    return TokenRequest(ROOM, f"viewer-{number}")


class Service:
    """Issues tokens when it is told to."""

    def __init__(
        self, gate: Callable[[TokenRequest], Any] | None = None, *, keep: bool = True
    ) -> None:
        self.gate = gate
        self.keep = keep
        self.calls: list[tuple[TokenRequest, dict[str, Any]]] = []
        self.under_way = self.peak = self.cancelled = 0

    async def issue(self, request: TokenRequest, **options: Any) -> ChatToken:
        """Issue a token once the gate opens, or raise what it raises."""
        if self.keep:
            self.calls.append((request, options))
        self.under_way += 1
        self.peak = max(self.peak, self.under_way)
        try:
            if self.gate is not None:
                await self.gate(request)
            return TOKEN
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    def __call__(self) -> AsyncTokenService:
        """Pass for the real one."""
        return cast("AsyncTokenService", self)


async def for_ever(_: TokenRequest) -> None:
    """Open for nobody."""
    await asyncio.Event().wait()


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Hold that every test leaves no task behind: there is only the one of this fixture."""
    yield
    for _ in range(10):
        await asyncio.sleep(0)
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    async with asyncio.timeout(10):
        for _ in itertools.count():
            if condition():
                return
            await asyncio.sleep(0.001)


async def test_each_request_gets_an_outcome() -> None:
    """An outcome has the request, its position and the token."""
    outcomes = [outcome async for outcome in onboard(Service()(), map(request, range(5)))]
    assert [(number + 1, request(number), TOKEN, None) for number in range(5)] == [
        (outcome.attendee.line, outcome.request, outcome.token, outcome.error)
        for outcome in outcomes
    ]


async def test_options_reach_every_call() -> None:
    """And by default each attendee gets a token that nobody has been handed."""
    service = Service()
    async for _ in onboard(service(), [request(1)]):
        pass
    async for _ in onboard(
        service(), [request(1)], timeout=3.0, fresh=False, priority=Priority.BACKGROUND
    ):
        pass
    assert [options for _, options in service.calls] == [
        {"timeout": None, "fresh": True, "priority": Priority.NORMAL},
        {"timeout": 3.0, "fresh": False, "priority": Priority.BACKGROUND},
    ]


async def test_outcomes_come_as_they_complete() -> None:
    """A slow call holds nobody back."""
    slow = asyncio.Event()

    async def gate(asked: TokenRequest) -> None:
        if asked == request(0):
            await slow.wait()

    users = []
    async for outcome in onboard(Service(gate)(), map(request, range(3))):
        assert outcome.request is not None
        users.append(outcome.request.user)
        if len(users) == 2:
            slow.set()
    assert users == ["viewer-1", "viewer-2", "viewer-0"]


async def test_a_slow_source_holds_no_outcome_back() -> None:
    """What is done is handed out while the next row is waited for."""
    more = asyncio.Event()

    async def source() -> AsyncIterator[TokenRequest]:
        yield request(0)
        await more.wait()
        yield request(1)

    async with asyncio.timeout(5), aclosing(onboard(Service()(), source())) as outcomes:
        assert request(0) == (await anext(outcomes)).request
        more.set()
        assert [request(1)] == [outcome.request async for outcome in outcomes]


@pytest.mark.fault(28)
async def test_a_bad_row_passes_through_and_costs_no_request() -> None:
    """The rows around it get their tokens."""
    service = Service()
    rows = [Attendee(6, request(6)), BAD_ROW, Attendee(8, request(8))]
    outcomes = [outcome async for outcome in onboard(service(), rows)]
    assert {each.attendee.line: each.token for each in outcomes} == {6: TOKEN, 7: None, 8: TOKEN}
    assert [BAD_ROW.error] == [each.error for each in outcomes if each.error]
    assert [request(6), request(8)] == [asked for asked, _ in service.calls]


async def test_the_window_bounds_what_is_pulled_and_under_way() -> None:
    """An endless source is pulled as outcomes are taken, and no further ahead than the window."""
    service = Service()
    pulled = 0

    def source() -> Iterator[TokenRequest]:
        nonlocal pulled
        for number in itertools.count():
            pulled += 1
            yield request(number)

    async with aclosing(onboard(service(), source(), in_flight=10)) as outcomes:
        for taken in range(1, 101):
            await anext(outcomes)
            assert pulled <= taken + 10
    assert service.peak <= 10


async def test_a_slow_consumer_stops_the_pulling() -> None:
    """While nobody takes outcomes, no call is begun beyond the window."""
    service = Service()
    async with aclosing(onboard(service(), map(request, itertools.count()), in_flight=5)) as all_:
        await anext(all_)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(service.calls) <= 5


async def test_memory_is_bounded_for_any_length() -> None:
    """Ten thousand rows, good and bad, leave nothing behind."""
    rows = (BAD_ROW if number % 2 else request(number) for number in range(10_000))
    tracemalloc.start()
    try:
        async for _ in onboard(Service(keep=False)(), rows):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


async def test_a_batch_is_all_that_has_come_since() -> None:
    """Bounded by the window, bad rows included, and never empty."""
    service = Service()
    rows = [
        BAD_ROW if number % 3 == 0 else Attendee(number, request(number)) for number in range(9)
    ]
    rows *= 7
    sizes = []
    lines = []
    async for batch in onboard_in_batches(service(), rows, in_flight=8):
        sizes.append(len(batch))
        lines += [outcome.attendee.line for outcome in batch]
        for _ in range(20):
            await asyncio.sleep(0)
    assert sorted(lines) == sorted(row.line for row in rows)
    assert 1 <= min(sizes) <= max(sizes) <= 8
    assert max(sizes) > 1
    assert service.peak <= 8


async def test_what_came_before_the_end_of_the_job_is_handed_out() -> None:
    """Tokens that are there already are not lost with it."""

    async def gate(asked: TokenRequest) -> None:
        if asked == request(3):
            raise ServiceClosed

    taken = []
    with pytest.raises(ServiceClosed):
        async for batch in onboard_in_batches(Service(gate)(), map(request, range(6))):
            taken += [outcome.request for outcome in batch]
    assert [request(0), request(1), request(2)] == taken


async def test_rows_that_cost_nothing_leave_others_their_turn() -> None:
    """A consumer that never waits for anything does not freeze the loop."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async for _ in onboard(Service()(), [BAD_ROW] * 1000, in_flight=10):
        pass
    assert turns >= 100
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_closing_cancels_what_is_under_way() -> None:
    """By the time the iterator is closed, every call has ended."""

    async def gate(asked: TokenRequest) -> None:
        if asked != request(0):
            await for_ever(asked)

    service = Service(gate)
    outcomes = onboard(service(), map(request, itertools.count()), in_flight=8)
    await anext(outcomes)
    for _ in range(50):
        await asyncio.sleep(0)
    under_way = service.under_way
    await outcomes.aclose()
    assert (0, under_way) == (service.under_way, service.cancelled)


async def test_leaving_the_loop_leaves_no_task() -> None:
    """A plain ``break`` is enough; the fixture counts the tasks."""
    service = Service()
    async for _ in onboard(service(), map(request, itertools.count()), in_flight=8):
        break


async def test_cancelling_the_consumer_cancels_what_is_under_way() -> None:
    """Cancelling the consumer cancels its calls, and raises CancelledError in the consumer."""
    service = Service(for_ever)

    async def consume() -> None:
        async for _ in onboard(service(), map(request, itertools.count()), in_flight=8):
            pass

    consumer = asyncio.create_task(consume())
    await until(lambda: service.under_way >= 7)
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    await asyncio.sleep(0)
    assert service.under_way == 0


async def test_a_failed_call_is_an_outcome() -> None:
    """Its traceback, whose frames hold the request, is gone."""

    async def gate(asked: TokenRequest) -> None:
        if asked == request(1):
            raise Overloaded("too many calls are waiting", 1.0)

    outcomes = [each async for each in onboard(Service(gate)(), map(request, range(3)))]
    (failed,) = [each for each in outcomes if each.error]
    assert (request(1), None) == (failed.request, failed.token)
    assert isinstance(failed.error, Overloaded)
    assert failed.error.__traceback__ is None


@pytest.mark.parametrize(
    "error", [ServiceClosed(), InvalidConfiguration("url", "HTTPS", "HTTP"), NoCredentialsError()]
)
async def test_what_no_other_call_would_survive_ends_the_job(error: Exception) -> None:
    """It is raised, and the other calls are cancelled."""

    async def gate(asked: TokenRequest) -> None:
        if asked == request(3):
            raise error
        await for_ever(asked)

    service = Service(gate)
    with pytest.raises(type(error)):
        async for _ in onboard(service(), map(request, range(6))):
            pass
    assert service.under_way == 0


async def test_an_error_of_the_source_ends_the_job() -> None:
    """It is the caller's own, and is raised to the caller."""

    def source() -> Iterator[TokenRequest]:
        yield request(0)
        raise LookupError("of the source")

    service = Service(for_ever)
    with pytest.raises(LookupError, match="of the source"):
        async for _ in onboard(service(), source()):
            pass
    assert service.under_way == 0


@pytest.mark.parametrize("options", [{"in_flight": 0}, {"timeout": 0.0}, {"timeout": -1.0}])
async def test_options_that_cannot_work_are_refused_at_once(options: dict[str, Any]) -> None:
    """Options out of range are refused before anything is pulled."""
    with pytest.raises(InvalidConfiguration):
        onboard(Service()(), [], **options)


def session() -> AioSession:
    """Return a session that needs no configuration."""
    made = AioSession()
    made.set_credentials("testing", "testing")
    return made


async def test_equal_attendees_get_different_tokens() -> None:
    """From a real service: a token connects once, so nobody is handed another's."""
    async with (
        EmulatorServer() as server,
        AsyncTokenService(session=session(), endpoint_url=server.url) as tokens,
    ):
        outcomes = [each async for each in onboard(tokens, itertools.repeat(request(1), 20))]
        assert len({each.token.token for each in outcomes if each.token}) == 20
        assert server.emulator.counts().requests == 20


async def test_leaving_early_gives_the_places_in_the_queue_back() -> None:
    """Of a real service with a small quota: nobody waits any more, and nothing more is sent."""
    async with (
        EmulatorServer() as server,
        AsyncTokenService(
            session=session(), endpoint_url=server.url, quota=Quota(rate=5.0)
        ) as tokens,
    ):
        async with aclosing(onboard(tokens, map(request, range(100)))) as outcomes:
            await anext(outcomes)
            await until(lambda: tokens.stats().waiting >= 1)
        sent = server.emulator.counts().requests
        assert (tokens.stats().waiting, sent < 10) == (0, True)
        await asyncio.sleep(0.5)
        assert sent == server.emulator.counts().requests


def test_a_token_becomes_a_line_of_json() -> None:
    """With times in UTC, which JavaScript's ``Date`` reads."""
    line = outcome_as_json(Outcome(Attendee(2, request(1)), token=TOKEN))
    assert line.endswith("}\n")
    assert json.loads(line) == {
        "line": 2,
        "room": ROOM,
        "user": "viewer-1",
        "token": "canary-token",
        "tokenExpirationTime": "2026-01-02T03:04:05.678Z",
        "sessionExpirationTime": "2026-01-02T04:04:05.000Z",
    }


@pytest.mark.parametrize(
    ("attendee", "who"),
    [
        (Attendee(7), {}),
        (Attendee(7, room=ROOM, user="viewer-1"), {"room": ROOM, "user": "viewer-1"}),
        (Attendee(7, request(1)), {"room": ROOM, "user": "viewer-1"}),
    ],
)
def test_an_error_becomes_a_line_of_json(attendee: Attendee, who: dict[str, str]) -> None:
    """With room and user where these are known."""
    error: ChatTokenError = InvalidRequest("line", "UTF-8", "other bytes")
    message = "line: must be UTF-8; found other bytes"
    assert {"line": 7, **who, "error": {"code": "InvalidRequest", "message": message}} == (
        json.loads(outcome_as_json(Outcome(attendee, error=error)))
    )


def test_line_breaks_in_a_user_id_stay_inside_the_line() -> None:
    """One outcome, one line, whatever the text is."""
    odd = TokenRequest(ROOM, "a\n\u2028\x1b[2J\N{PARTY POPPER}")
    line = outcome_as_json(Outcome(Attendee(1, odd), token=TOKEN))
    assert line[:-1].isprintable()
    assert line.isascii()
    assert odd.user == json.loads(line)["user"]


@pytest.mark.fault(30)
def test_an_outcome_shows_neither_token_nor_user() -> None:
    """The repr of an outcome shows neither token nor user, for good and bad rows."""
    shown = repr(Outcome(Attendee(1, request(1)), token=TOKEN))
    shown += repr(Outcome(Attendee(1, room=ROOM, user="viewer-1")))
    assert "canary" not in shown
    assert "viewer" not in shown


@pytest.mark.fault(29)
def test_output_is_its_owners_only(tmp_path: Path) -> None:
    """Whatever the umask is, while it is written and afterwards."""
    umask = os.umask(0)
    try:
        with private_output(tmp_path / "tokens.jsonl") as file:
            for part in tmp_path.iterdir():
                assert stat.S_IMODE(part.stat().st_mode) == 0o600
            file.write("{}\n")
    finally:
        os.umask(umask)
    (output,) = tmp_path.iterdir()
    assert (output.name, output.read_text()) == ("tokens.jsonl", "{}\n")
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


@pytest.mark.fault(29)
def test_output_is_absent_if_the_work_fails(tmp_path: Path) -> None:
    """And so is the part that was written; an older file stays as it was."""
    output = tmp_path / "tokens.jsonl"
    output.write_text("older\n")

    def fail() -> None:
        with private_output(output, force=True) as file:
            file.write("{}\n")
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert [output] == list(tmp_path.iterdir())
    assert output.read_text() == "older\n"


@pytest.mark.fault(29)
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_output_never_goes_through_a_link(tmp_path: Path, force: bool, exists: bool) -> None:
    """A symbolic link is refused as output, even if it dangles and by force."""
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "tokens.jsonl"
    link.symlink_to(elsewhere)
    if exists:
        elsewhere.write_text("older\n")
    with pytest.raises(OSError, match="symbolic link"), private_output(link, force=force):
        pass
    assert exists == elsewhere.exists()
    assert link.is_symlink()


@pytest.mark.fault(29)
def test_a_link_that_appears_meanwhile_is_not_followed(tmp_path: Path) -> None:
    """A link that appears while the output is written is refused at the end."""
    output, elsewhere = tmp_path / "tokens.jsonl", tmp_path / "elsewhere"
    with pytest.raises(OSError, match="symbolic link"), private_output(output, force=True):
        output.symlink_to(elsewhere)
    assert [output] == list(tmp_path.iterdir())


def test_output_overwrites_nothing_unasked(tmp_path: Path) -> None:
    """Neither a file nor, even by force, something else."""
    output = tmp_path / "tokens.jsonl"
    output.write_text("older\n")
    with pytest.raises(FileExistsError), private_output(output):
        pass
    with private_output(output, force=True) as file:
        file.write("newer\n")
    assert output.read_text() == "newer\n"
    with pytest.raises(OSError, match="not a regular file"), private_output(tmp_path, force=True):
        pass
    with (
        pytest.raises(OSError, match="not a regular file"),
        private_output("/dev/null", force=True),
    ):
        pass


async def test_reading_a_pipe_does_not_freeze_the_loop() -> None:
    """While a row is waited for, the loop runs; the row comes when it is written."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as source, os.fdopen(write, "wb", buffering=0) as sink:
        async with aclosing(cast("Any", read_in_thread(read_attendees(source)))) as rows:
            waiting = asyncio.ensure_future(anext(rows))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not waiting.done()
            sink.write(f"room,user\n{ROOM},viewer-1\n".encode())
            assert Attendee(2, request(1)) == await waiting
            sink.close()
            assert [row async for row in rows] == []


async def test_a_source_in_a_thread_raises_to_its_reader() -> None:
    """An error of a source that is read in a thread is raised to its reader."""
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        async for _ in read_in_thread(read_attendees(closed)):
            pass


async def test_a_blocked_read_can_be_left() -> None:
    """The job goes on without the thread, which is still reading."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as source, os.fdopen(write, "wb") as sink:
        outcomes = onboard(Service()(), read_in_thread(read_attendees(source)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(outcomes), 0.05)
        sink.close()  # lets the thread end


async def test_an_abandoned_call_does_no_harm() -> None:
    """The next one waits for its end, and gets a result of its own."""
    thread = BlockingThread()
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as source, os.fdopen(write, "wb", buffering=0) as sink:
        abandoned = asyncio.create_task(thread.run(source.read, 1))
        await asyncio.sleep(0.01)
        abandoned.cancel()
        with pytest.raises(asyncio.CancelledError):
            await abandoned
        sink.write(b"ab")
        assert await thread.run(source.read, 1) == b"b"
    thread.close()
