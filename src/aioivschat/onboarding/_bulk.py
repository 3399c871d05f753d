"""Tokens for many at once: from a list of attendees to a stream of outcomes.

::

    with open("attendees.csv", "rb") as file:
        async with AsyncTokenService() as tokens:
            async for outcome in onboard(tokens, read_attendees(file)):
                ...

A token lives one minute and connects once, so outcomes are to be used as they come. What is
written here is JSON lines and never CSV, so no spreadsheet runs what an attendee's name says.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import queue
import secrets
import stat
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from aioivschat._clock import iso_utc
from aioivschat._models import ChatToken, Priority, TokenRequest
from aioivschat.errors import (
    ChatTokenError,
    InvalidConfiguration,
    ServiceClosed,
    WrongLoop,
    require,
)
from aioivschat.onboarding._attendees import (
    Attendee,
)

if TYPE_CHECKING:
    from aioivschat._service.service import AsyncTokenService

IN_FLIGHT = 400
"""Two seconds of the quota: even answers that take a second leave no permit unused."""

T = TypeVar("T")
Requests = Iterable[TokenRequest | Attendee] | AsyncIterable[TokenRequest | Attendee]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one attendee: a token or an error.

    Args:
        attendee: the row; of a plain :class:`TokenRequest`, its position counted from 1 is the
            ``line``.
        token: the token, which nobody else was handed if it was asked for ``fresh``.
        error: why there is none.
    """

    attendee: Attendee
    token: ChatToken | None = None
    error: ChatTokenError | None = None

    @property
    def request(self) -> TokenRequest | None:
        """What was asked for; ``None`` if the row could not be read."""
        return self.attendee.request


def onboard(
    service: AsyncTokenService,
    requests: Requests,
    *,
    in_flight: int = IN_FLIGHT,
    timeout: float | None = None,
    fresh: bool = True,
    priority: Priority = Priority.NORMAL,
) -> AsyncGenerator[Outcome, None]:
    """Issue a token for each of any number of requests, at the quota's pace.

    Requests are pulled as they are needed, and only while outcomes are taken: at most
    ``in_flight`` of them are under way or wait to be taken. Closing the iterator, or leaving the
    loop over it, cancels those under way.

    Args:
        service: issues the tokens.
        requests: what to ask for. Attendees with an error pass through in their place and cost no
            request. An iterable is pulled on the event loop: see :func:`read_in_thread`.
        in_flight: calls under way at once, at least 1.
        timeout: seconds for each call, above 0, the wait for the quota included: with less than
            ``in_flight`` divided by the quota, calls are refused as overloaded.
        fresh: whether each gets a token that nobody has been handed.
        priority: who goes first when others wait for the same quota.

    Returns:
        Outcomes as they come, not in the order of the requests. A failed call is an outcome;
        what ends the whole job is raised: a closed service, an option that cannot work, missing
        credentials, and whatever ``requests`` raises.

    Raises:
        InvalidConfiguration: ``in_flight`` or ``timeout`` is out of its range.
    """
    return _one_by_one(
        onboard_in_batches(
            service,
            requests,
            in_flight=in_flight,
            timeout=timeout,
            fresh=fresh,
            priority=priority,
        )
    )


async def _one_by_one(
    batches: AsyncGenerator[list[Outcome], None],
) -> AsyncGenerator[Outcome, None]:
    async with aclosing(batches):
        async for batch in batches:
            for outcome in batch:
                yield outcome


def onboard_in_batches(
    service: AsyncTokenService,
    requests: Requests,
    *,
    in_flight: int = IN_FLIGHT,
    timeout: float | None = None,
    fresh: bool = True,
    priority: Priority = Priority.NORMAL,
) -> AsyncGenerator[list[Outcome], None]:
    """As :func:`onboard`, with all outcomes at once that have come since the last were taken.

    For a consumer that pays by the call: to write to a disk or a network, say.

    Args:
        service: as for :func:`onboard`.
        requests: as for :func:`onboard`.
        in_flight: as for :func:`onboard`; also the most outcomes there are in a batch.
        timeout: as for :func:`onboard`.
        fresh: as for :func:`onboard`.
        priority: as for :func:`onboard`.

    Returns:
        Lists of one outcome at least.

    Raises:
        InvalidConfiguration: as :func:`onboard` does.
    """
    require(in_flight >= 1, "in_flight", "at least 1", in_flight)
    require(timeout is None or timeout > 0, "timeout", "above 0 s, or None", timeout)
    issue = partial(service.issue, timeout=timeout, fresh=fresh, priority=priority)
    return _batches(issue, requests, in_flight)


async def _batches(
    issue: Callable[[TokenRequest], Awaitable[ChatToken]], requests: Requests, in_flight: int
) -> AsyncGenerator[list[Outcome], None]:
    rows: Iterator[TokenRequest | Attendee] | AsyncIterator[TokenRequest | Attendee]
    rows = aiter(requests) if isinstance(requests, AsyncIterable) else iter(requests)
    pulled = 0
    exhausted = False
    # Reading is a task like the others, so that a slow source holds no outcome back.
    reading: asyncio.Task[Any] | None = None
    under_way: set[asyncio.Task[Any]] = set()
    ended: deque[asyncio.Task[Any]] = deque()
    some_ended = asyncio.Event()
    batch: list[Outcome] = []

    def start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        under_way.add(task)
        task.add_done_callback(end)
        return task

    def end(task: asyncio.Task[Any]) -> None:
        ended.append(task)
        some_ended.set()

    def take(row: TokenRequest | Attendee | None) -> None:
        nonlocal pulled, exhausted
        if row is None:
            exhausted = True
            return
        pulled += 1
        attendee = row if isinstance(row, Attendee) else Attendee(pulled, row)
        if attendee.request is None:
            batch.append(Outcome(attendee, error=attendee.error))
        else:
            start(_outcome(issue, attendee, attendee.request))

    try:
        while True:
            # Nobody is begun any more once the end of the job is known.
            while not (exhausted or reading or ended) and len(under_way) + len(batch) < in_flight:
                if isinstance(rows, AsyncIterator):
                    reading = start(_next(rows))
                else:
                    take(next(rows, None))
            if not batch and not under_way:
                break
            # Where nothing is to be waited for, others have their turn all the same.
            await (asyncio.sleep(0) if batch else some_ended.wait())
            some_ended.clear()
            # What ends the job is raised after the outcomes that came before it were taken.
            while ended and not (batch and ended[0].exception()):
                task = ended.popleft()
                under_way.remove(task)
                if task is reading:
                    reading = None
                    take(task.result())
                else:
                    batch.append(task.result())
            if ended:
                some_ended.set()
            if batch:
                ready, batch = batch, []
                yield ready
    finally:
        for each in under_way:
            each.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _next(rows: AsyncIterator[T]) -> T | None:
    return await anext(rows, None)


async def _outcome(
    issue: Callable[[TokenRequest], Awaitable[ChatToken]],
    attendee: Attendee,
    request: TokenRequest,
) -> Outcome:
    try:
        return Outcome(attendee, token=await issue(request))
    except (InvalidConfiguration, ServiceClosed, WrongLoop):
        # No other call would fare better.
        raise
    except ChatTokenError as error:
        # The traceback's frames hold the request; a job may keep a million outcomes.
        return Outcome(attendee, error=error.with_traceback(None))


def outcome_as_json(outcome: Outcome) -> str:
    """Return an outcome as one line of JSON, its line break included.

    ``{"line", "room", "user", "token", "tokenExpirationTime", "sessionExpirationTime"}``, or
    ``{"line", "room", "user", "error": {"code", "message"}}`` without room and user where these
    could not be read. The line shows the token in plain text: it is for the attendee only.
    """
    attendee = outcome.attendee
    members: dict[str, Any] = {"line": attendee.line}
    if outcome.request is not None and outcome.token is not None:
        members |= token_members(outcome.request, outcome.token)
    else:
        who = outcome.request or attendee
        if who.user is not None:
            members |= {"room": who.room, "user": who.user}
        code = type(outcome.error).__name__
        members["error"] = {"code": code, "message": str(outcome.error)}
    return json.dumps(members) + "\n"


def token_members(request: TokenRequest, token: ChatToken) -> dict[str, str]:
    """Return what an attendee needs, in plain text, times in UTC as ISO 8601."""
    return {
        "room": request.room,
        "user": request.user,
        "token": token.token,
        "tokenExpirationTime": iso_utc(token.token_expires),
        "sessionExpirationTime": iso_utc(token.session_expires),
    }


@contextmanager
def private_output(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[TextIO]:
    """Open a file for secrets, which is complete or absent, and its owner's only.

    It is written beside its place and moved there at the end of the block; if the block or the
    disk fails, it is removed.

    Args:
        path: where the file is to be; never written through a symbolic link.
        force: whether a file that is there already is replaced.

    Raises:
        OSError: it cannot be written, exists already, or is something else than a file.
    """
    target = Path(path)
    check_free(target, force=force)
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    descriptor = open_private(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            # A full disk may show only here.
            os.fsync(descriptor)
        check_free(target, force=force)
        part.replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            part.unlink()
        raise


def open_private(path: Path, flags: int) -> int:
    """Open a file, never through a symbolic link; one that is made is its owner's only.

    Args:
        path: the file.
        flags: of :func:`os.open`.

    Returns:
        The descriptor.

    Raises:
        OSError: it cannot be opened, or is something else than a file.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link", str(path))
    # Not blocking: what is there may be a pipe that nobody reads.
    more = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags | more, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_free(target: Path, *, force: bool) -> None:
    """Refuse a place where a file for secrets cannot come to be.

    Args:
        target: the place.
        force: whether a file that is there already may be replaced.

    Raises:
        OSError: a file, a link or something else is in the way.
    """
    if target.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link", str(target))
    if target.exists():
        if not target.is_file():
            raise OSError(errno.EINVAL, "is not a regular file", str(target))
        if not force:
            raise FileExistsError(errno.EEXIST, "exists already", str(target))


class BlockingThread:
    """A thread for calls that may block for ever, such as reading a pipe.

    Unlike an executor's, it holds up neither the end of the event loop nor that of the process.
    Calls are made one after the other; one that is abandoned goes on, and its result is dropped.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="aioivschat-io", daemon=True).start()

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Make a call in the thread.

        Args:
            call: what to call; must not raise ``StopIteration``.
            args: its arguments.

        Returns:
            What it returns.

        Raises:
            Exception: what it raises.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((future, partial(call, *args)))
        return await future

    def close(self) -> None:
        """End the thread after the calls that were asked for."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (job := self._calls.get()) is not None:
            future, call = job
            try:
                settle: Callable[[], None] = partial(future.set_result, call())
            except BaseException as error:
                settle = partial(future.set_exception, error)
            try:
                future.get_loop().call_soon_threadsafe(_settle, future, settle)
            except RuntimeError:
                return  # the loop was closed meanwhile


def _settle(future: asyncio.Future[Any], settle: Callable[[], None]) -> None:
    if not future.done():
        settle()


async def read_in_thread(rows: Iterator[T]) -> AsyncIterator[T]:
    """Pull an iterator in a thread, for a source that blocks, such as a pipe.

    Args:
        rows: an iterator without ``None``; it is pulled one row at a time, as needed.

    Returns:
        Its rows.
    """
    thread = BlockingThread()
    try:
        while (row := await thread.run(next, rows, None)) is not None:
            yield row
    finally:
        thread.close()
