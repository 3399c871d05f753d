"""Issues tokens for any number of requests, with a bounded number of calls under way."""

from __future__ import annotations

import asyncio
import json
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
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aioivschat._clock import iso_utc
from aioivschat._contexts import call_later
from aioivschat._models import ChatToken, Priority, TokenRequest, checked_priority
from aioivschat._service.refusals import ENOUGH, FIRST_LOOK_SECONDS, Refusals
from aioivschat.errors import ChatTokenError, require_number
from aioivschat.onboarding._attendees import Attendee

if TYPE_CHECKING:
    from aioivschat._service.service import AsyncTokenService

IN_FLIGHT = 400
"""Two seconds of the default quota: every permit is used even if a reply takes a second."""

T = TypeVar("T")
Requests = Iterable[TokenRequest | Attendee] | AsyncIterable[TokenRequest | Attendee]
_Issue = Callable[[TokenRequest], Awaitable[ChatToken]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An attendee's token, or the error instead of it.

    Args:
        attendee: the row; for a plain :class:`TokenRequest`, ``line`` is its position, from 1.
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
        priority: which calls go first when several wait for the same quota.

    Returns:
        Outcomes as they come, not in the order of the requests. A failed call is an outcome. After
        a handful that its room was refused, so are its room's others, and nothing is sent for them.
        What ends the whole job is raised, and what was under way has no outcome: whatever
        ``requests`` raises, and an error whose ``scope`` is the account or the service, at once if
        it lasts, or else after a handful in a row. So do several rooms in a row that are refused.

    Raises:
        InvalidConfiguration: ``in_flight`` or ``timeout`` is out of its range.
    """
    batches = onboard_in_batches(
        service, requests, in_flight=in_flight, timeout=timeout, fresh=fresh, priority=priority
    )
    return _flatten_batches(batches)


async def _flatten_batches(
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
    """Issue tokens as :func:`onboard` does, and yield all outcomes since the last batch at once.

    For a consumer that pays by the call: to write to a disk or a network, say. Arguments and errors
    are those of :func:`onboard`; ``in_flight`` is also the most outcomes in a batch.

    Returns:
        Lists of at least one outcome.
    """
    require_number("in_flight", in_flight, least=1, whole=True)
    if timeout is not None:
        require_number("timeout", timeout, above=0, unit=" s")
    priority = checked_priority(priority)
    issue = partial(service.issue, timeout=timeout, fresh=fresh, priority=priority)
    return _run_in_batches(issue, requests, in_flight)


async def _run_in_batches(
    issue: _Issue, requests: Requests, in_flight: int
) -> AsyncGenerator[list[Outcome], None]:
    rows: Iterator[TokenRequest | Attendee] | AsyncIterator[TokenRequest | Attendee]
    rows = aiter(requests) if isinstance(requests, AsyncIterable) else iter(requests)
    pulled = 0
    exhausted = False
    # The next row is read in a task of its own, so that a slow source delays no outcome.
    reading: asyncio.Task[Any] | None = None
    under_way: dict[asyncio.Task[Any], Attendee | None] = {}  # for whom; `reading` is for nobody
    ended: deque[asyncio.Task[Any]] = deque()
    some_ended = asyncio.Event()
    batch: list[Outcome] = []
    refusals = Refusals()
    begun = answered = 0
    has_looked = asyncio.Event()
    first_look = call_later(FIRST_LOOK_SECONDS, has_looked.set)

    async def issue_in_turn(request: TokenRequest) -> ChatToken:
        nonlocal begun
        begun += 1
        if begun > ENOUGH and not has_looked.is_set():
            await has_looked.wait()
        token = await issue(request)
        has_looked.set()
        return token

    def start(
        work: Coroutine[Any, Any, Any], attendee: Attendee | None = None
    ) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        under_way[task] = attendee
        task.add_done_callback(end)
        return task

    def end(task: asyncio.Task[Any]) -> None:
        nonlocal answered
        answered += under_way[task] is not None
        if answered >= ENOUGH:
            has_looked.set()
        ended.append(task)
        some_ended.set()

    def refusal_of(attendee: Attendee | None) -> ChatTokenError | None:
        asked = attendee and attendee.request
        return refusals.find(asked.room) if asked else None

    def cancel_refused() -> None:
        for task, attendee in under_way.items():
            if task is not asyncio.current_task() and refusal_of(attendee):
                task.cancel()

    def take(row: TokenRequest | Attendee | None) -> None:
        nonlocal pulled, exhausted
        if row is None:
            exhausted = True
            return
        pulled += 1
        attendee = row if isinstance(row, Attendee) else Attendee(pulled, row)
        error = attendee.error or refusal_of(attendee)
        if attendee.request is None or error is not None:
            batch.append(Outcome(attendee, error=error))
        else:
            asked = attendee.request
            start(_issue_for(issue_in_turn, attendee, asked, refusals, cancel_refused), attendee)

    try:
        while True:
            # Start nothing new once the input is exhausted, or a task has ended that may abort the
            # job.
            while not (exhausted or reading or ended) and len(under_way) + len(batch) < in_flight:
                if isinstance(rows, AsyncIterator):
                    reading = start(_read_next(rows))
                else:
                    take(next(rows, None))
            if not batch and not under_way:
                break
            # With rows in hand there is nothing to wait for: let other tasks run all the same.
            await (asyncio.sleep(0) if batch else some_ended.wait())
            some_ended.clear()
            # Outcomes from before a failure are handed out first; the next round raises it.
            while ended and not (batch and _has_failed(ended[0])):
                task = ended.popleft()
                attendee = under_way.pop(task)
                if task is reading:
                    reading = None
                    take(task.result())
                elif attendee and task.cancelled() and (refusal := refusal_of(attendee)):
                    batch.append(Outcome(attendee, error=refusal))
                else:
                    batch.append(task.result())
                if refusals.of_all is not None:
                    batch = [each for each in batch if each.token]
            if ended:
                some_ended.set()
            if batch:
                ready, batch = batch, []
                yield ready
            if refusals.of_all is not None:
                raise refusals.of_all
    finally:
        first_look.cancel()
        for each in under_way:
            each.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _read_next(rows: AsyncIterator[T]) -> T | None:
    return await anext(rows, None)


async def _issue_for(
    issue: _Issue,
    attendee: Attendee,
    request: TokenRequest,
    refusals: Refusals,
    cancel_refused: Callable[[], None],
) -> Outcome:
    try:
        token = await issue(request)
    except ChatTokenError as error:
        if refusals.note_failed(request.room, error):
            cancel_refused()
        # The traceback's frames hold the request, and a caller may keep a million outcomes.
        return Outcome(attendee, error=error.with_traceback(None))
    refusals.note_served(request.room)
    return Outcome(attendee, token=token)


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return not task.cancelled() and task.exception() is not None


def outcome_as_json(outcome: Outcome) -> str:
    """Return an outcome as one line of JSON, its line break included.

    ``{"line", "room", "user", "token", "tokenExpirationTime", "sessionExpirationTime"}``, or
    ``{"line", "room", "user", "error": {"code", "message"}}``, without room and user if they could
    not be read. The line shows the token in plain text: it is for the attendee only.
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
